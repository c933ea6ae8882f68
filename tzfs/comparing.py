"""What differs between two moments of a filesystem, or between a clone and a snapshot before it; versions of one file.

One function a verb, as the verbs of `Store`.  Two snapshots are compared here, whoever has the filesystem: both are
held meanwhile.  The head is compared by whoever has it: here under the lease, or by its mount, which sends pages of
differences as progress, since there may be more than a message takes; they are kept in a file of no name until they
are asked for, so that a mount never waits for who reads them.  Contents, which only a patch needs, are read here.

A clone's own rows are what it has changed, so it is compared with the snapshot that it came from, or with an older one,
as any filesystem with its own.
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
from tzfs.engine.diff import Comparison, Difference, Kind, Span
from tzfs.engine.history import FileVersion, file_versions
from tzfs.engine.moments import Moments, check_order
from tzfs.engine.view import View
from tzfs.errors import Busy, InvalidArgument, MountFailed, NotFound, no_snapshot
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import FilesystemName, SnapshotName, parse, parse_snapshot
from tzfs.opening import Committed, committed_flattening
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
    which is meant without it; or a clone of the first, a clone of that, or a snapshot of one.  `NotFound`,
    `InvalidArgument` where the first is not the older one, `Busy` where a program has the filesystem open and its
    present state is asked for; all of them when the first difference is.
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
    filesystem, second = _newer(first, newer)
    names = components(path)
    info = store.get(first.filesystem, Command.OPEN_SNAPSHOT)
    own = info if filesystem == info.name else store.get(filesystem, Command.OPEN_SNAPSHOT)
    for where, name in ((info, first.snapshot), (own, second)):
        if name is not None and name not in store.points(where)[0]:
            raise no_snapshot(where.name, name)
    with ExitStack() as stack:
        a, above = before(store, own, first, stack)
        if second is not None:
            reader = stack.enter_context(store.reader(SnapshotName(own.name, second)))
            if above is None:
                check_order(a, reader.view)
            yield _Compared(a, reader.view, _told(Comparison(a, reader.view, reader.meta, names, above), progress))
            return
        mount = store.mounted(own)
        if mount is None:
            head = stack.enter_context(store.head_reader(own.name, {"kind": "diff"}))
            moments = stack.enter_context(Moments(head.committed.meta, head.committed.payload))
            if above is None:
                a, _ = moments.ordered(first.snapshot, None)
            b = moments.view(None)
            yield _Compared(a, b, _told(Comparison(a, b, moments.tables, names, above), progress))
            return
        stack.enter_context(mount)
        spool = stack.enter_context(tempfile.SpooledTemporaryFile(SPOOLED_BYTES))

        def take(value: Json) -> None:
            for each in _page(value, progress):
                spool.write(json.dumps(each).encode() + b"\n")

        params: dict[str, Json] = {"from": first.snapshot, "path": "/".join(map(os.fsdecode, names))}
        if above is not None:
            params["of"] = str(info.name)
        mount.ask("diff", params, progress=take)
        spool.seek(0)
        committed = stack.enter_context(Committed(own.folder, bytes.fromhex(own.guid), redo=False))
        with Moments(committed.meta, committed.payload) as now:
            head_view = now.view(None)
        newest = View(committed.meta, committed.payload, "", head_view.snapshot)
        yield _Compared(a, newest, (from_json(json.loads(line)) for line in spool))


def before(
    store: Store, info: FilesystemInfo, older: SnapshotName, stack: ExitStack
) -> tuple[View, tuple[Span, ...] | None]:
    """The view of a snapshot that a filesystem is to be compared with, and what its origins have changed since.

    None for a snapshot of its own.  Everything is held until `stack` ends.  `InvalidArgument` where the snapshot is not
    one that the filesystem has come from, or cannot be compared just now.
    """
    view = stack.enter_context(store.reader(older)).view
    own = store.get(older.filesystem, Command.OPEN_SNAPSHOT)
    above: list[Span] = []
    at = info
    while at.guid != own.guid:
        _check_whole(at)
        origin = store.catalog.origin(at)
        if origin is None:
            raise InvalidArgument(
                f"cannot compare {older} with {info.name}: that is no clone of it",
                hint=f"tzfs diff {older} {older.filesystem}",
            )
        at, guid = origin
        snapshots = store.points(at)[0].items()
        name, record = next((each for each in snapshots if each[1].guid.hex() == guid), (None, None))
        if name is None or record is None:
            raise NotFound(f"the snapshot of {at.name} that {info.name} came from is not there")
        after = view.snapshot.epoch if at.guid == own.guid else 0
        if after > record.epoch:
            raise InvalidArgument(
                f"cannot compare {older} with {info.name}: that was cloned before it, from @{name}",
                hint=f"tzfs diff {at.name}@{name} {info.name}",
            )
        above.append(Span(stack.enter_context(store.reader(SnapshotName(at.name, name))).meta, after, record.epoch))
    return view, None if at is info else tuple(above)


def _check_whole(clone: FilesystemInfo) -> None:
    """Whether all that a clone has changed can be told from its rows; `InvalidArgument`."""
    if committed_flattening(clone.folder):
        raise InvalidArgument(
            f"cannot compare {clone.name} with where it came from: it is being flattened",
            hint=f"take a snapshot, and compare with that: tzfs snapshot {clone.name}@...",
        )


def _told(comparison: Comparison, progress: Hear | None) -> Iterator[Difference]:
    for found in comparison.run():
        if found is not None:
            yield found
        elif progress is not None:
            progress(comparison.done, comparison.total)


def _newer(older: SnapshotName, newer: str | SnapshotName | FilesystemName | None) -> tuple[FilesystemName, str | None]:
    """The filesystem of the newer end, and its snapshot's name; None for the head."""
    if isinstance(newer, str):
        newer = parse(f"{older.filesystem}{newer}" if newer[:1] == "@" else newer)
    if isinstance(newer, SnapshotName):
        return newer.filesystem, newer.snapshot
    return (older.filesystem if newer is None else newer), None


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
