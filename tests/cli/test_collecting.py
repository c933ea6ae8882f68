"""gc: what it says, what it leaves on the disk, and the timer that runs it."""

from __future__ import annotations

import configparser
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace
from tests.noise import noise
from tzfs import failpoints
from tzfs.errors import TzfsError
from tzfs.lifecycle import Command
from tzfs.management import Store, open_store

SLACK_BYTES = 64 * 1024  # README: what a store that has been emptied takes more than one in which nothing ever was


def disk_bytes(path: Path) -> int:
    """What the store takes, as `du -B1` says."""
    return int(subprocess.run(["du", "-sB1", path], capture_output=True, text=True, check=True).stdout.split()[0])


def use(store: Store, name: str, *, files: int) -> None:
    """Writes small files and large ones, and removes them all."""
    with store.open(name) as fs:
        for number in range(files):
            fs.mkdir(f"/{number}")
            fs.write_bytes(f"/{number}/small", b"x" * 3000)
            fs.write_bytes(f"/{number}/large", noise(150_000, str(number)))
            if number % 50 == 0:
                fs.sync()
    with store.open(name) as fs:
        for number in range(files):
            fs.unlink(f"/{number}/small")
            fs.unlink(f"/{number}/large")
            fs.rmdir(f"/{number}")


def test_when_everything_is_removed_and_collected_a_store_takes_what_an_empty_one_does(tmp_path: Path) -> None:
    with open_store(tmp_path / "empty") as store:
        store.create("ws")
        use(store, "ws", files=0)
        store.collect("ws")
    with open_store(tmp_path / "used") as store:
        store.create("ws")
        use(store, "ws", files=400)
        done = store.collect("ws")
        assert done.tables > 1 << 20
        assert done.segments > 0
        assert not done.in_use
        assert store.check("ws").found == 0
    used, empty = disk_bytes(tmp_path / "used"), disk_bytes(tmp_path / "empty")
    assert used <= empty + SLACK_BYTES, (used, empty)
    with open_store(tmp_path / "used") as store:
        for _ in range(3):  # what is written again and again does not add up either
            use(store, "ws", files=20)
            store.collect("ws")
        store.destroy("ws")
    with open_store(tmp_path / "empty") as store:
        store.destroy("ws")
    used, empty = disk_bytes(tmp_path / "used"), disk_bytes(tmp_path / "empty")
    assert used <= empty + SLACK_BYTES, (used, empty)


def test_all_serves_what_nobody_has_open_and_one_failure_keeps_none_from_its_turn(tzfs: CommandLine) -> None:
    for name in ("a", "b", "c", "d"):
        tzfs.ok("create", name)
    with open_store(tzfs.store) as store:
        store.set_property("/", "gc_interval", "0")
        for name in ("a", "b", "c", "d"):
            with store.open(name) as fs:
                fs.write_bytes("/file", noise(100_000, "x"))
                fs.sync()
                fs.unlink("/file")
        store.archive("d")
        failpoints.arm("punch.extent", "error:EIO")
        try:
            with store.open("a"):
                failed: list[TzfsError] = []
                found = dict(store.collect_unused(failed.append))
        finally:
            failpoints.disarm_all()
        assert [str(name) for name in found] == ["c", "d"]
        (error,) = failed
        assert str(error).startswith("b: ")
        assert "Input/output error" in str(error)
        assert [done.bytes for done in found.values()] == [102_400, 102_400]
    out = tzfs.ok("gc", "--all")
    assert [line.split(":")[0] for line in out.splitlines()] == ["a", "b", "c", "d"]
    assert out.count("100K given back") == 2
    again = tzfs.json("gc", "--all", "--json")
    assert isinstance(again, list)
    assert [row["name"] for row in again] == ["a", "b", "c", "d"]


def test_all_leaves_a_mounted_filesystem_to_its_mount(workspace: Workspace) -> None:
    workspace.tzfs("create", "other")
    with workspace.mounted():
        assert [line.split(":")[0] for line in workspace.tzfs("gc", "--all").splitlines()] == ["other"]


def test_tasks_that_are_due_are_run_for_what_nobody_has_open(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        store.create("ws", {"compact_interval": "0.001"})
        failed: list[TzfsError] = []
        list(store.collect_unused(failed.append))
        assert not failed
        with store.writer("ws", {"kind": "test"}, Command.OPEN) as writer:
            assert writer.engine.task_rows.all()["compact"]["failures"] == 0


def test_what_to_collect_is_said_one_way(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    for arguments in ([], ["--all", "ws"], ["--all", "--print-unit", "timer"]):
        assert "give a filesystem, or --all" in tzfs.refused("gc", *arguments, code=2)


class Unit(configparser.ConfigParser):
    """A unit file, whose keys are told apart by case."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.mark.parametrize("unit", ["service", "timer"])
def test_a_printed_unit_is_one_that_runs_this_program_on_this_store(tzfs: CommandLine, unit: str) -> None:
    tzfs.ok("create", "ws")
    text = tzfs.ok("gc", "--print-unit", unit)
    parsed = Unit(interpolation=None)
    parsed.read_string(text)
    if unit == "timer":
        assert parsed["Install"]["WantedBy"] == "timers.target"
        assert parsed["Timer"]["OnUnitActiveSec"] == "1h"
        return
    assert parsed["Service"]["Type"] == "oneshot"
    command = shlex.split(parsed["Service"]["ExecStart"])
    assert os.path.isabs(command[0])
    assert command[-4:] == ["--store", str(tzfs.store.resolve()), "gc", "--all"]
