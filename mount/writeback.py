"""Making the kernel write out what programs have dirtied, before a snapshot.

Pages dirtied through shared mappings, and under writeback caching all written ones, reach the filesystem only when the
kernel writes them.  `syncfs` starts that for everything and does not wait; the invalidation of an inode does, and after
`syncfs` finds little left.  Both wait for the mount's own loop to serve what the kernel writes, so they run in a
thread, and without the GIL: pyfuse3's own `syncfs` keeps it, which would stop the loop and so the mount for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from typing import Any, Final, cast

import pyfuse3
import trio

_libc: Final = ctypes.CDLL(None)  # a call through it lets go of the GIL


async def write_out(mountpoint: str, nodes: Sequence[int]) -> None:
    """What was dirtied before the call, in inodes open for writing (`nodes`), has been written when it returns."""
    if nodes:
        await trio.to_thread.run_sync(_write_out, mountpoint, list(nodes))


def _write_out(mountpoint: str, nodes: list[int]) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _libc.syncfs(fd)  # what it cannot write, the invalidation below or the commit meets again
        finally:
            os.close(fd)
    for node in nodes:
        with contextlib.suppress(OSError):  # closed and forgotten meanwhile
            pyfuse3.invalidate_inode(cast(Any, node))
