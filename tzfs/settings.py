"""What a filesystem's properties decide for its engine, and which of them stay as they are while somebody uses it."""

from __future__ import annotations

from collections.abc import Mapping

from tzfs.catalog import Catalog, FilesystemInfo, describe_holder
from tzfs.engine.compression import Compression
from tzfs.engine.engine import Settings
from tzfs.errors import Busy, about
from tzfs.inheritance import LOCAL, inherited_from, lookup
from tzfs.names import STORE_SCOPE, FilesystemName, Scope


def settings_of(info: FilesystemInfo) -> Settings:
    """What the filesystem's properties decide for its engine."""

    def exact(name: str) -> str:
        return info.property(name).parsable

    return Settings(
        txg_interval_s=float(exact("txg_interval")),
        dirty_bytes_max=int(exact("dirty_max")),
        chunk_shift=int(exact("recordsize")).bit_length() - 1,
        compression=Compression.named(exact("compression")),
        collect=float(exact("gc_interval")) > 0,
        quota_bytes=int(exact("quota")),
        refquota_bytes=int(exact("refquota")),
        inodes_max=int(exact("inode_quota")),
        log_max=int(exact("log_max")),
        snapshots_max=int(exact("snapshot_limit")),
        store_quota_bytes=int(dict(info.layers).get(inherited_from(STORE_SCOPE), {}).get("quota", "0")),
    )


def settings_of_new(catalog: Catalog, name: FilesystemName, local: Mapping[str, str]) -> Settings:
    """What decides how contents are stored in a filesystem that is being made, with `local` set on it."""
    layers = ((LOCAL, local), *catalog.scope_layers(name.scope or STORE_SCOPE))
    return Settings(compression=Compression.named(lookup("compression", layers, {}).parsable))


def check_changeable(catalog: Catalog, where: FilesystemName | Scope, readonly: str | None) -> None:
    """`Busy` where `readonly` would change for a filesystem that is in use: it is what that was opened by."""
    for info in catalog.list(where) if isinstance(where, Scope) else [catalog.get(where)]:
        now = info.property("readonly")
        own = now.source == LOCAL
        if now.exact == readonly or (own if isinstance(where, Scope) else readonly is None and not own):
            continue  # as it is, or another place's value counts, or there is none to take away
        with about(info.name):
            holder = catalog.holder(info)
        if holder is not None:
            text = describe_holder(holder)
            raise Busy(
                f"cannot change readonly of {info.name}: it is in use by {text}",
                holders=(text,),
                hint=f"unmount it first: tzfs umount {info.name}",
            )
