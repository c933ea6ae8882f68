"""Requests of the kernel as linux/fuse.h lays them out, and the replies that come back: for tests without a mount.

`Kernel` asks `Answers` over a pair of sockets, as the pump does over /dev/fuse.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Final, Self

from tzfs.mount.answers import Answers

LOOKUP, FORGET, GETATTR, UNLINK, OPEN, WRITE, RELEASE, ACCESS, BATCH_FORGET = 1, 2, 3, 10, 14, 16, 18, 34, 42
OPCODE_MAX: Final = 60  # beyond every one there is
KEEP_CACHE: Final = 2
_IN: Final = struct.Struct("=IIQQIIIHH")
_OUT: Final = struct.Struct("=IiQ")
_ATTR: Final = struct.Struct("=QQQqqqIIIIIIIIII")
_ENTRY: Final = struct.Struct("=QQQQII")
_ATTR_HEAD: Final = struct.Struct("=QII")
_OPENED: Final = struct.Struct("=QII")
HEADER_BYTES: Final = _IN.size


@dataclass(frozen=True, slots=True)
class Attributes:
    """`struct fuse_attr`, its times in nanoseconds."""

    ino: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int


def attributes(raw: bytes) -> Attributes:
    ino, size, blocks, at, mt, ct, at_ns, mt_ns, ct_ns, mode, nlink, uid, gid, rdev, blksize, flags = _ATTR.unpack(raw)
    assert flags == 0
    assert max(at_ns, mt_ns, ct_ns) < 10**9
    times = (at * 10**9 + at_ns, mt * 10**9 + mt_ns, ct * 10**9 + ct_ns)
    return Attributes(ino, size, blocks, *times, mode, nlink, uid, gid, rdev, blksize)


@dataclass(frozen=True, slots=True)
class Entry:
    """`struct fuse_entry_out`; node 0: absent."""

    node: int
    generation: int
    valid_s: int
    attr_valid_s: int
    attributes: Attributes


def request(opcode: int, node: int, body: bytes = b"", *, unique: int = 7, length: int | None = None) -> bytes:
    """A request; `length` is what its header says, the truth if not given."""
    said = HEADER_BYTES + len(body) if length is None else length
    return _IN.pack(said, opcode, unique, node, 0, 0, 1, 0, 0) + body


def getattr_body() -> bytes:
    return bytes(16)


def open_body(flags: int) -> bytes:
    return struct.pack("=II", flags, 0)


def write_body(handle: int, payload: bytes, offset: int = 0) -> bytes:
    return struct.pack("=QQIIQII", handle, offset, len(payload), 0, 0, 0, 0) + payload


def release_body(handle: int) -> bytes:
    return struct.pack("=QIIQ", handle, 0, 0, 0)


def forget_body(count: int) -> bytes:
    return struct.pack("=Q", count)


def batch_body(forgets: list[tuple[int, int]], *, count: int | None = None) -> bytes:
    """`count` is what it says, the truth if not given."""
    said = len(forgets) if count is None else count
    return struct.pack("=II", said, 0) + b"".join(struct.pack("=QQ", *one) for one in forgets)


def access_body(mask: int) -> bytes:
    return struct.pack("=II", mask, 0)


class Kernel:
    """Asks `answers`.  Each question answers None where it is left to the operations class."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.setblocking(False)
        self._unique = 100

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._near.close()
        self._far.close()

    def raw(self, message: bytes) -> tuple[bool, bytes | None]:
        """Whether the message was answered, and what was written."""
        done = self.answers.try_answer(self._far.fileno(), message)
        try:
            return done, self._near.recv(4096)
        except BlockingIOError:
            return done, None

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes] | None:
        """The errno and the body of the reply."""
        self._unique += 1
        done, reply = self.raw(request(opcode, node, body, unique=self._unique))
        if not done:
            assert reply is None, "left to the operations class, and answered all the same"
            return None
        assert reply is not None
        length, error, unique = _OUT.unpack_from(reply)
        assert (length, unique) == (len(reply), self._unique)
        assert error <= 0
        assert not error or length == _OUT.size
        return -error, reply[_OUT.size :]

    def _asked(self, opcode: int, node: int, body: bytes) -> bytes | None:
        answer = self.ask(opcode, node, body)
        if answer is None:
            return None
        assert answer[0] == 0
        return answer[1]

    @staticmethod
    def _entry(body: bytes) -> Entry:
        assert len(body) == _ENTRY.size + _ATTR.size
        node, generation, valid_s, attr_valid_s, ns, attr_ns = _ENTRY.unpack_from(body)
        assert (ns, attr_ns) == (0, 0)
        return Entry(node, generation, valid_s, attr_valid_s, attributes(body[_ENTRY.size :]))

    def lookup(self, directory: int, name: bytes) -> Entry | None:
        body = self._asked(LOOKUP, directory, name + b"\0")
        return None if body is None else self._entry(body)

    def created(self, handle: int) -> Entry | None:
        """What it is answered of a CREATE, without the handle, which is as it should be; None: the answer is ENOMEM."""
        self._unique += 1
        taken = self.answers.created(self._far.fileno(), self._unique, handle)
        reply = self._near.recv(4096)
        length, error, unique = _OUT.unpack_from(reply)
        assert (length, unique) == (len(reply), self._unique)
        if not taken:
            assert (error, length) == (-errno.ENOMEM, _OUT.size)
            return None
        assert error == 0
        assert _OPENED.unpack(reply[-_OPENED.size :]) == (handle, KEEP_CACHE, 0)
        return self._entry(reply[_OUT.size : -_OPENED.size])

    def getattr(self, node: int) -> Attributes | None:
        body = self._asked(GETATTR, node, getattr_body())
        if body is None:
            return None
        assert len(body) == _ATTR_HEAD.size + _ATTR.size
        valid_s, ns, _ = _ATTR_HEAD.unpack_from(body)
        assert (valid_s, ns) == (self.answers.state.valid_s, 0)
        return attributes(body[_ATTR_HEAD.size :])

    def open(self, node: int, flags: int) -> int | None:
        """The handle."""
        body = self._asked(OPEN, node, open_body(flags))
        if body is None:
            return None
        handle, open_flags, _ = _OPENED.unpack(body)
        assert open_flags == KEEP_CACHE
        assert isinstance(handle, int)
        return handle

    def write(self, node: int, handle: int, payload: bytes, offset: int = 0) -> int | None:
        """How many bytes were written."""
        body = self._asked(WRITE, node, write_body(handle, payload, offset))
        if body is None:
            return None
        size, padding = struct.unpack("=II", body)
        assert padding == 0
        return int(size)

    def unlink(self, directory: int, name: bytes) -> bool:
        return self._asked(UNLINK, directory, name + b"\0") == b""

    def release(self, node: int, handle: int) -> bool:
        return self._asked(RELEASE, node, release_body(handle)) == b""

    def access(self, node: int, mask: int) -> int | None:
        """The errno."""
        answer = self.ask(ACCESS, node, access_body(mask))
        if answer is None:
            return None
        assert answer[1] == b""
        return answer[0]

    def forget(self, node: int, count: int) -> bool:
        done, reply = self.raw(request(FORGET, node, forget_body(count)))
        assert reply is None, "nobody waits for an answer"
        return done

    def batch_forget(self, forgets: list[tuple[int, int]], *, count: int | None = None) -> bool:
        done, reply = self.raw(request(BATCH_FORGET, 0, batch_body(forgets, count=count)))
        assert reply is None
        return done
