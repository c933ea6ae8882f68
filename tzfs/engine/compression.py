"""How payload is stored smaller than it is: which codec, when, and how it is read again.

A piece of a chunk is compressed where that saves a page of its extent.  A piece that is all there is of its chunk, and
becomes at most `EMBEDDED_BYTES_MAX` bytes, needs no extent: it lies in the chunk's record.  Whatever does not become
smaller is stored raw, so that reading a part of it reads no more than that part.

What has been decompressed is kept for a while: many small reads of one extent then decompress it once.  An extent's id
is never given twice, so nothing kept can be of another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from tzfs.engine.foreign import location
from tzfs.errors import CorruptionError, InvalidArgument
from tzfs.format.slices import CODEC_LZ4, CODEC_RAW, CODEC_ZSTD, CODECS, EMBEDDED_BYTES_MAX, Slice
from tzfs.limits import DECODED_BYTES_MAX, EXTENT_BYTES_MAX, PAGE_BYTES
from tzfs.native import Buffer
from tzfs.native.codecs import Compressor, decompress
from tzfs.store.interface import PayloadReader

ZSTD_LEVEL_DEFAULT: Final = 3


# How a piece of payload is stored: the codec, what goes into an extent and its sums, what goes into its chunk's record.
Encoded = tuple[int, Buffer, bytes, bytes]


class Compression(NamedTuple):
    """What new payload is compressed with; `level` is zstd's."""

    codec: int = CODEC_RAW
    level: int = 0

    @classmethod
    def named(cls, name: str) -> Compression:
        """By the value of the property: `off`, `lz4`, `on` for the same, `zstd`, `zstd-N`."""
        if name == "off":
            return cls()
        if name in ("on", "lz4"):
            return cls(CODEC_LZ4)
        codec, _, level = name.partition("-")
        if codec == "zstd" and (level.isdecimal() or name == codec):
            return cls(CODEC_ZSTD, int(level or ZSTD_LEVEL_DEFAULT))
        raise InvalidArgument(f"there is no compression {name!r}")

    def encode(self, compressor: Compressor, raw: Buffer, *, alone: bool) -> Encoded:
        """How `raw` is stored, in an extent or in its chunk's record; `alone`: it is all there is of its chunk, and may
        lie in its record."""
        codec, level = self
        size, room = len(raw), 0
        if codec != CODEC_RAW and size:
            room = (size - 1) // PAGE_BYTES * PAGE_BYTES  # one page less than it takes raw
            if alone and room < EMBEDDED_BYTES_MAX:
                room = min(size - 1, EMBEDDED_BYTES_MAX)
        stored, sums = compressor.encode(codec, level, raw, room)
        if not stored:
            return CODEC_RAW, raw, sums, b""
        if alone and len(stored) <= EMBEDDED_BYTES_MAX:
            return codec, b"", b"", stored
        return codec, stored, sums, b""


OFF: Final = Compression()


class Decoded:
    """What was decompressed last, by extent, up to `DECODED_BYTES_MAX`.  Used on any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int, int, bytes], bytearray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, s: Slice) -> bytearray | None:
        """The raw bytes of the slice's extent, if they are here.  Not to be changed."""
        key = (s.extent, s.codec, s.raw_bytes, s.sums)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, s: Slice, raw: bytearray) -> None:
        """Keeps the raw bytes of the slice's extent, in place of those longest unused."""
        key = (s.extent, s.codec, s.raw_bytes, s.sums)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = raw
                self._bytes += len(raw)
            while self._bytes > DECODED_BYTES_MAX:
                self._bytes -= len(self._kept.popitem(last=False)[1])


_decoded: Final[WeakKeyDictionary[PayloadReader, Decoded]] = WeakKeyDictionary()


def decoded_of(payload: PayloadReader) -> Decoded:
    """What is kept of the extents of `payload`, for the head and all views together."""
    found = _decoded.get(payload)
    return _decoded.setdefault(payload, Decoded()) if found is None else found


def load(payload: PayloadReader, s: Slice, decoded: Decoded, *, wait: bool) -> bytearray | None:
    """The raw bytes of the whole extent that a compressed slice is of; None where that takes the disk and `wait` is
    False.  `CorruptionError` unless they are what was stored."""
    if s.codec not in CODECS:
        raise CorruptionError(f"{_place(s)} is stored with codec {s.codec}, which this tzfs does not know")
    if not 0 < s.raw_bytes <= EXTENT_BYTES_MAX or not 0 < s.stored_bytes < s.raw_bytes:
        raise CorruptionError(f"{_place(s)} cannot have {s.raw_bytes} bytes, stored in {s.stored_bytes}")
    if s.embedded:
        return _decompressed(s, s.embedded, None)
    found = decoded.get(s)
    if found is not None:
        return found
    stored = bytearray(s.stored_bytes)
    if not payload.read_into(s.extent, 0, memoryview(stored), wait=wait):
        return None
    raw = _decompressed(s, stored, s.sums)
    decoded.put(s, raw)
    return raw


def _decompressed(s: Slice, stored: Buffer, sum_: bytes | None) -> bytearray:
    try:
        return decompress(s.codec, stored, s.raw_bytes, sum_)
    except ValueError as error:
        raise CorruptionError(f"damaged payload: {_place(s)} {error}") from None


def _place(s: Slice) -> str:
    if s.embedded:
        return "what is in the record of a chunk"
    return location(s.extent)
