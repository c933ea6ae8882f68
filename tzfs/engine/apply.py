"""Apply: what a clone has changed comes into a head, in one commit, in time proportional to the change.

    prepare    what was answered is committed; removed chunks go
    merge      what is to become of each name and inode that the clone has touched (`tzfs.engine.merge`)
    stage      new inodes, under numbers of their own; changed ones; what has no name any more goes; the names
    flip       one commit makes it the head

Contents are copied, since the filesystems share no extents: of a file whose contents the head has as the snapshot had
them, the chunks that were touched; of another one all of them, under a data id of its own.  Kept are modes, owners,
times of reading and writing, extended attributes, holes of whole chunks, and which names are one file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

from tzfs import failpoints, limits
from tzfs.engine import reads, slices
from tzfs.engine.attributes import INLINE_VALUE_BYTES_MAX
from tzfs.engine.copying import stored_as, stored_raw
from tzfs.engine.diff import Changes
from tzfs.engine.head import Head
from tzfs.engine.merge import Conflict, Merge, Place, Side
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.settling import extent_charge
from tzfs.engine.staged_change import LISTED, StagedChange, is_dir
from tzfs.engine.staging import Staging
from tzfs.engine.txg import TxgCommitter
from tzfs.engine.view import Tables, View
from tzfs.errors import InternalError, TooManyLinks
from tzfs.format import keys, records
from tzfs.format.keys import ROOT, DataId, Epoch, Ino, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode, Snapshot
from tzfs.format.slices import Slice, pack_slices, pack_xattr
from tzfs.store.interface import ReadTransaction

failpoints.declare("apply.planned", "what is to be done is known; nothing is staged")
failpoints.declare("apply.named", "all inodes and contents are staged; the names are about to be")


@dataclass(frozen=True, slots=True)
class Theirs:
    """What is applied: the snapshot that it came from, as `base`; its head as `view`, which must not change meanwhile,
    and the `tables` that have its changes.  `after`: the target's epoch from which on it has gone its own way."""

    name: str
    base: View
    view: View
    tables: Tables
    after: Epoch


class _Now:
    """The head's tables, in whatever transaction it has."""

    def __init__(self, look: Callable[[], ReadTransaction]) -> None:
        self._look = look

    def begin_read(self) -> ReadTransaction:
        return _Kept(self._look())


class _Kept:
    def __init__(self, txn: ReadTransaction) -> None:
        self.get, self.get_many, self.range = txn.get, txn.get_many, txn.range
        self.seek, self.seek_many = txn.seek, txn.seek_many

    def close(self) -> None:
        pass


