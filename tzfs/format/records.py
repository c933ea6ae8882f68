"""The values of every table: an envelope of version and checksum, and a body for each table.

    value = version u8 ‖ checksum u32 ‖ body

The checksum is FNV-1a over table, key, version and body, folded to 32 bits (`tzfs.native.record_sum`), so a record
that lands under another key or in another table is noticed.  Bit 7 of the version byte marks a tombstone; its body is
empty.  All integers are big-endian.  `FORMAT.md`, "Records", is the specification.

Invariant: `decode(encode(x)) == x` for every record.  A value that fails any check raises `CorruptionError`; an intact
one of a version or kind that only a newer tzfs writes, `ForeignStore`; nothing raises anything else.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tzfs.errors import CorruptionError, ForeignStore, LimitReached
from tzfs.format.keys import DataId, Epoch, ExtentId, Ino, Table
from tzfs.native import record_sum
from tzfs.native import seal_many as native_seal_many

RECORD_VERSION: Final = 1
TOMBSTONE_BIT: Final = 0x80
ENVELOPE_BYTES: Final = 5
SEAL_MANY_MIN: Final = 6  # records; for fewer one by one is faster

_ENVELOPE: Final = struct.Struct(">BI")
_TOMBSTONE_VERSION: Final = RECORD_VERSION | TOMBSTONE_BIT


def seal(table: int, key: bytes, body: bytes) -> bytes:
    """The value to store under `key`: envelope and body."""
    return _ENVELOPE.pack(RECORD_VERSION, record_sum(table, key, RECORD_VERSION, body)) + body


def seal_many(table: int, rows: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """(key, value to store) for each (key, body)."""
    if len(rows) < SEAL_MANY_MIN:
        return [(key, seal(table, key, body)) for key, body in rows]
    keys = [key for key, _ in rows]
    return list(zip(keys, native_seal_many(table, RECORD_VERSION, keys, [body for _, body in rows]), strict=True))


def tombstone(table: int, key: bytes) -> bytes:
    """The value that says: nothing is here from this version on."""
    return _ENVELOPE.pack(_TOMBSTONE_VERSION, record_sum(table, key, _TOMBSTONE_VERSION, b""))


def is_tombstone(value: bytes) -> bool:
    """Whether the value says so, verified or not; one without a version byte says nothing."""
    return value[:1] >= b"\x80"


def unseal(table: int, key: bytes, value: bytes) -> bytes | None:
    """The body of a stored value, or None for a tombstone.

    Raises `CorruptionError` where the checksum, the length or the version does not fit, naming table and key.
    """
    body = value[ENVELOPE_BYTES:]
    if len(value) >= ENVELOPE_BYTES:
        version, found = _ENVELOPE.unpack_from(value)
        if record_sum(table, key, version, body) == found:
            if version == RECORD_VERSION:
                return body
            if version == _TOMBSTONE_VERSION and not body:
                return None
            if version == _TOMBSTONE_VERSION:
                raise damaged(table, key, "a tombstone with a body")
            raise _foreign(table, key, f"has version {version & ~TOMBSTONE_BIT}, this tzfs knows {RECORD_VERSION}")
    raise damaged(table, key)


def damaged(table: int, key: bytes, why: str = "checksum does not match") -> CorruptionError:
    return CorruptionError(f"damaged record {_name(table, key)}: {why}")


def _foreign(table: int, key: bytes, what: str) -> ForeignStore:
    return ForeignStore(f"record {_name(table, key)} {what}", hint="a newer tzfs wrote it; use that one")


def _name(table: int, key: bytes) -> str:
    try:
        return f"{Table(table).name.lower()}/{key.hex()}"
    except ValueError:
        return f"{table}/{key.hex()}"


# -- inode ---------------------------------------------------------------------------------------------------------

FLAG_INLINE: Final = 1  # contents (if any) are in `inline`, not in `chunk`
FLAG_XATTR: Final = 2  # the inode has, or once had, extended attributes


@dataclass(slots=True)
class Inode:
    """An inode as it stands in memory and, packed, at rest.

    `parent` and `name` are set while the inode has had one name only; afterwards `parent` is 0, `name` empty, and its
    names are rows of `link`.  For a directory `size` is its number of entries and `data` is 0.  Times are nanoseconds
    since the epoch.  Whoever gets one from the engine must not change it.
    """

    ino: Ino
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    data: DataId
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    flags: int
    chunk_shift: int
    parent: Ino
    name: bytes


_INODE: Final = struct.Struct(">IIIIQQQqqqqIBQ")
INODE_BYTES: Final = _INODE.size


def pack_inode(i: Inode) -> bytes:
    return (
        _INODE.pack(
            i.mode,
            i.uid,
            i.gid,
            i.nlink,
            i.size,
            i.data,
            i.rdev,
            i.atime_ns,
            i.mtime_ns,
            i.ctime_ns,
            i.btime_ns,
            i.flags,
            i.chunk_shift,
            i.parent,
        )
        + i.name
    )


def unpack_inode(ino: Ino, key: bytes, body: bytes) -> Inode:
    if len(body) < INODE_BYTES:
        raise damaged(Table.INODE, key, "too short")
    return Inode(*(ino, *_INODE.unpack_from(body), body[INODE_BYTES:]))


# -- directory entries -----------------------------------------------------------------------------------------------

_DIRENT: Final = struct.Struct(">QB")


def pack_dirent(ino: int, kind: int) -> bytes:
    """`kind` is the file type as in `st_mode >> 12` (DT_* of readdir)."""
    return _DIRENT.pack(ino, kind)


def unpack_dirent(key: bytes, body: bytes) -> tuple[Ino, int]:
    if len(body) != _DIRENT.size:
        raise damaged(Table.DIRENT, key, "wrong length")
    ino, kind = _DIRENT.unpack(body)
    return Ino(ino), kind


# -- contents --------------------------------------------------------------------------------------------------------

CODEC_RAW: Final = 0
CODEC_LZ4: Final = 1
CODEC_ZSTD: Final = 2
CODECS: Final = (CODEC_RAW, CODEC_LZ4, CODEC_ZSTD)  # those that this tzfs knows
EMBEDDED_KIND: Final = 128  # the first byte of a chunk whose payload is in the record itself
NOWHERE: Final = (ExtentId(0), Epoch(0))  # extent and birth of a slice that is in no extent
EMBEDDED_BYTES_MAX: Final = 4000  # with 18 bytes before it and the envelope, within a page


class Slice(NamedTuple):
    """Where `length` bytes of a chunk, from `offset` in the chunk, lie: from `extent_offset` in the raw extent.

    `birth` is that of the extent's lifetime, not of the version that holds the slice.  `raw_bytes` and `stored_bytes`
    are the whole extent's; `sums` is one XXH3 (low 32 bits) for each 4 KiB page of raw payload that the slice touches,
    the first of them page `extent_offset // 4096`; for any other codec than raw, one sum of all the stored bytes.
    `codec` is how the stored bytes are made of the raw ones: bits 0-3 compression, bits 4-7 encryption, whose nonce and
    tag are part of the stored bytes.

    Of a chunk whose payload lies in its record, not in an extent, `embedded` are the stored bytes.  Such a slice is the
    only one of its chunk, has extent and birth 0 and no sums: the record's envelope has one.
    """

    offset: int
    length: int
    extent: ExtentId
    birth: Epoch
    extent_offset: int
    raw_bytes: int
    stored_bytes: int
    codec: int
    sums: bytes
    embedded: bytes = b""


_EMBEDDED_MARK: Final = bytes((EMBEDDED_KIND,))
_EMBEDDED: Final = struct.Struct(">BIIIIB")
_SLICE: Final = struct.Struct(">IIQQIIIBH")


def pack_slices(slices: tuple[Slice, ...]) -> bytes:
    """The body of a chunk record: the number of slices, then each; ascending and disjoint.

    The number is below 128: a first byte from there on is kept for other kinds of contents.
    """
    if slices and slices[0].embedded:
        (s,) = slices
        return _EMBEDDED.pack(EMBEDDED_KIND, s.offset, s.length, s.extent_offset, s.raw_bytes, s.codec) + s.embedded
    out = [bytes((len(slices),))]
    for s in slices:
        out.append(
            _SLICE.pack(
                s.offset,
                s.length,
                s.extent,
                s.birth,
                s.extent_offset,
                s.raw_bytes,
                s.stored_bytes,
                s.codec,
                len(s.sums) // 4,
            )
        )
        out.append(s.sums)
    return b"".join(out)


def unpack_slices(table: int, key: bytes, body: bytes) -> tuple[Slice, ...]:
    if body[:1] == _EMBEDDED_MARK and table == Table.CHUNK:
        return (_unpack_embedded(table, key, body),)
    if body[:1] >= b"\x80":
        raise _foreign(table, key, f"has contents of kind {body[0]}, which this tzfs does not know")
    try:
        slices, at = [], 1
        for _ in range(body[0]):
            offset, length, extent, birth, xoff, raw, stored, codec, sums = _SLICE.unpack_from(body, at)
            at += _SLICE.size
            if at + 4 * sums > len(body):
                raise damaged(table, key, "too short")
            slices.append(
                Slice(
                    offset, length, ExtentId(extent), Epoch(birth), xoff, raw, stored, codec, body[at : at + 4 * sums]
                )
            )
            at += 4 * sums
    except (IndexError, struct.error):
        raise damaged(table, key, "too short") from None
    if at != len(body):
        raise damaged(table, key, "too long")
    return tuple(slices)


def _unpack_embedded(table: int, key: bytes, body: bytes) -> Slice:
    if len(body) <= _EMBEDDED.size:
        raise damaged(table, key, "too short")
    _, offset, length, begin, raw_bytes, codec = _EMBEDDED.unpack_from(body)
    stored = body[_EMBEDDED.size :]
    return Slice(offset, length, *NOWHERE, begin, raw_bytes, len(stored), codec, b"", stored)


def extents_of(table: int, key: bytes, body: bytes) -> list[tuple[tuple[ExtentId, Epoch], int]]:
    """The extent lifetimes that the slices of a chunk record name, with the stored bytes of each."""
    if body[:1] == b"\1" and len(body) >= 1 + _SLICE.size:  # nearly always one: a third of the time
        _, _, extent, birth, _, _, stored, _, sums = _SLICE.unpack_from(body, 1)
        if len(body) == 1 + _SLICE.size + 4 * sums:
            return [((ExtentId(extent), Epoch(birth)), stored)]
    slices = unpack_slices(table, key, body)
    return list({(s.extent, s.birth): s.stored_bytes for s in slices if not s.embedded}.items())


XATTR_INLINE: Final = 0
XATTR_EXTENTS: Final = 1


def pack_xattr(value: bytes | tuple[Slice, ...]) -> bytes:
    """An attribute's value itself, or, longer than a page allows, the slices of its payload."""
    if isinstance(value, bytes):
        return bytes((XATTR_INLINE,)) + value
    return bytes((XATTR_EXTENTS,)) + pack_slices(value)


