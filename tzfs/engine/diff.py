"""What differs between two moments of one filesystem, or of a clone and its origin, in time proportional to the change.

`Changes` reads from `change`, by seeks, what was touched between two epochs: inode numbers, and the data ids and inodes
whose contents and attributes were.  `Diff` looks each of those inodes up at both ends, compares, and names what differs
by the parent in the inode record, or by the rows of `link`; what only came and went between is at neither end.  The
tree is never walked: it costs a few look-ups for each inode touched, those of the directories above what is named, and
8 bytes of memory for each inode and data id touched.

Two ends are the same where mode, owner, size, mtime, device, contents, extended attributes and names are: what was
changed and changed back is not told of.  Contents are compared byte by byte only where size and mtime leave room for
doubt.  A directory's names count by themselves, so that all below a renamed directory has stayed where it is.

The ends are two `View`s of which the first is older, and need not be of one transaction as long as nothing in either
changes; for the head, which does change, take both from one `Moments`.
"""

from __future__ import annotations

import heapq
import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from tzfs import limits
from tzfs.engine.view import Tables, View
from tzfs.errors import CorruptionError, NotFound
from tzfs.format import keys
from tzfs.format.keys import ROOT, Ino, Table
from tzfs.format.records import FLAG_INLINE, Inode

BATCH: Final = 128  # inodes looked up at once
ROWS_BETWEEN: Final = 512  # rows of `change` between two moments at which a reader may be interrupted
DIRECTORIES_REMEMBERED_MAX: Final = 4096  # paths, of each end
PIECE_SHIFT: Final = limits.CHUNK_SHIFT_MAX  # contents are compared in pieces of this size

Name = tuple[Ino, bytes]  # a directory, and a name in it


