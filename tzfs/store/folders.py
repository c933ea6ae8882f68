"""Folders that must outlast a power cut, made by one process at a time; what is locked in them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid


def sync(path: Path) -> None:
    """What was made, renamed or unlinked in the folder is durable when it returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> None:
    """Exchanges two names in one step; not synced.  `OSError`: EINVAL where the disk cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), os.fspath(one))


@contextmanager
def made(path: Path) -> Iterator[Callable[[], None]]:
    """Makes the folder (0700) where it is not there yet; while the context lasts, other makers of it wait.

    Yields a function that makes the folder and what was put into it durable, also after a crash between the two.
    """
    path.mkdir(0o700, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)

        def lasting() -> None:
            os.fsync(fd)
            sync(path.parent)

        yield lasting
    finally:
        os.close(fd)
