"""The store in memory: what the interface means, with nothing of a disk's behaviour left to chance.

`MemoryMeta` keeps each table as a dict beside its sorted keys; a commit publishes new versions of the tables it
touched, and a reader keeps the versions that were current when it began.  `MemoryPayload` keeps the bytes of each
segment, and apart from them what had been synced.  Both follow the rules of `interface` to the letter, also those that
only matter elsewhere (a write transaction stays on its thread, nothing is put after a commit), and are held to the
same suite as the store on disk, so that what works here fails there only for the disk's own reasons.

Failures are set, not awaited: `fail_next_commit`, `fail_next_write`, `fail_next_sync` take the exception to raise, and
`full` makes everything that needs space raise `NoSpace`.  `after_crash` gives the store as a machine that lost power
would find it: what was committed, and what was synced.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Final

from tzfs.errors import CorruptionError, InternalError, NoSpace, ReadOnly, StoreError
from tzfs.format.keys import (
    FILESYSTEM_TABLES,
    Epoch,
    ExtentId,
    Table,
    birth_of,
    extent_id,
    extent_offset,
    extent_segment,
    suffix,
)
from tzfs.format.operations import Operation, unpack_operations
from tzfs.limits import PAGE_BYTES, SEGMENT_BYTES_MAX
from tzfs.store.interface import KEY_BYTES_MAX, VALUE_BYTES_MAX, Buffer, Compaction, Row, SegmentGone


class _Rows:
    """One version of one table: values by key, and the keys in order."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: list[bytes], values: dict[bytes, bytes]) -> None:
        self.keys = keys
        self.values = values

    def copy(self) -> _Rows:
        return _Rows(self.keys.copy(), self.values.copy())


class MemoryRead:
    """A read transaction: the tables as they stood when it began."""

    def __init__(self, meta: MemoryMeta) -> None:
        self._meta = meta
        self._tables: dict[Table, _Rows] | None = dict(meta.committed)

    def _rows(self, table: Table) -> _Rows:
        if self._tables is None:
            raise InternalError("the transaction is over")
        return self._tables[table]

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._rows(table).values.get(key)

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        values = self._rows(table).values
        return [values.get(key) for key in keys]

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        rows = self._rows(table)
        at = bisect_left(rows.keys, prefix + suffix(epoch))
        while at < len(rows.keys) and (key := rows.keys[at]).startswith(prefix):
            if len(key) == len(prefix) + 8:
                return birth_of(key), rows.values[key]
            at += 1  # it is damaged
        return None

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        return [self.seek(table, prefix, epoch) for prefix in prefixes]

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        rows = self._rows(table)
        low = bisect_left(rows.keys, start)
        high = len(rows.keys) if stop is None else bisect_left(rows.keys, stop)
        for key in reversed(rows.keys[low:high]) if reverse else rows.keys[low:high]:
            if self._tables is None:
                raise InternalError("the transaction is over")
            value = rows.values.get(key)
            if value is not None:
                yield key, value

    def close(self) -> None:
        if self._tables is not None:
            self._tables = None
            self._meta.transactions.discard(self)


