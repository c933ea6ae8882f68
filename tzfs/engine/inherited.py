"""What a clone inherits: its own rows, and below them those that its origin's snapshot sees.

A clone has tables and segments of its own, with nothing in them at first.  What is not there is looked up in its origin
at the snapshot it was made from, which never changes; the origin may be a clone itself.  `Ancestry` is the chain of
origins of one open clone, `Composed` a transaction of it that reads through.

An inherited version looks like one of the clone's own that was born at 0, before everything else in it.  Its value is
an `Inherited` (see `foreign`), and `ClonePayload` reads the extents it names where they are.

A key falls through unless the clone has a version of its own at or below the epoch, or gives such ids itself (from
`first_ino`, `first_data` on), or it has been flattened: flattening goes through the keys in order, and those up to
`cursor` are the clone's own.

The origin's tables are read in transactions of a moment, as those of a snapshot are.  Whoever opens a clone sees to it
that its origin's snapshot is not destroyed meanwhile; the catalog's hold does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tzfs.engine import reads
from tzfs.engine.foreign import Inherited, foreign, level_of, native
from tzfs.format import keys, records
from tzfs.format.keys import VERSIONED, Epoch, ExtentId, Table
from tzfs.format.superblock import Origin
from tzfs.store.interface import (
    Buffer,
    MetaStore,
    PayloadReader,
    PayloadStore,
    Readable,
    ReadTransaction,
    Row,
    WriteTransaction,
)

FLATTEN_KEY: Final = b"flatten"
_BORN_FIRST: Final = keys.suffix(0)
_AFTER: Final = b"\xff" * 8 + b"\0"  # behind every version of a prefix, and before the next one

Cursor = tuple[int, bytes]  # a table's number and a prefix: flattened up to here, inclusive
NOTHING: Final[Cursor] = (0, b"")
EVERYTHING: Final[Cursor] = (256, b"")


def read_cursor(txn: ReadTransaction) -> tuple[Cursor, bool]:
    """How far flattening has come, and whether it is under way."""
    value = txn.get(Table.SYS, FLATTEN_KEY)
    body = None if value is None else records.unseal(Table.SYS, FLATTEN_KEY, value)
    if body is None:
        return NOTHING, False
    fields = records.unpack_json(Table.SYS, FLATTEN_KEY, body)
    if isinstance(fields, dict) and fields.get("done") is True:
        return EVERYTHING, False
    try:
        assert isinstance(fields, dict)
        return (int(str(fields["table"])), bytes.fromhex(str(fields["prefix"]))), True
    except (AssertionError, KeyError, ValueError):
        raise records.damaged(Table.SYS, FLATTEN_KEY, "does not say how far flattening has come") from None


def write_cursor(txn: WriteTransaction, cursor: Cursor) -> None:
    """Keeps how far flattening has come; `EVERYTHING` stays for those who opened the clone before."""
    fields: dict[str, object] = {"table": cursor[0], "prefix": cursor[1].hex()}
    if cursor == EVERYTHING:
        fields = {"done": True}
    txn.put(Table.SYS, FLATTEN_KEY, records.seal(Table.SYS, FLATTEN_KEY, records.pack_json(fields)))


@dataclass(frozen=True, slots=True)
class Above:
    """One origin: its tables and payload, open for reading, the epoch to read at, and its own ancestry."""

    meta: Readable
    payload: PayloadReader
    link: Origin  # what the clone's superblock says of it
    ancestry: Ancestry | None

    def begin(self) -> ReadTransaction:
        """A transaction of a moment, that reads through to this origin's own origins."""
        txn = self.meta.begin_read()
        return txn if self.ancestry is None else self.ancestry.over(txn, momentary=False)


