"""What the engine asks of a store: transactions over tables of rows, and payload in extents.

Two small interfaces.  `MetaStore` keeps ordered tables of small values (at most one page each) behind transactions;
`PayloadStore` keeps large payload in append-only segments.  Both have an implementation on disk (`lmdb_store`,
`segments`) and one in memory (`memory`), held to one conformance suite; nothing above this floor knows which it has.

Rules every implementation keeps:

- One write transaction at a time; it reads its own writes; `commit` is atomic and durable when it returns; after an
  exception from `commit` nothing of it has happened and the transaction is over.
- A read transaction sees one commit throughout.  It must be closed soon: an open one keeps freed space from reuse.
- A write transaction is begun, used and ended on one thread.
- Iteration is in key order.  What `range` yields is not disturbed by writes to *other* tables while it runs; a caller
  that writes to the table it iterates takes the rows out first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from tzfs.errors import StoreError
from tzfs.format.keys import Epoch, ExtentId, Table
from tzfs.format.operations import Operation

Row = tuple[bytes, bytes]
Buffer = bytes | bytearray | memoryview

KEY_BYTES_MAX: Final = 511  # LMDB's; every implementation keeps to it
VALUE_BYTES_MAX: Final = 4080  # a page of 4,096 less its header: the largest value that never needs two


class SegmentGone(StoreError):
    """The segment was unlinked, because nothing current names it: plan again in a fresh transaction."""


class ReadTransaction(Protocol):
    """A consistent view of all tables."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        ...

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value or None for each key, in the order asked; faster than one by one when the keys ascend."""
        ...

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        """The version of `prefix` visible at `epoch` (inclusive): (birth, value), a tombstone's value included."""
        ...

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        """`seek` for each prefix, in the order asked; one pass over the table when the prefixes ascend."""
        ...

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        """Rows with start <= key < stop (no upper bound for None), ascending, or descending with `reverse`."""
        ...

    def close(self) -> None:
        """Ends a read transaction, or aborts a write transaction; idempotent."""
        ...


class WriteTransaction(ReadTransaction, Protocol):
    """The one transaction that may change rows."""

    @property
    def changed(self) -> bool:
        """Whether anything has been put or deleted in it."""
        ...

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Inserts or replaces a row: key of 1 to `KEY_BYTES_MAX`, value of 0 to `VALUE_BYTES_MAX` bytes."""
        ...

    def put_many(self, table: Table, rows: Sequence[Row]) -> None:
        """Like `put` for each; fastest when the keys ascend."""
        ...

    def delete(self, table: Table, key: bytes) -> bool:
        """True if there was such a row."""
        ...

    def delete_many(self, table: Table, keys: Sequence[bytes]) -> None:
        """Like `delete` for each; fastest when they ascend."""
        ...

    def commit(self) -> None:
        """Makes the transaction durable.  Raises `NoSpace` or `StoreError`; then nothing of it has happened."""
        ...


class Compaction(Protocol):
    """A copy of the tables without their free space, on its way into their place."""

    @property
    def lost(self) -> bool:
        """After an error of `install`: the tables may not be written any more."""
        ...

    def run(self) -> None:
        """Makes the copy, of the last commit; on any thread.  An error is kept for `install`."""
        ...

    def install(self) -> None:
        """The copy is the tables from now on, and counts its commits anew; no transaction is open.

        `Busy` where another commit has come since, or anybody reads; then, and after another error, nothing has
        happened, unless `lost`.  It is over in any case.
        """
        ...

    def let_go(self) -> None:
        """Gives back the space of what `install` has replaced, which takes a while; on any thread.

        Whoever forgets the copy does the same.
        """
        ...

    def withdraw(self) -> None:
        """The copy is not wanted any more."""
        ...


class Readable(Protocol):
    """Whatever read transactions can be begun on."""

    def begin_read(self) -> ReadTransaction: ...


class MetaStore(Readable, Protocol):
    """Ordered tables behind transactions."""

    def slack(self) -> tuple[int, int]:
        """What the tables' file takes, reserve excluded, and how much of it has rows, in bytes."""
        ...

    def compaction(self) -> Compaction | None:
        """Begins one; None where there is never anything to gain."""
        ...

    @property
    def bytes_on_disk(self) -> int:
        """What the tables take on disk now (allocated, reserve excluded where it can be told)."""
        ...

    @property
    def reserve_supported(self) -> bool:
        """False once the filesystem below has refused to reserve space: then `reserve` only looks at what is free."""
        ...

    @property
    def commit_number(self) -> int:
        """Of the last commit; a later one has a higher number, until a compaction begins to count anew."""
        ...

    def begin_read(self) -> ReadTransaction: ...

    def begin_write(self) -> WriteTransaction:
        """The next write transaction; `InternalError` while this process has one open, `ReadOnly` where it may not.

        Waits while another process has one open.
        """
        ...

    def reserve(self, nbytes: int) -> None:
        """Makes sure that commits may grow the store by `nbytes` without meeting a full disk; `NoSpace` otherwise."""
        ...

    def readers(self) -> int:
        """Read transactions that this process has open."""
        ...

    def close(self) -> None:
        """Aborts what is open and lets go of the store; idempotent."""
        ...


