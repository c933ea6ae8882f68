"""Extents with two lifetimes or more: the rows of `shared`.

A rollback or a restore by reference names an extent again, from a later epoch on: a second lifetime, (extent, birth).
While an extent has two, its dead lifetimes are charged nothing, or one extent would be paid for twice by snapshots;
when one is left it gets the charge back, in its dead row and cell, if it is dead.  The row here says what the charge
is and which lifetimes there are, (birth -> death), and exists exactly while there are two.

Nearly always there are none, and nobody pays for looking: `any` is false until the first is made.  Rows are kept in
memory until `settle`, since several lifetimes of one extent may end between two settlings.

Where a row is damaged it is not known who else names the extent: it stays as it is, its lifetimes are charged nothing,
and the extent is never given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, Table
from tzfs.format.records import Shared
from tzfs.store.interface import ReadTransaction, WriteTransaction

LIFETIMES_MAX: Final = 240  # of a record within a page; before the next one the extent is copied
UNREADABLE: Final = Shared(0, {}, 0)  # what a damaged row says


class SharedExtents:
    """The rows of `shared` within one write transaction at a time; `report` is told of a damaged one."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self.any = False
        self.hidden_bytes = 0  # added to the charge that is in no cell; the quotas know from what on
        self.doubled_bytes = 0  # likewise, to what is in more than one
        self._txn: WriteTransaction
        self._rows: dict[int, Shared | None] = {}

    def begin(self, txn: WriteTransaction) -> None:
        """Works in `txn` from now on; what was not settled in the one before is forgotten."""
        self._txn = txn
        self._rows.clear()

    def get(self, extent: int) -> Shared | None:
        """The extent's lifetimes; None while it has one, `UNREADABLE` where its row is damaged."""
        if not self.any:
            return None
        if extent in self._rows:
            return self._rows[extent]
        key = keys.shared(extent)
        value = self._txn.get(Table.SHARED, key)
        if value is None:
            return None
        try:
            return records.unpack_shared(key, records.unseal(Table.SHARED, key, value) or b"")
        except CorruptionError as error:
            self._report(f"{error}; the extent that it is about is not given back")
            return UNREADABLE

    def put(self, extent: int, shared: Shared | None) -> None:
        """What the extent's row says from now on; None: it has one lifetime again.  A damaged row stays."""
        before = self.get(extent)
        if before is UNREADABLE:
            return
        self.hidden_bytes += hidden(shared) - hidden(before)
        self.doubled_bytes += doubled(shared) - doubled(before)
        self.any = True
        self._rows[extent] = shared

    def settle(self) -> None:
        """Writes the rows that have changed, in key order."""
        for extent, shared in sorted(self._rows.items(), key=lambda row: row[0]):
            key = keys.shared(extent)
            if shared is None:
                self._txn.delete(Table.SHARED, key)
            else:
                body = records.pack_shared(shared)
                self._txn.put(Table.SHARED, key, records.seal(Table.SHARED, key, body))
        self._rows.clear()


def hidden(shared: Shared | None) -> int:
    """The charge of an extent that no cell has: none of its lifetimes, of which there are several, is live."""
    return 0 if shared is None or LIVE in shared.lifetimes.values() else shared.charge


def doubled(shared: Shared | None) -> int:
    """The charge of an extent that cells have beyond the first: each of its live lifetimes has it in its own."""
    return 0 if shared is None else shared.charge * max(0, list(shared.lifetimes.values()).count(LIVE) - 1)


def any_shared(txn: ReadTransaction) -> bool:
    """Whether an extent has two lifetimes."""
    return next(iter(txn.range(Table.SHARED, b"")), None) is not None
