"""The LMDB environments that this process has open: found, shared, mapped, closed.

It owns what LMDB leaves to its users: that a file is not opened twice in a process (its locks are POSIX locks, which
the first close would drop: the same file opened again shares the environment, by reference count), that nothing of it
is used across a fork, that stale readers are reaped, that a file which was cut short or copied while in use is refused
before it is mapped (`lmdb_pages`, `place`), and that blocks are there ahead of need on a disk that fills up.

An `Environment` is opened by `acquire` for each of its users and closed by the last `release`.  Transactions are not
made here (`lmdb_store`).

What is fixed here: the 0.9 engine; every commit synced; no WRITEMAP; a map of `MAP_BYTES`, which costs address
space alone and is never resized; directory 0700, files 0600.  `lock.mdb` is never opened here while its environment is
open, because closing it would drop the environment's locks.  Before, it is given all its blocks: LMDB maps it as a
hole, and a page of that for which a full disk has no block is a SIGBUS.

Errors: a file that is not ours is `ForeignStore`, and `TablesLost` where it is none of LMDB's, or has not even `sys`;
pages that are not what they must be are `CorruptionError`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import lmdb

from tzfs.errors import (
    Busy,
    CorruptionError,
    ForeignStore,
    InternalError,
    NoSpace,
    ReadOnly,
    StoreError,
    TablesLost,
    TzfsError,
    from_os_error,
)
from tzfs.failpoints import declare, hit
from tzfs.format.keys import Table
from tzfs.limits import MAP_BYTES
from tzfs.store import folders, lmdb_pages, place, space

READERS_MAX: Final = 512  # 64 bytes of lock.mdb each; a process that browses snapshots needs a few
RESERVE_KEPT_BYTES: Final = 256 << 10  # 64 pages: opening, and two commits of a few rows each in trees of depth 3
LOCK_BYTES_MAX: Final = 1 << 20  # of a longer file more is not given blocks: nobody has so many readers
LOCK_BYTES: Final = (READERS_MAX - 1) * 64 + 192  # what LMDB makes of lock.mdb: the first reader's slot is in the 192
DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
ROOT_BYTES: Final = 2 * os.sysconf("SC_PAGE_SIZE")  # what every file of LMDB has
SLOTS: Final = max(Table) + 1
_FULL_BELOW_BYTES: Final = 1 << 20  # less than this free after a failed commit: the disk is full

_CREATE_FOLDER: Final = declare("meta.create.folder", "before the tables' folder is made")
_CREATE_SYNC: Final = declare("meta.create.sync", "the tables are there; their folder is not yet synced")
_OPEN_CHECK: Final = declare("meta.open.check", "before the file is looked at")
_OPEN_LOCK: Final = declare("meta.open.lock", "the file is sound; before the lock file is given its blocks")
_OPEN_MAP: Final = declare("meta.open.map", "before the file is mapped")
_OPEN_TABLES: Final = declare("meta.open.tables", "mapped; before the tables are opened or made")
_OPEN_READERS: Final = declare("meta.open.readers", "tables open; before stale readers are reaped")
_CLOSE: Final = declare("meta.close", "before the environment is closed")


class Environment:
    """One open environment of this process, shared by every `LmdbMeta` on the same file."""

    def __init__(
        self, env: lmdb.Environment, dbs: list[lmdb._Database | None], directory: Path, fd: int, *, readonly: bool
    ) -> None:
        self.env = env
        self.dbs = dbs
        self.directory = directory
        self.fd = fd  # data.mdb, for fallocate and fstat
        stat = os.fstat(fd)
        self.key = (stat.st_dev, stat.st_ino)
        self.readonly = readonly  # as long as only readers want it
        self.mark: place.PlaceMark | None = None
        self.users = 0
        self.writer: object | None = None  # the write transaction that is open
        self._end = 0
        self._end_for: object | None = None  # the write transaction that it was asked for
        self.reserved_end = 0  # data.mdb has blocks up to here
        self.reserve_supported = True

    @property
    def end(self) -> int:
        """Where the last committed page ends.  While we have the write transaction it stays where it is."""
        if self.writer is None or self.writer is not self._end_for:
            self._end = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
            self._end_for = self.writer
        return self._end

    def reserve(self, nbytes: int) -> bool:
        """Blocks for `nbytes` behind the last page, and for pages before it that were never written."""
        end = self.end
        begin = min(end, os.fstat(self.fd).st_size)
        kept_end = max(self.reserved_end, end + RESERVE_KEPT_BYTES)
        if not space.reserve_or_leave(self.fd, begin, end + nbytes, kept_end=kept_end):
            return False
        self.reserved_end = max(self.reserved_end, end + nbytes)
        return True

    @property
    def full(self) -> bool:
        """Whether the disk has no room for more; asked of the disk, whose free blocks may not be for us."""
        try:
            return not self.reserve(_FULL_BELOW_BYTES) and space.free_bytes(self.fd) < _FULL_BELOW_BYTES
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)

    def slack(self) -> tuple[int, int]:
        """Bytes of the file, and those of them in pages that have rows; the rest is free pages and their list."""
        page = self.env.stat()["psize"]
        with self.env.begin() as txn:
            stats = [txn.stat(db) for db in (None, *self.dbs) if db is not None] + [self.env.stat()]
            used = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return (self.env.info()["last_pgno"] + 1) * page, ROOT_BYTES + used * page

    def give_up(self) -> None:
        """Closes what nobody is to use."""
        self.env.close()
        os.close(self.fd)

    def close(self) -> None:
        """Gives back the reserve, but for what removing things from a full disk will need; closes everything.

        Whatever fails on the way.
        """
        try:
            if self.mark is not None or self.reserved_end:  # it has written
                with self.env.begin(write=True):  # so that no other process is growing the file
                    if self.reserved_end:
                        space.trim(self.fd)
                    self.reserve(RESERVE_KEPT_BYTES)
        except (OSError, lmdb.Error):
            pass  # it has other blocks than it should until the next close; nothing is lost
        finally:
            self.env.close()
            os.close(self.fd)
            if self.mark is not None:
                self.mark.close()


class User(Protocol):
    """Who acquires environments."""

    def reads(self, environment: Environment, /) -> bool:
        """Whether it has a transaction open on it."""
        ...

    def ended_by_fork(self) -> list[object]:
        """In a forked child: it is over; answers what is the parent's and must be kept."""
        ...


