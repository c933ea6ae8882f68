"""What of a file's contents has changed since the last commit, in memory.

A written chunk has three layers, each read above the one before it:

    slices (in extents)  <-  flushing (frozen, being written by a job)  <-  dirty (written since)

A `Contents` is in `head.contents` exactly while it may differ from its rows.

Invariant: flushed as it stands, a chunk has at most `SLICES_MAX` slices.  Before a write would give it more, all of it
is taken into `dirty` as one piece (`contents`).
"""

from __future__ import annotations

from tzfs.engine import slices
from tzfs.engine.buffers import Buffer
from tzfs.engine.reads import ReadPlan
from tzfs.format.keys import DataId, ExtentId, Ino
from tzfs.limits import PAGE_BYTES, SLICES_MAX
from tzfs.store.interface import PayloadReader

CHUNK_INDEX_MAX = 1 << 52  # above every chunk of the largest file


class Chunk:
    """One chunk with its layers.  `base` is what its newest row says, `fresh` the extents written since.

    None as its base: all of it was overwritten before anybody looked at the row, which is left to publishing.
    `accepted` is what of `head.dirty_bytes` stands for it.
    """

    __slots__ = ("accepted", "base", "changed", "dirty", "flushing", "fresh", "slices")

    def __init__(self, base: slices.Slices | None) -> None:
        self.base = base
        self.slices = base or ()
        self.changed = False
        self.dirty: Buffer | None = None
        self.flushing: Buffer | None = None
        self.fresh: dict[ExtentId, int] = {}
        self.accepted = 0

    def count(self) -> int:
        """Brings `accepted` up to date; by how much it grew."""
        before = self.accepted
        if self.dirty is None:
            self.accepted = 0
        else:
            self.accepted = self.dirty.disk_bytes
            if self.flushing is not None or (self.slices and self.slices[0].embedded):
                self.accepted += PAGE_BYTES  # what lies in the record may get an extent beside it
        return self.accepted - before

    def crowded_by(self, lo: int, hi: int) -> bool:
        """Whether a write to [lo, hi) may leave it with too many slices."""
        layers = [buffer.spans for buffer in (self.flushing, self.dirty) if buffer is not None]
        spans = sum(map(len, layers)) + 1
        if 2 * spans + len(self.slices) <= SLICES_MAX:  # each leaves at most one more of what it cuts, and itself
            return False
        pieces = [(s.offset, s.offset + s.length) for s in self.slices]
        for layer in (*layers, [(lo, hi)]):
            pieces = slices.overlaid(pieces, layer)
        return len(pieces) > SLICES_MAX


def read_into_buffer(payload: PayloadReader, kept: slices.Slices) -> Buffer:
    """What the slices hold, as if it had just been written.  `CorruptionError`, `SegmentGone`."""
    buffer = Buffer()
    if kept:
        plan = ReadPlan(payload, kept[-1].offset + kept[-1].length)
        plan.add_slices(0, kept, 0, plan.size)
        found = memoryview(plan.execute())
        for s in kept:
            buffer.write(s.offset, found[s.offset : s.offset + s.length])
    return buffer


class Contents:
    """The changed contents of one data id.  `inline` is None where they are not, or not yet, held as inline bytes."""

    __slots__ = ("chunks", "data", "inline", "inline_changed", "ino")

    def __init__(self, ino: Ino, data: DataId) -> None:
        self.ino, self.data = ino, data
        self.inline: bytearray | None = None
        self.inline_changed = False
        self.chunks: dict[int, Chunk] = {}