def unpack_xattr(key: bytes, body: bytes) -> bytes | tuple[Slice, ...]:
    if body[:1] == bytes((XATTR_INLINE,)):
        return body[1:]
    if body[:1] == bytes((XATTR_EXTENTS,)):
        return unpack_slices(Table.XATTR, key, body[1:])
    if body:
        raise _foreign(Table.XATTR, key, f"has a value of kind {body[0]}, which this tzfs does not know")
    raise damaged(Table.XATTR, key, "too short")


# -- bookkeeping -----------------------------------------------------------------------------------------------------


class Reclaim(NamedTuple):
    """Chunks [lo, hi) of a data id are gone from epoch `at` on, and wait to be removed one by one."""

    data: DataId
    lo: int
    hi: int
    at: Epoch


class Destroy(NamedTuple):
    """A destroyed snapshot's rectangle: what was born in (older, snapshot] and died in (snapshot, newer].

    `older` is -1 where there is no older snapshot: below every birth, flattened rows being born at 0.
    """

    older: int
    snapshot: int
    newer: int


class Cell(NamedTuple):
    """How many versions and extent lifetimes share one (death, birth), and the bytes charged to them."""

    number: int
    bytes: int


class SegmentUse(NamedTuple):
    """What of a segment is referenced: extents and their bytes on disk, multiples of 4 KiB; and where it ends.

    What lies beyond `end` was written by a writer that never committed it.
    """

    extents: int
    bytes: int
    end: int


