"""When a filesystem's background tasks run: what is due, when it is tried again, how much one run may take.

Pure: times are nanoseconds of the wall clock, given by whoever asks; nothing is read, slept or run here.  `tzfs.tasks`
says which tasks there are, `engine.task_rows` keeps what is remembered of each (`Past`), a writer runs what is `due`.

    waiting --its interval is over--> due --ran--> waiting
                                       |--more to do than the budget allowed--> due again, soon
                                       '--failed--> waiting, twice as long after each failure in a row

- An interval of 0 is off.  A task that has never run counts from the filesystem's creation, so that one which is only
  ever open for moments gets its turn too.
- The next run follows from the last and from the interval as it is now: a changed interval counts at once.
- A clock that was set back makes nobody wait longer than an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

SECOND_NS: Final = 1_000_000_000
BACKOFF_FIRST_S: Final = 60.0  # after the first failure, or the interval where that is shorter
BACKOFF_MAX_S: Final = 3600.0  # or the interval where that is longer: a full disk is not tried 1,000 times a day
REST_PER_BUDGET: Final = 10  # a run that its budget ended goes on after ten times as long: a tenth of the time at most


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered of a task: its last run, and what came of it.

    `error` is why the last `failures` runs failed, the newest one's reason.  `more`: the budget ended the last run.
    `kept` is the task's own, for its next run.
    """

    last_ns: int
    said: str = ""
    error: str | None = None
    failures: int = 0
    more: bool = False
    took_ns: int = 0
    kept: str = ""


class Schedule:
    """The tasks of one open filesystem.  `interval_s` answers a task's interval now; 0 is off."""

    def __init__(
        self, names: Iterable[str], pasts: Mapping[str, Past], *, born_ns: int, interval_s: Callable[[str], float]
    ) -> None:
        self._names = tuple(names)
        self._pasts = {name: pasts[name] for name in self._names if name in pasts}
        self._born_ns, self._interval_s = born_ns, interval_s

    def past(self, name: str) -> Past | None:
        """What is remembered of the task; None if it has never run."""
        return self._pasts.get(name)

    def next_ns(self, name: str, now_ns: int) -> int | None:
        """When the task is due; None while it is off."""
        interval_s = self._interval_s(name)
        if interval_s <= 0:
            return None
        past = self._pasts.get(name)
        last_ns = min(self._born_ns if past is None else past.last_ns, now_ns)
        return last_ns + int(self._delay_s(interval_s, past) * SECOND_NS)

    @staticmethod
    def _delay_s(interval_s: float, past: Past | None) -> float:
        if past is None:
            return interval_s
        if past.failures:
            first = min(interval_s, BACKOFF_FIRST_S)
            return float(min(first * 2 ** min(past.failures - 1, 64), max(interval_s, BACKOFF_MAX_S)))
        if past.more:
            return min(interval_s, REST_PER_BUDGET * past.took_ns / SECOND_NS)
        return interval_s

    def due(self, now_ns: int) -> list[str]:
        """The tasks whose time has come, the longest overdue first."""
        times = [(at, name) for name in self._names if (at := self.next_ns(name, now_ns)) is not None and at <= now_ns]
        return [name for _, name in sorted(times)]

    def wake_ns(self, now_ns: int) -> int | None:
        """When the first task is due; None while all are off."""
        return min((at for name in self._names if (at := self.next_ns(name, now_ns)) is not None), default=None)

    def succeeded(
        self, name: str, now_ns: int, said: str, *, took_ns: int = 0, more: bool = False, kept: str = ""
    ) -> Past:
        """The task has run, and says what it did."""
        self._pasts[name] = past = Past(now_ns, said, more=more, took_ns=took_ns, kept=kept)
        return past

    def failed(self, name: str, now_ns: int, error: str) -> Past:
        """The task has failed; it is tried again, later after each failure in a row."""
        past = self._pasts.get(name) or Past(now_ns)
        self._pasts[name] = past = replace(past, last_ns=now_ns, error=error, failures=past.failures + 1, more=False)
        return past
