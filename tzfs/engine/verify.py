"""Whether what is staged makes one sound tree with what stays of the head, before it becomes the head.

Everything staged at F has a row of `change`, so one pass over those rows sees what has changed, and nothing else is
looked at: an inode names its entries and they name it, and are counted; a directory's entries and subdirectories are
those that it says; every changed directory's parents lead to the root.  It costs a few look-ups for each row.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.rollback import Kinds
from tzfs.errors import BadStream
from tzfs.format import keys
from tzfs.format.keys import ROOT, Epoch, Table
from tzfs.format.records import Inode
from tzfs.store.interface import ReadTransaction

REMEMBERED_MAX = 100_000  # directories that are known to lead to the root


class Verifier:
    """Looks at what is staged at `at` over the head at `before`.  `kinds` and `last_ino` are of what is new."""

    def __init__(self, txn: ReadTransaction, before: Epoch, at: Epoch) -> None:
        self._txn, self._before, self._at = txn, before, at
        self._rooted = {int(ROOT)}
        self.kinds = Kinds()
        self.last_ino = 0

    def run(self) -> None:
        """`BadStream` says what does not fit together."""
        for prefix in self._changed(Table.INODE):
            self._inode(int.from_bytes(prefix, "big"))
        for prefix in self._changed(Table.DIRENT):
            self._entry(int.from_bytes(prefix[:8], "big"), prefix[8:-1])
        for table in (Table.LINK, Table.XATTR):
            for ino in _once(int.from_bytes(prefix[:8], "big") for prefix in self._changed(table)):
                self._staged(ino)
                if table is Table.XATTR:
                    self._attributes(ino)

    def _changed(self, table: Table, number: int | None = None) -> Iterator[bytes]:
        """The prefixes that are staged of a table, or those of one inode."""
        start = keys.change(self._at, table, b"" if number is None else keys.u64(number))
        for key, _ in self._txn.range(Table.CHANGE, start, keys.after(start)):
            yield key[9:]

    def _at_end(self, ino: int) -> Inode | None:
        return reads.inode_at(self._txn, ino, self._at)

    def _staged(self, ino: int) -> None:
        found = self._txn.seek(Table.INODE, keys.u64(ino), self._at)
        if found is None or found[0] != self._at:
            raise BadStream(f"the stream changes inode {ino} and does not say what it is")

    # -- inodes --------------------------------------------------------------------------------------------------------

    def _inode(self, ino: int) -> None:
        old, new = reads.inode_at(self._txn, ino, self._before), self._at_end(ino)
        self.kinds.count(old, -1)
        self.kinds.count(new, 1)
        directory = any(i is not None and stat.S_ISDIR(i.mode) for i in (old, new))
        if directory:
            self._directory(ino, old, new)
        if new is None:
            return
        self.last_ino = max(self.last_ino, ino)
        if ino == ROOT:
            return
        names = self._names(new)
        if not directory and len(names) != new.nlink:
            raise BadStream(f"inode {ino} of the stream has {len(names)} names and says {new.nlink}")
        if not names or (directory and not new.name):
            raise BadStream(f"inode {ino} of the stream has no name")
        for parent, name in names:
            if reads.dirent_at(self._txn, parent, name, self._at) != (ino, new.mode >> 12):
                raise BadStream(f"inode {ino} of the stream is not in directory {parent} as {name!r}")
        if not stat.S_ISDIR(new.mode) and not new.data and stat.S_IFMT(new.mode) in (stat.S_IFREG, stat.S_IFLNK):
            raise BadStream(f"inode {ino} of the stream has no contents")
        if stat.S_ISLNK(new.mode) and not new.size:
            raise BadStream(f"symbolic link {ino} of the stream has no target")

    def _names(self, inode: Inode) -> set[tuple[int, bytes]]:
        most = limits.LINKS_MAX + 1
        rows = reads.named_rows(self._txn, Table.LINK, keys.u64(inode.ino), b"", self._at, most)
        if inode.name:
            if rows:
                raise BadStream(f"inode {inode.ino} of the stream has one name and several")
            return {(inode.parent, inode.name)}
        return {keys.link_name(key) for key, _ in rows}

    def _directory(self, ino: int, old: Inode | None, new: Inode | None) -> None:
        entries, below = (0, 2) if old is None else (old.size, old.nlink)
        for prefix in self._changed(Table.DIRENT, ino):
            for epoch, by in ((self._before, -1), (self._at, 1)):
                entry = reads.dirent_in(prefix, self._txn.seek(Table.DIRENT, prefix, epoch))
                if entry is not None:
                    entries += by
                    below += by * (entry[1] == stat.S_IFDIR >> 12)
        if new is None:
            if entries:
                raise BadStream(f"directory {ino} of the stream is gone, and has {entries} entries")
            return
        if not stat.S_ISDIR(new.mode) or (new.size, new.nlink) != (entries, below):
            raise BadStream(
                f"directory {ino} of the stream says {new.size} entries and {new.nlink} links,"
                f" and has {entries} and {below}"
            )
        self._root(ino)

    def _root(self, ino: int) -> None:
        """The directory is below the root."""
        above: set[int] = set()
        while ino not in self._rooted:
            inode = self._at_end(ino)
            if ino in above or inode is None or not stat.S_ISDIR(inode.mode) or not inode.name:
                raise BadStream(f"directory {ino} of the stream is not below the root")
            above.add(ino)
            ino = inode.parent
        if len(self._rooted) + len(above) > REMEMBERED_MAX:
            self._rooted = {int(ROOT)}
        self._rooted |= above

    # -- entries and attributes ----------------------------------------------------------------------------------------

    def _entry(self, directory: int, name: bytes) -> None:
        self._staged(directory)
        prefix = keys.dirent(directory, name)
        before, now = (
            reads.dirent_in(prefix, self._txn.seek(Table.DIRENT, prefix, epoch)) for epoch in (self._before, self._at)
        )
        if now is not None:
            inode = self._at_end(now[0])
            if inode is None or inode.mode >> 12 != now[1] or not self._named(inode, directory, name):
                raise BadStream(f"entry {name!r} of directory {directory} of the stream names what is not there")
        if before is not None and (now is None or before[0] != now[0]):
            inode = self._at_end(before[0])
            if inode is not None and self._named(inode, directory, name):
                raise BadStream(f"inode {before[0]} is not in directory {directory} any more, and says so")

    def _named(self, inode: Inode, directory: int, name: bytes) -> bool:
        if inode.name:
            return (inode.parent, inode.name) == (directory, name)
        return reads.body_at(self._txn, Table.LINK, keys.link(inode.ino, directory, name), self._at) is not None

    def _attributes(self, ino: int) -> None:
        most = limits.XATTR_LIST_BYTES_MAX
        rows = reads.named_rows(self._txn, Table.XATTR, keys.u64(ino), b"", self._at, most)
        if sum(len(keys.xattr_name(key)) + 1 for key, _ in rows) > most:
            raise BadStream(f"inode {ino} of the stream has more attribute names than fit {most} bytes")


def _once(numbers: Iterator[int]) -> Iterator[int]:
    last = -1
    for number in numbers:
        if number != last:
            yield number
        last = number
