"""What happens in a mount, told to whoever listens on the control socket: the method `events`.

An event is a JSON object with `filesystem`, `time_ns`, `kind` and fields of its kind: each entry of the log when it is
durable (with its number as `entry`), and what no log has: `warning` (a quota that fills up), `task failed`, `failed`
(the mount itself).

A subscriber has a queue of `WAITING_MAX` events.  One that does not read loses what does not fit, is told how many they
were (`missed`) in their place, and is ended by the control server when it has not read for ten seconds: publishing
never waits for anybody.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, NotRequired, TypedDict, cast

import trio

from tzfs.engine.journal import Journal
from tzfs.format.log import Entry, Field
from tzfs.journal import logged
from tzfs.jsonrpc import Json
from tzfs.mount.method import Report

WAITING_MAX: Final = 256  # of 200 bytes as a rule, 4 KiB at most: 1 MiB for a subscriber that is stuck
UNLOGGED_MAX: Final = 64  # that no log has, kept for who begins to listen
REPLAYED_MAX: Final = 4096  # entries of the log for one who says what it has seen

Event = dict[str, Field]


class Follow(TypedDict):
    """The parameters of `events`: without `after` only what happens from now on."""

    after: NotRequired[int]


class _Subscriber:
    def __init__(self) -> None:
        self.waiting: deque[Event] = deque()
        self.missed = 0
        self.woken = trio.Event()

    def put(self, event: Event) -> None:
        if len(self.waiting) < WAITING_MAX and not self.missed:
            self.waiting.append(event)
        else:
            self.missed += 1
        self.woken.set()


class Events:
    """Those of one mount, named as `name` answers."""

    def __init__(self, name: Callable[[], str], journal: Journal | None) -> None:
        self._name, self._journal = name, journal
        self._subscribers: set[_Subscriber] = set()
        self._unlogged: deque[Event] = deque(maxlen=UNLOGGED_MAX)  # the last that no log has
        if journal is not None:
            journal.listeners.append(self._logged)

    def publish(self, kind: str, **fields: Field) -> None:
        """Tells all subscribers of something that no log has."""
        event: Event = {"filesystem": self._name(), "time_ns": time.time_ns(), "kind": kind, **fields}
        self._unlogged.append(event)
        self._put(event)

    async def follow(self, params: Follow, report: Report) -> Json:
        """Reports events until it is cancelled; with `after` first what the log has after that entry, and what was told
        beside it: a warning is not lost on who begins to listen a moment later."""
        subscriber = _Subscriber()
        after = params.get("after")
        replayed = [] if after is None or self._journal is None else self._after(self._journal, after)
        self._subscribers.add(subscriber)
        try:
            for event in replayed:
                await report(cast(Json, event))
            while True:
                while subscriber.waiting:
                    await report(cast(Json, subscriber.waiting.popleft()))
                if missed := subscriber.missed:
                    subscriber.missed = 0
                    event = {"filesystem": self._name(), "time_ns": time.time_ns(), "kind": "missed", "count": missed}
                    await report(cast(Json, event))
                    continue
                subscriber.woken = trio.Event()
                await subscriber.woken.wait()
        finally:
            self._subscribers.discard(subscriber)

    def _after(self, journal: Journal, after: int) -> list[Event]:
        entries = [entry for entry in islice(journal.entries(after=after), REPLAYED_MAX) if journal.durable(entry)]
        return [*map(self._event, reversed(entries)), *self._unlogged]

    def _logged(self, entry: Entry) -> None:
        self._put(self._event(entry))

    def _event(self, entry: Entry) -> Event:
        return logged(self._name(), entry).to_json()

    def _put(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber.put(event)
