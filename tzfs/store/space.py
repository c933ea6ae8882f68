"""Space on the disk ahead of use and after it: `fallocate` beyond the end of a file, and holes punched into one.

Python's `os.posix_fallocate` would make the file longer, so both go through two C functions (`native/src/falloc.c`).  A
filesystem that cannot do either says EOPNOTSUPP: then these functions return False and nothing has happened.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, cast

from tzfs.limits import PAGE_BYTES
from tzfs.native._native import lib


class _Library(Protocol):
    """`native/src/falloc.h`."""

    def tzfs_fallocate_keep(self, fd: int, offset: int, nbytes: int, /) -> int: ...
    def tzfs_fallocate_punch(self, fd: int, offset: int, nbytes: int, /) -> int: ...


_lib: Final = cast(_Library, lib)
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS)


def reserve(fd: int, offset: int, nbytes: int) -> bool:
    """Allocates blocks for [offset, offset + nbytes) without changing the file's size; `OSError` if it is refused."""
    return _done(_lib.tzfs_fallocate_keep(fd, offset, nbytes))


def reserve_or_leave(fd: int, begin: int, end: int, *, kept_end: int) -> bool:
    """`reserve` of [begin, end); one that is refused leaves what there was beyond the file's end, up to `kept_end`.

    ext4 keeps what it could allocate, which others may need, or who asks for less.  Nothing else may write to the file
    meanwhile.
    """
    blocks = os.fstat(fd).st_blocks
    try:
        return reserve(fd, begin, end - begin)
    except OSError:
        with suppress(OSError):
            stat = os.fstat(fd)
            if stat.st_blocks > blocks:
                trim(fd)
                if stat.st_size < kept_end:
                    reserve(fd, stat.st_size, kept_end - stat.st_size)
        raise


def punch(fd: int, offset: int, nbytes: int) -> bool:
    """Gives the blocks of [offset, offset + nbytes) back; they read as zeros from now on."""
    return _done(_lib.tzfs_fallocate_punch(fd, offset, nbytes))


def trim(fd: int) -> None:
    """Gives back what `reserve` allocated beyond the end of the file.  Nothing else may write to it meanwhile."""
    os.ftruncate(fd, os.fstat(fd).st_size)


def uncache(fd: int, offset: int, nbytes: int) -> None:
    """Has the kernel drop its copy of what has been written and synced."""
    with suppress(OSError):
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


def punch_supported(directory: Path) -> bool:
    """Whether holes can be punched into files of a directory, and seen; tried on a file that has no name."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return False  # a disk that is read-only, or too simple for such files
    try:
        os.pwrite(fd, b"x" * 3 * PAGE_BYTES, 0)
        return punch(fd, PAGE_BYTES, PAGE_BYTES) and len(data_ranges(fd)) == 2
    except OSError:
        return False
    finally:
        os.close(fd)


def data_ranges(fd: int) -> list[tuple[int, int]]:
    """The bytes of a file that are not holes, as ascending [begin, end)."""
    found, end, size = [], 0, os.fstat(fd).st_size
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # nothing but a hole is left
            raise
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, end))
    return found


def free_bytes(fd: int) -> int:
    """What this process may still allocate on the filesystem that holds `fd`."""
    stat = os.fstatvfs(fd)
    return (stat.f_bfree if os.geteuid() == 0 else stat.f_bavail) * stat.f_frsize


def _done(error: int) -> bool:
    if error == 0:
        return True
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error))
