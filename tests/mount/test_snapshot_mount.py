"""A snapshot mounted in a process of its own, beside the writer."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace
from tzfs.control import connect
from tzfs.mount import mountpoint
from tzfs.store.lease import live_views

SIZE = 40_000


def test_a_snapshot_is_mounted_beside_its_writer_and_does_not_change(mounted: Workspace) -> None:
    (mounted.mnt / "file").write_bytes(b"before" * 50_000)
    (mounted.mnt / "gone").write_bytes(b"g")
    mounted.tzfs("snapshot", "ws@s")
    with mounted.mounted(name="ws@s", where=mounted.base / "past") as past:
        (mounted.mnt / "file").write_bytes(b"after" * 70_000)
        (mounted.mnt / "gone").unlink()
        (mounted.mnt / "new").mkdir()
        mounted.call("gc")
        assert sorted(os.listdir(past)) == ["file", "gone"]
        assert (past / "file").read_bytes() == b"before" * 50_000
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (past / "file").write_bytes(b"x")
        with pytest.raises(FileNotFoundError):
            os.stat(past / ".zfs")
        done = mounted.run("destroy", "ws")
        assert done.returncode == 75
    assert (mounted.mnt / "file").read_bytes() == b"after" * 70_000


def test_a_snapshot_reads_the_same_while_its_writer_changes_removes_and_collects(mounted: Workspace) -> None:
    """Each file's contents are its number over and over; what the writer writes later is never seen in the past."""
    files = 50
    for number in range(files):
        (mounted.mnt / f"{number}").write_bytes(b"%06d\n" % number * (SIZE // 7))
    mounted.tzfs("snapshot", "ws@s")
    ended = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            turn = 0
            while not ended.is_set():
                turn += 1
                for number in range(files):
                    path = mounted.mnt / f"{number}"
                    if (turn + number) % 3 == 0:
                        path.unlink(missing_ok=True)
                    else:
                        path.write_bytes(os.urandom(SIZE))
                mounted.call("gc")  # what nobody sees any more is given back, and its place used again
        except BaseException as error:
            failures.append(error)

    with mounted.mounted(name="ws@s", where=mounted.base / "past") as past:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            before = mounted.number("gc", "punched_bytes")
            rounds = 0
            while (rounds < 5 or mounted.number("gc", "punched_bytes") == before) and not failures:
                rounds += 1
                assert sorted(map(int, os.listdir(past))) == list(range(files))
                for number in range(files):
                    with open(past / f"{number}", "rb", buffering=0) as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # asks the mount each time
                        assert file.read() == b"%06d\n" % number * (SIZE // 7)
        finally:
            ended.set()
            writer.join()
    assert not failures


def test_a_snapshots_mount_that_is_killed_leaves_nothing_in_anybodys_way(mounted: Workspace) -> None:
    (mounted.mnt / "file").write_bytes(b"past")
    mounted.tzfs("snapshot", "ws@s")
    past = mounted.base / "past"
    with mounted.store() as store:
        folder = store.get("ws").folder
    pid = mounted.mount(name="ws@s", where=past)
    (view,) = live_views(folder)
    assert (view["pid"], view["name"], view["mountpoint"]) == (pid, "s", str(past))
    with connect(Path(str(view["socket"]))) as client:
        assert client.call("ping") == "pong"
    mounted.kill(pid)
    live, dead = mounted.tzfs("status", "-H").splitlines()
    assert live.split("\t")[:2] == ["ws", str(mounted.mnt)]
    assert dead.split("\t")[:4] == ["ws@s", str(past), "-", "dead"]
    assert live_views(folder) == []
    assert list((folder / "views").iterdir()) == []
    (mounted.mnt / "file").write_bytes(b"now")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.listdir(past)
    with mounted.mounted(name="ws@s", where=past):
        assert sum(m.path == past for m in mountpoint.mounts()) == 1
        assert (past / "file").read_bytes() == b"past"
        assert not Path(str(view["socket"])).exists()


def test_a_snapshots_mount_outlives_its_writers(workspace: Workspace) -> None:
    writer = workspace.mount()
    (workspace.mnt / "file").write_bytes(b"past")
    workspace.tzfs("snapshot", "ws@s")
    with workspace.mounted(name="ws@s", where=workspace.base / "past") as past:
        workspace.kill(writer)
        assert (past / "file").read_bytes() == b"past"
        with workspace.mounted():
            (workspace.mnt / "file").write_bytes(b"now")
            workspace.tzfs("sync", "ws")
            assert (past / "file").read_bytes() == b"past"
        assert sorted(os.listdir(past)) == ["file"]
