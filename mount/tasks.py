"""A mount's background tasks: each runs when it is due, a step at a time, while requests go on being served.

One task runs at a time.  A step holds the committer's lock, as every change that is not a request's does; what a step
wants done in a thread is done without it (`tzfs.tasks`, whose `Run` decides when a run is over).  A task that fails is
logged, shown in `status` and tried again; only an engine that has failed ends the tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tzfs.errors import TzfsError
from tzfs.mount.committing import BACKGROUND_PAUSE_S, Committer
from tzfs.tasks import Alone, Ask, Run, Task, Tasks

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0  # the longest sleep: the wall clock, by which tasks are due, may be set meanwhile


class TaskRunner:
    """Runs `tasks` until cancelled.  `settle` has the kernel hand over what programs have written."""

    def __init__(self, tasks: Tasks, committer: Committer, settle: Callable[[], Awaitable[None]]) -> None:
        self.tasks = tasks
        self._committer, self._settle = committer, settle
        self.failed: Callable[[str, Exception], None] = lambda name, error: None
        self._one = trio.Lock()
        self._changed = trio.Event()

    def changed(self) -> None:
        """A property has changed: something may be due earlier, or not at all."""
        self._changed.set()

    async def run(self) -> None:
        """Runs what is due, when it is, until cancelled or until the engine has failed."""
        while self.tasks.engine.failed is None:
            due = self.tasks.due()
            if due:
                await self.run_task(due[0])
                continue
            self._changed = trio.Event()
            with trio.move_on_after(min(LOOK_S, wait_s)) if (wait_s := self.tasks.wait_s()) is not None else _forever():
                await self._changed.wait()

    async def run_task(
        self, task: Task, *, demanded: bool = False, begun: Callable[[Run], None] = lambda run: None
    ) -> Run:
        """Runs a task now, within its budget unless it is `demanded`; its error is in the answer.

        `begun` is told of the run before its first step.
        """
        async with self._one:
            run = self.tasks.begin(task, demanded=demanded)
            begun(run)
            while not run.over:
                try:
                    if isinstance(run.wanted, Alone):
                        await self._committer.alone(run.wanted.begin, run.step)
                    else:
                        await self._do(run)
                        await self._committer.do(run.step)
                except (TzfsError, OSError) as error:
                    if not run.over:
                        run.fail(error)
                began = self.tasks.clock()
                await trio.sleep(BACKGROUND_PAUSE_S)
                run.idle_ns += self.tasks.clock() - began
        if run.error is not None:
            log.error("%s: %s", task.name, run.error)
            self.failed(task.name, run.error)
        return run

    async def _do(self, run: Run) -> None:
        wanted = run.wanted
        if wanted is Ask.SETTLE:
            await self._settle()
            await self._committer.commit()
        elif wanted is Ask.COLLECT:
            await self._committer.collect()
        elif callable(wanted):
            await trio.to_thread.run_sync(wanted)


def _forever() -> trio.CancelScope:
    return trio.CancelScope()