class Kind(StrEnum):
    """What a line of a diff says, by the letter that `zfs diff` has for it."""

    ADDED = "+"
    REMOVED = "-"
    MODIFIED = "M"
    RENAMED = "R"


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a diff: what became of one name, or of one inode.

    `path` begins with a slash, and is as `os.fsdecode` gives it; it is that of the newer end, and of the older for what
    was removed, or renamed to `new_path`.  `mode`, `size` and the times are those of the newer end where there is one.
    `links`: how many names a file has more, or fewer, that has some at both ends.  `changed`, of what is modified:
    `contents` (they were written to), `size`, `mode`, `owner`, `mtime`, `device`, `xattr`, `links`, as applies.
    """

    kind: Kind
    path: str
    ino: int
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    new_path: str | None = None
    links: int = 0
    changed: tuple[str, ...] = ()


class Span(NamedTuple):
    """Changes of one filesystem after the epoch `after`, up to `upto`."""

    meta: Tables
    after: int
    upto: int


class Changes:
    """What was touched after the epoch `after`, up to `upto`; and in the spans `above`.

    `above` are those of a clone's origins, up to the one that has the older end: what a number below the clone's first
    means is the same in all of them.

    `inodes` and `total` are known once `read` has come to its end.  Who asks about a few inodes only need not `read`:
    the rest then takes a seek for each epoch in which there was a change.
    """

    def __init__(self, meta: Tables, *, after: int, upto: int, above: Sequence[Span] = ()) -> None:
        self._spans = (Span(meta, after, upto), *above)
        self._epochs: list[tuple[Tables, int]] | None = None
        self._complete = False
        self._touched: dict[Table, list[array[int]]] = {
            Table.INODE: [],
            Table.INLINE: [],
            Table.CHUNK: [],
            Table.XATTR: [],
        }
        self._data: array[int] = array("Q")
        self._xattrs: array[int] = array("Q")

    def read(self) -> Iterator[None]:
        """Reads `change`; yields now and then."""
        for meta, epoch in self._changing():
            for table, ids in self._touched.items():
                ids.append(array("Q"))
                yield from self._ids(meta, epoch, table, ids[-1])
        for whole, tables in ((self._data, (Table.INLINE, Table.CHUNK)), (self._xattrs, (Table.XATTR,))):
            for count, each in enumerate(_merged(ids for table in tables for ids in self._touched.pop(table))):
                whole.append(each)
                if count % ROWS_BETWEEN == 0:
                    yield

        self._complete = True

    def _changing(self) -> list[tuple[Tables, int]]:
        """The epochs in which there was a change, with the tables that have it."""
        if self._epochs is None:
            self._epochs = []
            for meta, after, upto in self._spans:
                at = after + 1
                while (row := _first(meta, keys.u64(at), keys.u64(upto + 1))) is not None:
                    at = keys.change_parts(row)[0] + 1
                    self._epochs.append((meta, at - 1))
        return self._epochs

    @property
    def empty(self) -> bool:
        """Whether nothing was touched."""
        return not self._changing()

    def _sought(self, table: Table, number: int) -> bool:
        starts = ((meta, keys.change(epoch, table, keys.u64(number))) for meta, epoch in self._changing())
        return any(_first(meta, start, keys.after(start)) is not None for meta, start in starts)

    @staticmethod
    def _ids(meta: Tables, epoch: int, table: Table, into: array[int]) -> Iterator[None]:
        """The first 8 bytes of each prefix of a table's rows at an epoch, once each; what follows them is skipped."""
        low, stop = 0, keys.change(epoch, Table(table + 1), b"")
        while True:
            count = 0
            txn = meta.begin_read()
            try:
                while count < ROWS_BETWEEN:
                    skipped = count
                    for key, _ in txn.range(Table.CHANGE, keys.change(epoch, table, keys.u64(low)), stop):
                        number = int.from_bytes(key[9:17], "big")
                        if number < low:
                            break  # more of the one before: seek
                        into.append(number)
                        low, count = number + 1, count + 1
                        if count == ROWS_BETWEEN:
                            break
                    if count == skipped:
                        return
            finally:
                txn.close()
            yield

    @property
    def inodes(self) -> Iterator[int]:
        """The inodes touched, ascending."""
        return _merged(self._touched[Table.INODE])

    @property
    def total(self) -> int:
        """About how many those are: one is counted for each epoch in which it was touched."""
        return sum(map(len, self._touched[Table.INODE]))

    def touched_data(self, data: int) -> bool:
        """Whether contents were written, moved or removed."""
        if self._complete:
            return _in(self._data, data)
        return self._sought(Table.INLINE, data) or self._sought(Table.CHUNK, data)

    def touched_xattrs(self, ino: int) -> bool:
        return _in(self._xattrs, ino) if self._complete else self._sought(Table.XATTR, ino)

    def prefixes(self, table: Table, number: int) -> list[bytes]:
        """The prefixes of a table that begin with a number and were touched, ascending."""
        found: set[bytes] = set()
        for meta, epoch in self._changing():
            txn = meta.begin_read()
            try:
                start = keys.change(epoch, table, keys.u64(number))
                found.update(key[9:] for key, _ in txn.range(Table.CHANGE, start, keys.after(start)))
            finally:
                txn.close()
        return sorted(found)

    def chunks(self, data: int) -> Iterator[int]:
        """The indexes of the chunks of a data id that were touched, some of them more than once."""
        for meta, epoch in self._changing():
            txn = meta.begin_read()
            try:
                start = keys.change(epoch, Table.CHUNK, keys.u64(data))
                found = [keys.chunk_index(k[9:]) for k, _ in txn.range(Table.CHANGE, start, keys.after(start))]
            finally:
                txn.close()
            yield from found


def _first(meta: Tables, start: bytes, stop: bytes) -> bytes | None:
    """The key of the first row of `change` in [start, stop)."""
    txn = meta.begin_read()
    try:
        return next((key for key, _ in txn.range(Table.CHANGE, start, stop)), None)
    finally:
        txn.close()


def _merged(ids: Iterable[array[int]]) -> Iterator[int]:
    last = -1
    for each in heapq.merge(*ids):
        if each != last:
            yield each
        last = each


