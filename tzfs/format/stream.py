"""The stream of snapshots: frames in, frames out.  `STREAM.md` is the specification.

    stream = "TZFSSEND" ‖ version u32 ‖ features u32, then frames
    frame  = kind u8 ‖ 000000 ‖ length u32 ‖ sum u64 ‖ body

A frame's sum covers the sum of the frame before it: so the last one covers everything, and a frame that is left out,
doubled or moved is noticed where it happens.  A body is as short as its kind allows, and never longer than
`BODY_BYTES_MAX`, so that a reader needs no more memory than that, whatever a stream says.

Nothing here knows a filesystem: what the frames say together is for the sender and the receiver to mean.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from tzfs.errors import BadStream, ForeignStore
from tzfs.format.keys import DataId, Ino
from tzfs.format.records import INODE_BYTES, Inode, pack_inode, pack_json, unpack_inode
from tzfs.limits import EXTENT_BYTES_MAX, KIB
from tzfs.native import fnv1a64, page_sums

MAGIC: Final = b"TZFSSEND"
VERSION: Final = 1
FEATURES: Final = 0  # those that this tzfs knows
BODY_BYTES_MAX: Final = EXTENT_BYTES_MAX + 128 * KIB

_PREAMBLE: Final = struct.Struct(">8sII")
_FRAME: Final = struct.Struct(">B3sI")
_SUM: Final = struct.Struct(">Q")
_INODE: Final = struct.Struct(">QB")
_ENTRY: Final = struct.Struct(">QBB")
_LINK: Final = struct.Struct(">BQB")
_XATTR: Final = struct.Struct(">BB")
_U64: Final = struct.Struct(">Q")
_TOTALS: Final = struct.Struct(">QQ")


class Kind(IntEnum):
    """What a frame says."""

    BEGIN = 1
    SNAPSHOT = 2
    INODE = 3
    GONE = 4
    ENTRIES = 5
    LINKS = 6
    XATTR = 7
    INLINE = 8
    DATA = 9
    HOLE = 10
    DONE = 11
    END = 12


class How(IntEnum):
    """What becomes of the contents that an inode had."""

    KEPT = 0  # but for the chunks that follow
    ANEW = 1  # they are all that follows, and zeros


class Frame(NamedTuple):
    kind: Kind
    body: bytes


class Writer:
    """Writes a stream.  `frames` and `bytes` count what has been written."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        preamble = _PREAMBLE.pack(MAGIC, VERSION, FEATURES)
        self._sum = fnv1a64(preamble)
        self.frames = 0
        self.bytes = len(preamble)
        write(preamble)

    def put(self, kind: Kind, body: bytes) -> None:
        head = _FRAME.pack(kind, bytes(3), len(body))
        self._sum = _sum(self._sum, head, body)
        self._write(head + _SUM.pack(self._sum) + body)
        self.frames += 1
        self.bytes += len(head) + _SUM.size + len(body)


class Reader:
    """Reads a stream, as `read` gives it: at most so many bytes, none at its end.  `BadStream`, `ForeignStore`."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.frames = self.bytes = 0
        preamble = self._exactly(_PREAMBLE.size, "its first bytes")
        magic, version, features = _PREAMBLE.unpack(preamble)
        if magic != MAGIC:
            raise BadStream("this is no stream of snapshots", hint="give the output of tzfs send")
        if version != VERSION or features & ~FEATURES:
            what = f"is of version {version}" if version != VERSION else f"has features {features:#x}"
            raise ForeignStore(f"the stream {what}, which this tzfs does not know", hint="a newer tzfs wrote it")
        self._sum = fnv1a64(preamble)

    def get(self) -> Frame:
        """The next frame."""
        head = self._exactly(_FRAME.size + _SUM.size, f"frame {self.frames}")
        kind, zeros, length = _FRAME.unpack_from(head)
        if length > BODY_BYTES_MAX or zeros != bytes(3):
            raise BadStream(f"frame {self.frames} of the stream is damaged: its head says what cannot be")
        body = self._exactly(length, f"frame {self.frames}")
        self._sum = _sum(self._sum, head[: _FRAME.size], body)
        if self._sum != _SUM.unpack_from(head, _FRAME.size)[0]:
            raise BadStream(f"frame {self.frames} of the stream is damaged: its sum does not match")
        try:
            known = Kind(kind)
        except ValueError:
            raise BadStream(f"frame {self.frames} of the stream is of kind {kind}, which there is not") from None
        self.frames += 1
        return Frame(known, body)

    def _exactly(self, size: int, what: str) -> bytes:
        parts, left = [], size
        while left:
            part = self._read(left)
            if not part:
                raise BadStream(f"the stream ends within {what}: it was cut off")
            parts.append(part)
            left -= len(part)
        self.bytes += size
        return b"".join(parts)


def _sum(before: int, head: bytes, body: bytes) -> int:
    return fnv1a64(_SUM.pack(before) + head + page_sums(body))


# -- bodies ------------------------------------------------------------------------------------------------------------


def pack_object(value: object) -> bytes:
    """BEGIN and SNAPSHOT: canonical JSON."""
    return pack_json(value)


def unpack_object(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body.decode())
        pack_object(value)  # escapes can write what no text has, and what could not be kept
    except (ValueError, RecursionError):
        raise BadStream("a header of the stream is not JSON") from None
    if not isinstance(value, dict):
        raise BadStream("a header of the stream is not an object")
    return value


def pack_inode_frame(inode: Inode, how: How) -> bytes:
    """The sender's data id is its own affair."""
    data, inode.data = inode.data, DataId(0)
    try:
        return _INODE.pack(inode.ino, how) + pack_inode(inode)
    finally:
        inode.data = data


