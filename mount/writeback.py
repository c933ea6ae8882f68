"""Making the kernel write out what programs have dirtied, before a snapshot.

Pages dirtied through shared mappings, and under writeback caching all written ones, reach the filesystem only when the
kernel writes them.  `syncfs` starts that for everything and does not wait; the invalidation of an inode does, and after
`syncfs` finds little left.  Both may wait for the mount's own loop to serve those writes, so they run in a thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, cast

import pyfuse3
import trio


async def write_out(mountpoint: str, nodes: Sequence[int]) -> None:
    """What was dirtied before the call, in inodes open for writing (`nodes`), has been written when it returns."""
    if nodes:
        await trio.to_thread.run_sync(_write_out, mountpoint, list(nodes))


def _write_out(mountpoint: str, nodes: list[int]) -> None:
    with contextlib.suppress(OSError):
        pyfuse3.syncfs(os.path.abspath(mountpoint))
    for node in nodes:
        with contextlib.suppress(OSError):  # closed and forgotten meanwhile
            pyfuse3.invalidate_inode(cast(Any, node))
