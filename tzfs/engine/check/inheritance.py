"""What a clone does not inherit any more, by epoch, against a recount of all that it has come from.

Each key that its origins show, as if nothing had been flattened, counts from the clone's oldest version of it on, and
for all views once it has been flattened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from tzfs.engine import bequest
from tzfs.engine.check.problems import Findings, Rule
from tzfs.engine.check.tables import Facts
from tzfs.engine.inherited import EVERYTHING, NOTHING, Composed, FromAbove, read_cursor
from tzfs.format import keys
from tzfs.format.keys import VERSIONED, Table
from tzfs.store.interface import ReadTransaction

_END: Final[tuple[bytes | None, int]] = (None, 0)


class Inheritance:
    """The pass over what is inherited; nothing to do but for a clone."""

    def __init__(self, txn: ReadTransaction, facts: Facts, findings: Findings) -> None:
        self._txn, self._facts, self._findings = txn, facts, findings

    def run(self) -> Iterator[None]:
        txn, facts = self._txn, self._facts
        told = list(bequest.read(txn))
        cursor = read_cursor(txn.own)[0] if isinstance(txn, Composed) else EVERYTHING
        if not isinstance(txn, Composed) or cursor == EVERYTHING:
            for epoch, _ in told:
                self._report(epoch, "is about an origin, and there is none")
            return
        counted: Counter[int] = Counter()
        saved: Counter[int] = Counter()
        above = FromAbove(txn.ancestry).at(NOTHING)
        try:
            for table in VERSIONED:
                left = facts.nameless_data if table in (Table.INLINE, Table.CHUNK) else facts.nameless_inos
                own = self._oldest(txn.own, table)
                at, oldest = next(own, _END)
                for prefix, value in above.visible(table, b"", None):
                    yield
                    self._findings.rows += 1
                    while at is not None and at < prefix:
                        at, oldest = next(own, _END)
                    if (table, prefix) <= cursor and int.from_bytes(prefix[:8], "big") not in left:
                        since = 0
                    elif (table, prefix) > cursor and at == prefix:
                        since = oldest
                    else:
                        continue
                    charge, more = above.cost_of(table, prefix, value)
                    counted[since] += charge
                    saved[since] += more
        finally:
            above.close()
        for view in sorted({*facts.views, facts.epoch}):
            says = bequest.upto(told, view)
            found = tuple(sum(size for at, size in sums.items() if at <= view) for sums in (counted, saved))
            if says != found:
                self._report(view, f"{says} bytes, and saved, are not inherited any more, counted {found}")

    @staticmethod
    def _oldest(own: ReadTransaction, table: Table) -> Iterator[tuple[bytes | None, int]]:
        """(prefix, birth of its oldest version) of the clone's own, by prefix."""
        at: bytes | None = None
        birth = 0
        for key, _ in own.range(table, b""):
            if at is not None and key[:-8] != at:
                yield at, birth
            at, birth = key[:-8], keys.birth_of(key)
        if at is not None:
            yield at, birth

    def _report(self, epoch: int, words: str) -> None:
        self._findings.report(Rule.INHERITED, Table.SYS, bequest.key_of(epoch), words)