def _in(ids: array[int], number: int) -> bool:
    at = bisect_left(ids, number)
    return at < len(ids) and ids[at] == number


class Diff:
    """What differs from `older` to `newer`; `changes` is what was touched between them."""

    def __init__(self, older: View, newer: View, changes: Changes) -> None:
        self.older, self.newer, self.changes = older, newer, changes
        self._paths: dict[View, dict[int, bytes]] = {older: {ROOT: b""}, newer: {ROOT: b""}}
        self.done = 0

    def run(self) -> Iterator[Difference | None]:
        """The differences, by inode number; None now and then, so that whoever asks can do something else."""
        yield from self.changes.read()
        batch: list[int] = []
        for ino in self.changes.inodes:
            batch.append(ino)
            if len(batch) == BATCH:
                yield from self._batch(batch)
                batch.clear()
        yield from self._batch(batch)

    def _batch(self, inos: list[int]) -> Iterator[Difference | None]:
        for old, new in zip(self.older.inodes(inos), self.newer.inodes(inos), strict=True):
            if old is not None or new is not None:
                yield from self._one(old, new)
        self.done += len(inos)
        yield None

    def _one(self, old: Inode | None, new: Inode | None) -> Iterator[Difference | None]:
        before, now = self._names(self.older, old), self._names(self.newer, new)
        root = old is not None and old.ino == ROOT
        if not before and not now and not root:
            return
        gone = sorted((self.path(self.older, name), name) for name in before - now)
        came = sorted((self.path(self.newer, name), name) for name in now - before)
        moved = list(zip(gone, came, strict=False))
        shown = new if now else old
        assert shown is not None
        for path, _ in gone[len(moved) :]:
            yield self._line(Kind.REMOVED, path, shown)
        for (path, _), (new_path, _) in moved:
            yield self._line(Kind.RENAMED, path, shown, new_path=new_path)
        for path, _ in came[len(moved) :]:
            yield self._line(Kind.ADDED, path, shown)
        if old is None or new is None or not (root or (before and now)):
            return
        changed = yield from self.compare(old, new)
        links = 0 if stat.S_ISDIR(new.mode) else len(now) - len(before)
        if links:
            changed.append("links")
        if changed:
            kept = before & now
            path = min(self.path(self.newer, name) for name in kept or now) if now else b"/"
            yield self._line(Kind.MODIFIED, path, new, links=links, changed=tuple(changed))

    @staticmethod
    def _names(view: View, inode: Inode | None) -> set[Name]:
        return set() if inode is None else view.names_of(inode)

    @staticmethod
    def _line(
        kind: Kind,
        path: bytes,
        inode: Inode,
        *,
        new_path: bytes | None = None,
        links: int = 0,
        changed: tuple[str, ...] = (),
    ) -> Difference:
        there = None if new_path is None else os.fsdecode(new_path)
        times = inode.mtime_ns, inode.ctime_ns
        return Difference(kind, os.fsdecode(path), inode.ino, inode.mode, inode.size, *times, there, links, changed)

    def path(self, view: View, name: Name) -> bytes:
        """The path of a name, at one end."""
        known = self._paths[view]
        directory, above = name[0], []
        while (path := known.get(directory)) is None:
            inode = view.inode(directory)
            if not inode.name:
                raise CorruptionError(f"directory {directory} has entries and no name")
            above.append(inode)
            directory = inode.parent
        if len(known) + len(above) > DIRECTORIES_REMEMBERED_MAX:
            known.clear()
            known[ROOT] = b""
        for inode in reversed(above):
            path = path + b"/" + inode.name
            known[inode.ino] = path
        return path + b"/" + name[1]

    # -- comparing one inode -----------------------------------------------------------------------------------------

    def compare(self, old: Inode, new: Inode) -> Generator[None, None, list[str]]:
        """In what an inode differs that is at both ends, names aside; yields None now and then."""
        changed = []
        if stat.S_ISREG(new.mode):
            written = old.data != new.data or self.changes.touched_data(new.data)
            if written and old.size == new.size and old.mtime_ns == new.mtime_ns:
                written = not (yield from self._same_contents(old, new))
            if written or old.size != new.size:
                changed.append("contents")
        if old.size != new.size:
            changed.append("size")
        if old.mode != new.mode:
            changed.append("mode")
        if (old.uid, old.gid) != (new.uid, new.gid):
            changed.append("owner")
        if old.mtime_ns != new.mtime_ns:
            changed.append("mtime")
        if old.rdev != new.rdev:
            changed.append("device")
        if self.changes.touched_xattrs(new.ino) and not (yield from self._same_xattrs(new.ino)):
            changed.append("xattr")
        return changed

    def _same_contents(self, old: Inode, new: Inode) -> Generator[None, None, bool]:
        """Whether two ends of one size have the same bytes; only where they may differ is anything read."""
        for piece in self._pieces(old, new):
            yield
            offset, size = piece << PIECE_SHIFT, 1 << PIECE_SHIFT
            if self.older.read(old.ino, offset, size) != self.newer.read(new.ino, offset, size):
                return False
        return True

    def _pieces(self, old: Inode, new: Inode) -> Iterator[int]:
        by_chunk = (
            [self.changes.chunks(new.data)]
            if old.data == new.data and not (old.flags ^ new.flags) & FLAG_INLINE
            else [_stored(self.older, old), _stored(self.newer, new)]
        )
        shifts = (new.chunk_shift,) if len(by_chunk) == 1 else (old.chunk_shift, new.chunk_shift)
        done = {0}
        yield 0
        for indexes, shift in zip(by_chunk, shifts, strict=True):
            for index in indexes:
                piece = index << shift >> PIECE_SHIFT
                if piece not in done:
                    done.add(piece)
                    yield piece

    def _same_xattrs(self, ino: int) -> Generator[None, None, bool]:
        names = self.older.listxattr(ino)
        if names != self.newer.listxattr(ino):
            return False
        for name in names:
            yield
            if self.older.getxattr(ino, name) != self.newer.getxattr(ino, name):
                return False
        return True


