"""How often the kernel has been told of each inode, and has not forgotten it: FUSE's look-up counts.

Counts lie in arrays of 4,096 neighbouring inode numbers, 16 KiB each, made when first used and dropped when all of an
array's counts are zero: 4 bytes for each inode of a walked tree, where a dict takes about 100.
"""

from __future__ import annotations

from array import array

_SHIFT = 12
_MASK = (1 << _SHIFT) - 1
_EMPTY = array("I", bytes(4 << _SHIFT))


class LookupCounts:
    """Counts by node id."""

    __slots__ = ("_known", "_pages")

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}
        self._known: dict[int, int] = {}  # page -> how many of its counts are not zero

    def add(self, node: int) -> None:
        """The kernel has been told of the inode once more."""
        number = node >> _SHIFT
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = _EMPTY[:]
            self._known[number] = 0
        if not page[node & _MASK]:
            self._known[number] += 1
        page[node & _MASK] += 1

    def forget(self, node: int, count: int) -> bool:
        """The kernel has forgotten `count` of them; True if it does not know the inode any more."""
        number = node >> _SHIFT
        page = self._pages.get(number)
        if page is None:
            return True
        left = page[node & _MASK]
        if count < left:
            page[node & _MASK] = left - count
            return False
        if left:
            page[node & _MASK] = 0
            self._known[number] -= 1
            if not self._known[number]:
                del self._pages[number], self._known[number]
        return True

    def knows(self, node: int) -> bool:
        """Whether the kernel refers to the inode."""
        page = self._pages.get(node >> _SHIFT)
        return page is not None and page[node & _MASK] != 0

    def __len__(self) -> int:
        """How many inodes the kernel knows."""
        return sum(self._known.values())
