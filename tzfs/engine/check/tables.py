"""The small tables: read first, into memory, because everything else is judged by what they say.

They grow with the number of snapshots, segments, orphans and extents that wait, not with the filesystem.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tzfs.engine.bookmarks import MARK
from tzfs.engine.check.forms import key_form
from tzfs.engine.check.problems import Findings, Rule
from tzfs.engine.flatten import nameless
from tzfs.engine.inherited import Composed
from tzfs.engine.task_rows import read_task_rows
from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, unpack_counters
from tzfs.format.keys import Table
from tzfs.format.log import unpack_entry
from tzfs.format.records import Cell, Destroy, Reclaim, SegmentUse, Shared
from tzfs.format.superblock import BOOKMARKS, STAGING, SUPERBLOCK_KEY, Superblock, unpack_superblock
from tzfs.store.interface import ReadTransaction


@dataclass(slots=True)
class Facts:
    """What the small tables say.  `views` are the epochs at which the filesystem can be seen, ascending: those of the
    snapshots and, last, the head's; `view_words` says which is which."""

    superblock: Superblock | None = None
    counters: Counters | None = None
    views: list[int] = field(default_factory=list)
    view_words: list[str] = field(default_factory=list)
    staging: bool = False
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    segments: dict[int, SegmentUse] = field(default_factory=dict)
    orphans: dict[int, int] = field(default_factory=dict)
    reclaims: dict[int, list[Reclaim]] = field(default_factory=dict)
    destroys: list[Destroy] = field(default_factory=list)
    punches: list[tuple[int, int, bytes]] = field(default_factory=list)  # (extent, stored bytes, key)
    shared: dict[int, Shared] = field(default_factory=dict)
    oldest_bookmark: int | None = None
    nameless_inos: set[int] = field(default_factory=set)  # of a clone: those of its origin, left behind when flattened
    nameless_data: set[int] = field(default_factory=set)  # their data ids
    uncollected: bytes | None = None  # from this key of `change` on lone tombstones are yet to be looked for

    def saved(self, told: int, counted: int) -> bool:
        """Whether a row may say that `told` bytes were saved, of `counted`: an older tzfs has said nothing of what it
        saved."""
        return told == counted or (told < counted and self.superblock is not None and not self.superblock.saved_known)

    @property
    def epoch(self) -> int:
        """Of the head; without counters nobody can say, and nothing is above it."""
        return keys.EPOCH_MAX - 1 if self.counters is None else self.counters.epoch


