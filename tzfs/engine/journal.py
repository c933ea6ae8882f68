"""The log of one filesystem: what was done to it, one row of `log` an entry, the newest `log_max` of them.

`Journal` owns the table.  An entry of something that is a commit of its own (a snapshot, a rollback) is `note`d within
that commit, and is durable if and only if that is.  Others are `append`ed to the transaction that is open, and come
with the next commit, which the next fsync is then: nobody waits for them, and a crash may lose the last ones, never one
from before an fsync, or half of one.  `amend` says of an entry how it ended.

Numbers ascend by one, over the filesystem's life.  The oldest entries go as new ones come.  Whoever listens hears of an
entry when it is durable, in order; of one that is amended, again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

from tzfs import failpoints
from tzfs.engine.head import Head
from tzfs.format import keys, records
from tzfs.format.keys import Table
from tzfs.format.log import Entry, Field, pack_entry, unpack_entry
from tzfs.store.interface import ReadTransaction, WriteTransaction

failpoints.declare("journal.append", "an entry is about to be written to the log")

REMOVED_MAX: Final = 64  # old entries that one new one may remove: where `log_max` was lowered they go in steps


def read_log(txn: ReadTransaction, *, after: int = 0) -> Iterator[Entry]:
    """The entries after the number `after`, the newest first."""
    for key, value in txn.range(Table.LOG, keys.u64(after + 1), reverse=True):
        yield _entry(key, value)


def _entry(key: bytes, value: bytes) -> Entry:
    number = int.from_bytes(key, "big")
    return unpack_entry(Table.LOG, key, records.unseal(Table.LOG, key, value) or b"", number)


def put_entry(txn: WriteTransaction, entry: Entry) -> None:
    """Writes the row of an entry."""
    key = keys.u64(entry.number)
    txn.put(Table.LOG, key, records.seal(Table.LOG, key, pack_entry(entry.time_ns, entry.kind, entry.fields)))


class Journal:
    """The log of an open head."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._untold: list[Entry] = []
        self.listeners: list[Callable[[Entry], None]] = []
        head.note, head.committed = self.note, self._tell

    def note(self, kind: str, /, **fields: Field) -> int:
        """An entry of what is just being committed, to be called within that commit; its number."""
        failpoints.hit("journal.append")
        txn = self._head.txn
        newest = next(txn.range(Table.LOG, b"", reverse=True), None)
        number = 1 if newest is None else int.from_bytes(newest[0], "big") + 1
        self._put(Entry(number, self._head.clock(), kind, fields))
        end = keys.u64(max(0, number - self._head.settings.log_max) + 1)
        for key in [key for key, _ in islice(txn.range(Table.LOG, b"", end), REMOVED_MAX)]:
            txn.delete(Table.LOG, key)
        return number

    def append(self, kind: str, /, **fields: Field) -> int:
        """An entry that comes with the next commit, which an fsync is then; its number."""
        head = self._head
        head.check()
        head.begin_change()
        number = self.note(kind, **fields)
        head.dirty_rows += 2
        head.end_change()
        return number

    def amend(self, number: int, /, **fields: Field) -> None:
        """Adds fields to an entry, or replaces them, with the next commit; does nothing where it is gone."""
        head = self._head
        head.check()
        found = self.get(number)
        if found is None:
            return
        head.begin_change()
        self._put(replace(found, fields={**found.fields, **fields}))
        head.dirty_rows += 1
        head.end_change()

    def get(self, number: int) -> Entry | None:
        """One entry."""
        key = keys.u64(number)
        value = self._head.txn.get(Table.LOG, key)
        return None if value is None else _entry(key, value)

    def entries(self, *, after: int = 0) -> Iterator[Entry]:
        """The entries after the number `after`, the newest first, with those that are not committed."""
        self._head.check()
        return read_log(self._head.txn, after=after)

    def durable(self, entry: Entry) -> bool:
        """Whether listeners have heard of it as it is; asked while there are any."""
        return all(waiting.number != entry.number for waiting in self._untold)

    def _put(self, entry: Entry) -> None:
        put_entry(self._head.txn, entry)
        if self.listeners:
            self._untold.append(entry)

    def _tell(self) -> None:
        told, self._untold = self._untold, []
        for entry in told:
            for hear in self.listeners:
                hear(entry)
