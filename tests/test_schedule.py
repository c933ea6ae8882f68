"""When background tasks are due: intervals, failures, budgets, clocks that are set."""

from __future__ import annotations

import pytest

from tzfs.schedule import BACKOFF_FIRST_S, BACKOFF_MAX_S, REST_PER_BUDGET, SECOND_NS, Past, Schedule

BORN = 1_000 * SECOND_NS


class Intervals(dict[str, float]):
    """Intervals by task, which a test may change as a user changes a property."""


@pytest.fixture
def intervals() -> Intervals:
    return Intervals(a=100, b=7)


@pytest.fixture
def schedule(intervals: Intervals) -> Schedule:
    return Schedule(["a", "b"], {}, born_ns=BORN, interval_s=intervals.__getitem__)


def after(seconds: float) -> int:
    return BORN + int(seconds * SECOND_NS)


def test_what_has_never_run_counts_from_the_creation(schedule: Schedule) -> None:
    assert schedule.due(after(6.999)) == []
    assert schedule.due(after(7)) == ["b"]
    assert schedule.due(after(100)) == ["b", "a"], "the longest overdue first"
    assert schedule.wake_ns(after(0)) == after(7)


def test_after_a_run_the_interval_begins_anew(schedule: Schedule) -> None:
    schedule.succeeded("b", after(9), "done")
    assert schedule.next_ns("b", after(9)) == after(16)
    past = schedule.past("b")
    assert past is not None
    assert past.said == "done"


def test_an_interval_of_0_is_off_and_a_changed_one_counts_at_once(schedule: Schedule, intervals: Intervals) -> None:
    intervals["b"] = 0
    assert schedule.next_ns("b", after(1000)) is None
    assert schedule.due(after(1000)) == ["a"]
    intervals["a"] = 0
    assert schedule.wake_ns(after(0)) is None
    intervals["b"] = 3
    assert schedule.due(after(3)) == ["b"]


def test_each_failure_in_a_row_doubles_the_wait_up_to_an_hour(schedule: Schedule) -> None:
    waits = []
    now = after(100)
    for number in range(1, 12):
        past = schedule.failed("a", now, f"error {number}")
        assert (past.failures, past.error) == (number, f"error {number}")
        due = schedule.next_ns("a", now)
        assert due is not None
        waits.append((due - now) / SECOND_NS)
        now = due
    assert waits[:6] == [BACKOFF_FIRST_S * 2**n for n in range(6)]
    assert set(waits[6:]) == {BACKOFF_MAX_S}
    assert schedule.succeeded("a", now, "").failures == 0
    assert schedule.next_ns("a", now) == now + 100 * SECOND_NS


def test_a_short_interval_is_the_first_wait_and_a_long_one_the_longest(intervals: Intervals) -> None:
    intervals["a"] = 2 * BACKOFF_MAX_S
    schedule = Schedule(
        ["a", "b"], {"a": Past(BORN, failures=40, error="e")}, born_ns=0, interval_s=intervals.__getitem__
    )
    assert schedule.next_ns("a", BORN) == after(2 * BACKOFF_MAX_S)
    schedule.failed("b", BORN, "e")
    assert schedule.next_ns("b", BORN) == after(7)


def test_a_run_that_its_budget_ended_goes_on_soon_and_takes_a_tenth_of_the_time(schedule: Schedule) -> None:
    schedule.succeeded("a", after(100), "", took_ns=SECOND_NS, more=True)
    assert schedule.next_ns("a", after(100)) == after(100 + REST_PER_BUDGET)
    schedule.succeeded("a", after(100), "", took_ns=50 * SECOND_NS, more=True)
    assert schedule.next_ns("a", after(100)) == after(200), "no later than the interval"


def test_a_clock_that_was_set_back_makes_nobody_wait_longer_than_an_interval(schedule: Schedule) -> None:
    schedule.succeeded("a", after(1_000_000), "")
    assert schedule.next_ns("a", after(500)) == after(600)


def test_what_is_remembered_of_a_task_there_is_not_is_left_alone(intervals: Intervals) -> None:
    schedule = Schedule(["a"], {"gone": Past(BORN)}, born_ns=BORN, interval_s=intervals.__getitem__)
    assert schedule.past("gone") is None
    assert schedule.due(after(1000)) == ["a"]
