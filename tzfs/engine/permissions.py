"""Permission checks by mode bits, as pure functions: for mounts whose kernel does not check, and for nobody else."""

from __future__ import annotations

from collections.abc import Collection

from tzfs.format.records import Inode

READ, WRITE, SEARCH = 4, 2, 1
S_ISVTX = 0o1000


def may(inode: Inode, wanted: int, *, uid: int, gid: int, groups: Collection[int]) -> bool:
    """Whether the mode bits grant all of `wanted` (READ | WRITE | SEARCH); root may, but execute needs some x bit."""
    mode = inode.mode
    if uid == 0:
        return not wanted & SEARCH or mode & 0o40000 != 0 or mode & 0o111 != 0
    if uid == inode.uid:
        mode >>= 6
    elif gid == inode.gid or inode.gid in groups:
        mode >>= 3
    return mode & wanted == wanted


def may_remove(directory: Inode, inode: Inode, *, uid: int) -> bool:
    """Whether a sticky directory lets `uid` remove or rename the inode; its mode bits are checked apart."""
    return not directory.mode & S_ISVTX or uid in (0, inode.uid, directory.uid)
