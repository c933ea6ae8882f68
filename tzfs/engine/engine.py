"""The writer of one filesystem: its parts put together, and the calls that a mount or the Python API makes.

An `Engine` is opened by whoever holds the filesystem's lease, is used on one thread, and is synchronous.  Its calls
take inode numbers and raw names, check everything that can fail, then change memory; `commit` makes it durable.

Lifecycle: `Engine.format` writes an empty filesystem; `Engine(...)` opens one, as `beginning` says; `close` commits and
ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tzfs import limits
from tzfs.engine.apply import Apply, Theirs
from tzfs.engine.attributes import Attributes
from tzfs.engine.beginning import begin_writing, format_filesystem
from tzfs.engine.bookmarks import Bookmarks
from tzfs.engine.check.problems import Problem
from tzfs.engine.check.run import check
from tzfs.engine.compaction import Compactor
from tzfs.engine.content_rows import ContentRows
from tzfs.engine.contents import ContentsTable
from tzfs.engine.destroy import Destroyer
from tzfs.engine.entry_rows import EntryRows
from tzfs.engine.flatten import Flatten
from tzfs.engine.flushing import Flusher, FlushJob
from tzfs.engine.head import Settings
from tzfs.engine.inherited import Ancestry, ClonePayload
from tzfs.engine.journal import Journal
from tzfs.engine.listing import Listings
from tzfs.engine.marks import Marks
from tzfs.engine.merge import Side
from tzfs.engine.moving import Mover
from tzfs.engine.namespace import Namespace
from tzfs.engine.partial import read_partial
from tzfs.engine.quotas import Claim, Quotas, Usage
from tzfs.engine.receive import Receiver
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.replay import redo_operations
from tzfs.engine.restore import Restore, Wanted
from tzfs.engine.rollback import Rollback
from tzfs.engine.snapshots import Snapshots
from tzfs.engine.staging import Staging
from tzfs.engine.task_rows import TaskRows
from tzfs.engine.txg import TxgCommitter
from tzfs.errors import Busy, CorruptionError, NotSupported, StoreError
from tzfs.format import keys
from tzfs.format.counters import Counters
from tzfs.format.keys import Ino, Table
from tzfs.format.superblock import BOOKMARKS, Feature, Superblock
from tzfs.store.interface import MetaStore, PayloadStore, RedoStore

__all__ = ["Engine", "Settings", "StatFs"]


@dataclass(frozen=True, slots=True)
class StatFs:
    """What statfs(2) says, in the units of `block_bytes` and in inodes."""

    block_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    name_max: int


class Engine:
    """See the module's text.  The calls below that are attributes are the parts' own, documented there."""

    def __init__(
        self,
        meta: MetaStore,
        payload: PayloadStore,
        *,
        redo: RedoStore | None = None,
        settings: Settings | None = None,
        clock: Callable[[], int] = time.time_ns,
        disk: Callable[[], tuple[int, int]] | None = None,
        ancestry: Ancestry | None = None,
        receiving: bool = False,
    ) -> None:
        """Opens for writing; operations that an earlier writer left in `redo` are done again in the first commit.

        `disk` answers (bytes free for us, bytes free in all) of the disk below, for `statfs`.  `ancestry`: the origins
        of a clone.  Where a receive was suspended, only who goes on `receiving` may: `Busy`.
        """
        if ancestry is not None:
            payload = ClonePayload(payload, ancestry)
        self.meta, self.payload = meta, payload
        self._disk = disk or (lambda: (1 << 40, 1 << 40))
        head, superblock, operations = begin_writing(
            meta, payload, redo, settings=settings or Settings(), clock=clock, ancestry=ancestry
        )
        self._head = head
        self.readable = head.readable  # for readers of the last commit, through to the origins of a clone
        rows = ContentRows(head)
        self._flusher = flusher = Flusher(head)
        self._contents = contents = ContentsTable(head, rows)
        self._namespace = namespace = Namespace(head, entries := EntryRows(head), contents)
        listings = Listings(head)
        self._attributes = attributes = Attributes(head, contents)
        self._txg = TxgCommitter(head, flusher, rows, entries, attributes, superblock, redo)
        self.redone = len(operations)
        try:
            self.journal = Journal(head)
            self._snapshots = snapshots = Snapshots(head, self._commit)
            self.marks = Marks(head, snapshots)
            self.bookmarks = Bookmarks(head, snapshots, self._commit, lambda: self._announce(BOOKMARKS))
            self.destroyer = destroyer = Destroyer(head, snapshots, self._commit)
            self._staging = Staging(head, self._txg, namespace.forget, destroyer.queue)
            if operations:
                redo_operations(operations, head, namespace, attributes, contents)
                self._txg.commit()
            if redo is not None:
                redo.clear()
            if read_partial(head.txn) is None:
                while head.staging is not None:  # of a writer that did not come to the end of it
                    self._staging.withdraw()
            elif not receiving:
                raise Busy(
                    "a receive into the filesystem was cut, and is to go on",
                    hint="tzfs get receive_resume_token says where; tzfs receive -A gives it up",
                )
        except BaseException:
            head.txn.close()
            raise
        self._reclaimer = Reclaimer(head, rows, namespace)
        self.flattening = Flatten(head, self._txg)
        self._reclaimer.more += (destroyer, self.bookmarks, self.flattening)
        self.task_rows = TaskRows(head)
        self.compactor = Compactor(head, self._txg)
        self.mover = Mover(head, self._reclaimer)
        self._quotas = quotas = Quotas(head, self._commit, self._free_some)
        snapshots.admit = quotas.check_snapshot
        self.release_log = self._txg.release_log

        self.lookup = namespace.lookup
        self.find = namespace.find
        self.inode = namespace.inode
        self.parent_of = namespace.parent_of
        self.names_of = namespace.names_of
        self.path_of = namespace.path_of
        self.readlink = namespace.readlink
        self.readdir = listings.readdir
        self.readdir_plus = listings.readdir_plus
        self.readdir_damaged = listings.readdir_damaged
        self.find_damaged = listings.find_damaged
        self.mknod = namespace.mknod
        self.mkdir = namespace.mkdir
        self.symlink = namespace.symlink
        self.link = namespace.link
        self.unlink = namespace.unlink
        self.rmdir = namespace.rmdir
        self.rename = namespace.rename
        self.forget = namespace.forget
        self.setattr = attributes.setattr
        self.getxattr = attributes.getxattr
        self.setxattr = attributes.setxattr
        self.listxattr = attributes.listxattr
        self.removexattr = attributes.removexattr
        self.plan_read = contents.plan_read
        self.write = contents.write
        self.headroom = self._txg.headroom
        self.unhindered = self._txg.unhindered
        self.pressed = self._txg.pressed
        self.snapshots = snapshots.all
        self.snapshot = snapshots.create
        self.view = snapshots.view
        self.unchanged = snapshots.unchanged
        self.destroy = destroyer.destroy
        self.freeing = destroyer.freeing

    format = staticmethod(format_filesystem)

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def superblock(self) -> Superblock:
        """As committed last."""
        return self._txg.superblock

    def _announce(self, feature: Feature) -> None:
        """Within a commit: from now on the filesystem has what a tzfs without `feature` would not understand."""
        if not self.superblock.has(feature):
            self._txg.put_superblock(self.superblock.with_features([feature]))

    @property
    def settings(self) -> Settings:
        return self._head.settings

    def configure(self, settings: Settings) -> None:
        """Goes on with other settings, quotas among them."""
        self._head.settings = settings
        self._quotas.apply()

    def share(self, claim: Claim) -> None:
        """The store's quota, if there is one, is shared with others: see `tzfs.ledger`."""
        self._quotas.share(claim)

    def usages(self) -> list[Usage]:
        """How far each quota that is set is used."""
        return self._quotas.usages(len(self._snapshots.all()))

    @property
    def counters(self) -> Counters:
        """Inodes by kind, charged bytes, epoch, txg.  Not to be changed."""
        return self._head.counters

    @property
    def cloned(self) -> bool:
        """Whether anything is still looked up in an origin."""
        return self._head.ancestry is not None

    @property
    def failed(self) -> str | None:
        """Why the engine answers nothing any more; None while it does."""
        return self._head.failed

    @property
    def drift(self) -> list[str]:
        """What was not as it must be, a line each: counters that would have become negative, and damaged records whose
        contents are not given back.  Empty unless there is damage or a bug."""
        return self._head.drift

    @property
    def dirty(self) -> bool:
        return self._head.dirty

    @property
    def dirty_bytes(self) -> int:
        """Written payload that waits in memory."""
        return self._head.dirty_bytes

    @property
    def dirty_rows(self) -> int:
        return self._head.dirty_rows

    @property
    def logged(self) -> int:
        """Operations that are durable in the redo log, and come into the tables with the next commit."""
        return self._head.logged

    @property
    def hardened(self) -> bool:
        """Whether everything answered so far is durable, in the tables or in the redo log."""
        return self._head.unlogged == []

    @property
    def logs(self) -> bool:
        """Whether `harden` would put what has changed into the redo log, which is quick; else it commits."""
        return self._txg.logs

    @property
    def orphans(self) -> int:
        """Inodes without a name that the kernel has not forgotten."""
        return len(self._head.orphans)

    def orphan_inodes(self) -> list[Ino]:
        """The inodes without a name."""
        return [Ino(ino) for ino in self._head.orphans]

    @property
    def reclaiming(self) -> int:
        """Ranges of removed chunks that wait for the background."""
        return len(self._head.reclaims)

    @property
    def cached(self) -> int:
        """Inodes held in memory."""
        return len(self._head.inodes)

    @property
    def commits(self) -> int:
        """Commits since opening."""
        return self._txg.commits

    @property
    def referenced(self) -> Callable[[int], bool]:
        """Whether the kernel (or whoever else) still refers to an inode number: set by a mount."""
        return self._head.referenced

    @referenced.setter
    def referenced(self, answer: Callable[[int], bool]) -> None:
        self._head.referenced = answer

    # -- durability ------------------------------------------------------------------------------------------------

    @property
    def commit_due(self) -> bool:
        """Whether enough is dirty that a commit should not wait for its interval."""
        return self._txg.due

    @property
    def absorb_due(self) -> bool:
        """Whether so much has changed in memory that it should be `absorb`ed, or committed."""
        return self._txg.absorb_due

    @property
    def absorbed(self) -> bool:
        """Whether `absorb` has written payload that the next commit will have to sync first."""
        return self._txg.absorbed

    def absorb(self) -> None:
        """A step ahead of the next commit, which then takes less long; nothing is durable by it."""
        self._txg.absorb()

    def commit_due_at_ns(self) -> int | None:
        """When the interval is over, on the engine's clock; None while nothing is dirty."""
        return self._txg.due_at_ns()

    def commit(self) -> None:
        """Everything answered so far is durable when it returns.  An error fails the engine."""
        self._commit()

    def _commit(self, finish: Callable[[], None] | None = None) -> None:
        """`finish` is called when all rows of the group are written, to add its own to the same commit."""
        self._txg.commit(finish)
        self._reclaimer.committed()

    def _free_some(self) -> bool:
        return self._reclaimer.removing and (self._reclaimer.step() or True)

    def check(self) -> None:
        """`MountFailed` where the engine has failed: for a request that asks nothing else of it."""
        self._head.check()

    def harden(self) -> None:
        """As `commit`, and cheaper where little is dirty; readers elsewhere see it at the next commit."""
        before = self._txg.commits
        self._txg.harden()
        if self._txg.commits != before:
            self._reclaimer.committed()

    def begin_flush(self) -> FlushJob | None:
        """Freezes dirty payload for a job to write; None when there is none.  See `contents`."""
        self._head.check()
        return self._flusher.begin()

    @property
    def flushing(self) -> FlushJob | None:
        """The job that `begin_flush` has handed out and `end_flush` has not taken in yet."""
        return self._flusher.running

    def end_flush(self) -> None:
        """Takes in what the running job has written."""
        self._flusher.end()

    def background_step(self) -> bool:
        """A bounded batch of reclaiming, destroying, flattening and punching; whether there may be more to do now."""
        return self._reclaimer.step()

    def collect(self, progress: Callable[[], None] | None = None) -> None:
        """Does all background work, to the end, and calls `progress` in between."""
        while True:
            self.commit()
            while self.background_step():
                if progress is not None:
                    progress()
                if self.commit_due:
                    self.commit()
            if not self.dirty:
                return

    @property
    def background_pending(self) -> bool:
        return self._reclaimer.pending

    @property
    def reclaimer(self) -> Reclaimer:
        return self._reclaimer

    def receiver(self) -> Receiver:
        """Whoever has nothing else done meanwhile receives snapshots by it.  `NotSupported` in a clone."""
        self._head.check()
        if self._head.ancestry is not None:
            raise NotSupported(
                "nothing is received into a clone", hint="flatten it first, or receive into a filesystem of its own"
            )
        return Receiver(self._head, self._staging, self._txg, self._snapshots, self._namespace, self._reclaimer)

    def rollback(self, name: str, destroying: Sequence[str] = ()) -> Rollback:
        """A rollback to a snapshot, to be done by its steps; until then nothing else may change.  `NotFound`.

        The snapshots `destroying` go in the same commit; `Busy` where one is in use, and nothing is done then.
        """
        self._head.check()
        return Rollback(
            self._head, self._staging, self._txg, self._snapshots, self._namespace, self._reclaimer, self.destroyer,
            name, destroying,
        )  # fmt: skip

    def restore(self, name: str, wanted: list[Wanted], *, force: bool = False) -> Restore:
        """Bringing back files and trees of a snapshot, by its steps; until then nothing else may change."""
        self._head.check()
        return Restore(
            self._head, self._staging, self._txg, self._snapshots, self._reclaimer, name, wanted, force=force
        )

    def apply(self, theirs: Theirs, prefer: Side | None = None) -> Apply:
        """Taking over what a clone has changed, by its steps; until then nothing else may change."""
        self._head.check()
        return Apply(self._head, self._staging, self._txg, self._reclaimer, theirs, prefer)

    def changed_since(self, epoch: int) -> bool:
        """Whether a version was born after `epoch`, as committed."""
        return next(iter(self._head.txn.range(Table.CHANGE, keys.u64(epoch + 1))), None) is not None

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; may block on the disk."""
        try:
            return self._contents.plan_read(ino, offset, size).execute()
        except (CorruptionError, StoreError):
            if not self.cloned:
                raise
            return self._contents.plan_read(ino, offset, size).execute()  # moved meanwhile, perhaps, in the origin

    def pin(self) -> int:
        """Before a plan goes to another thread: what it wants is not given back until `unpin` of the answer."""
        return self._reclaimer.pin()

    def unpin(self, pin: int) -> None:
        self._reclaimer.unpin(pin)

    def statfs(self) -> StatFs:
        """Used is what the head is charged; free is what the disk below has, or what the quotas leave of it.

        So the size of a filesystem with a quota is that quota, less what only its snapshots hold.
        """
        self._head.check()
        available, free = self._disk()
        left = self._quotas.free_bytes()
        if left is not None:
            available, free = min(available, left), min(free, left)
        block = limits.PAGE_BYTES
        used = (self._quotas.referenced + self._head.uncommitted_bytes + block - 1) // block
        inodes = self._head.counters.inodes
        inodes_free = min(limits.INO_MAX - self._head.counters.next_ino, available // 1024)
        left = self._quotas.free_inodes()
        if left is not None:
            inodes_free = min(inodes_free, left)
        return StatFs(
            block, used + free // block, free // block, available // block, inodes + inodes_free, inodes_free,
            limits.NAME_BYTES_MAX,
        )  # fmt: skip

    # -- checking and ending -----------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """Commits, then checks everything that is in the tables and segments."""
        self.commit()
        return [found for found in check(self._head.look, self.payload) if isinstance(found, Problem)]

    def fail(self, reason: str) -> None:
        """Answers nothing from now on: what has been promised cannot be kept."""
        self._head.fail(reason)

    def abandon(self) -> None:
        """Ends without committing, as a crash would; what is on disk stays as it is."""
        self._head.fail("abandoned")
        self.close()

    def close(self) -> None:
        """Commits unless failed, and ends the transaction.  The stores stay the caller's to close."""
        try:
            if self._head.failed is None and not self._head.changing:
                self.commit()
        finally:
            if self._flusher.running is not None:
                self._flusher.running.wait()
            self._head.txn.close()