class Tables:
    """Reads the small tables into `facts`."""

    def __init__(self, txn: ReadTransaction, findings: Findings) -> None:
        self._txn, self._findings = txn, findings
        self.facts = Facts()

    def run(self) -> Iterator[None]:
        yield from self._sys()
        yield from self._snapshots()
        yield from self._plain_tables()
        yield from self._bookmarks()
        yield from self._log()
        if isinstance(self._txn, Composed):
            self.facts.nameless_inos, self.facts.nameless_data = nameless(self._txn.ancestry)

    def _sys(self) -> Iterator[None]:
        facts, report = self.facts, self._findings.report
        found = set()
        for key, body in rows(self._txn, self._findings, Table.SYS):
            found.add(key)
            if key == MARK:
                facts.uncollected = body
            yield
        try:
            if SUPERBLOCK_KEY in found:
                facts.superblock = unpack_superblock(self._txn.get(Table.SYS, SUPERBLOCK_KEY) or b"")
                facts.staging = facts.superblock.has(STAGING)
            if COUNTERS_KEY in found:
                facts.counters = unpack_counters(self._txn.get(Table.SYS, COUNTERS_KEY) or b"")
            read_task_rows(self._txn)
        except CorruptionError as error:
            report(Rule.RECORD, Table.SYS, b"", str(error))
        for key, there in ((SUPERBLOCK_KEY, facts.superblock), (COUNTERS_KEY, facts.counters)):
            if there is None:
                report(Rule.SUPERBLOCK, Table.SYS, key, "there is none that could be read")

    def _snapshots(self) -> Iterator[None]:
        facts, report = self.facts, self._findings.report
        views: dict[int, str] = {}
        for key, body in rows(self._txn, self._findings, Table.SNAPSHOT):
            yield
            try:
                snapshot = records.unpack_snapshot(key, body)
            except CorruptionError as error:
                report(Rule.RECORD, Table.SNAPSHOT, key, str(error))
                continue
            if snapshot.epoch in views:
                report(Rule.SNAPSHOT, Table.SNAPSHOT, key, f"{views[snapshot.epoch]} has epoch {snapshot.epoch} too")
            views[snapshot.epoch] = f"snapshot {key.decode()!r}"
            counters = facts.counters
            if counters is not None and (snapshot.epoch >= counters.epoch or snapshot.txg > counters.txg):
                words = f"epoch {snapshot.epoch}, txg {snapshot.txg}: above the counters"
                report(Rule.ID, Table.SNAPSHOT, key, words)
        views = {epoch: words for epoch, words in views.items() if epoch < facts.epoch}
        views[facts.epoch] = "the head"
        facts.views = sorted(views)
        facts.view_words = [views[epoch] for epoch in facts.views]

    def _bookmarks(self) -> Iterator[None]:
        facts, report = self.facts, self._findings.report
        for key, body in rows(self._txn, self._findings, Table.BOOKMARK):
            yield
            try:
                bookmark = records.unpack_bookmark(key, body)
            except CorruptionError as error:
                report(Rule.RECORD, Table.BOOKMARK, key, str(error))
                continue
            if facts.oldest_bookmark is None or bookmark.epoch < facts.oldest_bookmark:
                facts.oldest_bookmark = bookmark.epoch
            if bookmark.epoch >= facts.epoch:
                report(Rule.ID, Table.BOOKMARK, key, f"epoch {bookmark.epoch}: above the counters")
            if facts.superblock is not None and not facts.superblock.has(BOOKMARKS):
                report(Rule.SUPERBLOCK, Table.BOOKMARK, key, "the superblock does not say that there are bookmarks")

    def _log(self) -> Iterator[None]:
        before = None
        for key, body in rows(self._txn, self._findings, Table.LOG):
            yield
            number = int.from_bytes(key, "big")
            try:
                unpack_entry(Table.LOG, key, body, number)
            except CorruptionError as error:
                self._findings.report(Rule.RECORD, Table.LOG, key, str(error))
            if before not in (None, number - 1):
                self._findings.report(Rule.ID, Table.LOG, key, f"it follows entry {before}")
            before = number

    def _plain_tables(self) -> Iterator[None]:
        facts, report = self.facts, self._findings.report
        tables = (Table.CELL, Table.SEGMENT, Table.ORPHAN, Table.RECLAIM, Table.DESTROY, Table.PUNCH, Table.SHARED)
        for table in tables:
            for key, body in rows(self._txn, self._findings, table):
                yield
                try:
                    if table is Table.SHARED:
                        facts.shared[int.from_bytes(key, "big")] = records.unpack_shared(key, body)
                    elif table is Table.CELL:
                        (number, charge), saved = records.unpack_charged(table, key, body)
                        facts.cells[keys.cell_parts(key)] = Cell(number, charge, saved)
                    else:
                        self._plain(table, key, records.unpack_plain(table, key, body))
                except CorruptionError as error:
                    report(Rule.RECORD, table, key, str(error))

    def _plain(self, table: Table, key: bytes, numbers: tuple[int, ...]) -> None:
        facts, number = self.facts, int.from_bytes(key, "big")
        if table is Table.SEGMENT:
            facts.segments[number] = SegmentUse(*numbers)
            self._below("next_segment", table, key, number)
        elif table is Table.ORPHAN:
            (facts.orphans[number],) = numbers
        elif table is Table.PUNCH:
            txg, extent = keys.punch_parts(key)
            facts.punches.append((extent, numbers[0], key))
            if facts.counters is not None and txg > facts.counters.txg:
                self._findings.report(Rule.ID, table, key, f"txg {txg} is above the counters")
        elif table is Table.RECLAIM:
            self._below("next_id", table, key, number)
            self._reclaim(key, Reclaim(keys.DataId(numbers[0]), numbers[1], numbers[2], keys.Epoch(numbers[3])))
        else:
            self._below("next_id", table, key, number)
            self._destroy(key, Destroy(*numbers))

    def _below(self, counter: str, table: Table, key: bytes, number: int) -> None:
        counters = self.facts.counters
        if counters is not None and number >= getattr(counters, counter):
            self._findings.report(Rule.ID, table, key, f"{number} is not below {counter} {getattr(counters, counter)}")

    def _reclaim(self, key: bytes, r: Reclaim) -> None:
        others = self.facts.reclaims.setdefault(r.data, [])
        if r.lo >= r.hi or r.at > self.facts.epoch:
            self._findings.report(Rule.RECLAIM, Table.RECLAIM, key, f"chunks [{r.lo}, {r.hi}) from epoch {r.at}")
        elif any(r.lo < o.hi and o.lo < r.hi for o in others):
            self._findings.report(
                Rule.RECLAIM, Table.RECLAIM, key, "its range overlaps another one of the same data id"
            )
        others.append(r)

    def _destroy(self, key: bytes, d: Destroy) -> None:
        facts = self.facts
        facts.destroys.append(d)
        if not -1 <= d.older < d.snapshot < d.newer <= facts.epoch:
            self._findings.report(Rule.DESTROY, Table.DESTROY, key, f"({d.older}, {d.snapshot}, {d.newer})")
        elif any(d.older < view < d.newer for view in facts.views):
            self._findings.report(Rule.DESTROY, Table.DESTROY, key, f"a snapshot lies between {d.older} and {d.newer}")


def rows(txn: ReadTransaction, findings: Findings, table: Table) -> Iterator[tuple[bytes, bytes]]:
    """(key, body) of a table without versions; what has not the form of its table is reported and left out."""
    for key, value in txn.range(table, b""):
        findings.rows += 1
        wrong = key_form(table, key)
        if wrong is not None:
            findings.report(Rule.KEY, table, key, wrong)
            continue
        try:
            body = records.unseal(table, key, value)
        except (CorruptionError, ForeignStore) as error:
            findings.report(Rule.RECORD, table, key, str(error))
            continue
        if body is None:
            findings.report(Rule.RECORD, table, key, "a tombstone in a table without versions")
            continue
        yield key, body
