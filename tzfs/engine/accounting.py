"""What a filesystem is charged, and for whose sake: sums over its cells.

A cell has the charge of all that was born in one epoch and died in another, so what any snapshot sees, and what it
alone sees, are sums of cells.  One pass over the cells answers for all snapshots together.

    referenced      what one view sees: born <= E < death.  The head's E is its epoch, a snapshot's S is its own
    used            of a snapshot: what nobody but it sees, which is what destroying it alone frees
                    of a filesystem: everything that the head or a snapshot sees
    by snapshots    the part of it that the head does not see: what destroying them all frees
    written         what a view sees that the snapshot before it does not
    freeing         what nobody sees any more: destroyed, and not yet freed

An extent with several lifetimes is charged once.  Its cells have the charge of its live lifetime only; of the others
`shared` knows it, so those extents are counted by the union of what their lifetimes cover.

A clone refers to what it inherits as well (`bequest`), and is not charged for it: `referenced` of `Accounts` has both.

Each sum is there twice: of charges, and *logical*, of what they would be were nothing compressed.

What is in the tables is summed; what a head has changed since its last commit is not there yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tzfs.engine import bequest
from tzfs.engine.bequest import Bytes
from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, Table
from tzfs.format.records import Shared, Snapshot
from tzfs.store.interface import ReadTransaction


class Cell(NamedTuple):
    """The charge of what was born at `birth` and died at `death`."""

    death: int
    birth: int
    charge: int


@dataclass(slots=True)
class SnapshotSums:
    """Bytes of one snapshot; see the module's text."""

    used: int = 0
    referenced: int = 0
    written: int = 0


class Sums:
    """All sums over `cells`, of a filesystem whose head is at `epoch` and whose snapshots are at `snapshots`."""

    def __init__(self, cells: Sequence[Cell], shared: Iterable[Shared], snapshots: Iterable[int], epoch: int) -> None:
        self._cells, self._shared = cells, tuple(shared)
        self._views = sorted(snapshots)
        self._epoch = epoch
        self._begin = [0] * (len(self._views) + 1)  # referenced of a snapshot less that of the one before it
        self.snapshots = [SnapshotSums() for _ in self._views]  # oldest first
        self.referenced = self.written = self.by_snapshots = self.freeing = self.staged = 0
        for cell in cells:
            self._add(cell, cell.charge)
        for extent in self._shared:
            self._share(extent)
        referenced = 0
        for snapshot, more in zip(self.snapshots, self._begin, strict=False):
            referenced += more
            snapshot.referenced = referenced

    @property
    def used(self) -> int:
        """Everything that is kept for the head or a snapshot, and what a change under way has staged."""
        return self.referenced + self.by_snapshots + self.staged

    def _span(self, birth: int, death: int) -> tuple[int, int]:
        """The snapshots that see it: [i, j)."""
        views = self._views
        return bisect_left(views, birth), len(views) if death == LIVE else bisect_left(views, death)

    def _add(self, cell: Cell, charge: int) -> None:
        i, j = self._span(cell.birth, cell.death)
        if cell.birth > self._epoch:
            self.staged += charge
        else:
            self._count([(i, j)] if i < j else [], charge, head=self._epoch < cell.death)

    def _count(self, spans: Sequence[tuple[int, int]], charge: int, *, head: bool) -> None:
        """Something that the snapshots of `spans` see, which are apart and ascend; and the head, or not."""
        for i, j in spans:
            self._begin[i] += charge
            self._begin[j] -= charge
            self.snapshots[i].written += charge
        if head:
            self.referenced += charge
            if not spans or spans[-1][1] < len(self._views):
                self.written += charge
        elif not spans:
            self.freeing += charge
        else:
            self.by_snapshots += charge
            if len(spans) == 1 and spans[0][0] + 1 == spans[0][1]:
                self.snapshots[spans[0][0]].used += charge

    def _share(self, extent: Shared) -> None:
        """In place of what the cell of its live lifetime has added, what all its lifetimes cover together."""
        spans: list[tuple[int, int]] = []
        head = staged = False
        for birth, death in sorted(extent.lifetimes.items()):
            if death == LIVE:
                self._add(Cell(death, birth, extent.charge), -extent.charge)
            head |= birth <= self._epoch < death
            staged |= birth > self._epoch
            i, j = self._span(birth, death)
            if i < j and spans and spans[-1][1] >= i:
                spans[-1] = spans[-1][0], max(spans[-1][1], j)
            elif i < j:
                spans.append((i, j))
        if staged and not spans and not head:
            self.staged += extent.charge
        else:
            self._count(spans, extent.charge, head=head)

    def written_since(self, since: int, at: int | None = None) -> int:
        """What the snapshot at epoch `at`, or the head, sees and the older snapshot at epoch `since` does not."""
        epoch = self._epoch if at is None else at
        total = sum(cell.charge for cell in self._cells if since < cell.birth <= epoch < cell.death)
        for extent in self._shared:
            lifetimes = extent.lifetimes.items()
            live = sum(death == LIVE and since < birth <= epoch for birth, death in lifetimes)
            total -= live * extent.charge  # that of the cells
            if any(birth <= epoch < death for birth, death in lifetimes) and not any(
                birth <= since < death for birth, death in lifetimes
            ):
                total += extent.charge
        return total


