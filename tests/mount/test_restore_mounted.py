"""Restore into a running mount: what comes back, what is replaced, and whoever has that open."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace

MODES: dict[str, tuple[str, ...]] = {"default": (), "writeback": ("writeback",), "no answers in C": ("noanswers",)}


@pytest.fixture(params=list(MODES))
def mnt(workspace: Workspace, request: pytest.FixtureRequest) -> Path:
    workspace.mount(*MODES[request.param])
    return workspace.mnt


def fill(mnt: Path) -> None:
    (mnt / "src/deep").mkdir(parents=True)
    (mnt / "src/a").write_bytes(b"a" * 200_000)
    os.link(mnt / "src/a", mnt / "src/deep/again")
    os.symlink("a", mnt / "src/link")
    (mnt / "src/small").write_text("small")
    os.utime(mnt / "src/small", ns=(5, 7))
    (mnt / "src/small").chmod(0o640)


def test_a_tree_that_was_removed_is_there_again(workspace: Workspace, mnt: Path) -> None:
    fill(mnt)
    workspace.tzfs("snapshot", "ws@a")
    for name in ("src/a", "src/deep/again", "src/link", "src/small"):
        (mnt / name).unlink()
    (mnt / "src/deep").rmdir()
    (mnt / "src").rmdir()
    assert not (mnt / "src").exists()  # which the kernel remembers
    assert workspace.tzfs("restore", "ws@a", "src") == "restored src\n"
    assert sorted(os.listdir(mnt / "src")) == ["a", "deep", "link", "small"]
    assert (mnt / "src/a").read_bytes() == b"a" * 200_000
    assert (mnt / "src/a").stat().st_ino == (mnt / "src/deep/again").stat().st_ino
    assert (mnt / "src/a").stat().st_nlink == 2
    assert os.readlink(mnt / "src/link") == "a"
    told = (mnt / "src/small").stat()
    assert (told.st_mode & 0o7777, told.st_mtime_ns) == (0o640, 7)
    assert mnt.stat().st_nlink == 3
    (mnt / "src/a").write_text("changed")
    assert (mnt / ".zfs/snapshot/a/src/a").read_bytes() == b"a" * 200_000
    [pid] = workspace.daemons()
    workspace.unmount(pid)
    assert workspace.problems() == []


def test_what_is_replaced_goes_on_for_whoever_has_it_open(workspace: Workspace, mnt: Path) -> None:
    fill(mnt)
    workspace.tzfs("snapshot", "ws@a")
    (mnt / "src/new").write_text("new")
    (mnt / "src/small").write_text("changed")
    refused = workspace.run("restore", "ws@a", "src")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "tzfs: src exists\nhint: -f replaces it; --to DIR restores it elsewhere\n"
    assert (mnt / "src/small").read_text() == "changed"
    with open(mnt / "src/small", "r+b", buffering=0) as small, open(mnt / "src/new", "rb", buffering=0) as new:
        inside = os.open(mnt / "src", os.O_RDONLY)
        workspace.tzfs("restore", "-f", "ws@a", "src")
        assert (os.pread(small.fileno(), 10, 0), new.read()) == (b"changed", b"new")
        os.pwrite(small.fileno(), b"still", 0)
        assert os.pread(small.fileno(), 10, 0) == b"stilled"
        assert os.fstat(small.fileno()).st_nlink == 0
        assert os.listdir(inside) == []
        os.close(inside)
    assert sorted(os.listdir(mnt / "src")) == ["a", "deep", "link", "small"]
    assert (mnt / "src/small").read_text() == "small"
    [pid] = workspace.daemons()
    workspace.unmount(pid)
    assert workspace.problems() == []


def test_it_comes_back_elsewhere(workspace: Workspace, mnt: Path) -> None:
    fill(mnt)
    (mnt / "old").mkdir()
    workspace.tzfs("snapshot", "ws@a")
    (mnt / "src/small").write_text("changed")
    said = json.loads(workspace.tzfs("restore", "--json", "--to", "old", "ws@a", "src/small", "/src/a"))
    assert said == {"name": "ws@a", "inodes": 2, "paths": ["old/small", "old/a"]}
    assert (mnt / "old/small").read_text() == "small"
    assert (mnt / "src/small").read_text() == "changed"
    for arguments, words in (
        (["ws@a", "none"], "none: no such file or directory"),
        (["ws@none", "src"], "no snapshot ws@none"),
        (["ws@a", "/"], "the root cannot be restored"),
        (["--to", "nowhere", "ws@a", "src"], "nowhere: no such directory to restore src into"),
        (["-f", "--to", "old/small", "ws@a", "src"], "old/small: not a directory, and src cannot be restored into it"),
        (["-f", "--to", "src/deep", "ws@a", "src/deep"], ""),
    ):
        done = workspace.run("restore", *arguments)
        assert (done.returncode != 0) == bool(words), (arguments, done.stderr)
        assert words in done.stderr
    assert sorted(os.listdir(mnt / "src/deep")) == ["again", "deep"]
