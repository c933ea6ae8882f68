"""The computed properties of filesystems and snapshots, put together from their tables, the catalog and the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tzfs.catalog import Catalog, FilesystemInfo
from tzfs.engine.accounting import Accounts
from tzfs.engine.partial import pack_token
from tzfs.errors import CorruptionError, from_os_error, no_snapshot
from tzfs.format.records import Snapshot
from tzfs.inheritance import LOCAL, Value, lookup, resolve
from tzfs.ledger import Ledger
from tzfs.lifecycle import State
from tzfs.names import SnapshotName
from tzfs.opening import CommittedState, committed_points, committed_state
from tzfs.settings import settings_of
from tzfs.space import available, filesystem_facts, snapshot_facts


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot: its whole name, its record, and its properties."""

    name: SnapshotName
    record: Snapshot
    properties: Mapping[str, Value]


def clones_of(catalog: Catalog, info: FilesystemInfo) -> dict[str, list[str]]:
    """The names of the clones of each snapshot of the filesystem that has some, by the snapshot's guid in hex."""
    found: dict[str, list[str]] = {}
    for guid, clone in catalog.clones(info):
        found.setdefault(guid, []).append(str(clone))
    return found


def snapshot_info(
    info: FilesystemInfo,
    name: str,
    state: CommittedState,
    clones: Mapping[str, list[str]],
    also: Sequence[str] = (),
    *,
    damaged_too: bool = False,
) -> SnapshotInfo:
    """The snapshot `name` of the filesystem, as last committed; `clones` as of `clones_of`.

    `damaged_too`: where accounts are damaged, without what they say, which else is raised.  `NotFound`.
    """
    record = state.snapshots.get(name)
    if record is None:
        raise no_snapshot(info.name, name)
    guid = record.guid.hex()
    summed = not (damaged_too and isinstance(state.sums, CorruptionError))
    facts = (snapshot_facts(state.accounts, name, also) if summed else {}) | {
        "type": "snapshot",
        "creation": str(record.created_ns // 1_000_000_000),
        "guid": guid,
    }
    if guid in clones:
        facts["clones"] = ",".join(clones[guid])
    layers = [(LOCAL, record.properties)]
    found = resolve(layers, facts, snapshot=True)
    whole = SnapshotName(info.name, name)
    return SnapshotInfo(whole, record, found | {key: lookup(key, layers, facts) for key in also})


def origin_fact(catalog: Catalog, info: FilesystemInfo) -> dict[str, str]:
    """`origin` of a clone: the snapshot under the names that it and its filesystem have now."""
    found = catalog.origin(info)
    if found is None:
        return {}
    origin, guid = found
    for name, record in committed_points(origin.folder)[0].items():
        if record.guid.hex() == guid:
            return {"origin": f"{origin.name}@{name}"}
    return {"origin": f"{origin.name}@?"}


def facts_of(catalog: Catalog, ledger: Ledger, info: FilesystemInfo, also: Sequence[str] = ()) -> dict[str, str]:
    """Those of a filesystem, as last committed, beyond those that its record has."""
    if info.state in (State.CREATING, State.DELETING):
        return {}
    state = committed_state(info.folder)
    holder = catalog.holder(info)
    mountpoint = holder.get("mountpoint") if holder else None
    try:
        disk = os.statvfs(info.folder)
    except OSError as error:
        raise from_os_error(error, f"{info.folder}: statvfs") from error
    facts = filesystem_facts(state.accounts, also) | {
        "available": str(_available(ledger, info, disk.f_bavail * disk.f_frsize, state.accounts)),
        "mounted": "yes" if mountpoint else "no",
        "snapshot_count": str(len(state.snapshots)),
    }
    if isinstance(mountpoint, str):
        facts["mountpoint"] = mountpoint
    if state.partial is not None:
        facts["receive_resume_token"] = pack_token(state.partial)
    return facts | origin_fact(catalog, info)


def _available(ledger: Ledger, info: FilesystemInfo, disk: int, accounts: Accounts) -> int:
    left = available(disk, accounts, lambda name: info.property(name).parsable)
    quota = settings_of(info).store_quota_bytes
    if quota:
        left = min(left, max(0, quota - ledger.others(info.partition) - accounts.charged.used))
    return left
