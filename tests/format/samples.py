"""One sealed record of every kind, with how it is read: what the golden and the damage tests go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, pack_counters, unpack_counters
from tzfs.format.keys import DataId, Epoch, Ino, Table, Txg
from tzfs.format.records import (
    FLAG_INLINE,
    Bookmark,
    Inode,
    Shared,
    Snapshot,
    pack_bookmark,
    pack_dirent,
    pack_inode,
    pack_plain,
    pack_shared,
    pack_snapshot,
    seal,
)
from tzfs.format.slices import (
    CODEC_LZ4,
    CODEC_RAW,
    CODEC_ZSTD,
    NOWHERE,
    Slice,
    pack_slices,
    pack_xattr,
    unpack_slices,
    unpack_xattr,
)
from tzfs.format.superblock import SUPERBLOCK_KEY, Origin, Superblock, pack_superblock, unpack_superblock

GUID = bytes(range(16))
INODE = Inode(
    ino=Ino(2),
    mode=0o100644,
    uid=1000,
    gid=100,
    nlink=1,
    size=5,
    data=DataId(9),
    rdev=0,
    atime_ns=-1,
    mtime_ns=1_700_000_000_123_456_789,
    ctime_ns=2,
    btime_ns=3,
    flags=FLAG_INLINE,
    chunk_shift=17,
    parent=Ino(1),
    name=b"caf\xc3\xa9",
)
SLICES = (
    Slice(0, 4096, keys.extent_id(1, 1), Epoch(3), 0, 8192, 8192, CODEC_RAW, bytes.fromhex("00112233")),
    Slice(6000, 100, keys.extent_id(2, 7), Epoch(4), 4000, 5000, 5000, CODEC_RAW, bytes.fromhex("aabbccddeeff0011")),
)
COMPRESSED = (Slice(0, 9000, keys.extent_id(2, 9), Epoch(3), 0, 131072, 30000, CODEC_ZSTD, bytes.fromhex("00112233")),)
EMBEDDED = (Slice(0, 8000, *NOWHERE, 1000, 9000, 3, CODEC_LZ4, b"", b"abc"),)
SHARED = Shared(8192, {Epoch(3): Epoch(5), Epoch(9): keys.LIVE})
SHARED_SAVED = SHARED._replace(saved=4096)
SNAPSHOT = Snapshot(Epoch(3), GUID, 1_700_000_000_000_000_000, 12, 2, 4096, {"agent:run": "7"}, {"keep": 5})
BOOKMARK = Bookmark(Epoch(3), GUID, 1_700_000_000_000_000_000, 12)
COUNTERS = Counters(Epoch(4), Txg(12), Ino(3), DataId(10), 3, 9, 2, 1, 1, 0, 0, 8192)
SUPERBLOCK = Superblock(GUID.hex(), 1_700_000_000_000_000_000, "0.1.0", generation=2)
CLONE = Superblock.new(
    guid=GUID,
    created_ns=1,
    origin=Origin(GUID.hex(), 0x0123456789ABCDEF, GUID[::-1].hex(), Epoch(3), Ino(3), DataId(10)),
)


@dataclass(frozen=True)
class Sample:
    """A stored value, and the function that reads one: (key, value) to what it means; None for a tombstone."""

    table: Table
    key: bytes
    value: bytes
    read: Callable[[bytes, bytes], object]
    means: object


def _read(table: Table, unpack: Callable[[bytes, bytes], object]) -> Callable[[bytes, bytes], object]:
    def read(key: bytes, value: bytes) -> object:
        body = records.unseal(table, key, value)
        return None if body is None else unpack(key, body)

    return read


def _plain(table: Table) -> Callable[[bytes, bytes], object]:
    return _read(table, lambda key, body: records.unpack_plain(table, key, body))


def _sample(table: Table, key: bytes, body: bytes, unpack: Callable[[bytes, bytes], object], means: object) -> Sample:
    return Sample(table, key, seal(table, key, body), _read(table, unpack), means)


def _numbers(table: Table, key: bytes, *fields: int) -> Sample:
    return Sample(table, key, seal(table, key, pack_plain(table, *fields)), _plain(table), fields)


def _charged(table: Table, key: bytes, *fields: int, saved: int) -> Sample:
    body = records.pack_charged(table, *fields, saved=saved)
    return _sample(table, key, body, lambda key, body: records.unpack_charged(table, key, body), (fields, saved))


def _raw(key: bytes, body: bytes) -> bytes:
    return body


_BORN = keys.suffix(3)
_EXTENT = keys.extent_id(2, 7)
_INODE_KEY = keys.inode(2) + _BORN
_CHUNK_KEY = keys.chunk(9, 1) + _BORN
_XATTR_KEY = keys.xattr(2, b"user.a") + _BORN
_DIRENT_KEY = keys.dirent(1, b"a") + _BORN

SAMPLES = {
    "inode": _sample(
        Table.INODE,
        _INODE_KEY,
        pack_inode(INODE),
        lambda key, body: records.unpack_inode(Ino(2), key, body),
        INODE,
    ),
    "dirent": _sample(Table.DIRENT, _DIRENT_KEY, pack_dirent(2, 8), records.unpack_dirent, (2, 8)),
    "dirent tombstone": Sample(
        Table.DIRENT,
        _DIRENT_KEY,
        records.tombstone(Table.DIRENT, _DIRENT_KEY),
        _read(Table.DIRENT, records.unpack_dirent),
        None,
    ),
    "link": _sample(Table.LINK, keys.link(2, 1, b"a") + _BORN, b"", _raw, b""),
    "inline": _sample(Table.INLINE, keys.inline(9) + _BORN, b"hello", _raw, b"hello"),
    "chunk": _sample(
        Table.CHUNK,
        _CHUNK_KEY,
        pack_slices(SLICES),
        lambda key, body: unpack_slices(Table.CHUNK, key, body),
        SLICES,
    ),
    "chunk, compressed": _sample(
        Table.CHUNK,
        _CHUNK_KEY,
        pack_slices(COMPRESSED),
        lambda key, body: unpack_slices(Table.CHUNK, key, body),
        COMPRESSED,
    ),
    "chunk, embedded": _sample(
        Table.CHUNK,
        _CHUNK_KEY,
        pack_slices(EMBEDDED),
        lambda key, body: unpack_slices(Table.CHUNK, key, body),
        EMBEDDED,
    ),
    "xattr": _sample(Table.XATTR, _XATTR_KEY, pack_xattr(b"v"), unpack_xattr, b"v"),
    "xattr extents": _sample(Table.XATTR, _XATTR_KEY, pack_xattr(SLICES[:1]), unpack_xattr, SLICES[:1]),
    "change": _sample(Table.CHANGE, keys.change(3, Table.INODE, keys.inode(2)), b"", _raw, b""),
    "dead": _numbers(Table.DEAD, keys.dead(4, 3, Table.INODE, keys.inode(2)), 111),
    "cell": _numbers(Table.CELL, keys.cell(keys.LIVE, 3), 2, 8303),
    "dead, saved": _charged(Table.DEAD, keys.dead(4, 3, Table.EXTENT, keys.u64(_EXTENT)), 4096, saved=8192),
    "cell, saved": _charged(Table.CELL, keys.cell(4, 3), 2, 8303, saved=8192),
    "orphan": _numbers(Table.ORPHAN, keys.orphan(2), 3),
    "reclaim": _numbers(Table.RECLAIM, keys.reclaim(8), 9, 1, 1 << 52, 3),
    "destroy": _numbers(Table.DESTROY, keys.destroy(8), -1, 3, 4),
    "punch": _numbers(Table.PUNCH, keys.punch(12, _EXTENT), 5000),
    "shared": _sample(Table.SHARED, keys.shared(_EXTENT), pack_shared(SHARED), records.unpack_shared, SHARED),
    "shared, saved": _sample(
        Table.SHARED, keys.shared(_EXTENT), pack_shared(SHARED_SAVED), records.unpack_shared, SHARED_SAVED
    ),
    "segment": _numbers(Table.SEGMENT, keys.segment(2), 1, 8192, 36864),
    "snapshot": _sample(Table.SNAPSHOT, b"before", pack_snapshot(SNAPSHOT), records.unpack_snapshot, SNAPSHOT),
    "bookmark": _sample(Table.BOOKMARK, b"before", pack_bookmark(BOOKMARK), records.unpack_bookmark, BOOKMARK),
    "counters": Sample(
        Table.SYS,
        COUNTERS_KEY,
        seal(Table.SYS, COUNTERS_KEY, pack_counters(COUNTERS)),
        lambda key, value: unpack_counters(value),
        COUNTERS,
    ),
    "superblock": Sample(
        Table.SYS,
        SUPERBLOCK_KEY,
        pack_superblock(SUPERBLOCK),
        lambda key, value: unpack_superblock(value),
        SUPERBLOCK,
    ),
    "superblock of a clone": Sample(
        Table.SYS,
        SUPERBLOCK_KEY,
        pack_superblock(CLONE),
        lambda key, value: unpack_superblock(value),
        CLONE,
    ),
}
FIXED_KEY = frozenset(("counters", "superblock", "superblock of a clone"))  # their readers know the key