_PLAIN: Final = {
    Table.CELL: struct.Struct(">QQ"),
    Table.DEAD: struct.Struct(">Q"),
    Table.ORPHAN: struct.Struct(">Q"),
    Table.RECLAIM: struct.Struct(">QQQQ"),
    Table.DESTROY: struct.Struct(">qqq"),
    Table.PUNCH: struct.Struct(">Q"),
    Table.SEGMENT: struct.Struct(">QQQ"),
}


def pack_plain(table: Table, *fields: int) -> bytes:
    """The body of a record that is a fixed row of integers (cell, dead, orphan, reclaim, destroy, punch, segment)."""
    return _PLAIN[table].pack(*fields)


def unpack_plain(table: Table, key: bytes, body: bytes) -> tuple[int, ...]:
    if len(body) != _PLAIN[table].size:
        raise damaged(table, key, "wrong length")
    return _PLAIN[table].unpack(body)


_SAVED: Final = struct.Struct(">Q")


def pack_charged(table: Table, *fields: int, saved: int) -> bytes:
    """The body of a cell or dead row, with what compression has saved of its charge behind it, if anything."""
    body = pack_plain(table, *fields)
    return body + _SAVED.pack(saved) if saved else body


def unpack_charged(table: Table, key: bytes, body: bytes) -> tuple[tuple[int, ...], int]:
    """The fields of a cell or dead row, and what compression has saved of its charge."""
    plain = _PLAIN[table].size
    saved = 0
    if len(body) == plain + _SAVED.size:
        (saved,) = _SAVED.unpack_from(body, plain)
        if not saved:
            raise damaged(table, key, "it says that nothing is saved, which goes without saying")
        body = body[:plain]
    return unpack_plain(table, key, body), saved


