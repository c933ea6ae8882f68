"""Bytes written to one chunk that are not on disk yet.

A buffer is a byte array that covers the chunk from its start to the highest byte written, and the spans of it that were
written: ascending, disjoint, not touching.  Outside the spans its bytes mean nothing.

A first write is not copied where what the caller gave is `UNCHANGING`: the buffer is that, or a view, until the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from tzfs.limits import PAGE_BYTES
from tzfs.native import UNCHANGING

SHARED_BYTES_MIN = 32 * 1024  # from here on a copy costs more than a view


class Buffer:
    """Written spans of one chunk."""

    __slots__ = ("data", "spans")

    def __init__(self) -> None:
        self.data: bytes | bytearray | memoryview = b""
        self.spans: list[tuple[int, int]] = []

    @property
    def disk_bytes(self) -> int:
        """What the spans take on disk at most: whole pages, an extent each."""
        if len(self.spans) == 1:  # nearly always
            lo, hi = self.spans[0]
            return (hi - lo + PAGE_BYTES - 1) & -PAGE_BYTES
        return sum((hi - lo + PAGE_BYTES - 1) & -PAGE_BYTES for lo, hi in self.spans)

    def write(self, offset: int, payload: bytes | bytearray | memoryview) -> None:
        """Writes `payload` at `offset` of the chunk."""
        data, spans = self.data, self.spans
        end = offset + len(payload)
        if not spans and offset == 0:
            if type(payload) is bytes:
                self.data = payload
                spans.append((0, end))
                return
            if end >= SHARED_BYTES_MIN and isinstance((view := memoryview(payload)).obj, UNCHANGING):
                self.data = view
                spans.append((0, end))
                return
        if not isinstance(data, bytearray):
            data = self.data = bytearray(data)
        if offset == len(data):
            data += payload
        else:
            if end > len(data):
                data.extend(bytes(end - len(data)))
            data[offset:end] = payload
        if spans:
            lo, hi = spans[-1]
            if offset == hi:  # the usual case: appending
                spans[-1] = (lo, end)
                return
            if offset > hi:
                spans.append((offset, end))
                return
            self._merge(offset, end)
        else:
            spans.append((offset, end))

    def _merge(self, lo: int, hi: int) -> None:
        out: list[tuple[int, int]] = []
        for a, b in self.spans:
            if b < lo or a > hi:
                out.append((a, b))
            else:
                lo, hi = min(lo, a), max(hi, b)
        out.append((lo, hi))
        out.sort()
        self.spans = out

    def over(self, older: Buffer) -> Buffer:
        """A buffer with `older`'s bytes where this one has none."""
        both = Buffer()
        for part in (older, self):
            view = memoryview(part.data)
            for lo, hi in part.spans:
                both.write(lo, view[lo:hi])
        return both

    def fill(self) -> None:
        """Makes one span of all of them, with zeros in between."""
        if len(self.spans) < 2:
            return
        assert isinstance(self.data, bytearray)  # what is not copied has one span
        for (_, end), (begin, _) in pairwise(self.spans):
            self.data[end:begin] = bytes(begin - end)
        self.spans = [(self.spans[0][0], self.spans[-1][1])]

    def truncate(self, size: int) -> None:
        """Forgets everything from `size` on."""
        self.data = bytearray(memoryview(self.data)[:size])
        self.clip(size)

    def clip(self, size: int) -> None:
        """Forgets the spans from `size` on, of bytes that somebody else is still reading."""
        self.spans = [(lo, min(hi, size)) for lo, hi in self.spans if lo < size]

    def within(self, lo: int, hi: int) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of what was written in [lo, hi)."""
        for a, b in self.spans:
            if a < hi and b > lo:
                a, b = max(a, lo), min(b, hi)
                yield a, bytes(memoryview(self.data)[a:b])
