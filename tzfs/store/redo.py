"""The redo log: operations made durable by one synced write, ahead of the tables' commit.

An fsync of little would otherwise wait for three syncs, of its payload, of the tables' pages and of their root, and for
rows to be made of what has changed.  Instead the operations since the last fsync are appended here; the tables commit
later, many fsyncs at a time.  A crash in between leaves them here, and whoever next opens for writing does them again.

`redo` is made at the first append, and grows fourfold to `LOG_BYTES_MAX`, always written with zeros first, so that an
append changes no metadata of the disk's filesystem.  A group, which is one append, begins at a multiple of 4 KiB:

    offset 0    magic, 8 bytes "TZFSREDO"
    offset 8    format version u32, 2
    offset 12   flags u32, 0; a log with a flag that is not known is refused
    offset 16   guid of the filesystem, 16 bytes
    offset 32   base u64: the number of the tables' commit that the group follows
    offset 40   number of the group u32: 0, 1, 2 ... since that commit
    offset 44   zero u32
    offset 48   length of the body u64
    offset 56   nonce u64, random: one for all groups that follow one commit
    offset 64   FNV-1a-64 of bytes 0 to 63 and of the body's sums, one for each 4 KiB as for payload, u64
    offset 72   the body: operations (`format.operations`)

Integers are big-endian.  Invariants:

- Only groups whose base is the tables' last commit count, in order from 0, up to the first that is not whole.  So a
  commit of the tables makes all groups before it void without a write here, and the next group overwrites the first.
- A base is never used again for other contents: commits are numbered upwards, and `clear` voids the log of an earlier
  writer before this one appends.
- Nothing else that stands behind the last group is believed, nor is the log refused for it: it may be the rest of an
  earlier group, payload included, and payload is whatever somebody wrote to a file.  Only the first page is always the
  log's own; a later group must have the first one's nonce, which nobody could know when that payload was written.
- A group is written when the one before it is durable.  So where a later one with the same base and nonce is whole, one
  that is not has been damaged, not cut off: that is an error, and never the end of the log.
- Nobody is told of a group before the log's own name is durable, whoever made it.
"""

from __future__ import annotations

import os
import shlex
import struct
from pathlib import Path
from typing import Final, NamedTuple

from tzfs.errors import CorruptionError, ForeignStore, NoSpace, StoreError, from_os_error
from tzfs.failpoints import declare, hit
from tzfs.format.operations import Operation, unpack_operations
from tzfs.limits import MIB, PAGE_BYTES
from tzfs.native import fnv1a64, page_sums
from tzfs.store import folders

REDO_FILE: Final = "redo"
MAGIC: Final = b"TZFSREDO"
VERSION: Final = 2
VERSION_DEVELOPED: Final = 1  # never released, and taken for no log
HEADER: Final = struct.Struct(">8sII16sQIIQ8s")
HEADER_BYTES: Final = HEADER.size + 8
NONCE_BYTES: Final = 8
LOG_BYTES_MAX: Final = 1 * MIB  # some hundred small groups, then the tables commit
LOG_BYTES_FIRST: Final = 256 * 1024

_MAKE: Final = declare("redo.make", "before the redo log is made or grows")
_APPEND: Final = declare("redo.append", "before a group is written to the redo log")
_APPENDED: Final = declare("redo.appended", "a group is in the redo log, nobody has been told")
_RELEASE: Final = declare("redo.release", "the redo log is void, and about to give its space back")
_CLEAR: Final = declare("redo.clear", "the redo log is done again or void, and about to be cleared")


def _sum(head: bytes, body: bytes) -> bytes:
    return fnv1a64(head + page_sums(body)).to_bytes(8, "big")


