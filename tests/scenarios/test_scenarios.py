"""Two scenarios end to end, through the Python API and through a mount: a workspace's whole life, and a research agent.

The agent works in three iterations: sources, notes, and a report that it revises each time, with a snapshot after each;
its earlier snapshots must read back identical after a restart, from the API, under `.zfs` and from mounts of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

import tzfs
from tests import places
from tzfs import errors

ITERATIONS = 3
Tree = dict[str, bytes]


class Files(Protocol):
    """What an agent does to its workspace."""

    def mkdir(self, path: str) -> None: ...
    def write(self, path: str, data: bytes) -> None: ...
    def read(self, path: str) -> bytes: ...
    def rename(self, source: str, target: str) -> None: ...
    def remove(self, path: str) -> None: ...


class ApiFiles:
    """Through `tzfs.FileSystem`."""

    def __init__(self, fs: tzfs.FileSystem) -> None:
        self._fs = fs
        self.mkdir: Callable[[str], None] = lambda path: fs.mkdir(path, exist_ok=True)
        self.write: Callable[[str, bytes], None] = fs.write_bytes
        self.read: Callable[[str], bytes] = fs.read_bytes
        self.rename: Callable[[str, str], None] = fs.rename
        self.remove: Callable[[str], None] = fs.unlink


class MountFiles:
    """Through a mountpoint."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def mkdir(self, path: str) -> None:
        (self._top / path).mkdir(exist_ok=True)

    def write(self, path: str, data: bytes) -> None:
        (self._top / path).write_bytes(data)

    def read(self, path: str) -> bytes:
        return (self._top / path).read_bytes()

    def rename(self, source: str, target: str) -> None:
        (self._top / source).rename(self._top / target)

    def remove(self, path: str) -> None:
        (self._top / path).unlink()


def iterate(files: Files, n: int) -> None:
    """One iteration of the agent."""
    files.mkdir("sources")
    files.mkdir("notes")
    for i in range(5):
        files.write(f"sources/{n}-{i}.html", f"<p>source {i} of {n}</p>".encode() * (200 * i + 1))
        files.write(f"notes/{n}-{i}.md", f"# note {i}\n".encode() * (n + 1))
    if n:
        files.remove(f"notes/{n - 1}-0.md")
        files.rename(f"sources/{n - 1}-1.html", f"sources/kept-{n - 1}.html")
        assert files.read("report.md").startswith(b"revision %d\n" % (n - 1))
    files.write("report.md", b"revision %d\n" % n + os.urandom(300_000 * n))


def tree_of_api(view: tzfs.SnapshotView | tzfs.FileSystem) -> Tree:
    return {
        f"{folder.strip('/')}/{name}".lstrip("/"): view.read_bytes(f"{folder}/{name}")
        for folder, _, files in view.walk()
        for name in files
    }


def tree_of_folder(top: Path) -> Tree:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


@contextmanager
def mounted(store: Path, name: str, where: Path) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    places.tzfs("mount", name, where, store=store)
    try:
        yield where
        places.tzfs("umount", where, store=store)
    finally:
        if os.path.ismount(where):
            places.force_unmount(where)


def test_a_research_agent_through_the_api(tmp_path: Path) -> None:
    then: dict[str, Tree] = {}
    with tzfs.open_store(tmp_path / "store") as store:
        store.create("agents/researcher", {"agent:model": "small"})
        for n in range(ITERATIONS):
            with store.open("agents/researcher") as fs:  # a restart between iterations
                iterate(ApiFiles(fs), n)
                fs.snapshot(f"iteration-{n}")
                then[f"iteration-{n}"] = tree_of_api(fs)
    assert len({trees["report.md"] for trees in then.values()}) == ITERATIONS
    with tzfs.open_store(tmp_path / "store") as store:
        for name, tree in then.items():
            with store.open_snapshot(f"agents/researcher@{name}") as view:
                assert tree_of_api(view) == tree
        with store.open("agents/researcher") as fs:
            assert tree_of_api(fs) == then["iteration-2"]


