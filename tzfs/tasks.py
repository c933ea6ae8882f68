"""The background tasks of every writer: which there are, what each does, and a writer's own way of running them.

A *task* is declared once, in `ALL`: its name, what it does, when it may (a command of `tzfs.lifecycle`), the property
that says how often (0: never) and the one that says how many seconds a run may take.  Its work is a generator of
bounded steps on the engine's thread; between two of them requests are served.  What it yields says what comes first:

    None        nothing: whoever waits
    a function  that function, in a thread; it must not touch the engine
    Ask.SETTLE  that all that was written so far, by programs on a mount too, is in the engine and committed
    Ask.COLLECT that the engine's own background work (`Engine.background_step`) is done
    Alone(f)    that everything is committed, and then `f`'s answer runs in a thread, nothing being committed until the
                generator has taken its next step

It returns words on what it did.  An error ends the run: it is shown in `status`, kept in the tables, and the task is
tried again later (`tzfs.schedule`).  A generator that its budget ends is closed between two steps, so every step leaves
the filesystem whole.

A mount runs the tasks beside its requests (`mount/tasks.py`).  A program that has opened a filesystem runs what is due
after its commits and when it closes it.  Commands that open one for a moment leave them to those and to `tzfs gc`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tzfs.engine.engine import Engine
from tzfs.errors import Busy, NoSpace, TzfsError
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command, State, allowed
from tzfs.pruning import automatic_name, verdicts
from tzfs.schedule import SECOND_NS, Past, Schedule
from tzfs.space import warnings
from tzfs.units import parse_percents


class Ask(Enum):
    """See the module's text."""

    SETTLE = "everything written is committed"
    COLLECT = "the engine's background work is done"


@dataclass(frozen=True, slots=True)
class Alone:
    """See the module's text.  `begin` is called on the engine's thread, what it answers in another."""

    begin: Callable[[], Callable[[], object]]


WORTH_BYTES: Final = 64 << 10  # what a demanded compaction must gain at least: 16 pages
# Of tables, with their sync.  Measured with 250 MiB of rows in files of 400: 300 MiB/s while the disk still writes what
# made them, 1,150 once it has.
COPIED_PER_S: Final = 200 << 20

Step = Callable[[], object] | Ask | Alone | None
Steps = Generator[Step, None, str]


Destroyed = Callable[[Sequence[str]], Step]


def _nothing_to_do(names: Sequence[str]) -> Step:
    return None


def _unheard(text: str) -> None:
    pass


@dataclass(slots=True)
class Context:
    """What a task works on.  `prop` answers the exact value of a property of the filesystem.

    `destroyed` is told of snapshots that are gone, in the same step, and answers what has to be done then.  `warn` is
    given a line for whoever looks after the filesystem.  `kept` is what the last run has left in it.
    """

    engine: Engine
    prop: Callable[[str], str]
    clock: Callable[[], int] = time.time_ns
    demanded: bool = False  # somebody asked for it now, and waits: no budget, no threshold below which it does not pay
    figures: dict[str, int] = field(default_factory=dict)  # what was done, for whoever asked
    destroyed: Destroyed = _nothing_to_do
    warn: Callable[[str], None] = _unheard
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One task.  `interval` and `budget` name properties; see the module's text."""

    name: str
    help: str
    command: Command
    interval: str
    budget: str
    work: Callable[[Context], Steps]


def _collect(context: Context) -> Steps:
    reclaimer, mover = context.engine.reclaimer, context.engine.mover
    before = reclaimer.punched_bytes, reclaimer.reclaimed_chunks, reclaimer.unlinked_segments
    yield Ask.COLLECT
    if segments := mover.sparse():
        moved = mover.moved_bytes
        for step in mover.steps(segments):
            context.figures["moved"] = mover.moved_bytes - moved
            yield None if step is None else Alone(step)
        context.figures["moved"] = mover.moved_bytes - moved
        yield Ask.COLLECT
    after = reclaimer.punched_bytes, reclaimer.reclaimed_chunks, reclaimer.unlinked_segments
    nbytes, chunks, removed = (b - a for a, b in zip(before, after, strict=True))
    return f"{nbytes} bytes given back, {chunks} chunks removed, {removed} segments unlinked"


