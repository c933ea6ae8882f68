"""A chunk's slices: which bytes of it lie where.  Pure functions over ascending, disjoint tuples of `Slice`.

A slice is cut, never moved: what is overwritten shrinks or goes, and its extent stays whole on disk until no slice of
the newest version names it.  The page sums of a slice follow its bounds, so that what is left can still be verified.
"""

from __future__ import annotations

from collections.abc import Iterable

from tzfs.format.keys import Epoch, ExtentId
from tzfs.format.slices import CODEC_RAW, Sizes, Slice
from tzfs.limits import PAGE_BYTES

Slices = tuple[Slice, ...]


def narrow(s: Slice, lo: int, hi: int) -> Slice:
    """`s` reduced to [lo, hi) of the chunk, which must lie within it and not be empty."""
    begin = s.extent_offset + lo - s.offset
    sums = s.sums
    if s.codec == CODEC_RAW:
        first = s.extent_offset // PAGE_BYTES
        a = begin // PAGE_BYTES - first
        b = (begin + hi - lo + PAGE_BYTES - 1) // PAGE_BYTES - first
        sums = sums[4 * a : 4 * b]
    return s._replace(offset=lo, length=hi - lo, extent_offset=begin, sums=sums)


def cut(slices: Slices, lo: int, hi: int) -> list[Slice]:
    """The slices without [lo, hi)."""
    out = []
    for s in slices:
        end = s.offset + s.length
        if end <= lo or s.offset >= hi:
            out.append(s)
            continue
        if s.offset < lo:
            out.append(narrow(s, s.offset, lo))
        if end > hi:
            out.append(narrow(s, hi, end))
    return out


def without(slices: Slices, spans: Iterable[tuple[int, int]]) -> Slices:
    """The slices without any of the spans [lo, hi)."""
    for lo, hi in spans:
        slices = tuple(cut(slices, lo, hi))
    return slices


def insert(slices: Slices, new: Slice) -> Slices:
    """The slices with `new` written over them."""
    if not slices:
        return (new,)
    out = cut(slices, new.offset, new.offset + new.length)
    out.append(new)
    out.sort()
    return tuple(out)


def extents(slices: Slices) -> dict[tuple[ExtentId, Epoch], Sizes]:
    """The extent lifetimes that the slices name, with the sizes of each."""
    return {(s.extent, s.birth): (s.stored_bytes, s.raw_bytes) for s in slices if not s.embedded}


def overlaid(pieces: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pieces [lo, hi) that are left when `spans`, which do not touch, are written over `pieces`."""
    for lo, hi in spans:
        pieces = [piece for a, b in pieces for piece in ((a, min(b, lo)), (max(a, hi), b)) if piece[0] < piece[1]]
        pieces.append((lo, hi))
    return pieces


def wasteful(slices: Slices) -> bool:
    """Whether the extents that these slices keep alive hold more than twice what is read of them."""
    live = sum(s.length for s in slices)
    held = sum((stored + PAGE_BYTES - 1) & -PAGE_BYTES for stored, _ in extents(slices).values())
    return held > 2 * live
