"""Retention of snapshots as verbs: what the policy of a filesystem keeps, and pruning what it does not."""

from __future__ import annotations

import time

from tzfs.catalog import FilesystemInfo
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import FilesystemName
from tzfs.opening import committed_points
from tzfs.pruning import verdicts
from tzfs.retention import Verdict


def clones_of(store: Store, info: FilesystemInfo) -> dict[str, list[str]]:
    """The filesystems that have come from snapshots of this one, by the snapshot's name."""
    found: dict[str, list[str]] = {}
    for other in store.filesystems():
        name, at, snapshot = (other.origin or "").partition("@")
        if at and name == str(info.name):
            found.setdefault(snapshot, []).append(str(other.name))
    return found


def kept(store: Store, name: str | FilesystemName, *, now_ns: int | None = None) -> list[Verdict]:
    """What keeps each snapshot of the filesystem now, oldest first; None where it is to be pruned."""
    info = store.get(name, Command.OPEN_SNAPSHOT)
    snapshots, bookmarks = committed_points(info.folder)
    return verdicts(
        info.property("retention").parsable,
        info.property("retention_names").parsable,
        snapshots,
        bookmarks,
        clones_of(store, info),
        now_ns=time.time_ns() if now_ns is None else now_ns,
    )
