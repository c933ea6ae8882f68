"""Marks on what a clone has read from its origin: which filesystem it is of, so many levels up.

The value of an inherited version is an `Inherited`.  Extents that its slices name are another filesystem's: `tagged`
puts the level above the 64 bits of their ids.  No row can be packed with such an id: what a clone writes names its own
extents only.
"""

from __future__ import annotations

from typing import Final

from tzfs.format import keys
from tzfs.format.keys import ExtentId
from tzfs.format.records import Elsewhere
from tzfs.format.slices import Slice

_LEVEL_SHIFT: Final = 64
_EXTENT_MASK: Final = (1 << _LEVEL_SHIFT) - 1


class Inherited(Elsewhere):
    """The value of an inherited version, which looks like one born at 0; found `level` origins up."""

    level: int

    @classmethod
    def at(cls, value: bytes, sealed: bytes, level: int) -> Inherited:
        made = cls(value)
        made.sealed, made.level = sealed, level
        return made


def level_of(value: bytes) -> int:
    """How many origins up a stored value was found; 0 for the filesystem's own."""
    return value.level if isinstance(value, Inherited) else 0


def tagged(slices: tuple[Slice, ...], level: int) -> tuple[Slice, ...]:
    """The slices of a version found `level` origins up, as they are read from the clone."""
    return tuple([s._replace(extent=ExtentId(s.extent | level << _LEVEL_SHIFT)) for s in slices])


def foreign(extent: int) -> int:
    """How many origins up the extent is; 0 for the filesystem's own."""
    return extent >> _LEVEL_SHIFT


def native(extent: int) -> ExtentId:
    """The extent's id in the filesystem that it is of."""
    return ExtentId(extent & _EXTENT_MASK)


def location(extent: int, byte: int = 0) -> str:
    """Where byte `byte` of the extent lies, for people."""
    level, own = foreign(extent), native(extent)
    whose = f" of the origin{f' {level} levels up' if level > 1 else ''}" if level else ""
    return f"segment {keys.extent_segment(own)}{whose}, byte {keys.extent_offset(own) + byte}"
