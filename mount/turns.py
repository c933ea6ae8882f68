"""Turns of trio: whoever keeps its loop busy with something else gives it a turn now and then.

In a turn all that is runnable runs, and what that makes runnable, some rounds of trio's loop deep.  It ends when nobody
but who gave it was made runnable in two rounds: what the first of them found may run after us, but before the second.
A chain without end, as of one who only yields, does not keep the giver waiting.
"""

from __future__ import annotations

from typing import Final

import trio

_QUIET_ROUNDS: Final = 2
_ROUNDS_MAX: Final = 8


class _Scheduled(trio.abc.Instrument):
    """Counts how often trio has made a task runnable."""

    def __init__(self) -> None:
        self.count = 0

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


_counting: Final = trio.lowlevel.RunVar[_Scheduled]("what counts in this run of trio")


def _scheduled() -> _Scheduled:
    """What counts in this run of trio, from now on."""
    try:
        return _counting.get()
    except LookupError:
        made = _Scheduled()
        _counting.set(made)
        trio.lowlevel.add_instrument(made)
        return made


class Turns:
    """The turns that one task gives trio, in one run of trio after another.

    `wake_fd` is readable when trio has something to do; -1 before the first turn, and where it is not known.
    """

    def __init__(self) -> None:
        self.wake_fd = -1
        self._token: trio.lowlevel.TrioToken | None = None
        self._scheduled = _Scheduled()

    async def take(self) -> None:
        """A turn; a checkpoint, which may be cancelled."""
        token = trio.lowlevel.current_trio_token()
        if token is not self._token:
            self._token = token
            self.wake_fd = _wake_descriptor()
            self._scheduled = _scheduled()
        scheduled, quiet = self._scheduled, 0
        for _ in range(_ROUNDS_MAX):
            before = scheduled.count
            await trio.lowlevel.checkpoint()
            quiet = quiet + 1 if scheduled.count == before + 1 else 0
            if quiet == _QUIET_ROUNDS:
                break


def _wake_descriptor() -> int:
    """Trio's epoll instance.

    Trio keeps it to itself; if it is not where we look, -1, and trio waits for its next turn.
    """
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        return int(GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
    except (ImportError, AttributeError):
        return -1
