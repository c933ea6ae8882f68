"""The keys of every table: big-endian, with the birth epoch inverted, so that one seek lands on the visible version.

A *versioned* key is `prefix + suffix(birth)`; the prefix names the thing (an inode, a directory entry, a chunk) and
`suffix(e) = 2**64 - 1 - e` sorts newer births first.  `set_range(prefix + suffix(E))` therefore finds the newest
version born at or before E.  Names are raw bytes without NUL and end in a NUL within a key, so no prefix of one thing
is a prefix of another's key.

What takes a key apart raises `CorruptionError` for one that cannot be of its table, never anything else; a table
number that this tzfs does not know is `ForeignStore`.

`FORMAT.md`, "Keys", is the specification; the golden tests pin these bytes.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NewType

from tzfs.errors import CorruptionError, ForeignStore

Ino = NewType("Ino", int)
DataId = NewType("DataId", int)
Epoch = NewType("Epoch", int)
Txg = NewType("Txg", int)
ExtentId = NewType("ExtentId", int)  # segment number << 32 | block of 4 KiB within the segment

EPOCH_MAX: Final = (1 << 64) - 1
LIVE: Final = Epoch(EPOCH_MAX)  # the death of what lives ("infinite")
ROOT: Final = Ino(1)


class Table(IntEnum):
    """Every table, by the number that seeds its records' checksums and stands in `change` and `dead` keys."""

    INODE = 1
    DIRENT = 2
    LINK = 3
    INLINE = 4
    CHUNK = 5
    XATTR = 6
    CHANGE = 7
    DEAD = 8
    CELL = 9
    ORPHAN = 10
    RECLAIM = 11
    DESTROY = 12
    PUNCH = 13
    SHARED = 14
    SNAPSHOT = 15
    BOOKMARK = 16
    LOG = 17
    SYS = 18
    SEGMENT = 19
    EXTENT = 20  # no table of its own: the lifetimes of extents, in `dead` keys

    CATALOG = 32  # of the catalog's environment
    CATALOG_STORE = 33
    CATALOG_HOLD = 34


VERSIONED: Final = (Table.INODE, Table.DIRENT, Table.LINK, Table.INLINE, Table.CHUNK, Table.XATTR)
FILESYSTEM_TABLES: Final = tuple(t for t in Table if t < Table.EXTENT)
CATALOG_TABLES: Final = (Table.CATALOG, Table.CATALOG_STORE, Table.CATALOG_HOLD)

_TABLES: Final = {int(t): t for t in Table}

_U64: Final = struct.Struct(">Q")
_U64_U64: Final = struct.Struct(">QQ")
_U64_U64_U8: Final = struct.Struct(">QQB")
_U64_U8: Final = struct.Struct(">QB")

u64 = _U64.pack


def suffix(birth: int) -> bytes:
    """The last 8 bytes of a versioned key: `birth` inverted."""
    return u64(EPOCH_MAX - birth)


def birth_of(key: bytes) -> Epoch:
    """The birth epoch in a versioned key."""
    return Epoch(EPOCH_MAX - int.from_bytes(key[-8:], "big"))


def inode(ino: int) -> bytes:
    return u64(ino)


def dirent(directory: int, name: bytes) -> bytes:
    return u64(directory) + name + b"\0"


def dirent_name(key: bytes) -> bytes:
    """The name in a whole dirent key."""
    return key[8:-9]


def link(ino: int, directory: int, name: bytes) -> bytes:
    return _U64_U64.pack(ino, directory) + name + b"\0"


def link_name(key: bytes) -> tuple[Ino, bytes]:
    """(directory, name) in a whole link key."""
    return Ino(int.from_bytes(key[8:16], "big")), key[16:-9]


def inline(data: int) -> bytes:
    return u64(data)


def chunk(data: int, index: int) -> bytes:
    return _U64_U64.pack(data, index)


def chunk_index(key: bytes) -> int:
    """The chunk index in a chunk key or its prefix."""
    return int.from_bytes(key[8:16], "big")


def xattr(ino: int, name: bytes) -> bytes:
    return u64(ino) + name + b"\0"


def xattr_name(key: bytes) -> bytes:
    """The attribute name in a whole xattr key."""
    return key[8:-9]


def change(birth: int, table: Table, prefix: bytes) -> bytes:
    return _U64_U8.pack(birth, table) + prefix


def change_parts(key: bytes) -> tuple[Epoch, Table, bytes]:
    """(birth, table, prefix) of a change key."""
    if len(key) <= _U64_U8.size:
        raise malformed(Table.CHANGE, key)
    birth, table = _U64_U8.unpack_from(key)
    return Epoch(birth), _table(Table.CHANGE, key, table), key[9:]


def dead(death: int, birth: int, table: Table, prefix: bytes) -> bytes:
    return _U64_U64_U8.pack(death, birth, table) + prefix


def dead_parts(key: bytes) -> tuple[Epoch, Epoch, Table, bytes]:
    """(death, birth, table, prefix) of a dead key; for an extent's lifetime the prefix is its 8-byte id."""
    if len(key) <= _U64_U64_U8.size:
        raise malformed(Table.DEAD, key)
    death, birth, table = _U64_U64_U8.unpack_from(key)
    return Epoch(death), Epoch(birth), _table(Table.DEAD, key, table), key[17:]


def cell(death: int, birth: int) -> bytes:
    return _U64_U64.pack(death, birth)


def cell_parts(key: bytes) -> tuple[Epoch, Epoch]:
    death, birth = _two(Table.CELL, key)
    return Epoch(death), Epoch(birth)


def orphan(ino: int) -> bytes:
    return u64(ino)


def reclaim(number: int) -> bytes:
    return u64(number)


def destroy(number: int) -> bytes:
    return u64(number)


def punch(txg: int, extent: int) -> bytes:
    return _U64_U64.pack(txg, extent)


def punch_parts(key: bytes) -> tuple[Txg, ExtentId]:
    txg, extent = _two(Table.PUNCH, key)
    return Txg(txg), ExtentId(extent)


def shared(extent: int) -> bytes:
    return u64(extent)


def segment(number: int) -> bytes:
    return u64(number)


def extent_id(segment_number: int, block: int) -> ExtentId:
    return ExtentId(segment_number << 32 | block)


def extent_segment(extent: int) -> int:
    return extent >> 32


def extent_offset(extent: int) -> int:
    """Where the extent begins in its segment, in bytes."""
    return (extent & 0xFFFFFFFF) << 12


def after(prefix: bytes) -> bytes:
    """The least key above every key that begins with `prefix` (which must not be all 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def _two(table: Table, key: bytes) -> tuple[int, int]:
    if len(key) != _U64_U64.size:
        raise malformed(table, key)
    first, second = _U64_U64.unpack(key)
    return first, second


def _table(of: Table, key: bytes, number: int) -> Table:
    table = _TABLES.get(number)
    if table is None:
        raise ForeignStore(
            f"row {of.name.lower()}/{key.hex()} is about table {number}, which this tzfs does not know",
            hint="a newer tzfs wrote it; use that one",
        )
    return table


def malformed(table: Table, key: bytes) -> CorruptionError:
    return CorruptionError(f"damaged key {table.name.lower()}/{key.hex()}: not of that form")
