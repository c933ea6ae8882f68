"""Transaction groups: how what changed in memory becomes durable, all of it or nothing.

    dirty --begin_flush--> payload written and synced (any thread) --end_flush-->
    publish (rows in key order) -> LMDB commit -> next transaction group

Where much changes within one group, it is published in steps (`absorb`), and the commit has less to do.

A caller with an event loop flushes ahead (`begin_flush`, `job.run` in a thread, `end_flush`) until little is left, then
calls `commit`, which does the rest without yielding.  `commit` alone does all of it.

The crash contract: after `commit` returns, power loss loses nothing that came before it.  What a crash loses is a
suffix of the operations since the last commit.  A commit or sync that fails fails the head: nothing is answered any
more, and the next open finds the last commit, and does again what the redo log has since.

Space: before a group takes its first change, and before a write exceeds what was set aside, room for the largest commit
is reserved beyond the end of the tables and of the segment.  Where that fails, what adds is refused with `NoSpace`
while what removes goes on, a few rows a commit, within the reserve of before or of the last writer.
"""

from __future__ import annotations

from collections.abc import Callable

from tzfs import failpoints, limits
from tzfs.engine.attributes import Attributes
from tzfs.engine.content_rows import ContentRows
from tzfs.engine.entry_rows import EntryRows
from tzfs.engine.flushing import Flusher
from tzfs.engine.head import Head
from tzfs.errors import Busy, Fenced, NoSpace
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, pack_counters
from tzfs.format.keys import Table, Txg
from tzfs.format.operations import pack_operations
from tzfs.format.superblock import CODECS, SAVED, SUPERBLOCK_KEY, Superblock, pack_superblock
from tzfs.store.interface import Compaction, RedoStore

failpoints.declare("commit.log", "an fsync is about to put operations into the redo log")
failpoints.declare("commit.absorb", "changes are about to become rows of a transaction that is not committed yet")
failpoints.declare("commit.begin", "a commit is about to flush what is left")
failpoints.declare("commit.publish", "payload is durable; rows are about to be written")
failpoints.declare("commit.rows", "rows are written; the tables are about to be committed")
failpoints.declare("commit.done", "the tables are committed; nobody has been told")

CHANGE_ROWS_MAX = 10  # what a small write adds at most, or an unlink (of the last of what had been two names)
SLACK_BYTES = 4 * limits.MIB  # payload reserved beyond the dirty limit: what compaction and merged chunks come to