class Ancestry:
    """The origins of one open clone, nearest first.  `cursor` is how far it has been flattened, as far as is known."""

    def __init__(self, above: Above) -> None:
        self.above = above
        self.link = above.link
        self.cursor: Cursor = NOTHING
        up = above.ancestry
        self.payloads: tuple[PayloadReader, ...] = (above.payload, *(up.payloads if up is not None else ()))

    @property
    def depth(self) -> int:
        """How many filesystems a look-up may go through beyond the first."""
        return len(self.payloads)

    def over(self, txn: ReadTransaction, *, momentary: bool) -> Composed:
        """`txn` of the clone's own tables, read through.  `momentary`: it stays open for long, and so origins are only
        read within a call; else until it is closed, and how far it is flattened is what it says itself."""
        if momentary:
            return Composed(txn, self, None)
        return Composed(txn, self, read_cursor(txn)[0])

    def inherits(self, table: Table, prefix: bytes) -> bool:
        """Whether the origin shows a value under the key, which falls through."""
        if not self.falls(table, prefix, self.cursor):
            return False
        up = self.above.begin()
        try:
            found = self.seek_above(up, table, prefix)
        finally:
            up.close()
        return found is not None

    def falls(self, table: Table, prefix: bytes, cursor: Cursor) -> bool:
        """Whether what the clone has no version of is looked up in the origin."""
        first = self.link.first_data if table in (Table.INLINE, Table.CHUNK) else self.link.first_ino
        return int.from_bytes(prefix[:8], "big") < first and (table, prefix) > cursor

    def seek_above(self, up: ReadTransaction, table: Table, prefix: bytes) -> tuple[Epoch, bytes] | None:
        """What the origin shows under the key, as the clone inherits it; None for nothing."""
        return self.inherit(up, table, prefix, up.seek(table, prefix, self.link.epoch))

    def inherit(
        self, up: ReadTransaction, table: Table, prefix: bytes, found: tuple[Epoch, bytes] | None
    ) -> tuple[Epoch, bytes] | None:
        """A version that the origin sees, as the clone inherits it."""
        if found is None or records.is_tombstone(found[1]):
            return None
        if table is Table.CHUNK:
            data, index = int.from_bytes(prefix[:8], "big"), int.from_bytes(prefix[8:], "big")
            if reads.masked(reads.reclaims_of(up), data, index, self.link.epoch):
                return None
        body = records.unseal(table, prefix + keys.suffix(found[0]), found[1])
        if body is None:
            return None
        return Epoch(0), Inherited.at(records.seal(table, prefix + _BORN_FIRST, body), level_of(found[1]) + 1)

    def visible(
        self, up: ReadTransaction, table: Table, start: bytes, stop: bytes | None, cursor: Cursor
    ) -> Iterator[tuple[bytes, bytes]]:
        """(prefix, value as inherited) of what falls through, by prefix; versions not seen are skipped by seeking."""
        epoch = self.link.epoch
        at: bytes | None = whole(table, start)
        while at is not None:
            restart: bytes | None = None
            done = b""
            for key, value in up.range(table, at, stop):
                prefix = key[:-8]
                if prefix == done:
                    restart = prefix + _AFTER
                    break
                birth = keys.birth_of(key)
                if birth > epoch:
                    seen = prefix + keys.suffix(epoch)
                    if key < seen:
                        restart = seen
                        break
                done = prefix
                if self.falls(table, prefix, cursor):
                    found = self.inherit(up, table, prefix, (birth, value))
                    if found is not None and prefix + _BORN_FIRST >= start:
                        yield prefix, found[1]
            at = restart


def whole(table: Table, start: bytes) -> bytes:
    """Where the versions of the first prefix begin that has one at or after the key `start`."""
    if table in (Table.INODE, Table.INLINE):
        return start[:8]
    if table is Table.CHUNK:
        return start[:16]
    end = start.find(0, 16 if table is Table.LINK else 8)
    return start if end < 0 else start[: end + 1]