GC: Final = Task(
    "gc", "gives back what was removed", Command.GC, interval="gc_interval", budget="gc_budget", work=_collect
)


def _compact(context: Context) -> Steps:
    compactor = context.engine.compactor
    if context.demanded:
        yield Ask.SETTLE
        context.engine.release_log()
    whole, used = compactor.slack()
    least = WORTH_BYTES if context.demanded else max(int(context.prop("compact_free")), used)
    if whole - used < least:
        return f"nothing to gain: {whole - used} of {whole} bytes are free"
    if not context.demanded and used > COPIED_PER_S * float(context.prop("compact_budget")):
        return f"left to tzfs gc: {used} bytes would be copied"
    copy = compactor.begin()
    if copy is None:
        return "never needed"
    try:
        yield Alone(lambda: copy.run)
        compactor.end(copy)
    except Busy as error:
        context.figures["in_use"] = 1
        return f"not now: {error}"
    except NoSpace as error:  # a full disk can be emptied without it
        return f"not now: {error}"
    gained = whole - compactor.slack()[0]
    context.figures["compacted"] = gained
    yield copy.let_go
    return f"{gained} bytes given back"


COMPACT: Final = Task(
    "compact",
    "makes the tables smaller",
    Command.GC,
    interval="compact_interval",
    budget="compact_budget",
    work=_compact,
)


def _snapshot(context: Context) -> Steps:
    yield Ask.SETTLE
    engine = context.engine
    last = engine.unchanged()
    if last is not None:
        return f"nothing has changed since {last}"
    name = automatic_name(context.clock(), engine.snapshots())
    engine.snapshot(name)
    return f"took {name}"


SNAPSHOT: Final = Task(
    "snapshot",
    "takes snapshots",
    Command.SNAPSHOT,
    interval="snapshot_interval",
    budget="gc_budget",
    work=_snapshot,
)


def _prune(context: Context) -> Steps:
    """Looks and destroys in one step: what is held or bookmarked meanwhile is met by the next run."""
    engine = context.engine
    found = verdicts(
        context.prop("retention"),
        context.prop("retention_names"),
        engine.snapshots(),
        engine.bookmarks.all(),
        engine.destroyer.users(),
        now_ns=context.clock(),
    )
    gone = [verdict.name for verdict in found if verdict.kept_by is None]
    if not gone:
        return f"all {len(found)} snapshots are kept"
    try:
        engine.destroy(gone)
    except Busy as error:
        return f"not now: {error}"
    yield context.destroyed(gone)
    return f"destroyed {len(gone)} of {len(found)} snapshots"


PRUNE: Final = Task(
    "prune",
    "destroys the snapshots that the policy does not keep",
    Command.DESTROY_SNAPSHOT,
    interval="prune_interval",
    budget="gc_budget",
    work=_prune,
)


def _watch_quotas(context: Context) -> Steps:
    """Warns of each quota that has reached a higher percent than when it was last looked."""
    yield None
    percents = parse_percents(context.prop("quota_warnings"))
    found = warnings(context.engine.usages(), percents)
    before = dict(part.split("=") for part in context.kept.split())
    for name, (percent, text) in found.items():
        if percent > int(before.get(name, "0")):
            context.warn(text)
    context.kept = " ".join(f"{name}={percent}" for name, (percent, _) in found.items())
    return "; ".join(text for _, text in found.values()) or "nothing to warn of"


QUOTAS: Final = Task(
    "quotas",
    "looks how far the quotas are used",
    Command.GC,
    interval="quota_interval",
    budget="gc_budget",
    work=_watch_quotas,
)
ALL: Final = (GC, COMPACT, SNAPSHOT, PRUNE, QUOTAS)
COLLECTING: Final = (GC, COMPACT)  # what `tzfs gc` runs, in this order


