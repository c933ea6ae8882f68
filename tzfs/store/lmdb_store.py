"""Tables on disk: one LMDB environment a filesystem, one named sub-database a table.

This is the only module that knows LMDB.  It owns the environments this process has open, and what LMDB leaves to its
users: that a file is not opened twice in a process (its locks are POSIX locks, which the first close would drop: the
same file opened again shares the environment, by reference count), that nothing of it is used across a fork (the child
gets `InternalError`), that stale readers are reaped, that a file which was cut short or copied while in use is refused
before it is mapped (`lmdb_pages`, `place`), and that a commit finds space on a full disk (`reserve`).

States of a `LmdbMeta`: open -> closed.  Of a transaction: open -> over, by `commit`, `close`, or the end of its store;
afterwards each of its methods but `close` raises `InternalError`.

What is fixed here: the 0.9 engine; every commit synced; no WRITEMAP; a map of `MAP_BYTES`, which costs nothing until
used and is never resized; directory 0700, files 0600.  `lock.mdb` is never opened here while its environment is open,
because closing it would drop the environment's locks.  Before, it is given all its blocks: LMDB maps it as a hole, and
a page of that for which a full disk has no block is a SIGBUS.

Errors: a full disk or map is `NoSpace`; LMDB reports a full disk at commit as EIO, so what is free is looked at.
A file that is not ours is `ForeignStore`, pages that are not what they must be are `CorruptionError`.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import lmdb

from tzfs.errors import (
    Busy,
    CorruptionError,
    ForeignStore,
    InternalError,
    NoSpace,
    ReadOnly,
    StoreError,
    TzfsError,
    from_os_error,
)
from tzfs.failpoints import declare, hit
from tzfs.format.keys import EPOCH_MAX, FILESYSTEM_TABLES, Epoch, Table, u64
from tzfs.limits import MAP_BYTES
from tzfs.store import folders, lmdb_pages, place, space
from tzfs.store.interface import KEY_BYTES_MAX, VALUE_BYTES_MAX, Change, Row

READERS_MAX: Final = 512  # 64 bytes of lock.mdb each; a process that browses snapshots needs a few
RESERVE_AHEAD_BYTES: Final = 4 << 20  # 1,000 pages: a few commits of ordinary size
RESERVE_KEPT_BYTES: Final = 256 << 10  # 64 pages: opening, and two commits of a few rows each in trees of depth 3
LOCK_BYTES: Final = (READERS_MAX - 1) * 64 + 192  # what LMDB makes of lock.mdb: the first reader's slot is in the 192
DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
ROOT_BYTES: Final = 2 * os.sysconf("SC_PAGE_SIZE")  # what every file of LMDB has
_INVERTED: Final = struct.Struct(">Q")  # the birth at the end of a versioned key, see `keys.suffix`
_SLOTS: Final = max(Table) + 1
_FULL_BELOW_BYTES: Final = 1 << 20  # less than this free after a failed commit: the disk is full

_CREATE_FOLDER: Final = declare("meta.create.folder", "before the tables' folder is made")
_CREATE_SYNC: Final = declare("meta.create.sync", "the tables are there; their folder is not yet synced")
_OPEN_CHECK: Final = declare("meta.open.check", "before the file is looked at")
_OPEN_LOCK: Final = declare("meta.open.lock", "the file is sound; before the lock file is given its blocks")
_OPEN_MAP: Final = declare("meta.open.map", "before the file is mapped")
_OPEN_TABLES: Final = declare("meta.open.tables", "mapped; before the tables are opened or made")
_OPEN_READERS: Final = declare("meta.open.readers", "tables open; before stale readers are reaped")
_BEGIN: Final = declare("meta.begin", "before a write transaction begins")
_COMMIT: Final = declare("meta.commit", "before LMDB commits")
_COMMITTED: Final = declare("meta.committed", "LMDB has committed, durably; nobody has been told")
_RESERVE: Final = declare("meta.reserve", "before space is reserved")
_CLOSE: Final = declare("meta.close", "before the environment is closed")

if TYPE_CHECKING:
    _Cursor = lmdb.Cursor[bytes]  # generic in its stubs only


class _Cursors(Protocol):
    """Cursors by table number; of a transaction that is over, an object that raises."""

    def __getitem__(self, table: int, /) -> _Cursor | None: ...


class _Over:
    """Stands where the cursors were, so that the hot path needs no check of its own."""

    def __getitem__(self, table: int, /) -> _Cursor | None:
        raise InternalError("the transaction is over")


_OVER: Final = _Over()


class _Environment:
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
        self.writer: LmdbWrite | None = None
        self.reserved_end = 0  # data.mdb has blocks up to here
        self.reserve_supported = True

    @property
    def end(self) -> int:
        """Where the last committed page ends."""
        return (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]

    def reserve(self, nbytes: int) -> bool:
        """Blocks for `nbytes` behind the last page, and for pages before it that were never written."""
        end = self.end
        begin = min(end, os.fstat(self.fd).st_size)
        if not space.reserve(self.fd, begin, end + nbytes - begin):
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

    def close(self) -> None:
        """Gives back the reserve, but for what removing things from a full disk will need; closes everything.

        Whatever fails on the way.
        """
        try:
            if not self.readonly:
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


class _Process:
    """What this process has open, by the device and inode of data.mdb, and what it must leave alone."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # opening and closing, one at a time
        self.environments: dict[tuple[int, int], _Environment] = {}
        self.metas: weakref.WeakSet[LmdbMeta] = weakref.WeakSet()
        self.inherited_files: set[tuple[int, int]] = set()
        self.inherited: list[object] = []  # of the parent: kept, because ending them here would end them there

    def after_fork(self) -> None:
        """In the child: whatever the parent has open is the parent's, and the child's objects are over."""
        self.lock = threading.RLock()  # the parent's may be held by a thread that the child does not have
        self.inherited.extend(self.environments.values())
        self.inherited_files.update(self.environments)
        self.environments.clear()
        for meta in self.metas:
            meta._shared = None
            for transaction in meta._transactions:
                transaction._cursors = _OVER
                self.inherited.append(transaction._txn)
            meta._transactions.clear()
        self.metas.clear()