class Composed:
    """A read transaction of a clone's tables that reads through to its origins; see the module's text."""

    def __init__(self, own: ReadTransaction, ancestry: Ancestry, cursor: Cursor | None) -> None:
        self.own, self._ancestry, self._cursor = own, ancestry, cursor
        self._momentary = cursor is None
        self._up: ReadTransaction | None = None

    @property
    def cursor(self) -> Cursor:
        return self._ancestry.cursor if self._cursor is None else self._cursor

    def _begin(self) -> ReadTransaction:
        if self._up is None:
            up = self._ancestry.above.begin()
            if self._momentary:
                return up
            self._up = up
        return self._up

    def _end(self, up: ReadTransaction) -> None:
        if self._momentary:
            up.close()

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self.own.get(table, key)

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        return self.own.get_many(table, keys)

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        found = self.own.seek(table, prefix, epoch)
        if found is not None or not self._ancestry.falls(table, prefix, self.cursor):
            return found
        up = self._begin()
        try:
            return self._ancestry.seek_above(up, table, prefix)
        finally:
            self._end(up)

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        found = self.own.seek_many(table, prefixes, epoch)
        ancestry, cursor = self._ancestry, self.cursor
        missing = [i for i, f in enumerate(found) if f is None and ancestry.falls(table, prefixes[i], cursor)]
        if missing:
            up = self._begin()
            try:
                sought = [prefixes[i] for i in missing]
                for i, seen in zip(missing, up.seek_many(table, sought, ancestry.link.epoch), strict=True):
                    found[i] = ancestry.inherit(up, table, prefixes[i], seen)
            finally:
                self._end(up)
        return found

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        """As of any transaction; in descending order only the clone's own rows."""
        if reverse or table not in VERSIONED:
            return self.own.range(table, start, stop, reverse=reverse)
        return self._merged(table, start, stop)

    def _merged(self, table: Table, start: bytes, stop: bytes | None) -> Iterator[Row]:
        up = self._begin()
        try:
            inherited = self._ancestry.visible(up, table, start, stop, self.cursor)
            below = next(inherited, None)
            for key, value in self.own.range(table, start, stop):
                while below is not None and below[0] + _BORN_FIRST < key:
                    yield below[0] + _BORN_FIRST, below[1]
                    below = next(inherited, None)
                yield key, value
            while below is not None and (stop is None or below[0] + _BORN_FIRST < stop):
                yield below[0] + _BORN_FIRST, below[1]
                below = next(inherited, None)
        finally:
            self._end(up)

    def close(self) -> None:
        if self._up is not None:
            self._up.close()
            self._up = None
        self.own.close()


class CloneMeta:
    """A clone's tables for readers: each transaction reads through."""

    def __init__(self, own: MetaStore, ancestry: Ancestry) -> None:
        self._own, self._ancestry = own, ancestry

    def begin_read(self) -> ReadTransaction:
        txn = self._own.begin_read()
        try:
            return self._ancestry.over(txn, momentary=False)
        except BaseException:
            txn.close()
            raise


class ClonePayload:
    """A clone's payload store, which reads its origins' extents too.  Everything else is its own."""

    def __init__(self, own: PayloadStore, ancestry: Ancestry) -> None:
        self._own, self._origins = own, ancestry.payloads
        self.begin_numbering = own.begin_numbering
        self.allocate = own.allocate
        self.sync = own.sync
        self.punch = own.punch
        self.remove_segment = own.remove_segment
        self.segments = own.segments
        self.reserve = own.reserve
        self.data_ranges = own.data_ranges
        self.close = own.close

    def _of(self, extent: int) -> PayloadReader:
        level = foreign(extent)
        return self._origins[level - 1] if level else self._own

    def read(self, extent: ExtentId, offset: int, length: int) -> bytes:
        return self._of(extent).read(native(extent), offset, length)

    def read_into(self, extent: ExtentId, offset: int, target: memoryview, *, wait: bool = True) -> bool:
        return self._of(extent).read_into(native(extent), offset, target, wait=wait)

    def write(self, extents: Sequence[tuple[ExtentId, Buffer]]) -> None:
        self._own.write(extents)

    @property
    def next_segment(self) -> int:
        return self._own.next_segment

    @property
    def filling(self) -> int:
        return self._own.filling

    @property
    def failed(self) -> str | None:
        return self._own.failed

    @property
    def reserve_supported(self) -> bool:
        return self._own.reserve_supported


def read_through(meta: MetaStore, payload: PayloadStore, ancestry: Ancestry | None) -> tuple[Readable, PayloadStore]:
    """A filesystem's tables and payload for whoever only reads: those of a clone with its origins."""
    return (meta, payload) if ancestry is None else (CloneMeta(meta, ancestry), ClonePayload(payload, ancestry))