class _Process:
    """What this process has open, by the device and inode of data.mdb, and what it must leave alone."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # opening and closing, one at a time
        self.environments: dict[tuple[int, int], Environment] = {}
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        self.inherited_files: set[tuple[int, int]] = set()
        self.inherited: list[object] = []  # of the parent: kept, because ending them here would end them there

    def after_fork(self) -> None:
        """In the child: whatever the parent has open is the parent's, and the child's objects are over."""
        self.lock = threading.RLock()  # the parent's may be held by a thread that the child does not have
        self.inherited.extend(self.environments.values())
        self.inherited_files.update(self.environments)
        self.environments.clear()
        for user in self.users:
            self.inherited += user.ended_by_fork()
        self.users.clear()


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.after_fork)


def acquire(user: User, path: Path, tables: Sequence[Table], *, create: bool, readonly: bool) -> Environment:
    """The environment of `path`: the one this process has, or a new one.  Released by `release`, once."""
    with _process.lock:
        shared = _acquire(path, tables, create=create, readonly=readonly)
    _process.users.add(user)
    return shared


def release(shared: Environment) -> None:
    """One user less; the last one closes it."""
    with _process.lock:
        _release(shared)


def _acquire(path: Path, tables: Sequence[Table], *, create: bool, readonly: bool) -> Environment:
    try:
        hit(_OPEN_CHECK)
        if create and not readonly:
            hit(_CREATE_FOLDER)
            with folders.made(path) as lasting:
                shared = _shared_or_new(path, tables, create=True, readonly=False)
                try:
                    hit(_CREATE_SYNC)
                    lasting()
                except BaseException:
                    _release(shared)
                    raise
                return shared
        return _shared_or_new(path, tables, create=False, readonly=readonly)
    except (IsADirectoryError, NotADirectoryError) as error:
        raise TablesLost(f"{path}: no tables of tzfs here, but something else") from error
    except OSError as error:
        raise from_os_error(error, f"{path}: open") from error
    except lmdb.Error as error:
        raise translated(error, f"{path}: open") from error


def _release(shared: Environment) -> None:
    shared.users -= 1
    if shared.users == 0:
        if _process.environments.get(shared.key) is shared:
            del _process.environments[shared.key]
        try:
            hit(_CLOSE)
        finally:
            shared.close()


def _shared_or_new(path: Path, tables: Sequence[Table], *, create: bool, readonly: bool) -> Environment:
    """See `acquire`.  Where a compaction has put another folder in place meanwhile, what was opened is the old one."""
    while True:
        before = _identity(path)
        try:
            shared = _open(path, tables, create=create, readonly=readonly)
        except (OSError, lmdb.Error, TzfsError):
            if before is not None and _identity(path) not in (before, None):
                continue
            raise
        if shared.users > 1 or before is None or _identity(path) == before:
            return shared
        _release(shared)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a folder, or a file, from another under its name."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _open(path: Path, tables: Sequence[Table], *, create: bool, readonly: bool) -> Environment:
    data = path / DATA_FILE
    try:
        stat = data.stat()
    except FileNotFoundError:
        if not create:
            raise TablesLost(f"{path}: no tables of tzfs here") from None
    else:
        if stat.st_size == 0 and not create:
            raise TablesLost(f"{path}: no tables of tzfs here")
        if create and 0 < stat.st_size < ROOT_BYTES:
            os.truncate(data, 0)  # a disk that was full, or a crash, when the two root pages were first written
        if (stat.st_dev, stat.st_ino) in _process.inherited_files:
            raise InternalError(
                f"{path}: open in the process this one forked from, which must close it before it forks"
            )
        if not readonly and not os.access(data, os.W_OK, effective_ids=True):
            raise ReadOnly(f"{path}: the files cannot be written")
        shared = _process.environments.get((stat.st_dev, stat.st_ino))
        if shared is not None:
            if any(shared.dbs[table] is None for table in tables):
                raise InternalError(f"{path}: open in this process with other tables")
            if shared.readonly and not readonly:
                _make_writable(shared, path, tables)
            shared.users += 1
            return shared
    env, dbs = _map(path, tables, create=create, readonly=readonly)
    try:
        fd = os.open(data, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW)
    except BaseException:
        env.close()
        raise
    shared = Environment(env, dbs, path, fd, readonly=readonly)
    shared.users = 1
    _process.environments[shared.key] = shared
    return shared


def _make_writable(shared: Environment, path: Path, tables: Sequence[Table]) -> None:
    """Opens an environment again that only readers wanted until now; they go on with it."""
    if any(user.reads(shared) for user in _process.users):
        raise Busy(f"{path}: being read in this process", hint="close what reads it, and try again")
    fd = os.open(path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    shared.env.close()
    try:
        shared.env, shared.dbs = _map(path, tables, create=False, readonly=False)
    except BaseException:
        os.close(fd)
        shared.env, shared.dbs = _map(path, tables, create=False, readonly=True)
        raise
    os.close(shared.fd)
    shared.fd, shared.readonly = fd, False


def in_use(path: Path) -> bool:
    """Whether a process, this one too, has an environment of the folder open; nothing is made.

    LMDB says so: each process has byte 0 of `lock.mdb` shared.
    """
    with _process.lock:
        file = _identity(path / DATA_FILE)
        if file in _process.environments or any(e.directory == path for e in _process.environments.values()):
            return True  # closing its lock file would drop its locks
        try:
            fd = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
                return False
            raise from_os_error(error, f"{path / LOCK_FILE}: open") from error
        try:
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, folders.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        except OSError as error:
            raise from_os_error(error, f"{path / LOCK_FILE}: look at its locks") from error
        finally:
            os.close(fd)
    return bool(folders.FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


@contextmanager
def opening() -> Iterator[Sequence[User]]:
    """While the context lasts nothing is opened or closed in this process; those who have something open."""
    with _process.lock:
        yield list(_process.users)


def mapped(path: Path, tables: Sequence[Table]) -> Environment:
    """An environment that nobody can acquire, until `take_over` or `give_up`."""
    env, dbs = _map(path, tables, create=False, readonly=False)
    try:
        fd = os.open(path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except BaseException:
        env.close()
        raise
    return Environment(env, dbs, path, fd, readonly=False)


def map_again(shared: Environment, tables: Sequence[Table]) -> None:
    """Opens an environment again that was closed under its users."""
    shared.env, shared.dbs = _map(shared.directory, tables, create=False, readonly=False)


def take_over(shared: Environment, new: Environment) -> None:
    """The users of `shared`, which is closed, go on with the file of `new`, which has come into its place."""
    os.close(shared.fd)
    if shared.mark is not None:
        shared.mark.close()
    del _process.environments[shared.key]
    shared.env, shared.dbs, shared.fd, shared.key = new.env, new.dbs, new.fd, new.key
    shared.mark = shared._end_for = None
    shared.reserved_end = new.reserved_end
    _process.environments[shared.key] = shared


def _map(
    path: Path, tables: Sequence[Table], *, create: bool, readonly: bool
) -> tuple[lmdb.Environment, list[lmdb._Database | None]]:
    """A new environment and its tables; the file is looked at before LMDB maps it, and walked if it is suspect."""
    data = path / DATA_FILE
    suspect = place.suspect(path, data)
    _allocate_lock(path / LOCK_FILE)
    hit(_OPEN_MAP)
    env = lmdb.Environment(
        os.fspath(path),
        map_size=MAP_BYTES,
        subdir=True,
        readonly=readonly,
        mode=0o600,
        create=create,
        max_readers=READERS_MAX,
        max_dbs=len(Table),
        max_spare_txns=1,
        lib_version=0,
    )
    try:
        if suspect:
            _verify(env, data)
        hit(_OPEN_TABLES)
        dbs = _open_tables(env, tables, path, create=create, readonly=readonly)
        hit(_OPEN_READERS)
        env.reader_check()
    except BaseException:
        env.close()
        raise
    return env, dbs


def _allocate_lock(path: Path) -> None:
    """Gives the lock file of an environment that this process does not have open all its blocks; `NoSpace`."""
    try:
        hit(_OPEN_LOCK)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES):
            return  # LMDB does without, or says why not
        raise
    try:
        stat = os.fstat(fd)
        size = max(min(stat.st_size, LOCK_BYTES_MAX), LOCK_BYTES)
        if stat.st_blocks * 512 < size:
            os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def _verify(env: lmdb.Environment, data: Path) -> None:
    """Walks the file as of one commit, which a read transaction keeps from being overwritten."""
    what = os.fspath(data)
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for _ in range(100):
            with env.begin() as txn:
                for meta in lmdb_pages.meta_pages(fd, what):
                    if meta.transaction == txn.id():
                        lmdb_pages.verify(fd, meta, what)
                        return
            # Two commits came between: the root page of this transaction is no longer in the file.
    finally:
        os.close(fd)
    raise StoreError(f"{what}: changes too fast to be checked", hint="try again")


def _open_tables(
    env: lmdb.Environment, tables: Sequence[Table], path: Path, *, create: bool, readonly: bool
) -> list[lmdb._Database | None]:
    # A handle lives on only if its transaction commits, and py-lmdb never really commits a reading one that it was
    # given.  So a writer opens all in one write transaction, and a reader's environment, which must not wait for
    # anybody's write transaction, is open for reading only, where `open_db` makes a transaction that does commit.
    dbs: list[lmdb._Database | None] = [None] * SLOTS
    missing: list[Table] = []
    txn = None if readonly else env.begin(write=True)
    try:
        for table in tables:
            try:
                dbs[table] = env.open_db(table.name.lower().encode(), txn=txn, create=create)
            except lmdb.NotFoundError:
                missing.append(table)
        if Table.SYS in missing:
            raise TablesLost(f"{path}: has no table sys")
        if missing:  # `sys` has the superblock: whose tables these are is not lost, only not for us to say
            raise ForeignStore(
                f"{path}: has no table {missing[0].name.lower()}",
                hint="if another version of tzfs made it, use that one; if it is damaged, restore it from a copy",
            )
        if txn is not None:
            txn.commit()
    finally:
        if txn is not None:
            txn.abort()
    return dbs


_NAMED: Final[tuple[tuple[type[lmdb.Error], type[TzfsError], str], ...]] = (
    (lmdb.MapFullError, NoSpace, "the map is full"),
    (lmdb.VersionMismatchError, ForeignStore, "another version of LMDB wrote it"),
    (lmdb.InvalidError, TablesLost, "not a file of LMDB 0.9"),
    (lmdb.CorruptedError, CorruptionError, "a page is of the wrong kind"),
    (lmdb.PageNotFoundError, CorruptionError, "a page is missing"),
    (lmdb.PanicError, StoreError, "its root page could not be written; it must be opened again"),
    (lmdb.ReadersFullError, StoreError, "too many readers at once"),
    (lmdb.MapResizedError, StoreError, "another program made the map larger than tzfs allows"),
    (lmdb.ReadonlyError, StoreError, "permission denied"),
    (lmdb.MemoryError, StoreError, "no memory, or no address space for one more map (ulimit -v)"),
    (lmdb.LockError, StoreError, "its lock file cannot be locked"),
)


def translated(error: lmdb.Error, what: str) -> TzfsError:
    """An error of LMDB as one of ours."""
    for theirs, ours, why in _NAMED:
        if isinstance(error, theirs):
            return ours(f"{what}: {why}")
    code = getattr(error, "code", 0)
    if code > 0 and code != errno.EINVAL:
        return from_os_error(OSError(code, os.strerror(code)), what)
    return InternalError(f"{what}: {error}")
