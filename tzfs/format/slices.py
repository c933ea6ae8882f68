"""Slices: the bodies of `chunk`, and of extended attributes, which say where payload lies and how it is encoded.

`FORMAT.md`, "Slices" and "Extended attributes", is the specification.  What is packed here is read back as it was; a
body that cannot have been packed here raises `CorruptionError`, one of a kind that only a newer tzfs writes
`ForeignStore`.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tzfs.format.keys import Epoch, ExtentId, Table
from tzfs.format.records import damaged, foreign

CODEC_RAW: Final = 0
CODEC_LZ4: Final = 1
CODEC_ZSTD: Final = 2
CODECS: Final = (CODEC_RAW, CODEC_LZ4, CODEC_ZSTD)  # those that this tzfs knows
EMBEDDED_KIND: Final = 128  # the first byte of a chunk whose payload is in the record itself
EMBEDDED_MARK: Final = bytes((EMBEDDED_KIND,))
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


Sizes = tuple[int, int]  # of an extent: its stored bytes, and its raw bytes
_EMBEDDED: Final = struct.Struct(">BIIIIB")
_EMBEDDED_RAW_BYTES: Final = struct.Struct(">13xI")
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
    if body[:1] == EMBEDDED_MARK and table == Table.CHUNK:
        return (_unpack_embedded(table, key, body),)
    if body[:1] >= b"\x80":
        raise foreign(table, key, f"has contents of kind {body[0]}, which this tzfs does not know")
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


def embedded_saved(row: bytes, body: int = 0) -> int:
    """By how much the payload in a chunk record is shorter than it was; 0 of one whose payload lies in extents.

    `row` has the record's body from byte `body` on, which need not have been verified.
    """
    if len(row) < body + _EMBEDDED.size or row[body] != EMBEDDED_KIND:
        return 0
    raw_bytes: int = _EMBEDDED_RAW_BYTES.unpack_from(row, body)[0]
    return max(0, raw_bytes - (len(row) - body - _EMBEDDED.size))


def extents_of(table: int, key: bytes, body: bytes) -> list[tuple[tuple[ExtentId, Epoch], Sizes]]:
    """The extent lifetimes that the slices of a chunk record name, with the sizes of each."""
    if body[:1] == EMBEDDED_MARK and table == Table.CHUNK and len(body) > _EMBEDDED.size:
        return []
    if body[:1] == b"\1" and len(body) >= 1 + _SLICE.size:  # nearly always one: a third of the time
        _, _, extent, birth, _, raw, stored, _, sums = _SLICE.unpack_from(body, 1)
        if len(body) == 1 + _SLICE.size + 4 * sums:
            return [((ExtentId(extent), Epoch(birth)), (stored, raw))]
    slices = unpack_slices(table, key, body)
    return list({(s.extent, s.birth): (s.stored_bytes, s.raw_bytes) for s in slices if not s.embedded}.items())


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
        raise foreign(Table.XATTR, key, f"has a value of kind {body[0]}, which this tzfs does not know")
    raise damaged(Table.XATTR, key, "too short")


def slices_of(table: Table, prefix: bytes, body: bytes | None) -> tuple[Slice, ...]:
    """The slices in the body of a version; none of a tombstone or a table without."""
    if body is None:
        return ()
    if table is Table.CHUNK:
        return unpack_slices(table, prefix, body)
    if table is Table.XATTR:
        value = unpack_xattr(prefix, body)
        return () if isinstance(value, bytes) else value
    return ()


def with_slices(table: Table, new: tuple[Slice, ...]) -> bytes:
    """The body of a version that has these slices."""
    return pack_slices(new) if table is Table.CHUNK else pack_xattr(new)
