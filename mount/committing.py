"""When a mounted engine commits: at its interval, at its limits, on fsync, on a snapshot; and its background work.

One commit runs at a time.  It flushes payload in a worker thread while requests go on being served, until what was
written meanwhile is small; the rest happens on the main thread without yielding.  Callers that arrive while a commit
waits to begin share it: what they want durable was answered before it began.

A commit that fails fails the engine; `failed` is called once with the reason, and every later request answers EIO.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio

from tzfs import limits
from tzfs.engine.engine import Engine
from tzfs.engine.reclaim import EVERYTHING, ORPHANS, Backlog
from tzfs.errors import StoreError, TzfsError
from tzfs.format.records import Snapshot
from tzfs.mount.kernel_queue import KernelQueue

log = logging.getLogger(__name__)
T = TypeVar("T")

FLUSH_ROUNDS_MAX = 8  # a writer faster than the disk must not keep a commit from ending
BACKGROUND_PAUSE_S = 0.005  # between batches of background work: requests come first
BUSY_PAUSE_S = 0.04  # while they come: of the 200 and more that are answered in it, one meets a batch of 1 ms or less
STREAMED_BYTES_MIN = 1 << 20  # a flush of so much is part of a stream
REST_S = 3.0  # after the last of them, until its memory is given back


class Committer:
    """The one that commits `engine`, on the trio thread."""

    def __init__(self, engine: Engine, failed: Callable[[str], None]) -> None:
        self._engine = engine
        self.queue: KernelQueue | None = None  # in which one may be that shares a commit
        self.quiet: Callable[[], bool] = lambda: False  # whether no request has come since it was asked last
        self._failed = failed
        self._lock = trio.Lock()
        self.exclusive = trio.Lock()  # held by what must have the head, or its snapshots, to itself: before all others
        self._batch = trio.Lock()  # of background work: `run` and `collect` must not give the same extents back
        self._asked = 0  # commits asked for, and up to which of them they are durable
        self._done = 0
        self._alone = False
        self._kick = trio.Event()
        self._timed = False  # `run` will wake by itself when what is dirty has waited long enough
        self._background_failing = False  # what it failed at is tried again by `collect`, not at once
        self.background_failed: Callable[[TzfsError | OSError], None] = lambda error: None
        self._rest_until = -math.inf  # of the background, on trio's clock
        self._streamed_bytes = 0  # flushed in large pieces since `rested` was called
        self._streamed_at = -math.inf  # the last of them, on trio's clock
        self.rested: Callable[[], None] = lambda: None  # called when a stream of payload is over
        self._leave: int | None = None  # what a commit that flushes may leave for the main thread to write
        self.last_commit_ms = 0.0
        self.slowest_commit_ms = 0.0
        self.last_background_ns: int | None = None

    @property
    def room(self) -> int:
        """Bytes until writers are `ahead`: fewer while a commit flushes, or it would never end."""
        engine = self._engine
        return (engine.settings.dirty_bytes_max if self._leave is None else self._leave) - engine.dirty_bytes

    @property
    def ahead(self) -> bool:
        """Whether writers are ahead of the disk, and the next has to `make_room`."""
        return self.room <= 0

    def changed(self) -> None:
        """Something has become dirty.  Wakes `run` if it sleeps without a time, or if what is dirty cannot wait."""
        engine = self._engine
        if not self._timed:
            self._timed = True
            self._kick.set()
        elif engine.pressed() and not self._kick.is_set():
            self._kick.set()

    async def commit(self) -> None:
        """Everything answered so far is durable when it returns, and in the tables, for readers elsewhere."""
        async with self._lock:
            await self._flush(limits.FLUSH_REMAINDER_BYTES_MAX)
            if self._engine.absorbed:
                with suppress(StoreError):  # of which the commit will hear
                    await trio.to_thread.run_sync(self._engine.payload.sync)
            self._finish(self._engine.commit)

    async def harden(self) -> None:
        """Everything answered so far is durable when it returns."""
        self._asked += 1
        ticket = self._asked
        if self._engine.logs and not self._alone:  # beside a flush too: the log takes operations, not what they made
            if self.queue:  # else nobody would join in, and another worker would spin for requests meanwhile
                await trio.lowlevel.checkpoint()
            if self._done < ticket:
                self._finish(self._engine.harden)
            return
        async with self._lock:
            if self._done >= ticket:
                return
            await trio.lowlevel.checkpoint()  # what already waits for an answer joins in
            await self._flush(limits.FLUSH_REMAINDER_BYTES_MAX)
            self._finish(self._engine.harden)

    async def snapshot(self, name: str, properties: dict[str, str] | None = None) -> Snapshot:
        """A snapshot of everything answered so far."""
        async with self.exclusive:
            return await self.snapshot_exclusive(name, properties)

    async def snapshot_exclusive(self, name: str, properties: dict[str, str] | None = None) -> Snapshot:
        """`snapshot`, for who has `exclusive`."""
        async with self._lock:
            await self._flush(limits.FLUSH_REMAINDER_BYTES_MAX)
            return self._finish(lambda: self._engine.snapshot(name, properties))

    async def change(self, act: Callable[[], T]) -> T:
        """Calls `act`, which changes the engine and commits it, or changes nothing, with little left to flush."""
        async with self._lock:
            await self._flush(limits.FLUSH_REMAINDER_BYTES_MAX)
            answer = self._finish(act)
        self.changed()
        return answer

    async def between_commits(self, work: Callable[[], T]) -> T:
        """Does a piece of work on the engine that may commit by itself, while no other commit is under way."""
        async with self._lock:
            try:
                return work()
            finally:
                self.report_failure()

    def _finish(self, commit: Callable[[], T]) -> T:
        upto = self._asked
        began = time.perf_counter()
        try:
            answer = commit()
        finally:
            self.report_failure()
        if self._engine.hardened:  # where nothing had to be changed, nothing was committed
            self._done = upto
        self.last_commit_ms = (time.perf_counter() - began) * 1e3
        self.slowest_commit_ms = max(self.slowest_commit_ms, self.last_commit_ms)
        return answer

    async def _flush(self, enough: int) -> None:
        """Writes dirty payload to its extents until no more than `enough` bytes are dirty."""
        engine = self._engine
        self._leave = limits.FLUSH_AHEAD_BYTES
        try:
            for _ in range(FLUSH_ROUNDS_MAX):
                if engine.dirty_bytes <= enough:
                    return
                job = engine.begin_flush()
                if job is None:
                    return
                if job.bytes >= STREAMED_BYTES_MIN:
                    self._streamed_bytes += job.bytes
                    self._streamed_at = trio.current_time()
                await trio.to_thread.run_sync(job.run)
                try:
                    engine.end_flush()
                finally:
                    self.report_failure()
                self._leave = max(enough, limits.FLUSH_REMAINDER_BYTES_MAX)
        finally:
            self._leave = None

    async def do(self, step: Callable[[], None]) -> None:
        """Calls `step`, which changes the engine, between two commits."""
        async with self._lock:
            self._engine.check()
            try:
                step()
            finally:
                self.report_failure()
        self.changed()

    async def alone(self, begin: Callable[[], Callable[[], object]], end: Callable[[], None]) -> None:
        """Commits everything, then has what `begin` answers run in a thread; nothing is committed before `end`.

        Requests are served meanwhile; those that want something durable wait, or the redo log would have what a copy
        of the tables has not.  Only who is far ahead of the disk commits all the same, and `end` sees that.
        """
        async with self._lock:
            await self._flush(limits.FLUSH_REMAINDER_BYTES_MAX)
            self._alone = True
            try:
                self._finish(self._engine.commit)
                await trio.to_thread.run_sync(begin())
                self._engine.check()
                try:
                    end()
                finally:
                    self.report_failure()
            finally:
                self._alone = False
        self.changed()

    async def make_room(self) -> None:
        """Waits while writers are ahead of the disk: the brake of a write."""
        async with self._lock:
            if self._engine.dirty_bytes >= self._engine.settings.dirty_bytes_max:
                await self._flush(self._engine.settings.dirty_bytes_max // 2)

    def report_failure(self) -> None:
        """Says what has failed the engine, if anything has."""
        if self._engine.failed is not None:
            self._failed(self._engine.failed)

    async def run(self) -> None:
        """Commits in time and does the background work, until cancelled."""
        engine = self._engine
        while engine.failed is None:
            wait_s = self._wait_s()
            self._kick = trio.Event()
            self._timed = engine.commit_due_at_ns() is not None
            if wait_s is None:
                await self._kick.wait()
                continue
            with trio.move_on_after(wait_s):
                await self._kick.wait()
            due = engine.commit_due_at_ns()
            try:
                if due is not None and (engine.commit_due or time.time_ns() >= due):
                    await self.commit()
                elif engine.dirty_bytes >= limits.FLUSH_AHEAD_BYTES:
                    async with self._lock:
                        await self._flush(limits.FLUSH_AHEAD_BYTES - 1)
                elif engine.absorb_due:
                    async with self._lock:
                        try:
                            engine.absorb()
                        finally:
                            self.report_failure()
                if self._memory_due and trio.current_time() >= self._streamed_at + REST_S:
                    self._streamed_bytes = 0
                    self.rested()
                if self._background_due and trio.current_time() >= self._rest_until:
                    await self._background_of_run()
            except (TzfsError, OSError) as error:
                log.error("commit: %s", error)

    async def _background_of_run(self) -> None:
        try:
            pause_s = await self._background()
            self._rest_until = trio.current_time() + (BACKGROUND_PAUSE_S if pause_s is None else pause_s)
        except (TzfsError, OSError) as error:
            log.error("background work: %s", error)
            self._background_failing = True
            if self._engine.failed is None:
                self.background_failed(error)

    @property
    def _memory_due(self) -> bool:
        return self._streamed_bytes >= limits.FLUSH_AHEAD_BYTES

    @property
    def _background_due(self) -> bool:
        engine = self._engine
        return engine.settings.collect and not self._background_failing and engine.background_pending

    def _wait_s(self) -> float | None:
        """How long there is nothing to do; None for until something changes."""
        engine = self._engine
        if engine.absorb_due or engine.dirty_bytes >= limits.FLUSH_AHEAD_BYTES:
            return 0.0
        due = engine.commit_due_at_ns()
        waits = [] if due is None else [(due - time.time_ns()) / 1e9]
        if self._background_due:
            waits.append(self._rest_until - trio.current_time())
        if self._memory_due:
            waits.append(self._streamed_at + REST_S - trio.current_time())
        return max(0.0, min(waits)) if waits else None

    async def collect(self) -> None:
        """Does the background work that there is, in batches between which requests are served.

        What is removed meanwhile is for later: it may be more than what is worked off, without end.
        """
        reclaimer = self._engine.reclaimer
        await self.commit()
        await self._work_off(ORPHANS)
        there = reclaimer.backlog()
        await self._work_off(there)
        await self.commit()
        there = there._replace(txg=reclaimer.backlog().txg)  # with what that has freed
        for _ in range(2):  # given back; that being durable, segments are unlinked
            await self._work_off(there)
            await self.commit()
        self._background_failing = False

    async def _work_off(self, backlog: Backlog) -> None:
        while await self._background(backlog) is not None:
            await trio.sleep(BACKGROUND_PAUSE_S)
            if self._engine.commit_due:
                await self.commit()

    async def _background(self, backlog: Backlog = EVERYTHING) -> float | None:
        """One batch; a large backlog is worked off over many turns of `run`.  Holes are punched in a thread.

        Answers how long requests are to have the loop to themselves now; None where nothing of the backlog was left.
        """
        pause_s = BACKGROUND_PAUSE_S
        async with self._batch:
            reclaimer = self._engine.reclaimer
            async with self._lock:
                if self._engine.failed is not None:
                    return None
                if reclaimer.removes(backlog):
                    pause_s = BACKGROUND_PAUSE_S if self.quiet() else BUSY_PAUSE_S
                    reclaimer.step(backlog)
                    job = None
                else:
                    job = reclaimer.begin_punch(backlog)
                    if job is None:
                        reclaimer.unlink_dead_segments()
                        return None
            if job is not None:
                await trio.to_thread.run_sync(job.run)
                async with self._lock:
                    if self._engine.failed is None:
                        reclaimer.end_punch(job)
        self.last_background_ns = time.time_ns()
        return pause_s
