"""The invariant of versions: of each key the newest lives, every other has one row in `dead`; each has one in `change`.

The versioned tables are walked by the passes that know what is in them (`names`, `contents`), all through `walk`, which
counts every version on the way.  `change` and `dead` are in another order than the versions they are about, so they are
compared by sums of hashes, which costs no memory; where the sums differ, `explain` reads the tables once more and says
which rows.  (The hashes are Python's, seeded anew in each process: nothing in a store can be made to defeat them.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tzfs.engine.check.forms import key_form
from tzfs.engine.check.problems import Findings, Rule
from tzfs.engine.check.tables import Facts, rows
from tzfs.engine.foreign import level_of
from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, VERSIONED, Table
from tzfs.format.records import Cell
from tzfs.format.slices import embedded_saved
from tzfs.limits import PAGE_BYTES
from tzfs.store.interface import ReadTransaction

_SUM_MASK = (1 << 64) - 1


def costs_of(table: Table, key: bytes, value: bytes) -> tuple[int, int]:
    """What a stored version is charged, and what compression has saved of that."""
    if records.is_tombstone(value):
        return 0, 0
    return len(key) + len(value), embedded_saved(value, records.ENVELOPE_BYTES) if table is Table.CHUNK else 0


class Version(NamedTuple):
    """A version as `walk` finds it.  The views [first, last) see it.  `body` is None for a tombstone; `damaged`: its
    value cannot be read, and nothing is known of it but that it is there.  `level`: how many origins up it is."""

    key: bytes
    prefix: bytes
    birth: int
    first: int
    last: int
    newest: bool
    damaged: bool
    body: bytes | None
    level: int = 0


class Versions:
    """The versioned tables of one check, and what is counted while they are walked.

    `deaths` has the dead lifetimes of extents: (extent, birth) -> (death, charge, saved).
    """

    def __init__(self, txn: ReadTransaction, facts: Facts, findings: Findings) -> None:
        self._txn, self._facts, self._findings = txn, facts, findings
        self.deaths: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._cells: Counter[tuple[int, int]] = Counter()
        self._charges: Counter[tuple[int, int]] = Counter()
        self._saved: Counter[tuple[int, int]] = Counter()
        self._versions = self._dead = 0  # sums of hashes: of all versions, and of those that are not the newest
        self._change_rows = self._dead_rows = 0

    # -- walking a table ---------------------------------------------------------------------------------------------

    def walk(self, table: Table) -> Iterator[Version]:
        """All versions in a table, those of one key newest first."""
        facts, report = self._facts, self._findings.report
        views, seal = facts.views, records.unseal
        previous, last, lone = b"", 0, b""
        for key, value in self._txn.range(table, b""):
            self._findings.rows += 1
            wrong = key_form(table, key)
            if wrong is not None:
                report(Rule.KEY, table, key, wrong)
                continue
            prefix = key[:-8]
            newest = prefix != previous
            previous = prefix
            birth = keys.birth_of(key)
            if newest:
                self._collected(table, lone)
                last = len(views)
            first = bisect_left(views, birth)
            if level := level_of(value):  # no row of this filesystem: no version, charge, change or death of its own
                body = seal(table, key, value)
                lone = b""
                yield Version(key, prefix, birth, first, last, newest, False, body, level)
                last = first
                continue
            if birth > facts.epoch and not facts.staging:
                report(Rule.ID, table, key, f"born at {birth}, above the head at {facts.epoch}")
            change = hash(keys.change(birth, table, prefix))
            self._versions += change
            if not newest:
                self._dead += change
            damaged = False
            try:
                body = seal(table, key, value)
            except (CorruptionError, ForeignStore) as error:
                report(Rule.RECORD, table, key, str(error))
                damaged, body = True, None
            lone = key if newest and body is None and not damaged else b""
            if newest:
                self.count(LIVE, birth, *costs_of(table, key, value))
            yield Version(key, prefix, birth, first, last, newest, damaged, body)
            last = first
        self._collected(table, lone)

    def _collected(self, table: Table, lone: bytes) -> None:
        """A tombstone is kept for older versions, or for a bookmark; `lone` is one that has no older versions."""
        if lone and not self._awaited(table, lone):
            self._findings.report(Rule.VERSION, table, lone, "a tombstone of something that has no other version")

    def _awaited(self, table: Table, lone: bytes) -> bool:
        facts, birth = self._facts, keys.birth_of(lone)
        if facts.oldest_bookmark is not None and facts.oldest_bookmark < birth:
            return True
        return facts.uncollected is not None and facts.uncollected <= keys.change(birth, table, lone[:-8])

    def prefixes(self, table: Table) -> Iterator[bytes]:
        """What the keys of a table are about, each once; for a second reading."""
        previous = b""
        for key, _ in self._txn.range(table, b""):
            self._findings.rows += 1
            if key[:-8] != previous and key_form(table, key) is None:
                previous = key[:-8]
                yield previous

    def count(self, death: int, birth: int, charge: int, saved: int) -> None:
        """One version or lifetime more in a cell."""
        self._cells[death, birth] += 1
        self._charges[death, birth] += charge
        if saved:
            self._saved[death, birth] += saved

    # -- the deadlist and `change` -----------------------------------------------------------------------------------

    def run(self) -> Iterator[None]:
        """Reads `dead` and `change`; before the versions are walked."""
        for key, body in rows(self._txn, self._findings, Table.DEAD):
            yield
            try:
                (charge,), saved = records.unpack_charged(Table.DEAD, key, body)
            except CorruptionError as error:
                self._findings.report(Rule.RECORD, Table.DEAD, key, str(error))
                continue
            self._dead_row(key, charge, saved)
        for key, body in rows(self._txn, self._findings, Table.CHANGE):
            yield
            self._change_rows += hash(key)
            if body:
                self._findings.report(Rule.RECORD, Table.CHANGE, key, "a row of change is empty")

    def _dead_row(self, key: bytes, charge: int, saved: int) -> None:
        facts, report = self._facts, self._findings.report
        death, birth, table, prefix = keys.dead_parts(key)
        self.count(death, birth, charge, saved)
        if death > facts.epoch and not facts.staging:
            report(Rule.ID, Table.DEAD, key, f"dead at {death}, above the head at {facts.epoch}")
        if not self._kept(birth, death):
            report(Rule.DEADLIST, Table.DEAD, key, f"no snapshot sees what was born at {birth} and died at {death}")
        if table is Table.EXTENT:
            lifetime = (int.from_bytes(prefix, "big"), birth)
            if lifetime in self.deaths:
                report(Rule.EXTENT, Table.DEAD, key, f"extent {lifetime[0]:#x} born at {birth} has died twice")
            self.deaths[lifetime] = (death, charge, saved)
            if charge % PAGE_BYTES or (not charge and lifetime[0] not in facts.shared):
                report(Rule.DEADLIST, Table.DEAD, key, f"an extent is not charged {charge} bytes")
            return
        self._dead_rows += hash(key[8:])
        row = prefix + keys.suffix(birth)
        value = self._txn.get(table, row)
        newer = next(iter(self._txn.range(table, prefix, row, reverse=True)), None)
        if value is None or newer is None:
            return  # the sums will not agree, and `explain` says why
        until = keys.birth_of(newer[0])
        if death > until:
            report(Rule.VERSION, Table.DEAD, key, f"dead at {death}, and the next version was born at {until}")
        elif bisect_left(facts.views, death) != bisect_left(facts.views, until):
            report(Rule.VERSION, Table.DEAD, key, f"dead at {death}, and seen until {until}")
        costs, spared = costs_of(table, row, value)
        if charge != costs:
            report(Rule.DEADLIST, Table.DEAD, key, f"charged {charge} bytes for a version of {costs}")
        elif not facts.saved(saved, spared):
            report(Rule.DEADLIST, Table.DEAD, key, f"saved {saved} bytes of a version that spares {spared}")

    def _kept(self, birth: int, death: int) -> bool:
        """Whether a snapshot sees it, or a destroy under way has not come to it yet."""
        views = self._facts.views
        at = bisect_left(views, birth)
        if at < len(views) and views[at] < death:
            return True
        return any(d.older < birth <= d.snapshot < death <= d.newer for d in self._facts.destroys)

    # -- at the end --------------------------------------------------------------------------------------------------

    def explain(self) -> Iterator[None]:
        """After all tables have been walked: where `change` or `dead` do not match the versions, which rows."""
        if (self._versions - self._change_rows) & _SUM_MASK:
            yield from self._explain_changes()
        if (self._dead - self._dead_rows) & _SUM_MASK:
            yield from self._explain_deaths()

    def _explain_changes(self) -> Iterator[None]:
        report = self._findings.report
        changes = {key for key, _ in self._txn.range(Table.CHANGE, b"") if key_form(Table.CHANGE, key) is None}
        for table, key, _ in self._again():
            yield
            change = keys.change(keys.birth_of(key), table, key[:-8])
            if change not in changes:
                report(Rule.CHANGE, table, key, "no row of change tells of this version")
            changes.discard(change)
        for key in sorted(changes):
            report(Rule.CHANGE, Table.CHANGE, key, "there is no such version")

    def _explain_deaths(self) -> Iterator[None]:
        report = self._findings.report
        deaths: Counter[bytes] = Counter()
        for key, _ in self._txn.range(Table.DEAD, b""):
            if key_form(Table.DEAD, key) is None and keys.dead_parts(key)[2] is not Table.EXTENT:
                deaths[key[8:]] += 1
        for table, key, newest in self._again():
            yield
            rows_found = deaths.pop(keys.change(keys.birth_of(key), table, key[:-8]), 0)
            if newest and rows_found:
                report(Rule.VERSION, table, key, "the newest version is in the deadlist")
            elif not newest and rows_found != 1:
                report(Rule.VERSION, table, key, f"an older version has {rows_found} rows in the deadlist")
        for rest in sorted(deaths):
            report(Rule.VERSION, Table.DEAD, rest, "in the deadlist, and there is no such version")

    def _again(self) -> Iterator[tuple[Table, bytes, bool]]:
        for table in VERSIONED:
            previous = b""
            for key, value in self._txn.range(table, b""):
                self._findings.rows += 1
                if key_form(table, key) is None and not level_of(value):
                    yield table, key, key[:-8] != previous
                    previous = key[:-8]

    def compare_cells(self) -> None:
        """The stored cells and the charge of what lives, against what was counted."""
        facts, report = self._facts, self._findings.report
        for cell in sorted(facts.cells.keys() | self._cells.keys()):
            told, counted = facts.cells.get(cell), Cell(self._cells[cell], self._charges[cell], self._saved[cell])
            if told is not None and facts.saved(told.saved, counted.saved):
                counted = counted._replace(saved=told.saved)
            if told != counted if counted.number else told is not None:
                words = f"says {tuple(told) if told else None}, counted {tuple(counted)}"
                report(Rule.CELL, Table.CELL, keys.cell(*cell), words)
        charge = sum(size for (death, _), size in self._charges.items() if death == LIVE)
        if facts.counters is not None and facts.counters.bytes != charge:
            words = f"charge is {facts.counters.bytes}, counted {charge}"
            report(Rule.COUNTER, Table.SYS, b"counters", words)
