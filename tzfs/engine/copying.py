"""Copying inherited payload into a clone, where a version is made whose slices must name the clone's own extents."""

from __future__ import annotations

from tzfs.engine.head import Head
from tzfs.engine.reads import ReadPlan
from tzfs.format.keys import Epoch
from tzfs.format.slices import CODEC_RAW, NOWHERE, Slice
from tzfs.native import page_sums


def copied(head: Head, found: tuple[Slice, ...], at: Epoch, *, alone: bool = False) -> tuple[Slice, ...]:
    """What the inherited slices hold, in one extent of the head's own that is born at `at`; holes become zeros.

    `alone`: they are all there is of a chunk, and may lie in its record.

    The payload is written, and durable with the next commit; that the lifetime begins is the caller's to say.
    `CorruptionError` where it cannot be read.
    """
    size = max(s.offset + s.length for s in found)
    plan = ReadPlan(head.payload, size)
    plan.add_slices(0, found, 0, size)
    return stored_as(head, plan.execute(), at, alone=alone)


def stored_as(head: Head, raw: bytes, at: Epoch, *, alone: bool = False) -> tuple[Slice, ...]:
    """Contents in one extent born at `at`, compressed as those that are written; `alone` as for `copied`."""
    size = len(raw)
    codec, stored, sums, embedded = head.settings.compression.encode(head.compressor, raw, alone=alone)
    head.compressed |= codec != CODEC_RAW
    if embedded:
        return (Slice(0, size, *NOWHERE, 0, size, len(embedded), codec, b"", embedded),)
    extent = head.payload.allocate(len(stored))
    try:
        head.payload.write([(extent, stored)])
    except BaseException:
        head.unused_extents.append((extent, len(stored)))
        raise
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
