"""Copying inherited payload into a clone, where a version is made whose slices must name the clone's own extents."""

from __future__ import annotations

from tzfs.engine.head import Head
from tzfs.engine.reads import ReadPlan
from tzfs.format.keys import Epoch
from tzfs.format.slices import CODEC_RAW, Slice
from tzfs.native import page_sums


def copied(head: Head, found: tuple[Slice, ...], at: Epoch) -> tuple[Slice, ...]:
    """What the inherited slices hold, in one extent of the head's own that is born at `at`; holes become zeros.

    The payload is written, and durable with the next commit; that the lifetime begins is the caller's to say.
    `CorruptionError` where it cannot be read.
    """
    size = max(s.offset + s.length for s in found)
    plan = ReadPlan(head.payload, size)
    plan.add_slices(0, found, 0, size)
    return stored_as(head, plan.execute(), at)


def stored_as(head: Head, raw: bytes, at: Epoch) -> tuple[Slice, ...]:
    """Contents in one extent born at `at`, as `copied` has them."""
    size = len(raw)
    compression = head.settings.compression
    made = compression.compress(head.compressor, raw, alone=False)
    stored, sums = made or (raw, page_sums(raw))
    extent = head.payload.allocate(len(stored))
    try:
        head.payload.write([(extent, stored)])
    except BaseException:
        head.unused_extents.append((extent, len(stored)))
        raise
    head.compressed |= made is not None
    codec = CODEC_RAW if made is None else compression.codec
    return (Slice(0, size, extent, at, 0, size, len(stored), codec, sums),)


def stored_raw(head: Head, raw: bytes, at: Epoch) -> tuple[Slice, ...]:
    """The same uncompressed, for what is always read whole."""
    size = len(raw)
    extent = head.payload.allocate(size)
    try:
        head.payload.write([(extent, raw)])
    except BaseException:
        head.unused_extents.append((extent, size))
        raise
    return (Slice(0, size, extent, at, 0, size, size, CODEC_RAW, page_sums(raw)),)