_process: Final = _Process()
os.register_at_fork(after_in_child=_process.after_fork)


class LmdbRead:
    """A read transaction; also what a write transaction reads with."""

    def __init__(self, meta: LmdbMeta, shared: _Environment, *, write: bool = False) -> None:
        self._meta = meta
        self._dbs = shared.dbs
        self._cursors: _Cursors = _OVER
        self._txn = shared.env.begin(write=write)
        self._made: list[_Cursor | None] = [None] * _SLOTS
        self._cursors = self._made  # until the transaction is over

    def _cursor(self, table: Table) -> _Cursor:
        db = self._dbs[table]
        if db is None:
            raise InternalError(f"table {table.name.lower()} is not one of this store's")
        try:
            cursor = self._made[table] = self._txn.cursor(db)
        except lmdb.Error as error:
            raise _translated(error, f"read {table.name.lower()}") from error
        return cursor

    def get(self, table: Table, key: bytes) -> bytes | None:
        cursor = self._cursors[table] or self._cursor(table)
        try:
            return cursor.get(key)
        except lmdb.Error as error:
            raise _translated(error, f"read {table.name.lower()}") from error

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        # One by one on one cursor (240 ns each) beats cursor.getmulti, which leaves the missing ones out (870 ns with
        # the dict that finds them again).
        get = (self._cursors[table] or self._cursor(table)).get
        try:
            return [get(key) for key in keys]
        except lmdb.Error as error:
            raise _translated(error, f"read {table.name.lower()}") from error

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        cursor = self._cursors[table] or self._cursor(table)
        try:
            if not cursor.set_range(prefix + u64(EPOCH_MAX - epoch)):
                return None
            key, value = cursor.item()
            if key[:-8] != prefix:
                return None
            (inverted,) = _INVERTED.unpack_from(key, len(prefix))
            return EPOCH_MAX - inverted, value
        except lmdb.Error as error:
            raise _translated(error, f"read {table.name.lower()}") from error

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        cursor = self._cursors[table] or self._cursor(table)
        found: list[tuple[Epoch, bytes] | None] = []
        suffix = u64(EPOCH_MAX - epoch)
        before = last = b""  # the previous target, and the key the cursor found for it; empty: nowhere
        far = 0  # a step to the next row was in vain: search for the next so many
        try:
            for prefix in prefixes:
                target = prefix + suffix
                key = b""
                if last and before < target:
                    if target <= last:
                        key = last  # nothing lies between the two targets
                    elif far:
                        far -= 1
                    elif not cursor.next():
                        found.append(None)
                        last = b""
                        continue
                    elif (key := cursor.key()) < target:
                        key, far = b"", 8
                if not key and cursor.set_range(target):
                    key = cursor.key()
                before, last = target, key
                if key[:-8] == prefix:
                    (inverted,) = _INVERTED.unpack_from(key, len(prefix))
                    found.append((EPOCH_MAX - inverted, cursor.value()))
                else:
                    found.append(None)
        except lmdb.Error as error:
            raise _translated(error, f"read {table.name.lower()}") from error
        return found

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        self._cursors[table] or self._cursor(table)
        db = self._dbs[table]
        assert db is not None
        return self._rows(db, start, stop, reverse=reverse)

    def _rows(self, db: lmdb._Database, start: bytes, stop: bytes | None, *, reverse: bool) -> Iterator[Row]:
        # A cursor of its own: the shared one moves with every look-up between two rows.
        try:
            self._cursors[0]  # raises if the transaction ended before the first row was asked for
            with self._txn.cursor(db) as cursor:
                if not reverse:
                    if not cursor.set_range(start):
                        return
                    for row in cursor.iternext():
                        if stop is not None and row[0] >= stop:
                            return
                        yield row
                    return
                beyond = stop is None or not cursor.set_range(stop)
                if cursor.last() if beyond else cursor.prev():
                    for row in cursor.iterprev():
                        if row[0] < start:
                            return
                        yield row
        except lmdb.Error as error:
            if self._cursors is _OVER:
                raise InternalError("the transaction is over") from error
            raise _translated(error, "read a range") from error

    def close(self) -> None:
        if self._cursors is not _OVER:
            self._cursors = _OVER
            self._meta._transactions.discard(self)
            self._txn.abort()


