"""Background tasks beside requests: on a clock that jumps, and on mounts."""

from __future__ import annotations

import os

import trio
import trio.testing

from tests.mount.workspace import Workspace, eventually
from tests.noise import noise
from tzfs.engine.engine import Engine
from tzfs.errors import NoSpace
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command, State
from tzfs.mount.committing import Committer
from tzfs.mount.tasks import TaskRunner
from tzfs.schedule import SECOND_NS
from tzfs.store.memory import MemoryMeta, MemoryPayload, MemoryRedo
from tzfs.tasks import Alone, Ask, Context, Steps, Task, Tasks


class Runs:
    """A runner on trio's own clock; `times` are the seconds at which its task began."""

    def __init__(self) -> None:
        meta, payload = MemoryMeta(), MemoryPayload()
        Engine.format(meta, guid=bytes(16), now_ns=self.clock())
        self.engine = Engine(meta, payload, redo=MemoryRedo())
        self.props = {"every": "10", "budget": "1"}
        self.begin = trio.current_time()
        self.times: list[float] = []
        self.settled = 0
        self.fail = 0
        task = Task("t", "", Command.GC, "every", "budget", self.work)
        tasks = Tasks(self.engine, self.props.__getitem__, State.ACTIVE, tasks=(task,), clock=self.clock)
        self.committer = Committer(self.engine, failed=lambda reason: None)
        self.runner = TaskRunner(tasks, self.committer, self.settle)

    @staticmethod
    def clock() -> int:
        return int(trio.current_time() * SECOND_NS)

    async def settle(self) -> None:
        self.settled += 1

    def work(self, context: Context) -> Steps:
        self.times.append(round(trio.current_time() - self.begin))
        if self.fail:
            self.fail -= 1
            raise NoSpace("full")
        yield None
        return ""


def on_a_clock_that_jumps(test: object) -> None:
    assert callable(test)
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_task_runs_at_its_interval_and_after_a_failure_by_backoff() -> None:
    async def main() -> None:
        runs = Runs()
        runs.fail = 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runs.runner.run)
            await trio.sleep(65)
            nursery.cancel_scope.cancel()
        assert runs.times == [10, 20, 40, 50, 60]
        assert runs.runner.tasks.warnings() == []

    on_a_clock_that_jumps(main)


def test_a_changed_interval_wakes_who_sleeps() -> None:
    async def main() -> None:
        runs = Runs()
        runs.props["every"] = "0"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runs.runner.run)
            await trio.sleep(1000)
            assert runs.times == []
            runs.props["every"] = "600"
            runs.runner.changed()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert runs.times == [1000]

    on_a_clock_that_jumps(main)


def test_nothing_is_committed_while_a_task_is_alone_and_everything_was_before() -> None:
    async def main() -> None:
        runs = Runs()
        engine, committer = runs.engine, runs.committer
        said: list[object] = []

        def work(context: Context) -> Steps:
            yield Ask.SETTLE
            said.append(runs.settled)
            engine.mkdir(1, b"before", 0o755, uid=0, gid=0)
            began = trio.Event()
            nursery.start_soon(change, began)
            yield Alone(lambda: lambda: trio.from_thread.run(during, began))
            said.append([engine.commits - committed[0], engine.logged, engine.dirty])
            return ""

        committed: list[int] = []

        async def during(began: trio.Event) -> None:
            committed.append(engine.commits)
            assert not engine.dirty
            began.set()
            await trio.testing.wait_all_tasks_blocked()

        async def change(began: trio.Event) -> None:
            await began.wait()
            engine.mkdir(1, b"during", 0o755, uid=0, gid=0)
            await committer.harden()
            said.append("durable")

        async with trio.open_nursery() as nursery:
            await runs.runner.run_task(Task("t", "", Command.GC, "every", "budget", work))
        assert said == [1, [0, 0, True], "durable"]
        assert engine.logged == 1

    on_a_clock_that_jumps(main)


# -- mounts ------------------------------------------------------------------------------------------------------------


