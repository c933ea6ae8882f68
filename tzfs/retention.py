"""Which snapshots a policy keeps: the grid, in zrepl's syntax, and the choice it makes.  Pure: no I/O, no clock.

    1h(keep=all) | 24x1h | 14x1d        all of the last hour, one of each of 24 hours before it, of 14 days before those

A *grid* is intervals one after the other: `[COUNTx]DURATION[(keep=all|NUMBER)]`, a count of 1 and keep=1 unless given,
durations in s, m, h, d or w.  The first begins at the newest snapshot, not at the present moment, so that nothing goes
merely because nobody has taken snapshots; each further one lies before it.  An interval is as many *buckets* as its
count, and has its younger edge and not its older one.  Of each bucket the oldest `keep` are kept: so that what is kept
grows old without being replaced, and reaches the next interval.

`choose` says of each snapshot what keeps it, the first that does:

    held, bookmarked, origin of a clone          whatever the policy says
    its name                                     is none of those that the policy is about
    its time                                     is ahead of the clock, which says nothing about its age
    newest                                       where the grid begins: were it pruned, the grid would move
    a bucket

Invariants, tested: choosing again among what was kept keeps all of it; a greater `keep`, or an interval more at the
end, keeps no less; what is protected takes its place in a bucket as if it were not, so protecting more prunes no more.
zrepl does not keep the newest by itself, and so is not stable in the first of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from tzfs.errors import InvalidArgument
from tzfs.names import check_snapshot_component, show

SECOND_NS: Final = 1_000_000_000
UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
NONE: Final = "none"  # in the place of a grid: no policy, everything is kept
AUTOMATIC: Final = "auto-*"  # the names of the snapshots that are taken on an interval
TEXT_BYTES_MAX: Final = 1000  # of a grid, and of the names it is about: a line that people can read
STARS_MAX: Final = 3  # in one pattern: each multiplies how long a name of 255 characters may be tried
NUMBER_MAX: Final = 1_000_000  # a count, a keep, a duration in its unit: beyond any use, within any arithmetic

_INTERVAL: Final = re.compile(
    r"\s*(?:(\d{1,7})\s*x\s*)?(\d{1,7})\s*([smhdw])\s*(?:\(\s*keep\s*=\s*(all|\d{1,7})\s*\))?\s*\Z", re.ASCII
)
SYNTAX: Final = "give '1h(keep=all) | 24x1h | 14x1d', for example: [COUNTx]DURATION[(keep=all|NUMBER)], s m h d w"


@dataclass(frozen=True, slots=True)
class Interval:
    """`count` buckets of `length` `unit`s each, `keep` snapshots in each (None: all)."""

    count: int
    length: int
    unit: str
    keep: int | None

    @property
    def bucket_ns(self) -> int:
        return self.length * UNITS_S[self.unit] * SECOND_NS

    def __str__(self) -> str:
        count = "" if self.count == 1 else f"{self.count}x"
        keep = "" if self.keep == 1 else f"(keep={'all' if self.keep is None else self.keep})"
        return f"{count}{self.length}{self.unit}{keep}"


@dataclass(frozen=True, slots=True)
class Grid:
    """See the module's text; `str` gives the shortest spelling, which parses to the same."""

    intervals: tuple[Interval, ...]

    def __str__(self) -> str:
        return " | ".join(map(str, self.intervals))

    def bucket_of(self, age_ns: int) -> tuple[int, int] | None:
        """The interval and the bucket in it, both from 0, that an age of at least 0 lies in; None beyond the last."""
        for number, interval in enumerate(self.intervals):
            whole_ns = interval.count * interval.bucket_ns
            if age_ns < whole_ns:
                return number, age_ns // interval.bucket_ns
            age_ns -= whole_ns
        return None


def parse_grid(text: str) -> Grid | None:
    """A grid, or None for `none`.  `InvalidArgument`."""
    if text.strip() == NONE:
        return None
    if len(text.encode("utf-8", "replace")) > TEXT_BYTES_MAX:
        raise InvalidArgument(f"a policy has at most {TEXT_BYTES_MAX} bytes")
    return Grid(tuple(_interval(part) for part in text.split("|")))


def _interval(text: str) -> Interval:
    match = _INTERVAL.match(text)
    if match is None:
        raise InvalidArgument(f"{show(text.strip())} is no interval", hint=SYNTAX)
    count, length = int(match[1] or 1), int(match[2])
    keep = 1 if match[4] is None else None if match[4] == "all" else int(match[4])
    if not all(1 <= number <= NUMBER_MAX for number in (count, length, keep or (1 if keep is None else 0))):
        raise InvalidArgument(f"{show(text.strip())}: numbers are from 1 to {NUMBER_MAX:,}", hint=SYNTAX)
    return Interval(count, length, match[3], keep)


def parse_names(text: str) -> tuple[str, ...]:
    """Patterns of snapshots' names with commas between: names, with `*` for anything and `?` for one character.

    `InvalidArgument`.
    """
    if len(text.encode("utf-8", "replace")) > TEXT_BYTES_MAX:
        raise InvalidArgument(f"patterns of names have at most {TEXT_BYTES_MAX} bytes together")
    patterns = tuple(part.strip() for part in text.split(","))
    for pattern in patterns:
        check_snapshot_component(re.sub(r"[*?]", "x", pattern))
        if pattern.count("*") > STARS_MAX:
            raise InvalidArgument(f"{show(pattern)}: a pattern has at most {STARS_MAX} of `*`")
    return patterns


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot as `choose` sees it.  `epoch` orders what has the same time; `protected`: why it may not be pruned."""

    name: str
    created_ns: int
    epoch: int
    protected: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What keeps a snapshot, in words; None: nothing does, and it is pruned."""

    name: str
    kept_by: str | None


def choose(grid: Grid | None, names: Iterable[str], candidates: Sequence[Candidate], *, now_ns: int) -> list[Verdict]:
    """What keeps each of the snapshots, in their order; `names` are the patterns that the grid is about."""
    patterns = tuple(names)
    covered = [c for c in candidates if any(fnmatchcase(c.name, pattern) for pattern in patterns)]
    placed = sorted((c for c in covered if c.created_ns <= now_ns), key=lambda c: (c.created_ns, c.epoch))
    in_grid = {} if grid is None else _kept(grid, placed)
    there, known = {c.name for c in placed}, {c.name for c in covered}

    def kept_by(c: Candidate) -> str | None:
        if c.protected is not None:
            return c.protected
        if grid is None:
            return "there is no policy"
        if c.name not in known:
            return f"its name is none of {','.join(patterns)}"
        if c.name not in there:
            return "its time is ahead of the clock"
        return in_grid.get(c.name)

    return [Verdict(c.name, kept_by(c)) for c in candidates]


def _kept(grid: Grid, placed: Sequence[Candidate]) -> dict[str, str]:
    """Those that the grid keeps, and where, of snapshots from the oldest to the newest."""
    kept: dict[str, str] = {}
    filled: dict[tuple[int, int], int] = {}
    for c in placed:
        bucket = grid.bucket_of(placed[-1].created_ns - c.created_ns)
        if bucket is None:
            continue
        interval = grid.intervals[bucket[0]]
        taken = filled.get(bucket, 0)
        if interval.keep is None or taken < interval.keep:
            filled[bucket] = taken + 1
            kept[c.name] = f"{interval}, {bucket[1] + 1} of {interval.count}"
    if placed:
        kept.setdefault(placed[-1].name, "it is the newest")
    return kept