class LmdbWrite(LmdbRead):
    """The write transaction.  It holds LMDB's writer lock until it is over."""

    def __init__(self, meta: LmdbMeta, shared: _Environment) -> None:
        super().__init__(meta, shared, write=True)
        self._shared = shared
        self._thread = threading.get_ident()
        self._changes: list[Change] | None = None

    def record(self, changes: list[Change] | None) -> None:
        self._changes = changes

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self._cursors[table] or self._cursor(table)
        if len(value) > VALUE_BYTES_MAX:
            raise _out_of_bounds(table, key, value)
        try:
            self._txn.put(key, value, True, True, False, self._dbs[table])
            if self._changes is not None:
                self._changes.append((table, key, value))
        except lmdb.BadValsizeError as error:
            raise _out_of_bounds(table, key, value) from error
        except lmdb.Error as error:
            raise self._meta._failed(error, f"put into {table.name.lower()}") from error

    def put_many(self, table: Table, rows: Sequence[Row]) -> None:
        cursor = self._cursors[table] or self._cursor(table)
        for key, value in rows:
            if len(value) > VALUE_BYTES_MAX or not 0 < len(key) <= KEY_BYTES_MAX:
                raise _out_of_bounds(table, key, value)
        try:
            cursor.putmulti(rows)
            if self._changes is not None:
                self._changes += [(table, key, value) for key, value in rows]
        except lmdb.Error as error:
            raise self._meta._failed(error, f"put into {table.name.lower()}") from error

    def delete(self, table: Table, key: bytes) -> bool:
        self._cursors[table] or self._cursor(table)
        try:
            if self._changes is not None:
                self._changes.append((table, key, None))
            return self._txn.delete(key, b"", self._dbs[table])
        except lmdb.Error as error:
            raise self._meta._failed(error, f"delete from {table.name.lower()}") from error

    def delete_many(self, table: Table, keys: Sequence[bytes]) -> None:
        self._cursors[table] or self._cursor(table)
        delete, db = self._txn.delete, self._dbs[table]
        try:
            if self._changes is not None:
                self._changes += [(table, key, None) for key in keys]
            for key in keys:
                delete(key, b"", db)
        except lmdb.Error as error:
            raise self._meta._failed(error, f"delete from {table.name.lower()}") from error

    def commit(self) -> None:
        self._cursors[0]  # raises if the transaction is over
        self._check_thread()
        try:
            hit(_COMMIT)
            self._cursors = _OVER
            self._txn.commit()
            hit(_COMMITTED)
        except lmdb.Error as error:
            raise self._meta._failed(error, "commit") from error
        except OSError as error:
            raise from_os_error(error, "commit") from error
        finally:
            self._end()

    def close(self) -> None:
        if self._cursors is not _OVER:
            self._check_thread()
            self._end()

    def _end(self) -> None:
        """The transaction is over, committed or not."""
        self._cursors = _OVER
        self._meta._transactions.discard(self)
        self._txn.abort()  # nothing, after a commit
        self._shared.writer = None
        if self._shared.mark is not None:
            with suppress(OSError):  # the next transaction marks it again; until then a copy would be refused
                self._shared.mark.idle()

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise InternalError("a write transaction stays on the thread that began it")


