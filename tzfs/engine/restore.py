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
from collections.abc import Generator
from dataclasses import dataclass, replace

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.foreign import level_of, tagged
from tzfs.engine.head import Head, check_name
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.rollback import body_of
from tzfs.engine.snapshots import Snapshots
from tzfs.engine.staged_change import StagedChange, is_dir
from tzfs.engine.staging import Source, Staging
from tzfs.engine.txg import TxgCommitter
from tzfs.errors import Exists, InvalidArgument, NotFound, TooManyLinks
from tzfs.format import keys, records
from tzfs.format.keys import ROOT, DataId, Ino, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode
from tzfs.format.slices import slices_of, with_slices


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of what is to come back: inode `source` of the snapshot, as `name` in the head's directory `directory`."""

    source: int
    directory: int
    name: bytes


class Restore(StagedChange):
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
        super().__init__(head, staging, committer, reclaimer)
        self._snapshots, self._name = snapshots, name
        self._wanted, self._force = wanted, force
        self._at = snapshots.get(name).epoch
        self._again: dict[int, tuple[Inode, list[tuple[Ino, bytes]]]] = {}  # by the snapshot's inode: with names so far
        self._gone: dict[int, list[tuple[int, bytes]]] = {}  # by the head's inode: names that have gone
        self.inodes = 0

    def _run(self) -> Generator[bool, None, None]:
        head = self._head
        yield from self._prepare()
        self._at = self._snapshots.get(self._name).epoch
        self._staging.begin()
        parents = self._look()
        work = (self._bring_back(), self._join(), self._remove(), self._let_go(), self._follow(parents))
        yield from self._stage_all(work)
        names = [os.fsdecode(wanted.name) for wanted in self._wanted]

        def finish() -> None:
            self._kinds.apply(head)
            head.note("restore", snapshot=self._name, names=names, inodes=self.inodes)

        self._staging.flip(finish)

    # -- what is in the way ------------------------------------------------------------------------------------------

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
            if not is_dir(parent) or not parent.nlink:
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
                parent.nlink -= is_dir(self._inode(entry[0]))
            parent.nlink += is_dir(source)
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
                if then.name or is_dir(then):
                    self._put(Table.INODE, keys.inode(made.ino), records.pack_inode(made), new=True)
                else:
                    self._again[source] = (made, [(parent, name)])
                self.inodes += 1
                self._kinds.count(made, 1)
                yield from self._contents(then, made)
            entry = records.pack_dirent(made.ino, made.mode >> 12)
            self._put(Table.DIRENT, keys.dirent(parent, name), entry, new=inside)
            yield
            if is_dir(then):
                for batch in self._entries(source, self._at):
                    todo += [(ino, made.ino, entry_name, True) for entry_name, ino in batch]

    def _made(self, then: Inode, parent: Ino, name: bytes) -> Inode:
        head = self._head
        return replace(
            then,
            ino=head.new_ino(),
            data=head.new_data() if then.data else DataId(0),
            nlink=then.nlink if is_dir(then) else 1,
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
                if is_dir(self._inode(inside)):
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
            if is_dir(inode) or inode.nlink <= len(names):
                self._kinds.count(inode, -1)
                yield from self._end(inode)
            else:
                inode.nlink -= len(names)
                inode.ctime_ns = self._now
                self._put(Table.INODE, keys.inode(ino), records.pack_inode(inode))
                yield

    def _follow(self, parents: dict[int, Inode]) -> Generator[None, None, None]:
        """The directories that something has come into."""
        for ino, parent in parents.items():
            parent.mtime_ns = parent.ctime_ns = self._now
            self._put(Table.INODE, keys.inode(ino), records.pack_inode(parent))
            yield
