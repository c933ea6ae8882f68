"""Every function of `tzfs.native` in plain Python, bit-identical: what the C is tested against."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

Buffer = bytes | bytearray | memoryview

FNV_OFFSET: Final = 0xCBF29CE484222325
FNV_PRIME: Final = 0x100000001B3
MASK: Final = (1 << 64) - 1
PAGE_BYTES: Final = 4096
INODE: Final = struct.Struct(">IIIIQQQQQQQIBQ")


def fnv1a64(data: bytes, seed: int = FNV_OFFSET) -> int:
    for byte in data:
        seed = ((seed ^ byte) * FNV_PRIME) & MASK
    return seed


def fnv1a32(data: bytes) -> int:
    full = fnv1a64(data)
    return full >> 32 ^ full & 0xFFFFFFFF


def record_sum(table: int, key: bytes, version: int, body: bytes) -> int:
    return fnv1a32(bytes((table,)) + len(key).to_bytes(2, "big") + key + bytes((version,)) + body)


def verify_many(table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        if len(value) < 5 or record_sum(table, key, value[0], value[5:]) != int.from_bytes(value[1:5], "big"):
            return i
    return -1


def seal_many(table: int, version: int, keys: Sequence[bytes], bodies: Sequence[bytes]) -> list[bytes]:
    pairs = zip(keys, bodies, strict=True)
    return [struct.pack(">BI", version, record_sum(table, key, version, body)) + body for key, body in pairs]


def decode_inodes(table: int, keys: Sequence[bytes], values: Sequence[bytes]) -> list[tuple[int, ...]]:
    bad = verify_many(table, keys, values)
    for i, value in enumerate(values):
        if i == bad or value[0] != 1 or len(value) < 5 + INODE.size:
            raise ValueError(i)
    return [INODE.unpack_from(value, 5) for value in values]


def page_sums(data: Buffer) -> bytes:
    import xxhash  # a test's dependency: the C has the header

    view = memoryview(data)
    pages = (view[at : at + PAGE_BYTES] for at in range(0, len(view), PAGE_BYTES))
    return b"".join((xxhash.xxh3_64_intdigest(page) & 0xFFFFFFFF).to_bytes(4, "big") for page in pages)


def pages_match(data: Buffer, sums: bytes) -> int:
    found = page_sums(data)
    if len(found) != len(sums):
        raise ValueError(f"{len(sums)} bytes of sums for {len(data)} bytes of data")
    return next((at // 4 for at in range(0, len(found), 4) if found[at : at + 4] != sums[at : at + 4]), -1)


def is_zero(data: Buffer) -> bool:
    return not any(bytes(data))


def gather(target: bytearray | memoryview, pieces: Sequence[tuple[int, Buffer]]) -> None:
    end = 0
    for offset, piece in pieces:
        if offset < end or offset + len(piece) > len(target):
            raise ValueError("pieces must ascend, not overlap and end within the target")
        end = offset + len(piece)
    target[:] = bytes(len(target))
    for offset, piece in pieces:
        target[offset : offset + len(piece)] = piece
