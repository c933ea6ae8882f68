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
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from heapq import merge
from typing import Final

from tzfs.engine import reads, slices
from tzfs.engine.bequest import Bytes
from tzfs.engine.foreign import Inherited, foreign, level_of, native
from tzfs.engine.settling import extent_costs
from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format import keys, records
from tzfs.format.keys import VERSIONED, Epoch, ExtentId, Table
from tzfs.format.slices import Sizes, embedded_saved, unpack_slices, unpack_xattr
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
_FIRST: Final = Epoch(0)
_BORN_FIRST: Final = keys.suffix(_FIRST)
_OF_DATA: Final = (Table.INLINE, Table.CHUNK)  # their keys begin with a data id, those of the others with an inode's
_NAMED: Final = (Table.DIRENT, Table.LINK, Table.XATTR)  # their keys end in a name, NUL, and the birth
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
        self.first_ino, self.first_data = keys.u64(above.link.first_ino), keys.u64(above.link.first_data)
        self.cursor: Cursor = NOTHING
        up = above.ancestry
        self.chain: tuple[Ancestry, ...] = (self, *(up.chain if up is not None else ()))
        self.payloads: tuple[PayloadReader, ...] = tuple(each.above.payload for each in self.chain)

    @property
    def depth(self) -> int:
        """How many filesystems a look-up may go through beyond the first."""
        return len(self.chain)

    def over(self, txn: ReadTransaction, *, momentary: bool) -> Composed:
        """`txn` of the clone's own tables, read through.  `momentary`: it stays open for long, and so origins are only
        read in moments; else until it is closed, and how far it is flattened is what it says itself."""
        return Composed(txn, self, momentary=momentary)

    def cost(self, table: Table, prefix: bytes) -> Bytes | None:
        """What the inherited version of a key is charged; None where the clone inherits nothing."""
        if prefix >= (self.first_data if table in _OF_DATA else self.first_ino):
            return None
        above = FromAbove(self)
        try:
            found = above.at(self.cursor).seek(table, prefix)
            return None if found is None else above.cost_of(table, prefix, found[1])
        except CorruptionError:  # of what the origin removes: a figure, and of it is told whoever reads the contents
            return None
        finally:
            above.close()

    def inherits(self, table: Table, prefix: bytes) -> bool:
        """Whether the origin shows a value under the key, which falls through; or may, where damage hides that."""
        above = FromAbove(self)
        try:
            return above.at(self.cursor).seek(table, prefix) is not None
        except CorruptionError:
            return True  # a tombstone too many does no harm
        finally:
            above.close()