def _stored(view: View, inode: Inode) -> Iterator[int]:
    """The indexes of a file's chunks that are there, ascending."""
    low = 0
    while found := view.chunks(inode, low, BATCH):
        yield from found
        low = found[-1] + 1


class Comparison:
    """A diff of what lies at or below a path, given by its names; what was moved across its border is told of.

    `done` of about `total` inodes that were touched have been looked at.
    """

    def __init__(
        self, older: View, newer: View, meta: Tables, path: Sequence[bytes] = (), above: Sequence[Span] | None = None
    ) -> None:
        """`above`: of a clone, whose older end is a snapshot of an origin; else both are of one filesystem, `meta`.

        `NotFound` where the path is at neither end.
        """
        if path and find(older, path) is None and find(newer, path) is None:
            raise NotFound(f"{os.fsdecode(b'/' + b'/'.join(path))}: neither end has it")
        self._top = "".join("/" + os.fsdecode(name) for name in path)
        after = older.snapshot.epoch if above is None else 0
        self._diff = Diff(older, newer, Changes(meta, after=after, upto=newer.snapshot.epoch, above=above or ()))

    @property
    def done(self) -> int:
        return self._diff.done

    @property
    def total(self) -> int:
        return self._diff.changes.total

    def run(self) -> Iterator[Difference | None]:
        """As `Diff.run`."""
        for found in self._diff.run():
            if found is None or self._within(found.path) or self._within(found.new_path):
                yield found

    def _within(self, place: str | None) -> bool:
        return place is not None and (place == self._top or place.startswith(self._top + "/"))


def find(view: View, path: Sequence[bytes]) -> Inode | None:
    """What a path names at one end, symbolic links not followed; None where it names nothing."""
    inode = view.inode(ROOT)
    for name in path:
        found = view.find(inode.ino, name) if stat.S_ISDIR(inode.mode) else None
        if found is None:
            return None
        inode = found
    return inode
