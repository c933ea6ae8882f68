"""The background tasks of a program that has a filesystem open: run when due, remembered, tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.noise import noise
from tzfs import failpoints
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.task_rows import read_task_rows
from tzfs.errors import InvalidArgument, NoSpace, StoreError, TzfsError
from tzfs.lifecycle import Command, State
from tzfs.management import Store, open_store
from tzfs.schedule import SECOND_NS
from tzfs.store.memory import MemoryMeta, MemoryPayload
from tzfs.tasks import ALL, GC, QUOTAS, Alone, Ask, Context, Steps, Task, Tasks
from tzfs.units import parse_percents

PROPS = {"gc_interval": "300", "gc_budget": "1", "every": "10", "budget": "0.5"}


class World:
    """An engine in memory, a clock that only the test moves, and tasks that say what they were asked."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND_NS
        self.meta, self.payload = MemoryMeta(), MemoryPayload()
        Engine.format(self.meta, guid=bytes(16), now_ns=self.now)
        self.props = dict(PROPS)
        self.said: list[str] = []
        self.open()

    def open(self) -> None:
        self.engine = Engine(self.meta, self.payload)

    def tasks(self, *tasks: Task, state: State = State.ACTIVE) -> Tasks:
        return Tasks(self.engine, self.props.__getitem__, state, tasks=tasks or ALL, clock=lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND_NS)

    def task(self, name: str = "t", *, fails: int = 0, steps: int = 1, takes_s: float = 0.0) -> Task:
        left = [fails]

        def work(context: Context) -> Steps:
            if left[0]:
                left[0] -= 1
                raise NoSpace("the disk is full")
            for number in range(steps):
                self.said.append(f"{name} {number}")
                self.wait(takes_s)
                yield None
            return f"{steps} steps"

        return Task(name, "a task", Command.GC, interval="every", budget="budget", work=work)


@pytest.fixture
def world() -> World:
    return World()


def test_a_task_runs_when_it_is_due_and_not_before(world: World) -> None:
    tasks = world.tasks(world.task())
    tasks.run_due()
    assert (world.said, tasks.wait_s()) == ([], 10)
    world.wait(10)
    tasks.run_due()
    tasks.run_due()
    assert world.said == ["t 0"]


def test_what_is_remembered_outlives_the_writer_and_is_as_sound_as_anything(world: World) -> None:
    task = world.task()
    world.wait(10)
    world.tasks(task).run_due()
    assert world.engine.problems() == []
    world.engine.close()
    world.open()
    rows = read_task_rows(world.meta.begin_read())
    assert rows["t"]["next_ns"] == world.now + 10 * SECOND_NS
    world.wait(9)
    tasks = world.tasks(task)
    assert tasks.due() == []
    past = tasks.schedule.past("t")
    assert past is not None
    assert past.said == "1 steps"


def test_an_interval_of_0_never_runs(world: World) -> None:
    world.props["every"] = "0"
    tasks = world.tasks(world.task())
    world.wait(10**6)
    tasks.run_due()
    assert (world.said, tasks.wait_s(), tasks.report()["t"]) != ([], None, None)
    assert world.said == []


def test_a_task_that_fails_says_so_and_is_tried_again_later_and_later(world: World) -> None:
    tasks = world.tasks(world.task(fails=2))
    world.wait(10)
    tasks.run_due()
    assert tasks.warnings() == ["t failed: the disk is full"]
    assert tasks.wait_s() == 10
    world.wait(10)
    tasks.run_due()
    assert tasks.warnings() == ["t failed 2 times: the disk is full"]
    assert tasks.wait_s() == 20
    world.wait(20)
    tasks.run_due()
    assert (tasks.warnings(), world.said) == ([], ["t 0"])


def test_a_failure_does_not_keep_other_tasks_from_running(world: World) -> None:
    tasks = world.tasks(world.task("a", fails=1), world.task("b"))
    world.wait(10)
    tasks.run_due()
    assert world.said == ["b 0"]


def test_a_budget_ends_a_run_between_two_steps_and_it_goes_on_soon(world: World) -> None:
    tasks = world.tasks(world.task(steps=100, takes_s=0.2))
    world.wait(10)
    tasks.run_due()
    assert world.said == ["t 0", "t 1", "t 2"]
    wait_s = tasks.wait_s()
    assert wait_s is not None
    assert 0 < wait_s < 10
    world.said.clear()
    tasks.run(tasks.by_name["t"], demanded=True)
    assert len(world.said) == 100, "who asks for it waits for all of it"


def test_a_task_is_no_task_in_a_state_that_forbids_it(world: World) -> None:
    snapshot = Task("snap", "a snapshot", Command.SNAPSHOT, "every", "budget", world.task().work)
    assert set(world.tasks(snapshot, world.task()).by_name) == {"snap", "t"}
    assert set(world.tasks(snapshot, world.task(), state=State.ARCHIVED).by_name) == {"t"}