class TxgCommitter:
    """Commits a head.  `committed_txg` is the last durable transaction group."""

    def __init__(
        self,
        head: Head,
        flusher: Flusher,
        rows: ContentRows,
        entries: EntryRows,
        attributes: Attributes,
        superblock: Superblock,
        redo: RedoStore | None,
    ) -> None:
        self._head, self._flusher, self._rows = head, flusher, rows
        self._entries, self._attributes = entries, attributes
        self.superblock = superblock
        self._superblock = pack_superblock(superblock)
        head.versions.totals.saved_known = superblock.saved_known
        self._redo = redo
        self._orphan_rows = set(head.orphans)  # those that the tables have
        self._base = head.meta.commit_number
        self._reserved_txg = self._asked_txg = -1
        self.tight = False  # no room for a commit of the largest size
        self._absorbed = 0  # of `head.dirty_rows`
        self.commits = 0
        head.admit, head.pace, head.reserve, head.unplaced = self.admit, self.pace, self.reserve, self.unplaced

    def put_superblock(self, superblock: Superblock) -> None:
        """A feature comes into use, or out of it, with the group that is being built."""
        self.superblock, self._superblock = superblock, pack_superblock(superblock)
        self._head.txn.put(Table.SYS, SUPERBLOCK_KEY, self._superblock)

    @property
    def due(self) -> bool:
        """Whether a commit should not wait for its interval: too many rows or too much payload is dirty."""
        head = self._head
        return head.dirty_rows >= head.settings.dirty_rows_max or head.dirty_bytes >= head.settings.dirty_bytes_max

    @property
    def absorb_due(self) -> bool:
        """Whether what is in memory should become rows of the transaction, or be committed."""
        return self._head.dirty_rows - self._absorbed >= limits.ABSORB_ROWS or self.due

    def pressed(self) -> bool:
        """Whether something is due that cannot wait for the interval: asked after every change."""
        head = self._head
        return (
            head.dirty_rows - self._absorbed >= limits.ABSORB_ROWS
            or head.dirty_bytes >= limits.FLUSH_AHEAD_BYTES
            or head.dirty_rows >= head.settings.dirty_rows_max
            or head.dirty_bytes >= head.settings.dirty_bytes_max
        )

    @property
    def absorbed(self) -> bool:
        """Whether payload may have been written that is not synced."""
        return self._absorbed > 0

    def due_at_ns(self) -> int | None:
        """When what the tables have not has waited for the interval, on the head's clock; None when they have all."""
        head = self._head
        return head.dirty_since_ns + int(head.settings.txg_interval_s * 1e9) if head.dirty else None

    @property
    def logs(self) -> bool:
        """Whether `harden` would be the redo log's now, and not a commit."""
        head = self._head
        return self._redo is not None and head.unlogged is not None and head.dirty_rows < head.settings.dirty_rows_max

    # -- space -----------------------------------------------------------------------------------------------------

    def admit(self, nbytes: int) -> None:
        """Room for `nbytes` more of payload, or for a few more rows, on the disk and within the quotas; `NoSpace` and
        `QuotaExceeded` before anything has changed.

        Called by every operation that adds, before it changes anything.
        """
        head = self._head
        if (
            head.staging is None
            and self._reserved_txg == self._asked_txg == head.counters.txg
            and not self.tight
            and head.dirty_rows - self._absorbed <= 2 * limits.ABSORB_ROWS
            and head.dirty_rows <= head.settings.dirty_rows_max
            and self.unplaced() + nbytes <= head.payload.reserved
            and head.dirty_bytes + nbytes <= 2 * head.settings.dirty_bytes_max
        ):  # nearly always: nothing of what follows would do anything
            if head.room is not None:
                head.room(nbytes)
            return
        self.pace(nbytes)
        if head.room is not None:
            head.room(nbytes)
        self.reserve(nbytes)

    def unhindered(self, changes: int) -> bool:
        """Whether so many unlinks can be made without one having to wait for a commit, or to look at what a clone
        inherits."""
        head = self._head
        rows = head.dirty_rows + CHANGE_ROWS_MAX * changes
        return (
            not head.changing
            and head.failed is None
            and head.staging is None
            and head.ancestry is None
            and not self.tight
            and self._asked_txg == head.counters.txg
            and rows - self._absorbed <= 2 * limits.ABSORB_ROWS
            and rows <= head.settings.dirty_rows_max
        )

    def headroom(self, changes: int) -> int:
        """How many bytes so many changes, writes or unlinks, may bring, two pages more for each write, without one
        being refused or having to reserve or commit; 0 where that cannot be said."""
        head = self._head
        if head.room is not None or self._reserved_txg != head.counters.txg or not self.unhindered(changes):
            return 0
        unplaced = self.unplaced()  # before what is reserved: a flush that places some of it lowers that first
        return min(head.payload.reserved - unplaced, 2 * head.settings.dirty_bytes_max - head.dirty_bytes)

    def reserve(self, nbytes: int) -> None:
        """Room for `nbytes` more of payload, or for a few more rows, within the limits of a group."""
        head = self._head
        if self._reserved_txg != head.counters.txg or self.unplaced() + nbytes > head.payload.reserved:
            self._reserve(nbytes)

    def unplaced(self) -> int:
        """Bytes of payload that have been accepted, and for which no place has been taken yet."""
        running = self._flusher.running
        return self._head.dirty_bytes if running is None else self._head.dirty_bytes + running.unplaced

    def pace(self, nbytes: int = 0) -> None:
        """Commits or absorbs beyond the limits: the brake of a caller who does not watch `due` and `absorb_due`.

        On a full disk the limit is what the reserve that is kept there can take.  `Busy` while the head must not
        change.
        """
        if self._head.staging is not None:
            raise Busy("the filesystem is being rolled back or restored", hint="try again when that is done")
        self.commit_if_full(nbytes)

    def commit_if_full(self, nbytes: int = 0) -> None:
        """What `pace` does, whoever asks."""
        head, settings = self._head, self._head.settings
        if self._asked_txg != head.counters.txg:
            self._asked_txg = head.counters.txg
            try:
                head.meta.reserve(limits.META_RESERVE_BYTES)
                self.tight = False
            except NoSpace:
                self.tight = True
        rows_max = limits.FULL_DIRTY_ROWS_MAX if self.tight else settings.dirty_rows_max * 4 // 3
        if head.dirty_rows > rows_max or head.dirty_bytes + nbytes > 2 * settings.dirty_bytes_max:
            self.commit()
        elif head.dirty_rows - self._absorbed > 2 * limits.ABSORB_ROWS:
            self.absorb()

    def _reserve(self, nbytes: int) -> None:
        head = self._head
        try:
            head.meta.reserve(limits.META_RESERVE_BYTES)
            head.payload.reserve(max(2 * head.settings.dirty_bytes_max, self.unplaced()) + SLACK_BYTES + nbytes)
        except NoSpace:
            # A smaller group may still fit: room for this operation and for what has been accepted already.
            head.payload.reserve(self.unplaced() + nbytes + SLACK_BYTES // 4)
            head.meta.reserve(limits.META_RESERVE_LEAST_BYTES)
        self._reserved_txg = head.counters.txg

    # -- committing ------------------------------------------------------------------------------------------------

    def commit(self, finish: Callable[[], None] | None = None) -> None:
        """Everything answered so far is durable when it returns.  Does nothing on a clean head.

        `finish` is called when all rows of the group are written, to add its own to the same commit.  Raises what
        failed; the head has then failed with it.
        """
        head = self._head
        head.check()
        if not head.dirty and finish is None:
            return
        try:
            failpoints.hit("commit.begin")
            self._flusher.end()
            job = self._flusher.begin()
            if job is not None:
                job.run()
                self._flusher.end()
            else:
                head.payload.sync()
            failpoints.hit("commit.publish")
            self._publish(finish)
            failpoints.hit("commit.rows")
            head.txn.commit()
            failpoints.hit("commit.done")
            self._next_group()
        except BaseException as error:
            head.fail(f"commit of transaction group {head.counters.txg} failed: {error}")
            raise

    def absorb(self) -> None:
        """Turns what has changed in memory into rows of the open transaction: a few steps of one commit, so that none
        takes long.  Nothing is durable by it, and nobody else sees it."""
        head = self._head
        head.check()
        if not head.dirty or self._flusher.running is not None:  # what that writes becomes rows when it has ended
            return
        try:
            failpoints.hit("commit.absorb")
            job = self._flusher.begin()
            if job is not None:
                job.run(sync=False)
                self._flusher.end()
            self._publish(None)
            self._published()
        except BaseException as error:
            head.fail(f"changes could not be made rows of transaction group {head.counters.txg}: {error}")
            raise
        self._absorbed = head.dirty_rows

    def harden(self) -> None:
        """As `commit`, and cheaper where little has changed: the operations go into the redo log, the tables follow
        later.  Reading elsewhere (another process, a check) sees them only after the next `commit`."""
        head = self._head
        head.check()
        unlogged = head.unlogged
        if not unlogged and unlogged is not None:
            return
        if self._redo is None or unlogged is None or not self.logs:
            self.commit()
            return
        try:
            failpoints.hit("commit.log")
            self._check_lease()
            logged = self._redo.append(self._base, pack_operations(unlogged))
        except BaseException as error:
            head.fail(f"writing operations to the redo log failed: {error}")
            raise
        if logged:
            head.logged += len(unlogged)
            head.unlogged, head.unlogged_bytes = [], 0
        else:
            self.commit()

    def _check_lease(self) -> None:
        if self._head.txn.get(Table.SYS, SUPERBLOCK_KEY) != self._superblock:
            raise Fenced("another process has taken the lease of this filesystem")

    def release_log(self) -> None:
        """Gives back the space of a redo log whose every group is in the tables; else does nothing."""
        self._head.check()
        if self._redo is not None and not self._head.logged:
            self._redo.release()

    def replace_tables(self, copy: Compaction) -> None:
        """Has a compacted copy take the place of the tables; the open transaction has nothing in it.

        What `copy.install` raises is raised; the head goes on with the tables as they were, unless they are lost.
        """
        head = self._head
        head.check()
        if head.txn.changed or head.logged or head.meta.commit_number != self._base:
            copy.withdraw()
            raise Busy("the tables were changed while they were copied", hint="try again later")
        if self._redo is not None:
            self._redo.clear()
        head.txn.close()
        try:
            copy.install()
        except BaseException as error:
            if copy.lost:
                head.fail(f"the tables were replaced, and may not have been: {error}")
            raise
        finally:
            try:
                head.begin_group()
                self._base = head.meta.commit_number
                head.versions.begin(head.txn)
            except BaseException as error:
                head.fail(f"the tables cannot be opened again: {error}")
                raise

    def _publish(self, finish: Callable[[], None] | None) -> None:
        head = self._head
        versions, counters, epoch = head.versions, head.counters, head.epoch
        self._check_lease()
        self._entries.publish()
        self._attributes.publish()
        if head.compressed and not self.superblock.has(CODECS):
            self.put_superblock(self.superblock.with_features([CODECS, SAVED]))
        self._rows.publish()
        buried: dict[int, list[bytes]] = {}
        for ino in sorted(head.buried):
            if ino < head.first_ino:
                buried.setdefault(head.buried[ino][0], []).append(keys.inode(ino))
        for at, gone in buried.items():
            versions.remove_many(Table.INODE, gone, at)
        made: list[tuple[bytes, bytes]] = []
        changed: list[tuple[bytes, bytes]] = []
        for ino in sorted(head.dirty_inodes):
            row = keys.inode(ino), records.pack_inode(head.inodes[ino])
            fresh = ino >= head.first_ino
            if ino in head.orphans:
                versions.put(Table.INODE, *row, head.orphans[ino], fresh=fresh)
            else:
                (made if fresh else changed).append(row)
        versions.put_fresh(Table.INODE, made, epoch)
        versions.put_many(Table.INODE, changed, epoch)
        for ino in head.orphans_changed:
            key = keys.orphan(ino)
            if ino in head.orphans:
                body = records.pack_plain(Table.ORPHAN, head.orphans[ino])
                head.txn.put(Table.ORPHAN, key, records.seal(Table.ORPHAN, key, body))
                self._orphan_rows.add(ino)
            elif ino in self._orphan_rows:
                head.txn.delete(Table.ORPHAN, key)
                self._orphan_rows.discard(ino)
        counters.bytes = head.counted("bytes", counters.bytes + versions.live_bytes_delta)
        versions.settle()
        if finish is not None:
            finish()
        counters.next_segment = max(counters.next_segment, head.payload.next_segment)
        head.txn.put(Table.SYS, COUNTERS_KEY, records.seal(Table.SYS, COUNTERS_KEY, pack_counters(counters)))

    def _next_group(self) -> None:
        """The group is durable, and the next one begins."""
        head = self._head
        head.begin_group()
        self._base = head.meta.commit_number
        head.logged = 0
        head.unlogged, head.unlogged_bytes = [], 0
        head.dirty = False
        head.dirty_rows = head.dirty_bytes = self._absorbed = 0
        head.counters.txg = Txg(head.counters.txg + 1)
        self._published()
        self.commits += 1
        head.committed()

    def _published(self) -> None:
        """All that was in memory is in rows of the transaction."""
        head = self._head
        head.buried.clear()
        head.dirty_inodes.clear()
        head.orphans_changed.clear()
        head.flushed_bytes = 0
        head.first_ino, head.first_data = head.counters.next_ino, head.counters.next_data
        if len(head.inodes) > limits.CACHED_INODES_MAX:
            for ino in list(head.inodes)[: limits.CACHED_INODES_MAX // 2]:
                del head.inodes[ino]
        if len(head.known_entries) > limits.CACHED_INODES_MAX:
            head.known_entries.clear()
        head.versions.begin(head.txn)
