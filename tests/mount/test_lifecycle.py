"""A mount from start to end: when it is ready, how it ends, what a failed start leaves, and who else may come."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.workspace import PATIENCE_S, PROJECT, Workspace, eventually
from tests.noise import noise
from tzfs.errors import Busy
from tzfs.mount import mountpoint

ENDS: dict[str, Callable[[Workspace, int], object]] = {
    "SIGTERM": lambda w, pid: w.kill(pid, signal.SIGTERM),
    "SIGINT": lambda w, pid: w.kill(pid, signal.SIGINT),
    "umount(8)": lambda w, pid: subprocess.run(["umount", w.mnt], check=True, timeout=PATIENCE_S),
    "fusermount3 -u": lambda w, pid: subprocess.run(["fusermount3", "-u", w.mnt], check=True, timeout=PATIENCE_S),
    "tzfs umount": lambda w, pid: w.tzfs("umount", w.mnt),
    "control socket": lambda w, pid: w.call("unmount"),
}


def test_a_mount_is_usable_when_the_command_returns(workspace: Workspace) -> None:
    workspace.mount()
    (workspace.mnt / "file").write_bytes(b"at once")
    assert (workspace.mnt / "file").read_bytes() == b"at once"
    assert workspace.call("ping") == "pong"


@pytest.mark.parametrize("end", ENDS)
def test_an_orderly_end_keeps_everything_and_leaves_nothing(workspace: Workspace, end: str) -> None:
    workspace.tzfs("set", "txg_interval=60s", "ws")  # nothing becomes durable by itself
    pid = workspace.mount()
    for i in range(50):
        (workspace.mnt / f"{i}").write_bytes(bytes([i]) * 1000 * i)
    removed = os.open(workspace.mnt / "49", os.O_RDONLY)
    (workspace.mnt / "49").unlink()
    os.close(removed)
    ENDS[end](workspace, pid)
    if not end.startswith("SIG"):
        workspace.ended(pid)
    assert workspace.leftovers() == []
    assert workspace.problems() == []
    with workspace.mounted():
        assert sorted(map(int, os.listdir(workspace.mnt))) == list(range(49))
        assert all((workspace.mnt / f"{i}").read_bytes() == bytes([i]) * 1000 * i for i in range(49))


def test_a_signal_while_a_program_is_in_the_mount_lets_it_finish_and_a_second_one_does_not(
    workspace: Workspace,
) -> None:
    pid = workspace.mount()
    held = os.open(workspace.mnt / "file", os.O_CREAT | os.O_RDWR)
    try:
        os.kill(pid, signal.SIGTERM)
        assert eventually(lambda: mountpoint.mount_at(workspace.mnt) is None)
        assert os.write(held, b"still here") == 10
        os.fsync(held)
        workspace.kill(pid, signal.SIGTERM)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.write(held, b"gone")
    finally:
        with contextlib.suppress(OSError):  # its mount has gone
            os.close(held)
    assert workspace.problems() == []
    with workspace.mounted():
        assert (workspace.mnt / "file").read_bytes() == b"still here"


def test_what_was_removed_while_open_is_given_back_when_it_is_closed_and_nothing_else_happens(
    mounted: Workspace,
) -> None:
    held = os.open(mounted.mnt / "file", os.O_CREAT | os.O_RDWR)
    os.write(held, noise(1 << 20))
    os.fsync(held)
    os.unlink(mounted.mnt / "file")
    mounted.call("sync")
    os.close(held)
    assert eventually(lambda: mounted.number("gc", "punched_bytes") >= 1 << 20)
    assert mounted.number("orphans") == 0


# -- what stands in the way of a start -----------------------------------------------------------------------------


def test_a_second_mount_for_writing_is_refused_and_names_the_first(mounted: Workspace) -> None:
    other = mounted.base / "other"
    other.mkdir()
    done = mounted.run("mount", "ws", other)
    assert done.returncode == 75
    assert str(mounted.mnt) in done.stderr
    with mounted.store() as store, pytest.raises(Busy) as caught:
        store.open("ws")
    assert str(mounted.mnt) in caught.value.holders[0]
    assert mountpoint.mount_at(other) is None
    assert mounted.call("ping") == "pong"


def test_of_two_mounts_begun_at_once_one_wins_and_the_other_names_it(workspace: Workspace) -> None:
    other = workspace.base / "other"
    other.mkdir()
    for _ in range(3):
        with workspace.start("mount", "ws", workspace.mnt) as first, workspace.start("mount", "ws", other) as second:
            said = [p.communicate(timeout=PATIENCE_S)[1] for p in (first, second)]
        codes = [first.returncode, second.returncode]
        assert sorted(codes) == [0, 75], said
        assert "in use by" in said[codes.index(75)]
        info = workspace.call("info")
        assert isinstance(info, dict)
        won = [workspace.mnt, other][codes.index(0)]
        assert info["mountpoint"] == str(won)
        workspace.tzfs("umount", won)
        assert workspace.leftovers() == []


def test_a_mounted_filesystem_is_neither_archived_nor_destroyed(mounted: Workspace) -> None:
    for command in ("archive", "destroy"):
        done = mounted.run(command, "ws")
        assert done.returncode == 75, command
        assert str(mounted.mnt) in done.stderr, command
    (mounted.mnt / "file").write_bytes(b"alive")


def test_a_mountpoint_left_by_a_kill_is_taken_over_by_the_next_mount(workspace: Workspace) -> None:
    workspace.kill(workspace.mount())
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.listdir(workspace.mnt)
    with workspace.mounted():
        assert sum(m.path == workspace.mnt for m in mountpoint.mounts()) == 1
        (workspace.mnt / "file").write_bytes(b"alive")


def test_a_dead_mountpoint_can_be_unmounted_by_the_command(workspace: Workspace) -> None:
    workspace.kill(workspace.mount())
    workspace.tzfs("umount", workspace.mnt)
    assert mountpoint.mount_at(workspace.mnt) is None
    with workspace.mounted():
        pass


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda d: None, 1, "no such directory"),
        (lambda d: d.write_bytes(b""), 1, "not a directory"),
        (lambda d: d.symlink_to("nowhere"), 1, "no such directory"),
        (lambda d: (d / "below").mkdir(parents=True), 1, "not empty"),
        (lambda d: d.symlink_to(d.parent / "store" / "fs"), 2, "part of the store"),
        (lambda d: d.symlink_to(d.parent), 2, "would hide"),
    ],
    ids=["absent", "file", "dangling", "not empty", "in the store", "over the store"],
)
def test_a_mountpoint_that_is_none_is_refused(
    workspace: Workspace, make: Callable[[Path], object], code: int, words: str
) -> None:
    where = workspace.base / "place"
    make(where)
    done = workspace.run("mount", "ws", where)
    assert done.returncode == code
    assert words in done.stderr
    assert workspace.leftovers() == []


def test_what_is_in_the_directory_is_hidden_where_that_is_asked_for_and_back_afterwards(workspace: Workspace) -> None:
    (workspace.mnt / "precious").write_bytes(b"kept")
    with workspace.mounted("nonempty"):
        assert os.listdir(workspace.mnt) == []
    assert (workspace.mnt / "precious").read_bytes() == b"kept"


def test_a_filesystem_is_not_mounted_within_itself(mounted: Workspace) -> None:
    inside = mounted.mnt / "inside"
    inside.mkdir()
    for where in (inside, mounted.mnt):
        done = mounted.run("mount", "ws", where)
        assert done.returncode == 75
        assert str(mounted.mnt) in done.stderr
    assert mounted.call("ping") == "pong"


def test_a_name_that_is_not_there_is_refused(workspace: Workspace) -> None:
    for name in ("nobody", "ws@nothing"):
        done = workspace.run("mount", name, workspace.mnt)
        assert (done.returncode, name.partition("@")[2] in done.stderr) == (1, True)
    assert workspace.leftovers() == []


# -- a start that fails half-way -----------------------------------------------------------------------------------

POINTS_OF_A_WRITER = (
    "lease.open",
    "lease.lock",
    "lease.info",
    "writer.lease",
    "writer.meta",
    "writer.payload",
    "open.generation",
    "open.trim",
    "mount.before",
    "mount.ready",
)
POINTS_OF_A_READER = ("view.create", "view.lock", "reader.hold", "mount.before", "mount.ready")


FAILED_STARTS = (
    ("writer.meta", "ws", "error:EIO"),
    ("open.generation", "ws", "error:ENOSPC"),
    ("mount.ready", "ws", "error:EIO"),
    ("writer.payload", "ws", "crash"),
    ("mount.before", "ws", "crash"),
    ("mount.ready", "ws", "crash"),
    ("reader.hold", "ws@s", "error:EIO"),
    ("view.lock", "ws@s", "crash"),
)
CRASHED_AT = frozenset(point for point, _, action in FAILED_STARTS if action == "crash")


@pytest.mark.parametrize(("point", "name", "action"), FAILED_STARTS)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    workspace: Workspace, point: str, name: str, action: str
) -> None:
    workspace.tzfs("snapshot", "ws@s")
    with workspace.mounted():
        (workspace.mnt / "file").write_bytes(bytes(100_000))  # a segment, for `open.trim`
    done = workspace.run("mount", name, workspace.mnt, failpoints=f"{point}={action}")
    assert done.returncode == {"error:EIO": 74, "error:ENOSPC": 1, "crash": 74}[action], done.stderr
    assert {"error:EIO": "Input/output", "error:ENOSPC": "No space", "crash": "ended before"}[action] in done.stderr
    if action != "crash":
        assert workspace.leftovers() == []
    with workspace.mounted(name=name):
        os.listdir(workspace.mnt)
    assert workspace.leftovers() == []


def test_a_failed_start_gives_back_every_descriptor_thread_lock_mount_and_socket(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@s")
    with workspace.mounted():
        (workspace.mnt / "file").write_bytes(bytes(100_000))
    for name, points in (("ws", POINTS_OF_A_WRITER), ("ws@s", POINTS_OF_A_READER)):
        process = subprocess.run(
            [sys.executable, "-m", "tests.mount.failing_starts", workspace.store_path, name, workspace.mnt, *points],
            cwd=PROJECT,
            env=workspace.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        said = json.loads(process.stdout)
        assert [s["point"] for s in said] == [*points, ""]
        assert [s["error"] for s in said] == ["StoreError"] * len(points) + [""], said
        assert [s["left"] for s in said] == [[]] * len(said)
        assert workspace.leftovers() == []
