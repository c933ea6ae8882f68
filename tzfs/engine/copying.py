"""Copying inherited payload into a clone, where a version is made whose slices must name the clone's own extents."""

from __future__ import annotations

from tzfs.engine.head import Head
from tzfs.engine.reads import ReadPlan
from tzfs.format.keys import Epoch
from tzfs.format.records import CODEC_RAW, Slice
from tzfs.native import page_sums


def copied(head: Head, found: tuple[Slice, ...], at: Epoch) -> tuple[Slice, ...]:
    """What the inherited slices hold, in one extent of the head's own that is born at `at`; holes become zeros.

    The payload is written, and durable with the next commit; that the lifetime begins is the caller's to say.
    `CorruptionError` where it cannot be read.
    """
    size = max(s.offset + s.length for s in found)
    plan = ReadPlan(head.payload, size)
    plan.add_slices(0, found, 0, size)
    raw = plan.execute()
    extent = head.payload.allocate(size)
    try:
        head.payload.write([(extent, raw)])
    except BaseException:
        head.unused_extents.append((extent, size))
        raise
    return (Slice(0, size, extent, at, 0, size, size, CODEC_RAW, page_sums(raw)),)
