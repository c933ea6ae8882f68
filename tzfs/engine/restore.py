"""Restore: files and trees of a snapshot come back beside what the head has, by reference, in one commit.

What comes back is new: its inodes and data ids have never been given before, and its chunks name the extents of the
snapshot's, which get a second lifetime; no payload is read or written.  Kept are modes, owners, times of reading and
writing, extended attributes, holes, and which names are one file, as far as they come back together.

    prepare    what was answered is committed; removed chunks go
    look       nothing that is there is in the way, or it may be replaced; the parents are there
    stage      the new trees; what they replace is removed; the directories that they come into follow
    flip       one commit makes it the head

What is replaced goes as `unlink` has it go: a file that has other names keeps them, and an inode that the kernel still
refers to stays until it is forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.chunks import CHUNK_INDEX_MAX
from tzfs.engine.foreign import level_of, tagged
from tzfs.engine.head import S_IFDIR, S_IFMT, Head, check_name
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.rollback import Changes, Kinds, body_of
from tzfs.engine.snapshots import Snapshots
from tzfs.engine.staging import Source, Staging, slices_of, with_slices
from tzfs.engine.txg import TxgCommitter
from tzfs.errors import Exists, InvalidArgument, NotFound, Stale, TooManyLinks
from tzfs.format import keys, records
from tzfs.format.keys import ROOT, DataId, Ino, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode

LISTED = 128  # entries of a directory that are looked at together


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of what is to come back: inode `source` of the snapshot, as `name` in the head's directory `directory`."""

    source: int
    directory: int
    name: bytes


def _is_dir(inode: Inode) -> bool:
    return inode.mode & S_IFMT == S_IFDIR


