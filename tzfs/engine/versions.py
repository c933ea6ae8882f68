"""The rules of versioned keys: put, remove, die, free, collect; and the deadlist with its cells.

A versioned key holds one row for each birth epoch.  The invariant, from which everything else follows:

    Of each key's versions the newest is live (a value or a tombstone), and every other has exactly one row in `dead`.
    A version dead at d is seen by the snapshots S with birth <= S < d.

`change` has one row for each physical version, written and deleted with it.  `cell` counts versions, extent lifetimes
and their charged bytes by (death, birth), with death `LIVE` for what lives; what a snapshot alone holds is a sum of
cells.  Extents have lifetimes of their own, (extent, birth), that are buried and freed by the same rules.

Charge: a version costs the length of its stored key and value, a tombstone nothing, an extent its bytes on disk.
Saved: by how much less that is than it would be were nothing compressed; it goes where the charge goes.  Of versions
only a chunk whose payload lies in its record has any, so nothing is looked at in other tables.

Rows are collected, and deleted and written in key order by `settle` (`engine.settling`); until then the store does not
show it.  A caller therefore changes each key at most once between two calls of it.  Nothing here reads or buffers
contents.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

from tzfs.engine.bequest import Bequest
from tzfs.engine.settling import Settling, extent_costs
from tzfs.engine.shared import UNREADABLE
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, Epoch, ExtentId, Table
from tzfs.format.records import ENVELOPE_BYTES, Shared
from tzfs.format.slices import EMBEDDED_MARK, Sizes, embedded_saved
from tzfs.limits import PAGE_BYTES
from tzfs.store.interface import WriteTransaction

_CHUNK: Final = Table.CHUNK
_TOMBSTONE: Final = bytes((records.TOMBSTONE_BIT,))  # a value that begins with it, or a higher byte, is one
_change_key: Final = keys.change
_suffix: Final = keys.suffix

Version = tuple[Epoch, bytes]  # a row's birth, and its value as stored
Lifetime = tuple[tuple[ExtentId, Epoch], Sizes]  # an extent, from when it is referenced, and its sizes


class _Unknown(Enum):
    UNKNOWN = "not looked for yet"


UNKNOWN: Final = _Unknown.UNKNOWN


def _charge(prefix: bytes, value: bytes) -> int:
    """What a stored version costs: key and value, a tombstone nothing."""
    return 0 if records.is_tombstone(value) else len(prefix) + 8 + len(value)


def version_costs(table: Table, prefix: bytes, value: bytes) -> tuple[int, int]:
    """What a stored version is charged, and what compression has saved of that; it need not have been verified."""
    return _charge(prefix, value), embedded_saved(value, ENVELOPE_BYTES) if table is _CHUNK else 0


class Versions(Settling):
    """The versioned tables of one filesystem within one write transaction at a time.

    `snapshots` are the epochs of the surviving snapshots, ascending.
    """

    def __init__(self, drift: Callable[[str, int], None], report: Callable[[str], None]) -> None:
        super().__init__(drift, report)
        self.snapshots: list[int] = []
        self.oldest_bookmark: int | None = None
        self.oldest_destroy: int | None = None  # the oldest snapshot whose destroy is under way
        self.inherits: Callable[[Table, bytes], bool] | None = None  # of a clone: whether its origin shows a value
        self.bequest: Bequest | None = None  # of a clone: what it does not inherit any more
        self.sought: dict[bytes, Version | None] = {}  # rows of entries that are about to change, by their prefix

    def begin(self, txn: WriteTransaction) -> None:
        super().begin(txn)
        if self.bequest is not None:
            self.bequest.forget()

    def settle(self) -> None:
        super().settle()
        if self.bequest is not None:
            self.bequest.settle(self.txn)

    def first(self, table: Table, prefix: bytes, at: int) -> None:
        """A key that has no version gets one, born at `at`: if it was inherited, it is not any more."""
        if self.bequest is not None:
            self.bequest.changed(table, prefix, at)

    # -- put and remove ------------------------------------------------------------------------------------------

    def put(
        self,
        table: Table,
        prefix: bytes,
        body: bytes,
        at: int,
        *,
        fresh: bool = False,
        old: Version | _Unknown | None = UNKNOWN,
    ) -> None:
        """Makes `body` the newest version of `prefix`, born at `at`.

        `fresh`: it is known to have no version.  `old`: what `seek` would find now, for a caller who knows.
        """
        key = prefix + _suffix(at)
        charge = len(key) + ENVELOPE_BYTES + len(body)
        saved = embedded_saved(body) if table is _CHUNK else 0
        if fresh:
            old = None
        elif old is UNKNOWN:
            old = self.txn.seek(table, prefix, at)
        self._row(table, key, body)
        if old is not None and old[0] == at:
            if table is _CHUNK:
                saved -= embedded_saved(old[1], ENVELOPE_BYTES)
            self._count(LIVE, at, 0, charge - _charge(prefix, old[1]), saved)
            return
        self._row(Table.CHANGE, _change_key(at, table, prefix), b"")
        self._count(LIVE, at, 1, charge, saved)
        if old is not None:
            self._kill(table, prefix, old, at)
        elif self.bequest is not None:
            self.first(table, prefix, at)

    def put_many(
        self,
        table: Table,
        rows: Sequence[tuple[bytes, bytes]],
        at: int,
        *,
        olds: Sequence[Version | None] | None = None,
    ) -> None:
        """`put` of each (prefix, body), which ascend: one pass over the table; what is replaced takes half.

        `olds`: what `seek` would find."""
        end, replaced, grown, saved = _suffix(at), self._rows.setdefault(table, []), 0, 0
        if olds is None:
            olds = self.txn.seek_many(table, [prefix for prefix, _ in rows], at)
        for (prefix, body), old in zip(rows, olds, strict=True):
            if old is None or old[0] != at or (value := old[1])[:1] >= _TOMBSTONE:
                self.put(table, prefix, body, at, old=old)
            else:
                replaced.append((prefix + end, body))
                grown += ENVELOPE_BYTES + len(body) - len(value)
                if table is _CHUNK:
                    saved += embedded_saved(body) - embedded_saved(value, ENVELOPE_BYTES)
        if grown or saved:
            self._count(LIVE, at, 0, grown, saved)

    def put_fresh(self, table: Table, rows: Sequence[tuple[bytes, bytes]], at: int) -> None:
        """`put` of each (prefix, body), all of which are known to have no version: a third of its cost."""
        if rows:
            end, begin = _suffix(at), _change_key(at, table, b"")
            self._rows.setdefault(table, []).extend([(prefix + end, body) for prefix, body in rows])
            self._rows.setdefault(Table.CHANGE, []).extend([(begin + prefix, b"") for prefix, _ in rows])
            charge = sum([len(prefix) + len(body) for prefix, body in rows]) + len(rows) * (8 + ENVELOPE_BYTES)
            saved = 0
            if table is _CHUNK:
                saved = sum([embedded_saved(body) for _, body in rows if body[:1] == EMBEDDED_MARK])
            self._count(LIVE, at, len(rows), charge, saved)
            if self.bequest is not None and table is Table.DIRENT:  # all others have ids of the clone's own
                for prefix, _ in rows:
                    self.first(table, prefix, at)

    def remove(self, table: Table, prefix: bytes, at: int, *, old: Version | _Unknown | None = UNKNOWN) -> None:
        """Makes `prefix` absent from epoch `at` on: a tombstone, or no row at all where none is needed.  `old`: as for
        `put`."""
        if old is UNKNOWN:
            old = self.txn.seek(table, prefix, at)
        if old is None:
            if self.inherited(table, prefix):
                self._tombstone(table, prefix, at)
                self.first(table, prefix, at)
            return
        if records.is_tombstone(old[1]):
            return
        birth, _ = old
        kept = birth != at and self.seen(birth, at)
        if not kept:
            older = self._may_have_older(birth) and self.txn.seek(table, prefix, birth - 1) is not None
            self._free(table, prefix, old)
            if not older and not self._bookmarked(at) and not self.inherited(table, prefix):
                return
        self._tombstone(table, prefix, at)
        if kept:
            self.bury(table, prefix, old, at)

    def _tombstone(self, table: Table, prefix: bytes, at: int) -> None:
        self._tombstones.append((table, prefix + _suffix(at)))
        self._row(Table.CHANGE, _change_key(at, table, prefix), b"")
        self._count(LIVE, at, 1, 0)

    def inherited(self, table: Table, prefix: bytes) -> bool:
        """Whether something would show below the key's versions, if they were not there."""
        return self.inherits is not None and self.inherits(table, prefix)

    def remove_many(
        self, table: Table, prefixes: Sequence[bytes], at: int, *, olds: Sequence[Version | None] | None = None
    ) -> None:
        """`remove` for each of `prefixes`, which ascend: one pass over the table.  `olds`: what `seek` would find.

        What can be freed without a tombstone, which without snapshots is all, takes a third of the time here.
        """
        if olds is None:
            olds = self.txn.seek_many(table, prefixes, at)
        if self.inherits is not None:
            for prefix, old in zip(prefixes, olds, strict=True):
                self.remove(table, prefix, at, old=old)
            return
        births: dict[int, list[tuple[bytes, bytes]] | None] = {}  # what is freed; None: no version of that birth can be
        for prefix, old in zip(prefixes, olds, strict=True):
            if old is None:
                continue
            birth, value = old
            if birth not in births:
                kept = birth != at and self.seen(birth, at)
                births[birth] = None if kept or self._may_have_older(birth) or self._bookmarked(at) else []
            freed = births[birth]
            if freed is None or value[:1] >= _TOMBSTONE:
                self.remove(table, prefix, at, old=old)
            else:
                freed.append((prefix, value))
        for born, freed in births.items():
            if freed:
                end, begin, saved = _suffix(born), _change_key(born, table, b""), 0
                self._gone.setdefault(table, []).extend([prefix + end for prefix, _ in freed])
                self._gone.setdefault(Table.CHANGE, []).extend([begin + prefix for prefix, _ in freed])
                size = sum([len(prefix) + len(value) for prefix, value in freed]) + 8 * len(freed)
                if table is _CHUNK:
                    saved = sum([embedded_saved(value, ENVELOPE_BYTES) for _, value in freed])
                self._count(LIVE, born, -len(freed), -size, -saved)

    def _kill(self, table: Table, prefix: bytes, old: Version, at: int) -> None:
        if self.seen(old[0], at):
            self.bury(table, prefix, old, at)
        else:
            self._free(table, prefix, old)

    def bury(self, table: Table, prefix: bytes, old: Version, at: int) -> None:
        """The live version `old` goes on the deadlist, whether or not a snapshot sees it."""
        birth, value = old
        charge, saved = version_costs(table, prefix, value)
        self._count(LIVE, birth, -1, -charge, -saved)
        self._count(at, birth, 1, charge, saved)
        self._dead(at, birth, table, prefix, charge, saved)

    def _free(self, table: Table, prefix: bytes, old: Version) -> None:
        birth, value = old
        charge, saved = version_costs(table, prefix, value)
        self._count(LIVE, birth, -1, -charge, -saved)
        self._delete(table, prefix + _suffix(birth))
        self._delete(Table.CHANGE, _change_key(birth, table, prefix))

    def dead_version_freed(
        self, table: Table, prefix: bytes, birth: int, death: int, *, charge: int, saved: int
    ) -> None:
        """A version on the deadlist goes for good; `charge` and `saved` are what its dead row says.  `collect` comes
        after."""
        self._count(death, birth, -1, -charge, -saved)
        self._delete(Table.DEAD, keys.dead(death, birth, table, prefix))
        self._delete(table, prefix + _suffix(birth))
        self._delete(Table.CHANGE, _change_key(birth, table, prefix))

    def collect(self, table: Table, prefixes: Sequence[bytes]) -> None:
        """Frees the tombstone of each of `prefixes`, which ascend, that is alone with it and that no bookmark needs."""
        for prefix, newest in zip(prefixes, self.txn.seek_many(table, prefixes, keys.EPOCH_MAX), strict=True):
            if newest is None or not records.is_tombstone(newest[1]) or self._bookmarked(newest[0]):
                continue
            older = newest[0] > 0 and self.txn.seek(table, prefix, newest[0] - 1) is not None
            if not older and not self.inherited(table, prefix):
                self._free(table, prefix, newest)
                if table is Table.DIRENT:
                    self.sought.pop(prefix, None)

    def seen(self, birth: int, death: int) -> bool:
        """Whether a surviving snapshot sees what was born at `birth` and died at `death`."""
        snapshots = self.snapshots
        i = bisect_left(snapshots, birth)
        return i < len(snapshots) and snapshots[i] < death

    def _may_have_older(self, birth: int) -> bool:
        """Whether a version older than one born at `birth` can be there: only where a snapshot saw it die, be it one
        that is being destroyed."""
        if self.oldest_destroy is not None and self.oldest_destroy < birth:
            return True
        return bool(self.snapshots) and self.snapshots[0] < birth

    def _bookmarked(self, birth: int) -> bool:
        return self.oldest_bookmark is not None and self.oldest_bookmark < birth

    # -- extents -------------------------------------------------------------------------------------------------

    def extents_born(self, lifetimes: Iterable[Lifetime]) -> None:
        """Extents are referenced for the first time, by versions born at the birth of each."""
        totals: dict[int, list[int]] = {}
        segments = self._segments
        for (extent, birth), (stored, raw) in lifetimes:
            charge = (stored + PAGE_BYTES - 1) & -PAGE_BYTES
            total = totals.setdefault(birth, [0, 0, 0])
            total[0] += 1
            total[1] += charge
            if raw != stored:
                total[2] += ((raw + PAGE_BYTES - 1) & -PAGE_BYTES) - charge
            use = segments.setdefault(extent >> 32, [0, 0, 0])
            use[0] += 1
            use[1] += charge
            use[2] = max(use[2], keys.extent_offset(extent) + charge)
        for born, (count, size, saved) in totals.items():
            self._count(LIVE, born, count, size, saved)

    def extents_died(self, lifetimes: Iterable[Lifetime], at: int, txg: int) -> None:
        """The newest versions of their chunks do not name them any more."""
        plain: dict[int, list[int] | None] = {}  # by birth: sums of those that nothing sees or shares
        segments, holes = self._segments, self._holes
        for (extent, birth), (stored, raw) in lifetimes:
            if birth not in plain:
                plain[birth] = None if self.shared.any or self.seen(birth, at) else [0, 0, 0]
            total = plain[birth]
            if total is None:
                if self.seen(birth, at):
                    self.extent_buried(extent, birth, (stored, raw), at)
                else:
                    self.live_extent_freed(extent, birth, (stored, raw), txg)
                continue
            charge = (stored + PAGE_BYTES - 1) & -PAGE_BYTES
            total[0] += 1
            total[1] += charge
            if raw != stored:
                total[2] += ((raw + PAGE_BYTES - 1) & -PAGE_BYTES) - charge
            use = segments.setdefault(extent >> 32, [0, 0, 0])
            use[0] -= 1
            use[1] -= charge
            use[2] = max(use[2], keys.extent_offset(extent) + charge)
            holes.append((txg, extent, charge))
        for born, total in plain.items():
            if total is not None:
                self._count(LIVE, born, -total[0], -total[1], -total[2])

    def extent_buried(self, extent: int, birth: int, sizes: Sizes, at: int) -> None:
        """A live lifetime goes on the deadlist, whether or not a snapshot sees it."""
        charge, saved = extent_costs(sizes)
        self._count(LIVE, birth, -1, -charge, -saved)
        shared = self.shared.get(extent)
        if shared is not None:
            self._shared_with(extent, shared, birth, at)
            charge = saved = 0
        self._count(at, birth, 1, charge, saved)
        self._dead(at, birth, Table.EXTENT, keys.u64(extent), charge, saved)

    def dead_extent_freed(self, extent: ExtentId, birth: int, death: int, txg: int, *, charge: int, saved: int) -> None:
        """A lifetime on the deadlist goes for good; `charge` and `saved` are what its dead row says in the tables."""
        key = keys.dead(death, birth, Table.EXTENT, keys.u64(extent))
        charge, saved = self._recharged.pop(key, (charge, saved))
        self._count(death, birth, -1, -charge, -saved)
        self._delete(Table.DEAD, key)
        self._lifetime_ended(extent, birth, charge, txg)

    def _lifetime_ended(self, extent: ExtentId, birth: int, charge: int, txg: int) -> None:
        """The lifetime is in no cell any more: with the last one goes the extent, which costs `charge`."""
        shared = self.shared.get(extent)
        if shared is None:
            self.use(extent, charge, -1, -charge)
            self.punch(extent, charge, txg)
            return
        if shared is UNREADABLE:
            return
        left = {b: d for b, d in shared.lifetimes.items() if b != birth}
        if len(left) > 1:
            self.shared.put(extent, shared._replace(lifetimes=left))
            return
        self.shared.put(extent, None)
        ((born, died),) = left.items()
        if died != LIVE:
            self._recharge(extent, born, died, shared.charge, shared.saved)

    def _shared_with(self, extent: int, shared: Shared, birth: int, death: int) -> None:
        lifetimes = {**shared.lifetimes, Epoch(birth): Epoch(death)}
        self.shared.put(extent, shared._replace(lifetimes=lifetimes))

    def _recharge(self, extent: int, birth: int, death: int, by: int, saved: int) -> None:
        """The last lifetime, dead, carries the bytes of its extent from now on, or (`by` below 0) does not any more."""
        self._count(death, birth, 0, by, saved)
        self._recharged[keys.dead(death, birth, Table.EXTENT, keys.u64(extent))] = max(by, 0), max(saved, 0)

    def extent_revived(self, extent: int, at: int, sizes: Sizes, *, birth: int, death: int) -> None:
        """A lifetime more, born at `at`, of an extent whose lifetime from `birth` to `death` is known.

        The caller has seen to it that there is room for one: `shared.LIFETIMES_MAX`.
        """
        charge, saved = extent_costs(sizes)
        shared = self.shared.get(extent)
        if shared is None:
            shared = Shared(charge, {Epoch(birth): Epoch(death)}, saved)
            if death != LIVE:
                self._recharge(extent, birth, death, -charge, -saved)
        self._shared_with(extent, shared, at, LIVE)
        self._count(LIVE, at, 1, charge, saved)

    # -- taking back what was staged -------------------------------------------------------------------------------

    def insert(self, table: Table, prefix: bytes, body: bytes | None, at: int) -> None:
        """A version (None: a tombstone) born at `at`, above all others of `prefix`, which stay as they are."""
        key = prefix + _suffix(at)
        self._row(Table.CHANGE, _change_key(at, table, prefix), b"")
        if body is None:
            self._tombstones.append((table, key))
            self._count(LIVE, at, 1, 0)
            return
        self._row(table, key, body)
        saved = embedded_saved(body) if table is _CHUNK else 0
        self._count(LIVE, at, 1, len(key) + ENVELOPE_BYTES + len(body), saved)

    def free_live(self, table: Table, prefix: bytes, old: Version) -> None:
        """The live version `old` goes for good; what becomes the newest is the caller's to revive."""
        self._free(table, prefix, old)

    def unbury(self, table: Table, prefix: bytes, old: Version, death: int) -> None:
        """The dead version `old` lives again."""
        birth, value = old
        charge, saved = version_costs(table, prefix, value)
        self._count(death, birth, -1, -charge, -saved)
        self._delete(Table.DEAD, keys.dead(death, birth, table, prefix))
        self._count(LIVE, birth, 1, charge, saved)

    def live_extent_freed(self, extent: ExtentId, birth: int, sizes: Sizes, txg: int) -> None:
        """A live lifetime goes for good."""
        charge, saved = extent_costs(sizes)
        self._count(LIVE, birth, -1, -charge, -saved)
        self._lifetime_ended(extent, birth, charge, txg)

    def extent_unburied(self, extent: int, birth: int, sizes: Sizes, death: int) -> None:
        """The dead lifetime lives again."""
        charge, saved = extent_costs(sizes)
        shared = self.shared.get(extent)
        if shared is not None:
            self._shared_with(extent, shared, birth, LIVE)
            self._count(death, birth, -1, 0)
        else:
            self._count(death, birth, -1, -charge, -saved)
        key = keys.dead(death, birth, Table.EXTENT, keys.u64(extent))
        self._recharged.pop(key, None)
        self._delete(Table.DEAD, key)
        self._count(LIVE, birth, 1, charge, saved)
