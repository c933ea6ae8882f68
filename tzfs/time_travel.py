"""Verbs that bring back what was: a function each, with the same answer whether or not the filesystem is mounted.

What is done is in `rolling_back` and `restoring`, which `FileSystem` has too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from tzfs import destroying, restoring
from tzfs.catalog import FilesystemInfo
from tzfs.control import heard
from tzfs.dependants import naming
from tzfs.errors import MountFailed, no_snapshot
from tzfs.format.records import Snapshot
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import SnapshotName, parse_snapshot
from tzfs.opening import committed_changes
from tzfs.restoring import Restored
from tzfs.rolling_back import Progress, RolledBack, newer_than, roll_back, safety_name
from tzfs.tree import Path


def rollback(
    store: Store,
    name: str | SnapshotName,
    *,
    safety: bool = True,
    destroy_newer: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RolledBack:
    """Makes a filesystem what it was at a snapshot; newer ones stay.  With `safety` one is taken of the state before.

    With `destroy_newer` they are destroyed in the commit that rolls back; where one is held, read or cloned, nothing is
    done at all.  `NotFound`, `NoSpace`, `WrongState`, `ReadOnly`, `Busy`.
    """
    name = parse_snapshot(name) if isinstance(name, str) else name
    info = store.get(name.filesystem, Command.ROLLBACK)
    newer = newer_than(_snapshots(store, info, name), name.snapshot)
    if not destroy_newer or not newer:
        return _rollback(store, name, safety=safety, dry_run=dry_run, progress=progress)
    destroying.destroy(store, f"{info.name}@{','.join(newer)}", dry_run=True)
    if dry_run:
        return replace(_rollback(store, name, safety=safety, dry_run=True, progress=progress), destroyed=newer)
    with naming(info, newer):
        return _rollback(store, name, safety=safety, destroy_newer=True, progress=progress)


def _rollback(
    store: Store,
    name: SnapshotName,
    *,
    safety: bool,
    destroy_newer: bool = False,
    dry_run: bool = False,
    progress: Progress | None,
) -> RolledBack:
    info = store.get(name.filesystem, Command.ROLLBACK)
    with store.mounted(info) or nullcontext() as mount:
        if dry_run and mount is not None:
            mount.call("sync")
        found = _snapshots(store, info, name)
        newer = newer_than(found, name.snapshot)
        if dry_run:
            inodes = committed_changes(info.folder, found[name.snapshot].epoch)
            return RolledBack(inodes, safety_name(found) if safety and inodes else None, newer)
        if mount is not None:
            params: dict[str, Json] = {"snapshot": name.snapshot, "safety": safety, "destroy_newer": destroy_newer}
            return _rolled_back(mount.ask("rollback", params, progress=heard(progress), timeout_s=None), newer)
    with store.writer(info.name, {"kind": "rollback"}, Command.ROLLBACK) as writer:
        done = roll_back(writer.engine, name.snapshot, safety=safety, destroy_newer=destroy_newer, progress=progress)
        if done.destroyed:
            writer.engine.collect()
        return done


def restore(
    store: Store,
    name: str | SnapshotName,
    paths: Sequence[Path],
    *,
    to: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Brings back files and trees of a snapshot, to where they were or into the directory `to`, by reference.

    `force` replaces what is there.  `NotFound`, `Exists`, `InvalidArgument`, `NoSpace`, `WrongState`, `ReadOnly`.
    """
    name = parse_snapshot(name) if isinstance(name, str) else name
    info = store.get(name.filesystem, Command.RESTORE)
    _snapshots(store, info, name)
    mount = store.mounted(info)
    if mount is None:
        with store.writer(info.name, {"kind": "restore"}, Command.RESTORE) as writer:
            return restoring.restore(writer.engine, name.snapshot, paths, to=to, force=force, progress=progress)
    params: dict[str, Json] = {
        "snapshot": name.snapshot, "paths": [os.fsdecode(path) for path in paths], "force": force
    }  # fmt: skip
    if to is not None:
        params["to"] = os.fsdecode(to)
    with mount:
        answer = mount.ask("restore", params, progress=heard(progress), timeout_s=None)
    if not isinstance(answer, dict) or not isinstance(places := answer.get("paths"), list):
        raise MountFailed("the mount did not say what it restored")
    return Restored(int(str(answer.get("inodes"))), tuple(str(place) for place in places))


def _snapshots(store: Store, info: FilesystemInfo, name: SnapshotName) -> Mapping[str, Snapshot]:
    """Those of the filesystem; `NotFound` where `name` is none of them."""
    found, _ = store.points(info)
    if name.snapshot not in found:
        raise no_snapshot(info.name, name.snapshot)
    return found


def _rolled_back(answer: Json, newer: tuple[str, ...]) -> RolledBack:
    """What a mount answers."""
    if not isinstance(answer, dict) or not isinstance(inodes := answer.get("inodes"), int):
        raise MountFailed("the mount did not say what it rolled back")
    safety, destroyed = answer.get("safety"), answer.get("destroyed")
    gone = tuple(map(str, destroyed)) if isinstance(destroyed, list) else ()
    return RolledBack(inodes, safety if isinstance(safety, str) else None, newer, gone)
