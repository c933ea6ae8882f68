"""Rollback under a running mount: what programs see afterwards, through names, handles, mappings and directories."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace

MODES: dict[str, tuple[str, ...]] = {
    "default": (),
    "writeback": ("writeback",),
    "no answers in C": ("noanswers",),
    "attributes": ("xattr",),
}
Back = Callable[[], None]


@pytest.fixture(params=list(MODES))
def mnt(workspace: Workspace, request: pytest.FixtureRequest) -> Path:
    workspace.mount(*MODES[request.param])
    return workspace.mnt


@pytest.fixture
def snapshot(workspace: Workspace) -> Back:
    def take() -> None:
        workspace.tzfs("snapshot", "ws@a")

    return take


@pytest.fixture
def back(workspace: Workspace) -> Back:
    def roll() -> None:
        assert "the state before is ws@rollback-" in workspace.tzfs("rollback", "ws@a")

    return roll


def tree(top: Path) -> dict[str, object]:
    """Everything under a directory: kind, mode, size, mtime, contents."""
    found: dict[str, object] = {}
    for here, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(here, name)
            stat = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            found[str(path.relative_to(top))] = (stat.st_mode, stat.st_nlink, stat.st_size, stat.st_mtime_ns, content)
    return found


def change(mnt: Path) -> None:
    """Something of everything, all of it seen by the kernel."""
    (mnt / "grown").write_bytes(b"g" * 300_000)
    (mnt / "shrunk").write_bytes(b"s")
    os.truncate(mnt / "truncated", 10)
    with open(mnt / "patched", "r+b") as file:
        file.seek(4096)
        file.write(b"PATCH")
    (mnt / "removed").unlink()
    (mnt / "made").write_bytes(b"m" * 5000)
    (mnt / "dir/inner").rename(mnt / "dir/moved")
    (mnt / "dir").rename(mnt / "other")
    os.link(mnt / "patched", mnt / "linked")
    (mnt / "mode").chmod(0o600)
    (mnt / "gone/f").unlink()
    (mnt / "gone").rmdir()
    (mnt / "newdir").mkdir()
    (mnt / "newdir/f").write_text("new")
    assert not (mnt / "absent").exists()
    tree(mnt)


def fill(mnt: Path) -> None:
    for name, size in (("grown", 100), ("shrunk", 200_000), ("truncated", 9000), ("patched", 20_000), ("removed", 50)):
        (mnt / name).write_bytes(name[:1].encode() * size)
    (mnt / "dir").mkdir()
    (mnt / "dir/inner").write_text("inner")
    (mnt / "mode").write_text("mode")
    (mnt / "gone").mkdir()
    (mnt / "gone/f").write_text("f")
    os.symlink("mode", mnt / "link")


def test_everything_is_as_it_was_and_can_be_undone(workspace: Workspace, mnt: Path, snapshot: Back, back: Back) -> None:
    fill(mnt)
    before = tree(mnt)
    snapshot()
    change(mnt)
    after = tree(mnt)
    back()
    assert tree(mnt) == before
    assert not (mnt / "made").exists()
    assert not (mnt / "linked").exists()
    (mnt / "made").write_text("again")
    [safety] = [line for line in workspace.tzfs("list", "-H", "-o", "name", "-t", "snapshot").split() if "back" in line]
    workspace.tzfs("rollback", safety)
    assert tree(mnt) == after


def test_names_that_were_absent_are_there_again(mnt: Path, snapshot: Back, back: Back) -> None:
    (mnt / "f").write_text("f")
    snapshot()
    (mnt / "f").unlink()
    with pytest.raises(FileNotFoundError):
        (mnt / "f").stat()  # which the kernel remembers
    back()
    assert (mnt / "f").read_text() == "f"


def test_open_files_go_on_with_what_the_snapshot_has(mnt: Path, snapshot: Back, back: Back) -> None:
    (mnt / "f").write_bytes(b"old" * 1000)
    snapshot()
    with open(mnt / "f", "r+b", buffering=0) as file:
        file.write(b"new" * 3000)
        assert file.seek(0, os.SEEK_END) == 9000
        back()
        assert os.fstat(file.fileno()).st_size == 3000
        assert os.pread(file.fileno(), 9000, 0) == b"old" * 1000
        os.pwrite(file.fileno(), b"end", 3000)
    assert (mnt / "f").read_bytes() == b"old" * 1000 + b"end"


def test_a_file_that_was_removed_while_open_lives_again(mnt: Path, snapshot: Back, back: Back) -> None:
    (mnt / "f").write_bytes(b"old" * 1000)
    snapshot()
    with open(mnt / "f", "r+b", buffering=0) as file:
        (mnt / "f").unlink()
        file.write(b"orphan")
        back()
        assert os.pread(file.fileno(), 10, 0) == b"oldoldoldo"
    assert (mnt / "f").read_bytes() == b"old" * 1000


def test_handles_of_what_is_gone_are_stale(mnt: Path, snapshot: Back, back: Back) -> None:
    snapshot()
    with open(mnt / "made", "w+b", buffering=0) as file:
        file.write(b"made")
        back()
        for use in (lambda: os.fstat(file.fileno()), lambda: os.pread(file.fileno(), 4, 0)):
            with pytest.raises(OSError, match=r"Stale|No such") as caught:
                use()
            assert caught.value.errno in (errno.ESTALE, errno.ENOENT)
    assert os.listdir(mnt) == []


def test_working_directories_go_on_where_the_snapshot_has_them(mnt: Path, snapshot: Back, back: Back) -> None:
    (mnt / "kept").mkdir()
    (mnt / "kept/f").write_text("f")
    snapshot()
    (mnt / "kept").rename(mnt / "moved")
    (mnt / "moved/f").unlink()
    (mnt / "made").mkdir()
    kept, made = os.open(mnt / "moved", os.O_RDONLY), os.open(mnt / "made", os.O_RDONLY)
    try:
        back()
        assert os.listdir(kept) == ["f"]
        os.close(os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=kept))
        with pytest.raises(OSError, match=r"Stale|No such") as caught:
            os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=made)
        assert caught.value.errno in (errno.ESTALE, errno.ENOENT)
    finally:
        os.close(kept)
        os.close(made)
    assert sorted(os.listdir(mnt / "kept")) == ["f", "g"]


def test_mappings_show_what_the_snapshot_has(mnt: Path, snapshot: Back, back: Back) -> None:
    (mnt / "f").write_bytes(b"o" * 8192)
    snapshot()
    with open(mnt / "f", "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[:4] = b"NEW!"  # a dirty page that only the kernel has
        assert mapped[4096:4100] == b"oooo"
        back()
        assert mapped[:8192] == b"o" * 8192
        mapped[:4] = b"more"
        mapped.flush()
    assert (mnt / "f").read_bytes() == b"more" + b"o" * 8188


def test_writers_wait_or_come_before_and_the_mount_goes_on(workspace: Workspace, mnt: Path, snapshot: Back) -> None:
    for i in range(300):
        (mnt / f"f{i}").write_text("old")
    snapshot()
    for i in range(300):
        (mnt / f"f{i}").write_text("changed")
    stop, failed = threading.Event(), []

    def write() -> None:
        number = 0
        while not stop.is_set():
            try:
                (mnt / f"during-{number}").write_text("x" * 100)
                (mnt / f"f{number % 300}").read_text()
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT):
                    failed.append(error)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            workspace.tzfs("rollback", "--no-safety-snapshot", "ws@a")
    finally:
        stop.set()
        writer.join()
    assert failed == []
    assert all((mnt / f"f{i}").read_text() == "old" for i in range(300))
    [pid] = workspace.daemons()
    workspace.unmount(pid)
    assert workspace.problems() == []


def test_a_read_only_mount_refuses(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@a")
    with workspace.mounted("ro"):
        done = workspace.run("rollback", "ws@a")
        assert done.returncode == 1
        assert "mounted read-only" in done.stderr


def test_a_mount_that_dies_while_it_stages_comes_back_as_it_was(workspace: Workspace) -> None:
    with workspace.mounted() as mnt:
        for i in range(400):
            (mnt / f"f{i}").write_text("old")
        workspace.tzfs("snapshot", "ws@a")
        for i in range(400):
            (mnt / f"f{i}").write_text("changed")
        workspace.tzfs("sync", "ws")
    pid = workspace.mount(failpoints="staging.flip=crash")
    assert workspace.run("rollback", "ws@a").returncode != 0
    workspace.ended(pid)
    workspace.run("umount", workspace.mnt)
    with workspace.mounted() as mnt:
        assert all((mnt / f"f{i}").read_text() == "changed" for i in range(400))
        workspace.tzfs("rollback", "ws@a")
        assert all((mnt / f"f{i}").read_text() == "old" for i in range(400))
    assert workspace.problems() == []
