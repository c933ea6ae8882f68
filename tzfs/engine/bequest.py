"""How much of what a clone's origin referred to it still inherits: `referenced` counts that as well.

A new clone refers to what its origin's snapshot refers to, as in ZFS, and is charged nothing for it.  What it does not
inherit any more is added up here, by the epoch from which on: a key that falls through ceases to be inherited when it
gets its first version of the clone's own, be it a tombstone, and for all views when it is flattened.  So

    inherited(E) = what the origin's snapshot refers to  -  the sums of all epochs up to E

and both are there without looking at a single key.  The first is asked of the origin whenever it is wanted: it falls
while the origin still removes chunks that its snapshot does not see any more (`reclaim`).

The sums are rows of `sys`, by epoch, written with the versions that they are about.  One of an epoch that has no view
means the same as one of the next epoch that has: where a first version is freed since no snapshot sees it, a newer one
is above it.  Flattening a key that had been changed therefore puts it from its oldest version's epoch to epoch 0, and
the sum of an epoch may be negative.

An extent that several keys of the origin's snapshot name (after a restore by reference) is referred to once, and it is
not known here which of them would be the last to go: it counts until the clone is flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import Table
from tzfs.store.interface import ReadTransaction, WriteTransaction

KEY: Final = b"inherited/"
Bytes = tuple[int, int]  # charge, and saved
Cost = Callable[[Table, bytes], Bytes | None]
NONE: Final[Bytes] = (0, 0)


def key_of(epoch: int) -> bytes:
    return KEY + keys.u64(epoch)


def read(txn: ReadTransaction) -> Iterator[tuple[int, Bytes]]:
    """(epoch, what is not inherited any more from it on), by epoch."""
    for key, value in txn.range(Table.SYS, KEY, keys.after(KEY)):
        body = records.unseal(Table.SYS, key, value)
        if body is not None:
            yield int.from_bytes(key[len(KEY) :], "big"), records.unpack_sums(key, body)


def upto(sums: list[tuple[int, Bytes]], epoch: int) -> Bytes:
    """What a view at an epoch does not inherit any more."""
    charge = saved = 0
    for at, (more, more_saved) in sums:
        if at <= epoch:
            charge, saved = charge + more, saved + more_saved
    return charge, saved


class Bequest:
    """The sums of a clone within one write transaction at a time.

    `cost` says what an inherited key refers to; `report` is told of a sum that is damaged.
    """

    def __init__(self, cost: Cost, report: Callable[[str], None]) -> None:
        self._cost, self._report = cost, report
        self._more: dict[int, list[int]] = {}

    def changed(self, table: Table, prefix: bytes, at: int) -> None:
        """A key that has no version gets one, born at `at`."""
        found = self._cost(table, prefix)
        if found is not None:
            self._add(at, *found)

    def flattened(self, found: Bytes, oldest: int | None) -> None:
        """A key is the clone's own from now on; `oldest` is the birth of the oldest version that it had before."""
        charge, saved = found
        self._add(0, charge, saved)
        if oldest is not None:
            self._add(oldest, -charge, -saved)

    def _add(self, epoch: int, charge: int, saved: int) -> None:
        sums = self._more.setdefault(epoch, [0, 0])
        sums[0] += charge
        sums[1] += saved

    def forget(self) -> None:
        """What was not settled is no more."""
        self._more.clear()

    def settle(self, txn: WriteTransaction) -> None:
        for epoch, (charge, saved) in sorted(self._more.items()):
            key = key_of(epoch)
            value = txn.get(Table.SYS, key)
            try:
                if value is not None and (body := records.unseal(Table.SYS, key, value)) is not None:
                    before = records.unpack_sums(key, body)
                    charge, saved = charge + before[0], saved + before[1]
            except CorruptionError as error:
                self._report(f"{error}; what the clone refers to is not known")
                continue
            txn.put(Table.SYS, key, records.seal(Table.SYS, key, records.pack_sums(charge, saved)))
        self._more.clear()

    def withdrawn(self, txn: WriteTransaction, epoch: int) -> None:
        """What was born at an epoch that was staged is all gone."""
        self._more.pop(epoch, None)
        txn.delete(Table.SYS, key_of(epoch))


def remove(txn: WriteTransaction) -> None:
    """Nothing is inherited any more."""
    txn.delete_many(Table.SYS, [key for key, _ in txn.range(Table.SYS, KEY, keys.after(KEY))])
