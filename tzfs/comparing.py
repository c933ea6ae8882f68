"""What differs between two moments of a filesystem, and the versions of one file, mounted or not.

One function a verb, as the verbs of `Store`.  Two snapshots are compared here, whoever has the filesystem: both are
held meanwhile.  The head is compared by whoever has it: here under the lease, or by its mount, which sends pages of
differences as progress, since there may be more than a message takes; they are kept in a file of no name until they
are asked for, so that a mount never waits for who reads them.  Contents, which only a patch needs, are read here.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Final

from tzfs import limits
from tzfs.catalog import FilesystemInfo
from tzfs.engine.diff import Comparison, Difference, Kind
from tzfs.engine.history import FileVersion, file_versions
from tzfs.engine.moments import Moments, check_order
from tzfs.engine.view import View
from tzfs.errors import Busy, InvalidArgument, MountFailed, NotFound
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import FilesystemName, SnapshotName, parse, parse_snapshot
from tzfs.opening import Committed, committed_points
from tzfs.patch import patch as patch_of
from tzfs.tree import Path, components

SPOOLED_BYTES: Final = 8 * limits.MIB  # of a mount's answer in memory; more of it goes to a file

Hear = Callable[[int, int], None]  # how many inodes have been looked at, of about how many


@dataclass(frozen=True, slots=True)
class _Compared:
    """Two moments, held, and what differs between them."""

    older: View
    newer: View
    found: Iterator[Difference]


def diff(
    store: Store,
    older: str | SnapshotName,
    newer: str | SnapshotName | FilesystemName | None = None,
    path: Path = "/",
    *,
    progress: Hear | None = None,
) -> Iterator[Difference]:
    """What differs from a snapshot to a newer one, or to the filesystem as it is now, at or below a path.

    By inode number.  `newer` is another snapshot of the filesystem, which `@SNAPSHOT` may stand for, or the filesystem,
    which is meant without it.  `NotFound`, `InvalidArgument` where the first is not the older one, `Busy` where a
    program has the filesystem open and its present state is asked for; all of them when the first difference is.
    """
    with _comparing(store, older, newer, path, progress) as compared:
        yield from compared.found


def patch(
    store: Store,
    older: str | SnapshotName,
    newer: str | SnapshotName | FilesystemName | None = None,
    path: Path = "/",
    *,
    progress: Hear | None = None,
) -> Iterator[bytes]:
    """The diff as a unified one of the contents, in git's form, line by line; otherwise as `diff`.

    Of a mounted filesystem, contents are those of when they are read.
    """
    with _comparing(store, older, newer, path, progress) as compared:
        yield from patch_of(compared.found, compared.older, compared.newer)


def versions(store: Store, name: str | FilesystemName, path: Path) -> list[FileVersion]:
    """Each version of what has been at a path that the snapshots and the head have, oldest first.

    `NotFound` where nothing has been there.  Where a program has the filesystem open, the head is as last committed.
    """
    info = store.get(name, Command.OPEN_SNAPSHOT)
    with _committed(store, info) as committed, Moments(committed.meta, committed.payload) as moments:
        found = [each for each in file_versions(moments, components(path)) if each is not None]
    if not found:
        raise NotFound(f"{info.name}: no snapshot has {path!s}, nor has the filesystem")
    return found


# -- who has it ------------------------------------------------------------------------------------------------------


@contextmanager
def _comparing(
    store: Store,
    older: str | SnapshotName,
    newer: str | SnapshotName | FilesystemName | None,
    path: Path,
    progress: Hear | None,
) -> Iterator[_Compared]:
    first = parse_snapshot(older) if isinstance(older, str) else older
    second = _newer(first, newer)
    names = components(path)
    info = store.get(first.filesystem, Command.OPEN_SNAPSHOT)
    there, _ = committed_points(info.folder)
    for name in (first.snapshot, second):
        if name is not None and name not in there:
            raise NotFound(f"no snapshot {info.name}@{name}", hint=f"tzfs list -t snapshot {info.name}")
    with ExitStack() as stack:
        if second is not None:
            readers = [stack.enter_context(store.reader(SnapshotName(info.name, n))) for n in (first.snapshot, second)]
            a, b = (reader.view for reader in readers)
            check_order(a, b)
            yield _Compared(a, b, _told(Comparison(a, b, readers[0].meta, names), progress))
            return
        mount = store.mounted(info)
        if mount is None:
            head = stack.enter_context(store.head_reader(info.name, {"kind": "diff"}))
            moments = stack.enter_context(Moments(head.committed.meta, head.committed.payload))
            a, b = moments.ordered(first.snapshot, None)
            yield _Compared(a, b, _told(Comparison(a, b, moments.tables, names), progress))
            return
        stack.enter_context(mount)
        reader = stack.enter_context(store.reader(first))
        spool = stack.enter_context(tempfile.SpooledTemporaryFile(SPOOLED_BYTES))

        def take(value: Json) -> None:
            for each in _page(value, progress):
                spool.write(json.dumps(each).encode() + b"\n")

        params: dict[str, Json] = {"from": first.snapshot, "path": "/".join(map(os.fsdecode, names))}
        mount.ask("diff", params, progress=take)
        spool.seek(0)
        committed = stack.enter_context(Committed(info.folder, bytes.fromhex(info.guid), redo=False))
        with Moments(committed.meta, committed.payload) as now:
            head_view = now.view(None)
        newest = View(committed.meta, committed.payload, "", head_view.snapshot)
        yield _Compared(reader.view, newest, (from_json(json.loads(line)) for line in spool))


def _told(comparison: Comparison, progress: Hear | None) -> Iterator[Difference]:
    for found in comparison.run():
        if found is not None:
            yield found
        elif progress is not None:
            progress(comparison.done, comparison.total)


def _newer(older: SnapshotName, newer: str | SnapshotName | FilesystemName | None) -> str | None:
    """The newer snapshot's name; None for the head."""
    if isinstance(newer, str):
        newer = parse(f"{older.filesystem}{newer}" if newer[:1] == "@" else newer)
    if newer is None:
        return None
    filesystem = newer.filesystem if isinstance(newer, SnapshotName) else newer
    if filesystem != older.filesystem:
        raise InvalidArgument(
            f"cannot compare {older} with {newer}: they are of two filesystems",
            hint=f"tzfs diff {older} {older.filesystem}",
        )
    return newer.snapshot if isinstance(newer, SnapshotName) else None