class Restore:
    """One restore, as a row of steps; nothing has happened until `step` has answered False.

    `done` rows have been staged; how many there will be is not known (`total` is 0).  `inodes` have come back.
    """

    def __init__(
        self,
        head: Head,
        staging: Staging,
        committer: TxgCommitter,
        snapshots: Snapshots,
        reclaimer: Reclaimer,
        name: str,
        wanted: list[Wanted],
        *,
        force: bool,
    ) -> None:
        """`force`: what has the name already is replaced.  `NotFound` where there is no such snapshot."""
        self._head, self._staging, self._committer, self._reclaimer = head, staging, committer, reclaimer
        self._snapshots, self._name = snapshots, name
        self._wanted, self._force = wanted, force
        self._at = snapshots.get(name).epoch
        self._now = head.clock()
        self._kinds = Kinds()
        self._steps = self._run()
        self._rows = 0  # of the batch under way
        self._again: dict[int, tuple[Inode, list[tuple[Ino, bytes]]]] = {}  # by the snapshot's inode: with names so far
        self._gone: dict[int, list[tuple[int, bytes]]] = {}  # by the head's inode: names that have gone
        self._orphans: list[int] = []
        self.changes = Changes()
        self.done = self.total = self.inodes = 0

    def step(self) -> bool:
        """A bounded piece of the work; whether there is more.  What it raises has changed nothing: `cancel` then.

        `Exists` (without force), `NotFound` (a directory to restore into), `InvalidArgument`, `NoSpace`,
        `QuotaExceeded`.
        """
        return next(self._steps, None) is not None

    def cancel(self) -> bool:
        """A bounded piece of taking back what has been staged; whether there is more."""
        self._steps.close()
        return self._head.staging is not None and self._staging.withdraw()

    def _run(self) -> Generator[bool, None, None]:
        head = self._head
        head.check()
        while True:
            self._committer.commit()
            if not head.reclaims:
                break
            self._reclaimer.step()
            yield True
        self._at = self._snapshots.get(self._name).epoch
        self._staging.begin()
        parents = self._look()
        self._open_batch()
        for work in (self._bring_back(), self._join(), self._remove(), self._let_go(), self._follow(parents)):
            while self._unit(work):
                if self._rows >= limits.STAGING_BATCH_KEYS:
                    self._close_batch()
                    yield True
                    self._open_batch()
        self._close_batch()
        head.check_inos(self._kinds.inodes - 1)
        for ino in self._orphans:
            head.orphans[ino] = self._staging.epoch
            head.orphans_changed.add(ino)
        names = [os.fsdecode(wanted.name) for wanted in self._wanted]

        def finish() -> None:
            self._kinds.apply(head)
            head.note("restore", snapshot=self._name, names=names, inodes=self.inodes)

        self._staging.flip(finish)

    def _unit(self, work: Iterator[None]) -> bool:
        """The next piece of the work, which is whole or has changed nothing; whether there was one."""
        try:
            return next(work, self) is None
        except BaseException:
            self._close_batch()
            raise

    def _open_batch(self) -> None:
        """`QuotaExceeded` where what is staged already is more than there may be."""
        if self._head.room is not None:
            self._head.room(limits.PAGE_BYTES)
        self._staging.open_batch()

    def _close_batch(self) -> None:
        self._staging.close_batch(4 * self._rows)
        self.done += self._rows
        self._rows = 0

    def _put(self, table: Table, prefix: bytes, body: bytes | None, *, new: bool = False) -> None:
        """Stages a key; `new`: it has no version yet."""
        old = None if new else self._head.txn.seek(table, prefix, self._staging.epoch)
        self._staging.stage(table, prefix, body, old)
        self._rows += 1
        if not new:
            self.changes.note(table, prefix, body)

    # -- what is in the way ------------------------------------------------------------------------------------------

    def _inode(self, ino: int) -> Inode:
        """An inode of the head, as committed."""
        found = reads.inode_at(self._head.look, ino, self._head.epoch)
        if found is None:
            raise Stale(f"inode {ino} is gone")
        return found

    def _then(self, ino: int) -> Inode:
        """An inode of the snapshot."""
        found = reads.inode_at(self._head.look, ino, self._at)
        if found is None:
            raise NotFound(f"inode {ino} is not in snapshot {self._name}")
        return found

    def _look(self) -> dict[int, Inode]:
        """The directories to restore into, as they will be; raises what is in the way."""
        head = self._head
        self._replaced: list[tuple[int, bytes, int]] = []  # (directory, name, inode)
        parents: dict[int, Inode] = {}
        names = set()
        for wanted in self._wanted:
            check_name(wanted.name)
            shown = wanted.name.decode(errors="backslashreplace")
            if (wanted.directory, wanted.name) in names:
                raise InvalidArgument(f"{shown} would be restored twice")
            names.add((wanted.directory, wanted.name))
            parent = parents.get(wanted.directory) or self._inode(wanted.directory)
            if not _is_dir(parent) or not parent.nlink:
                raise NotFound(f"no directory to restore {shown} into")
            parents[parent.ino] = parent
            source = self._then(wanted.source)
            entry = reads.dirent_at(head.look, wanted.directory, wanted.name, head.epoch)
            if entry is None:
                parent.size += 1
            else:
                if not self._force:
                    raise Exists(f"{shown} exists", hint="-f replaces it; --to DIR restores it elsewhere")
                self._replaced.append((wanted.directory, wanted.name, entry[0]))
                parent.nlink -= _is_dir(self._inode(entry[0]))
            parent.nlink += _is_dir(source)
            if parent.nlink > limits.LINKS_MAX:
                raise TooManyLinks(f"directory {parent.ino} would have more than {limits.LINKS_MAX} subdirectories")
        replaced = {ino for _, _, ino in self._replaced}
        for ino in parents:
            while ino != ROOT:
                if ino in replaced:
                    raise InvalidArgument("what is restored cannot go into what it replaces")
                ino = self._inode(ino).parent
        return parents

    # -- what comes back ---------------------------------------------------------------------------------------------

    def _bring_back(self) -> Generator[None, None, None]:
        for wanted in self._wanted:
            yield from self._tree(wanted)

    def _tree(self, wanted: Wanted) -> Generator[None, None, None]:
        todo = [(wanted.source, Ino(wanted.directory), wanted.name, False)]
        while todo:
            source, parent, name, inside = todo.pop()
            then = self._then(source)
            if source in self._again:
                made = self._again[source][0]
                self._again[source][1].append((parent, name))
            else:
                self._head.check_inos()
                made = self._made(then, parent, name)
                if then.name or _is_dir(then):
                    self._put(Table.INODE, keys.inode(made.ino), records.pack_inode(made), new=True)
                else:
                    self._again[source] = (made, [(parent, name)])
                self.inodes += 1
                self._kinds.count(made, 1)
                yield from self._contents(then, made)
            entry = records.pack_dirent(made.ino, made.mode >> 12)
            self._put(Table.DIRENT, keys.dirent(parent, name), entry, new=inside)
            yield
            if _is_dir(then):
                for batch in self._entries(source, self._at):
                    todo += [(ino, made.ino, entry_name, True) for entry_name, ino in batch]

    def _entries(self, directory: int, epoch: int) -> Iterator[list[tuple[bytes, int]]]:
        after = b""
        while rows := reads.named_rows(self._head.look, Table.DIRENT, keys.u64(directory), after, epoch, LISTED):
            yield [(keys.dirent_name(key), records.unpack_dirent(key, body)[0]) for key, body in rows]
            after = keys.dirent_name(rows[-1][0])

    def _made(self, then: Inode, parent: Ino, name: bytes) -> Inode:
        head = self._head
        return replace(
            then,
            ino=head.new_ino(),
            data=head.new_data() if then.data else DataId(0),
            nlink=then.nlink if _is_dir(then) else 1,
            ctime_ns=self._now,
            parent=parent,
            name=name,
        )

    def _contents(self, then: Inode, made: Inode) -> Generator[None, None, None]:
        """Contents and attributes of one inode."""
        head, at = self._head, self._at  # its transaction ends with each commit
        if then.flags & FLAG_XATTR:
            prefix = keys.u64(then.ino)
            for key, body in reads.named_rows(head.look, Table.XATTR, prefix, b"", at, limits.XATTR_LIST_BYTES_MAX):
                self._refer(Table.XATTR, key, body, keys.xattr(made.ino, keys.xattr_name(key)))
                yield
        if then.data and then.flags & FLAG_INLINE:
            inline = reads.body_at(head.look, Table.INLINE, keys.inline(then.data), at)
            if inline is not None:
                self._put(Table.INLINE, keys.inline(made.data), inline, new=True)
        elif then.data:
            for index in self._indexes(then.data):
                prefix = keys.chunk(then.data, index)
                found = head.look.seek(Table.CHUNK, prefix, at)
                slices = body_of(Table.CHUNK, prefix, found)
                if found is not None and slices is not None:
                    self._refer(Table.CHUNK, prefix + keys.suffix(found[0]), slices, keys.chunk(made.data, index))
                yield

    def _indexes(self, data: int) -> Iterator[int]:
        """The chunks of a data id that have rows."""
        lo = 0
        while found := reads.chunk_indexes(self._head.look, DataId(data), lo, CHUNK_INDEX_MAX, LISTED):
            yield from found
            lo = found[-1] + 1

    def _refer(self, table: Table, key: bytes, body: bytes, prefix: bytes) -> None:
        """`prefix` gets the body of a version, and with it its extents."""
        found = slices_of(table, key[:-8], body)
        if found:
            seen = None if self._head.ancestry is None else self._head.look.seek(table, key[:-8], self._at)
            if seen is not None and (level := level_of(seen[1])):  # of a clone's origin
                found = self._staging.copied_up(tagged(found, level))
            else:
                found = self._staging.refer(Source(table, key[:-8], keys.birth_of(key)), found)
            body = with_slices(table, found)
        self._put(table, prefix, body, new=True)

    def _join(self) -> Generator[None, None, None]:
        """Files that may have several names: their inodes, now that all names are known."""
        for made, names in self._again.values():
            if len(names) > 1:
                made.nlink, made.parent, made.name = len(names), Ino(0), b""
                for directory, name in names:
                    self._put(Table.LINK, keys.link(made.ino, directory, name), b"", new=True)
            self._put(Table.INODE, keys.inode(made.ino), records.pack_inode(made), new=True)
            yield

    # -- what goes ---------------------------------------------------------------------------------------------------

    def _remove(self) -> Generator[None, None, None]:
        """The entries below what is replaced, and of its files which names go; what replaces it has taken its entry."""
        for directory, name, ino in self._replaced:
            todo = [(directory, name, ino)]
            while todo:
                parent, called, inside = todo.pop()
                self._gone.setdefault(inside, []).append((parent, called))
                if _is_dir(self._inode(inside)):
                    for batch in self._entries(inside, self._head.epoch):
                        for entry_name, child in batch:
                            todo.append((inside, entry_name, child))
                            self._put(Table.DIRENT, keys.dirent(inside, entry_name), None)
                            yield

    def _let_go(self) -> Generator[None, None, None]:
        for ino, names in self._gone.items():
            inode = self._inode(ino)
            if not inode.name:
                for directory, name in names:
                    self._put(Table.LINK, keys.link(ino, directory, name), None)
            if _is_dir(inode) or inode.nlink == len(names):
                self._kinds.count(inode, -1)
                yield from self._end(inode)
            else:
                inode.nlink -= len(names)
                inode.ctime_ns = self._now
                self._put(Table.INODE, keys.inode(ino), records.pack_inode(inode))
                yield

    def _end(self, inode: Inode) -> Generator[None, None, None]:
        """An inode whose last name has gone."""
        head, ino = self._head, inode.ino
        if head.referenced(ino):
            inode.nlink, inode.ctime_ns = 0, self._now
            inode.size = 0 if _is_dir(inode) else inode.size
            self._put(Table.INODE, keys.inode(ino), records.pack_inode(inode))
            self._orphans.append(ino)
            yield
            return
        self._put(Table.INODE, keys.inode(ino), None)
        yield
        if inode.flags & FLAG_XATTR:
            prefix, at = keys.u64(ino), self._head.epoch
            for key, _ in reads.named_rows(head.look, Table.XATTR, prefix, b"", at, limits.XATTR_LIST_BYTES_MAX):
                self._put(Table.XATTR, key[:-8], None)
                yield
        if inode.data and inode.flags & FLAG_INLINE:
            if reads.body_at(self._head.look, Table.INLINE, keys.inline(inode.data), self._head.epoch) is not None:
                self._put(Table.INLINE, keys.inline(inode.data), None)
        elif inode.data:
            for index in self._indexes(inode.data):
                prefix = keys.chunk(inode.data, index)
                found = self._head.look.seek(Table.CHUNK, prefix, self._head.epoch)
                if found is not None and not records.is_tombstone(found[1]):
                    self._put(Table.CHUNK, prefix, None)
                yield

    def _follow(self, parents: dict[int, Inode]) -> Generator[None, None, None]:
        """The directories that something has come into."""
        for ino, parent in parents.items():
            parent.mtime_ns = parent.ctime_ns = self._now
            self._put(Table.INODE, keys.inode(ino), records.pack_inode(parent))
            yield
