"""What changes on its way into the tables: rows, cells and segments' uses are collected, and written in key order.

A step of the rules says what comes and what goes; `settle` deletes and writes it, one pass a table.  Until then the
store does not show it, so each key is changed at most once between two calls.  Cells and uses are sums, and added up
here before they are read and written once.

Nothing here knows why a row comes or goes: that is `engine.versions`.
"""

from __future__ import annotations

from collections.abc import Callable

from tzfs.engine.shared import SharedExtents
from tzfs.engine.totals import Totals
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, ExtentId, Table
from tzfs.format.slices import Sizes
from tzfs.limits import PAGE_BYTES
from tzfs.store.interface import WriteTransaction


def extent_charge(stored_bytes: int) -> int:
    """What an extent costs: its bytes on disk, whole pages."""
    return (stored_bytes + PAGE_BYTES - 1) & -PAGE_BYTES


def extent_costs(sizes: Sizes) -> tuple[int, int]:
    """What an extent is charged, and what compression has saved of that."""
    stored, raw = sizes
    charge = (stored + PAGE_BYTES - 1) & -PAGE_BYTES
    return charge, 0 if raw == stored else ((raw + PAGE_BYTES - 1) & -PAGE_BYTES) - charge


class Settling:
    """What has been collected within one write transaction at a time.  `drift` and `report`: as for `Totals`."""

    def __init__(self, drift: Callable[[str, int], None], report: Callable[[str], None]) -> None:
        self.txn: WriteTransaction
        self.live_bytes_delta = 0
        self.charged_bytes = 0  # added to all cells together; the quotas know from what on
        self.shared = SharedExtents(report)
        self._rows: dict[Table, list[tuple[bytes, bytes]]] = {}  # (key, body)
        self._tombstones: list[tuple[Table, bytes]] = []
        self._gone: dict[Table, list[bytes]] = {}
        self._recharged: dict[bytes, tuple[int, int]] = {}  # keys of `dead`: their charge and saved from now on
        self._holes: list[tuple[int, int, int]] = []  # (txg, extent, bytes) to be given back
        self._cells: dict[tuple[int, int], list[int]] = {}  # by death and birth: number, charge, saved
        self._segments: dict[int, list[int]] = {}
        self.totals = Totals(drift, report)

    def begin(self, txn: WriteTransaction) -> None:
        """Works in `txn` from now on; what was not settled in the one before is forgotten."""
        self.txn = txn
        self.shared.begin(txn)
        self._rows.clear()
        self._recharged.clear()
        self._tombstones.clear()
        self._gone.clear()
        self._holes.clear()
        self._cells.clear()
        self._segments.clear()
        self.live_bytes_delta = 0

    def _row(self, table: Table, key: bytes, body: bytes) -> None:
        rows = self._rows.get(table)
        if rows is None:
            rows = self._rows[table] = []
        rows.append((key, body))

    def _delete(self, table: Table, key: bytes) -> None:
        keys_gone = self._gone.get(table)
        if keys_gone is None:
            keys_gone = self._gone[table] = []
        keys_gone.append(key)

    def _dead(self, death: int, birth: int, table: Table, prefix: bytes, charge: int, saved: int) -> None:
        key = keys.dead(death, birth, table, prefix)
        body = records.pack_plain(Table.DEAD, charge)
        self._row(Table.DEAD, key, records.pack_charged(Table.DEAD, charge, saved=saved) if saved else body)

    def _count(self, death: int, birth: int, count: int, size: int, saved: int = 0) -> None:
        """So many more in a cell, charged `size` bytes more, of which compression has saved `saved` more."""
        self.charged_bytes += size
        if death == LIVE:
            self.live_bytes_delta += size
        cell = self._cells.get((death, birth))
        if cell is None:
            self._cells[death, birth] = [count, size, saved]
        else:
            cell[0] += count
            cell[1] += size
            cell[2] += saved

    def use(self, extent: int, extent_bytes: int, count: int, size: int) -> None:
        use = self._segments.setdefault(extent >> 32, [0, 0, 0])
        use[0] += count
        use[1] += size
        use[2] = max(use[2], keys.extent_offset(extent) + extent_bytes)

    def punch(self, extent: ExtentId, stored_bytes: int, txg: int) -> None:
        """The extent's space is to be given back once transaction group `txg` is durable."""
        self._holes.append((txg, extent, extent_charge(stored_bytes)))

    def _settle_holes(self) -> None:
        """One row for each run of neighbours; an extent's id is its segment and page, so those of neighbours follow."""
        runs: list[list[int]] = []
        for txg, extent, size in sorted(self._holes):
            last = runs[-1] if runs else None
            if last and last[0] == txg and last[1] + last[2] // PAGE_BYTES == extent and last[1] >> 32 == extent >> 32:
                last[2] += size
            else:
                runs.append([txg, extent, size])
        for txg, extent, size in runs:
            self.use(extent, size, 0, 0)
            key = keys.punch(txg, ExtentId(extent))
            self._row(Table.PUNCH, key, records.pack_plain(Table.PUNCH, size))
        self._holes.clear()

    @property
    def unsettled_bytes(self) -> int:
        """What `settle` would add to all cells together."""
        return sum(size for _, size, _ in self._cells.values())

    def settle(self) -> None:
        """Deletes and writes the rows collected so far, in key order; brings cells and segment counters up to date."""
        if self._holes:
            self._settle_holes()
        for table, gone in self._gone.items():
            gone.sort()
            self.txn.delete_many(table, gone)
        self._gone.clear()
        for table, rows in self._rows.items():
            rows.sort()
            self.txn.put_many(table, records.seal_many(table, rows))
        self._rows.clear()
        for key, (charge, saved) in sorted(self._recharged.items()):
            body = records.pack_charged(Table.DEAD, charge, saved=saved)
            self.txn.put(Table.DEAD, key, records.seal(Table.DEAD, key, body))
        self._recharged.clear()
        self.shared.settle()
        for table, key in self._tombstones:
            self.txn.put(table, key, records.tombstone(table, key))
        self._tombstones.clear()
        for (death, birth), (count, size, saved) in sorted(self._cells.items()):
            self.totals.add_to_cell(self.txn, keys.cell(death, birth), count, size, saved)
        self._cells.clear()
        for segment, (count, size, end) in sorted(self._segments.items()):
            self.totals.add_to_segment(self.txn, keys.segment(segment), count, size, end)
        self._segments.clear()