def _pack(guid: bytes, base: int, number: int, nonce: bytes, body: bytes) -> bytes:
    """One group, zeros up to a whole page."""
    head = HEADER.pack(MAGIC, VERSION, 0, guid, base, number, 0, len(body), nonce)
    whole = b"".join((head, _sum(head, body), body))
    return whole.ljust(-(-len(whole) // PAGE_BYTES) * PAGE_BYTES, b"\0")


class _Group(NamedTuple):
    number: int
    nonce: bytes
    body: bytes | None  # None: the write was cut off, and nobody was told that it was durable; or it is damaged
    end: int  # where the next one begins


class RedoLog:
    """The redo log of the filesystem with `guid`, at `path`."""

    def __init__(self, path: Path, guid: bytes, *, readonly: bool = False) -> None:
        self._path, self._guid = path, guid
        self._fd = -1
        self._bytes = 0  # of the file
        self._base = -1  # of the groups now in it
        self._nonce = b""  # likewise
        self._number = self._at = 0  # of the next group, and where it goes
        self._folder_unsynced = True  # also of a log that is there: who made it may have died at once
        flags = (os.O_RDONLY if readonly else os.O_RDWR | os.O_DSYNC) | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags)
            self._bytes = min(os.fstat(self._fd).st_size & -PAGE_BYTES, LOG_BYTES_MAX)  # beyond, nobody reads
        except FileNotFoundError:
            pass
        except OSError as error:
            raise from_os_error(error, f"{path}: open") from error

    def append(self, base: int, operations: bytes) -> bool:
        if base != self._base:
            self._base, self._nonce, self._number, self._at = base, os.urandom(NONCE_BYTES), 0, 0
        group = _pack(self._guid, base, self._number, self._nonce, operations)
        end = self._at + len(group)
        if end > self._bytes and not self._grow(end):
            return False
        try:
            if self._folder_unsynced:
                folders.sync(self._path.parent)
                self._folder_unsynced = False
            hit(_APPEND)
            self._write(group, self._at)
            hit(_APPENDED)
        except OSError as error:
            if isinstance(from_os_error(error, ""), NoSpace):  # on a disk that copies what is overwritten
                return False
            raise StoreError(f"{self._path}: write: {error.strerror}") from error
        self._number += 1
        self._at = end
        return True

    def pending(self, base: int) -> list[Operation]:
        if self._fd < 0:
            return []
        try:
            raw = os.pread(self._fd, LOG_BYTES_MAX, 0)
        except OSError as error:
            raise from_os_error(error, f"{self._path}: read") from error
        if len(raw) >= HEADER_BYTES:
            self._check_first(raw)
        first = group = self._group(raw, 0, base)
        if first is None:
            return []
        bodies: list[bytes] = []
        at = 0
        while group and group.body is not None and (group.number, group.nonce) == (len(bodies), first.nonce):
            bodies.append(group.body)
            at = group.end
            group = self._group(raw, at, base)
        for behind in range(at + PAGE_BYTES, len(raw), PAGE_BYTES):
            group = self._group(raw, behind, base)
            if group and group.body is not None and group.number > len(bodies) and group.nonce == first.nonce:
                path = shlex.quote(os.fspath(self._path))
                raise CorruptionError(
                    f"{self._path}: what an fsync wrote at byte {at} is damaged, and what later ones wrote needs it",
                    hint="copied while mounted? copy it again while it is not; or give up what was fsynced from there "
                    f"on, all of it since the last commit: truncate -s {at} {path}",
                )
        return unpack_operations(b"".join(bodies), os.fspath(self._path))

    def _group(self, raw: bytes, at: int, base: int) -> _Group | None:
        """What begins at `at`, if that is a group of this filesystem's that follows commit `base`."""
        if at + HEADER_BYTES > len(raw):
            return None
        magic, version, flags, guid, after, number, _, length, nonce = HEADER.unpack_from(raw, at)
        if (magic, version, flags, guid, after) != (MAGIC, VERSION, 0, self._guid, base):
            return None
        begin, end = at + HEADER_BYTES, at + HEADER_BYTES + length
        head, body = raw[at : at + HEADER.size], raw[begin:end]
        whole = end <= len(raw) and raw[at + HEADER.size : begin] == _sum(head, body)
        return _Group(number, nonce, body if whole else None, end + -end % PAGE_BYTES)

    def _check_first(self, raw: bytes) -> None:
        """All this is of the first sector, as the magic is: written whole or not at all."""
        magic, version, flags, guid, *_ = HEADER.unpack_from(raw)
        if magic != MAGIC or version == VERSION_DEVELOPED:
            return
        if version != VERSION or flags:
            raise ForeignStore(f"{self._path}: version {version}, flags {flags:#x}", hint="a newer tzfs wrote it")
        if guid != self._guid:
            raise ForeignStore(
                f"{self._path}: belongs to filesystem {guid.hex()}",
                hint="a file copied here by mistake: move it away",
            )

    def clear(self) -> None:
        self._base = -1  # the same number may come again, of other tables: what is appended then begins anew
        try:
            if self._fd >= 0 and os.pread(self._fd, len(MAGIC), 0).strip(b"\0"):
                hit(_CLEAR)
                self._write(bytes(PAGE_BYTES), 0)
        except OSError as error:
            raise from_os_error(error, f"{self._path}: clear") from error

    def release(self) -> None:
        self.clear()  # the shorter length is not synced: after a power cut the file may be as long as it was
        self._bytes = 0
        try:
            if self._fd >= 0:
                hit(_RELEASE)
                os.ftruncate(self._fd, 0)
        except OSError as error:
            raise from_os_error(error, f"{self._path}: shorten") from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _grow(self, end: int) -> bool:
        """Room up to `end`, written; False beyond the largest size, or on a full disk."""
        size = max(LOG_BYTES_FIRST, 4 * self._bytes, end)
        if end > LOG_BYTES_MAX:
            return False
        try:
            hit(_MAKE)
            if self._fd < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self._path, flags, 0o600)
            size = min(size, LOG_BYTES_MAX)
            self._write(bytes(size - self._bytes), self._bytes)
        except OSError as error:
            if isinstance(from_os_error(error, ""), NoSpace):
                return False
            raise StoreError(f"{self._path}: grow: {error.strerror}") from error
        self._bytes = size
        return True

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, at)
            view, at = view[count:], at + count
