"""Checking a filesystem that nobody writes, and what a check says as it goes from a mount to its client.

`Checked` is the answer, whoever has done it: this process under the lease, or the mount on its own tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tzfs.engine.check.problems import Problem, Progress, Rule
from tzfs.engine.check.run import Event, check
from tzfs.engine.committed import read_superblock
from tzfs.errors import CorruptionError, MountFailed
from tzfs.jsonrpc import Json
from tzfs.opening import Committed
from tzfs.store.interface import PayloadReader, ReadTransaction
from tzfs.store.lease import Lease

PROBLEMS_LISTED_MAX: Final = 10_000  # a few MB; who has more damage than that knows enough

Hear = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: the first `PROBLEMS_LISTED_MAX` problems, and how many there are; what it has read."""

    problems: tuple[Problem, ...]
    found: int
    rows: int
    payload_bytes: int


class Collector:
    """Takes in what a check says, event by event; `answer` is what it came to."""

    def __init__(self, hear: Hear | None = None) -> None:
        self._hear = hear
        self._problems: list[Problem] = []
        self._found = 0
        self._last = Progress("", 0, 0, 0, 0)

    def take(self, event: Event) -> None:
        if isinstance(event, Problem):
            self._found += 1
            if len(self._problems) < PROBLEMS_LISTED_MAX:
                self._problems.append(event)
        elif event is not None:
            self._last = event
            if self._hear is not None:
                self._hear(event)

    def answer(self) -> Checked:
        return Checked(tuple(self._problems), self._found, self._last.rows, self._last.payload_bytes)


def check_committed(
    directory: Path, guid: bytes, *, lease: Lease, read_payload: bool, hear: Hear | None = None
) -> Checked:
    """Checks a filesystem as it was last committed.  Takes over the lease, and releases it."""
    collector = Collector(hear)
    with ExitStack() as stack:
        stack.callback(lease.release)
        try:
            committed = stack.enter_context(Committed(directory, guid))
            txn = committed.meta.begin_read()
            stack.callback(txn.close)
        except CorruptionError as error:  # what is so damaged that it cannot be opened is no filesystem to look into
            collector.take(Problem(Rule.TABLES, "sys", b"", str(error)))
            return collector.answer()
        for event in checked(txn, committed.payload, read_payload=read_payload):
            collector.take(event)
    return collector.answer()


def checked(txn: ReadTransaction, payload: PayloadReader, *, read_payload: bool) -> Iterator[Event]:
    """`check`, of a filesystem whose features this tzfs knows; `ForeignStore` for another."""
    try:
        superblock = read_superblock(txn)
    except CorruptionError:
        pass  # the check will say so
    else:
        superblock.check(for_writing=False)
    return check(txn, payload, read_payload=read_payload)


# -- over the control socket -------------------------------------------------------------------------------------------


def to_json(event: Problem | Progress) -> Json:
    if isinstance(event, Problem):
        return {"rule": event.rule, "table": event.table, "key": event.key.hex(), "words": event.words}
    return {
        "stage": event.stage,
        "rows": event.rows,
        "total": event.total,
        "payload_bytes": event.payload_bytes,
        "payload_total": event.payload_total,
    }


def from_json(value: Json) -> Problem | Progress:
    """What `to_json` made; `MountFailed` for anything else."""
    try:
        if isinstance(value, dict) and "rule" in value:
            key = bytes.fromhex(str(value["key"]))
            return Problem(Rule(str(value["rule"])), str(value["table"]), key, str(value["words"]))
        if isinstance(value, dict):
            numbers = (int(str(value[name])) for name in ("rows", "total", "payload_bytes", "payload_total"))
            return Progress(str(value["stage"]), *numbers)
    except (KeyError, ValueError):
        pass
    raise MountFailed("the mount says something else than what a check says")