class LmdbMeta:
    """The tables of one filesystem, or of the catalog, in the folder `path`.

    `create` makes the folder and the tables where they are not there yet, durably; without it, a folder without tables
    is `ForeignStore`.  `readonly` refuses write transactions.  Close it: it holds descriptors and a reference.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tables: Sequence[Table] = FILESYSTEM_TABLES,
        create: bool = False,
        readonly: bool = False,
    ) -> None:
        self.path = Path(path)
        self.readonly = readonly
        self._transactions: set[LmdbRead] = set()
        with _process.lock:
            self._shared: _Environment | None = _acquire(self.path, tables, create=create, readonly=readonly)
        _process.metas.add(self)

    @property
    def bytes_on_disk(self) -> int:
        shared = self._open()
        return min(os.fstat(shared.fd).st_blocks * 512, shared.end)

    @property
    def reserve_supported(self) -> bool:
        return self._open().reserve_supported

    @property
    def commit_number(self) -> int:
        return int(self._open().env.info()["last_txnid"])

    def begin_read(self) -> LmdbRead:
        try:
            transaction = LmdbRead(self, self._open())
        except lmdb.Error as error:
            raise _translated(error, f"{self.path}: begin reading") from error
        self._transactions.add(transaction)
        return transaction

    def begin_write(self) -> LmdbWrite:
        shared = self._open()
        if self.readonly:
            raise ReadOnly(f"{self.path}: open for reading only")
        if shared.writer is not None:
            raise InternalError(f"{self.path}: a write transaction is already open")
        try:
            hit(_BEGIN)
            if shared.mark is None:
                shared.mark = place.PlaceMark(shared.directory, shared.key[1])
            transaction = LmdbWrite(self, shared)
        except lmdb.Error as error:
            raise _translated(error, f"{self.path}: begin writing") from error
        except OSError as error:
            raise from_os_error(error, f"{self.path}: begin writing") from error
        shared.writer = transaction
        self._transactions.add(transaction)
        try:
            shared.mark.writing()
        except OSError as error:
            transaction.close()
            raise from_os_error(error, f"{self.path}: begin writing") from error
        return transaction

    def reserve(self, nbytes: int) -> None:
        shared = self._open()
        if self.readonly:
            raise ReadOnly(f"{self.path}: open for reading only")
        if shared.end + nbytes <= shared.reserved_end:
            return
        try:
            hit(_RESERVE)
            # More than asked, so that the next commits need no call; no more, where only that is left.
            for ahead in (nbytes + min(nbytes, RESERVE_AHEAD_BYTES), nbytes):
                try:
                    if shared.reserve_supported and shared.reserve(ahead):
                        return
                except OSError as error:
                    if ahead == nbytes or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                else:
                    break
            shared.reserve_supported = False
            if space.free_bytes(shared.fd) < nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise from_os_error(error, f"{self.path}: reserve {nbytes} bytes") from error

    def readers(self) -> int:
        # LMDB's own table, so that a leak below this module would show: "pid thread txn", "-" for a slot at rest.
        lines = (line.split() for line in self._open().env.readers().splitlines())
        return sum(len(line) == 3 and line[0] == str(os.getpid()) and line[2] != "-" for line in lines)

    def close(self) -> None:
        shared = self._shared
        if shared is None:
            return
        for transaction in list(self._transactions):
            transaction.close()
        self._shared = None
        with _process.lock:
            try:
                _release(shared)
            except OSError as error:
                raise from_os_error(error, f"{self.path}: close") from error

    def _open(self) -> _Environment:
        if self._shared is None:
            raise InternalError(f"{self.path}: the store is closed, or was opened by the process this one forked from")
        return self._shared

    def _failed(self, error: lmdb.Error, what: str) -> TzfsError:
        """As `_translated`; EIO on a full disk is what LMDB says of it."""
        what = f"{self.path}: {what}"
        if getattr(error, "code", 0) == errno.EIO and self._shared is not None and self._shared.full:
            return from_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), what)
        return _translated(error, what)


def _acquire(path: Path, tables: Sequence[Table], *, create: bool, readonly: bool) -> _Environment:
    """The environment of `path`: the one this process has, or a new one.  Called under the registry's lock."""
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
    except OSError as error:
        raise from_os_error(error, f"{path}: open") from error
    except lmdb.Error as error:
        raise _translated(error, f"{path}: open") from error


