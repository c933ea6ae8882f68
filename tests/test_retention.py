"""Retention: the grid's syntax, the choice by hand, and what must hold for every policy and every history."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tzfs.errors import InvalidArgument
from tzfs.retention import (
    AUTOMATIC,
    SECOND_NS,
    UNITS_S,
    Candidate,
    Grid,
    Interval,
    choose,
    parse_grid,
    parse_names,
)

HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
NOW_NS = 2_000_000 * HOUR_NS
EXAMPLE = parse_grid("1h(keep=all) | 24x1h | 14x1d")


def made(*ages_ns: int, names: str = "auto-{}") -> list[Candidate]:
    """Snapshots of these ages, numbered."""
    return [Candidate(names.format(i), NOW_NS - age, i) for i, age in enumerate(ages_ns, 1)]


def kept(grid: Grid | None, candidates: list[Candidate], *, now_ns: int = NOW_NS) -> list[str]:
    return [v.name for v in choose(grid, [AUTOMATIC], candidates, now_ns=now_ns) if v.kept_by is not None]


# -- the syntax --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1h(keep=all) | 24x1h | 14x1d", "1h(keep=all) | 24x1h | 14x1d"),
        ("1x1h(keep=all)|24 x 1h ( keep = 1 )", "1h(keep=all) | 24x1h"),
        (" 4x1w(keep=3) ", "4x1w(keep=3)"),
        ("90s|15m", "90s | 15m"),
    ],
)
def test_a_grid_reads_as_zrepl_writes_it_and_has_one_spelling(text: str, canonical: str) -> None:
    grid = parse_grid(text)
    assert str(grid) == canonical
    assert parse_grid(canonical) == grid


def test_none_is_no_grid() -> None:
    assert parse_grid("none") is None


@pytest.mark.parametrize(
    "text", ["", "|", "1h|", "1", "x1h", "1y", "0x1h", "0h", "1h(keep=0)", "1h(keep=some)", "1h()", "-1h", "1.5h",
             "1h(keep=all", "2000000x1h", "9" * 40 + "h", "1h | " * 300 + "1h", "１h", "1h\n1h"],
)  # fmt: skip
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_grid(text)


@pytest.mark.parametrize("text", ["", "a,", "a b", "ws@a", "a/b", "#a", "[ab]", "*a*b*c*"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_names(text)


def test_patterns_are_separated_by_commas() -> None:
    assert parse_names("auto-*, step-?") == ("auto-*", "step-?")


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_each_bucket_keeps_its_oldest_and_the_first_interval_keeps_all() -> None:
    ages = [3 * DAY_NS + 5 * HOUR_NS, 3 * DAY_NS + 3 * HOUR_NS, 3 * HOUR_NS // 2, HOUR_NS // 2, 0]
    words = [v.kept_by for v in choose(EXAMPLE, [AUTOMATIC], made(*ages), now_ns=NOW_NS)]
    assert words == ["14x1d, 3 of 14", None, "24x1h, 1 of 24", "1h(keep=all), 1 of 1", "1h(keep=all), 1 of 1"]


def test_what_lies_on_an_edge_is_in_the_older_bucket() -> None:
    grid = parse_grid("2x1h")
    assert kept(grid, made(HOUR_NS, HOUR_NS - 1, 0)) == ["auto-1", "auto-2", "auto-3"]
    assert kept(grid, made(2 * HOUR_NS, 2 * HOUR_NS - 1, 0)) == ["auto-2", "auto-3"]


def test_the_grid_begins_at_the_newest_not_at_the_present() -> None:
    year_ns = 365 * DAY_NS
    assert kept(EXAMPLE, made(year_ns + HOUR_NS // 2, year_ns)) == ["auto-1", "auto-2"]


def test_gaps_leave_buckets_empty_and_take_nothing_from_others() -> None:
    ages = [13 * DAY_NS, 7 * DAY_NS, 0]
    assert kept(EXAMPLE, made(*ages)) == ["auto-1", "auto-2", "auto-3"]


def test_the_newest_is_kept_by_a_bucket_that_is_full() -> None:
    verdicts = choose(parse_grid("1h"), [AUTOMATIC], made(HOUR_NS // 2, HOUR_NS // 4, 0), now_ns=NOW_NS)
    assert [v.kept_by for v in verdicts] == ["1h, 1 of 1", None, "it is the newest"]


def test_other_names_and_protected_ones_are_kept_whatever_the_policy() -> None:
    candidates = [*made(900 * DAY_NS, names="before-{}"), *made(800 * DAY_NS, 700 * DAY_NS, 0)]
    candidates[1] = replace(candidates[1], protected="held: backup")
    words = [v.kept_by for v in choose(EXAMPLE, [AUTOMATIC], candidates, now_ns=NOW_NS)]
    assert words == ["its name is none of auto-*", "held: backup", None, "1h(keep=all), 1 of 1"]


def test_a_clock_that_was_ahead_makes_no_snapshot_the_newest() -> None:
    candidates = made(2 * HOUR_NS, -50 * 365 * DAY_NS, 0)
    words = [v.kept_by for v in choose(EXAMPLE, [AUTOMATIC], candidates, now_ns=NOW_NS)]
    assert words == ["24x1h, 2 of 24", "its time is ahead of the clock", "1h(keep=all), 1 of 1"]


def test_a_clock_that_went_back_prunes_nothing_of_what_is_ahead_of_it() -> None:
    candidates = made(*[hour * HOUR_NS for hour in range(500, -1, -1)])
    assert len(kept(parse_grid("1h"), candidates, now_ns=0)) == len(candidates)


def test_without_a_policy_all_is_kept() -> None:
    verdicts = choose(None, [AUTOMATIC], made(900 * DAY_NS, 0), now_ns=NOW_NS)
    assert [v.kept_by for v in verdicts] == ["there is no policy"] * 2


def test_snapshots_every_ten_minutes_pruned_each_time_come_to_one_a_day_for_two_weeks() -> None:
    alive: list[Candidate] = []
    for number in range(6 * 24 * 40):
        now_ns = NOW_NS + number * HOUR_NS // 6
        alive.append(Candidate(f"auto-{number}", now_ns, number))
        names = set(kept(EXAMPLE, alive, now_ns=now_ns))
        alive = [c for c in alive if c.name in names]
    ages = [(now_ns - c.created_ns) / HOUR_NS for c in alive]
    assert sum(age < 1 for age in ages) == 6
    assert all(sum(hour <= age < hour + 1 for age in ages) == 1 for hour in range(1, 25))
    days = [age for age in ages if age >= 25]
    assert 13 <= len(days) <= 14
    assert all(23 <= older - younger <= 25 for older, younger in itertools.pairwise(days))


# -- for every policy and history --------------------------------------------------------------------------------------

INTERVALS = st.builds(
    Interval,
    st.integers(1, 30),
    st.integers(1, 90),
    st.sampled_from(sorted(UNITS_S)),
    st.none() | st.integers(1, 5),
)
GRIDS = st.builds(lambda intervals: Grid(tuple(intervals)), st.lists(INTERVALS, min_size=1, max_size=5))
# Steps between snapshots: mostly ahead, with gaps, none, and a clock that is set back.
STEPS = st.one_of(st.integers(0, 3600), st.integers(0, 3 * 86400), st.integers(-86400, 0), st.integers(0, 400 * 86400))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Candidate], int]:
    """Snapshots in the order they were made, and a present that may lie before some of them."""
    at, out = 50 * 365 * 86400, []
    for number, step in enumerate(draw(st.lists(STEPS, max_size=40))):
        at += step
        name = draw(st.sampled_from(["auto-{}", "auto-{}", "mine-{}"])).format(number)
        protected = draw(st.sampled_from([None, None, None, "held: a"]))
        out.append(Candidate(name, at * SECOND_NS, number, protected))
    return out, (at + draw(st.sampled_from([0, 60, -3600, 400 * 86400]))) * SECOND_NS


@given(GRIDS)
def test_every_grid_has_a_spelling_that_reads_as_itself(grid: Grid) -> None:
    assert parse_grid(str(grid)) == grid


@given(GRIDS, histories())
def test_choosing_again_among_the_kept_keeps_them_all(grid: Grid, history: tuple[list[Candidate], int]) -> None:
    candidates, now_ns = history
    names = kept(grid, candidates, now_ns=now_ns)
    assert kept(grid, [c for c in candidates if c.name in names], now_ns=now_ns) == names


@given(GRIDS, histories())
def test_what_is_protected_or_not_meant_or_newest_is_never_pruned(
    grid: Grid, history: tuple[list[Candidate], int]
) -> None:
    candidates, now_ns = history
    names = set(kept(grid, candidates, now_ns=now_ns))
    assert names >= {c.name for c in candidates if c.protected or c.name.startswith("mine-") or c.created_ns > now_ns}
    automatic = [c for c in candidates if c.name.startswith("auto-") and c.created_ns <= now_ns]
    if automatic:
        assert max(automatic, key=lambda c: (c.created_ns, c.epoch)).name in names


@given(GRIDS, histories(), INTERVALS)
def test_an_interval_more_at_the_end_keeps_no_less(
    grid: Grid, history: tuple[list[Candidate], int], more: Interval
) -> None:
    candidates, now_ns = history
    longer = Grid((*grid.intervals, more))
    assert set(kept(longer, candidates, now_ns=now_ns)) >= set(kept(grid, candidates, now_ns=now_ns))


@given(GRIDS, histories(), st.integers(0, 4), st.none() | st.integers(1, 3))
def test_a_greater_keep_keeps_no_less(
    grid: Grid, history: tuple[list[Candidate], int], which: int, more: int | None
) -> None:
    candidates, now_ns = history
    intervals = list(grid.intervals)
    old = intervals[which % len(intervals)]
    raised = None if more is None or old.keep is None else old.keep + more
    intervals[which % len(intervals)] = replace(old, keep=raised)
    assert set(kept(Grid(tuple(intervals)), candidates, now_ns=now_ns)) >= set(kept(grid, candidates, now_ns=now_ns))


@given(GRIDS, histories(), st.integers(0, 39))
def test_protecting_one_more_prunes_no_more(grid: Grid, history: tuple[list[Candidate], int], which: int) -> None:
    candidates, now_ns = history
    before = set(kept(grid, candidates, now_ns=now_ns))
    held = [replace(c, protected="held: b") if i == which else c for i, c in enumerate(candidates)]
    assert set(kept(grid, held, now_ns=now_ns)) - {c.name for c in held if c.protected} == before - {
        c.name for c in held if c.protected
    }


@given(GRIDS, histories())
def test_each_bucket_keeps_as_many_as_it_should_of_what_lies_in_it(
    grid: Grid, history: tuple[list[Candidate], int]
) -> None:
    candidates, now_ns = history
    placed = [c for c in candidates if c.name.startswith("auto-") and c.created_ns <= now_ns]
    if not placed:
        return
    newest = max(placed, key=lambda c: (c.created_ns, c.epoch))
    names = set(kept(grid, [replace(c, protected=None) for c in placed], now_ns=now_ns)) - {newest.name}
    end_ns = newest.created_ns
    for interval in grid.intervals:
        for _ in range(interval.count):
            begin_ns = end_ns - interval.bucket_ns
            inside = sorted((c.created_ns, c.epoch, c.name) for c in placed if begin_ns < c.created_ns <= end_ns)
            oldest = {name for _, _, name in inside[: len(inside) if interval.keep is None else interval.keep]}
            assert {name for _, _, name in inside} & names == oldest - {newest.name}
            end_ns = begin_ns
    assert not {c.name for c in placed if c.created_ns <= end_ns} & names
