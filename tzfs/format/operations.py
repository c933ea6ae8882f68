"""Operations as the redo log keeps them: what was asked of a head and has changed it, enough to do it again.

An operation is a tuple: its number, the time it happened (ns since the epoch, what the clock said), and its arguments.
The same operations in the same order on the same commit give the same inode numbers, times and contents.  FORMAT.md,
section 8.1, has the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

from tzfs.errors import CorruptionError

Operation = tuple[Any, ...]  # (Op, time, arguments...), as described at `Op`


class Op(IntEnum):
    """The operations, with their arguments after the time."""

    CREATE = 1  # parent, mode, uid, gid, rdev, inode number it got, name, target of a symlink
    LINK = 2  # inode, parent, name
    UNLINK = 3  # parent, name
    RMDIR = 4  # parent, name
    RENAME = 5  # parent, new parent, flags, name, new name
    SETATTR = 6  # inode, mode, uid, gid, size, atime, mtime, ctime; None for what stays
    WRITE = 7  # inode, offset, bytes
    SETXATTR = 8  # inode, flags, name, value
    REMOVEXATTR = 9  # inode, name


# Each begins with the operation u8 and its time i64; lengths of the byte strings that follow come last.
_LAYOUTS: Final = {
    Op.CREATE: (struct.Struct(">BqQIIIQQHH"), 2),
    Op.LINK: (struct.Struct(">BqQQH"), 1),
    Op.UNLINK: (struct.Struct(">BqQH"), 1),
    Op.RMDIR: (struct.Struct(">BqQH"), 1),
    Op.RENAME: (struct.Struct(">BqQQIHH"), 2),
    Op.SETATTR: (struct.Struct(">BqQBIIIQqqq"), 0),
    Op.WRITE: (struct.Struct(">BqQQI"), 1),
    Op.SETXATTR: (struct.Struct(">BqQIHI"), 2),
    Op.REMOVEXATTR: (struct.Struct(">BqQH"), 1),
}
_SETATTR_FIELDS: Final = 7


def pack_operations(operations: Sequence[Operation]) -> bytes:
    """The operations one after the other."""
    parts: list[bytes] = []
    for operation in operations:
        op = operation[0]
        layout, strings = _LAYOUTS[op]
        if strings == 2:
            *fixed, one, two = operation
            parts += (layout.pack(*fixed, len(one), len(two)), one, two)
        elif strings:
            *fixed, one = operation
            parts += (layout.pack(*fixed, len(one)), one)
        else:
            _, now, ino, *values = operation
            given = sum(1 << i for i, value in enumerate(values) if value is not None)
            parts.append(layout.pack(op, now, ino, given, *(value or 0 for value in values)))
    return b"".join(parts)


def unpack_operations(body: bytes, what: str) -> list[Operation]:
    """The operations that `pack_operations` was given; `CorruptionError`, which names `what` they come from."""
    found: list[Operation] = []
    at = 0
    while at < len(body):
        try:
            op = Op(body[at])
            layout, strings = _LAYOUTS[op]
            fields = list(layout.unpack_from(body, at))
        except (ValueError, struct.error) as error:
            raise CorruptionError(f"{what}: what stands at byte {at} is no operation ({error})") from error
        at += layout.size
        fields[0] = op
        if strings:
            for i in range(len(fields) - strings, len(fields)):
                end = at + fields[i]
                if end > len(body):
                    raise CorruptionError(f"{what}: the last operation is cut off")
                fields[i], at = body[at:end], end
        else:
            values = fields[4:]
            fields[3:] = [value if fields[3] >> i & 1 else None for i, value in enumerate(values)]
        found.append(tuple(fields))
    return found
