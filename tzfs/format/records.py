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
from tzfs.format.keys import DataId, Epoch, Ino, Table
from tzfs.native import record_sum
from tzfs.native import seal_many as native_seal_many
from tzfs.native import verify_many as native_verify_many

RECORD_VERSION: Final = 1
TOMBSTONE_BIT: Final = 0x80
ENVELOPE_BYTES: Final = 5
SEAL_MANY_MIN: Final = 6  # records; for fewer one by one is faster

_ENVELOPE: Final = struct.Struct(">BI")
_SUMS: Final = struct.Struct(">2q")
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


def pack_sums(charge: int, saved: int) -> bytes:
    """What a clone does not inherit any more from an epoch on; either may be negative."""
    return _SUMS.pack(charge, saved)


def unpack_sums(key: bytes, body: bytes) -> tuple[int, int]:
    if len(body) != _SUMS.size:
        raise damaged(Table.SYS, key, "wrong length")
    charge, saved = _SUMS.unpack(body)
    return charge, saved


def tombstone(table: int, key: bytes) -> bytes:
    """The value that says: nothing is here from this version on."""
    return _ENVELOPE.pack(_TOMBSTONE_VERSION, record_sum(table, key, _TOMBSTONE_VERSION, b""))


def is_tombstone(value: bytes) -> bool:
    """Whether the value says so, verified or not; one without a version byte says nothing."""
    return value[:1] >= b"\x80"


class Elsewhere(bytes):
    """A stored value that is shown under another key than `sealed`, with which it was sealed."""

    sealed: bytes


def unseal(table: int, key: bytes, value: bytes) -> bytes | None:
    """The body of a stored value, or None for a tombstone.

    Raises `CorruptionError` where the checksum, the length or the version does not fit, naming table and key.
    """
    if type(value) is not bytes and isinstance(value, Elsewhere):
        key = value.sealed
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
            raise foreign(table, key, f"has version {version & ~TOMBSTONE_BIT}, this tzfs knows {RECORD_VERSION}")
    raise damaged(table, key)


def unseal_many(table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> list[bytes | None]:
    """`unseal` of each: a third of its cost.  Raises for the first that it would raise for."""
    if len(keys) < SEAL_MANY_MIN or native_verify_many(table, keys, values) >= 0:
        return [unseal(table, key, value) for key, value in zip(keys, values, strict=True)]
    return [
        value[ENVELOPE_BYTES:] if value[0] == RECORD_VERSION else unseal(table, key, value)
        for key, value in zip(keys, values, strict=True)
    ]


def damaged(table: int, key: bytes, why: str = "checksum does not match") -> CorruptionError:
    return CorruptionError(f"damaged record {_name(table, key)}: {why}")


def foreign(table: int, key: bytes, what: str) -> ForeignStore:
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


class UnreadableInode(Inode):
    """What the entry that names it tells of an inode whose record is damaged: number and type; 0 where the entry is."""

    __slots__ = ()

    def __init__(self, ino: Ino, kind: int) -> None:
        super().__init__(ino, kind << 12, 0, 0, 1, 0, DataId(0), 0, 0, 0, 0, 0, 0, 0, Ino(0), b"")


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
    """How many versions and extent lifetimes share one (death, birth), the bytes charged to them, and what compression
    has saved of these."""

    number: int
    bytes: int
    saved: int = 0


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
    plain = _PLAIN[table]
    if len(body) == plain.size:
        return plain.unpack(body), 0
    if len(body) != plain.size + _SAVED.size:
        raise damaged(table, key, "wrong length")
    (saved,) = _SAVED.unpack_from(body, plain.size)
    if not saved:
        raise damaged(table, key, "it says that nothing is saved, which goes without saying")
    return plain.unpack_from(body), saved


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
