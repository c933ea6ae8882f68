"""What of a file's contents has changed since the last commit, in memory.

A written chunk has three layers, each read above the one before it:

    slices (in extents)  <-  flushing (frozen, being written by a job)  <-  dirty (written since)

A `Contents` is in `head.contents` exactly while it may differ from its rows.
"""

from __future__ import annotations

from tzfs.engine import slices
from tzfs.engine.buffers import Buffer
from tzfs.format.keys import DataId, ExtentId, Ino

CHUNK_INDEX_MAX = 1 << 52  # above every chunk of the largest file


class Chunk:
    """One chunk with its layers.  `base` is what its newest row says, `fresh` the extents written since.

    None as its base: all of it was overwritten before anybody looked at the row, which is left to publishing.
    """

    __slots__ = ("base", "changed", "dirty", "flushing", "fresh", "slices")

    def __init__(self, base: slices.Slices | None) -> None:
        self.base = base
        self.slices = base or ()
        self.changed = False
        self.dirty: Buffer | None = None
        self.flushing: Buffer | None = None
        self.fresh: dict[ExtentId, int] = {}


class Contents:
    """The changed contents of one data id.  `inline` is None where they are not, or not yet, held as inline bytes."""

    __slots__ = ("chunks", "data", "inline", "inline_changed", "ino")

    def __init__(self, ino: Ino, data: DataId) -> None:
        self.ino, self.data = ino, data
        self.inline: bytearray | None = None
        self.inline_changed = False
        self.chunks: dict[int, Chunk] = {}
