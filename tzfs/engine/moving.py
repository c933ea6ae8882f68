"""Payload that is nearly alone in its segment moves into the one being filled, so that its segment can be unlinked.

Holes give back what died, without a copy; but a disk that cannot punch keeps a segment until all of it is dead, and
each segment, however empty, is a file.  So extents of *sparse* segments are copied, and renamed in every row that names
them: in all versions of their chunk or attribute, those that only snapshots see included, and in the deadlist.  Nothing
is born or dies, no charge or epoch changes, so no snapshot, diff or counter can tell; the old place is punched when
those who may still read it (`pins`) have.  Readers in other processes plan again, as FORMAT.md 8.3 has them do.

    scan     rows of `dead`, then of `chunk` and `xattr`, a batch a step: who names an extent of a sparse segment
    copy     a batch is given places and copied in a thread, and synced
    rename   everything is looked at again, for it may have changed since; what has is left where it is

An extent with a row in `shared`, one that is being written, or one whose lifetime cannot be accounted for by what was
scanned, stays until another time.  A copy that is not wanted goes to `unused_extents`.
No commit comes between copy and rename, or the batch is given up: a crash would leave copies that nothing names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final

from tzfs import failpoints, limits
from tzfs.engine.committed import readable_segments
from tzfs.engine.head import Head
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.settling import extent_charge
from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import ExtentId, Table
from tzfs.format.slices import Slice, slices_of, with_slices

failpoints.declare("move.copy", "extents of a sparse segment are about to be copied")
failpoints.declare("move.rename", "the copies are durable; rows are about to name them")

SCAN_ROWS: Final = 256  # 10 us each: a step keeps requests waiting for 3 ms
COPY_BYTES_MAX: Final = 4 * limits.MIB  # copied and synced in one go, in a thread
PREFIXES_MAX: Final = 32  # renamed in one step
SPARSE_PART: Final = 16  # a segment of which a sixteenth is live, or less
SMALL_BYTES: Final = 1 * limits.MIB  # a segment with less than that is small,
SMALL_MAX: Final = 16  # and so many of them are left: each writer begins a segment of its own

_EXTENT: Final = bytes((Table.EXTENT,))

Found = tuple[Table, bytes]  # a table, and the prefix of a key
Step = Callable[[], Callable[[], object]] | None


class _Copy:
    """A batch of extents that are copied: from where to where.  The places are in `head.copies` until a row names them;
    a commit takes them from there, since nothing would say after a crash that they are not wanted."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self.places: dict[int, tuple[Found, ExtentId, int]] = {}
        self.taken = 0  # of the prefixes

    def add(self, prefix: Found, old: int, stored: int) -> None:
        new = self._head.payload.allocate(stored)
        self.places[old] = prefix, new, stored
        self._head.copies[new] = stored

    def run(self) -> None:
        """Copies, durably; on any thread."""
        if self.places:
            failpoints.hit("move.copy")
            payload = self._head.payload
            parts = [(new, payload.read(ExtentId(old), 0, size)) for old, (_, new, size) in self.places.items()]
            payload.write(sorted(parts))
            payload.sync()

    def wanted(self, prefix: Found) -> dict[int, tuple[ExtentId, int]]:
        """What may still be named, of a prefix."""
        copies = self._head.copies
        return {old: (new, n) for old, (owner, new, n) in self.places.items() if owner == prefix and new in copies}

    def end(self) -> None:
        """What no row names is given back; nothing where renaming broke off, which fails the head."""
        head = self._head
        if head.changing:
            return
        left = [(new, stored) for _, new, stored in self.places.values() if head.copies.pop(new, None) is not None]
        if left:
            head.begin_change()
            head.unused_extents += left
            head.end_invisible_change()


