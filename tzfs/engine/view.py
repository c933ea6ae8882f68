"""A snapshot, read-only: the calls of `Engine` that only read, at one epoch.

A view keeps no transaction open.  Each call looks its rows up in a moment's read transaction; versions that a snapshot
sees do not change, so calls agree with each other.  In a process that does not hold the lease, payload may be freed
between planning and reading when its version turns out to be of no snapshot any more: a plan that fails is made again
in a fresh transaction, and only the same failure twice is reported.

A view must be protected from the destruction of its snapshot by whoever opens it (a hold, or a file in `views/`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.attributes import xattr_at, xattr_names_at
from tzfs.engine.damaged import inode_or_less, lost, with_damaged
from tzfs.engine.head import S_IFDIR, S_IFLNK, S_IFMT
from tzfs.engine.reads import ReadPlan
from tzfs.errors import (
    CorruptionError,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoAttribute,
    NotADirectory,
    NotFound,
    Stale,
    StoreError,
)
from tzfs.format import keys
from tzfs.format.keys import ROOT, Epoch, Ino, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode, Snapshot, is_tombstone, unpack_dirent, unseal
from tzfs.store.interface import PayloadReader, ReadTransaction

T = TypeVar("T")


class Tables(Protocol):
    """What a view asks of a `MetaStore`."""

    def begin_read(self) -> ReadTransaction: ...


class View:
    """One snapshot's tree.  `snapshot` is its record, `name` what it is called."""

    def __init__(self, meta: Tables, payload: PayloadReader, name: str, snapshot: Snapshot) -> None:
        self.name, self.snapshot = name, snapshot
        self._meta, self._payload = meta, payload
        self._epoch: Epoch = snapshot.epoch
        self._destroyed = False

    def end(self) -> None:
        """The snapshot has been destroyed: from now on every call is `Stale`."""
        self._destroyed = True

    def _in(self, look: Callable[[ReadTransaction], T]) -> T:
        if self._destroyed:
            raise Stale(f"snapshot {self.name} has been destroyed")
        txn = self._meta.begin_read()
        try:
            return look(txn)
        finally:
            txn.close()

    def _inode(self, txn: ReadTransaction, ino: int) -> Inode:
        inode = reads.inode_at(txn, ino, self._epoch)
        if inode is None:
            raise Stale(f"inode {ino} is not in snapshot {self.name}")
        return inode

    def _directory(self, txn: ReadTransaction, ino: int) -> Inode:
        inode = self._inode(txn, ino)
        if inode.mode & S_IFMT != S_IFDIR:
            raise NotADirectory(f"inode {ino} is not a directory")
        return inode

    def inode(self, ino: int) -> Inode:
        """The inode as the snapshot has it; `Stale` if it has none."""
        return self._in(lambda txn: self._inode(txn, ino))

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode under a name.  `NotFound`, `NotADirectory`, `NameTooLong`, `Stale`."""
        found = self.find(parent, name)
        if found is None:
            raise NotFound(f"no entry {name!r} in directory {parent} of snapshot {self.name}")
        return found

    def find(self, parent: int, name: bytes) -> Inode | None:
        """`lookup` for whom absence is no error."""
        if len(name) > limits.NAME_BYTES_MAX:
            raise NameTooLong(f"name of {len(name)} bytes; the limit is {limits.NAME_BYTES_MAX}")

        def look(txn: ReadTransaction) -> Inode | None:
            entry = reads.dirent_at(txn, parent, name, self._epoch)
            if entry is None:
                self._directory(txn, parent)
                return None
            inode = reads.inode_at(txn, entry[0], self._epoch)
            if inode is None:
                raise lost(parent, name, entry[0])
            return inode

        return self._in(look)

    def entry(self, directory: int, name: bytes) -> int:
        """The inode under a name; 0 where there is none, or no such directory."""
        found = self._in(lambda txn: reads.dirent_at(txn, directory, name, self._epoch))
        return 0 if found is None else found[0]

    def parent_of(self, ino: int) -> Ino:
        """The directory that holds the directory `ino`; the root is its own parent."""
        return ROOT if ino == ROOT else self._in(lambda txn: self._directory(txn, ino).parent)

    def readdir(self, ino: int, after: bytes, limit: int) -> list[tuple[bytes, Ino, int]]:
        """At most `limit` entries (name, inode, file type) with names above `after`, ascending; none at the end."""
        return self._in(lambda txn: self._readdir(txn, ino, after, limit))

    def _readdir(
        self,
        txn: ReadTransaction,
        ino: int,
        after: bytes,
        limit: int,
        damaged: list[bytes] | None = None,
    ) -> list[tuple[bytes, Ino, int]]:
        self._directory(txn, ino)
        rows = reads.named_rows(txn, Table.DIRENT, keys.u64(ino), after, self._epoch, limit, damaged)
        return [(keys.dirent_name(key), *unpack_dirent(key, body)) for key, body in rows]

    def readdir_plus(self, ino: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        """Like `readdir`, with inodes, looked up in one pass."""

        def look(txn: ReadTransaction) -> list[tuple[bytes, Inode]]:
            entries = self._readdir(txn, ino, after, limit)
            inos = sorted({i for _, i, _ in entries})
            inodes = dict(zip(inos, reads.inodes_at(txn, inos, self._epoch), strict=True))
            out = []
            for name, i, _ in entries:
                inode = inodes[i]
                if inode is None:
                    raise lost(ino, name, i)
                out.append((name, inode))
            return out

        return self._in(look)

    def readdir_damaged(self, ino: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        """As the engine's."""

        def look(txn: ReadTransaction) -> list[tuple[bytes, Inode]]:
            damaged: list[bytes] = []
            entries = self._readdir(txn, ino, after, limit, damaged)
            load = partial(self._inode, txn)
            found = [(name, inode_or_less(load, i, kind)) for name, i, kind in entries]
            return with_damaged(found, damaged, limit)

        return self._in(look)

    def find_damaged(self, parent: int, name: bytes) -> Inode:
        """As the engine's."""

        def look(txn: ReadTransaction) -> Inode:
            entry = reads.dirent_at(txn, parent, name, self._epoch)
            if entry is None:
                raise NotFound(f"no entry {name!r} in directory {parent} of snapshot {self.name}")
            return inode_or_less(partial(self._inode, txn), *entry)

        return self._in(look)

    def readlink(self, ino: int) -> bytes:
        """A symlink's target; `InvalidArgument` for anything else."""
        inode = self.inode(ino)
        if inode.mode & S_IFMT != S_IFLNK:
            raise InvalidArgument(f"inode {ino} is not a symbolic link")
        return self._retried(lambda: self._plan(ino, 0, inode.size).execute())

    def plan_read(self, ino: int, offset: int, size: int) -> ReadPlan:
        """A plan for at most `size` bytes from `offset`; less at the end of the file."""
        if offset < 0 or size < 0:
            raise InvalidArgument("offset and size must not be negative")
        return self._plan(ino, offset, size)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`."""
        return self._retried(lambda: self.plan_read(ino, offset, size).execute())

    def _retried(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (CorruptionError, StoreError):
            return read()

    def _plan(self, ino: int, offset: int, size: int) -> ReadPlan:
        def look(txn: ReadTransaction) -> ReadPlan:
            inode = self._inode(txn, ino)
            if inode.mode & S_IFMT == S_IFDIR:
                raise IsADirectory(f"inode {ino} is a directory")
            length = max(0, min(size, inode.size - offset))
            plan = ReadPlan(self._payload, length, ino=ino)
            if length == 0:
                return plan
            if inode.flags & FLAG_INLINE:
                body = reads.body_at(txn, Table.INLINE, keys.inline(inode.data), self._epoch) or b""
                plan.add_bytes(0, body[offset : offset + length])
                return plan
            reclaims = reads.reclaims_of(txn)
            shift = inode.chunk_shift
            for index in range(offset >> shift, (offset + length - 1 >> shift) + 1):
                start = index << shift
                found = reads.slices_at(txn, inode.data, index, self._epoch, reclaims)
                plan.add_slices(start - offset, found, max(offset - start, 0), min(offset + length - start, 1 << shift))
            return plan

        return self._in(look)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """An attribute's value; `NoAttribute`."""

        def look(txn: ReadTransaction) -> bytes | None:
            inode = self._inode(txn, ino)
            return xattr_at(txn, self._payload, ino, name, self._epoch) if inode.flags & FLAG_XATTR else None

        value = self._in(look)
        if value is None:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        return value

    def listxattr(self, ino: int) -> list[bytes]:
        """The names of all attributes, ascending."""

        def look(txn: ReadTransaction) -> list[bytes]:
            inode = self._inode(txn, ino)
            return xattr_names_at(txn, ino, self._epoch) if inode.flags & FLAG_XATTR else []

        return self._in(look)

    # -- what a comparison asks ------------------------------------------------------------------------------------

    def inodes(self, inos: Sequence[int]) -> list[Inode | None]:
        """One inode, or None, for each of `inos`, which must ascend; one without a name is there too."""
        return self._in(lambda txn: reads.inodes_at(txn, inos, self._epoch))

    def names_of(self, inode: Inode) -> set[tuple[Ino, bytes]]:
        """(directory, name) of each name of an inode of this view; none for the root, nor for an orphan."""
        if inode.nlink == 0 or inode.ino == ROOT:
            return set()
        if inode.name:
            return {(inode.parent, inode.name)}
        prefix = keys.u64(inode.ino)
        most = limits.LINKS_MAX + 1
        rows = self._in(lambda txn: reads.named_rows(txn, Table.LINK, prefix, b"", self._epoch, most))
        return {keys.link_name(key) for key, _ in rows}

    def chunks(self, inode: Inode, lo: int, limit: int) -> list[int]:
        """At most `limit` indexes, from `lo` on, of chunks in which there may be something but zeros, ascending."""
        if inode.flags & FLAG_INLINE:
            return [0] if lo == 0 else []
        count = (inode.size - 1 >> inode.chunk_shift) + 1
        return self._in(lambda txn: reads.chunk_indexes(txn, inode.data, lo, count, limit))

    # -- what a stream asks ------------------------------------------------------------------------------------------

    def numbers(self, lo: int, limit: int) -> list[int]:
        """At most `limit` numbers from `lo` on of inodes that there are, or have been, or will be, ascending."""

        def look(txn: ReadTransaction) -> list[int]:
            out: list[int] = []
            at = lo
            while len(out) < limit:
                key = next((key for key, _ in txn.range(Table.INODE, keys.u64(at))), None)
                if key is None:
                    break
                out.append(int.from_bytes(key[:8], "big"))
                at = out[-1] + 1
            return out

        return self._in(look)

    def bodies(self, table: Table, prefixes: Sequence[bytes]) -> list[bytes | None]:
        """The body of each of `prefixes`, which must ascend; None where there is nothing."""

        def look(txn: ReadTransaction) -> list[bytes | None]:
            found = txn.seek_many(table, prefixes, self._epoch)
            return [
                None if f is None else unseal(table, prefix + keys.suffix(f[0]), f[1])
                for prefix, f in zip(prefixes, found, strict=True)
            ]

        return self._in(look)

    def kept_since(self, inode: Inode, epoch: int) -> bool:
        """Whether there is anything in its contents that was there at `epoch`, and its chunks since then are in
        `change`, which those that are being removed are not."""
        if inode.flags & FLAG_INLINE:
            return self._in(lambda txn: self._seen_before(txn, Table.INLINE, keys.inline(inode.data), epoch))
        reclaims = [r for r in self._in(reads.reclaims_of) if r.data == inode.data and r.at <= self._epoch]
        if any(r.at > epoch for r in reclaims):
            return False
        lo = 0
        while inode.size and (found := self.chunks(inode, lo, 128)):
            for index in found:
                before = partial(
                    self._seen_before, table=Table.CHUNK, prefix=keys.chunk(inode.data, index), epoch=epoch
                )
                if not reads.masked(reclaims, inode.data, index, self._epoch) and self._in(before):
                    return True
            lo = found[-1] + 1
        return False

    def _seen_before(self, txn: ReadTransaction, table: Table, prefix: bytes, epoch: int) -> bool:
        found = txn.seek(table, prefix, self._epoch)
        return found is not None and found[0] <= epoch and not is_tombstone(found[1])