class FromAbove:
    """What a clone inherits, as its origins have it: each is read in one transaction, begun when it is first asked.

    The nearest filesystem that has a version decides, be it a tombstone.  So an origin that is a clone itself is not
    asked as one, which would be asking its own origins by way of each filesystem between: a look-up costs one seek a
    level.  `at` says how far the clone has been flattened.
    """

    __slots__ = ("_chain", "_cursors", "_txns")

    def __init__(self, ancestry: Ancestry) -> None:
        self._chain = ancestry.chain
        self._txns: list[ReadTransaction] = []
        self._cursors = [NOTHING]  # of the clone, and of each filesystem above it that has been asked for it

    def at(self, cursor: Cursor) -> FromAbove:
        """Goes on from how far the clone has been flattened by now."""
        self._cursors[0] = cursor
        return self

    def seek(self, table: Table, prefix: bytes) -> tuple[Epoch, bytes] | None:
        """The version under the key, if it falls through; None for nothing."""
        of_data, txns, cursors = table in _OF_DATA, self._txns, self._cursors
        for i, node in enumerate(self._chain):
            if prefix >= (node.first_data if of_data else node.first_ino):
                return None
            if (i == len(cursors) or cursors[i] is not NOTHING) and self._flattened(i, table, prefix):
                return None
            if i == len(txns):
                txns.append(node.above.meta.begin_read())
            found = txns[i].seek(table, prefix, node.link.epoch)
            if found is not None:
                return self._inherit(i, table, prefix, found)
        return None

    def seek_many(self, table: Table, prefixes: Sequence[bytes]) -> list[tuple[Epoch, bytes] | None]:
        """`seek` for each prefix, in the order asked: one pass a level."""
        seen: list[tuple[Epoch, bytes] | None] = [None] * len(prefixes)
        of_data = table in _OF_DATA
        left = list(range(len(prefixes)))
        for i, node in enumerate(self._chain):
            first = node.first_data if of_data else node.first_ino
            left = [n for n in left if prefixes[n] < first and not self._flattened(i, table, prefixes[n])]
            if not left:
                break
            found = self._txn(i).seek_many(table, [prefixes[n] for n in left], node.link.epoch)
            for n, version in zip(left, found, strict=True):
                if version is not None:
                    seen[n] = self._inherit(i, table, prefixes[n], version)
            left = [n for n, version in zip(left, found, strict=True) if version is None]
        return seen

    def visible(self, table: Table, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """(prefix, value as inherited) of what falls through, by prefix; versions not seen are skipped by seeking."""
        start_at = whole(table, start)
        levels = [self._versions(i, table, start_at, stop) for i in range(len(self._chain))]
        done = None
        for prefix, i, birth, value in levels[0] if len(levels) == 1 else merge(*levels):
            if prefix == done:
                continue  # hidden by a nearer filesystem's
            done = prefix
            if records.is_tombstone(value) or any(self._flattened(j, table, prefix) for j in range(i + 1)):
                continue
            found = self._inherit(i, table, prefix, (birth, value))
            if found is not None and prefix + _BORN_FIRST >= start:
                yield prefix, found[1]

    def cost_of(self, table: Table, prefix: bytes, value: bytes) -> Bytes:
        """What an inherited version is charged where it is, with the extents that it alone names there."""
        charge, saved = len(prefix) + 8 + len(value), 0
        if table is Table.CHUNK or table is Table.XATTR:
            if table is Table.CHUNK:
                saved = embedded_saved(value, records.ENVELOPE_BYTES)
            with suppress(CorruptionError, ForeignStore):  # of which is told whoever reads the contents
                for extent, sizes in _named(table, prefix, value).items():
                    if not self._named_again(level_of(value) - 1, extent):
                        more = extent_costs(sizes)
                        charge, saved = charge + more[0], saved + more[1]
        return charge, saved

    def _named_again(self, i: int, extent: ExtentId) -> bool:
        """Whether several keys name the extent in the snapshot of the origin `i`."""
        key = keys.shared(extent)
        value = self._txn(i).get(Table.SHARED, key)
        body = None if value is None else records.unseal(Table.SHARED, key, value)
        if body is None:
            return False
        epoch, lifetimes = self._chain[i].link.epoch, records.unpack_shared(key, body).lifetimes
        return sum(birth <= epoch < death for birth, death in lifetimes.items()) > 1

    def close(self) -> None:
        """Ends the transactions; it may be asked again."""
        for txn in self._txns:
            txn.close()
        self._txns.clear()
        del self._cursors[1:]

    def _txn(self, i: int) -> ReadTransaction:
        while len(self._txns) <= i:
            self._txns.append(self._chain[len(self._txns)].above.meta.begin_read())
        return self._txns[i]

    def _flattened(self, i: int, table: Table, prefix: bytes) -> bool:
        """Whether the filesystem `i` up from the clone has the key to itself."""
        cursors = self._cursors
        while len(cursors) <= i:
            cursors.append(read_cursor(self._txn(len(cursors) - 1))[0])
        return cursors[i] is not NOTHING and (table, prefix) <= cursors[i]

    def _inherit(self, i: int, table: Table, prefix: bytes, found: tuple[Epoch, bytes]) -> tuple[Epoch, bytes] | None:
        """The version of the filesystem that origin `i` is, as the clone inherits it."""
        if records.is_tombstone(found[1]) or (table is Table.CHUNK and self._masked(i, prefix)):
            return None
        return _FIRST, Inherited.at(found[1], prefix + keys.suffix(found[0]), i + 1)

    def _masked(self, i: int, prefix: bytes) -> bool:
        """Whether the chunk waits for its removal in the origin `i`, or in one before it."""
        data, index = int.from_bytes(prefix[:8], "big"), int.from_bytes(prefix[8:], "big")
        return any(
            reads.masked(reads.reclaims_of(self._txn(j)), data, index, self._chain[j].link.epoch) for j in range(i + 1)
        )

    def _versions(
        self, i: int, table: Table, start: bytes, stop: bytes | None
    ) -> Iterator[tuple[bytes, int, Epoch, bytes]]:
        """(prefix, `i`, birth, value) of each version in an origin's own tables that its snapshot sees, by prefix."""
        node, txn = self._chain[i], self._txn(i)
        epoch = node.link.epoch
        first = node.first_data if table in _OF_DATA else node.first_ino
        at: bytes | None = start
        while at is not None:
            restart: bytes | None = None
            done = b""
            for key, value in txn.range(table, at, stop):
                if key >= first:
                    break
                if _is_odd(table, key):
                    if table not in _NAMED:
                        raise keys.malformed(table, key)
                    yield key.removesuffix(b"\0"), i, Epoch(0), value  # like no sound prefix; its sum will not match
                    continue
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
                yield prefix, i, birth, value
            at = restart


def _is_odd(table: Table, key: bytes) -> bool:
    """Whether a key cannot be of its table."""
    if table in _NAMED:
        first = 16 if table is Table.LINK else 8
        return len(key) < first + 10 or key.find(0, first) != len(key) - 9
    return len(key) != (24 if table is Table.CHUNK else 16)


def _named(table: Table, prefix: bytes, value: bytes) -> dict[ExtentId, Sizes]:
    """The extents that an inherited version names, and their sizes."""
    key = prefix + _BORN_FIRST
    body = records.unseal(table, key, value)
    assert body is not None  # a tombstone is not inherited
    found = unpack_slices(table, key, body) if table is Table.CHUNK else unpack_xattr(key, body)
    return {} if isinstance(found, bytes) else {extent: sizes for (extent, _), sizes in slices.extents(found).items()}


def whole(table: Table, start: bytes) -> bytes:
    """Where the versions of the first prefix begin that has one at or after the key `start`."""
    if table in (Table.INODE, Table.INLINE):
        return start[:8]
    if table is Table.CHUNK:
        return start[:16]
    end = start.find(0, 16 if table is Table.LINK else 8)
    return start if end < 0 else start[: end + 1]


class Composed:
    """A read transaction of a clone's tables that reads through to its origins; see the module's text.

    A moment of one that is momentary is a call, or all calls while it is entered as a context.
    """

    def __init__(self, own: ReadTransaction, ancestry: Ancestry, *, momentary: bool) -> None:
        self.own, self.ancestry, self._momentary = own, ancestry, momentary
        self._above = FromAbove(ancestry)
        self._open = not momentary  # within a moment, or within a transaction that is one
        if not momentary:
            self._above.at(read_cursor(own)[0])

    def __enter__(self) -> Composed:
        assert self._momentary
        self._above.at(self.ancestry.cursor)
        self._open = True
        return self

    def __exit__(self, *raised: object) -> None:
        self._open = False
        self._above.close()

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self.own.get(table, key)

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        return self.own.get_many(table, keys)

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        found = self.own.seek(table, prefix, epoch)
        if found is not None:
            return found
        if self._open:
            return self._above.seek(table, prefix)
        with self:
            return self._above.seek(table, prefix)

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        found = self.own.seek_many(table, prefixes, epoch)
        missing = [i for i, version in enumerate(found) if version is None]
        if missing:
            with nullcontext() if self._open else self:
                inherited = self._above.seek_many(table, [prefixes[i] for i in missing])
            for i, seen in zip(missing, inherited, strict=True):
                found[i] = seen
        return found

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        """As of any transaction; in descending order only the clone's own rows."""
        if reverse or table not in VERSIONED:
            return self.own.range(table, start, stop, reverse=reverse)
        return self._merged(table, start, stop)

    def _merged(self, table: Table, start: bytes, stop: bytes | None) -> Iterator[Row]:
        # Of its own: look-ups come between two rows, and end what is kept for them.
        above = FromAbove(self.ancestry).at(self.ancestry.cursor) if self._momentary else self._above
        try:
            inherited = above.visible(table, start, stop)
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
            if self._momentary:
                above.close()

    def close(self) -> None:
        self._above.close()
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

    @property
    def reserved(self) -> int:
        return self._own.reserved


def read_through(meta: MetaStore, payload: PayloadStore, ancestry: Ancestry | None) -> tuple[Readable, PayloadStore]:
    """A filesystem's tables and payload for whoever only reads: those of a clone with its origins."""
    return (meta, payload) if ancestry is None else (CloneMeta(meta, ancestry), ClonePayload(payload, ancestry))
