"""What a filesystem's properties decide for its engine."""

from __future__ import annotations

from tzfs.catalog import FilesystemInfo
from tzfs.engine.engine import Settings
from tzfs.names import STORE_SCOPE
from tzfs.properties import inherited_from


def settings_of(info: FilesystemInfo) -> Settings:
    """What the filesystem's properties decide for its engine."""

    def exact(name: str) -> str:
        return info.property(name).parsable

    return Settings(
        txg_interval_s=float(exact("txg_interval")),
        dirty_bytes_max=int(exact("dirty_max")),
        chunk_shift=int(exact("recordsize")).bit_length() - 1,
        collect=float(exact("gc_interval")) > 0,
        quota_bytes=int(exact("quota")),
        refquota_bytes=int(exact("refquota")),
        inodes_max=int(exact("inode_quota")),
        log_max=int(exact("log_max")),
        snapshots_max=int(exact("snapshot_limit")),
        store_quota_bytes=int(dict(info.layers).get(inherited_from(STORE_SCOPE), {}).get("quota", "0")),
    )
