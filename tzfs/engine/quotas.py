"""Quotas: how much a filesystem may be charged, and how many inodes and snapshots it may have.

    quota           all it is charged, its snapshots included
    refquota        what the head is charged
    inode quota     inodes with a name
    snapshot limit  snapshots

An operation that adds asks before it changes anything, and is refused with `QuotaExceeded`.  What removes never asks,
so that a filesystem at its quota can be emptied; where snapshots keep what is removed, `used` may so exceed the quota
by the rows that say that it is gone.

What is charged is exact for what is committed.  What is not is taken for what it may cost at most: its payload in whole
pages, and `ROW_BYTES` for each dirty row.  Only where that does not fit is the group committed, so that what it really
costs is known, and what it has freed is free; then what was destroyed or cut off and waits to be freed is helped along.
So an overwrite needs room for the new bytes before it gives the old ones back, and nothing is refused that fits.

The usual case is two comparisons of numbers at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tzfs.engine.accounting import Accounts, read_cells
from tzfs.engine.head import Head
from tzfs.engine.shared import doubled, hidden
from tzfs.engine.snapshots import read_snapshots
from tzfs.errors import CorruptionError, QuotaExceeded
from tzfs.format import records
from tzfs.format.keys import Table

ROW_BYTES: Final = 1024  # an inline file of a page counts as 4 rows; an inode or an entry takes at most 400
UNLIMITED: Final = 1 << 64
RECLAIM_STEPS: Final = 4  # of 8 ms each, that a refused operation waits for what is being given back


@dataclass(frozen=True, slots=True)
class Usage:
    """How far a limit is used: `name` is the property's."""

    name: str
    used: int
    limit: int

    @property
    def percent(self) -> int:
        """Of the limit; whole, cut."""
        return 100 * self.used // self.limit


def crossed(usages: Sequence[Usage], percents: Sequence[int]) -> dict[str, tuple[int, Usage]]:
    """For each limit that has reached one of `percents`: the highest that it has, and how far it is used.

    Who warns once a crossing compares this with what it was the last time.
    """
    reached = {usage.name: ([p for p in percents if usage.percent >= p], usage) for usage in usages}
    return {name: (max(percents_), usage) for name, (percents_, usage) in reached.items() if percents_}


# (used, needed, the store's quota) -> up to how much the filesystem may use; how much it could if nobody else wrote
Claim = Callable[[int, int, int], tuple[int, int]]


