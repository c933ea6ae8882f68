"""run that remembers, log, show and undo: the same whether `run` mounts the workspace or it is mounted already."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.mount.workspace import Workspace, eventually
from tzfs.jsonrpc import Json
from tzfs.mount import mountpoint

Logged = dict[str, Json]


@pytest.fixture(params=["mounted", "not mounted"])
def either(request: pytest.FixtureRequest, workspace: Workspace) -> Iterator[Workspace]:
    if request.param == "mounted":
        workspace.mount()
    yield workspace
    for pid in workspace.daemons():
        workspace.unmount(pid)
    assert workspace.problems() == []


def sh(ws: Workspace, script: str) -> None:
    done = ws.run("run", "ws", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, ""), done


def log(ws: Workspace, kind: str = "run") -> list[Logged]:
    found = json.loads(ws.tzfs("log", "--json", "ws"))
    return [entry for entry in found if entry["kind"] == kind]


def snapshots(ws: Workspace) -> list[str]:
    return ws.tzfs("list", "-H", "-o", "name", "-t", "snapshot").split()


def test_a_command_that_changes_something_is_remembered_with_what_it_changed(either: Workspace) -> None:
    sh(either, "mkdir d; echo 1 > d/a; echo 1 > b; echo 1 > c")
    sh(either, "echo 22 > b; mv c e; rm d/a; echo new > f; exit 0")
    first, second = log(either)
    assert first["argv"] == ["sh", "-c", "mkdir d; echo 1 > d/a; echo 1 > b; echo 1 > c"]
    assert (first["code"], first["added"], first["removed"], first["renamed"]) == (0, 4, 0, 0)
    assert (second["added"], second["removed"], second["renamed"]) == (1, 1, 1)
    assert isinstance(second["duration_ns"], int)
    assert second["before"] == first["after"]  # nothing was changed between the two
    assert snapshots(either) == [f"ws@{name}" for name in ("run-1-before", "run-1-after", "run-2-after")]
    assert either.tzfs("get", "-H", "-o", "value", "tzfs:run", "ws@run-1-before") == "1\n"
    shown = either.tzfs("show", "ws", "2").splitlines()
    assert {line.replace("\t", " ") for line in shown} >= {"+ /f", "- /d/a", "R /c -> /e"}
    assert "+22" in either.tzfs("show", "--patch", "ws").splitlines()
    assert [json.loads(line)["path"] for line in either.tzfs("show", "--json", "ws", "2", "/f").splitlines()] == ["/f"]


def test_a_command_that_changes_nothing_leaves_an_entry_and_no_snapshots(either: Workspace) -> None:
    assert either.run("run", "ws", "--", "sh", "-c", "exit 3").returncode == 3
    assert either.run("run", "ws", "--", "sh", "-c", "touch f; rm f; kill -9 $$").returncode == 128 + 9
    first, second = log(either)
    assert (first["code"], first.get("before"), first.get("after")) == (3, None, None)
    assert (second["code"], second["signal"]) == (128 + 9, "SIGKILL")
    assert [name for name in snapshots(either) if "run-1" in name] == []
    refused = either.run("show", "ws", "1")
    assert refused.returncode != 0
    assert "entry 1 of ws changed nothing" in refused.stderr


def test_nothing_is_remembered_where_that_is_not_wanted(either: Workspace) -> None:
    either.tzfs("run", "--no-journal", "ws", "--", "sh", "-c", "echo > f")
    assert (log(either), snapshots(either)) == ([], [])


def test_an_undo_takes_back_the_last_command_and_can_be_undone(either: Workspace) -> None:
    sh(either, "echo 1 > f")
    sh(either, "echo 2 > f; echo 2 > g")
    either.tzfs("undo", "ws")
    assert either.tzfs("run", "--no-journal", "ws", "--", "sh", "-c", "cat f; ls") == "1\nf\n"
    assert log(either, "undo")[-1]["undone"] == 2
    either.tzfs("undo", "ws")
    assert either.tzfs("run", "--no-journal", "ws", "--", "sh", "-c", "cat f; ls") == "2\nf\ng\n"
    assert len(log(either, "undo")) == 2


def test_an_undo_that_was_killed_after_its_rollback_is_only_noted_by_the_next(either: Workspace) -> None:
    sh(either, "echo 1 > f")
    sh(either, "echo 2 > f")
    either.tzfs("rollback", "ws@run-1-after")  # where entry 2 began
    either.tzfs("undo", "ws", "2")
    assert log(either, "undo")[-1]["undone"] == 2
    assert either.tzfs("run", "--no-journal", "ws", "--", "cat", "f") == "1\n"
    either.tzfs("undo", "ws")
    assert either.tzfs("run", "--no-journal", "ws", "--", "cat", "f") == "2\n"


def test_an_undo_is_refused_where_something_was_changed_since(either: Workspace) -> None:
    sh(either, "echo 1 > f")
    either.tzfs("run", "--no-journal", "ws", "--", "sh", "-c", "echo 2 > g")
    refused = either.run("undo", "ws")
    assert refused.returncode != 0
    assert refused.stderr.startswith("tzfs: cannot undo entry 1 of ws: ")
    assert "/g" in refused.stderr
    assert "hint: tzfs restore ws@run-1-before PATH" in refused.stderr
    assert either.tzfs("run", "--no-journal", "ws", "--", "cat", "f", "g") == "1\n2\n"


def test_what_is_not_there_cannot_be_shown_or_undone(either: Workspace) -> None:
    for arguments, words in (
        (("undo", "ws"), "ws has no entry that changed anything"),
        (("undo", "ws", "9"), "the log of ws has no entry 9"),
        (("show", "ws"), "ws has no entry that changed anything"),
        (("show", "none"), "there is no such filesystem"),
    ):
        refused = either.run(*arguments)
        assert (refused.returncode != 0, words in refused.stderr) == (True, True), refused
    sh(either, "echo > f")
    either.tzfs("destroy", "ws@run-1-before")
    assert "snapshot run-1-before is gone" in either.run("undo", "ws").stderr
    either.tzfs("hold", "keep", "ws@run-1-after")
    assert "entry 2 of ws is a destroy, not a command" in either.run("undo", "ws", "2").stderr


def test_a_snapshot_that_cannot_be_taken_keeps_no_command_from_running(either: Workspace) -> None:
    either.tzfs("snapshot", "ws@a")
    either.tzfs("run", "--no-journal", "ws", "--", "sh", "-c", "echo > f")
    either.tzfs("set", "snapshot_limit=1", "ws")
    done = either.run("run", "ws", "--", "sh", "-c", "echo out; echo > g")
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert done.stderr.startswith("tzfs: no snapshot before the command: ")
    (entry,) = log(either)
    assert (entry["code"], "snapshot" in str(entry["said"])) == (0, True)


def test_commands_at_once_are_each_remembered(either: Workspace) -> None:
    scripts = [f"echo {n} > f{n}; while [ $(ls f* | wc -l) -lt 4 ]; do sleep 0.01; done" for n in range(4)]
    processes = [either.start("run", "ws", "--", "sh", "-c", script) for script in scripts]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
    entries = log(either)
    assert [entry["code"] for entry in entries] == [0] * 4
    there = {name.partition("@")[2] for name in snapshots(either)}
    for entry in entries:
        assert {entry["before"], entry["after"]} <= there


def test_a_command_whose_run_was_killed_is_shown_as_interrupted(workspace: Workspace) -> None:
    workspace.mount()
    with workspace.start("run", "ws", "--", "sh", "-c", "echo > f; echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        command = process.stdout.readline()
        (entry,) = log(workspace)
        assert entry["state"] == "running"
        assert "is still running" in workspace.run("undo", "ws", str(entry["entry"])).stderr
        process.kill()
    (entry,) = log(workspace)
    assert (entry["state"], entry.get("code")) == ("interrupted", None)
    assert "was interrupted" in workspace.run("show", "ws", str(entry["entry"])).stderr
    with suppress(ProcessLookupError):
        os.kill(int(command), signal.SIGKILL)  # it has the mount


def test_after_a_crash_of_the_mount_an_entry_is_whole_or_interrupted(workspace: Workspace) -> None:
    pid = workspace.mount()
    sh(workspace, "echo 1 > f")
    told = workspace.base / "told"
    os.mkfifo(told)
    process = workspace.start("run", "ws", "--", "sh", "-c", f"echo 2 > f; echo ready; read x < {told}")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    workspace.call("sync")
    workspace.kill(pid)
    told.write_text("go on\n")
    _, err = process.communicate(timeout=60)
    assert eventually(lambda: process.poll() is not None)
    assert "how the command ended is not in the log" in err
    first, second = log(workspace)
    assert (first["code"], first["added"]) == (0, 1)
    assert (second["state"], second.get("after")) == ("interrupted", None)
    mountpoint.unmount(workspace.mnt, lazy=True)
    with workspace.mounted():
        assert log(workspace)[1]["state"] == "interrupted"
    assert workspace.problems() == []


def test_a_command_without_end_of_words_is_remembered_cut(either: Workspace) -> None:
    words = [f"word-{n}" * 20 for n in range(3000)]
    either.tzfs("run", "ws", "--", "true", *words, os.fsdecode(b"caf\xe9"))
    (entry,) = log(either)
    assert entry["cut"] is True
    assert isinstance(entry["argv"], list)
    assert entry["argv"][0] == "true"


def test_forks_run_at_once_in_clones_of_their_own(either: Workspace) -> None:
    sh(either, "echo 1 > f")
    script = "echo from $TZFS_FORK; cp f g$TZFS_FORK; exit $((TZFS_FORK == 1))"
    done = either.run("run", "--fork", "3", "--json", "ws", "--", "sh", "-c", script)
    assert done.returncode == 1
    assert sorted(done.stderr.splitlines()) == [f"[{n}] from {n}" for n in range(3)]
    outcomes = json.loads(done.stdout)
    assert [(o["fork"], o["clone"], o["code"], o["added"]) for o in outcomes] == [
        (n, f"ws-fork1-{n}", int(n == 1), 1) for n in range(3)
    ]
    assert either.tzfs("run", "--no-journal", "ws", "--", "ls") == "f\n"
    assert either.tzfs("run", "--no-journal", "ws-fork1-2", "--", "sh", "-c", "ls; cat g2") == "f\ng2\n1\n"
    again = either.run("run", "--fork", "1", "ws", "--", "true")
    assert (again.returncode, "ws-fork2-0" in again.stdout, again.stdout.split()[:3]) == (
        0,
        True,
        ["FORK", "CLONE", "CODE"],
    )