def _release(shared: _Environment) -> None:
    """One user less; the last one closes it."""
    shared.users -= 1
    if shared.users == 0:
        if _process.environments.get(shared.key) is shared:
            del _process.environments[shared.key]
        try:
            hit(_CLOSE)
        finally:
            shared.close()


def _shared_or_new(path: Path, tables: Sequence[Table], *, create: bool, readonly: bool) -> _Environment:
    data = path / DATA_FILE
    try:
        stat = data.stat()
    except FileNotFoundError:
        if not create:
            raise ForeignStore(f"{path}: no tables of tzfs here") from None
    else:
        if stat.st_size == 0 and not create:
            raise ForeignStore(f"{path}: no tables of tzfs here")
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
    shared = _Environment(env, dbs, path, fd, readonly=readonly)
    shared.users = 1
    _process.environments[shared.key] = shared
    return shared


def _make_writable(shared: _Environment, path: Path, tables: Sequence[Table]) -> None:
    """Opens an environment again that only readers wanted until now; they go on with it."""
    if any(meta._shared is shared and meta._transactions for meta in _process.metas):
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
        size = max(stat.st_size, LOCK_BYTES)
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
    dbs: list[lmdb._Database | None] = [None] * _SLOTS
    txn = None if readonly else env.begin(write=True)
    try:
        for table in tables:
            try:
                dbs[table] = env.open_db(table.name.lower().encode(), txn=txn, create=create)
            except lmdb.NotFoundError as error:
                raise ForeignStore(f"{path}: has no table {table.name.lower()}") from error
        if txn is not None:
            txn.commit()
    finally:
        if txn is not None:
            txn.abort()
    return dbs


_NAMED: Final[tuple[tuple[type[lmdb.Error], type[TzfsError], str], ...]] = (
    (lmdb.MapFullError, NoSpace, "the map is full"),
    (lmdb.VersionMismatchError, ForeignStore, "another version of LMDB wrote it"),
    (lmdb.InvalidError, ForeignStore, "not a file of LMDB 0.9"),
    (lmdb.CorruptedError, CorruptionError, "a page is of the wrong kind"),
    (lmdb.PageNotFoundError, CorruptionError, "a page is missing"),
    (lmdb.PanicError, StoreError, "its root page could not be written; it must be opened again"),
    (lmdb.ReadersFullError, StoreError, "too many readers at once"),
    (lmdb.MapResizedError, StoreError, "another program made the map larger than tzfs allows"),
    (lmdb.ReadonlyError, StoreError, "permission denied"),
    (lmdb.MemoryError, StoreError, "no memory"),
    (lmdb.LockError, StoreError, "its lock file cannot be locked"),
)


def _translated(error: lmdb.Error, what: str) -> TzfsError:
    for theirs, ours, why in _NAMED:
        if isinstance(error, theirs):
            return ours(f"{what}: {why}")
    code = getattr(error, "code", 0)
    if code > 0 and code != errno.EINVAL:
        return from_os_error(OSError(code, os.strerror(code)), what)
    return InternalError(f"{what}: {error}")


def _out_of_bounds(table: Table, key: bytes, value: bytes) -> InternalError:
    return InternalError(f"row out of bounds in {table.name.lower()}: key {len(key)}, value {len(value)} bytes")
