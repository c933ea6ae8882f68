"""What each view sees of one key, and of one inode: looked up, and laid out along the views.

A *view* is a number into `facts.views`: the snapshots from the oldest on, then the head.
"""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tzfs.engine.check.tables import Facts
from tzfs.errors import TzfsError
from tzfs.format import keys, records
from tzfs.format.keys import Ino, Table
from tzfs.format.records import Inode
from tzfs.store.interface import ReadTransaction

_KEPT: Final = 4096  # inodes: files of one directory are often looked up for the directory's other names


class Seen(NamedTuple):
    """What the views [first, last) see under a key: a body, or (`damaged`) nobody knows."""

    first: int
    last: int
    damaged: bool
    body: bytes


class Span(NamedTuple):
    """How the views [first, last) see an inode; None: there is one, and nobody knows what it is."""

    first: int
    last: int
    inode: Inode | None


class Tally:
    """A number for each view, all of them 0 at first; `add` is by ranges, so most views cost nothing."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: defaultdict[int, int] = defaultdict(int)

    def add(self, first: int, last: int, number: int = 1) -> None:
        if first < last:
            self.steps[first] += number
            self.steps[last] -= number

    def same_as(self, other: Tally) -> bool:
        views = self.steps.keys() | other.steps.keys()
        return all(self.steps.get(view, 0) == other.steps.get(view, 0) for view in views)


class Sight:
    """Look-ups for a check: nothing is reported here, since every row is also walked."""

    def __init__(self, txn: ReadTransaction, facts: Facts) -> None:
        self._txn, self._facts = txn, facts
        self._inodes: dict[int, tuple[Span, ...]] = {}

    def words(self, view: int) -> str:
        """The view's name in a sentence."""
        return f"at {self._facts.view_words[view]}"

    def key(self, table: Table, prefix: bytes) -> list[Seen]:
        """What the views see of a versioned key, tombstones left out, in the order of the views."""
        views, found = self._facts.views, []
        last = len(views)
        for key, value in self._txn.range(table, prefix, prefix + b"\xff" * 9):
            first = bisect_left(views, keys.birth_of(key))
            if first < last:
                try:
                    body = records.unseal(table, key, value)
                    if body is not None:
                        found.append(Seen(first, last, False, body))
                except TzfsError:
                    found.append(Seen(first, last, True, b""))
                last = first
        found.reverse()
        return found

    def inode(self, ino: int) -> tuple[Span, ...]:
        """How the views see an inode."""
        spans = self._inodes.get(ino)
        if spans is None:
            if len(self._inodes) == _KEPT:
                self._inodes.clear()
            spans = self._inodes[ino] = tuple(_span(ino, seen) for seen in self.key(Table.INODE, keys.inode(ino)))
        return spans


def _span(ino: int, seen: Seen) -> Span:
    inode = None
    if not seen.damaged:
        with contextlib.suppress(TzfsError):
            inode = records.unpack_inode(Ino(ino), keys.inode(ino), seen.body)
    return Span(seen.first, seen.last, inode)


def within(spans: Sequence[Span], first: int, last: int) -> Iterator[Span | tuple[int, int]]:
    """The spans cut to [first, last), in order; what none covers as (first, last)."""
    for span in spans:
        if span.last <= first or span.first >= last:
            continue
        if span.first > first:
            yield first, span.first
        begin = max(first, span.first)
        first = min(last, span.last)
        yield Span(begin, first, span.inode)
    if first < last:
        yield first, last


def pieces(spans: Sequence[Span], *tallies: Tally) -> Iterator[tuple[Span | tuple[int, int], list[int]]]:
    """The views cut where an inode or one of the tallies changes: what is seen there, and what each tally says."""
    points = {point for span in spans for point in (span.first, span.last)}
    for tally in tallies:
        points.update(tally.steps)
    ordered = sorted(points)
    numbers = [0] * len(tallies)
    for first, last in itertools.pairwise(ordered):
        for i, tally in enumerate(tallies):
            numbers[i] += tally.steps.get(first, 0)
        for piece in within(spans, first, last):
            yield piece, numbers