class Tasks:
    """The tasks of one open filesystem, and what is remembered of them.  Used on the engine's thread."""

    def __init__(
        self,
        engine: Engine,
        prop: Callable[[str], str],
        state: State,
        *,
        tasks: tuple[Task, ...] = ALL,
        clock: Callable[[], int] = time.time_ns,
        destroyed: Destroyed = _nothing_to_do,
        warn: Callable[[str], None] = _unheard,
    ) -> None:
        self.engine, self.prop, self.clock = engine, prop, clock
        self.destroyed, self.warn = destroyed, warn
        self.by_name = {task.name: task for task in tasks if allowed(task.command, state)}
        pasts = {name: _past(fields) for name, fields in engine.task_rows.all().items()}
        born_ns = engine.superblock.created_ns
        self.schedule = Schedule(self.by_name, pasts, born_ns=born_ns, interval_s=self._interval_s)

    def _interval_s(self, name: str) -> float:
        return float(self.prop(self.by_name[name].interval))

    def due(self) -> list[Task]:
        """The tasks whose time has come, the longest overdue first."""
        return [self.by_name[name] for name in self.schedule.due(self.clock())]

    def wait_s(self) -> float | None:
        """How long there is none; None while all are off."""
        now_ns = self.clock()
        at = self.schedule.wake_ns(now_ns)
        return None if at is None else max(0.0, (at - now_ns) / SECOND_NS)

    def begin(self, task: Task, *, demanded: bool = False) -> Run:
        """A run of the task, to be stepped by the caller."""
        past = self.schedule.past(task.name)
        context = Context(
            self.engine, self.prop, self.clock, demanded,
            destroyed=self.destroyed, warn=self.warn, kept="" if past is None else past.kept,
        )  # fmt: skip
        return Run(self, task, context)

    def run(self, task: Task, *, demanded: bool = False, progress: Callable[[], None] | None = None) -> Run:
        """Runs the task here and now, within its budget unless it is `demanded`; its error is raised."""
        run = self.begin(task, demanded=demanded)
        self.finish(run, progress)
        return run

    def finish(self, run: Run, progress: Callable[[], None] | None = None) -> None:
        """Steps a run to its end, here and now; its error is raised."""
        while not run.over:
            try:
                self._do(run.wanted, progress)
            except (TzfsError, OSError) as error:
                run.fail(error)
                break
            run.step()
            if progress is not None:
                progress()
        if run.error is not None:
            raise run.error

    def _do(self, wanted: Step, progress: Callable[[], None] | None) -> None:
        if isinstance(wanted, Alone):
            self.engine.commit()
            wanted.begin()()
        elif wanted is Ask.SETTLE:
            self.engine.commit()
        elif wanted is Ask.COLLECT:
            self.engine.collect(progress)
        elif callable(wanted):
            wanted()

    def failed(self, name: str, error: TzfsError | OSError) -> None:
        """What the task is for has failed outside of a run of it: it is tried again by the next run, later."""
        if name in self.by_name:
            self.remember(name, self.schedule.failed(name, self.clock(), str(error)))

    def remember(self, name: str, past: Past) -> None:
        """Keeps the past of a task in the tables."""
        if self.engine.failed is None:
            next_ns = self.schedule.next_ns(name, self.clock())
            self.engine.task_rows.put(name, {**_fields(past), "next_ns": next_ns})

    def run_due(self) -> None:
        """Runs what is due; what fails is remembered, and tried again another time."""
        for task in self.due():
            try:
                self.run(task)
            except (TzfsError, OSError):
                if self.engine.failed is not None:
                    raise

    def report(self) -> dict[str, Json]:
        """What there is to say of each task: JSON, as `stats` has it."""
        now_ns = self.clock()
        out: dict[str, Json] = {}
        for name, task in self.by_name.items():
            past = self.schedule.past(name)
            out[name] = {
                "help": task.help,
                "interval_s": self._interval_s(name),
                "budget_s": float(self.prop(task.budget)),
                "next_ns": self.schedule.next_ns(name, now_ns),
                **_shown(past),
            }
        return out

    def warnings(self) -> list[str]:
        """A line for each task whose last run failed."""
        found = []
        for name in self.by_name:
            past = self.schedule.past(name)
            if past is not None and past.failures:
                times = "" if past.failures == 1 else f" {past.failures} times"
                found.append(f"{name} failed{times}: {past.error}")
        return found


