"""The rows that count: of cells and of segments, each the sum of what has been added to it.

The few that the last settlings changed are remembered, so that a commit does not read them again.  One that is damaged
stays as it is: what it counted is lost, and whoever asks for a sum hears of it, but nothing else fails by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tzfs.errors import CorruptionError
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.store.interface import WriteTransaction

REMEMBERED_MAX: Final = 256


class Totals:
    """`drift` is told of a number that would have become negative: (what, by how much); `report` of a row that is
    damaged, each time.

    `saved_known`: the cells have all that compression has saved, and not only what this tzfs has added to them.
    """

    def __init__(self, drift: Callable[[str, int], None], report: Callable[[str], None]) -> None:
        self._drift, self._report = drift, report
        self.saved_known = True
        self._known: dict[tuple[Table, bytes], tuple[int, int, int] | None] = {}

    def add_to_cell(self, txn: WriteTransaction, key: bytes, number: int, charge: int, saved: int) -> None:
        """A cell plus these.  One below zero stays at zero, and the difference is drift.  A cell at zero goes."""
        try:
            old = self._row(txn, Table.CELL, key)
        except CorruptionError as error:
            self._report(f"{error}; what it counts is not known")
            return
        if old is not None:
            number, charge, saved = number + old[0], charge + old[1], saved + old[2]
        if number < 0 or charge < 0 or (saved < 0 and self.saved_known):
            self._drift(f"cell {key.hex()}", min(number, charge, saved))
            number, charge = max(number, 0), max(charge, 0)
        if number == 0 and charge == 0:
            self._known[Table.CELL, key] = None
            if old is not None:
                txn.delete(Table.CELL, key)
            return
        saved = max(saved, 0)
        self._known[Table.CELL, key] = (number, charge, saved)
        body = records.pack_charged(Table.CELL, number, charge, saved=saved)
        txn.put(Table.CELL, key, records.seal(Table.CELL, key, body))

    def add_to_segment(self, txn: WriteTransaction, key: bytes, extents: int, size: int, end: int) -> None:
        """A segment's use plus these; it ends at `end`, or further on.  One below zero as in a cell.

        One whose row is lost gets none: it would say that nothing is in it, and the segment would go.
        """
        try:
            old = self._row(txn, Table.SEGMENT, key)
            if old is None and (extents < 0 or size < 0):
                raise CorruptionError(f"segment {int.from_bytes(key, 'big')} has extents, and its row is lost")
        except CorruptionError as error:
            self._report(f"{error}; what it counts is not known")
            return
        if old is not None:
            extents, size, end = extents + old[0], size + old[1], max(end, old[2])
        if extents < 0 or size < 0:
            self._drift(f"segment {key.hex()}", min(extents, size))
            extents, size = max(extents, 0), max(size, 0)
        self._known[Table.SEGMENT, key] = (extents, size, end)
        body = records.pack_plain(Table.SEGMENT, extents, size, end)
        txn.put(Table.SEGMENT, key, records.seal(Table.SEGMENT, key, body))

    def _row(self, txn: WriteTransaction, table: Table, key: bytes) -> tuple[int, int, int] | None:
        """What a row says; the few that the last settlings changed are remembered."""
        if (table, key) in self._known:
            return self._known[table, key]
        if len(self._known) > REMEMBERED_MAX:
            self._known.clear()
        value = txn.get(table, key)
        if value is None:
            return None
        body = records.unseal(table, key, value)
        if body is None:
            raise records.damaged(table, key, "a tombstone in a table without versions")
        if table is Table.CELL:
            (number, charge), saved = records.unpack_charged(table, key, body)
            return number, charge, saved
        extents, size, end = records.unpack_plain(table, key, body)
        return extents, size, end
