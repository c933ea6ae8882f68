"""The writer of one filesystem: its parts put together, and the calls that a mount or the Python API makes.

An `Engine` is opened by whoever holds the filesystem's lease, is used on one thread, and is synchronous.  Its calls
take inode numbers and raw names, check everything that can fail, then change memory; `commit` makes it durable.

Lifecycle: `Engine.format` writes an empty filesystem; `Engine(...)` opens one: takes a new lease generation, loads what
is small (counters, snapshots, orphans, reclaims) and trims what an earlier writer never committed; `close` commits and
ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from tzfs import failpoints, limits
from tzfs.engine.attributes import Attributes
from tzfs.engine.check.problems import Problem
from tzfs.engine.check.run import check
from tzfs.engine.content_rows import ContentRows
from tzfs.engine.contents import ContentsTable
from tzfs.engine.flushing import Flusher, FlushJob
from tzfs.engine.head import S_IFDIR, Head, Settings
from tzfs.engine.listing import Listings
from tzfs.engine.namespace import Namespace
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.txg import TxgCommitter
from tzfs.engine.versions import Versions
from tzfs.engine.view import View
from tzfs.errors import CorruptionError, Exists, InvalidArgument, NotFound
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, pack_counters, unpack_counters
from tzfs.format.keys import ROOT, DataId, Epoch, Ino, Table, Txg
from tzfs.format.records import Inode, Reclaim, Snapshot
from tzfs.format.superblock import SUPERBLOCK_KEY, Superblock, pack_superblock, unpack_superblock
from tzfs.store.interface import MetaStore, PayloadStore, ReadTransaction, RedoStore

__all__ = [
    "Engine",
    "Settings",
    "StatFs",
    "charged_bytes",
    "read_counters",
    "read_extents",
    "read_snapshots",
    "read_superblock",
]

failpoints.declare("open.generation", "a writer is about to take a new lease generation")
failpoints.declare("open.trim", "a writer is about to trim what was never committed")
failpoints.declare("snapshot.row", "a snapshot's row is written, not yet committed")


@dataclass(frozen=True, slots=True)
class StatFs:
    """What statfs(2) says, in the units of `block_bytes` and in inodes."""

    block_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    name_max: int


def read_superblock(txn: ReadTransaction) -> Superblock:
    """The filesystem's superblock; `CorruptionError` where there is none."""
    value = txn.get(Table.SYS, SUPERBLOCK_KEY)
    if value is None:
        raise CorruptionError(
            "the filesystem has no superblock", hint="it was never formatted, or is not a filesystem of tzfs"
        )
    return unpack_superblock(value)


def read_snapshots(txn: ReadTransaction) -> dict[str, Snapshot]:
    """All snapshots by name, oldest first."""
    found = []
    for key, value in txn.range(Table.SNAPSHOT, b""):
        body = records.unseal(Table.SNAPSHOT, key, value)
        if body is not None:
            found.append((key.decode(), records.unpack_snapshot(key, body)))
    found.sort(key=lambda pair: pair[1].epoch)
    return dict(found)


def read_counters(txn: ReadTransaction) -> Counters:
    """The counters as committed."""
    value = txn.get(Table.SYS, COUNTERS_KEY)
    if value is None:
        raise CorruptionError("the filesystem has no counters")
    return unpack_counters(value)


def read_extents(txn: ReadTransaction) -> tuple[int, int]:
    """How many extents there are, those that only snapshots see included, and in how many segments; a row a segment."""
    extents = segments = 0
    for key, value in txn.range(Table.SEGMENT, b""):
        body = records.unseal(Table.SEGMENT, key, value)
        if body is not None:
            extents += records.unpack_plain(Table.SEGMENT, key, body)[0]
            segments += 1
    return extents, segments


def charged_bytes(txn: ReadTransaction) -> int:
    """What all versions and extents are charged, alive or only in snapshots: the sum of the cells."""
    total = 0
    for key, value in txn.range(Table.CELL, b""):
        body = records.unseal(Table.CELL, key, value)
        if body is not None:
            total += records.unpack_plain(Table.CELL, key, body)[1]
    return total


