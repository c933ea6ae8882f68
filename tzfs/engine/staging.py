"""Preparing a change of any size above the head, and making all of it the head in one commit.

A rollback, a restore (and whatever else replaces much at once) takes an epoch F far above the head, where no look-up
sees it, and writes there what the head is to become, a batch at a time, in as many transaction groups as it takes:

    begin -> stage, stage, ... -> flip          the head's epoch becomes F
                  \\---------> withdraw ... ->  nothing has happened

While it lasts the head does not change (`head.staging` is F, and everything that would is refused or waits); it can be
read.  Staging is a feature bit of the superblock, set in the commit that has the first row above the head and cleared
in the one that flips or withdraws the last: a writer that finds it set withdraws first of all.

Staging a key inserts a version born at F (a tombstone for what is to go), and puts the head's version h on the deadlist
at F, whether or not a snapshot sees it; so the invariant of versions holds at every commit.  Extents that the new
version names and h does not get a lifetime (extent, F); those that only h names die at F.  The flip queues the
rectangle (newest snapshot, F - 1, F): what is dead at F and was born after the newest snapshot, and so is seen by none.

To withdraw, each key in `change[F]` has its version freed with the lifetimes born at F, and h and what it names live
again.  Nothing else has to be remembered, so a crash needs no more than F, which is above the counters' epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tzfs import failpoints, limits
from tzfs.engine import slices
from tzfs.engine.copying import copied
from tzfs.engine.head import Head
from tzfs.engine.shared import LIFETIMES_MAX, UNREADABLE, any_shared
from tzfs.engine.txg import TxgCommitter
from tzfs.engine.versions import Version
from tzfs.errors import CorruptionError, InternalError
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, Epoch, ExtentId, Table
from tzfs.format.records import Destroy
from tzfs.format.slices import Sizes, Slice, slices_of
from tzfs.format.superblock import SHARED_EXTENTS, STAGING
from tzfs.store.interface import ReadTransaction

failpoints.declare("staging.batch", "a batch of rows above the head is about to be written")
failpoints.declare("staging.flip", "all is staged; the head is about to become it")
failpoints.declare("staging.flipped", "the flip's rows are written, not yet committed")
failpoints.declare("staging.withdraw", "a batch of rows above the head is about to be withdrawn")


@dataclass(frozen=True, slots=True)
class Source:
    """A version that a snapshot sees, whose extents are to be named again."""

    table: Table
    prefix: bytes
    birth: Epoch


def first_staged(txn: ReadTransaction, epoch: int) -> Epoch | None:
    """The epoch above the head at which there are rows; None where nothing was staged."""
    for key, _ in txn.range(Table.CHANGE, keys.u64(epoch + 1)):
        return keys.change_parts(key)[0]
    return None


class Staging:
    """The staging of one head; `epoch` is F from `begin` until it has flipped or been withdrawn."""

    def __init__(
        self,
        head: Head,
        committer: TxgCommitter,
        forget: Callable[[int], object],
        queue: Callable[[Destroy], None],
    ) -> None:
        """`queue` takes a rectangle that no snapshot sees any more, within a commit."""
        self._head, self._committer, self._forget, self._queue = head, committer, forget, queue
        self._marked = False  # the superblock says so
        found = first_staged(head.txn, head.epoch) if committer.superblock.has(STAGING) else None
        if found is not None:
            head.staging, self._marked = found, True
        elif committer.superblock.has(STAGING):
            self._mark(on=False)
        head.versions.shared.any = any_shared(head.txn)

    @property
    def epoch(self) -> Epoch:
        """F; only while there is a staging."""
        if self._head.staging is None:
            raise InternalError("nothing is being staged")
        return self._head.staging

    def begin(self) -> Epoch:
        """From here on the head does not change until `flip` or the end of `withdraw`.  What was answered is committed,
        and the background has no removed chunks left to remove."""
        head = self._head
        if head.staging is not None or head.dirty or head.reclaims:
            raise InternalError("the head is not ready for staging")
        head.staging = Epoch(head.epoch + limits.ROLLBACK_GAP)
        return head.staging

    def _mark(self, *, on: bool) -> None:
        self._committer.put_superblock(self._committer.superblock.with_features([STAGING], on=on))
        self._marked = on

    # -- staging -----------------------------------------------------------------------------------------------------

    def open_batch(self) -> None:
        """Before a batch: room for its rows; commits when enough has been written.  `NoSpace`."""
        self._committer.commit_if_full()
        self._committer.reserve(limits.PAGE_BYTES)
        failpoints.hit("staging.batch")
        self._head.begin_change()
        if not self._marked:
            self._mark(on=True)

    def close_batch(self, rows: int) -> None:
        """After a batch that has written so many rows."""
        head = self._head
        head.versions.settle()
        head.dirty_rows += rows
        head.end_invisible_change()

    def stage(self, table: Table, prefix: bytes, body: bytes | None, old: Version | None) -> None:
        """`prefix` becomes `body` (None: nothing).  `old` is its newest version, which `body` may name the extents of.

        Extents of `body` are those of `old`, or have been answered by `refer` or `copied`.
        """
        at, versions = self.epoch, self._head.versions
        if old is not None and old[0] == at:
            raise InternalError("a key is staged twice")
        if body is None and old is None and not versions.inherited(table, prefix):
            return
        named = {} if old is None else self._named(table, prefix, old)  # which may fail
        versions.insert(table, prefix, body, at)
        if old is None:
            versions.first(table, prefix, at)
            return
        versions.bury(table, prefix, old, at)
        kept = slices.extents(slices_of(table, prefix, body)) if table in (Table.CHUNK, Table.XATTR) else {}
        for (extent, birth), sizes in named.items():
            if (extent, birth) not in kept:
                versions.extent_buried(extent, birth, sizes, at)

    @staticmethod
    def _named(table: Table, prefix: bytes, version: Version) -> dict[tuple[ExtentId, Epoch], Sizes]:
        """The lifetimes that a stored version names."""
        if table not in (Table.CHUNK, Table.XATTR):
            return {}
        body = records.unseal(table, prefix + keys.suffix(version[0]), version[1])
        return slices.extents(slices_of(table, prefix, body))

    def refer(self, source: Source, found: tuple[Slice, ...], old: Version | None = None) -> tuple[Slice, ...]:
        """The slices of `source`, as a version born at F may have them; `old` is the newest version under its key.

        An extent that `old` names keeps that lifetime.  Another one gets a second; where it has one from this staging
        already, for another key, or too many, its payload is copied.
        """
        at, versions = self.epoch, self._head.versions
        births: dict[ExtentId, tuple[ExtentId, Epoch]] = {}
        if old is not None:
            births = {x: (x, b) for x, b in self._named(source.table, source.prefix, old)}
        revived: list[tuple[Slice, Epoch]] = []  # what can fail comes first
        copied: list[Slice] = []
        for s in found:
            if s.embedded or s.extent in births:
                continue
            shared = versions.shared.get(s.extent)
            full = shared is not None and (at in shared.lifetimes or len(shared.lifetimes) >= LIFETIMES_MAX)
            if full or shared is UNREADABLE:
                births[s.extent] = (self._copy(s), at)
                copied.append(s)
            else:
                revived.append((s, LIVE if shared is not None else self._death(source, s)))
                births[s.extent] = (s.extent, at)
        for s, death in revived:
            versions.extent_revived(s.extent, at, (s.stored_bytes, s.raw_bytes), birth=s.birth, death=death)
            self._mark_shared()
        versions.extents_born([(births[s.extent], (s.stored_bytes, s.raw_bytes)) for s in copied])
        out = []
        for s in found:
            if s.embedded:
                out.append(s)
                continue
            extent, birth = births[s.extent]
            out.append(s._replace(extent=extent, birth=birth))
        return tuple(out)

    def _mark_shared(self) -> None:
        superblock = self._committer.superblock
        if not superblock.has(SHARED_EXTENTS):
            self._committer.put_superblock(superblock.with_features([SHARED_EXTENTS]))

    def _copy(self, s: Slice) -> ExtentId:
        """The extent's stored bytes as an extent of its own; what does not match its sums will not match them there."""
        head = self._head
        payload = head.payload.read(s.extent, 0, s.stored_bytes)
        extent = head.payload.allocate(s.stored_bytes)
        try:
            head.payload.write([(extent, payload)])
        except BaseException:
            head.unused_extents.append((extent, s.stored_bytes))
            raise
        return extent

    def copied_up(self, found: tuple[Slice, ...]) -> tuple[Slice, ...]:
        """The slices of an inherited version, as a version of the clone's own born at F may have them."""
        made = copied(self._head, found, self.epoch)
        self._head.versions.extents_born(slices.extents(made).items())
        return made

    def _death(self, source: Source, s: Slice) -> Epoch:
        """When the lifetime that `source` names died; LIVE where the newest version of its key names it.

        It died in a version's place: nearly always at the birth of the next version that does not name it, unless that
        one has been freed since.  Then no snapshot lies between the death and the birth of the one after it, and the
        cells say at which epochs between them anything of that birth died.
        """
        txn, wanted = self._head.txn, (s.extent, s.birth)
        key = source.prefix + keys.suffix(source.birth)
        for newer, value in txn.range(source.table, source.prefix, key, reverse=True):
            birth = keys.birth_of(newer)
            if birth >= self.epoch:
                continue
            if wanted in self._named(source.table, source.prefix, (birth, value)):
                continue
            if self._died(s, birth):
                return birth
            below = max((e for e in self._head.versions.snapshots if e < birth), default=0)
            for cell, _ in list(txn.range(Table.CELL, keys.cell(below + 1, 0), keys.cell(birth, 0))):
                death, born = keys.cell_parts(cell)
                if born == s.birth and self._died(s, death):
                    return death
            raise CorruptionError(f"the deadlist lacks extent {s.extent:#x} born at {s.birth}, which a snapshot names")
        return self.epoch if self._died(s, self.epoch) else LIVE

    def _died(self, s: Slice, death: int) -> bool:
        return self._head.txn.get(Table.DEAD, keys.dead(death, s.birth, Table.EXTENT, keys.u64(s.extent))) is not None

    # -- the end of it -----------------------------------------------------------------------------------------------

    def flip(self, change: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
        """The head becomes what is staged, in one commit; `change` does what else belongs to it.

        `then` is called within the same commit when the head's epoch is F.
        """
        head, versions = self._head, self._head.versions
        at = self.epoch
        failpoints.hit("staging.flip")

        def finish() -> None:
            change()
            counters = head.counters
            newest = versions.snapshots[-1] if versions.snapshots else -1
            self._queue(Destroy(newest, at - 1, at))
            counters.epoch = at
            then()
            if self._marked:
                self._mark(on=False)
            failpoints.hit("staging.flipped")

        self._committer.commit(finish)
        head.inodes.clear()
        head.known_entries.clear()
        self._resume()

    def withdraw(self) -> bool:
        """Takes back a batch of staged keys; whether there are more.  The last one ends the staging."""
        head, limit = self._head, limits.STAGING_BATCH_KEYS
        at = self.epoch
        self._committer.commit_if_full()
        if self._committer.tight:
            limit = min(limit, 4)  # what the reserve of a full disk can take
        failpoints.hit("staging.withdraw")
        head.begin_change()
        batch = []
        for key, _ in head.txn.range(Table.CHANGE, keys.u64(at), keys.u64(at + 1)):
            batch.append(keys.change_parts(key)[1:])
            if len(batch) == limit:
                break
        for table, prefix in batch:
            self._withdraw(table, prefix)
        self.close_batch(6 * len(batch))
        if len(batch) == limit:
            return True
        if self._marked:
            head.begin_change()
            if head.versions.bequest is not None:
                head.versions.bequest.withdrawn(head.txn, at)
            self._mark(on=False)
            head.end_change()
        self._resume()
        self._committer.commit()
        return False

    def _resume(self) -> None:
        """The head may change again: first by what it was told meanwhile."""
        head = self._head
        head.staging = None
        forgotten, head.forgotten = head.forgotten, []
        for ino in forgotten:
            self._forget(ino)

    def _withdraw(self, table: Table, prefix: bytes) -> None:
        head, at = self._head, self.epoch
        staged = head.txn.seek(table, prefix, at)
        if staged is None or staged[0] != at:
            raise CorruptionError(f"a row of change at {at} has no version in {table.name.lower()}")
        named = self._named(table, prefix, staged)
        for (extent, birth), sizes in named.items():
            if birth == at:
                head.versions.live_extent_freed(extent, birth, sizes, head.counters.txg)
        old = head.txn.seek(table, prefix, at - 1)
        if old is not None:
            head.versions.unbury(table, prefix, old, at)
            for (extent, birth), sizes in self._named(table, prefix, old).items():
                if (extent, birth) not in named:
                    head.versions.extent_unburied(extent, birth, sizes, at)
        head.versions.free_live(table, prefix, staged)


def seek_all(
    txn: ReadTransaction, table: Table, prefixes: Sequence[bytes], epoch: int
) -> Mapping[bytes, Version | None]:
    """What each of `prefixes`, which ascend, is at `epoch`."""
    return dict(zip(prefixes, txn.seek_many(table, prefixes, epoch), strict=True))