class Shared(NamedTuple):
    """An extent that has had a second lifetime: what it is charged, its lifetimes, birth -> death, and what compression
    has saved of the charge.

    The charge is here because the `dead` rows of a shared extent are charged 0: the last lifetime gets it back.
    """

    charge: int
    lifetimes: dict[Epoch, Epoch]
    saved: int = 0


_SHARED_CHARGE: Final = struct.Struct(">Q")
_LIFETIME: Final = struct.Struct(">QQ")


def pack_shared(shared: Shared) -> bytes:
    """The charge, then (birth, death) of each lifetime, ascending; then what is saved, if anything."""
    lifetimes = shared.lifetimes
    rows = b"".join(_LIFETIME.pack(b, lifetimes[b]) for b in sorted(lifetimes))
    return _SHARED_CHARGE.pack(shared.charge) + rows + (_SAVED.pack(shared.saved) if shared.saved else b"")


def unpack_shared(key: bytes, body: bytes) -> Shared:
    if len(body) < _SHARED_CHARGE.size:
        raise damaged(Table.SHARED, key, "wrong length")
    (charge,), rows, saved = _SHARED_CHARGE.unpack_from(body), body[_SHARED_CHARGE.size :], 0
    if len(rows) % _LIFETIME.size == _SAVED.size:
        (saved,) = _SAVED.unpack(rows[-_SAVED.size :])
        rows = rows[: -_SAVED.size]
        if not saved:
            raise damaged(Table.SHARED, key, "it says that nothing is saved, which goes without saying")
    if len(rows) % _LIFETIME.size:
        raise damaged(Table.SHARED, key, "wrong length")
    return Shared(charge, {Epoch(b): Epoch(d) for b, d in _LIFETIME.iter_unpack(rows)}, saved)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot's record, under its name.

    `epoch` is S: it sees births <= S.  `inodes` and `bytes` are the filesystem's counters at that moment (`bytes`: what
    it referenced, as charged).  `properties` are the user's, `holds` the tags that keep it from being destroyed and
    when each was set, in nanoseconds; `extra` are fields of a later version.
    """

    epoch: Epoch
    guid: bytes
    created_ns: int
    txg: int
    inodes: int
    bytes: int
    properties: dict[str, str] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    extra: dict[str, object] = field(default_factory=dict)


_SNAPSHOT: Final = struct.Struct(">Q16sqQQQ")
SNAPSHOT_JSON_BYTES_MAX: Final = 4000  # with 61 bytes before it, the record stays in its page


def pack_snapshot(s: Snapshot) -> bytes:
    """`LimitReached` where properties and holds are too long together: find out before anything is changed."""
    rest = pack_json({**s.extra, "properties": s.properties, "holds": s.holds})
    if len(rest) > SNAPSHOT_JSON_BYTES_MAX:
        raise LimitReached(
            f"a snapshot's properties and holds would take {len(rest)} bytes; at most {SNAPSHOT_JSON_BYTES_MAX} fit"
        )
    return _SNAPSHOT.pack(s.epoch, s.guid, s.created_ns, s.txg, s.inodes, s.bytes) + rest


def unpack_snapshot(key: bytes, body: bytes) -> Snapshot:
    if len(body) < _SNAPSHOT.size:
        raise damaged(Table.SNAPSHOT, key, "too short")
    epoch, guid, created_ns, txg, inodes, charged = _SNAPSHOT.unpack_from(body)
    rest = unpack_json(Table.SNAPSHOT, key, body[_SNAPSHOT.size :])
    if not isinstance(rest, dict):
        raise damaged(Table.SNAPSHOT, key, "properties and holds are not an object")
    properties, holds = rest.pop("properties", None), rest.pop("holds", None)
    if not isinstance(properties, dict) or not all(isinstance(v, str) for v in properties.values()):
        raise damaged(Table.SNAPSHOT, key, "properties are not a table of strings")
    if not isinstance(holds, dict) or not all(type(v) is int for v in holds.values()):
        raise damaged(Table.SNAPSHOT, key, "holds are not a table of times")
    return Snapshot(Epoch(epoch), guid, created_ns, txg, inodes, charged, properties, holds, rest)


@dataclass(frozen=True, slots=True)
class Bookmark:
    """What is left of a snapshot to compare with: its epoch, guid, time and txg.  `extra` as for a snapshot."""

    epoch: Epoch
    guid: bytes
    created_ns: int
    txg: int
    extra: dict[str, object] = field(default_factory=dict)


_BOOKMARK: Final = struct.Struct(">Q16sqQ")


def pack_bookmark(b: Bookmark) -> bytes:
    return _BOOKMARK.pack(b.epoch, b.guid, b.created_ns, b.txg) + pack_json(b.extra)


def unpack_bookmark(key: bytes, body: bytes) -> Bookmark:
    if len(body) < _BOOKMARK.size:
        raise damaged(Table.BOOKMARK, key, "too short")
    epoch, guid, created_ns, txg = _BOOKMARK.unpack_from(body)
    rest = unpack_json(Table.BOOKMARK, key, body[_BOOKMARK.size :])
    if not isinstance(rest, dict):
        raise damaged(Table.BOOKMARK, key, "what follows is not an object")
    return Bookmark(Epoch(epoch), guid, created_ns, txg, rest)


# -- JSON bodies: the superblock, the catalog; read by people with a hex dump, and extended without a new version ----


def pack_json(value: object) -> bytes:
    """Canonical JSON: UTF-8, keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def unpack_json(table: int, key: bytes, body: bytes) -> object:
    try:
        value: object = json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise damaged(table, key, "not JSON") from None
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is Python's, not JSON")