class Quotas:
    """The quotas of a head, as its settings have them.  `apply` after each change of those."""

    def __init__(self, head: Head, commit: Callable[[], None], free_some: Callable[[], bool]) -> None:
        """`commit` commits; `free_some` does a bounded part of freeing what is gone, False where there is none."""
        self._head, self._commit, self._free_some = head, commit, free_some
        self._active = False
        self._claim: Claim | None = None
        self._granted = self._room = UNLIMITED
        self.apply()

    def share(self, claim: Claim) -> None:
        """The store's quota is shared with other writers: more of it is had from `claim`."""
        self._claim = claim
        self.apply()

    # -- limits ------------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """The settings have changed."""
        settings = self._head.settings
        shared = bool(settings.store_quota_bytes) and self._claim is not None
        if (settings.quota_bytes or settings.refquota_bytes or shared) and not self._active:
            self._sum()
            self._active = True
        self._granted = self._room = UNLIMITED
        if shared:
            self._ask(self._used)
        self._head.inodes_max = settings.inodes_max
        self._used_max = settings.quota_bytes or UNLIMITED
        self._referenced_max = settings.refquota_bytes or UNLIMITED
        limited = shared or self._used_max < UNLIMITED or self._referenced_max < UNLIMITED
        self._head.room = self._check if limited else None

    def _ask(self, need: int) -> None:
        """For so much of the store's quota."""
        quota = self._head.settings.store_quota_bytes
        if quota and self._claim is not None:
            self._granted, self._room = self._claim(self._used, need, quota)

    def _sum(self) -> None:
        """What is charged now, in cells and beside them; from here on it is added up."""
        txn, versions = self._head.txn, self._head.versions
        total = sum(charge for _, _, charge, _ in read_cells(txn, self._head.report))
        versions.charged_bytes = total + versions.unsettled_bytes
        versions.shared.hidden_bytes = versions.shared.doubled_bytes = 0
        for key, value in txn.range(Table.SHARED, b""):
            with suppress(CorruptionError):  # told when something is done with the extent
                shared = records.unpack_shared(key, records.unseal(Table.SHARED, key, value) or b"")
                versions.shared.hidden_bytes += hidden(shared)
                versions.shared.doubled_bytes += doubled(shared)

    def _freeing(self) -> int:
        """What is charged and nobody sees any more; nothing where that cannot be summed."""
        txn = self._head.txn
        if next(iter(txn.range(Table.DESTROY, b"")), None) is None:
            return 0
        try:
            return Accounts(txn, read_snapshots(txn), self._head.epoch).charged.freeing
        except CorruptionError:
            return 0

    # -- bytes -------------------------------------------------------------------------------------------------------

    @property
    def _used(self) -> int:
        versions = self._head.versions
        return versions.charged_bytes + versions.shared.hidden_bytes - versions.shared.doubled_bytes

    @property
    def referenced(self) -> int:
        """What the head is charged; while there are no quotas, with what is in more than one cell."""
        head = self._head
        doubles = head.versions.shared.doubled_bytes if self._active else 0
        return head.counters.bytes + head.versions.live_bytes_delta - doubles

    def _fits(self, more: int) -> bool:
        if self._used + more > self._granted:
            self._ask(self._used + more)
        used_max = min(self._used_max, self._granted)
        return self._used + more <= used_max and self.referenced + more <= self._referenced_max

    def _check(self, nbytes: int) -> None:
        head, versions = self._head, self._head.versions
        more = head.dirty_bytes + head.flushed_bytes + ROW_BYTES * head.dirty_rows + nbytes
        if (  # what `_fits` says, without asking for more of the store's quota and without its calls
            versions.charged_bytes + versions.shared.hidden_bytes + more <= min(self._used_max, self._granted)
            and head.counters.bytes + versions.live_bytes_delta + more <= self._referenced_max
        ) or self._fits(more):
            return
        if head.dirty:
            self._commit()
        for _ in range(RECLAIM_STEPS):
            if self._fits(nbytes) or not self._free_some():
                break
            self._commit()
        if self._fits(nbytes):
            return
        if self._used + nbytes > self._granted:
            raise QuotaExceeded(
                f"the quota of the store, {self._head.settings.store_quota_bytes} bytes, is used up",
                hint="destroy snapshots or filesystems, remove files, or raise it: tzfs set quota=... /",
            )
        if self._used - self._freeing() + nbytes > self._used_max:
            raise QuotaExceeded(
                f"the quota of {self._used_max} bytes is used up: {self._used} are charged, snapshots included",
                hint="destroy snapshots, remove files, or raise it: tzfs set quota=",
            )
        if self.referenced + nbytes > self._referenced_max:
            raise QuotaExceeded(
                f"the refquota of {self._referenced_max} bytes is used up: {self.referenced} are charged",
                hint="remove files, or raise it: tzfs set refquota=",
            )

    def free_bytes(self) -> int | None:
        """What can still be written; None where no quota says so."""
        if self._head.room is None:
            return None
        used, referenced = self._used, self.referenced
        left = min(self._used_max - used, self._referenced_max - referenced, self._room - used)
        if left < self._referenced_max - referenced and left < self._head.uncommitted_bytes + (1 << 20):
            more = self._used_max - used + self._freeing()
            left = min(more, self._referenced_max - referenced, self._room - used)
        return max(0, left - self._head.uncommitted_bytes)

    # -- numbers -----------------------------------------------------------------------------------------------------

    def free_inodes(self) -> int | None:
        """How many more inodes there may be; None without a quota."""
        most = self._head.settings.inodes_max
        return max(0, most - self._head.counters.inodes) if most else None

    def check_snapshot(self, number: int) -> None:
        """Whether there may be one snapshot more than `number`."""
        most = self._head.settings.snapshots_max
        if most and number >= most:
            raise QuotaExceeded(
                f"there are {number} snapshots, and snapshot_limit is {most}",
                hint="destroy some, or raise it: tzfs set snapshot_limit=",
            )

    def usages(self, snapshots: int) -> list[Usage]:
        """How far each limit that is set is used; the filesystem has `snapshots` of them."""
        settings, head = self._head.settings, self._head
        found = []
        if settings.quota_bytes:
            found.append(Usage("quota", self._used - self._freeing() + head.uncommitted_bytes, settings.quota_bytes))
        if settings.refquota_bytes:
            found.append(Usage("refquota", self.referenced + head.uncommitted_bytes, settings.refquota_bytes))
        if settings.inodes_max:
            found.append(Usage("inode_quota", head.counters.inodes, settings.inodes_max))
        if settings.snapshots_max:
            found.append(Usage("snapshot_limit", snapshots, settings.snapshots_max))
        return found
