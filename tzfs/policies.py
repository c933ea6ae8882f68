"""Retention of snapshots as verbs: what the policy of a filesystem keeps, and pruning what it does not."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tzfs.catalog import FilesystemInfo
from tzfs.destroying import destroy
from tzfs.format.records import Snapshot
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import FilesystemName
from tzfs.pruning import verdicts
from tzfs.retention import Verdict


def clones_of(store: Store, info: FilesystemInfo, snapshots: Mapping[str, Snapshot]) -> dict[str, list[str]]:
    """The filesystems that have come from snapshots of this one, by the snapshot's name."""
    names = {record.guid.hex(): name for name, record in snapshots.items()}
    found: dict[str, list[str]] = {}
    for guid, clone in store.catalog.clones(info):
        if guid in names:
            found.setdefault(names[guid], []).append(str(clone))
    return found


def kept(store: Store, name: str | FilesystemName, *, now_ns: int | None = None) -> list[Verdict]:
    """What keeps each snapshot of the filesystem now, oldest first; None where it is to be pruned."""
    info = store.get(name, Command.OPEN_SNAPSHOT)
    snapshots, bookmarks = store.points(info)
    return verdicts(
        info.property("retention").parsable,
        info.property("retention_names").parsable,
        snapshots,
        bookmarks,
        clones_of(store, info, snapshots),
        now_ns=time.time_ns() if now_ns is None else now_ns,
    )


def prune(
    store: Store, name: str | FilesystemName, *, dry_run: bool = False, now_ns: int | None = None
) -> tuple[list[Verdict], int]:
    """Destroys the snapshots that nothing keeps, or with `dry_run` only looks; all verdicts, and the bytes it frees.

    `Busy` where one of them has been held, cloned or opened meanwhile: none is destroyed then.
    """
    found = kept(store, name, now_ns=now_ns)
    gone = [verdict.name for verdict in found if verdict.kept_by is None]
    if not gone:
        return found, 0
    return found, destroy(store, f"{name}@{','.join(gone)}", dry_run=dry_run).bytes