class PayloadReader(Protocol):
    """Reading extents; all that a snapshot's reader needs.  Usable from any thread."""

    def read(self, extent: ExtentId, offset: int, length: int) -> bytes:
        """`length` stored bytes of `extent` from `offset`; fewer, or `CorruptionError`, never: a short read raises.

        A segment that is gone raises `SegmentGone` (a `StoreError`): its reader plans again in a fresh transaction.
        """
        ...

    def read_into(self, extent: ExtentId, offset: int, target: memoryview, *, wait: bool = True) -> bool:
        """Fills `target` with stored bytes; False where `wait` is false and the bytes are not in memory."""
        ...

    def data_ranges(self, number: int) -> list[tuple[int, int]] | None:
        """Which bytes of a segment take space, as ascending [begin, end); all else is holes.

        None where the disk cannot give back part of a file, so that nothing can be told from it.  `SegmentGone`.
        """
        ...

    def close(self) -> None: ...


class PayloadStore(PayloadReader, Protocol):
    """Append, sync, free.  `free` and `reserve` on one thread; `allocate`, `write` and `sync` on any, the
    last two one at a time.

    Segment numbers are never reused.  The engine keeps the next number in its tables: it tells `begin_numbering`
    once, before the first `allocate`, and puts `next_segment` beside what it commits.  An object always begins a new
    segment, so nothing is ever appended to a segment that a crash may have left behind.

    After a failed `sync` the object is over: nobody knows which bytes are on the disk.  `failed` says why, and
    everything but reading raises `StoreError`.
    """

    @property
    def next_segment(self) -> int:
        """The number of the next segment to be begun: above every number ever used."""
        ...

    @property
    def filling(self) -> int:
        """The number of the segment being filled; 0 before the first extent."""
        ...

    @property
    def failed(self) -> str | None:
        """Why nothing may be written any more, or None."""
        ...

    @property
    def reserve_supported(self) -> bool:
        """As in `MetaStore`."""
        ...

    def begin_numbering(self, next_segment: int) -> None:
        """New segments are numbered from `next_segment`, or from above what is there, whichever is higher."""
        ...

    def allocate(self, stored_bytes: int) -> ExtentId:
        """A place for `stored_bytes` (at least 1), 4 KiB-aligned, after everything allocated before."""
        ...

    def write(self, extents: Sequence[tuple[ExtentId, Buffer]]) -> None:
        """Writes each buffer to its extent (adjacent ones in one system call); `NoSpace`, `StoreError`."""
        ...

    def sync(self) -> None:
        """Everything written before is durable when it returns, new segments and their folder included."""
        ...

    def punch(self, extent: ExtentId, stored_bytes: int) -> None:
        """Gives the extent's space back; done twice, or on a segment that is gone, it does nothing."""
        ...

    def remove_segment(self, number: int) -> None:
        """Unlinks a segment, none of whose extents is referenced; gone already, it does nothing."""
        ...

    def segments(self) -> dict[int, int]:
        """The segments there are: number -> bytes allocated on disk."""
        ...

    def reserve(self, nbytes: int) -> None:
        """Makes sure that `nbytes` may be appended without meeting a full disk; `NoSpace` otherwise."""
        ...

    @property
    def reserved(self) -> int:
        """What is left of that: what `allocate` has not given away."""
        ...


class RedoStore(Protocol):
    """Operations made durable ahead of the tables; whoever opens for writing does them again first."""

    def append(self, base: int, operations: bytes) -> bool:
        """Packed operations that follow commit `base` of the tables and what was appended since.

        Durable when it returns True; False where there is no room: the tables must commit.  `StoreError`.
        """
        ...

    def pending(self, base: int) -> list[Operation]:
        """The operations that follow commit `base` of the tables, in order."""
        ...

    def clear(self) -> None:
        """Nothing in it counts any more, durably."""
        ...

    def release(self) -> None:
        """Gives back the log's space; every group of it has become void by a commit."""
        ...
