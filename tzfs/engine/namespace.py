"""Names: look-up, creation, links, removal and renaming.

An inode that has had one name only keeps it in its record (`parent`, `name`); from its second name on, its names are
rows of `link`.  A directory's record counts its entries (`size`) and its subdirectories (`nlink` - 2).

An inode whose last name goes while the kernel still refers to it (`head.referenced`) becomes an orphan: it lives, is
written at the epoch of its unlink, and is buried by `forget`.  Otherwise it is buried at once.

Nothing here checks permissions: the kernel does.
"""

from __future__ import annotations

from typing import Final

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.contents import ContentsTable
from tzfs.engine.damaged import DamagedInode, lost, orphan
from tzfs.engine.entry_rows import EntryRows
from tzfs.engine.head import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, Head, check_name
from tzfs.errors import (
    CorruptionError,
    Exists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    Stale,
    TooManyLinks,
)
from tzfs.format import keys
from tzfs.format.keys import ROOT, DataId, Epoch, Ino
from tzfs.format.operations import Op
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
S_ISGID: Final = 0o2000
MODE_BITS: Final = 0o7777
_COUNTERS: Final = {S_IFREG: "files", S_IFDIR: "directories", S_IFLNK: "symlinks"}  # and "others"


class Namespace:
    """The names of a head."""

    def __init__(self, head: Head, entries: EntryRows, contents: ContentsTable) -> None:
        self._head = head
        self._contents = contents
        self._entries = entries

    # -- looking up ------------------------------------------------------------------------------------------------

    def _must(self, directory: int, name: bytes) -> Inode:
        return self._inode_of(directory, name, self._entry(directory, name)[0])

    def _inode_of(self, directory: int, name: bytes, ino: Ino) -> Inode:
        """What an entry names is there, or lost."""
        try:
            return self._head.inode(ino)
        except Stale:
            raise lost(directory, name, ino) from None

    def _to_remove(self, directory: int, name: bytes, entry: tuple[Ino, int]) -> Inode:
        """What an entry names, also where its record is damaged, unless that is a directory's."""
        ino, kind = entry
        try:
            return self._inode_of(directory, name, ino)
        except CorruptionError as error:
            if kind == S_IFDIR >> 12:
                raise
            return DamagedInode.of(self._head, ino, kind, error)

    def _entry(self, directory: int, name: bytes) -> tuple[Ino, int]:
        entry = self._entries.to_change(directory, name)
        if entry is None:
            check_name(name)  # what cannot be there is told apart only where it is not
            raise NotFound(f"no entry {name!r} in directory {directory}")
        return entry

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode under a name.  `NotFound`, `NotADirectory`, `NameTooLong`, `Stale`."""
        found = self.find(parent, name)
        if found is None:
            raise NotFound(f"no entry {name!r} in directory {parent}")
        return found

    def find(self, parent: int, name: bytes) -> Inode | None:
        """`lookup` for whom absence is no error: a mount is asked for names that are not there all the time."""
        head = self._head
        head.check()
        head.directory(parent)
        if len(name) > limits.NAME_BYTES_MAX:
            raise NameTooLong(f"name of {len(name)} bytes; the limit is {limits.NAME_BYTES_MAX}")
        if head.ancestry is None:
            return self._named(parent, name)
        with head.moment():
            return self._named(parent, name)

    def _named(self, parent: int, name: bytes) -> Inode | None:
        entry = self._entries.find(parent, name)
        return None if entry is None else self._inode_of(parent, name, entry[0])

    def parent_of(self, ino: int) -> Ino:
        """The directory that holds the directory `ino`; the root is its own parent."""
        self._head.check()
        directory = self._head.directory(ino)
        return ROOT if ino == ROOT else directory.parent

    def inode(self, ino: int) -> Inode:
        """The inode as it stands; `Stale` if it is gone."""
        self._head.check()
        return self._head.inode(ino)

    def names_of(self, ino: int) -> list[tuple[Ino, bytes]]:
        """Every (directory, name) of the inode as committed; `Stale` if it is gone."""
        head = self._head
        inode = head.inode(ino)
        if inode.name:
            return [(inode.parent, inode.name)]
        rows = reads.linked_rows(head.txn, ino, head.epoch_of(ino))
        return [keys.link_name(key) for key in rows]

    def path_of(self, ino: int) -> bytes | None:
        """A path from the root to the inode, as committed; None for one without a name."""
        parts: list[bytes] = []
        while ino != ROOT:
            names = self.names_of(ino)
            if not names:
                return None
            ino, name = names[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def readlink(self, ino: int) -> bytes:
        """A symlink's target; `InvalidArgument` for anything else."""
        self._head.check()
        inode = self._head.inode(ino)
        if inode.mode & S_IFMT != S_IFLNK:
            raise InvalidArgument(f"inode {ino} is not a symbolic link")
        return self._contents.plan(inode, 0, inode.size).execute()

    # -- creating --------------------------------------------------------------------------------------------------

    def mknod(self, parent: int, name: bytes, mode: int, *, uid: int, gid: int, rdev: int = 0) -> Inode:
        """A regular file, fifo, socket or device node.

        The group and, for directories, S_ISGID are inherited from a parent with S_ISGID.  Raises `Exists`,
        `NotFound` (the parent has been removed), `NameTooLong`, `InvalidArgument`, `NotADirectory`, `NoSpace`.
        """
        if mode & S_IFMT in (S_IFDIR, S_IFLNK):
            raise InvalidArgument("directories and symbolic links have their own calls")
        if not mode & S_IFMT:
            mode |= S_IFREG
        return self.create(parent, name, mode, uid=uid, gid=gid, rdev=rdev)

    def mkdir(self, parent: int, name: bytes, mode: int, *, uid: int, gid: int) -> Inode:
        """An empty directory.  Errors as for `mknod`, and `TooManyLinks`."""
        return self.create(parent, name, S_IFDIR | mode & MODE_BITS, uid=uid, gid=gid)

    def symlink(self, parent: int, name: bytes, target: bytes, *, uid: int, gid: int) -> Inode:
        """A symbolic link to `target`, whatever that is.  `InvalidArgument` for an empty one, `NameTooLong`."""
        if not target or b"\0" in target:
            raise InvalidArgument("a symbolic link needs a target without NUL")
        if len(target) > limits.SYMLINK_TARGET_BYTES_MAX:
            raise NameTooLong(f"target of {len(target)} bytes; the limit is {limits.SYMLINK_TARGET_BYTES_MAX}")
        return self.create(parent, name, S_IFLNK | 0o777, uid=uid, gid=gid, target=target)

    def create(
        self, parent: int, name: bytes, mode: int, *, uid: int, gid: int, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        """What the three above have in common: an inode of any type, with a name; the mode says which."""
        head = self._head
        head.check()
        directory = self._for_entry(parent, name)
        is_dir = mode & S_IFMT == S_IFDIR
        if is_dir and directory.nlink >= limits.LINKS_MAX:
            raise TooManyLinks(f"directory {parent} has {limits.LINKS_MAX} subdirectories, the most there may be")
        if self._entries.to_change(parent, name) is not None:
            raise Exists(f"{name!r} exists in directory {parent}")
        head.check_inos()
        head.admit(len(target) + limits.PAGE_BYTES)
        head.begin_change()
        now = head.clock()
        if directory.mode & S_ISGID:
            gid = directory.gid
            if is_dir:
                mode |= S_ISGID
        has_data = mode & S_IFMT in (S_IFREG, S_IFLNK)
        inode = Inode(
            head.new_ino(),
            mode,
            uid,
            gid,
            2 if is_dir else 1,
            0,
            head.new_data() if has_data else DataId(0),
            rdev,
            now,
            now,
            now,
            now,
            FLAG_INLINE if has_data else 0,
            head.settings.chunk_shift,
            Ino(parent),
            name,
        )
        head.touch(inode)
        self._count(inode, 1)
        if target:
            self._contents.write_new(inode, target)
        if is_dir:
            directory.nlink += 1
        self._set_entry(directory, name, inode, now)
        head.end_change((Op.CREATE, now, parent, mode, uid, gid, rdev, inode.ino, name, target))
        return inode

    def _for_entry(self, parent: int, name: bytes) -> Inode:
        """The directory, if an entry of that name may be made in it."""
        check_name(name)
        directory = self._head.directory(parent)
        if directory.nlink == 0:
            raise NotFound(f"directory {parent} has been removed")
        return directory

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """One more name for an inode.  `NotPermitted` for a directory, `Exists`, `TooManyLinks`, `NotFound`."""
        head = self._head
        head.check()
        inode = head.inode(ino)
        if inode.mode & S_IFMT == S_IFDIR:
            raise NotPermitted("a directory has one name only")
        directory = self._for_entry(parent, name)
        if inode.nlink == 0:
            raise NotFound(f"inode {ino} has been removed")
        if inode.nlink >= limits.LINKS_MAX:
            raise TooManyLinks(f"inode {ino} has {limits.LINKS_MAX} names, the most there may be")
        if self._entries.to_change(parent, name) is not None:
            raise Exists(f"{name!r} exists in directory {parent}")
        head.admit(limits.PAGE_BYTES)
        head.begin_change()
        now = head.clock()
        if inode.name:
            self._set_link(ino, inode.parent, inode.name, present=True)
            inode.parent, inode.name = Ino(0), b""
        self._set_link(ino, parent, name, present=True)
        inode.nlink += 1
        inode.ctime_ns = now
        head.touch(inode)
        self._set_entry(directory, name, inode, now)
        head.end_change((Op.LINK, now, ino, parent, name))
        return inode

    # -- removing --------------------------------------------------------------------------------------------------

    def unlink(self, parent: int, name: bytes, now_ns: int | None = None) -> Ino:
        """Removes a name of anything but a directory, now or as of `now_ns`; the inode it named.  `NotFound`,
        `IsADirectory`."""
        head = self._head
        head.check()
        head.pace()
        directory = head.directory(parent)
        inode = self._to_remove(parent, name, self._entry(parent, name))
        if inode.mode & S_IFMT == S_IFDIR:
            raise IsADirectory(f"{name!r} in directory {parent} is a directory")
        head.begin_change()
        now = head.clock() if now_ns is None else now_ns
        self._set_entry(directory, name, None, now)
        self._unname(inode, parent, name, now)
        head.end_change((Op.UNLINK, now, parent, name))
        return inode.ino

    def rmdir(self, parent: int, name: bytes) -> Ino:
        """Removes an empty directory; its inode number.  `NotFound`, `NotADirectory`, `NotEmpty`."""
        head = self._head
        head.check()
        head.pace()
        directory = head.directory(parent)
        inode = self._must(parent, name)
        if inode.mode & S_IFMT != S_IFDIR:
            raise NotADirectory(f"{name!r} in directory {parent} is not a directory")
        if inode.size:
            raise NotEmpty(f"directory {name!r} in {parent} has {inode.size} entries")
        head.begin_change()
        now = head.clock()
        self._set_entry(directory, name, None, now)
        self._subdirectory_gone(directory)
        self._unname(inode, parent, name, now)
        head.end_change((Op.RMDIR, now, parent, name))
        return inode.ino

    def _unname(self, inode: Inode, parent: int, name: bytes, now: int) -> None:
        """A name of the inode goes; the entry itself is the caller's."""
        head, ino = self._head, inode.ino
        if isinstance(inode, DamagedInode):
            self._unname_damaged(inode, parent, name)
            return
        if not inode.name:
            self._set_link(ino, parent, name, present=False)
        inode.ctime_ns = now
        is_dir = inode.mode & S_IFMT == S_IFDIR
        if inode.nlink > 1 and not is_dir:
            inode.nlink -= 1
            head.touch(inode)
            return
        inode.nlink = 0
        self._count(inode, -1)
        if head.referenced(ino):
            head.touch(inode)
            head.orphans[ino] = head.epoch
            head.orphans_changed.add(ino)
        else:
            self._bury(inode, head.epoch)

    def _unname_damaged(self, inode: DamagedInode, parent: int, name: bytes) -> None:
        """With its last name go its record and its attributes; of its contents nobody knows, so they stay."""
        head = self._head
        if inode.names:
            self._set_link(inode.ino, parent, name, present=False)
        if not inode.names - {(parent, name)}:
            self._count(inode, -1)
            self._bury(inode, head.epoch)
            inode.report(head)

    def _bury(self, inode: Inode, at: Epoch) -> None:
        head, ino = self._head, inode.ino
        if inode.data:
            self._contents.drop(inode, at)
        head.inodes.pop(ino, None)
        if ino in head.dirty_inodes:
            head.dirty_inodes.discard(ino)
            head.dirty_rows -= 2
        if ino < head.first_ino:
            head.buried[ino] = (at, inode)
            head.dirty_rows += 2
        elif inode.flags & FLAG_XATTR:
            head.buried[ino] = (at, inode)  # for its attributes' extents

    def forget(self, ino: int) -> bool:
        """The kernel does not refer to the inode any more: an orphan ends.  Whether it was one."""
        head = self._head
        if ino not in head.orphans:
            return False
        head.check()
        if head.staging is not None:
            head.forgotten.append(ino)
            return False
        inode = orphan(head, ino)
        head.begin_change()
        at = head.orphans.pop(ino)
        head.orphans_changed.add(ino)
        self._bury(inode, at)
        if isinstance(inode, DamagedInode):
            inode.report(head)
        head.end_invisible_change()
        return True

    # -- renaming --------------------------------------------------------------------------------------------------

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> tuple[Ino, Ino]:
        """Moves a name, replacing what has the new one; with `RENAME_NOREPLACE` not, with `RENAME_EXCHANGE` swapping.

        Answers the inode that was moved, and the one that had the new name before (0: none); both are the same where
        nothing had to be done.  Raises `NotFound`, `Exists` (NOREPLACE), `NotEmpty`, `IsADirectory`, `NotADirectory`,
        `InvalidArgument` (into its own subtree; unknown or contradictory flags), `TooManyLinks`.
        """
        head = self._head
        head.check()
        head.pace()
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise InvalidArgument(f"rename flags {flags:#x} are not supported")
        source = head.directory(parent)
        target = self._for_entry(new_parent, new_name)
        inode = self._must(parent, name)
        entry = self._entries.to_change(new_parent, new_name)
        over = None if entry is None else self._to_remove(new_parent, new_name, entry)
        if flags & RENAME_EXCHANGE:
            if over is None:
                raise NotFound(f"no entry {new_name!r} in directory {new_parent} to exchange with")
            if isinstance(over, DamagedInode):
                raise over.error
            self._check_move(inode, source, target, over)
            self._check_move(over, target, source, inode)
            if inode is not over:
                self._exchange(source, name, inode, target, new_name, over)
            return inode.ino, over.ino
        if over is not None and flags & RENAME_NOREPLACE:
            raise Exists(f"{new_name!r} exists in directory {new_parent}")
        if inode is over:
            return inode.ino, inode.ino  # two names of one inode: POSIX keeps both
        self._check_move(inode, source, target, over)
        if over is not None:
            self._check_replace(inode, over)
        head.begin_change()
        now = head.clock()
        if over is not None:
            if over.mode & S_IFMT == S_IFDIR:
                self._subdirectory_gone(target)
            self._unname(over, new_parent, new_name, now)
        self._set_entry(source, name, None, now)
        self._set_entry(target, new_name, inode, now, replaces=over is not None)
        self._moved(inode, source, name, target, new_name, now)
        head.end_change((Op.RENAME, now, parent, new_parent, flags, name, new_name))
        return inode.ino, over.ino if over is not None else Ino(0)

    def _check_move(self, inode: Inode, source: Inode, target: Inode, over: Inode | None) -> None:
        if inode.mode & S_IFMT != S_IFDIR or source is target:
            return
        grows = over is None or over.mode & S_IFMT != S_IFDIR
        if grows and target.nlink >= limits.LINKS_MAX:
            raise TooManyLinks(f"directory {target.ino} has {limits.LINKS_MAX} subdirectories, the most there may be")
        up = target
        while True:
            if up.ino == inode.ino:
                raise InvalidArgument(f"directory {inode.ino} cannot be moved into its own subtree")
            if up.ino == ROOT:
                return
            up = self._head.inode(up.parent)

    @staticmethod
    def _check_replace(inode: Inode, over: Inode) -> None:
        if over.mode & S_IFMT == S_IFDIR:
            if inode.mode & S_IFMT != S_IFDIR:
                raise IsADirectory("a directory cannot be replaced by anything else")
            if over.size:
                raise NotEmpty(f"the directory to be replaced has {over.size} entries")
        elif inode.mode & S_IFMT == S_IFDIR:
            raise NotADirectory("only a directory can be replaced by a directory")

    def _exchange(self, source: Inode, name: bytes, inode: Inode, target: Inode, new_name: bytes, over: Inode) -> None:
        head = self._head
        head.begin_change()
        now = head.clock()
        self._set_entry(source, name, over, now, replaces=True)
        self._set_entry(target, new_name, inode, now, replaces=True)
        self._moved(inode, source, name, target, new_name, now)
        self._moved(over, target, new_name, source, name, now)
        head.end_change((Op.RENAME, now, source.ino, target.ino, RENAME_EXCHANGE, name, new_name))

    def _moved(self, inode: Inode, source: Inode, name: bytes, target: Inode, new_name: bytes, now: int) -> None:
        if inode.name:
            inode.parent, inode.name = target.ino, new_name
        else:
            self._set_link(inode.ino, source.ino, name, present=False)
            self._set_link(inode.ino, target.ino, new_name, present=True)
        if inode.mode & S_IFMT == S_IFDIR and source is not target:
            self._subdirectory_gone(source)
            target.nlink += 1
        inode.ctime_ns = now
        self._head.touch(inode)

    # -- changes -----------------------------------------------------------------------------------------------------

    def _set_entry(
        self, directory: Inode, name: bytes, inode: Inode | None, now: int, *, replaces: bool = False
    ) -> None:
        """The entry now names `inode`, or is gone; the directory's count and times follow."""
        head = self._head
        changed = head.dirents.get(directory.ino)
        if changed is None:
            changed = head.dirents[directory.ino] = {}
        if name not in changed:
            head.dirty_rows += 2
        changed[name] = None if inode is None else (inode.ino, inode.mode >> 12)
        if inode is None:
            if directory.size:
                directory.size -= 1
            else:
                head.report_drift(f"entries of directory {directory.ino}", -1)
        elif not replaces:
            directory.size += 1
        directory.mtime_ns = directory.ctime_ns = now
        head.touch(directory)

    def _subdirectory_gone(self, directory: Inode) -> None:
        if directory.nlink > 2:
            directory.nlink -= 1
        else:
            self._head.report_drift(f"subdirectories of directory {directory.ino}", -1)

    def _set_link(self, ino: int, directory: int, name: bytes, *, present: bool) -> None:
        self._head.links[ino, directory, name] = present
        self._head.dirty_rows += 2

    def _count(self, inode: Inode, n: int) -> None:
        head = self._head
        counters, kind = head.counters, inode.mode & S_IFMT
        if kind == S_IFREG and counters.files + n >= 0 <= counters.inodes + n:  # nearly always
            counters.inodes += n
            counters.files += n
            return
        for what in ("inodes", _COUNTERS.get(kind, "others")):
            setattr(counters, what, head.counted(what, getattr(counters, what) + n))