class Apply(StagedChange):
    """One apply, as a row of steps.  First `plan` answers False: then `conflicts` and `paths` are known.

    Then, where there are no conflicts or a side is preferred, `step` does it; between the two a snapshot may be taken,
    but nothing may change.
    """

    def __init__(
        self,
        head: Head,
        staging: Staging,
        committer: TxgCommitter,
        reclaimer: Reclaimer,
        theirs: Theirs,
        prefer: Side | None = None,
    ) -> None:
        super().__init__(head, staging, committer, reclaimer)
        self._theirs, self._prefer = theirs, prefer
        self._planning = self._plan()
        self._merge: Merge
        self._affected: list[int] = []
        self._numbers: dict[int, Ino] = {}  # of what is new
        self.fast_forward = False

    def plan(self) -> bool:
        """A bounded piece of finding out what is to be done; whether there is more.  Nothing is changed by it."""
        return next(self._planning, None) is not None

    @property
    def conflicts(self) -> list[Conflict]:
        return sorted(set(self._merge.conflicts), key=lambda conflict: (conflict.path, conflict.reason))

    @property
    def paths(self) -> list[str]:
        """What would change, by the paths that the head has, and will have."""
        places = {place: self._merge.path(place) for place in self._merge.places}
        for which in self._merge.aspects:
            if which == ROOT:
                continue
            here = min(self._merge.names(which))
            places[here] = self._merge.path(here)
        return sorted(map(os.fsdecode, places.values()))

    @property
    def inodes(self) -> int:
        """How many files and directories are changed."""
        return len(self._affected)

    def _plan(self) -> Generator[bool, None, None]:
        head, theirs = self._head, self._theirs
        yield from self._prepare()
        tables = _Now(lambda: head.look)
        now = Snapshot(head.epoch, bytes(16), 0, 0, 0, 0)
        ours = View(tables, head.payload, "", now)
        ours_changed = Changes(tables, after=theirs.after, upto=head.epoch)
        self._their_changes = Changes(theirs.tables, after=0, upto=theirs.view.snapshot.epoch)
        self.fast_forward = ours_changed.empty
        merge = self._merge = Merge(theirs.base, ours, theirs.view, ours_changed, self._their_changes, self._prefer)
        for _ in merge.run():
            yield True
        affected = set(merge.aspects)
        for place in merge.places:
            affected |= {place[0], *merge.values(place)} - {0}
        self._affected = sorted(
            which for which in affected if merge.inode("ours", which) is not None or merge.exists(which)
        )
        self.total = len(merge.places) + len(self._affected)

    # -- doing it ----------------------------------------------------------------------------------------------------

    def _run(self) -> Generator[bool, None, None]:
        head = self._head
        if self._merge.conflicts and self._prefer is None:
            raise InternalError("conflicts are not resolved")
        if not self._affected:
            return
        yield from self._prepare()
        failpoints.hit("apply.planned")
        self._staging.begin()
        yield from self._stage_all((self._make(), self._change(), self._name()))

        def finish() -> None:
            self._kinds.apply(head)
            head.note("apply", clone=self._theirs.name, inodes=self.inodes)

        self._staging.flip(finish)

    def _number(self, which: int) -> Ino:
        """What an inode is in the head: its own number, or the one it has been given."""
        return self._numbers.get(which, Ino(which))

    def _make(self) -> Generator[None, None, None]:
        """Numbers for what is new; contents and attributes follow."""
        for which in self._affected:
            if self._merge.inode("ours", which) is None:
                self._head.check_inos(self._kinds.inodes)
                self._numbers[which] = self._head.new_ino()
                self._kinds.count(self._merge.inode("theirs", which), 1)
                yield

    def _change(self) -> Generator[None, None, None]:
        entries: dict[int, int] = defaultdict(int)  # how many more each directory has
        below: dict[int, int] = defaultdict(int)  # and of them, directories
        for place in self._merge.places:
            for which, by in ((self._merge.ours_at(place), -1), (self._merge.at(place), 1)):
                if which:
                    entries[place[0]] += by
                    below[place[0]] += by * is_dir(self._merge.some(which))
        for which in self._affected:
            ours, theirs = self._merge.inode("ours", which), self._merge.inode("theirs", which)
            names = self._merge.names(which)
            if ours is not None and which != ROOT and not names:
                yield from self._remove(ours)
                continue
            made = self._made(which, ours, theirs)
            made.ctime_ns = self._now
            yield from self._take(which, made, ours, theirs)
            yield from self._names(which, made, ours, names)
            if is_dir(made):
                made.size += entries[which]
                made.nlink += below[which]
            if made.nlink > limits.LINKS_MAX:
                raise TooManyLinks(f"inode {made.ino} would have more than {limits.LINKS_MAX} links")
            self._put(Table.INODE, keys.inode(made.ino), records.pack_inode(made), new=ours is None)
            yield

    def _made(self, which: int, ours: Inode | None, theirs: Inode | None) -> Inode:
        if ours is not None:
            return replace(ours)
        if theirs is None:
            raise InternalError("an inode of nobody has a name")
        data = self._head.new_data() if theirs.data else DataId(0)
        made = replace(theirs, ino=self._number(which), data=data, parent=Ino(0), name=b"")
        if is_dir(made):
            made.size, made.nlink = 0, 2
        return made

    def _remove(self, ours: Inode) -> Generator[None, None, None]:
        self._kinds.count(ours, -1)
        if not ours.name:
            for directory, name in self._merge.places_of_ours(ours.ino):
                self._put(Table.LINK, keys.link(ours.ino, directory, name), None)
        yield from self._end(replace(ours))

    def _names(self, which: int, made: Inode, ours: Inode | None, names: set[Place]) -> Generator[None, None, None]:
        """Which names an inode has: in itself as long as it has had one only, else as rows of `link`."""
        if which == ROOT:
            return
        now = {(self._number(directory), name) for directory, name in names}
        before = set() if ours is None else {(Ino(d), name) for d, name in self._merge.places_of_ours(which)}
        if not is_dir(made):
            made.nlink = len(now)
        single = ours is None or bool(ours.name)
        if single and len(now) == 1:
            ((made.parent, made.name),) = now
            return
        made.parent, made.name = Ino(0), b""
        rows = set() if single else before
        for directory, name in now ^ rows:
            self._put(Table.LINK, keys.link(made.ino, directory, name), b"" if (directory, name) in now else None)
            yield

    def _name(self) -> Generator[None, None, None]:
        failpoints.hit("apply.named")
        for (directory, name), to in self._merge.places.items():
            body = None
            if to:
                body = records.pack_dirent(self._number(to), self._merge.some(to).mode >> 12)
            if directory < 0 and body is None:
                continue
            if directory in self._numbers or directory > 0:
                self._put(Table.DIRENT, keys.dirent(self._number(directory), name), body)
                yield

    # -- contents and attributes -------------------------------------------------------------------------------------

    def _take(self, which: int, made: Inode, ours: Inode | None, theirs: Inode | None) -> Generator[None, None, None]:
        """Makes of theirs what is to be theirs."""
        if theirs is None:
            return
        taken = self._merge.aspects.get(which, set()) if ours is not None else {"xattr", "contents"}
        if "mode" in taken:
            made.mode = theirs.mode
        if "owner" in taken:
            made.uid, made.gid = theirs.uid, theirs.gid
        if "mtime" in taken:
            made.mtime_ns = theirs.mtime_ns
        if "xattr" in taken:
            yield from self._attributes(made, ours, theirs)
        if "contents" in taken and not is_dir(made):
            yield from self._contents(made, ours, theirs, same=ours is not None and self._merge.as_based(which))

    def _attributes(self, made: Inode, ours: Inode | None, theirs: Inode) -> Generator[None, None, None]:
        view = self._theirs.view
        wanted = view.listxattr(theirs.ino)
        if ours is not None and ours.flags & FLAG_XATTR:
            prefix, at = keys.u64(ours.ino), self._head.epoch
            rows = reads.named_rows(self._head.look, Table.XATTR, prefix, b"", at, limits.XATTR_LIST_BYTES_MAX)
            for name in [keys.xattr_name(key) for key, _ in rows]:
                if name not in wanted:
                    self._put(Table.XATTR, keys.xattr(made.ino, name), None)
                    yield
        for name in wanted:
            value = view.getxattr(theirs.ino, name)
            stored = value if len(value) <= INLINE_VALUE_BYTES_MAX else self._stored(value)
            self._put(Table.XATTR, keys.xattr(made.ino, name), pack_xattr(stored))
            yield
        made.flags = made.flags & ~FLAG_XATTR | (theirs.flags & FLAG_XATTR)

    def _contents(self, made: Inode, ours: Inode | None, theirs: Inode, *, same: bool) -> Generator[None, None, None]:
        """`same`: what ours has is what the snapshot had."""
        touched: Iterator[int] | None = None
        if (
            ours is not None
            and same
            and ours.data == theirs.data
            and ours.chunk_shift == theirs.chunk_shift
            and not (ours.flags | theirs.flags) & FLAG_INLINE
        ):
            touched = iter(sorted(set(self._their_changes.chunks(theirs.data))))
        elif ours is not None and ours.data:
            yield from self._drop(ours)
            made.data = self._head.new_data()
        made.size, made.chunk_shift = theirs.size, theirs.chunk_shift
        made.flags = made.flags & ~FLAG_INLINE | (theirs.flags & FLAG_INLINE)
        if not made.data:
            return
        view = self._theirs.view
        if theirs.flags & FLAG_INLINE:
            if theirs.size:
                body = view.plan_read(theirs.ino, 0, theirs.size).execute()
                self._put(Table.INLINE, keys.inline(made.data), body, new=True)
                yield
            return
        size = 1 << theirs.chunk_shift
        for index in self._their_chunks(theirs) if touched is None else touched:
            prefix = keys.chunk(made.data, index)
            body = b""
            if touched is None or view.chunks(theirs, index, 1) == [index]:
                body = view.plan_read(theirs.ino, index * size, size).execute()
            if body.strip(b"\0"):
                self._put(Table.CHUNK, prefix, pack_slices(self._stored(body, compressed=True)))
            elif touched is not None:
                self._put(Table.CHUNK, prefix, None)
            yield

    def _their_chunks(self, theirs: Inode) -> Iterator[int]:
        low = 0
        while found := self._theirs.view.chunks(theirs, low, LISTED):
            yield from found
            low = found[-1] + 1

    def _stored(self, value: bytes, *, compressed: bool = False) -> tuple[Slice, ...]:
        """Bytes in an extent that is born with what is staged."""
        head, at, size = self._head, self._staging.epoch, len(value)
        self._room(size + limits.PAGE_BYTES)
        self._committer.reserve(size + limits.PAGE_BYTES)
        made = stored_as(head, value, at, alone=True) if compressed else stored_raw(head, value, at)
        head.flushed_bytes += sum(extent_charge(s.stored_bytes) for s in made if not s.embedded)
        head.versions.extents_born(slices.extents(made).items())
        return made
