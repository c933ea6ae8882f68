"""Compression of payload in C: LZ4 blocks and zstd frames, each with the sum that is kept of what is stored.

One call compresses and sums, without the interpreter's lock.  Decompressing makes no buffer by what the bytes claim:
the caller says how long the answer is, and anything else is refused.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

import tzfs.native._native as _native
from tzfs.native import PAGE_BYTES, Buffer

RAW: Final = 0
LZ4: Final = 1
ZSTD: Final = 2
ZSTD_LEVELS: Final = range(1, 20)  # those beyond take much memory, and a second for a few chunks


class _Lib(Protocol):
    def tzfs_compressor_make(self) -> object: ...
    def tzfs_compressor_free(self, compressor: object, /) -> None: ...
    def tzfs_encode(
        self,
        compressor: object,
        codec: int,
        level: int,
        data: object,
        length: int,
        target: object,
        room: int,
        sums: object,
        /,
    ) -> int: ...
    def tzfs_decompress(
        self, codec: int, stored: object, stored_length: int, sum_: object, target: object, length: int, /
    ) -> int: ...


_lib: Final = cast(_Lib, _native.lib)
_from_buffer = _native.ffi.from_buffer
_unpack = _native.ffi.unpack
_cast = _native.ffi.cast
_NULL: Final = _native.ffi.NULL
_REFUSALS: Final = {1: "does not match its sum", 2: "is not what was compressed", 3: "has an unknown codec"}


class Compressor:
    """Compresses one piece after another.  Used by one thread at a time."""

    def __init__(self) -> None:
        self._state: object = _NULL  # of zstd, made when it is needed: a megabyte
        self._make_target(0)
        self._make_sums(1)

    def _make_target(self, room: int) -> None:
        self._target_bytes = room
        self._target = _native.ffi.new("uint8_t[]", room)
        self._target_chars = _cast("char *", self._target)

    def _make_sums(self, pages: int) -> None:
        self._sums_bytes = 4 * pages
        self._sums = _native.ffi.new("uint8_t[]", self._sums_bytes)
        self._sums_chars = _cast("char *", self._sums)

    def encode(self, codec: int, level: int, data: Buffer, room: int) -> tuple[bytes, bytes]:
        """(`data` compressed to `room` bytes at most, its sum); where it does not become so short, or `codec` is `RAW`
        or `room` 0, nothing, and the sums of the pages of `data`."""
        length = len(data)
        sums_bytes = 4 * ((length + PAGE_BYTES - 1) // PAGE_BYTES)
        if self._target_bytes < room:
            self._make_target(room)
        if self._sums_bytes < sums_bytes:
            self._make_sums(sums_bytes // 4)
        if codec == ZSTD and self._state == _NULL:
            self._make_state()
        at = data if type(data) is bytes else _from_buffer("uint8_t[]", data)
        made = _lib.tzfs_encode(self._state, codec, level, at, length, self._target, room, self._sums)
        if made:
            return _unpack(self._target_chars, made), _unpack(self._sums_chars, 4)
        return b"", _unpack(self._sums_chars, sums_bytes)

    def _make_state(self) -> None:
        made = _lib.tzfs_compressor_make()
        if made == _NULL:
            raise MemoryError("zstd")
        self._state = _native.ffi.gc(made, _lib.tzfs_compressor_free)


def decompress(codec: int, stored: Buffer, length: int, sum_: bytes | None) -> bytearray:
    """The `length` bytes that `stored` was made of; `ValueError` says why it cannot be.

    `sum_` is the sum of `stored`; None: it has been verified otherwise.
    """
    if sum_ is not None and len(sum_) != 4:
        raise ValueError(f"has {len(sum_)} bytes of sums")
    target = bytearray(length)
    refused = _lib.tzfs_decompress(
        codec,
        _from_buffer("uint8_t[]", stored),
        len(stored),
        _NULL if sum_ is None else sum_,
        _from_buffer("uint8_t[]", target),
        length,
    )
    if refused:
        raise ValueError(_REFUSALS[refused])
    return target