class Mover:
    """Empties sparse segments of a head."""

    def __init__(self, head: Head, pins: Reclaimer) -> None:
        self._head, self._pins = head, pins
        self.moved_bytes = 0

    def sparse(self) -> frozenset[int]:
        """The segments worth emptying now."""
        head, small, found, holes = self._head, [], set(), None
        for key, (count, live, end) in readable_segments(head.txn):
            number = int.from_bytes(key, "big")
            if not count or number == head.payload.filling:
                continue
            if holes is None:
                holes = head.payload.data_ranges(number) is not None
            if live <= (end - limits.PAGE_BYTES) // (SPARSE_PART if holes else 2):
                found.add(number)
            elif live < SMALL_BYTES:
                small.append(number)
        return frozenset(found if len(small) <= SMALL_MAX else {*found, *small})

    def steps(self, segments: frozenset[int]) -> Iterator[Step]:
        """Empties the segments, a bounded step each.

        What is yielded, if anything, is called on this thread, and what that answers is run in another, before the next
        step; a commit in between lets the batch be in vain.
        """
        dead: dict[int, list[bytes]] = {}
        for key, _ in self._scan(Table.DEAD, segments):
            if key is not None and key[16:17] == _EXTENT:
                extent = int.from_bytes(key[17:], "big")
                if extent >> 32 in segments:
                    dead.setdefault(extent, []).append(key)
            elif key is None:
                yield None
        for table in (Table.CHUNK, Table.XATTR):
            found: list[Found] = []
            for key, value in self._scan(table, segments):
                if key is None:
                    yield from self._move(found, segments, dead)
                    found = []
                    yield None
                elif any(s.extent >> 32 in segments for s in _slices(table, key, value)):
                    prefix = table, key[:-8]
                    if not found or found[-1] != prefix:
                        found.append(prefix)
            yield from self._move(found, segments, dead)

    def _scan(self, table: Table, segments: frozenset[int]) -> Iterator[tuple[bytes | None, bytes]]:
        """The rows of a table, a batch at a time, each batch followed by None for a key."""
        start = b""
        while segments:
            rows = list(islice(self._head.txn.range(table, start), SCAN_ROWS))
            yield from rows
            if len(rows) < SCAN_ROWS:
                return
            start = rows[-1][0] + b"\0"
            yield None, b""

    def _move(self, found: Sequence[Found], segments: frozenset[int], dead: dict[int, list[bytes]]) -> Iterator[Step]:
        head = self._head
        while found:
            copy = _Copy(head)
            pin = self._pins.pin()
            try:
                yield partial(self._begin, copy, found[:PREFIXES_MAX], segments, dead)
                for prefix in dict.fromkeys(prefix for prefix, _, _ in copy.places.values()):
                    self._rename(prefix, copy, dead)
            finally:
                copy.end()
                self._pins.unpin(pin)
            found = found[max(copy.taken, 1) :]
            yield None

    def _begin(
        self, copy: _Copy, batch: Sequence[Found], segments: frozenset[int], dead: dict[int, list[bytes]]
    ) -> Callable[[], object]:
        """Finds new places for the extents of as many of the batch as may be copied at once; what copies them."""
        total = 0
        for prefix in batch:
            movable = self._movable(prefix, segments, dead)
            total += sum(map(extent_charge, movable.values()))
            if copy.taken and total > COPY_BYTES_MAX:
                break
            if movable:
                self._head.payload.reserve(self._head.unplaced() + total)
            for old, stored in movable.items():
                copy.add(prefix, old, stored)
            copy.taken += 1
        return copy.run

    def _versions(self, prefix: Found) -> list[tuple[bytes, tuple[Slice, ...]]]:
        """The versions of a chunk or attribute, newest first."""
        table, name = prefix
        rows = self._head.txn.range(table, name, name + b"\xff" * 9)
        return [(key, _slices(table, key, value)) for key, value in rows if key[:-8] == name]

    def _movable(self, prefix: Found, segments: frozenset[int], dead: dict[int, list[bytes]]) -> dict[int, int]:
        """The extents of the segments that the prefix has, and nobody else: with the stored bytes of each."""
        head, (table, name) = self._head, prefix
        owner = int.from_bytes(name[:8], "big")
        if head.staging is not None or owner in (head.contents if table is Table.CHUNK else head.xattrs):
            return {}
        if any(drop.data == owner for drop in head.drops) and table is Table.CHUNK:
            return {}
        found: dict[int, int] = {}
        births: dict[int, set[int]] = {}
        versions = self._versions(prefix)
        newest = {(s.extent, s.birth) for s in versions[0][1]} if versions else set()
        for _, slices in versions:
            for s in slices:
                if s.extent >> 32 in segments:
                    found[s.extent] = s.stored_bytes
                    births.setdefault(s.extent, set()).add(s.birth)
        for extent, born in births.items():
            rows = {key: self._is_sound(key) for key in dead.get(extent, ())}
            buried = {keys.dead_parts(key)[1] for key, sound in rows.items() if sound}
            shared = head.versions.shared.get(extent) is not None
            damaged = False in rows.values()
            if shared or damaged or any((extent, b) not in newest and b not in buried for b in born) or buried - born:
                del found[extent]
        return found

    def _is_sound(self, key: bytes) -> bool | None:
        """Whether a row of the deadlist is whole; None where it is not there any more."""
        value = self._head.txn.get(Table.DEAD, key)
        try:
            return None if value is None else records.unseal(Table.DEAD, key, value) is not None
        except CorruptionError:
            return False

    def _rename(self, prefix: Found, copy: _Copy, dead: dict[int, list[bytes]]) -> None:
        """Has all rows of a chunk or attribute name the copies."""
        failpoints.hit("move.rename")
        head, (table, _) = self._head, prefix
        places = copy.wanted(prefix)
        movable = self._movable(prefix, frozenset(old >> 32 for old in places), dead)
        moved = {old: place for old, place in places.items() if old in movable}
        if not moved:
            return
        head.begin_change()
        for key, slices in self._versions(prefix):
            if not any(s.extent in moved for s in slices):
                continue
            renamed = tuple(s._replace(extent=moved[s.extent][0]) if s.extent in moved else s for s in slices)
            head.txn.put(table, key, records.seal(table, key, with_slices(table, renamed)))
        for old, (new, stored) in moved.items():
            for key in dead.get(old, ()):
                value = head.txn.get(Table.DEAD, key)
                body = None if value is None else records.unseal(Table.DEAD, key, value)
                if body is not None:
                    death, birth, _, _ = keys.dead_parts(key)
                    again = keys.dead(death, birth, Table.EXTENT, keys.u64(new))
                    head.txn.delete(Table.DEAD, key)
                    head.txn.put(Table.DEAD, again, records.seal(Table.DEAD, again, body))
            charge = extent_charge(stored)
            head.versions.use(old, charge, -1, -charge)
            head.versions.use(new, charge, 1, charge)
            head.versions.punch(ExtentId(old), stored, head.counters.txg)
            self.moved_bytes += charge
            del head.copies[new]
        head.versions.settle()
        head.dirty_rows += 4 * len(moved)
        head.end_invisible_change()


def _slices(table: Table, key: bytes, value: bytes) -> tuple[Slice, ...]:
    """The slices of a row; none of one that has no payload, or cannot be read: a check will say so."""
    try:
        return slices_of(table, key, records.unseal(table, key, value))
    except CorruptionError:
        return ()
