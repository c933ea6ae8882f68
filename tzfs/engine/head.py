"""The head: the writable state of one filesystem, and what of it has changed since the last commit.

The head is a table of changes over the rows of the last commit.  An operation looks in the changes first and in the
open write transaction second, checks everything that can fail, then changes memory only; `txg` turns the changes
into rows, in key order, when it commits.  A file created and deleted between two commits never reaches the store.

States: clean (nothing changed) -> dirty -> (commit) -> clean.  `changing` is true between the first and the last change
of an operation; an exception in between leaves it true, and the next operation then finds the transaction group
poisoned and fails the head for good.  `failed` says why a head answers nothing any more.

Invariants:
- Everything changed is born at the current epoch, except what belongs to an orphan: that at the epoch of its unlink.
- Ids at or above `first_ino` and `first_data` were given since the last commit and have no rows yet.
- Each object here is used on one thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.bequest import Bequest
from tzfs.engine.compression import OFF, Compression
from tzfs.engine.inherited import Ancestry, CloneMeta, Composed
from tzfs.engine.versions import Versions
from tzfs.errors import InvalidArgument, LimitReached, MountFailed, NameTooLong, NotADirectory, QuotaExceeded, Stale
from tzfs.format.counters import Counters
from tzfs.format.keys import DataId, Epoch, ExtentId, Ino
from tzfs.format.operations import Operation
from tzfs.format.records import Inode, Reclaim
from tzfs.format.slices import Slice
from tzfs.native.codecs import Compressor
from tzfs.store.interface import MetaStore, PayloadStore, Readable, ReadTransaction, WriteTransaction

if TYPE_CHECKING:
    from tzfs.engine.chunks import Contents

log = logging.getLogger(__name__)

DRIFT_MAX = 1000  # each is a line of the log, and all of them an answer on the control socket

S_IFMT = 0o170000
S_IFDIR = 0o040000
S_IFREG = 0o100000
S_IFLNK = 0o120000
S_IFIFO = 0o010000


@dataclass(slots=True)
class Settings:
    """What the properties of a filesystem decide for its engine; may be changed while it runs."""

    txg_interval_s: float = limits.TXG_INTERVAL_S_DEFAULT
    dirty_bytes_max: int = limits.DIRTY_BYTES_MAX_DEFAULT
    dirty_rows_max: int = limits.DIRTY_ROWS_MAX
    chunk_shift: int = limits.CHUNK_SHIFT_DEFAULT
    compression: Compression = OFF
    quota_bytes: int = 0  # of this and the next three 0 means none; `quotas` has what they are
    refquota_bytes: int = 0
    inodes_max: int = 0
    snapshots_max: int = 0
    store_quota_bytes: int = 0  # what all filesystems of the store may be charged together; 0 means none
    collect: bool = True  # whether commits are followed by background work that nobody asked for
    log_max: int = limits.LOG_ENTRIES_DEFAULT


class Drop:
    """Contents of a data id that are gone from epoch `at` on: chunks below `hi`, and with `inline` its inline row."""

    __slots__ = ("at", "data", "hi", "inline")

    def __init__(self, data: DataId, at: Epoch, *, hi: int, inline: bool) -> None:
        self.data, self.at, self.hi, self.inline = data, at, hi, inline


class Head:
    """See the module's text.  The parts of the engine read and write these fields directly."""

    def __init__(
        self,
        meta: MetaStore,
        payload: PayloadStore,
        txn: WriteTransaction,
        counters: Counters,
        *,
        settings: Settings,
        clock: Callable[[], int],
        ancestry: Ancestry | None = None,
    ) -> None:
        self.meta, self.payload, self.txn = meta, payload, txn
        self.ancestry = ancestry  # of a clone
        self.look: ReadTransaction = txn  # `txn`, read through to the origins of a clone
        self.readable: Readable = meta if ancestry is None else CloneMeta(meta, ancestry)
        if ancestry is not None:
            self.look = ancestry.over(txn, momentary=True)
        self.counters, self.settings, self.clock = counters, settings, clock
        self.drift: list[str] = []  # the first DRIFT_MAX
        self._told: set[str] = set()
        self.versions = Versions(self.report_drift, self.report)
        self.versions.begin(txn)
        if ancestry is not None:
            self.versions.inherits, self.versions.bequest = ancestry.inherits, Bequest(ancestry.cost, self.report)
        self.referenced: Callable[[int], bool] = lambda ino: False
        self.thread = threading.get_ident()
        self.admit: Callable[[int], None] = lambda nbytes: None  # set by the committer, as the next three
        self.pace: Callable[[], None] = lambda: None
        self.reserve: Callable[[int], None] = lambda nbytes: None
        self.unplaced: Callable[[], int] = lambda: 0
        self.note: Callable[..., int] = lambda kind, **fields: 0  # set by the journal, as the next one
        self.committed: Callable[[], None] = lambda: None
        self.room: Callable[[int], None] | None = None  # the quotas' say in `admit`; None where there are none
        self.inodes_max = 0  # set by the quotas, as `room` is: what is replayed from the log has been admitted
        self.failed: str | None = None
        self.staging: Epoch | None = (
            None  # above the head, rows are being written that it is to become: it is read only
        )
        self.forgotten: list[int] = []  # inodes that `forget` was told of meanwhile
        self.changing = False
        self.dirty = False
        self.dirty_rows = 0
        self.dirty_bytes = 0
        self.flushed_bytes = 0  # of extents that were written since the last commit: they are charged with the next
        self.dirty_since_ns = 0
        self.compressor = Compressor()  # for what is compressed on this thread; jobs of a flush have their own
        self.compressed = False  # something has been since opening: the superblock must say so
        self.logged = 0  # operations since the last commit that the redo log has
        self.unlogged: list[Operation] | None = []  # those it has not; None: too many, or not all of them are known
        self.unlogged_bytes = 0  # payload in them
        self.first_ino, self.first_data = counters.next_ino, counters.next_data

        self.inodes: dict[int, Inode] = {}  # a cache; holds at least what is dirty
        self.dirty_inodes: set[int] = set()
        self.buried: dict[int, tuple[Epoch, Inode]] = {}  # removed since the last commit: the epoch, and what it was
        self.dirents: dict[int, dict[bytes, tuple[Ino, int] | None]] = {}
        self.known_entries: dict[bytes, tuple[Epoch, tuple[Ino, int]]] = {}  # a cache, by prefix: birth and entry
        self.links: dict[tuple[int, int, bytes], bool] = {}
        self.xattrs: dict[int, dict[bytes, bytes | tuple[Slice, ...] | None]] = {}
        self.orphans: dict[int, Epoch] = {}
        self.orphans_changed: set[int] = set()
        self.contents: dict[int, Contents] = {}  # by data id: contents that have changed
        self.drops: list[Drop] = []
        self.reclaims: dict[int, Reclaim] = {}
        self.reclaims_changed: set[int] = set()
        self.copies: dict[ExtentId, int] = {}  # extents that are being copied to, with their stored bytes
        self.unused_extents: list[
            tuple[int, int]
        ] = []  # allocated and written, then not needed: (extent, stored bytes)

    def begin_group(self) -> None:
        """The next transaction group has a transaction of its own."""
        self.txn = self.meta.begin_write()
        self.look = self.txn if self.ancestry is None else self.ancestry.over(self.txn, momentary=True)

    def let_origin_go(self) -> None:
        """Nothing is inherited any more."""
        self.ancestry = self.versions.inherits = self.versions.bequest = None
        self.look = self.txn

    def moment(self) -> Composed:
        """Of a clone: while it is entered, look-ups share a moment of the origins."""
        assert isinstance(self.look, Composed)
        return self.look

    # -- the frame of an operation -------------------------------------------------------------------------------

    def check(self) -> None:
        """Every operation begins here: a failed or poisoned head answers nothing."""
        if self.changing or self.failed is not None:
            self._refuse()

    def _refuse(self) -> None:
        if self.failed is None:
            self.fail("an operation broke off half-way; what it changed was not committed")
        raise MountFailed(
            f"the filesystem has failed: {self.failed}",
            hint="unmount and mount it again: it comes back as it was last durable",
        )

    def begin_change(self) -> None:
        """From here to `end_change` nothing may fail."""
        self.changing = True
        if not self.dirty:
            self.dirty = True
            self.dirty_since_ns = self.clock()

    def end_change(self, operation: Operation | None = None, payload_bytes: int = 0) -> None:
        """The change is whole; `operation`, with so much payload, does it again.  Without one, only a commit makes it
        durable."""
        self.changing = False
        unlogged = self.unlogged
        if unlogged is not None:
            self.unlogged_bytes += payload_bytes
            if (
                operation is None
                or len(unlogged) == limits.REDO_OPERATIONS_MAX
                or self.unlogged_bytes > limits.REDO_PAYLOAD_BYTES_MAX
            ):
                self.unlogged = None
            else:
                unlogged.append(operation)

    def end_invisible_change(self) -> None:
        """As `end_change`, of what a crash may take back because nobody sees it: work in the background."""
        self.changing = False

    def fail(self, reason: str) -> None:
        """The head answers nothing from now on; the first reason stays."""
        if self.failed is None:
            self.failed = reason

    def report_drift(self, what: str, by: int) -> None:
        self._note(f"counter {what} would be {by}")

    def report(self, line: str) -> None:
        """Something is not as it must be, and the head goes on: it is in `drift`, and in the log, once."""
        if line not in self._told:
            self._told.add(line)
            self._note(line)

    def _note(self, line: str) -> None:
        if len(self.drift) < DRIFT_MAX:
            self.drift.append(line)
            log.error("%s", line)

    def counted(self, what: str, value: int) -> int:
        """What the counter `what` becomes: `value`, or zero where it would be negative, which is reported."""
        if value < 0:
            self.report_drift(what, value)
            return 0
        return value

    # -- inodes ----------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> Epoch:
        return self.counters.epoch

    def epoch_of(self, ino: int) -> Epoch:
        """The epoch at which the inode is written: an orphan's is that of its unlink."""
        return self.orphans.get(ino, self.counters.epoch) if self.orphans else self.counters.epoch

    def inode(self, ino: int) -> Inode:
        """The inode as it stands; `Stale` if there is none."""
        found = self.inodes.get(ino)
        if found is not None:
            return found
        if ino in self.buried or ino >= self.first_ino:
            raise Stale(f"inode {ino} is gone")
        loaded = reads.inode_at(self.look, ino, self.epoch_of(ino))
        if loaded is None:
            raise Stale(f"inode {ino} is gone")
        self.inodes[ino] = loaded
        return loaded

    def directory(self, ino: int) -> Inode:
        inode = self.inode(ino)
        if inode.mode & S_IFMT != S_IFDIR:
            raise NotADirectory(f"inode {ino} is not a directory")
        return inode

    def touch(self, inode: Inode) -> None:
        """The inode has changed."""
        ino = inode.ino
        if ino not in self.dirty_inodes:
            self.dirty_inodes.add(ino)
            self.inodes[ino] = inode
            self.dirty_rows += 2

    @property
    def uncommitted_bytes(self) -> int:
        """What of payload the next commit will charge, at most."""
        return self.dirty_bytes + self.flushed_bytes

    def check_inos(self, more: int = 0) -> None:
        """`LimitReached` where no inode number is left, or none may be used after `more`; before the first change."""
        most = self.inodes_max
        if most and self.counters.inodes + more >= most:
            raise QuotaExceeded(
                f"the filesystem has {self.counters.inodes} inodes, and inode_quota is {most}",
                hint="remove files, or raise it: tzfs set inode_quota=",
            )
        if self.counters.next_ino > limits.INO_MAX:
            raise LimitReached(
                f"all {limits.INO_MAX} inode numbers of the filesystem have been given",
                hint="numbers are never given twice: copy what it has into a new filesystem",
            )

    def new_ino(self) -> Ino:
        """The next inode number, after `check_inos`."""
        ino = self.counters.next_ino
        self.counters.next_ino = Ino(ino + 1)
        return ino

    def new_data(self) -> DataId:
        data = self.counters.next_data
        self.counters.next_data = DataId(data + 1)
        return data


def check_name(name: bytes) -> None:
    """A name as a directory entry can have it."""
    if len(name) > limits.NAME_BYTES_MAX:
        raise NameTooLong(f"name of {len(name)} bytes; the limit is {limits.NAME_BYTES_MAX}")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidArgument(f"{name!r} cannot be the name of a directory entry")
