"""The files that segments are: their header, the descriptors that are open on them, and runs of extents written to one.

A segment's file begins with a page that says whose it is:

    offset 0    magic, 8 bytes "TZFSSEG1"
    offset 8    format version u32, 1
    offset 12   flags u32, 0; a reader refuses a segment with a flag it does not know
    offset 16   guid of the filesystem, 16 bytes
    offset 32   number of the segment u64
    offset 40   FNV-1a-64 of bytes 0 to 39, u64
    offset 48   zeros to the end of the page

All integers are big-endian.

Descriptors are kept, the least recently used closed beyond `OPEN_MAX`; one in use is closed by its last user.  Usable
from any thread.  What is in the files, and which there are to be, is for `segments` to know.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tzfs.errors import CorruptionError, ForeignStore, from_os_error
from tzfs.failpoints import declare, hit
from tzfs.format.keys import ExtentId
from tzfs.limits import PAGE_BYTES
from tzfs.native import fnv1a64
from tzfs.native._native import ffi
from tzfs.store.interface import Buffer, SegmentGone

MAGIC: Final = b"TZFSSEG1"
VERSION: Final = 1
HEADER: Final = struct.Struct(">8sII16sQ")
HEADER_BYTES: Final = HEADER.size + 8
OPEN_MAX: Final = 64  # of the 1,024 descriptors a process commonly may have
PIECES_MAX: Final = 1000  # buffers in one pwritev; the kernel's IOV_MAX is 1,024
PAGED_BYTES_MIN: Final = 32 * 1024  # to ask where a smaller piece lies would be dearer than it is worth

_ZEROS: Final = bytes(PAGE_BYTES)

_CREATE: Final = declare("segment.create", "before a segment file is made")
_HEADER: Final = declare("segment.header", "the file is there; its header is not yet written")
_OPEN: Final = declare("segment.open", "before a segment is opened for reading")


def header(guid: bytes, number: int) -> bytes:
    """The first block of a segment."""
    head = HEADER.pack(MAGIC, VERSION, 0, guid, number)
    return (head + fnv1a64(head).to_bytes(8, "big")).ljust(PAGE_BYTES, b"\0")


class _Open:
    """A descriptor and how many threads are using it."""

    __slots__ = ("doomed", "fd", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.doomed = False  # closed by the last user


class SegmentFiles:
    """The segment files in the folder `directory`, those of the filesystem with `guid`; any other is `ForeignStore`."""

    def __init__(self, directory: Path, guid: bytes, *, readonly: bool, open_max: int) -> None:
        self._directory = directory
        self._guid = guid
        self._readonly = readonly
        self._open_max = open_max
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, _Open] = OrderedDict()

    def path(self, number: int) -> Path:
        return self._directory / f"{number}.seg"

    @contextmanager
    def using(self, number: int) -> Iterator[int]:
        """The descriptor of a segment, kept open while the context lasts.  `SegmentGone` where there is no file."""
        opened = self._cached(number)
        if opened is None:
            opened = self._remember(number, self._open(number))
        try:
            yield opened.fd
        finally:
            self._done_with(opened)

    @contextmanager
    def using_open(self, number: int) -> Iterator[int | None]:
        """As `using`, but None where the file would have to be opened first, which may wait for the disk."""
        opened = self._cached(number)
        if opened is None:
            yield None
            return
        try:
            yield opened.fd
        finally:
            self._done_with(opened)

    def make(self, number: int) -> None:
        """A new segment file with its header, open; after a failure there is none."""
        path = self.path(number)
        hit(_CREATE)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            hit(_HEADER)
            os.pwrite(fd, header(self._guid, number), 0)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._done_with(self._remember(number, fd))

    def forget(self, number: int) -> None:
        """Closes the segment's descriptor, now or with its last user."""
        with self._lock:
            opened = self._cache.pop(number, None)
            if opened is not None:
                self._doom(opened)

    def close(self) -> None:
        with self._lock:
            for opened in self._cache.values():
                self._doom(opened)
            self._cache.clear()

    def close_in_child(self) -> None:
        """In a forked child: closes all, whatever the parent's threads were doing."""
        for opened in self._cache.values():
            os.close(opened.fd)
        self._cache.clear()

    def _cached(self, number: int) -> _Open | None:
        with self._lock:
            opened = self._cache.get(number)
            if opened is not None:
                self._cache.move_to_end(number)
                opened.users += 1
            return opened

    def _remember(self, number: int, fd: int) -> _Open:
        """Puts a new descriptor into the cache, in use once; another thread's of the same segment wins."""
        with self._lock:
            opened = self._cache.get(number)
            if opened is not None:
                os.close(fd)
            else:
                opened = self._cache[number] = _Open(fd)
                while len(self._cache) > self._open_max:
                    _, oldest = self._cache.popitem(last=False)
                    self._doom(oldest)
            opened.users += 1
            return opened

    def _done_with(self, opened: _Open) -> None:
        with self._lock:
            opened.users -= 1
            if opened.doomed and opened.users == 0:
                os.close(opened.fd)

    def _doom(self, opened: _Open) -> None:
        opened.doomed = True
        if opened.users == 0:
            os.close(opened.fd)

    def _open(self, number: int) -> int:
        """A descriptor of a segment that is there, its header checked."""
        try:
            hit(_OPEN)
            flags = os.O_RDONLY if self._readonly else os.O_RDWR
            fd = os.open(self.path(number), flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise SegmentGone(f"{self.path(number)} is gone") from error
        except OSError as error:
            raise from_os_error(error, f"{self.path(number)}: open") from error
        try:
            self._check_header(os.pread(fd, HEADER_BYTES, 0), number)
        except OSError as error:
            os.close(fd)
            raise from_os_error(error, f"{self.path(number)}: read") from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_header(self, head: bytes, number: int) -> None:
        path = self.path(number)
        if head[: len(MAGIC)] != MAGIC:
            raise CorruptionError(f"{path}: not a segment of tzfs")
        if len(head) < HEADER_BYTES or int.from_bytes(head[HEADER.size :], "big") != fnv1a64(head[: HEADER.size]):
            raise CorruptionError(f"{path}: damaged header")
        _, version, flags, guid, found = HEADER.unpack_from(head)
        if version != VERSION or flags:
            raise ForeignStore(f"{path}: version {version}, flags {flags:#x}", hint="a newer tzfs wrote it")
        if guid != self._guid or found != number:
            raise ForeignStore(f"{path}: belongs to filesystem {guid.hex()} as segment {found}")


def runs(extents: Sequence[tuple[ExtentId, Buffer]]) -> Iterator[list[tuple[ExtentId, Buffer]]]:
    """Groups extents of which each begins where the last block of the one before ends."""
    run: list[tuple[ExtentId, Buffer]] = []
    expected = -1
    for extent, data in extents:
        if run and (extent != expected or 2 * len(run) >= PIECES_MAX):
            yield run
            run = []
        run.append((extent, data))
        expected = extent + -(-len(data) // PAGE_BYTES)
    if run:
        yield run


def pieces_of(run: Sequence[tuple[ExtentId, Buffer]]) -> list[memoryview]:
    """What is written for such a group, with zeros between the extents."""
    pieces: list[memoryview] = []
    for i, (_, data) in enumerate(run):
        pieces.append(memoryview(data).cast("B"))
        if i + 1 < len(run) and len(data) % PAGE_BYTES:
            pieces.append(memoryview(_ZEROS)[: -len(data) % PAGE_BYTES])
    return pieces


def on_pages(piece: memoryview) -> bool:
    """Whether it is whole pages of memory, and so many that somebody will have seen to it."""
    size = len(piece)
    if size < PAGED_BYTES_MIN or size % PAGE_BYTES:
        return False
    return int(ffi.cast("uintptr_t", ffi.from_buffer(piece))) % PAGE_BYTES == 0


def write_pieces(fd: int, pieces: list[memoryview], at: int) -> None:
    """Writes them one after another, in one system call if it may be."""
    while pieces:
        count = os.pwritev(fd, pieces, at)
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        at += count
        while pieces and count >= len(pieces[0]):
            count -= len(pieces.pop(0))
        if count:
            pieces[0] = pieces[0][count:]
