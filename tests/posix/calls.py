"""System calls that Python's `os` does not offer, acting as somebody else, and how a test expects an errno.

Nothing here knows of tzfs: the suite is about what the kernel answers for a directory, whatever stands below it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PathLike = str | bytes | Path

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
CLOCK_REALTIME_COARSE: Final = 5  # which `time` does not name

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.restype = None
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.restype = None
_libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.closedir.argtypes = [ctypes.c_void_p]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _done(result: int, path: object = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def renameat2(old: PathLike, new: PathLike, flags: int) -> None:
    """rename(2) with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    _done(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)), old)


def rename_exactly(old: bytes, new: bytes) -> None:
    """rename(2) of paths as they are: `os.rename` is the same, but here an empty path or a trailing slash stays."""
    _done(_libc.rename(old, new), old)


def linkat(descriptor: int, new: PathLike) -> None:
    """Gives the open file one more name, through /proc, as an unprivileged program does for O_TMPFILE."""
    source = f"/proc/self/fd/{descriptor}".encode()
    _done(_libc.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(new), 0x400), new)


def utimensat(path: PathLike, atime: tuple[int, int], mtime: tuple[int, int], *, flags: int = 0) -> None:
    """Sets times given as (seconds, nanoseconds), the latter possibly UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _done(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags), path)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) itself, without the C library's emulation."""
    _done(_libc.fallocate(descriptor, mode, offset, length))


class Directory:
    """A directory stream of the C library: `entries` from wherever it stands, `tell` and `seek`.

    `seek` takes what `tell` answered for the same open stream, and nothing else.
    """

    def __init__(self, path: PathLike) -> None:
        self._stream: int | None = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _done(-1, path)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *unused: object) -> None:
        _libc.closedir(self._stream)

    def read(self) -> tuple[bytes, int, int] | None:
        """The next entry's (name, inode number, d_type), or None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir(self._stream)
        if not entry:
            if ctypes.get_errno():
                _done(-1)
            return None
        ino, _, _, kind = struct.unpack("=QqHB", ctypes.string_at(entry, 19))
        return ctypes.string_at(entry + 19), ino, kind

    def names(self) -> list[bytes]:
        """The names from here to the end, `.` and `..` among them."""
        found = []
        while (entry := self.read()) is not None:
            found.append(entry[0])
        return found

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)


@contextmanager
def fails(*expected: int) -> Iterator[None]:
    """The body must raise an OSError with one of these errnos; says which came instead, by name."""
    wanted = " or ".join(errno.errorcode[e] for e in expected)
    try:
        yield
    except OSError as error:
        if error.errno not in expected:
            met = errno.errorcode.get(error.errno or 0, "no errno")
            raise AssertionError(f"{met} instead of {wanted}: {error}") from error
    else:
        raise AssertionError(f"success instead of {wanted}")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody on whose behalf a call is made: `does(action)` answers the errno it met, 0 for success.

    Somebody else is a child process that has taken the identity; oneself needs none.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def does(self, action: Callable[[], object]) -> int:
        if (os.geteuid(), os.getegid()) == (self.uid, self.gid):
            try:
                action()
            except OSError as error:
                return error.errno or 0
            return 0
        child = os.fork()
        if child == 0:
            status = 255  # anything but an OSError: no errno is that large
            try:
                os.setgroups(self.groups)
                os.setresgid(self.gid, self.gid, self.gid)
                os.setresuid(self.uid, self.uid, self.uid)
                action()
                status = 0
            except OSError as error:
                status = error.errno or 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status != 255, "the action raised something other than an OSError"
        return status

    def must(self, action: Callable[[], object]) -> None:
        """Does it, and asserts that it succeeded."""
        number = self.does(action)
        assert number == 0, f"{errno.errorcode[number]} for uid {self.uid}"

    def cannot(self, action: Callable[[], object], *expected: int) -> None:
        """Tries it, and asserts that it failed with one of these errnos."""
        number = self.does(action)
        wanted = " or ".join(errno.errorcode[e] for e in expected)
        assert number in expected, f"{errno.errorcode.get(number, 'success')} instead of {wanted} for uid {self.uid}"


def clock_ticks() -> None:
    """Returns when the coarse clock that filesystems stamp with has moved twice: after some milliseconds at most.

    Twice, because a program sees the first step a moment before the kernel stamps with it.
    """
    seen = {time.clock_gettime_ns(CLOCK_REALTIME_COARSE)}
    while len(seen) < 3:
        seen.add(time.clock_gettime_ns(CLOCK_REALTIME_COARSE))


def make(path: Path, content: bytes = b"", mode: int = 0o644) -> Path:
    """A new file with that content and exactly that mode."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    return path


@contextmanager
def opened(path: PathLike, flags: int = os.O_RDONLY, mode: int = 0o666) -> Iterator[int]:
    """An open descriptor, closed at the end."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
