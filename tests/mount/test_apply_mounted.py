"""Applying a clone under a running mount: what programs see afterwards, through names and handles."""

from __future__ import annotations

import os
import stat

import pytest

from tests.mount.workspace import Workspace
from tzfs.management import open_store


@pytest.mark.parametrize("options", [(), ("writeback",), ("noanswers",)])
def test_programs_go_on_in_what_the_clone_has_made_of_it(workspace: Workspace, options: tuple[str, ...]) -> None:
    workspace.mount(*options)
    mnt = workspace.mnt
    (mnt / "d").mkdir()
    (mnt / "d" / "file").write_bytes(b"before" * 50_000)
    (mnt / "gone").write_bytes(b"gone")
    workspace.tzfs("snapshot", "ws@a")
    workspace.tzfs("clone", "ws@a", "c")
    with open_store(workspace.store_path) as store, store.open("c") as fs:
        with fs.open("/d/file", "r+b") as file:
            file.seek(200_000)
            file.write(b"theirs")
        fs.chmod("/d/file", 0o600)
        fs.rename("/d", "/moved")
        fs.unlink("/gone")
        fs.write_text("/new", "new")
    (mnt / "ours").write_text("ours")
    here = os.open(mnt / "d", os.O_RDONLY)
    file_fd, gone = os.open(mnt / "d" / "file", os.O_RDWR), os.open(mnt / "gone", os.O_RDWR)
    try:
        assert os.pread(file_fd, 6, 200_000) != b"theirs"
        would = workspace.tzfs("apply", "-n", "c")
        assert "  /moved" in would.splitlines()
        assert "the state before would be ws@" in would
        assert set(os.listdir(mnt)) == {"d", "gone", "ours"}
        assert "the state before is ws@rollback-" in workspace.tzfs("apply", "c")
        assert set(os.listdir(mnt)) == {"moved", "ours", "new"}
        assert (mnt / "new").read_text() == "new"
        assert (mnt / "moved" / "file").read_bytes()[200_000:200_006] == b"theirs"
        assert os.pread(file_fd, 6, 200_000) == b"theirs"
        assert stat.S_IMODE(os.fstat(file_fd).st_mode) == 0o600
        assert os.listdir(here) == ["file"]
        assert os.pread(gone, 4, 0) == b"gone"
        assert os.fstat(gone).st_nlink == 0
        os.pwrite(file_fd, b"after", 0)
        assert (mnt / "moved" / "file").read_bytes()[:5] == b"after"
    finally:
        for fd in (here, file_fd, gone):
            os.close(fd)
    workspace.tzfs("check", "--payload", "ws")


def test_a_conflict_under_a_mount_changes_nothing(workspace: Workspace) -> None:
    workspace.mount()
    (workspace.mnt / "file").write_text("before")
    workspace.tzfs("snapshot", "ws@a")
    workspace.tzfs("clone", "ws@a", "c")
    with open_store(workspace.store_path) as store, store.open("c") as fs:
        fs.write_text("/file", "theirs!")
        refused = workspace.run("apply", "c")
        assert refused.returncode != 0
        assert "cannot apply c: it is in use by" in refused.stderr
    (workspace.mnt / "file").write_text("ours")
    refused = workspace.run("apply", "c")
    assert refused.returncode != 0
    assert "/file: both have changed its contents" in refused.stderr
    assert (workspace.mnt / "file").read_text() == "ours"
    assert "conflict: /file" in workspace.tzfs("apply", "--theirs", "c")
    assert (workspace.mnt / "file").read_text() == "theirs!"