class MemoryWrite(MemoryRead):
    """The write transaction: copies a table at its first change, publishes the copies at commit."""

    def __init__(self, meta: MemoryMeta) -> None:
        super().__init__(meta)
        self._touched: set[Table] = set()
        self._thread = threading.get_ident()

    @property
    def changed(self) -> bool:
        return bool(self._touched)

    def _changing(self, table: Table) -> _Rows:
        rows = self._rows(table)
        if threading.get_ident() != self._thread:
            raise InternalError("a write transaction stays on the thread that began it")
        if table not in self._touched:
            assert self._tables is not None
            rows = self._tables[table] = rows.copy()
            self._touched.add(table)
        return rows

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        rows = self._changing(table)
        if not 0 < len(key) <= KEY_BYTES_MAX or len(value) > VALUE_BYTES_MAX:
            raise InternalError(f"row out of bounds in {table.name.lower()}: key {len(key)}, value {len(value)} bytes")
        if key not in rows.values:
            insort(rows.keys, key)
        rows.values[key] = value

    def put_many(self, table: Table, rows: Sequence[Row]) -> None:
        for key, value in rows:
            self.put(table, key, value)

    def delete(self, table: Table, key: bytes) -> bool:
        rows = self._changing(table)
        if rows.values.pop(key, None) is None:
            return False
        del rows.keys[bisect_left(rows.keys, key)]
        return True

    def delete_many(self, table: Table, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.delete(table, key)

    def commit(self) -> None:
        if self._tables is None:
            raise InternalError("the transaction is over")
        if threading.get_ident() != self._thread:
            raise InternalError("a write transaction stays on the thread that began it")
        meta, tables = self._meta, self._tables
        self.close()
        if meta.fail_next_commit is not None:
            error, meta.fail_next_commit = meta.fail_next_commit, None
            raise error
        if meta.full and self._touched:
            raise NoSpace("commit: no space left on the store in memory")
        meta.committed = tables
        meta.commits += 1


class MemoryMeta:
    """Tables in memory.  `commits` counts the successful ones."""

    def __init__(self, *, tables: Sequence[Table] = FILESYSTEM_TABLES, readonly: bool = False) -> None:
        self.committed: dict[Table, _Rows] = {table: _Rows([], {}) for table in tables}
        self.transactions: set[MemoryRead] = set()
        self.commits = 0
        self.readonly = readonly
        self.fail_next_commit: Exception | None = None
        self.full = False
        self._closed = False

    @property
    def bytes_on_disk(self) -> int:
        """The keys and values, as if nothing else took space."""
        return sum(len(k) + len(v) for rows in self.committed.values() for k, v in rows.values.items())

    def slack(self) -> tuple[int, int]:
        return self.bytes_on_disk, self.bytes_on_disk

    def compaction(self) -> Compaction | None:
        return None

    @property
    def reserve_supported(self) -> bool:
        return True

    @property
    def commit_number(self) -> int:
        return self.commits

    def begin_read(self) -> MemoryRead:
        self._check_open()
        transaction = MemoryRead(self)
        self.transactions.add(transaction)
        return transaction

    def begin_write(self) -> MemoryWrite:
        self._check_open()
        if self.readonly:
            raise ReadOnly("the store is open for reading only")
        if any(isinstance(transaction, MemoryWrite) for transaction in self.transactions):
            raise InternalError("a write transaction is already open")
        transaction = MemoryWrite(self)
        self.transactions.add(transaction)
        return transaction

    def reserve(self, nbytes: int) -> None:
        self._check_open()
        if self.full:
            raise NoSpace(f"reserve {nbytes} bytes: no space left on the store in memory")

    def readers(self) -> int:
        return sum(not isinstance(transaction, MemoryWrite) for transaction in self.transactions)

    def close(self) -> None:
        for transaction in list(self.transactions):
            transaction.close()
        self._closed = True

    def after_crash(self) -> MemoryMeta:
        """A store with what was committed, and nothing else."""
        again = MemoryMeta(tables=tuple(self.committed))
        again.committed = {table: rows.copy() for table, rows in self.committed.items()}
        again.commits = self.commits
        return again

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("the store is closed")


class MemoryPayload:
    """Segments in memory: for each number the bytes written, and those that had been written when last synced."""

    def __init__(self, *, segment_bytes_max: int = SEGMENT_BYTES_MAX) -> None:
        self._blocks_max: Final = segment_bytes_max // PAGE_BYTES
        self._live: dict[int, bytearray] = {}
        self._durable: dict[int, bytearray] = {}
        self._unsynced: list[tuple[int, int, bytes]] = []
        self._first_number = 1  # what this object begins is numbered from here
        self._next_segment = 1
        self._number = 0  # of the segment being filled; 0: none begun
        self._block = 0  # the first free block in it
        self._failed: str | None = None
        self._lock = threading.Lock()
        self.reserved = 0
        self.fail_next_write: Exception | None = None
        self.fail_next_sync: Exception | None = None
        self.full = False
        self.syncs = 0
        self.in_memory = True  # what read_into(wait=False) finds
        self.closed = False

    @property
    def next_segment(self) -> int:
        return self._next_segment

    @property
    def filling(self) -> int:
        return self._number

    @property
    def failed(self) -> str | None:
        return self._failed

    @property
    def reserve_supported(self) -> bool:
        return True

    def begin_numbering(self, next_segment: int) -> None:
        self._check_writable()
        if self._number:
            raise InternalError("numbering begins before the first extent")
        self._first_number = self._next_segment = max(next_segment, *(n + 1 for n in self._live), 1)

    def allocate(self, stored_bytes: int) -> ExtentId:
        self._check_writable()
        blocks = -(-stored_bytes // PAGE_BYTES)
        if not 0 < blocks < self._blocks_max:
            raise InternalError(f"an extent of {stored_bytes} bytes")
        with self._lock:
            if self._number == 0 or self._block + blocks > self._blocks_max:
                self._number, self._block = self._next_segment, 1
                self._next_segment += 1
            extent = extent_id(self._number, self._block)
            self._block += blocks
            self.reserved = max(0, self.reserved - blocks * PAGE_BYTES)
            return extent

    def write(self, extents: Sequence[tuple[ExtentId, Buffer]]) -> None:
        self._check_writable()
        with self._lock:
            if self.fail_next_write is not None:
                error, self.fail_next_write = self.fail_next_write, None
                raise error
            if self.full:
                raise NoSpace("write: no space left on the store in memory")
            for extent, data in extents:
                number, offset, stored = extent_segment(extent), extent_offset(extent), bytes(data)
                if not self._first_number <= number < self._next_segment:
                    raise InternalError(f"segment {number} was not begun by this writer")
                _write_at(self._live.setdefault(number, bytearray(PAGE_BYTES)), offset, stored)
                self._unsynced.append((number, offset, stored))

    def sync(self) -> None:
        self._check_writable()
        with self._lock:
            if self.fail_next_sync is not None:
                error, self.fail_next_sync = self.fail_next_sync, None
                self._failed = str(error)
                raise error
            for number, offset, stored in self._unsynced:
                if number in self._live:
                    _write_at(self._durable.setdefault(number, bytearray(PAGE_BYTES)), offset, stored)
            self._unsynced.clear()
            self.syncs += 1

    def read(self, extent: ExtentId, offset: int, length: int) -> bytes:
        if self.closed:
            raise InternalError("the payload store is closed")
        with self._lock:
            number, begin = extent_segment(extent), extent_offset(extent) + offset
            segment = self._live.get(number)
            if segment is None:
                raise SegmentGone(f"segment {number} is gone")
            if begin + length > len(segment):
                raise CorruptionError(f"segment {number} ends within an extent: {length} bytes at {begin}")
            return bytes(segment[begin : begin + length])

    def read_into(self, extent: ExtentId, offset: int, target: memoryview, *, wait: bool = True) -> bool:
        if not wait and not self.in_memory:
            return False
        target[:] = self.read(extent, offset, len(target))
        return True

    def data_ranges(self, number: int) -> list[tuple[int, int]] | None:
        with self._lock:
            segment = self._live.get(number)
            if segment is None:
                raise SegmentGone(f"segment {number} is gone")
            found: list[tuple[int, int]] = []
            for begin in range(0, len(segment), PAGE_BYTES):
                end = min(begin + PAGE_BYTES, len(segment))
                if any(segment[begin:end]):
                    joined = found.pop()[0] if found and found[-1][1] == begin else begin
                    found.append((joined, end))
            return found

    def punch(self, extent: ExtentId, stored_bytes: int) -> None:
        self._check_writable()
        with self._lock:
            number, begin = extent_segment(extent), extent_offset(extent)
            segment = self._live.get(number)
            if segment is not None:
                hole = min(-(-stored_bytes // PAGE_BYTES) * PAGE_BYTES, len(segment) - begin)
                if hole > 0:
                    segment[begin : begin + hole] = bytes(hole)
                    self._unsynced.append((number, begin, bytes(hole)))

    def remove_segment(self, number: int) -> None:
        self._check_writable()
        if number == self._number:
            raise InternalError(f"segment {number} is being filled")
        with self._lock:
            self._live.pop(number, None)
            self._durable.pop(number, None)

    def segments(self) -> dict[int, int]:
        with self._lock:
            return {n: -(-len(data) // PAGE_BYTES) * PAGE_BYTES for n, data in self._live.items()}

    def reserve(self, nbytes: int) -> None:
        self._check_writable()
        if self.full:
            raise NoSpace(f"reserve {nbytes} bytes: no space left on the store in memory")
        self.reserved = max(self.reserved, nbytes)

    def close(self) -> None:
        self.closed = True

    def after_crash(self) -> MemoryPayload:
        """A store with what was synced, and nothing else."""
        again = MemoryPayload(segment_bytes_max=self._blocks_max * PAGE_BYTES)
        again._live = {number: bytearray(data) for number, data in self._durable.items()}
        again._durable = {number: bytearray(data) for number, data in self._durable.items()}
        again.begin_numbering(1)
        return again

    def _check_writable(self) -> None:
        if self.closed:
            raise InternalError("the payload store is closed")
        if self._failed is not None:
            raise StoreError(f"payload cannot be written any more: {self._failed}")


class MemoryRedo:
    """A redo log in memory; everything in it is durable.  `room` is how many groups it takes after a commit."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self._groups: list[tuple[int, bytes]] = []

    def append(self, base: int, operations: bytes) -> bool:
        groups = [group for group in self._groups if group[0] == base]
        if len(groups) == self.room:
            return False
        self._groups = [*groups, (base, operations)]
        return True

    def pending(self, base: int) -> list[Operation]:
        return [
            operation
            for after, operations in self._groups
            if after == base
            for operation in unpack_operations(operations, "the redo log in memory")
        ]

    def clear(self) -> None:
        self._groups.clear()

    def release(self) -> None:
        self.clear()


def _write_at(segment: bytearray, offset: int, stored: bytes) -> None:
    if len(segment) < offset:
        segment.extend(bytes(offset - len(segment)))
    segment[offset : offset + len(stored)] = stored