def test_what_a_step_wants_is_done_before_the_next(world: World) -> None:
    engine = world.engine

    def work(context: Context) -> Steps:
        ino = engine.mknod(1, b"file", 0o100644, uid=0, gid=0).ino
        engine.write(ino, 0, noise(10_000, "x"))
        assert engine.dirty
        yield Ask.SETTLE
        assert not engine.dirty
        yield lambda: world.said.append("function")
        engine.unlink(1, b"file")
        yield Alone(lambda: lambda: world.said.append(f"dirty {engine.dirty}"))
        yield Ask.COLLECT
        assert not engine.background_pending
        return "all"

    tasks = world.tasks(Task("t", "", Command.GC, "every", "budget", work))
    assert tasks.run(tasks.by_name["t"]).said == "all"
    assert world.said == ["function", "dirty False"]


def test_a_quota_is_warned_of_once_each_time_that_it_crosses_a_percent(world: World) -> None:
    world.props |= {"quota_interval": "10", "quota_warnings": "100,50,75", "gc_budget": "1"}
    world.engine.configure(Settings(inodes_max=8))
    numbers = iter(range(100))

    def watch() -> str:
        tasks = Tasks(
            world.engine, world.props.__getitem__, State.ACTIVE, tasks=(QUOTAS,),
            clock=lambda: world.now, warn=world.said.append,
        )  # fmt: skip
        return tasks.run(QUOTAS).said

    def more(inodes: int) -> None:
        for _ in range(inodes):
            world.engine.mknod(1, b"%d" % next(numbers), 0o100644, uid=0, gid=0)

    more(2)  # three with the root
    assert (watch(), world.said) == ("nothing to warn of", [])
    more(1)
    assert watch() == "inode_quota has reached 50%: 4 of 8"
    more(1)
    assert watch() == "inode_quota has reached 50%: 5 of 8"
    assert world.said == ["inode_quota has reached 50%: 4 of 8"]
    more(3)
    world.engine.close()
    world.open()
    world.engine.configure(Settings(inodes_max=8))
    watch()
    assert world.said.pop() == "inode_quota has reached 100%: 8 of 8"
    world.engine.unlink(1, b"0")
    watch()
    world.engine.unlink(1, b"1")
    watch()
    assert len(world.said) == 1, "it is less than it was"
    more(2)
    watch()
    assert world.said.pop() == "inode_quota has reached 100%: 8 of 8"
    world.props["quota_warnings"] = "none"
    assert (watch(), len(world.said)) == ("nothing to warn of", 1)
    assert world.engine.problems() == []


def test_percents_as_people_write_them() -> None:
    assert parse_percents(" 90, 80,90 ,100") == (80, 90, 100)
    assert parse_percents("none") == ()
    for text in ("", "0", "101", "80%", "80,,90", "-1", "1.5", "\u0661"):
        with pytest.raises(InvalidArgument, match="are no percents"):
            parse_percents(text)


def test_what_a_writer_of_another_version_has_left_counts_as_never_run(world: World) -> None:
    world.engine.task_rows.put("t", {"other": "fields"})
    tasks = world.tasks(world.task())
    assert tasks.due() != []


def test_garbage_is_collected_by_a_program_that_closes_a_filesystem(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        store.create("ws", {"gc_interval": "0.001"})
        with store.open("ws") as fs:
            fs.write_bytes("/file", noise(100_000, "x"))
            fs.sync()
            fs.unlink("/file")
        assert told(store)["failures"] == 0
        with store.open("ws") as fs:
            assert fs._engine.reclaimer.punched_bytes == 0, "nothing was left to do"


def test_a_program_hears_nothing_of_a_task_that_fails_and_loses_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        store.create("ws", {"gc_interval": "0.001"})
        failpoints.arm("punch.extent", "error:EIO")
        try:
            with store.open("ws") as fs:
                fs.write_bytes("/file", noise(100_000, "x"))
                fs.sync()
                fs.unlink("/file")
        finally:
            failpoints.disarm_all()
        assert told(store)["failures"] == 1
        assert store.check("ws").found == 0
        assert store.collect("ws").bytes == 102_400


def told(store: Store) -> dict[str, object]:
    with store.writer("ws", {"kind": "test"}, Command.OPEN) as writer:
        return writer.engine.task_rows.all()["gc"]


def test_off_means_that_only_a_demand_collects(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        store.create("ws", {"gc_interval": "0"})
        with store.open("ws") as fs:
            fs.write_bytes("/file", noise(100_000, "x"))
            fs.sync()
            fs.unlink("/file")
            fs._engine.commit()
            assert fs._engine.reclaimer.punched_bytes == 0
            assert not fs._engine.settings.collect
        assert store.collect("ws").bytes == 102_400


def test_every_task_names_properties_that_there_are() -> None:
    from tzfs.properties import NATIVE

    for task in ALL:
        assert {task.interval, task.budget} <= set(NATIVE), task.name
    assert GC in ALL
    assert issubclass(StoreError, TzfsError)
