"""The rows that count: of cells and of segments, each the sum of what has been added to it.

The few that the last settlings changed are remembered, so that a commit does not read them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.store.interface import WriteTransaction

REMEMBERED_MAX: Final = 256


class Totals:
    """`drift` is told of a number that would have become negative: (what, by how much)."""

    def __init__(self, drift: Callable[[str, int], None]) -> None:
        self._drift = drift
        self._known: dict[tuple[Table, bytes], tuple[int, ...] | None] = {}

    def add(self, txn: WriteTransaction, table: Table, key: bytes, count: int, size: int, *end: int) -> None:
        """A counter row plus (count, size); its end, if it has one, grows to `end`.

        A counter below zero stays at zero, and the difference is reported as drift.  A cell at zero goes.
        """
        old = self._known[table, key] if (table, key) in self._known else self._read(txn, table, key)
        if old is not None:
            count += old[0]
            size += old[1]
            end = tuple(map(max, end, old[2:]))
        if count < 0 or size < 0:
            self._drift(f"{table.name.lower()} {key.hex()}", min(count, size))
            count, size = max(count, 0), max(size, 0)
        if table is Table.CELL and count == 0 and size == 0:
            self._known[table, key] = None
            if old is not None:
                txn.delete(table, key)
            return
        self._known[table, key] = (count, size, *end)
        txn.put(table, key, records.seal(table, key, records.pack_plain(table, count, size, *end)))

    def _read(self, txn: WriteTransaction, table: Table, key: bytes) -> tuple[int, ...] | None:
        """A counter's row; the few that the last settlings changed are remembered."""
        if len(self._known) > REMEMBERED_MAX:
            self._known.clear()
        value = txn.get(table, key)
        if value is None:
            return None
        body = records.unseal(table, key, value)
        if body is None:
            raise records.damaged(table, key, "a tombstone in a table without versions")
        return tuple(records.unpack_plain(table, key, body))
