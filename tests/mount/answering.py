"""What the suites of answers given in C stand on: an inode, and answers that know nothing yet."""

from __future__ import annotations

import os
from typing import Final

from tests.mount import wire
from tzfs import limits
from tzfs.format.keys import DataId, Ino
from tzfs.format.records import Inode
from tzfs.mount.answers import Answers

WRITING: Final = 1 << 63
LIVE_MAX: Final = limits.INO_MAX
VALID_S: Final = 1234
DIRECTORY, FILE, SNAPSHOT_FILE = 5, 9, 3 << limits.INO_BITS | 9
NODES_MAX, NAMES_MAX = 1 << 17, 1 << 18
WHOLE: Final = [  # a request of each kind that is answered
    (wire.LOOKUP, DIRECTORY, b"there\0"),
    (wire.LOOKUP, DIRECTORY, b"absent\0"),
    (wire.GETATTR, FILE, wire.getattr_body()),
    (wire.OPEN, FILE, wire.open_body(os.O_RDWR)),
    (wire.WRITE, FILE, wire.write_body(FILE | WRITING, bytes(4097))),
    (wire.RELEASE, FILE, wire.release_body(FILE | WRITING)),
    (wire.FORGET, FILE, wire.forget_body(1)),
    (wire.BATCH_FORGET, 0, wire.batch_body([(FILE, 1), (DIRECTORY, 1)])),
    (wire.ACCESS, FILE, wire.access_body(0)),
    (wire.UNLINK, DIRECTORY, b"there\0"),
]


def inode(
    ino: int, *, mode: int = 0o100644, size: int = 0, rdev: int = 0, times: tuple[int, int, int] = (1, 2, 3)
) -> Inode:
    return Inode(
        Ino(ino), mode, 61_001, 61_002, 3, size, DataId(0), rdev, *times, 0, 0, limits.CHUNK_SHIFT_DEFAULT, Ino(1), b"n"
    )  # fmt: skip


def made(*, writable: bool = True) -> Answers:
    return Answers(live_max=LIVE_MAX, writing=WRITING, valid_s=VALID_S, writable=writable)
