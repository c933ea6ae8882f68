"""Payload that lies on whole pages of memory, as what the mount reads of a large write does: it may go to the disk from
there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tzfs.format.keys import ExtentId
from tzfs.limits import PAGE_BYTES
from tzfs.native._native import ffi
from tzfs.store import segment_files, segments
from tzfs.store.interface import Buffer
from tzfs.store.segment_files import pieces_of


def paged(data: Buffer) -> memoryview:
    """A view of a copy that begins on a page."""
    memory = ffi.new("char[]", len(data) + PAGE_BYTES)
    at = memory + -int(ffi.cast("uintptr_t", memory)) % PAGE_BYTES
    owner = ffi.gc(at, lambda _: memory)  # whoever has the view has the memory
    ffi.buffer(owner, len(data))[:] = data
    return memoryview(ffi.buffer(owner, len(data))).toreadonly()


def all_direct(patch: pytest.MonkeyPatch) -> None:
    """Everything that is written to segments goes past the page cache, padded to whole pages, where the disk can."""

    def whole(run: Sequence[tuple[ExtentId, Buffer]]) -> list[memoryview]:
        data = b"".join(pieces_of(run))
        return [paged(data + bytes(-len(data) % PAGE_BYTES))]

    patch.setattr(segments, "pieces_of", whole)
    patch.setattr(segments, "UNCACHED_BYTES_MIN", PAGE_BYTES)
    patch.setattr(segment_files, "PAGED_BYTES_MIN", PAGE_BYTES)
