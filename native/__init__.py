"""What is done in C: checksums, payload, descriptors.  Each function has a bit-identical reference in `reference`.

The C functions are pure over (pointer, length); what could be out of bounds is checked here, in Python.  `bytes` go to
C as they are; other buffers cost a `from_buffer` more.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, Protocol, cast

from tzfs.native import _native

Buffer = bytes | bytearray | memoryview
UNCHANGING: Final = (bytes, _native.ffi.buffer)  # who has a view of one may keep it: ours of C's memory are not written

FNV_OFFSET: Final = 0xCBF29CE484222325
PAGE_BYTES: Final = 4096
_INODE_COLUMNS: Final = 14
_ENVELOPE_BYTES: Final = 5


class _Lib(Protocol):
    def tzfs_fnv1a64(self, data: bytes, length: int, seed: int, /) -> int: ...
    def tzfs_record_sum(
        self, table: int, key: bytes, key_length: int, version: int, body: bytes, body_length: int, /
    ) -> int: ...
    def tzfs_verify_many(
        self, table: int, keys: bytes, key_lengths: object, values: bytes, value_lengths: object, count: int, /
    ) -> int: ...
    def tzfs_decode_inodes(
        self,
        table: int,
        keys: bytes,
        key_length: int,
        values: bytes,
        value_lengths: object,
        count: int,
        columns: object,
        /,
    ) -> int: ...
    def tzfs_seal_many(
        self,
        table: int,
        version: int,
        keys: bytes,
        key_lengths: object,
        bodies: bytes,
        body_lengths: object,
        count: int,
        sealed: object,
        /,
    ) -> None: ...
    def tzfs_page_sums(self, data: object, length: int, sums: object, /) -> None: ...
    def tzfs_pages_match(self, data: object, length: int, sums: bytes, /) -> int: ...
    def tzfs_is_zero(self, data: object, length: int, /) -> int: ...
    def tzfs_gather(
        self, target: object, length: int, pieces: object, offsets: object, lengths: object, count: int, /
    ) -> None: ...


_lib: Final = cast(_Lib, _native.lib)
_from_buffer = _native.ffi.from_buffer
_new = _native.ffi.new
_record_sum = _lib.tzfs_record_sum


def fnv1a64(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    return _lib.tzfs_fnv1a64(data, len(data), FNV_OFFSET)


def fnv1a32(data: bytes) -> int:
    """FNV-1a, 64 bits folded to 32: the high half xor the low."""
    full = fnv1a64(data)
    return full >> 32 ^ full & 0xFFFFFFFF


def record_sum(table: int, key: bytes, version: int, body: bytes) -> int:
    """A record's checksum: FNV-1a over table, key length, key, version and body, folded to 32 bits."""
    return _record_sum(table, key, len(key), version, body, len(body))


def _lengths(parts: Sequence[bytes]) -> object:
    return _from_buffer("uint32_t[]", array("I", map(len, parts)))


def verify_many(table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    """The index of the first value whose envelope does not match, or -1."""
    if len(keys) != len(values):
        raise ValueError(f"{len(keys)} keys for {len(values)} values")
    return _lib.tzfs_verify_many(table, b"".join(keys), _lengths(keys), b"".join(values), _lengths(values), len(keys))


def seal_many(table: int, version: int, keys: Sequence[bytes], bodies: Sequence[bytes]) -> list[bytes]:
    """For each key and body the value to store: version, checksum, body."""
    if len(keys) != len(bodies):
        raise ValueError(f"{len(keys)} keys for {len(bodies)} bodies")
    lengths = array("I", map(len, bodies))
    joined = b"".join(bodies)
    sealed = bytearray(len(joined) + _ENVELOPE_BYTES * len(keys))
    _lib.tzfs_seal_many(
        table,
        version,
        b"".join(keys),
        _lengths(keys),
        joined,
        _from_buffer("uint32_t[]", lengths),
        len(keys),
        _from_buffer("uint8_t[]", sealed),
    )
    raw, out, at = bytes(sealed), [], 0
    for length in lengths:
        end = at + _ENVELOPE_BYTES + length
        out.append(raw[at:end])
        at = end
    return out


def decode_inodes(table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> list[tuple[int, ...]]:
    """The 14 fixed fields of each inode record, verified; signed ones as their two's complement.

    Raises `ValueError` with the index of the first that is damaged or not of version 1.
    """
    if len(keys) != len(values) or len({len(key) for key in keys}) > 1:
        raise ValueError("keys and values must be as many, and the keys of one length")
    if not keys:
        return []
    columns = array("Q", bytes(8 * _INODE_COLUMNS * len(keys)))
    bad = _lib.tzfs_decode_inodes(
        table,
        b"".join(keys),
        len(keys[0]),
        b"".join(values),
        _lengths(values),
        len(keys),
        _from_buffer("uint64_t[]", columns),
    )
    if bad >= 0:
        raise ValueError(bad)
    fields = iter(columns)
    return list(zip(*[fields] * _INODE_COLUMNS, strict=True))


def page_sums(data: Buffer) -> bytes:
    """For each 4,096-byte page of `data`, the last of which may be short: XXH3-64's low 32 bits, big-endian."""
    sums = bytearray(4 * ((len(data) + PAGE_BYTES - 1) // PAGE_BYTES))
    if sums:
        _lib.tzfs_page_sums(_from_buffer("uint8_t[]", data), len(data), _from_buffer("uint8_t[]", sums))
    return bytes(sums)


def pages_match(data: Buffer, sums: bytes) -> int:
    """The first page whose sum is another than `sums` says, or -1."""
    if len(sums) != 4 * ((len(data) + PAGE_BYTES - 1) // PAGE_BYTES):
        raise ValueError(f"{len(sums)} bytes of sums for {len(data)} bytes of data")
    return _lib.tzfs_pages_match(_from_buffer("uint8_t[]", data), len(data), sums) if len(data) else -1


def is_zero(data: Buffer) -> bool:
    """Whether all bytes are zero."""
    return not len(data) or bool(_lib.tzfs_is_zero(_from_buffer("uint8_t[]", data), len(data)))


def gather(target: bytearray | memoryview, pieces: Sequence[tuple[int, Buffer]]) -> None:
    """Copies each (offset, bytes) into `target` and zeros the rest; `ValueError` unless they ascend within it."""
    end = 0
    for offset, piece in pieces:
        if offset < end or offset + len(piece) > len(target):
            raise ValueError("pieces must ascend, not overlap and end within the target")
        end = offset + len(piece)
    if not len(target):
        return
    held = [_from_buffer("uint8_t[]", piece) for _, piece in pieces]
    _lib.tzfs_gather(
        _from_buffer("uint8_t[]", target, require_writable=True),
        len(target),
        _new("uint8_t *[]", held),
        _new("size_t[]", [offset for offset, _ in pieces]),
        _new("size_t[]", [len(piece) for _, piece in pieces]),
        len(pieces),
    )
