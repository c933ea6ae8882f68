"""Tables on disk: one LMDB environment a filesystem, one named sub-database a table.

Transactions over an environment that `lmdb_environment` has opened; these two are the only modules that know LMDB.

States of a `LmdbMeta`: open -> closed.  Of a transaction: open -> over, by `commit`, `close`, or the end of its store;
afterwards each of its methods but `close` raises `InternalError`.  In a forked child both are over.

Errors: a full disk or map is `NoSpace`; LMDB reports a full disk at commit as EIO, so the disk is asked.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import lmdb

from tzfs.errors import (
    InternalError,
    ReadOnly,
    TzfsError,
    from_os_error,
)
from tzfs.failpoints import declare, hit
from tzfs.format.keys import EPOCH_MAX, FILESYSTEM_TABLES, Epoch, Table, u64
from tzfs.store import place, space
from tzfs.store.interface import KEY_BYTES_MAX, VALUE_BYTES_MAX, Row
from tzfs.store.lmdb_compaction import Compaction
from tzfs.store.lmdb_environment import SLOTS, Environment, acquire, release, translated

RESERVE_AHEAD_BYTES: Final = 4 << 20  # 1,000 pages: a few commits of ordinary size
_NO_CURSORS: Final[list[_Cursor | None]] = [None] * SLOTS
_INVERTED: Final = struct.Struct(">Q")  # the birth at the end of a versioned key, see `keys.suffix`

_BEGIN: Final = declare("meta.begin", "before a write transaction begins")
_COMMIT: Final = declare("meta.commit", "before LMDB commits")
_COMMITTED: Final = declare("meta.committed", "LMDB has committed, durably; nobody has been told")
_RESERVE: Final = declare("meta.reserve", "before space is reserved")

if TYPE_CHECKING:
    _Cursor = lmdb.Cursor[bytes]  # generic in its stubs only


def _past_odd(cursor: _Cursor, key: bytes, prefix: bytes) -> bytes:
    """The first key from `key` on that does not begin with the prefix, or is of a version of it; b"" at the end.

    Keys that begin with it and have another length are damaged.
    """
    while key[:-8] != prefix and key.startswith(prefix):
        if not cursor.next():
            return b""
        key = cursor.key()
    return key


class _Cursors(Protocol):
    """Cursors by table number; of a transaction that is over, an object that raises."""

    def __getitem__(self, table: int, /) -> _Cursor | None: ...


class _Over:
    """Stands where the cursors were, so that the hot path needs no check of its own."""

    def __getitem__(self, table: int, /) -> _Cursor | None:
        raise InternalError("the transaction is over")


_OVER: Final = _Over()


class LmdbRead:
    """A read transaction; also what a write transaction reads with."""

    def __init__(self, meta: LmdbMeta, shared: Environment, *, write: bool = False) -> None:
        self._meta = meta
        self._dbs = shared.dbs
        self._txn = shared.env.begin(None, None, write)  # by position, which is quicker
        self._made: list[_Cursor | None] = _NO_CURSORS.copy()
        self._cursors: _Cursors = self._made  # until the transaction is over

    def _cursor(self, table: Table) -> _Cursor:
        db = self._dbs[table]
        if db is None:
            raise InternalError(f"table {table.name.lower()} is not one of this store's")
        try:
            cursor = self._made[table] = self._txn.cursor(db)
        except lmdb.Error as error:
            raise translated(error, f"read {table.name.lower()}") from error
        return cursor

    def get(self, table: Table, key: bytes) -> bytes | None:
        cursor = self._cursors[table] or self._cursor(table)
        try:
            return cursor.get(key)
        except lmdb.Error as error:
            raise translated(error, f"read {table.name.lower()}") from error

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        # One by one on one cursor (240 ns each) beats cursor.getmulti, which leaves the missing ones out (870 ns with
        # the dict that finds them again).
        get = (self._cursors[table] or self._cursor(table)).get
        try:
            return [get(key) for key in keys]
        except lmdb.Error as error:
            raise translated(error, f"read {table.name.lower()}") from error

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        cursor = self._cursors[table] or self._cursor(table)
        try:
            if not cursor.set_range(prefix + u64(EPOCH_MAX - epoch)):
                return None
            key, value = cursor.item()
            if key[:-8] != prefix:
                if not key.startswith(prefix) or _past_odd(cursor, key, prefix)[:-8] != prefix:
                    return None
                key, value = cursor.item()
            (inverted,) = _INVERTED.unpack_from(key, len(prefix))
            return EPOCH_MAX - inverted, value
        except lmdb.Error as error:
            raise translated(error, f"read {table.name.lower()}") from error

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
                there = key[:-8] == prefix
                if not there and key.startswith(prefix):
                    key = _past_odd(cursor, key, prefix)
                    there = key[:-8] == prefix
                before, last = target, key
                if there:
                    (inverted,) = _INVERTED.unpack_from(key, len(prefix))
                    found.append((EPOCH_MAX - inverted, cursor.value()))
                else:
                    found.append(None)
        except lmdb.Error as error:
            raise translated(error, f"read {table.name.lower()}") from error
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
            raise translated(error, "read a range") from error

    def close(self) -> None:
        if self._cursors is not _OVER:
            self._cursors = _OVER
            self._meta._transactions.discard(self)
            self._txn.abort()


class LmdbWrite(LmdbRead):
    """The write transaction.  It holds LMDB's writer lock until it is over."""

    def __init__(self, meta: LmdbMeta, shared: Environment) -> None:
        super().__init__(meta, shared, write=True)
        self._shared = shared
        self._thread = threading.get_ident()
        self.changed = False

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self.changed = True
        self._cursors[table] or self._cursor(table)
        if len(value) > VALUE_BYTES_MAX:
            raise _out_of_bounds(table, key, value)
        try:
            self._txn.put(key, value, True, True, False, self._dbs[table])
        except lmdb.BadValsizeError as error:
            raise _out_of_bounds(table, key, value) from error
        except lmdb.Error as error:
            raise self._meta._failed(error, f"put into {table.name.lower()}") from error

    def put_many(self, table: Table, rows: Sequence[Row]) -> None:
        self.changed = True
        cursor = self._cursors[table] or self._cursor(table)
        for key, value in rows:
            if len(value) > VALUE_BYTES_MAX or not 0 < len(key) <= KEY_BYTES_MAX:
                raise _out_of_bounds(table, key, value)
        try:
            cursor.putmulti(rows)
        except lmdb.Error as error:
            raise self._meta._failed(error, f"put into {table.name.lower()}") from error

    def delete(self, table: Table, key: bytes) -> bool:
        self.changed = True
        self._cursors[table] or self._cursor(table)
        try:
            return self._txn.delete(key, b"", self._dbs[table])
        except lmdb.Error as error:
            raise self._meta._failed(error, f"delete from {table.name.lower()}") from error

    def delete_many(self, table: Table, keys: Sequence[bytes]) -> None:
        self.changed = True
        self._cursors[table] or self._cursor(table)
        delete, db = self._txn.delete, self._dbs[table]
        try:
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
        self._tables = tables
        self._transactions: set[LmdbRead] = set()
        self._shared: Environment | None = None
        self._shared = acquire(self, self.path, tables, create=create, readonly=readonly)

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

    def slack(self) -> tuple[int, int]:
        return self._open().slack()

    def compaction(self) -> Compaction:
        if self.readonly:
            raise ReadOnly(f"{self.path}: open for reading only")
        return Compaction(self._open(), self._tables)

    def begin_read(self) -> LmdbRead:
        try:
            transaction = LmdbRead(self, self._shared or self._open())
        except lmdb.Error as error:
            raise translated(error, f"{self.path}: begin reading") from error
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
            raise translated(error, f"{self.path}: begin writing") from error
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
        try:
            release(shared)
        except OSError as error:
            raise from_os_error(error, f"{self.path}: close") from error

    def reads(self, environment: Environment) -> bool:
        return self._shared is environment and bool(self._transactions)

    def ended_by_fork(self) -> list[object]:
        self._shared = None
        inherited: list[object] = []
        for transaction in self._transactions:
            transaction._cursors = _OVER
            inherited.append(transaction._txn)
        self._transactions.clear()
        return inherited

    def _open(self) -> Environment:
        if self._shared is None:
            raise InternalError(f"{self.path}: the store is closed, or was opened by the process this one forked from")
        return self._shared

    def _failed(self, error: lmdb.Error, what: str) -> TzfsError:
        """As `_translated`; EIO on a full disk is what LMDB says of it."""
        what = f"{self.path}: {what}"
        if getattr(error, "code", 0) == errno.EIO and self._shared is not None and self._shared.full:
            return from_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), what)
        return translated(error, what)


def _out_of_bounds(table: Table, key: bytes, value: bytes) -> InternalError:
    return InternalError(f"row out of bounds in {table.name.lower()}: key {len(key)}, value {len(value)} bytes")
