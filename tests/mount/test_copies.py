"""Copies of a store: one made while it is mounted opens at a commit or is refused; none is taken for the original."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiers
from tests.mount.workspace import PATIENCE_S, PROJECT, Workspace
from tzfs.errors import TzfsError
from tzfs.management import open_store

COPIES = tiers.number("COPIES", short=3, long=40)

COPIED_WRITER = """
import os, sys
os.chdir(sys.argv[1])
n = 0
while True:
    with open("tmp", "wb", buffering=0) as file:
        file.write(b"%08d" % n * (1 + n % 9 * 2000))
        os.fsync(file.fileno())
    os.rename("tmp", f"file-{n % 20}")
    if n == 60:
        print("ready", flush=True)
    n += 1
"""


def test_a_store_copied_while_mounted_is_refused_with_a_reason_or_stands_at_a_commit(workspace: Workspace) -> None:
    pid = workspace.mount()
    writer = subprocess.Popen([sys.executable, "-c", COPIED_WRITER, workspace.mnt], stdout=subprocess.PIPE)
    copies = [workspace.base / f"copy-{i}" for i in range(COPIES)]
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        for copy in copies:
            subprocess.run(["cp", "-a", workspace.store_path, copy], check=True)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.communicate(timeout=PATIENCE_S)
    for copy in copies:
        refused = _read_copy(copy)
        assert refused is None or "copy that was made while" in refused, refused
        for place in copy.rglob("place"):  # "to have the copy checked and opened as it is"
            place.unlink()
        refused = _read_copy(copy)
        assert refused is None or "another moment" in refused or "damaged" in refused or "cut short" in refused, refused
    assert workspace.call("ping") == "pong"
    workspace.unmount(pid)
    shutil.copytree(workspace.store_path, workspace.base / "idle")
    assert _read_copy(workspace.base / "idle") is None
    assert workspace.problems() == []


def _read_copy(copy: Path) -> str | None:
    """Why the copy is refused, as a whole or a file of it; None where all that it has is as it was written."""
    try:
        with open_store(copy, create=False) as store, store.open("ws") as fs:
            names = fs.listdir("/")
            assert len([name for name in names if name != "tmp"]) == 20
            for name in names:
                data = fs.read_bytes(name)
                n = data[:8]
                assert name == "tmp" or int(n) % 20 == int(name.removeprefix("file-")), name
                assert data == n * (1 + int(n or b"0") % 9 * 2000) or (name == "tmp" and not data), f"{name} is torn"
    except TzfsError as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.fixture
def other(workspace: Workspace) -> Iterator[Workspace]:
    """A copy of the workspace's store, with the same guids everywhere, of the same user: one folder of sockets."""
    (workspace.base / "other").mkdir()
    other = Workspace(workspace.base / "other")
    other.environment = workspace.environment
    shutil.rmtree(other.store_path)
    shutil.copytree(workspace.store_path, other.store_path)
    yield other
    other.close()


def test_a_copy_is_mounted_beside_the_original_and_each_command_reaches_its_own(
    workspace: Workspace, other: Workspace
) -> None:
    workspace.mount()
    other.mount()
    for mine, name in ((workspace, "original"), (other, "copy")):
        (mine.mnt / name).write_bytes(name.encode() * 5000)
        mine.tzfs("snapshot", f"ws@{name}")
    for mine, name in ((workspace, "original"), (other, "copy")):
        assert os.listdir(mine.mnt) == [name]
        assert os.listdir(mine.mnt / ".zfs" / "snapshot") == [name]
        assert str(mine.mnt) in mine.tzfs("status")
        mine.tzfs("umount", "ws")
        assert not os.path.ismount(mine.mnt)
    assert [workspace.problems(), other.problems()] == [[], []]


def test_a_command_runs_in_a_copy_while_one_runs_in_the_original(workspace: Workspace, other: Workspace) -> None:
    within = f"cd {PROJECT} && exec {sys.executable} -m tzfs.cli --store {other.store_path} run ws -- touch copy"
    workspace.tzfs("run", "ws", "--", "sh", "-c", f"touch original && ({within})")
    assert workspace.tzfs("run", "ws", "--", "ls") == "original\n"
    assert other.tzfs("run", "ws", "--", "ls") == "copy\n"


def test_each_mount_of_a_copy_and_of_the_original_has_its_own_log(workspace: Workspace, other: Workspace) -> None:
    for mine in (workspace, other):
        with mine.mounted():
            pass
    logs = [path.read_text() for path in (workspace.base / "state").rglob("*.log")]
    for mine in (workspace, other):
        assert [f"mounted ws at {mine.mnt}" in log for log in logs].count(True) == 1
    assert len(logs) == 2