class Engine:
    """See the module's text.  The calls below that are attributes are the parts' own, documented there."""

    def __init__(
        self,
        meta: MetaStore,
        payload: PayloadStore,
        *,
        redo: RedoStore | None = None,
        settings: Settings | None = None,
        clock: Callable[[], int] = time.time_ns,
        disk: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        """Opens for writing.  What an earlier writer left in `redo` has been replayed.

        `disk` answers (bytes free for us, bytes free in all) of the disk below, for `statfs`.
        """
        self.meta, self.payload = meta, payload
        self._disk = disk or (lambda: (1 << 40, 1 << 40))
        txn = meta.begin_write()
        try:
            superblock = read_superblock(txn)
            superblock.check(for_writing=True)
            superblock = superblock.next_generation()
            failpoints.hit("open.generation")
            raw = pack_superblock(superblock)
            txn.put(Table.SYS, SUPERBLOCK_KEY, raw)
            txn.commit()
        except BaseException:
            txn.close()
            raise
        txn = meta.begin_write()
        try:
            self.superblock = superblock
            counters = read_counters(txn)
            counters.txg = Txg(counters.txg + 1)  # the one that was committed is over
            self._trim(txn, counters)
            head = Head(meta, payload, txn, counters, settings=settings or Settings(), clock=clock)
            self._snapshots = read_snapshots(txn)
            head.versions.snapshots = sorted(s.epoch for s in self._snapshots.values())
            for key, value in txn.range(Table.ORPHAN, b""):
                body = records.unseal(Table.ORPHAN, key, value)
                if body is not None:
                    (at,) = records.unpack_plain(Table.ORPHAN, key, body)
                    head.orphans[int.from_bytes(key, "big")] = Epoch(at)
            for key, value in txn.range(Table.RECLAIM, b""):
                body = records.unseal(Table.RECLAIM, key, value)
                if body is not None:
                    data, lo, hi, epoch = records.unpack_plain(Table.RECLAIM, key, body)
                    head.reclaims[int.from_bytes(key, "big")] = Reclaim(DataId(data), lo, hi, Epoch(epoch))
        except BaseException:
            txn.close()
            raise
        self._head = head
        rows = ContentRows(head)
        self._flusher = flusher = Flusher(head)
        self._contents = contents = ContentsTable(head, rows)
        self._namespace = namespace = Namespace(head, contents)
        listings = Listings(head)
        self._attributes = attributes = Attributes(head, contents)
        self._txg = TxgCommitter(head, flusher, rows, namespace, attributes, raw, redo)
        self._reclaimer = Reclaimer(head, rows, namespace)

        self.lookup = namespace.lookup
        self.find = namespace.find
        self.inode = namespace.inode
        self.parent_of = namespace.parent_of
        self.readlink = namespace.readlink
        self.readdir = listings.readdir
        self.readdir_plus = listings.readdir_plus
        self.mknod = namespace.mknod
        self.mkdir = namespace.mkdir
        self.symlink = namespace.symlink
        self.link = namespace.link
        self.unlink = namespace.unlink
        self.rmdir = namespace.rmdir
        self.rename = namespace.rename
        self.forget = namespace.forget
        self.setattr = attributes.setattr
        self.getxattr = attributes.getxattr
        self.setxattr = attributes.setxattr
        self.listxattr = attributes.listxattr
        self.removexattr = attributes.removexattr
        self.plan_read = contents.plan_read
        self.write = contents.write

    @staticmethod
    def format(meta: MetaStore, *, guid: bytes, now_ns: int, uid: int = 0, gid: int = 0, mode: int = 0o755) -> None:
        """Writes an empty filesystem, its root owned by `uid` and `gid`, in one commit."""
        txn = meta.begin_write()
        try:
            counters = Counters.of_empty()
            versions = Versions(lambda what, by: None)
            versions.begin(txn)
            root = Inode(
                ROOT, S_IFDIR | mode, uid, gid, 2, 0, DataId(0), 0, now_ns, now_ns, now_ns, now_ns, 0,
                limits.CHUNK_SHIFT_DEFAULT, Ino(0), b"",
            )  # fmt: skip
            versions.put(Table.INODE, keys.inode(ROOT), records.pack_inode(root), counters.epoch, fresh=True)
            counters.bytes = versions.live_bytes_delta
            versions.settle()
            txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(Superblock.new(guid=guid, created_ns=now_ns)))
            txn.put(Table.SYS, COUNTERS_KEY, records.seal(Table.SYS, COUNTERS_KEY, pack_counters(counters)))
            txn.commit()
        except BaseException:
            txn.close()
            raise

    def _trim(self, txn: ReadTransaction, counters: Counters) -> None:
        """Gives back what an earlier writer wrote and never committed: whole segments, and the ends of others."""
        ends = {}
        for key, value in txn.range(Table.SEGMENT, b""):
            body = records.unseal(Table.SEGMENT, key, value)
            if body is not None:
                ends[int.from_bytes(key, "big")] = records.unpack_plain(Table.SEGMENT, key, body)[2]
        self.payload.begin_numbering(counters.next_segment)
        for number in self.payload.segments():
            failpoints.hit("open.trim")
            if number in ends:
                end = keys.extent_id(number, ends[number] // limits.PAGE_BYTES)
                self.payload.punch(end, limits.SEGMENT_BYTES_MAX - ends[number])
            else:
                self.payload.remove_segment(number)

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self._head.settings

    @property
    def counters(self) -> Counters:
        """Inodes by kind, charged bytes, epoch, txg.  Not to be changed."""
        return self._head.counters

    @property
    def failed(self) -> str | None:
        """Why the engine answers nothing any more; None while it does."""
        return self._head.failed

    @property
    def drift(self) -> list[str]:
        """Counters that would have become negative, one line each; always empty unless there is a bug."""
        return self._head.drift

    @property
    def dirty(self) -> bool:
        return self._head.dirty

    @property
    def dirty_bytes(self) -> int:
        """Written payload that waits in memory."""
        return self._head.dirty_bytes

    @property
    def dirty_rows(self) -> int:
        return self._head.dirty_rows

    @property
    def logged_rows(self) -> int:
        """Rows that are durable in the redo log, and come into the tables with the next commit."""
        return self._head.logged_rows

    @property
    def orphans(self) -> int:
        """Inodes without a name that the kernel has not forgotten."""
        return len(self._head.orphans)

    def orphan_inodes(self) -> list[Ino]:
        """The inodes without a name."""
        return [Ino(ino) for ino in self._head.orphans]

    @property
    def reclaiming(self) -> int:
        """Ranges of removed chunks that wait for the background."""
        return len(self._head.reclaims)

    @property
    def cached(self) -> int:
        """Inodes held in memory."""
        return len(self._head.inodes)

    @property
    def commits(self) -> int:
        """Commits since opening."""
        return self._txg.commits

    @property
    def referenced(self) -> Callable[[int], bool]:
        """Whether the kernel (or whoever else) still refers to an inode number: set by a mount."""
        return self._head.referenced

    @referenced.setter
    def referenced(self, answer: Callable[[int], bool]) -> None:
        self._head.referenced = answer

    # -- durability ------------------------------------------------------------------------------------------------

    @property
    def commit_due(self) -> bool:
        """Whether enough is dirty that a commit should not wait for its interval."""
        return self._txg.due

    def commit_due_at_ns(self) -> int | None:
        """When the interval is over, on the engine's clock; None while nothing is dirty."""
        return self._txg.due_at_ns()

    def commit(self) -> None:
        """Everything answered so far is durable when it returns.  An error fails the engine."""
        self._txg.commit()
        self._reclaimer.committed()

    def check(self) -> None:
        """`MountFailed` where the engine has failed: for a request that asks nothing else of it."""
        self._head.check()

    def harden(self) -> None:
        """As `commit`, and cheaper where little is dirty; readers elsewhere see it at the next commit."""
        self._txg.harden()
        if not self._head.logged_rows:
            self._reclaimer.committed()

    def begin_flush(self) -> FlushJob | None:
        """Freezes dirty payload for a job to write; None when there is none.  See `contents`."""
        self._head.check()
        return self._flusher.begin()

    @property
    def flushing(self) -> FlushJob | None:
        """The job that `begin_flush` has handed out and `end_flush` has not taken in yet."""
        return self._flusher.running

    def end_flush(self) -> None:
        """Takes in what the running job has written."""
        self._flusher.end()

    def background_step(self) -> bool:
        """A bounded batch of reclaiming and punching; whether there may be more to do now."""
        return self._reclaimer.step()

    @property
    def background_pending(self) -> bool:
        return self._reclaimer.pending

    @property
    def reclaimer(self) -> Reclaimer:
        return self._reclaimer

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; may block on the disk."""
        return self._contents.plan_read(ino, offset, size).execute()

    def pin(self) -> int:
        """Before a plan goes to another thread: what it wants is not given back until `unpin` of the answer."""
        return self._reclaimer.pin()

    def unpin(self, pin: int) -> None:
        self._reclaimer.unpin(pin)

    def statfs(self) -> StatFs:
        """Used is what the filesystem is charged; free is what the disk below has."""
        self._head.check()
        available, free = self._disk()
        block = limits.PAGE_BYTES
        used = (self._head.counters.bytes + self._head.dirty_bytes + block - 1) // block
        inodes = self._head.counters.inodes
        inodes_free = min(limits.INO_MAX - self._head.counters.next_ino, available // 1024)
        return StatFs(
            block, used + free // block, free // block, available // block, inodes + inodes_free, inodes_free,
            limits.NAME_BYTES_MAX,
        )  # fmt: skip

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshots(self) -> dict[str, Snapshot]:
        """All snapshots by name, oldest first."""
        return dict(self._snapshots)

    def snapshot(self, name: str, properties: dict[str, str] | None = None) -> Snapshot:
        """A snapshot of everything answered so far, durable when it returns; its cost does not depend on the size.

        `name` is what follows the `@`; the caller has validated it.  Raises `Exists`, `NoSpace`.
        """
        head = self._head
        head.check()
        key = name.encode()
        if not key or len(key) > limits.SNAPSHOT_NAME_BYTES_MAX:
            raise InvalidArgument(f"a snapshot's name has 1 to {limits.SNAPSHOT_NAME_BYTES_MAX} bytes")
        if name in self._snapshots:
            raise Exists(f"snapshot {name!r} exists")
        head.admit(limits.PAGE_BYTES)
        guid, given = os.urandom(16), dict(properties or {})
        records.pack_snapshot(Snapshot(head.epoch, guid, 0, 0, 0, 0, given))  # too long properties are refused now
        made: list[Snapshot] = []

        def finish() -> None:
            counters = head.counters
            made.append(
                Snapshot(counters.epoch, guid, head.clock(), counters.txg, counters.inodes, counters.bytes, given)
            )
            head.txn.put(Table.SNAPSHOT, key, records.seal(Table.SNAPSHOT, key, records.pack_snapshot(made[0])))
            counters.epoch = Epoch(counters.epoch + 1)
            failpoints.hit("snapshot.row")

        self._txg.commit(finish)
        self._reclaimer.committed()
        self._snapshots[name] = made[0]
        head.versions.snapshots.append(made[0].epoch)
        return made[0]

    def view(self, name: str) -> View:
        """The snapshot's tree, read-only; `NotFound`."""
        if name not in self._snapshots:
            raise NotFound(f"no snapshot {name!r}")
        return View(self.meta, self.payload, name, self._snapshots[name])

    # -- checking and ending -----------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """Commits, then checks everything that is in the tables and segments."""
        self.commit()
        return [found for found in check(self._head.txn, self.payload) if isinstance(found, Problem)]

    def abandon(self) -> None:
        """Ends without committing, as a crash would; what is on disk stays as it is."""
        self._head.fail("abandoned")
        self.close()

    def close(self) -> None:
        """Commits unless failed, and ends the transaction.  The stores stay the caller's to close."""
        try:
            if self._head.failed is None and not self._head.changing:
                self.commit()
        finally:
            if self._flusher.running is not None:
                self._flusher.running.wait()
            self._head.txn.close()
