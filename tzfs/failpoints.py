"""Named places where a test may make the program fail, wait or die; nothing at all unless one is armed.

Code that changes something durable, or takes something that must be given back, calls `hit("place.step")` between any
two steps whose order matters.  The module that does so announces the name once, at import, with `declare`, so that a
test can walk through every name there is.

A point that is armed fires at one hit only, the first after `after` others, and is then disarmed, so that the
operation can be tried again; a delay fires at every hit from there on.  Actions: `crash` ends the process at once,
without any clean-up, with status 86; `error:EIO` raises `OSError` of that name; `delay:0.05` sleeps that many seconds.
`TZFS_FAILPOINTS="name=crash;other=error:ENOSPC@3"` arms them in a process from its start; `@3` means the third hit.

Unarmed, `hit` costs one look at a global.  Hits may come from any thread.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tzfs.errors import InternalError, UsageError

CRASH_STATUS: Final = 86
ENVIRONMENT: Final = "TZFS_FAILPOINTS"

KNOWN: Final[dict[str, str]] = {}  # name -> what has, and has not, happened at that point


@dataclass(slots=True)
class _Point:
    kind: str
    errno: int
    delay_s: float
    after: int


_lock: Final = threading.Lock()
_armed: Final[dict[str, _Point]] = {}
_counts: Final[list[dict[str, int]]] = []  # one for each `counting` that is going on
_live: Final[list[object]] = []  # what there is in both; empty, `hit` returns at once


def declare(name: str, doc: str) -> str:
    """Announces a point; gives the name back.  Twice under one name is a bug."""
    if name in KNOWN:
        raise InternalError(f"failpoint {name} is declared twice")
    KNOWN[name] = doc
    return name


def hit(name: str) -> None:
    """Does what the point is armed to do; nothing if it is not."""
    if _live:
        _hit(name)


def arm(name: str, action: str, *, after: int = 0) -> None:
    """The point fires at the first hit after `after` others.  `UsageError` for a name or action there is not."""
    if name not in KNOWN:
        raise UsageError(f"no failpoint is named {name}", hint="import the module that declares it first")
    _arm(name, action, after)


def disarm_all() -> None:
    """No point does anything any more."""
    with _lock:
        _armed.clear()
        _note()


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Counts the hits of every point while the context lasts: name -> hits, in the order of their first hit."""
    counts: dict[str, int] = {}
    with _lock:
        _counts.append(counts)
        _note()
    try:
        yield counts
    finally:
        with _lock:
            _counts[:] = [c for c in _counts if c is not counts]
            _note()


def _note() -> None:
    _live[:] = [*_armed, *_counts]


def _arm(name: str, action: str, after: int) -> None:
    point = _parse(action, after)
    with _lock:
        _armed[name] = point
        _note()


def _parse(action: str, after: int) -> _Point:
    kind, _, argument = action.partition(":")
    if after >= 0:
        if kind == "crash" and not argument:
            return _Point(kind, 0, 0.0, after)
        if kind == "error":
            number = getattr(errno, argument, None)
            if isinstance(number, int):
                return _Point(kind, number, 0.0, after)
        if kind == "delay":
            try:
                return _Point(kind, 0, float(argument), after)
            except ValueError:
                pass
    raise UsageError(f"not a failpoint action: {action!r}", hint="crash, error:EIO or delay:0.05")


def _hit(name: str) -> None:
    if name not in KNOWN:
        raise InternalError(f"failpoint {name} is not declared")
    with _lock:
        for counts in _counts:
            counts[name] = counts.get(name, 0) + 1
        point = _armed.get(name)
        if point is None:
            return
        if point.after > 0:
            point.after -= 1
            return
        if point.kind != "delay":
            del _armed[name]
            _note()
    if point.kind == "crash":
        os._exit(CRASH_STATUS)
    if point.kind == "delay":
        time.sleep(point.delay_s)
        return
    raise OSError(point.errno, f"{os.strerror(point.errno)} (failpoint {name})")


def _arm_from_environment(text: str) -> None:
    for item in filter(None, text.split(";")):
        name, separator, action = item.partition("=")
        action, _, nth = action.partition("@")
        if not separator or not name or not (nth or "1").isdigit():
            raise UsageError(f"{ENVIRONMENT}: not name=action or name=action@N: {item!r}")
        _arm(name, action, int(nth or "1") - 1)


_arm_from_environment(os.environ.get(ENVIRONMENT, ""))