def unpack_inode_frame(body: bytes) -> tuple[Inode, How]:
    if len(body) < _INODE.size + INODE_BYTES:
        raise _short()
    ino, how = _INODE.unpack_from(body)
    if how > max(How):
        raise BadStream(f"inode {ino} of the stream has contents of kind {how}, which there is not")
    return unpack_inode(Ino(ino), b"", body[_INODE.size :]), How(how)


def pack_number(number: int) -> bytes:
    return _U64.pack(number)


def unpack_number(body: bytes) -> int:
    if len(body) != _U64.size:
        raise _short()
    number: int = _U64.unpack(body)[0]
    return number


def pack_entries(entries: Iterable[tuple[bytes, int, int]]) -> bytes:
    """(name, inode or 0 for one that is gone, file type)."""
    return b"".join(_ENTRY.pack(ino, kind, len(name)) + name for name, ino, kind in entries)


def unpack_entries(body: bytes) -> list[tuple[bytes, int, int]]:
    out, at = [], 0
    while at < len(body):
        if at + _ENTRY.size > len(body):
            raise _short()
        ino, kind, length = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size + length
        if at > len(body):
            raise _short()
        out.append((body[at - length : at], ino, kind))
    return out


def pack_links(links: Iterable[tuple[int, bytes, bool]]) -> bytes:
    """(directory, name, whether the inode has it)."""
    return b"".join(_LINK.pack(there, directory, len(name)) + name for directory, name, there in links)


def unpack_links(body: bytes) -> list[tuple[int, bytes, bool]]:
    out, at = [], 0
    while at < len(body):
        if at + _LINK.size > len(body):
            raise _short()
        there, directory, length = _LINK.unpack_from(body, at)
        at += _LINK.size + length
        if at > len(body) or there > 1:
            raise _short()
        out.append((directory, body[at - length : at], bool(there)))
    return out


def pack_xattr(name: bytes, value: bytes | None) -> bytes:
    return _XATTR.pack(value is not None, len(name)) + name + (value or b"")


def unpack_xattr(body: bytes) -> tuple[bytes, bytes | None]:
    if len(body) < _XATTR.size:
        raise _short()
    there, length = _XATTR.unpack_from(body)
    end = _XATTR.size + length
    if end > len(body) or there > 1 or (not there and end != len(body)):
        raise _short()
    return body[_XATTR.size : end], body[end:] if there else None


def pack_data(index: int, payload: bytes) -> bytes:
    return _U64.pack(index) + payload


def unpack_data(body: bytes) -> tuple[int, bytes]:
    if len(body) <= _U64.size:
        raise _short()
    return _U64.unpack_from(body)[0], body[_U64.size :]


def pack_totals(first: int, second: int) -> bytes:
    return _TOTALS.pack(first, second)


def unpack_totals(body: bytes) -> tuple[int, int]:
    if len(body) != _TOTALS.size:
        raise _short()
    first, second = _TOTALS.unpack(body)
    return first, second


def _short() -> BadStream:
    return BadStream("a frame of the stream has not the length of its kind")
