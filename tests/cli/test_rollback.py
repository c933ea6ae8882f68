"""tzfs rollback -r: the newer snapshots go once it is rolled back, all of them, or nothing is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace
from tzfs.errors import Busy, NotFound
from tzfs.management import open_store
from tzfs.opening import Reader
from tzfs.time_travel import rollback


def history(tzfs: CommandLine, write: Callable[[str], object]) -> None:
    for name in ("a", "b", "c"):
        write(name)
        tzfs.ok("snapshot", f"ws@{name}")
    write("now")


def snapshots(tzfs: CommandLine) -> list[str]:
    return tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot", "ws").split()


def check(tzfs: CommandLine, contents: Callable[[], str]) -> None:
    """From a history of three snapshots on."""
    tzfs.ok("hold", "keep", "ws@c")
    for options in (["-n"], []):
        told = tzfs.refused("rollback", *options, "-r", "ws@a", code=75)
        assert "cannot destroy ws@b, ws@c: in use by hold keep on @c\n" in told
    assert (contents(), snapshots(tzfs)) == ("now", ["ws@a", "ws@b", "ws@c"])
    tzfs.ok("release", "keep", "ws@c")

    would = tzfs.ok("rollback", "-n", "-r", "ws@a")
    assert would.endswith("\nwould destroy ws@b\nwould destroy ws@c\n")
    assert (contents(), snapshots(tzfs)) == ("now", ["ws@a", "ws@b", "ws@c"])
    told = tzfs.ok("rollback", "-r", "ws@a")
    assert told.endswith("\ndestroyed ws@b\ndestroyed ws@c\n")
    first, safety = snapshots(tzfs)
    assert (contents(), first) == ("a", "ws@a")
    assert f"the state before is {safety}\n" in told

    done = json.loads(tzfs.ok("rollback", "--json", "-r", safety))
    assert (done["destroyed"], contents()) == ([], "now")
    assert tzfs.ok("check", "--payload", "ws").startswith("ws: no problems")


def test_newer_snapshots_go_but_for_that_of_the_state_before_under_a_mount(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, workspace.environment[variable])
    tzfs = CommandLine(workspace.store_path)
    with workspace.mounted():
        file = workspace.mnt / "f"
        history(tzfs, file.write_text)
        check(tzfs, file.read_text)


def test_newer_snapshots_go_but_for_that_of_the_state_before(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")

    def write(text: str) -> None:
        with open_store(tzfs.store) as store, store.open("ws") as fs:
            fs.write_text("f", text)

    def contents() -> str:
        with open_store(tzfs.store) as store, store.open_readonly("ws") as tree:
            return tree.read_text("f")

    history(tzfs, write)
    check(tzfs, contents)


def test_who_comes_to_read_one_meanwhile_keeps_everything_as_it_was(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    with open_store(tzfs.store) as store:
        with store.open("ws") as fs:
            for name in ("a", "b", "c"):
                fs.write_text("f", name)
                fs.snapshot(name)
        readers: list[Reader] = []

        def hear(done: int, total: int) -> None:
            if not readers:
                readers.append(store.reader("ws@b"))

        with pytest.raises(Busy, match=f"cannot destroy ws@b, ws@c: in use by pid {os.getpid()}, reading @b"):
            rollback(store, "ws@a", destroy_newer=True, progress=hear)
        readers[0].close()
        with store.open_readonly("ws") as tree:
            assert tree.read_text("f") == "c"
    first, b, c, safety = snapshots(tzfs)
    assert (first, b, c) == ("ws@a", "ws@b", "ws@c")
    assert f"destroyed ws@b\ndestroyed ws@c\ndestroyed {safety}\n" in tzfs.ok("rollback", "-r", "ws@a")


def test_an_open_filesystem_destroys_snapshots_too(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        for name in ("a", "b", "c", "d"):
            fs.write_text("f", name * 9000)
            fs.snapshot(name)
        freed = fs.destroy_snapshots("b")
        assert (freed.names, freed.bytes > 0) == (("b",), True)
        with pytest.raises(NotFound):
            fs.destroy_snapshots("a", "b")
        fs.hold("keep", "d")
        for refused in (lambda: fs.rollback("a", recursive=True), lambda: fs.destroy_snapshots("c", "d")):
            with pytest.raises(Busy, match="hold keep on @d"):
                refused()
        assert [*fs.snapshots()] == ["a", "c", "d"]
        fs.release("keep", "d")
        store.clone("ws@c", "other")
        with pytest.raises(Busy, match="clone other of @c"):
            fs.rollback("a", recursive=True)
        store.destroy("other")
        done = fs.rollback("a", recursive=True)
        assert done.destroyed == done.newer == ("c", "d")
        assert [*fs.snapshots()] == ["a", done.safety]
        assert fs.read_text("f") == "a" * 9000
        fs.collect()
        assert fs._engine.problems() == []
