"""What the daemon asks of C's allocator, glibc's: to keep what is freed while payload streams through.

A stream of payload comes in pieces of a megabyte.  By itself the allocator takes many of them from the kernel and gives
them back, page by page, and the kernel clears them in between: a tenth of a sequential write's time.  So what is freed
is kept until the stream is over, when `give_back` is called.  Another C library goes on as it does.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

from tzfs.limits import MIB

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

MAPPED_BYTES_MIN: Final = 32 * MIB  # the most there can be: nothing of ours is larger
KEPT_BYTES_MAX: Final = 64 * MIB  # at the top of the heap

_libc: Final = ctypes.CDLL(None)


def keep() -> None:
    """What is freed stays with the process, from now on."""
    with suppress(AttributeError):
        _libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
        _libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)


def give_back() -> None:
    """What is free now goes back to the kernel: 1 ms for 30 MiB."""
    with suppress(AttributeError):
        _libc.malloc_trim(0)
