"""The snapshots and the entry of a command: what is there whenever it breaks off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tzfs
from tests.engine.conftest import Workspace
from tzfs.errors import NotFound
from tzfs.lifecycle import Command
from tzfs.runs import MARK, Runs, running, undone


@pytest.fixture
def ws() -> Workspace:
    return Workspace()


def begin(runs: Runs) -> int:
    return runs.begin(["make"], "/ws", os.getpid()).entry


def fields(ws: Workspace, entry: int) -> dict[str, object]:
    found = ws.engine.journal.get(entry)
    assert found is not None
    return {name: value for name, value in found.fields.items() if name not in ("argv", "cwd", "pid", "started")}


def test_the_entry_and_the_snapshots_come_in_one_commit_each(ws: Workspace) -> None:
    ws.file(b"a")
    commits, runs = ws.engine.commits, Runs(ws.engine)
    entry = begin(runs)
    assert ws.engine.commits == commits + 2  # what was there, and the snapshot
    ws.file(b"b")
    assert runs.end(entry, {"code": 0}).after == "run-1-after"
    assert fields(ws, entry) == {"before": "run-1-before", "after": "run-1-after", "code": 0}
    assert {s.properties[MARK] for s in ws.engine.snapshots().values()} == {"1"}
    ws.crash()
    assert fields(ws, entry) == {"before": "run-1-before", "after": "run-1-after", "code": 0}
    ws.assert_sound()


def test_a_crash_in_between_leaves_an_entry_that_has_not_ended(ws: Workspace) -> None:
    ws.file(b"a")
    entry = begin(Runs(ws.engine))
    ws.file(b"b")
    ws.crash()
    assert fields(ws, entry) == {"before": "run-1-before"}
    assert [*ws.engine.snapshots()] == ["run-1-before"]
    with pytest.raises(NotFound, match="no command 1 is running"):
        Runs(ws.engine).end(entry, {"code": 0})
    ws.assert_sound()


def test_a_command_that_changes_nothing_gives_its_snapshot_back(ws: Workspace) -> None:
    ws.file(b"a")
    runs = Runs(ws.engine)
    entry = begin(runs)
    ended = runs.end(entry, {"code": 1})
    assert (ended.before, ended.after, ended.needless) == (None, None, "run-1-before")
    assert fields(ws, entry) == {"before": None, "code": 1}
    ws.engine.snapshot("mine")
    again = begin(runs)
    assert fields(ws, again) == {"before": "mine"}
    assert runs.end(again, {"code": 0}).needless is None  # it is not the command's


def test_commands_at_once_do_not_share_a_snapshot_that_may_go(ws: Workspace) -> None:
    ws.file(b"a")
    runs = Runs(ws.engine)
    first, second = begin(runs), begin(runs)
    needless = runs.end(first, {"code": 0}).needless
    assert needless == "run-1-before"
    ws.engine.destroy([needless])
    ws.file(b"b")
    ended = runs.end(second, {"code": 0})
    assert (ended.before, ended.after) == ("run-2-before", "run-2-after")
    assert {"run-2-before", "run-2-after"} <= set(ws.engine.snapshots())


def test_a_snapshot_before_that_has_gone_meanwhile_is_done_without(ws: Workspace) -> None:
    ws.file(b"a")
    runs = Runs(ws.engine)
    entry = begin(runs)
    ws.engine.destroy(["run-1-before"])
    ws.file(b"b")
    ended = runs.end(entry, {"code": 0})
    assert (ended.before, ended.after, ended.needless) == (None, None, None)


def test_names_that_are_taken_are_passed_over(ws: Workspace) -> None:
    ws.engine.snapshot("run-2-before")  # which is entry 1
    ws.file(b"a")
    assert Runs(ws.engine).begin([], "/", 1).before == "run-2-before-2"


def test_an_undo_is_an_entry_with_two_snapshots(ws: Workspace) -> None:
    ws.engine.snapshot("safety")
    ws.file(b"a")
    assert undone(ws.engine, 7, "safety") == (2, "undo-2")
    assert fields(ws, 2) == {"undone": 7, "before": "safety", "after": "undo-2"}


def test_a_process_runs_until_it_has_ended() -> None:
    stat = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    assert running({"pid": os.getpid(), "started": stat})
    assert not running({"pid": os.getpid(), "started": "1"})
    assert not running({"pid": None, "started": None})


def test_the_library_logs_and_undoes_as_the_command_line_does(tmp_path: Path) -> None:
    with tzfs.open_store(tmp_path) as store:
        store.create("ws")
        writer = store.writer("ws", {"kind": "test"}, Command.OPEN)
        with writer:
            runs = Runs(writer.engine)
            entry = runs.begin(["make"], "/", os.getpid()).entry
            writer.engine.mkdir(1, b"made", 0o755, uid=0, gid=0)
            runs.end(entry, {"code": 0})
        assert tzfs.undo(store, "ws").undone == entry
        with store.open("ws") as fs:
            assert fs.listdir("/") == []
            assert [logged.kind for logged in fs.log()] == ["run", "snapshot", "rollback", "undo"]
        tzfs.undo(store, "ws")
        with store.open("ws") as fs:
            assert fs.listdir("/") == ["made"]
        assert [logged.kind for logged in tzfs.log(store, "ws")][:2] == ["create", "run"]
