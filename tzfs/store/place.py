"""Where tables were last written: tells a copy from the original, and a copy made in use from a clean one.

`meta/place` says which inode `data.mdb` has, and whether a write transaction is open on it.  While the inode is right
the rest means nothing: a crash leaves "writing" behind, and LMDB recovers by itself.  Where the inode is another, the
folder was copied or restored.  If it then says "writing", it was copied while mounted (or after a crash, before the
next mount), and its files may be of different moments, which nobody can tell by looking at them; such a copy is
refused.  If it says "idle", it is walked once (`lmdb_pages.verify`), and the next writer puts its own place there.

    place    magic 8 bytes "TZFSPLAC" ‖ inode of data.mdb u64, big-endian ‖ state u8: 0 idle, 1 writing

The file needs no sync: after a power loss the inode is the same whatever the state says.  Without the file the folder
counts as an idle copy.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

from tzfs.errors import ForeignStore
from tzfs.store import lmdb_pages

FILE_NAME: Final = "place"
_PLACE: Final = struct.Struct(">8sQB")
_MAGIC: Final = b"TZFSPLAC"
_STATE_AT: Final = _PLACE.size - 1
_IDLE, _WRITING = b"\0", b"\1"


class Place(NamedTuple):
    """What the file says."""

    inode: int
    writing: bool


def read(directory: Path) -> Place | None:
    """The place recorded in `directory`, or None where there is none that can be read."""
    try:
        fd = os.open(directory / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        data = os.read(fd, _PLACE.size + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    if len(data) != _PLACE.size or not data.startswith(_MAGIC):
        return None
    _, inode, state = _PLACE.unpack(data)
    return Place(inode, state != 0)


def suspect(directory: Path, data: Path) -> bool:
    """True if the tables' file must be walked before it is trusted: it is shorter than it says, or somebody's copy.

    `ForeignStore` for a copy that was made in use, or for no file of LMDB's; `CorruptionError` if not even its root
    pages are all there.  A file that is not there, or empty, is not suspect.
    """
    try:
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(fd).st_size == 0:
            return False
        newest = lmdb_pages.meta_pages(fd, os.fspath(data))[0]
        now = os.fstat(fd)  # after the roots were read: the file only grows
    finally:
        os.close(fd)
    where = read(directory)
    copied = where is None or where.inode != now.st_ino
    if copied and where is not None and where.writing:
        raise ForeignStore(
            f"{directory}: a copy that was made while the filesystem was mounted, or had crashed: its files are not of "
            "one moment",
            hint="mount and unmount the original, then copy it again; if the original is lost, remove the file "
            f"{directory / FILE_NAME} to have the copy checked and opened as it is",
        )
    return copied or now.st_size < newest.bytes_needed


class PlaceMark:
    """The file, open for marking.  Two marks cost 3 µs a transaction."""

    def __init__(self, directory: Path, inode: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(directory / FILE_NAME, flags, 0o600)
        try:
            if os.pread(self._fd, _STATE_AT, 0) != _PLACE.pack(_MAGIC, inode, 0)[:_STATE_AT]:
                os.pwrite(self._fd, _PLACE.pack(_MAGIC, inode, 0), 0)
        except BaseException:
            os.close(self._fd)
            raise

    def writing(self) -> None:
        os.pwrite(self._fd, _WRITING, _STATE_AT)

    def idle(self) -> None:
        os.pwrite(self._fd, _IDLE, _STATE_AT)

    def close(self) -> None:
        os.close(self._fd)
