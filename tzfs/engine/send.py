"""What a snapshot is, or what it has that an older one has not, as the frames of a stream.

Inodes come by their numbers, ascending: each with its attributes, then what belongs to it (entries of a directory, its
names where it has had several, extended attributes, contents).  Of all of it an incremental stream has what `change`
says was touched after the older snapshot, as it is at the newer one; the older one need not be there, so a bookmark
will do.  Contents are read a chunk at a time; what is a hole is not sent.

Which contents are kept: where nothing that is seen was there at the older epoch, the file is sent anew.  So a receiver
need not know the sender's data ids, and nobody has to look at the older end.

The snapshot, and an older one that it starts from, must be kept from destruction by whoever opens the view.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from tzfs.engine.diff import Changes
from tzfs.engine.view import Tables, View
from tzfs.errors import NoAttribute
from tzfs.format import keys, stream
from tzfs.format.keys import ROOT, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode, unpack_dirent
from tzfs.format.stream import Frame, How, Kind

BATCH = 128  # inodes, or names, looked up at once


class Sender:
    """Sends what `view` has; with `after`, what it has that was not so at that epoch."""

    def __init__(self, meta: Tables, view: View, after: int | None) -> None:
        self._view, self._after = view, after
        self._changes = None if after is None else Changes(meta, after=after, upto=view.snapshot.epoch)
        self.inodes = self.payload = 0  # sent so far

    def run(self, begin: int = 0, chunk: int = 0, *, anew: bool = False) -> Iterator[Frame | None]:
        """The frames, from inode `begin` on, and of that one's contents from a chunk on; None now and then.

        `anew`: that inode's contents were begun to be sent so.
        """
        self._begin, self._chunk, self._anew = begin, chunk, anew
        if self._changes is not None:
            for _ in self._changes.read():
                yield None
        batch: list[int] = []
        for ino in self._numbers(begin):
            batch.append(ino)
            if len(batch) == BATCH:
                yield from self._batch(batch)
                yield None
                batch.clear()
        yield from self._batch(batch)

    def _numbers(self, begin: int) -> Iterator[int]:
        if self._changes is not None:
            yield from (ino for ino in self._changes.inodes if ino >= begin)
            return
        while found := self._view.numbers(begin, BATCH):
            yield from found
            begin = found[-1] + 1

    def _batch(self, inos: list[int]) -> Iterator[Frame | None]:
        for ino, inode in zip(inos, self._view.inodes(inos), strict=True):
            if inode is None or (not inode.nlink and ino != ROOT):
                if self._changes is not None:
                    yield Frame(Kind.GONE, stream.pack_number(ino))
                continue
            yield from self._inode(inode)
            self.inodes += 1

    def _inode(self, inode: Inode) -> Iterator[Frame | None]:
        chunk, anew = (self._chunk, self._anew) if inode.ino == self._begin else (0, False)
        kept = self._after is not None and not anew and bool(inode.data) and self._view.kept_since(inode, self._after)
        yield Frame(Kind.INODE, stream.pack_inode_frame(inode, How.KEPT if kept else How.ANEW))
        if stat.S_ISDIR(inode.mode):
            yield from self._entries(inode.ino)
        else:
            yield from self._links(inode)
        if inode.flags & FLAG_XATTR:
            yield from self._xattrs(inode.ino)
        if inode.data:
            yield from self._contents(inode, chunk, kept=kept)

    def _entries(self, ino: int) -> Iterator[Frame]:
        if self._changes is None:
            after = b""
            while found := self._view.readdir(ino, after, BATCH):
                yield Frame(Kind.ENTRIES, stream.pack_entries(found))
                after = found[-1][0]
            return
        for prefixes in _batches(self._changes.prefixes(Table.DIRENT, ino)):
            entries = []
            for prefix, body in zip(prefixes, self._view.bodies(Table.DIRENT, prefixes), strict=True):
                named = (0, 0) if body is None else unpack_dirent(prefix, body)
                entries.append((prefix[8:-1], *named))
            yield Frame(Kind.ENTRIES, stream.pack_entries(entries))

    def _links(self, inode: Inode) -> Iterator[Frame]:
        if self._changes is None:
            if not inode.name:
                names = sorted(self._view.names_of(inode))
                for i in range(0, len(names), BATCH):
                    yield Frame(Kind.LINKS, stream.pack_links((d, name, True) for d, name in names[i : i + BATCH]))
            return
        for prefixes in _batches(self._changes.prefixes(Table.LINK, inode.ino)):
            there = [body is not None for body in self._view.bodies(Table.LINK, prefixes)]
            named = [keys.link_name(prefix + keys.suffix(0)) for prefix in prefixes]
            yield Frame(Kind.LINKS, stream.pack_links((d, name, t) for (d, name), t in zip(named, there, strict=True)))

    def _xattrs(self, ino: int) -> Iterator[Frame]:
        if self._changes is None:
            names = self._view.listxattr(ino)
        else:
            names = [prefix[8:-1] for prefix in self._changes.prefixes(Table.XATTR, ino)]
        for name in names:
            value: bytes | None
            try:
                value = self._view.getxattr(ino, name)
            except NoAttribute:
                value = None
            yield Frame(Kind.XATTR, stream.pack_xattr(name, value))

    def _contents(self, inode: Inode, chunk: int, *, kept: bool) -> Iterator[Frame | None]:
        if inode.flags & FLAG_INLINE:
            (payload,) = self._view.bodies(Table.INLINE, [keys.inline(inode.data)])
            if not kept and payload:
                self.payload += len(payload)
                yield Frame(Kind.INLINE, payload)
            return
        shift = inode.chunk_shift
        count = (inode.size + (1 << shift) - 1) >> shift
        for index in self._indexes(inode, chunk, kept=kept):
            if index >= count:
                break
            offset = index << shift
            if self._view.plan_read(inode.ino, offset, 1 << shift).hole:
                if kept:
                    yield Frame(Kind.HOLE, stream.pack_number(index))
                else:
                    yield None
                continue
            payload = self._view.read(inode.ino, offset, 1 << shift)
            self.payload += len(payload)
            yield Frame(Kind.DATA, stream.pack_data(index, payload))

    def _indexes(self, inode: Inode, chunk: int, *, kept: bool) -> Iterator[int]:
        if kept:
            if self._changes is not None:
                yield from (index for index in sorted(set(self._changes.chunks(inode.data))) if index >= chunk)
            return
        while inode.size and (found := self._view.chunks(inode, chunk, BATCH)):
            yield from found
            chunk = found[-1] + 1


def _batches(prefixes: list[bytes]) -> Iterator[list[bytes]]:
    for i in range(0, len(prefixes), BATCH):
        yield prefixes[i : i + BATCH]