def test_a_research_agent_through_a_mount(tmp_path: Path) -> None:
    store, then = tmp_path / "store", dict[str, Tree]()
    places.tzfs("create", "researcher", store=store)
    with mounted(store, "researcher", tmp_path / "work") as work:
        for n in range(ITERATIONS):
            iterate(MountFiles(work), n)
            places.tzfs("snapshot", f"researcher@iteration-{n}", store=store)
            then[f"iteration-{n}"] = tree_of_folder(work)
    with mounted(store, "researcher", tmp_path / "work") as work:  # after a restart
        assert tree_of_folder(work) == then["iteration-2"]
        for name, tree in then.items():
            assert tree_of_folder(work / ".zfs" / "snapshot" / name) == tree
        with mounted(store, "researcher@iteration-0", tmp_path / "past") as past:
            assert tree_of_folder(past) == then["iteration-0"]
            (work / "report.md").write_bytes(b"the work goes on")
            assert tree_of_folder(past) == then["iteration-0"]
    with tzfs.open_store(store) as opened, opened.open_snapshot("researcher@iteration-1") as view:
        assert tree_of_api(view) == then["iteration-1"]


def test_a_whole_life_through_the_api(tmp_path: Path) -> None:
    with tzfs.open_store(tmp_path / "store") as store:
        info = store.create("ws")
        with store.open("ws") as fs:
            fs.write_text("a.txt", "one\n")
            assert fs.read_text("a.txt") == "one\n"
            assert fs.stat("a.txt").size == 4
            with pytest.raises(errors.Busy, match="in use by"):
                store.open("ws")
            with pytest.raises(errors.Busy):
                store.archive("ws")
            fs.snapshot("first")
            fs.write_text("a.txt", "two\n")
        store.archive("ws")
        with pytest.raises(errors.WrongState, match="ARCHIVED"):
            store.open("ws")
        with store.open_snapshot("ws@first") as view:
            assert view.read_text("a.txt") == "one\n"
        with store.open_readonly("ws") as tree:
            assert tree.read_text("a.txt") == "two\n"
        store.activate("ws")
        with store.open("ws") as fs:
            assert fs.read_text("a.txt") == "two\n"
        store.destroy("ws", recursive=True)
        assert not info.folder.exists()
        with pytest.raises(errors.NotFound):
            store.get("ws")
        assert store.create("ws").guid != info.guid


def test_a_whole_life_through_a_mount(tmp_path: Path) -> None:
    store = tmp_path / "store"
    places.tzfs("create", "ws", store=store)
    with mounted(store, "ws", tmp_path / "work") as work:
        (work / "a.txt").write_text("one\n")
        assert (work / "a.txt").stat().st_size == 4
        places.tzfs("snapshot", "ws@first", store=store)
        (work / "a.txt").write_text("two\n")
        for command in ("archive", "destroy"):
            with pytest.raises(places.CommandFailed, match="in use by"):
                places.tzfs(command, "ws", store=store)
    places.tzfs("archive", "ws", store=store)
    with mounted(store, "ws", tmp_path / "work") as work:  # read-only
        assert (work / "a.txt").read_text() == "two\n"
        assert (work / ".zfs" / "snapshot" / "first" / "a.txt").read_text() == "one\n"
        with pytest.raises(OSError, match="Read-only"):
            (work / "b.txt").write_text("more")
        with pytest.raises(places.CommandFailed, match="in use by"):
            places.tzfs("activate", "ws", store=store)
    with mounted(store, "ws@first", tmp_path / "past") as past:
        assert (past / "a.txt").read_text() == "one\n"
    places.tzfs("activate", "ws", store=store)
    with mounted(store, "ws", tmp_path / "work") as work:
        assert (work / "a.txt").read_text() == "two\n"
    places.tzfs("destroy", "-r", "ws", store=store)
    assert places.tzfs("list", "-H", store=store) == ""
