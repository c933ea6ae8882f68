"""Rolling an open filesystem back to a snapshot, and what that answers.

    time_travel.rollback(store, "ws@before")        fs.rollback("before")

A snapshot of the state before is taken first (the *safety snapshot*), so that a rollback can be undone by another.
Newer snapshots stay, unlike in ZFS, unless they are to be destroyed: they go in the commit that makes the head what the
snapshot was, all of them, or nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tzfs.engine.engine import Engine
from tzfs.errors import NotFound
from tzfs.format.records import Snapshot

Progress = Callable[[int, int], None]  # done, of about so many


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did, or would do: `inodes` changed, `safety` is the name of the snapshot of the state before.

    `newer` are the snapshots after the one that was rolled back to; `destroyed` those of them that are gone.
    """

    inodes: int
    safety: str | None
    newer: tuple[str, ...]
    destroyed: tuple[str, ...] = ()


class Steps(Protocol):
    """Something staged: a rollback, or a restore."""

    done: int
    total: int

    def step(self) -> bool: ...
    def cancel(self) -> bool: ...


def to_the_end(engine: Engine, steps: Steps, progress: Progress | None) -> None:
    """Takes all steps; what breaks off is taken back."""
    try:
        while steps.step():
            if progress is not None:
                progress(steps.done, steps.total)
    except BaseException:
        if engine.failed is None:
            while steps.cancel():
                pass
        raise


def safety_name(snapshots: Mapping[str, Snapshot], now_s: float | None = None) -> str:
    """A name that no snapshot has yet."""
    name = f"rollback-{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now_s))}"
    number, free = 1, name
    while free in snapshots:
        number += 1
        free = f"{name}-{number}"
    return free


def newer_than(snapshots: Mapping[str, Snapshot], name: str) -> tuple[str, ...]:
    """The snapshots after `name`, oldest first; `NotFound`."""
    if name not in snapshots:
        raise NotFound(f"no snapshot {name!r}")
    return tuple(n for n, s in snapshots.items() if s.epoch > snapshots[name].epoch)


def stages_anything(engine: Engine, name: str) -> bool:
    """Whether anything has changed since the snapshot, as committed."""
    return engine.changed_since(engine.snapshots()[name].epoch)


def roll_back(
    engine: Engine, name: str, *, safety: bool = True, destroy_newer: bool = False, progress: Progress | None = None
) -> RolledBack:
    """Rolls an engine back, to the end; what breaks off is taken back.  `NotFound`, `NoSpace`, `Busy`."""
    newer = newer_than(engine.snapshots(), name)
    going = newer if destroy_newer else ()
    engine.commit()
    rollback = engine.rollback(name, going)
    before = None
    if safety and stages_anything(engine, name):
        before = safety_name(engine.snapshots())
        engine.snapshot(before)
    to_the_end(engine, rollback, progress)
    return RolledBack(len(rollback.changes.inodes), before, newer, going)