@contextmanager
def _committed(store: Store, info: FilesystemInfo) -> Iterator[Committed]:
    """The filesystem as committed: everything, where a mount has it or nobody; else as far as it is."""
    with ExitStack() as stack:
        free = False
        with suppress(Busy):
            mount = store.mounted(info)
            free = mount is None
            if mount is not None:
                with mount:
                    mount.call("sync")
        if free:
            yield stack.enter_context(store.head_reader(info.name, {"kind": "versions"})).committed
        else:
            yield stack.enter_context(Committed(info.folder, bytes.fromhex(info.guid), redo=False))


# -- as JSON: on the control socket, and for programs -----------------------------------------------------------------


def to_json(found: Difference) -> dict[str, Json]:
    return {
        "change": found.kind.value,
        "path": found.path,
        "new_path": found.new_path,
        "inode": found.ino,
        "mode": found.mode,
        "size": found.size,
        "mtime_ns": found.mtime_ns,
        "ctime_ns": found.ctime_ns,
        "links": found.links,
        "changed": list(found.changed),
    }


def from_json(value: Json) -> Difference:
    """What `to_json` made; `MountFailed` for anything else."""
    try:
        assert isinstance(value, dict)
        ino, mode, size, mtime_ns, ctime_ns = (
            int(str(value[name])) for name in ("inode", "mode", "size", "mtime_ns", "ctime_ns")
        )
        new_path, changed = value["new_path"], value["changed"]
        assert isinstance(changed, list)
        return Difference(
            Kind(str(value["change"])),
            str(value["path"]),
            ino,
            mode,
            size,
            mtime_ns,
            ctime_ns,
            new_path=None if new_path is None else str(new_path),
            links=int(str(value["links"])),
            changed=tuple(map(str, changed)),
        )
    except (AssertionError, KeyError, ValueError):
        raise MountFailed("the mount says something else than what a diff says") from None


def version_to_json(found: FileVersion) -> dict[str, Json]:
    return asdict(found)


def _page(value: Json, progress: Hear | None) -> list[Json]:
    """The differences in a page of a mount's, after it has been said how far it is."""
    if isinstance(value, dict):
        found, done, total = value.get("differences"), value.get("done"), value.get("total")
        if isinstance(found, list) and isinstance(done, int) and isinstance(total, int):
            if progress is not None:
                progress(done, total)
            return found
    raise MountFailed("the mount says something else than what a diff says")