class Run:
    """One run of a task: `step` until it is `over`, doing what is `wanted` after each step."""

    def __init__(self, tasks: Tasks, task: Task, context: Context) -> None:
        self.task, self.context = task, context
        self.wanted: Step = None
        self.over = False
        self.said = ""
        self.error: TzfsError | OSError | None = None
        self._tasks = tasks
        self._steps = task.work(context)
        self._budget_ns = int(float(tasks.prop(task.budget)) * SECOND_NS)
        self._began_ns = tasks.clock()
        self.idle_ns = 0  # of the time since, which was spent on something else

    def step(self) -> None:
        """The next step; `over` after the last, after an error, and when the budget is spent between two."""
        tasks, more = self._tasks, False
        try:
            took_ns = tasks.clock() - self._began_ns - self.idle_ns
            bound = isinstance(self.wanted, Alone)  # it has begun something, which the next step ends
            if not self.context.demanded and not bound and took_ns > self._budget_ns:
                self._steps.close()
                more, self.said = True, "its budget ended the run: it goes on soon"
            else:
                self.wanted = next(self._steps)
                return
        except StopIteration as end:
            self.said = str(end.value)
        except (TzfsError, OSError) as error:
            self.fail(error)
            return
        self.over, self.wanted = True, None
        now_ns = tasks.clock()
        took_ns = now_ns - self._began_ns - self.idle_ns
        if self.context.demanded:
            tasks.engine.journal.append(self.task.name, said=self.said)
        past = tasks.schedule.succeeded(
            self.task.name, now_ns, self.said, took_ns=took_ns, more=more, kept=self.context.kept
        )
        tasks.remember(self.task.name, past)

    def fail(self, error: TzfsError | OSError) -> None:
        """Something that was wanted could not be done."""
        self._steps.close()
        self.over, self.wanted, self.error = True, None, error
        tasks = self._tasks
        tasks.remember(self.task.name, tasks.schedule.failed(self.task.name, tasks.clock(), str(error)))


def _fields(past: Past) -> dict[str, str | int | bool | None]:
    return {
        "last_ns": past.last_ns,
        "said": past.said,
        "error": past.error,
        "failures": past.failures,
        "more": past.more,
        "took_ns": past.took_ns,
        "kept": past.kept,
    }


def _shown(past: Past | None) -> dict[str, Json]:
    return {"last_ns": None} if past is None else dict(_fields(past))


def _past(fields: dict[str, object]) -> Past:
    """A row as remembered; what does not fit, from another version, counts as never run."""
    last_ns, failures, took_ns = fields.get("last_ns"), fields.get("failures"), fields.get("took_ns")
    if not isinstance(last_ns, int) or not isinstance(failures, int) or not isinstance(took_ns, int):
        return Past(0)
    error = fields.get("error")
    return Past(
        last_ns, str(fields.get("said", "")), None if error is None else str(error), failures,
        fields.get("more") is True, took_ns, str(fields.get("kept", "")),
    )  # fmt: skip


__all__ = [
    "ALL",
    "COMPACT",
    "GC",
    "PRUNE",
    "QUOTAS",
    "SNAPSHOT",
    "Alone",
    "Ask",
    "Context",
    "Run",
    "Step",
    "Steps",
    "Task",
    "Tasks",
]