def task(workspace: Workspace, name: str = "gc") -> dict[str, Json]:
    found = workspace.stats("tasks", name)
    assert isinstance(found, dict)
    return found


def test_a_mount_runs_its_tasks_and_says_so(mounted: Workspace) -> None:
    told = task(mounted)
    assert (told["interval_s"], told["last_ns"]) == (300, None)
    mounted.call("property.set", name="gc_interval", value="50ms")
    assert eventually(lambda: task(mounted)["last_ns"] is not None)
    told = task(mounted)
    assert (told["failures"], told["error"]) == (0, None)
    mounted.call("property.set", name="gc_interval", value="0")
    assert task(mounted)["next_ns"] is None


def test_background_work_that_fails_is_in_the_status_until_it_succeeds(workspace: Workspace) -> None:
    pid = workspace.mount(failpoints="punch.extent=error:EIO")
    (workspace.mnt / "file").write_bytes(noise(100_000, "x"))
    workspace.call("sync")
    (workspace.mnt / "file").unlink()
    workspace.call("sync")
    assert eventually(lambda: "gc failed: " in workspace.tzfs("status"))
    workspace.unmount(pid)
    workspace.mount()
    assert "gc failed: " in workspace.tzfs("status"), "it is remembered"
    workspace.tzfs("gc", "ws")
    assert "gc failed" not in workspace.tzfs("status")


def tables_bytes(workspace: Workspace) -> int:
    with workspace.store() as store:
        return (store.get("ws").folder / "meta" / "data.mdb").stat().st_size


def test_a_mount_makes_its_tables_smaller_under_those_who_use_them(workspace: Workspace) -> None:
    pid = workspace.mount()
    folder = workspace.mnt / "folder"
    folder.mkdir()
    for number in range(3000):
        (folder / str(number)).write_bytes(b"x" * 3000)
    workspace.call("sync")
    large = tables_bytes(workspace)
    with open(workspace.mnt / "held", "w") as held:
        held.write("before ")
        held.flush()
        for number in range(100, 3000):
            (folder / str(number)).unlink()
        told = workspace.tzfs("gc", "ws")
        held.write("after")
        held.flush()
        os.fsync(held.fileno())
        assert tables_bytes(workspace) < large / 8, told
    assert (workspace.mnt / "held").read_text() == "before after"
    assert sorted(int(path.name) for path in folder.iterdir()) == list(range(100))
    workspace.kill(pid)
    assert workspace.problems() == []
    with workspace.mounted():
        assert (workspace.mnt / "held").read_text() == "before after"
        assert (folder / "99").read_bytes() == b"x" * 3000


def test_tables_that_another_process_reads_stay_as_they_are(workspace: Workspace) -> None:
    workspace.mount()
    for number in range(500):
        (workspace.mnt / str(number)).write_bytes(b"x" * 3000)
    workspace.call("snapshot.create", name="s")
    reader = workspace.mount(name="ws@s", where=workspace.base / "past")
    for number in range(500):
        (workspace.mnt / str(number)).unlink()
    large = tables_bytes(workspace)
    assert "in use" in workspace.tzfs("gc", "ws")
    assert tables_bytes(workspace) >= large
    assert (workspace.base / "past" / "7").read_bytes() == b"x" * 3000
    workspace.unmount(reader)


def test_a_mount_prunes_and_its_folders_of_snapshots_go(mounted: Workspace) -> None:
    folders = mounted.mnt / ".zfs" / "snapshot"
    for name in ("auto-1", "auto-2", "auto-3"):
        (mounted.mnt / "file").write_text(name)
        mounted.call("snapshot.create", name=name)
        assert (folders / name / "file").read_text() == name
    mounted.call("property.set", name="retention", value="1w")
    assert len(os.listdir(folders)) == 3
    mounted.call("property.set", name="prune_interval", value="50ms")
    assert eventually(lambda: sorted(os.listdir(folders)) == ["auto-1", "auto-3"])
    assert eventually(lambda: not (folders / "auto-2").exists())
    told = task(mounted, "prune")
    assert (told["failures"], told["error"]) == (0, None)
