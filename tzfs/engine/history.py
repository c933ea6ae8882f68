"""Every version of a file that the snapshots and the head have under one path.

The path is looked up at each snapshot, oldest first, and at the head: that costs a look-up or two for each of its names
and each snapshot, whatever the size of the filesystem.  Two neighbours have the same version where a diff between them
would not tell of the inode; a version that comes back after another (by a rollback, say) is told again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tzfs.engine.diff import Changes, Diff, find
from tzfs.engine.moments import Moments
from tzfs.engine.view import View
from tzfs.format.records import Inode


@dataclass(frozen=True, slots=True)
class FileVersion:
    """One version: `first` and `last` are the oldest and the newest snapshot that have it; None is the head."""

    first: str | None
    last: str | None
    ino: int
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def file_versions(moments: Moments, path: Sequence[bytes]) -> Iterator[FileVersion | None]:
    """The versions of what has been at a path, oldest first; None after each moment looked at."""
    current: FileVersion | None = None
    before: tuple[View, Inode] | None = None
    for name in (*moments.snapshots, None):
        view = moments.view(name)
        inode = find(view, path)
        if current is not None and (inode is None or before is None or not _same(moments, *before, view, inode)):
            yield current
            current = None
        if inode is not None:
            if current is None:
                current = FileVersion(name, name, inode.ino, inode.mode, inode.size, inode.mtime_ns, inode.ctime_ns)
            else:
                current = replace(current, last=name, ctime_ns=inode.ctime_ns)
            before = view, inode
        yield None
    if current is not None:
        yield current


def _same(moments: Moments, older: View, old: Inode, newer: View, new: Inode) -> bool:
    if old.ino != new.ino:
        return False
    changes = Changes(moments.tables, after=older.snapshot.epoch, upto=newer.snapshot.epoch)
    steps = Diff(older, newer, changes).compare(old, new)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return not end.value
