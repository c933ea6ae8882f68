"""Flattening: what a clone inherits becomes its own, a bounded batch at a time, until its origin is not needed.

The keys that fall through are gone through in order, table by table.  What the origin's snapshot shows under each is
copied as a version born at 0, so that the clone's own snapshots see it too; payload goes into extents of the clone's.
Where the clone has versions of its own, the copy dies at the birth of the oldest, and is made only if a snapshot of the
clone sees it.  Then the key does not fall through any more: `cursor` (a row of `sys`, in the same commit) says how far
that has come, and is all that is remembered.  The clone may be read, written, snapshotted and rolled back meanwhile.

    never asked for --begin--> under way --step, step, ...--> done: no origin, no feature bit

Inodes without a name in the origin's snapshot, which nobody can come to from the clone, are left behind.

A batch is made on a committed head: what is in memory of a chunk or an entry was looked up before, and would not know
of the version that has come below it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from tzfs import failpoints, limits
from tzfs.engine import bequest, reads, slices
from tzfs.engine.bequest import Bytes
from tzfs.engine.copying import copied
from tzfs.engine.foreign import level_of, tagged
from tzfs.engine.head import Head
from tzfs.engine.inherited import EVERYTHING, NOTHING, Ancestry, Cursor, FromAbove, read_cursor, write_cursor
from tzfs.engine.txg import TxgCommitter
from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import VERSIONED, Epoch, Table
from tzfs.format.slices import Slice, slices_of, with_slices
from tzfs.format.superblock import ORIGIN

failpoints.declare("flatten.batch", "a batch of inherited rows is about to be copied")
failpoints.declare("flatten.rows", "a batch of inherited rows is copied, not yet committed")
failpoints.declare("flatten.end", "everything is copied; the origin is about to be let go")

Key = tuple[Table, bytes, bytes, Bytes]  # of an inherited version: table, prefix, value as inherited, and its charge


class Flatten:
    """The flattening of a head.  `keys_done` and `bytes_done` count what this process has gone through."""

    def __init__(self, head: Head, committer: TxgCommitter) -> None:
        self._head, self._committer = head, committer
        self._under_way = head.ancestry is not None and read_cursor(head.txn)[1]
        self.keys_done = 0
        self.bytes_done = 0

    @property
    def pending(self) -> bool:
        """Whether `step` has something to do now."""
        return self._under_way and self._head.staging is None

    @property
    def oldest(self) -> int:
        return 0

    @property
    def under_way(self) -> bool:
        return self._under_way

    def begin(self) -> None:
        """From here on `step` has work, also for the next writer, until everything is copied.  `NoSpace`."""
        head = self._head
        head.check()
        if head.ancestry is None or self._under_way:
            return
        head.admit(limits.PAGE_BYTES)
        head.begin_change()
        self._under_way = True
        write_cursor(head.txn, NOTHING)
        head.end_change()
        self._committer.commit()

    def step(self) -> None:
        """One batch, durable with the next commit.  `NoSpace`, `CorruptionError`: it stays where it was."""
        head, ancestry = self._head, self._head.ancestry
        if ancestry is None or not self.pending:
            return
        self._committer.commit((lambda: None) if head.contents else None)
        self._committer.reserve(limits.FLATTEN_BATCH_BYTES)
        failpoints.hit("flatten.batch")
        batch, cursor = self._next(ancestry)
        written: list[Slice] = []
        try:
            copies = [self._copy(key, written) for key in batch]
        except BaseException:
            head.unused_extents.extend((s.extent, s.stored_bytes) for s in written)
            raise
        head.begin_change()
        for (table, prefix, _, cost), body in zip(batch, copies, strict=True):
            self._take_in(table, prefix, body, cost)
        ancestry.cursor = cursor
        head.versions.settle()
        for (table, prefix, _, _), body in zip(batch, copies, strict=True):
            if body is None:
                head.versions.collect(table, [prefix])
        head.versions.settle()
        write_cursor(head.txn, cursor)
        head.dirty_rows += 4 * len(batch) + 2
        self.keys_done += len(batch)
        failpoints.hit("flatten.rows")
        head.end_invisible_change()
        if cursor == EVERYTHING:
            self._finish()

    # -- one batch -----------------------------------------------------------------------------------------------------

    def _next(self, ancestry: Ancestry) -> tuple[list[Key], Cursor]:
        """The next keys to be taken in, and where that leaves the cursor."""
        batch: list[Key] = []
        nbytes = passed = 0
        cursor = ancestry.cursor
        above = FromAbove(ancestry).at(cursor)
        try:
            inos, data = nameless(ancestry)
            for table in VERSIONED:
                if table < cursor[0]:
                    continue
                of_data = table in (Table.INLINE, Table.CHUNK)
                stop = keys.u64(ancestry.link.first_data if of_data else ancestry.link.first_ino)
                start = cursor[1] + b"\xff" * 8 + b"\0" if table == cursor[0] else b""
                for prefix, value in above.visible(table, start, stop):
                    cursor, passed = (table, prefix), passed + 1
                    if int.from_bytes(prefix[:8], "big") not in (data if of_data else inos):
                        batch.append((table, prefix, value, above.cost_of(table, prefix, value)))
                        if table is Table.CHUNK:
                            nbytes += 1 << limits.CHUNK_SHIFT_MAX
                    if passed == limits.FLATTEN_BATCH_KEYS or nbytes >= limits.FLATTEN_BATCH_BYTES:
                        return batch, cursor
        finally:
            above.close()
        return batch, EVERYTHING

    def _oldest(self, table: Table, prefix: bytes) -> Epoch | None:
        """The birth of the clone's own oldest version of a key."""
        found = next(iter(self._head.txn.range(table, prefix, prefix + b"\xff" * 8 + b"\0", reverse=True)), None)
        return None if found is None else keys.birth_of(found[0])

    def _copy(self, key: Key, written: list[Slice]) -> bytes | None:
        """The body of the version to be made, its payload written; None where nobody would see it."""
        table, prefix, value, _ = key
        first = self._oldest(table, prefix)
        if first is not None and not self._head.versions.seen(0, first):
            return None
        body = records.unseal(table, prefix + keys.suffix(0), value)
        assert body is not None  # a tombstone is not inherited
        if found := slices_of(table, prefix, body):
            made = copied(self._head, tagged(found, level_of(value)), Epoch(0), alone=table is Table.CHUNK)
            written += [s for s in made if not s.embedded]
            body = with_slices(table, made)
            self.bytes_done += made[0].stored_bytes
        return body

    def _take_in(self, table: Table, prefix: bytes, body: bytes | None, cost: Bytes) -> None:
        versions, first = self._head.versions, self._oldest(table, prefix)
        if versions.bequest is not None:
            versions.bequest.flattened(cost, first)
        if table is Table.DIRENT:
            versions.sought.pop(prefix, None)
        if body is None:
            return
        lifetimes = slices.extents(slices_of(table, prefix, body))
        versions.insert(table, prefix, body, 0)
        versions.extents_born(lifetimes.items())
        if first is not None:
            versions.bury(table, prefix, (Epoch(0), records.seal(table, prefix + keys.suffix(0), body)), first)
            for (extent, birth), sizes in lifetimes.items():
                versions.extent_buried(extent, birth, sizes, first)

    def _finish(self) -> None:
        """The origin is let go, with the batch that was the last."""
        head, committer = self._head, self._committer
        failpoints.hit("flatten.end")
        head.begin_change()
        committer.put_superblock(replace(committer.superblock, origin=None).with_features([ORIGIN], on=False))
        bequest.remove(head.txn)
        head.let_origin_go()
        head.note("flatten")
        self._under_way = False
        head.end_change()
        committer.commit()


def nameless(ancestry: Ancestry) -> tuple[set[int], set[int]]:
    """The inodes without a name that the origin's snapshot shows, and their data ids."""
    inos: set[int] = set()
    data: set[int] = set()
    for each in ancestry.chain:
        up = each.above.begin()
        try:
            for key, value in up.range(Table.ORPHAN, b""):
                with suppress(CorruptionError):  # a check will say so
                    if reads.orphaned_at(up, key, value) <= each.link.epoch:
                        ino = int.from_bytes(key, "big")
                        inode = reads.inode_at(up, ino, each.link.epoch)
                        if inode is not None and not inode.nlink:
                            inos.add(ino)
                            data.add(inode.data)
        finally:
            up.close()
    return inos, data
