"""A change of names and contents that is staged in batches and flipped: what a restore and an apply have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.chunks import CHUNK_INDEX_MAX
from tzfs.engine.head import S_IFDIR, S_IFMT, Head
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.rollback import Changes, Kinds
from tzfs.engine.staging import Staging
from tzfs.engine.txg import TxgCommitter
from tzfs.errors import Stale
from tzfs.format import keys, records
from tzfs.format.keys import DataId, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode

LISTED = 128  # entries of a directory that are looked at together


def is_dir(inode: Inode) -> bool:
    return inode.mode & S_IFMT == S_IFDIR


class StagedChange(ABC):
    """A row of steps; nothing has happened until `step` has answered False.

    `done` rows have been staged, of about `total`, or of a number that is not known (0).  `changes` is what a cache
    must forget, once it has flipped.
    """

    def __init__(self, head: Head, staging: Staging, committer: TxgCommitter, reclaimer: Reclaimer) -> None:
        self._head, self._staging, self._committer, self._reclaimer = head, staging, committer, reclaimer
        self._now = head.clock()
        self._kinds = Kinds()
        self._steps = self._run()
        self._rows = 0  # of the batch under way
        self._orphans: list[int] = []
        self.changes = Changes()
        self.done = self.total = 0

    @abstractmethod
    def _run(self) -> Generator[bool, None, None]:
        """All the steps, and the flip."""

    def step(self) -> bool:
        """A bounded piece of the work; whether there is more.  What it raises has changed nothing: `cancel` then.

        `Exists` (without force), `NotFound` (a directory to restore into), `InvalidArgument`, `NoSpace`,
        `QuotaExceeded`.
        """
        return next(self._steps, None) is not None

    def cancel(self) -> bool:
        """A bounded piece of taking back what has been staged; whether there is more."""
        self._steps.close()
        return self._head.staging is not None and self._staging.withdraw()

    def _prepare(self) -> Generator[bool, None, None]:
        """What was answered is committed, and no removed chunks wait."""
        self._head.check()
        while True:
            self._committer.commit()
            if not self._head.reclaims:
                return
            self._reclaimer.step()
            yield True

    def _stage_all(self, works: Iterable[Iterator[None]]) -> Generator[bool, None, None]:
        """Does all the work, in batches; then the inodes that only the kernel refers to are orphans."""
        self._open_batch()
        for work in works:
            while self._unit(work):
                if self._rows >= limits.STAGING_BATCH_KEYS:
                    self._close_batch()
                    yield True
                    self._open_batch()
        self._close_batch()
        head = self._head
        head.check_inos(self._kinds.inodes - 1)
        for ino in self._orphans:
            head.orphans[ino] = self._staging.epoch
            head.orphans_changed.add(ino)

    def _unit(self, work: Iterator[None]) -> bool:
        """The next piece of the work, which is whole or has changed nothing; whether there was one."""
        try:
            return next(work, self) is None
        except BaseException:
            self._close_batch()
            raise

    def _room(self, nbytes: int) -> None:
        """Asks the quotas, between two batches: near one they commit to look exactly.  `QuotaExceeded`."""
        if self._head.room is not None:
            self._close_batch()
            self._head.room(nbytes)
            self._staging.open_batch()

    def _open_batch(self) -> None:
        """`QuotaExceeded` where what is staged already is more than there may be."""
        if self._head.room is not None:
            self._head.room(limits.PAGE_BYTES)
        self._staging.open_batch()

    def _close_batch(self) -> None:
        self._staging.close_batch(4 * self._rows)
        self.done += self._rows
        self._rows = 0

    def _put(self, table: Table, prefix: bytes, body: bytes | None, *, new: bool = False) -> None:
        """Stages a key; `new`: it has no version yet."""
        old = None if new else self._head.txn.seek(table, prefix, self._staging.epoch)
        self._staging.stage(table, prefix, body, old)
        self._rows += 1
        if not new:
            self.changes.note(table, prefix, body)

    def _inode(self, ino: int) -> Inode:
        """An inode of the head, as committed."""
        found = reads.inode_at(self._head.look, ino, self._head.epoch)
        if found is None:
            raise Stale(f"inode {ino} is gone")
        return found

    def _entries(self, directory: int, epoch: int) -> Iterator[list[tuple[bytes, int]]]:
        after = b""
        while rows := reads.named_rows(self._head.look, Table.DIRENT, keys.u64(directory), after, epoch, LISTED):
            yield [(keys.dirent_name(key), records.unpack_dirent(key, body)[0]) for key, body in rows]
            after = keys.dirent_name(rows[-1][0])

    def _indexes(self, data: int) -> Iterator[int]:
        """The chunks of a data id that have rows."""
        lo = 0
        while found := reads.chunk_indexes(self._head.look, DataId(data), lo, CHUNK_INDEX_MAX, LISTED):
            yield from found
            lo = found[-1] + 1

    def _end(self, inode: Inode) -> Generator[None, None, None]:
        """An inode whose last name has gone."""
        head, ino = self._head, inode.ino
        if head.referenced(ino):
            inode.nlink, inode.ctime_ns = 0, self._now
            inode.size = 0 if is_dir(inode) else inode.size
            self._put(Table.INODE, keys.inode(ino), records.pack_inode(inode))
            self._orphans.append(ino)
            yield
            return
        self._put(Table.INODE, keys.inode(ino), None)
        yield
        if inode.flags & FLAG_XATTR:
            prefix, at = keys.u64(ino), self._head.epoch
            for key, _ in reads.named_rows(head.look, Table.XATTR, prefix, b"", at, limits.XATTR_LIST_BYTES_MAX):
                self._put(Table.XATTR, key[:-8], None)
                yield
        yield from self._drop(inode)

    def _drop(self, inode: Inode) -> Generator[None, None, None]:
        """The contents of an inode go."""
        if inode.data and inode.flags & FLAG_INLINE:
            if reads.body_at(self._head.look, Table.INLINE, keys.inline(inode.data), self._head.epoch) is not None:
                self._put(Table.INLINE, keys.inline(inode.data), None)
        elif inode.data:
            for index in self._indexes(inode.data):
                prefix = keys.chunk(inode.data, index)
                found = self._head.look.seek(Table.CHUNK, prefix, self._head.epoch)
                if found is not None and not records.is_tombstone(found[1]):
                    self._put(Table.CHUNK, prefix, None)
                yield
