"""Events: who listens hears everything in order or how much it has missed, and whoever leaves is let go."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.mount.controlled import METHODS, Raw, request, serving
from tests.mount.workspace import Workspace, eventually
from tzfs.engine.engine import Engine
from tzfs.jsonrpc import Json
from tzfs.mount.events import WAITING_MAX, Events, Follow
from tzfs.mount.method import Nothing, Report, streaming
from tzfs.store.memory import MemoryMeta, MemoryPayload


class World:
    """An engine, its events, and what a subscriber has heard."""

    def __init__(self) -> None:
        meta, payload = MemoryMeta(), MemoryPayload()
        Engine.format(meta, guid=bytes(16), now_ns=1)
        self.engine = Engine(meta, payload)
        self.events = Events(lambda: "ws", self.engine.journal)
        self.heard: list[dict[str, Json]] = []

    async def hear(self, value: Json) -> None:
        assert isinstance(value, dict)
        self.heard.append(value)

    def kinds(self) -> list[Json]:
        return [event["kind"] for event in self.heard]


def within(test: Callable[[World, trio.Nursery], Awaitable[None]]) -> World:
    world = World()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await test(world, nursery)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    return world


def test_a_subscriber_hears_entries_when_they_are_durable_and_what_no_log_has() -> None:
    async def test(world: World, nursery: trio.Nursery) -> None:
        world.engine.snapshot("before")
        nursery.start_soon(world.events.follow, Follow(), world.hear)
        await trio.testing.wait_all_tasks_blocked()
        world.engine.journal.append("command")
        await trio.testing.wait_all_tasks_blocked()
        assert world.heard == []
        world.engine.snapshot("one")
        world.events.publish("failed", reason="the disk")

    world = within(test)
    assert world.kinds() == ["command", "snapshot", "failed"]
    assert world.heard[1] == {
        "filesystem": "ws", "entry": 3, "time_ns": world.heard[1]["time_ns"], "kind": "snapshot", "snapshot": "one"
    }  # fmt: skip


def test_what_was_missed_in_the_log_is_told_first_and_nothing_twice() -> None:
    async def test(world: World, nursery: trio.Nursery) -> None:
        for name in ("a", "b", "c"):
            world.engine.snapshot(name)
        world.engine.journal.append("waiting")
        nursery.start_soon(world.events.follow, Follow(after=1), world.hear)
        await trio.testing.wait_all_tasks_blocked()
        world.engine.commit()

    assert [event["entry"] for event in within(test).heard] == [2, 3, 4]


def test_a_slow_subscriber_is_told_how_many_it_has_missed() -> None:
    go_on = trio.Event()

    async def test(world: World, nursery: trio.Nursery) -> None:
        async def slowly(value: Json) -> None:
            await world.hear(value)
            await go_on.wait()

        nursery.start_soon(world.events.follow, Follow(), slowly)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(WAITING_MAX + 11):
            world.events.publish("tick", number=number)
            if number == 0:
                await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        world.events.publish("tick", number=-1)

    world = within(test)
    assert [event.get("number") for event in world.heard[: WAITING_MAX + 1]] == list(range(WAITING_MAX + 1))
    assert [(e["kind"], e.get("count"), e.get("number")) for e in world.heard[WAITING_MAX + 1 :]] == [
        ("missed", 10, None), ("tick", None, -1)
    ]  # fmt: skip


# -- on a socket -------------------------------------------------------------------------------------------------------


class Ticks:
    """A stream of large reports, and how many of its clients are there."""

    def __init__(self) -> None:
        self.running = 0

    async def run(self, params: Nothing, report: Report) -> Json:
        self.running += 1
        try:
            await report("begun")
            while True:
                await report("x" * 60_000)
        finally:
            self.running -= 1

    async def quiet(self, params: Nothing, report: Report) -> Json:
        self.running += 1
        try:
            await report("begun")
            await trio.sleep_forever()
        finally:
            self.running -= 1


@pytest.fixture
def ticks(tmp_path: Path) -> Iterator[tuple[Ticks, Path]]:
    served = Ticks()
    methods = {**METHODS, "ticks": streaming(Nothing, served.run), "quiet": streaming(Nothing, served.quiet)}
    with serving(tmp_path / "s", methods):
        yield served, tmp_path / "s"
    assert served.running == 0


@pytest.mark.parametrize("name", ["ticks", "quiet"])
def test_a_stream_ends_when_its_client_leaves(ticks: tuple[Ticks, Path], name: str) -> None:
    served, path = ticks
    client = Raw(path)
    client.send(request(name))
    assert client.receive()["method"] == "progress"
    assert served.running == 1
    client.close()
    assert eventually(lambda: served.running == 0)


def test_a_stream_ends_with_the_next_request_which_is_answered(ticks: tuple[Ticks, Path]) -> None:
    served, path = ticks
    client = Raw(path)
    client.send(request("quiet", 1))
    assert client.receive()["method"] == "progress"
    client.send(request("ping", 2))
    assert client.receive() == {"jsonrpc": "2.0", "result": None, "id": 1}
    assert client.receive() == {"jsonrpc": "2.0", "result": "pong", "id": 2}
    assert served.running == 0
    client.close()


def test_a_client_that_does_not_read_keeps_nobody_waiting_and_is_let_go(
    ticks: tuple[Ticks, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, path = ticks
    monkeypatch.setattr("tzfs.mount.control.STALLED_S", 0.2)
    client, other = Raw(path), Raw(path)
    client.send(request("ticks"))
    assert other.ask(request("ping"))["result"] == "pong"
    assert eventually(lambda: served.running == 0)
    other.close()
    client.close()


# -- on mounts ---------------------------------------------------------------------------------------------------------


def lines(process: subprocess.Popen[str], until: str) -> list[dict[str, Json]]:
    """The events up to one of that kind."""
    assert process.stdout is not None
    found: list[dict[str, Json]] = []
    while not found or found[-1]["kind"] != until:
        found.append(json.loads(process.stdout.readline()))
    return found


def test_events_follow_mounts_new_and_old_and_the_stores_own(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@before")
    process = workspace.start("events", "-f", "--json")
    try:
        assert [event["kind"] for event in lines(process, "snapshot")] == ["create", "snapshot"]
        with workspace.mounted():
            workspace.tzfs("snapshot", "ws@one")
            (one,) = lines(process, "snapshot")
            assert (one["filesystem"], one["snapshot"], one["entry"]) == ("ws", "one", 2)
            workspace.tzfs("rollback", "ws@before")
            workspace.tzfs("destroy", "ws@one")
            assert lines(process, "destroy")[-1]["snapshots"] == ["one"]
        workspace.tzfs("set", "agent:x=1", "ws")
        assert lines(process, "set")[-1]["value"] == "1"
    finally:
        process.terminate()
        process.communicate()


def test_events_of_one_filesystem_go_on_whether_or_not_it_is_mounted(workspace: Workspace) -> None:
    process = workspace.start("events", "-f", "--json", "ws")
    try:
        lines(process, "create")
        workspace.tzfs("snapshot", "ws@one")
        assert [event["entry"] for event in lines(process, "snapshot")] == [1]
        with workspace.mounted():
            workspace.tzfs("snapshot", "ws@two")
            assert [event["entry"] for event in lines(process, "snapshot")] == [2]
        workspace.tzfs("hold", "tag", "ws@two")
        assert [event["entry"] for event in lines(process, "hold")] == [3]
    finally:
        process.terminate()
        process.communicate()


def test_a_quota_that_fills_up_is_told(workspace: Workspace) -> None:
    workspace.tzfs("set", "inode_quota=10", "quota_interval=0.05", "ws")
    process = workspace.start("events", "-f", "--json", "ws")
    try:
        lines(process, "set")
        with workspace.mounted() as mnt:
            for number in range(9):
                (mnt / str(number)).touch()
            assert str(lines(process, "warning")[-1]["said"]).startswith("inode_quota has reached ")
    finally:
        process.terminate()
        process.communicate()


def test_a_warning_is_told_to_who_begins_to_listen_after_it(workspace: Workspace) -> None:
    workspace.tzfs("set", "inode_quota=10", "quota_interval=0.05", "ws")
    with workspace.mounted() as mnt:
        for number in range(9):
            (mnt / str(number)).touch()
        assert eventually(lambda: "inode_quota has reached" in workspace.tzfs("status"))
        process = workspace.start("events", "-f", "--json", "ws")
        try:
            assert str(lines(process, "warning")[-1]["said"]).startswith("inode_quota has reached ")
        finally:
            process.terminate()
            process.communicate()
