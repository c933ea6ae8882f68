"""Rollback: the head becomes what a snapshot is, in one commit, in time proportional to what has changed since.

    prepare    what was answered is committed; inodes unlinked since the snapshot are forgotten; removed chunks go
    stage      for each key in `change` after S: what it is at S is staged, unless the head has that
    flip       one commit makes it the head

Newer snapshots survive, so a rollback can be rolled back.  No number is given twice: what was made since keeps its
inode number and data id in the snapshots that see it, and nothing else gets them.

With h the newest version of a key: nothing is staged if h was born at or before S, for then S sees it; nor if there is
nothing at S and h is a tombstone.  The extents of S's version that h names too keep their lifetime; the others get a
second one.  Why removed chunks have to go first: a chunk waiting to be removed reads as a hole at every epoch from the
removal on, and F is one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from tzfs import limits
from tzfs.engine.accounting import read_cells
from tzfs.engine.destroy import Destroyer
from tzfs.engine.foreign import level_of, tagged
from tzfs.engine.head import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Head
from tzfs.engine.namespace import Namespace
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.snapshots import Snapshots
from tzfs.engine.staging import Source, Staging, seek_all
from tzfs.engine.txg import TxgCommitter
from tzfs.engine.versions import Version
from tzfs.format import keys, records
from tzfs.format.keys import Epoch, Ino, Table
from tzfs.format.records import Inode, Snapshot
from tzfs.format.slices import slices_of, with_slices
from tzfs.store.interface import ReadTransaction

_COUNTERS = {S_IFREG: "files", S_IFDIR: "directories", S_IFLNK: "symlinks"}  # and "others"


@dataclass(slots=True)
class Changes:
    """What a flip has changed, for whoever caches names and attributes; 150 bytes an entry, 40 an inode.

    `entries` are (directory, name, inode it names now or 0); `inodes` those whose attributes or contents are not what
    they were, the ones that are gone included.
    """

    entries: list[tuple[int, bytes, int]] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)

    def note(self, table: Table, prefix: bytes, body: bytes | None) -> None:
        """A key is now `body`."""
        if table is Table.DIRENT:
            ino = 0 if body is None else records.unpack_dirent(prefix, body)[0]
            self.entries.append((int.from_bytes(prefix[:8], "big"), prefix[8:-1], ino))
        elif table is Table.INODE:
            self.inodes.append(int.from_bytes(prefix, "big"))


class Kinds:
    """How many inodes with names there are more, or fewer, of each kind."""

    def __init__(self) -> None:
        self._more: Counter[str] = Counter()

    def count(self, inode: Inode | None, by: int) -> None:
        if inode is not None and inode.nlink:
            self._more["inodes"] += by
            self._more[_COUNTERS.get(inode.mode & S_IFMT, "others")] += by

    @property
    def inodes(self) -> int:
        """How many inodes more, or fewer."""
        return self._more["inodes"]

    def apply(self, head: Head) -> None:
        """Brings the counters up to date."""
        for what, by in self._more.items():
            setattr(head.counters, what, head.counted(what, getattr(head.counters, what) + by))


def inode_of(prefix: bytes, version: Version | None) -> Inode | None:
    """The inode in a version of `inode`; None for a tombstone."""
    body = body_of(Table.INODE, prefix, version)
    return None if body is None else records.unpack_inode(Ino(int.from_bytes(prefix, "big")), prefix, body)


def body_of(table: Table, prefix: bytes, version: Version | None) -> bytes | None:
    """The body of a stored version; None for a tombstone, or none."""
    return None if version is None else records.unseal(table, prefix + keys.suffix(version[0]), version[1])


class Rollback:
    """One rollback to the snapshot `name`, as a row of steps; nothing has happened until `step` has answered False.

    `done` of about `total` changes have been staged.  `changes` is what a cache must forget, once it has flipped.  The
    snapshots `destroying` go in the commit that flips, or nothing happens.
    """

    def __init__(
        self,
        head: Head,
        staging: Staging,
        committer: TxgCommitter,
        snapshots: Snapshots,
        namespace: Namespace,
        reclaimer: Reclaimer,
        destroyer: Destroyer,
        name: str,
        destroying: Sequence[str] = (),
    ) -> None:
        """`NotFound` where there is no such snapshot, `Busy` where one that is to go is in use."""
        self._head, self._staging, self._committer = head, staging, committer
        self._snapshots, self._namespace, self._reclaimer = snapshots, namespace, reclaimer
        self._destroyer, self._destroying = destroyer, tuple(destroying)
        self._name = name
        self._at: Epoch = snapshots.get(name).epoch
        self._kinds = Kinds()
        self._steps = self._run()
        self.changes = Changes()
        self.staged = self.done = 0
        self.total = changes_after(head, self._at)
        with destroyer.unused(destroying):
            pass

    def step(self) -> bool:
        """A bounded piece of the work; whether there is more.  What it raises has changed nothing: `cancel` then."""
        return next(self._steps, None) is not None

    def cancel(self) -> bool:
        """A bounded piece of taking back what has been staged; whether there is more."""
        self._steps.close()
        return self._head.staging is not None and self._staging.withdraw()

    def _run(self) -> Generator[bool, None, None]:
        head = self._head
        head.check()
        while not self._ready():
            yield True
        self._at = self._snapshots.get(self._name).epoch
        self._staging.begin()
        start = keys.change(self._at + 1, Table.INODE, b"")
        while True:
            rows = []
            for key, _ in head.txn.range(Table.CHANGE, start, keys.u64(head.epoch + 1)):
                rows.append(keys.change_parts(key)[1:])
                start = key + b"\0"
                if len(rows) == limits.STAGING_BATCH_KEYS:
                    break
            if not rows:
                break
            self._batch(rows)
            self.done += len(rows)
            yield True
        if not self.staged:
            self._staging.withdraw()  # ends what has not begun
            self._destroyer.destroy(self._destroying)
            return

        def finish() -> None:
            self._kinds.apply(head)
            head.note("rollback", snapshot=self._name, inodes=len(self.changes.inodes))

        with self._destroyer.unused(self._destroying) as chosen:
            self._staging.flip(finish, lambda: self._destroy(chosen))
        self._destroyer.gone(chosen)

    def _destroy(self, chosen: dict[str, Snapshot]) -> None:
        """Within the commit that flips, after that: so they are destroyed in the filesystem as it was rolled back."""
        if chosen:
            self._destroyer.put(chosen)

    def _ready(self) -> bool:
        """One batch of what has to be done before anything is staged; whether nothing is left."""
        head = self._head
        gone = [ino for ino, unlinked in head.orphans.items() if unlinked > self._at]
        for ino in gone[: limits.RECLAIM_BATCH_CHUNKS]:
            self._namespace.forget(ino)
        if gone or head.reclaims:
            self._committer.commit()  # what is removed shows as reclaims
            if head.reclaims:
                self._reclaimer.step()
            return False
        self._committer.commit()
        return not head.reclaims

    def _batch(self, rows: list[tuple[Table, bytes]]) -> None:
        self._staging.open_batch()
        by_table: dict[Table, set[bytes]] = defaultdict(set)
        for table, prefix in rows:
            by_table[table].add(prefix)
        txn, look, before = self._head.txn, self._head.look, self.staged
        try:
            for table, found in by_table.items():
                prefixes = sorted(found)
                heads = seek_all(txn, table, prefixes, self._staging.epoch)
                for prefix, then in zip(prefixes, look.seek_many(table, prefixes, self._at), strict=True):
                    self.staged += self._key(table, prefix, heads[prefix], then)
        finally:  # each key whole or not at all: what is damaged can be passed by, by taking the others back
            self._staging.close_batch(6 * (self.staged - before))

    def _key(self, table: Table, prefix: bytes, newest: Version | None, then: Version | None) -> bool:
        """Stages what a key was at the snapshot; False where nothing is needed, or it is staged already."""
        if newest is None or newest[0] <= self._at or newest[0] == self._staging.epoch:
            return False
        body = body_of(table, prefix, then)
        if body is None and records.is_tombstone(newest[1]):
            return False
        if then is not None and (found := slices_of(table, prefix, body)):
            if level := level_of(then[1]):
                found = self._staging.copied_up(tagged(found, level))
            else:
                found = self._staging.refer(Source(table, prefix, then[0]), found, newest)
            body = with_slices(table, found)
        if table is Table.INODE:
            self._kinds.count(inode_of(prefix, newest), -1)
            self._kinds.count(inode_of(prefix, then), 1)
        self._staging.stage(table, prefix, body, newest)
        self.changes.note(table, prefix, body)
        return True


def inodes_changed(txn: ReadTransaction, snapshot: int, epoch: int) -> int:
    """How many inodes a rollback to `snapshot` would change, of a head at `epoch`; it costs a look at each change."""
    prefixes = sorted({
        prefix
        for key, _ in txn.range(Table.CHANGE, keys.u64(snapshot + 1), keys.u64(epoch + 1))
        for _, table, prefix in (keys.change_parts(key),)
        if table is Table.INODE
    })  # fmt: skip
    then = txn.seek_many(Table.INODE, prefixes, snapshot)
    now = txn.seek_many(Table.INODE, prefixes, epoch)
    return sum(
        new is not None
        and new[0] > snapshot
        and not (records.is_tombstone(new[1]) and (old is None or records.is_tombstone(old[1])))
        for old, new in zip(then, now, strict=True)
    )


def changes_after(head: Head, epoch: int) -> int:
    """About how many versions were born after `epoch`: all that are, and the extents with them."""
    cells = read_cells(head.txn, head.report)
    return sum(number for key, number, _, _ in cells if keys.cell_parts(key)[1] > epoch)