def read_cells(
    txn: ReadTransaction, damaged: Callable[[str], None] | None = None
) -> Iterator[tuple[bytes, int, int, int]]:
    """(key, number, charge, saved) of each cell.  Of one that is damaged, `damaged` is told what is wrong, and it is
    left out; without, that is raised."""
    for key, value in txn.range(Table.CELL, b""):
        try:
            body = records.unseal(Table.CELL, key, value)
            if body is not None:
                (number, charge), saved = records.unpack_charged(Table.CELL, key, body)
                yield key, number, charge, saved
        except CorruptionError as error:
            if damaged is None:
                raise
            damaged(str(error))


class Accounts:
    """The sums of a filesystem as its tables are in one transaction, for its snapshots by name."""

    def __init__(self, txn: ReadTransaction, snapshots: Mapping[str, Snapshot], epoch: int) -> None:
        self._epochs = {name: snapshot.epoch for name, snapshot in snapshots.items()}
        cells, logical, saving = [], [], False
        for key, _, charge, saved in read_cells(txn):
            cells.append(Cell(*keys.cell_parts(key), charge))
            logical.append(cells[-1]._replace(charge=charge + saved))
            saving |= saved > 0
        shared = []
        for key, value in txn.range(Table.SHARED, b""):
            body = records.unseal(Table.SHARED, key, value)
            if body is not None:
                shared.append(records.unpack_shared(key, body))
                saving |= shared[-1].saved > 0
        self.charged = self.logical = Sums(cells, shared, self._epochs.values(), epoch)
        if saving:
            raw = [extent._replace(charge=extent.charge + extent.saved) for extent in shared]
            self.logical = Sums(logical, raw, self._epochs.values(), epoch)
        self._epoch = epoch
        self._gone = list(bequest.read(txn))
        self.above: Callable[[], Bytes] | None = None  # of a clone: what its origin's snapshot refers to, and logically
        self._oldest_first = sorted(self._epochs, key=self._epochs.__getitem__)

    def of(self, snapshot: str, *, logical: bool = False) -> SnapshotSums:
        """The sums of one snapshot."""
        sums = self.logical if logical else self.charged
        return sums.snapshots[self._oldest_first.index(snapshot)]

    def referenced(self, snapshot: str | None = None, *, logical: bool = False) -> int:
        """What a snapshot, or the head, refers to, be it the filesystem's own or inherited."""
        sums = self.logical if logical else self.charged
        own = sums.referenced if snapshot is None else self.of(snapshot, logical=logical).referenced
        return own + self._inherited(self._epoch if snapshot is None else self._epochs[snapshot], logical=logical)

    def _inherited(self, epoch: int, *, logical: bool) -> int:
        if self.above is None:
            return 0
        charge, saved = bequest.upto(self._gone, epoch)
        above = self.above()
        return max(0, above[1] - charge - saved if logical else above[0] - charge)

    def written_since(self, since: str, at: str | None = None) -> int | None:
        """What the snapshot `at`, or the head, has that the snapshot `since` has not; None where `since` is not there,
        or not older."""
        epoch = None if at is None else self._epochs[at]
        if since not in self._epochs or (epoch is not None and self._epochs[since] >= epoch):
            return None
        return self.charged.written_since(self._epochs[since], epoch)
