"""Node ids, the attributes that go with them, and the folders that no filesystem has: `.zfs` and `.zfs/snapshot`.

A *node id* is what the kernel calls an inode: the inode number in its low 40 bits, and above them which tree it is in:
0 for the mounted one, a number given at first use for each snapshot browsed under `.zfs/snapshot`, and the topmost for
`.zfs` itself and `snapshot` in it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Any, Final, cast

from pyfuse3 import EntryAttributes, FUSEError

from tzfs import limits
from tzfs.engine.engine import Engine
from tzfs.engine.view import View
from tzfs.errors import NotFound
from tzfs.format.records import Inode, UnreadableInode
from tzfs.opening import HeadReader

FOREVER_S: Final = 100_000_000  # three years; the kernel counts in jiffies and must not overflow
INO_MASK: Final = limits.INO_MAX
CONTROL_TREE: Final = limits.SNAPSHOT_VIEWS_MAX - 1
ZFS_NODE: Final = CONTROL_TREE << limits.INO_BITS | 1
SNAPSHOTS_NODE: Final = CONTROL_TREE << limits.INO_BITS | 2
DAMAGED_NODE: Final = CONTROL_TREE << limits.INO_BITS | 3  # whatever has a name, and nothing else is known of it
ZFS_NAME: Final = b".zfs"
SNAPSHOTS_NAME: Final = b"snapshot"


def attributes_of(inode: Inode, tree: int = 0) -> EntryAttributes:
    """The attributes of an inode, in the tree whose bits these are."""
    entry = EntryAttributes()
    entry.st_ino = cast(Any, inode.ino | tree)
    entry.st_mode = cast(Any, inode.mode)
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = size = inode.size
    entry.st_blksize = 4096
    entry.st_blocks = (size + 4095 >> 12) << 3
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    entry.entry_timeout = entry.attr_timeout = FOREVER_S
    entry.generation = 0
    return entry


def attributes_of_unreadable(inode: UnreadableInode, tree: int = 0) -> EntryAttributes:
    """Enough for the name to be listed, and removed where there is an inode: whoever wants to know more asks again, and
    hears what is wrong."""
    entry = attributes_of(inode, tree)
    entry.attr_timeout = 0
    entry.st_size = 1 << 62  # beyond the end sendfile would find nothing, without asking
    if not inode.ino:
        entry.st_ino = cast(Any, DAMAGED_NODE)
        entry.st_mode = cast(Any, stat.S_IFREG)
        entry.entry_timeout = 0
    return entry


def absent() -> EntryAttributes:
    """A negative look-up that the kernel may remember."""
    entry = EntryAttributes()
    entry.st_ino = cast(Any, 0)
    entry.entry_timeout = FOREVER_S
    return entry


class Views:
    """The snapshots that are being browsed, and the folders that lead to them."""

    def __init__(self, snapshots: Engine | HeadReader | None) -> None:
        """`snapshots` has them; None where there are none, in the mount of a snapshot."""
        self._snapshots = snapshots
        self._views: list[View] = []  # tree number - 1 -> view
        self._numbers: dict[str, int] = {}
        self._made_ns = time.time_ns()

    def view(self, number: int) -> View:
        """The snapshot's tree whose number this is."""
        return self._views[number - 1]

    def tree_of(self, name: bytes) -> int:
        """The tree bits of a snapshot's view; `NotFound`."""
        text = os.fsdecode(name)
        number = self._numbers.get(text)
        if number is None:
            if self._snapshots is None:
                raise NotFound("a snapshot has no snapshots")
            view = self._snapshots.view(text)
            if len(self._views) + 1 >= CONTROL_TREE:
                raise FUSEError(errno.ENFILE)
            self._views.append(view)
            number = self._numbers[text] = len(self._views)
        return number << limits.INO_BITS

    def renamed(self, old: bytes, new: bytes) -> None:
        """A snapshot has another name; whoever browses it goes on."""
        number = self._numbers.pop(os.fsdecode(old), None)
        if number is not None:
            self._numbers[os.fsdecode(new)] = number

    def destroyed(self, name: bytes) -> None:
        """The snapshot is gone: its view answers `Stale`, and another one of its name is another tree."""
        self._numbers.pop(os.fsdecode(name), None)

    def attributes(self, node: int) -> EntryAttributes:
        """The attributes of `.zfs` and `snapshot`: they change with the snapshots, of which nobody tells the kernel."""
        if node == DAMAGED_NODE:
            raise FUSEError(errno.EIO)
        entry = EntryAttributes()
        entry.st_ino = cast(Any, node)
        entry.st_mode = cast(Any, 0o40555)
        entry.st_nlink = 2
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_blksize = 4096
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._made_ns
        entry.entry_timeout = FOREVER_S
        entry.attr_timeout = 0
        entry.generation = 0
        return entry
