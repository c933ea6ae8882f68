"""The check of one filesystem: its passes, one after the other, as one stream of problems and progress."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tzfs.engine.check.contents import Contents
from tzfs.engine.check.extents import Lifetimes
from tzfs.engine.check.inheritance import Inheritance
from tzfs.engine.check.names import Names
from tzfs.engine.check.problems import Findings, Problem, Progress, Rule
from tzfs.engine.check.sight import Sight
from tzfs.engine.check.space import Space
from tzfs.engine.check.tables import Tables
from tzfs.engine.check.versions import Versions
from tzfs.errors import TzfsError
from tzfs.format.keys import Table
from tzfs.store.interface import PayloadReader, ReadTransaction

REPORT_ROWS: Final = 4096  # between two reports of progress: some 20 ms of work
REPORT_BYTES: Final = 16 << 20  # likewise, of payload

Event = Problem | Progress | None


def check(txn: ReadTransaction, payload: PayloadReader | None, *, read_payload: bool = False) -> Iterator[Event]:
    """Everything that is wrong with the filesystem that `txn` sees, and how far the check has come.

    Between two events lies the work of one row, or of one chunk's payload; None says only that it is done, so that
    whoever has other things to do can turn to them.

    Whatever the tables hold, nothing is raised for it.  `payload`: its segments, to be compared with what the tables
    say of them; with `read_payload` all that is referred to is read and compared with its sums.  While it runs
    nothing that `txn` sees may be punched or unlinked: the caller holds the lease, or pins the group.

    Of a clone `txn` reads through to its origins (`engine.inherited`): what is inherited is checked where it comes
    together with what is the clone's own, and as if it had been born at 0.
    """
    findings = Findings()
    tables = Tables(txn, findings)
    yield from _pass("tables", tables.run(), findings, 0, 0)
    facts = tables.facts
    rows = 2 * sum(cell.number for cell in facts.cells.values())  # each version has a row in `change`
    stored = sum(use.bytes for use in facts.segments.values()) if read_payload else 0

    versions = Versions(txn, facts, findings)
    lifetimes = Lifetimes(versions, facts, findings, payload if read_payload else None)
    sight = Sight(txn, facts)
    names = Names(versions, lifetimes, sight, facts, findings)
    contents = Contents(versions, lifetimes, sight, facts, findings, names.owners)
    yield from _pass("deadlist", versions.run(), findings, rows, stored)
    yield from _pass("names", names.run(), findings, rows, stored)
    yield from _pass("contents", contents.run(), findings, rows, stored)
    lifetimes.finish()
    yield from _pass("versions", versions.explain(), findings, rows, stored)
    versions.compare_cells()
    yield from _pass("inherited", Inheritance(txn, facts, findings).run(), findings, rows, stored)
    space = Space(versions, lifetimes, facts, findings, payload)
    yield from _pass("space", space.run(), findings, rows, stored)
    yield Progress("done", findings.rows, findings.rows, findings.payload_bytes, findings.payload_bytes)


def _pass(stage: str, steps: Iterator[None], findings: Findings, total: int, payload_total: int) -> Iterator[Event]:
    rows, read = findings.rows, findings.payload_bytes
    try:
        for _ in steps:
            yield from findings.take() if findings.problems else (None,)
            if findings.rows - rows >= REPORT_ROWS or findings.payload_bytes - read >= REPORT_BYTES:
                rows, read = findings.rows, findings.payload_bytes
                yield Progress(stage, rows, max(total, rows), read, max(payload_total, read))
    except TzfsError as error:  # damage in the tables' own pages: what it hides is not known
        findings.report(Rule.TABLES, Table.SYS, b"", f"{stage}: {error}")
    yield from findings.take()
