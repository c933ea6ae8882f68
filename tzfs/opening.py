"""Opening one filesystem's folder: for writing, with its lease and engine, or one snapshot of it for reading.

A `Writer` holds the lease from before it looks at anything until after everything is closed; there is one at a time, in
one process.  A `Reader` holds a file in `views/`, which keeps its snapshot from being destroyed, and coexists with a
writer anywhere.  What fails on the way in gives back all that was taken: descriptors, environments, locks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Self

from tzfs import failpoints, limits
from tzfs.engine.accounting import Accounts
from tzfs.engine.beginning import format_clone
from tzfs.engine.bookmarks import read_bookmarks
from tzfs.engine.cloning import kinds_of
from tzfs.engine.committed import read_counters, read_superblock
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.inherited import NOTHING, read_cursor, read_through
from tzfs.engine.journal import read_log
from tzfs.engine.partial import Partial, read_partial
from tzfs.engine.quotas import Claim
from tzfs.engine.rollback import inodes_changed
from tzfs.engine.snapshots import read_snapshots
from tzfs.engine.view import View
from tzfs.errors import CorruptionError, ForeignStore, LimitReached, NotFound, no_snapshot
from tzfs.format.counters import Counters
from tzfs.format.log import Entry
from tzfs.format.records import Bookmark, Snapshot
from tzfs.format.superblock import Origin
from tzfs.layout import META, SEGMENTS
from tzfs.origins import open_ancestry, open_tables, origin_of
from tzfs.store.interface import ReadTransaction
from tzfs.store.lease import Lease, ViewHold, beginning_to_read, no_new_readers
from tzfs.store.lmdb_compaction import discard
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.redo import REDO_FILE, RedoLog
from tzfs.store.segments import Segments

failpoints.declare("writer.lease", "the lease is taken, nothing is open")
failpoints.declare("writer.meta", "the tables are open, the payload is not")
failpoints.declare("writer.payload", "tables and payload are open, the engine is not")
failpoints.declare("reader.hold", "the snapshot is protected, its payload is not open")


def format_filesystem(directory: Path, guid: bytes, *, uid: int | None = None, gid: int | None = None) -> None:
    """Writes an empty filesystem into `directory`, which exists and is empty; its root belongs to `uid` and `gid`."""
    meta = LmdbMeta(directory / META, create=True)
    try:
        Engine.format(
            meta,
            guid=guid,
            now_ns=time.time_ns(),
            uid=os.getuid() if uid is None else uid,
            gid=os.getgid() if gid is None else gid,
        )
    finally:
        meta.close()
    Segments(directory / SEGMENTS, guid=guid, create=True).close()


def format_clone_of(source: Reader, into: Path, guid: bytes, *, partition: int) -> None:
    """Writes a clone of the snapshot that `source` reads, in the filesystem of that partition, into `into`.

    `LimitReached` where that is a clone of so many clones already that none may be added.
    """
    if source.depth >= limits.CLONE_DEPTH_MAX:
        raise LimitReached(
            f"the snapshot is of a clone {source.depth} times over, which is as deep as look-ups go",
            hint="make that filesystem independent first: tzfs flatten",
        )
    txn = source.meta.begin_read()
    try:
        superblock, counters = read_superblock(txn), read_counters(txn)
    finally:
        txn.close()
    snapshot = source.view.snapshot
    link = Origin(
        superblock.guid, partition, snapshot.guid.hex(), snapshot.epoch, counters.next_ino, counters.next_data
    )
    meta = LmdbMeta(into / META, create=True)
    try:
        format_clone(meta, guid=guid, now_ns=time.time_ns(), origin=link, kinds=kinds_of(snapshot))
    finally:
        meta.close()
    Segments(into / SEGMENTS, guid=guid, create=True).close()


def _check_guid(directory: Path, found: str, guid: bytes) -> None:
    if found != guid.hex():
        raise ForeignStore(
            f"{directory} holds filesystem {found}, the catalog expects {guid.hex()}",
            hint="the folder was moved or copied from another store",
        )


def _check_superblock(meta: LmdbMeta, directory: Path, guid: bytes) -> None:
    """Before anything is written: it is the filesystem that is meant, and one that this tzfs may write."""
    txn = meta.begin_read()
    try:
        superblock = read_superblock(txn)
    finally:
        txn.close()
    superblock.check(for_writing=True)
    _check_guid(directory, superblock.guid, guid)


def _redo(directory: Path, guid: bytes) -> None:
    """Does what a writer that crashed has left in the redo log, for somebody who only reads; under the lease."""
    with ExitStack() as stack:
        meta = open_tables(directory)
        stack.callback(meta.close)
        log = RedoLog(directory / REDO_FILE, guid, readonly=True)
        stack.callback(log.close)
        if not log.pending(meta.commit_number):
            return
    with ExitStack() as stack:
        meta = LmdbMeta(directory / META)
        stack.callback(meta.close)
        _check_superblock(meta, directory, guid)
        payload = Segments(directory / SEGMENTS, guid=guid)
        stack.callback(payload.close)
        log = RedoLog(directory / REDO_FILE, guid)
        stack.callback(log.close)
        Engine(meta, payload, redo=log, ancestry=open_ancestry(directory, origin_of(meta), stack)).close()


class Writer:
    """One filesystem open for writing: `engine` does the work, `lease` says who may."""

    def __init__(
        self, directory: Path, guid: bytes, *, lease: Lease, settings: Settings, receiving: bool = False
    ) -> None:
        """Takes over the lease, and releases it also where opening fails.  `receiving`: as for `Engine`."""
        with ExitStack() as stack:
            self.lease = lease
            stack.callback(lease.release)
            self._ended: Callable[[], None] = lambda: None
            stack.callback(self._tell_ended)
            failpoints.hit("writer.lease")
            discard(directory / META)
            meta = LmdbMeta(directory / META)
            stack.callback(meta.close)
            _check_superblock(meta, directory, guid)
            failpoints.hit("writer.meta")
            payload = Segments(directory / SEGMENTS, guid=guid)
            stack.callback(payload.close)
            failpoints.hit("writer.payload")
            redo = RedoLog(directory / REDO_FILE, guid)
            stack.callback(redo.close)
            ancestry = open_ancestry(directory, origin_of(meta), stack)
            self.engine = Engine(
                meta,
                payload,
                redo=redo,
                settings=settings,
                disk=_free(directory),
                ancestry=ancestry,
                receiving=receiving,
            )
            stack.callback(self.engine.close)
            self.engine.destroyer.readers = partial(no_new_readers, directory)
            self._stack = stack.pop_all()
        self.directory = directory
        self.meta, self.payload = meta, payload

    def share(self, claim: Claim, ended: Callable[[], None]) -> None:
        """The engine shares the store's quota by `claim`; `ended` is called when it has ended, before the lease is
        released."""
        self._ended = ended
        self.engine.share(claim)

    def _tell_ended(self) -> None:
        self._ended()

    def close(self) -> None:
        """Commits, unless the engine has failed, and gives everything back; the lease last."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Reader:
    """One snapshot open for reading: `view` has the calls; `meta` and `payload` are the filesystem's."""

    def __init__(
        self, directory: Path, guid: bytes, snapshot: str, told: Mapping[str, str] | None = None, *, of: str = ""
    ) -> None:
        """`told` says to others what for, `of` is the filesystem's name in messages.

        Raises `NotFound` where there is no such snapshot.

        `meta` and `payload` read through to the origins of a clone; `depth` is how many there are.
        """
        with ExitStack() as stack:
            meta = stack.enter_context(closing(open_tables(directory)))
            record = self._find(directory, meta, guid, snapshot, of)
            with beginning_to_read(directory):
                hold = ViewHold.acquire(directory, name=snapshot, epoch=record.epoch, info=told)
                stack.callback(hold.release)
                failpoints.hit("reader.hold")
                record = self._find(directory, meta, guid, snapshot, of)  # it may have gone before it was held
            payload = Segments(directory / SEGMENTS, guid=guid, readonly=True)
            stack.callback(payload.close)
            ancestry = open_ancestry(directory, origin_of(meta), stack)
            self._stack = stack.pop_all()
        self.depth = 0 if ancestry is None else ancestry.depth
        self.meta, self.payload = read_through(meta, payload, ancestry)
        self.view = View(self.meta, self.payload, snapshot, record)

    @staticmethod
    def _find(directory: Path, meta: LmdbMeta, guid: bytes, snapshot: str, of: str) -> Snapshot:
        txn = meta.begin_read()
        try:
            superblock = read_superblock(txn)
            superblock.check(for_writing=False)
            _check_guid(directory, superblock.guid, guid)
            found = read_snapshots(txn).get(snapshot)
        finally:
            txn.close()
        if found is None:
            raise no_snapshot(of, snapshot) if of else NotFound(f"no snapshot {snapshot!r}")
        return found

    def close(self) -> None:
        """Gives everything back."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Committed:
    """The tables and the payload of a filesystem as it was last committed, open for reading; for whoever has its
    lease.  Nothing in them has been looked at.

    With `redo=False` for anybody: what a crash has left in the redo log is then left there.
    """

    def __init__(self, directory: Path, guid: bytes, *, redo: bool = True) -> None:
        with ExitStack() as stack:
            if redo:
                _redo(directory, guid)
            meta = stack.enter_context(closing(open_tables(directory)))
            payload = Segments(directory / SEGMENTS, guid=guid, readonly=True)
            stack.callback(payload.close)
            ancestry = open_ancestry(directory, origin_of(meta), stack)
            self.meta, self.payload = read_through(meta, payload, ancestry)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class HeadReader:
    """A filesystem that nobody writes, open for reading as it was last committed, with its snapshots.

    It holds the lease, so that nobody begins to write, archive or destroy it meanwhile.
    """

    def __init__(self, directory: Path, guid: bytes, *, lease: Lease) -> None:
        """Takes over the lease, and releases it also where opening fails."""
        with ExitStack() as stack:
            self.lease = lease
            stack.callback(lease.release)
            self.committed = committed = stack.enter_context(Committed(directory, guid))
            txn = committed.meta.begin_read()
            try:
                superblock = read_superblock(txn)
                superblock.check(for_writing=False)
                _check_guid(directory, superblock.guid, guid)
                counters, self._snapshots = read_counters(txn), read_snapshots(txn)
            finally:
                txn.close()
            self._stack = stack.pop_all()
        head = Snapshot(counters.epoch, guid, 0, counters.txg, counters.inodes, counters.bytes)
        self.tree = View(self.committed.meta, self.committed.payload, "", head)

    def snapshots(self) -> dict[str, Snapshot]:
        """All snapshots by name, oldest first."""
        return dict(self._snapshots)

    def view(self, name: str) -> View:
        """A snapshot's tree; `NotFound`."""
        if name not in self._snapshots:
            raise NotFound(f"no snapshot {name!r}")
        return View(self.committed.meta, self.committed.payload, name, self._snapshots[name])

    def close(self) -> None:
        """Gives everything back; the lease last."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class CommittedState:
    """A filesystem as last committed."""

    counters: Counters
    snapshots: dict[str, Snapshot]
    sums: Accounts | CorruptionError
    partial: Partial | None  # of a receive that was cut

    @property
    def accounts(self) -> Accounts:
        """What it is charged; `CorruptionError` where a record of these is damaged, which matters to nothing else."""
        if isinstance(self.sums, CorruptionError):
            raise self.sums
        return self.sums


@contextmanager
def _last_commit(directory: Path) -> Iterator[ReadTransaction]:
    """The tables as last committed, without a lease, whether or not there is a writer."""
    with closing(open_tables(directory)) as meta, closing(meta.begin_read()) as txn:
        yield txn


def committed_state(directory: Path) -> CommittedState:
    """Looks without a lease, whether or not there is a writer."""
    with _last_commit(directory) as txn:
        superblock = read_superblock(txn)
        superblock.check(for_writing=False)
        counters, snapshots = read_counters(txn), read_snapshots(txn)
        sums: Accounts | CorruptionError
        try:
            sums = Accounts(txn, snapshots, counters.epoch)
            if superblock.origin is not None:
                sums.above = cache(partial(_referenced, directory, superblock.origin))
        except CorruptionError as error:
            sums = error
        return CommittedState(counters, snapshots, sums, read_partial(txn))


def _referenced(directory: Path, origin: Origin) -> tuple[int, int]:
    """What the snapshot refers to that the clone in `directory` came from, and logically.

    0 where that has gone since, or cannot be read: that is for whoever asks about it.
    """
    try:
        above = committed_state(directory.parent / f"{origin.partition:016x}")
        accounts = above.accounts
    except (NotFound, ForeignStore, CorruptionError):
        return 0, 0
    for name, record in above.snapshots.items():
        if record.guid.hex() == origin.snapshot:
            return accounts.referenced(name), accounts.referenced(name, logical=True)
    return 0, 0


def committed_snapshots(directory: Path) -> dict[str, Snapshot]:
    """The snapshots as last committed, without a lease.

    It reads what `HeadReader` reads of a filesystem as a whole, and nothing else: what is damaged beyond that does not
    keep anybody from mounting it read-only.
    """
    with _last_commit(directory) as txn:
        read_superblock(txn).check(for_writing=False)
        read_counters(txn)
        return read_snapshots(txn)


def committed_points(directory: Path) -> tuple[dict[str, Snapshot], dict[str, Bookmark]]:
    """The snapshots and the bookmarks as last committed, without a lease; what `committed_state` has, and no sums."""
    with _last_commit(directory) as txn:
        read_superblock(txn).check(for_writing=False)
        return read_snapshots(txn), read_bookmarks(txn)


def committed_flattening(directory: Path) -> bool:
    """Whether a clone is being flattened, or has been, as committed; looks without a lease."""
    with _last_commit(directory) as txn:
        cursor, under_way = read_cursor(txn)
        return under_way or cursor != NOTHING


def committed_changes(directory: Path, snapshot: int) -> int:
    """How many inodes have changed since the epoch of a snapshot, as committed; looks without a lease."""
    with _last_commit(directory) as txn:
        return inodes_changed(txn, snapshot, read_counters(txn).epoch)


def committed_log(directory: Path, limit: int | None = None) -> list[Entry]:
    """The newest entries of the log as last committed, the newest first, without a lease."""
    with _last_commit(directory) as txn:
        read_superblock(txn).check(for_writing=False)
        return [*islice(read_log(txn), limit)]


def _free(directory: Path) -> Callable[[], tuple[int, int]]:
    def ask() -> tuple[int, int]:
        disk = os.statvfs(directory)
        return disk.f_bavail * disk.f_frsize, disk.f_bfree * disk.f_frsize

    return ask
