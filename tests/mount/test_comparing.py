"""Diffs and versions of what is mounted, while it is being used."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from tests.engine.test_diff import line
from tests.mount.workspace import Workspace
from tzfs import comparing, limits
from tzfs.errors import InvalidArgument, NotFound
from tzfs.jsonrpc import Json


def told(workspace: Workspace, older: str, newer: str | None = None, path: str = "/") -> list[str]:
    with workspace.store() as store:
        return [line(found) for found in comparing.diff(store, older, newer, path)]


@pytest.mark.parametrize("options", [(), ("writeback",)], ids=["written through", "written back"])
def test_what_was_written_a_moment_ago_is_told(workspace: Workspace, options: tuple[str, ...]) -> None:
    with workspace.mounted(*options) as mnt:
        (mnt / "f").write_text("1\n")
        workspace.tzfs("snapshot", "ws@a")
        with (mnt / "f").open("w") as file:
            file.write("2\n")
            file.flush()
            assert told(workspace, "ws@a") == ["M /f contents,mtime"]
            assert "-1\n+2\n" in workspace.tzfs("diff", "--patch", "ws@a")
            assert [r.split("\t")[:2] for r in workspace.tzfs("versions", "-H", "ws", "/f").splitlines()] == [
                ["a", "a"],
                ["-", "-"],
            ]
        workspace.tzfs("snapshot", "ws@b")
        (mnt / "f").unlink()
        assert told(workspace, "ws@a", "ws@b") == ["M /f contents,mtime"]
        assert told(workspace, "ws@b") == ["M / size,mtime", "- /f"]
    assert told(workspace, "ws@b") == ["M / size,mtime", "- /f"]


def test_more_than_a_message_takes_comes_in_pages(workspace: Workspace) -> None:
    with workspace.mounted() as mnt:
        workspace.tzfs("snapshot", "ws@a")
        deep = mnt
        for _ in range(8):
            deep /= "d" * 250
            deep.mkdir()
        names = [f"{i}" for i in range(1500)]
        for name in names:
            (deep / name).write_bytes(b"")
        pages: list[int] = []

        def hear(value: Json) -> None:
            assert isinstance(value, dict)
            found = value["differences"]
            assert isinstance(found, list)
            pages.append(len(found))

        with workspace.client() as client:
            count = client.ask("diff", {"from": "a"}, progress=hear)
        assert count == sum(pages) == 9 + len(names)
        assert len(pages) > 20
        assert len(names) * 2000 > limits.RPC_MESSAGE_BYTES_MAX
        found = told(workspace, "ws@a")
        assert len(found) == 9 + len(names)
        assert told(workspace, "ws@a", None, os.fspath((deep / "7").relative_to(mnt))) == [
            f"+ /{(deep / '7').relative_to(mnt)}"
        ]


def test_it_is_one_moment_that_is_told_of_while_others_write(workspace: Workspace) -> None:
    """A file is renamed back and forth all the time: each diff has one of its names, and all else."""
    with workspace.mounted() as mnt:
        (mnt / "folder").mkdir()
        for i in range(300):
            (mnt / "folder" / f"{i}").write_bytes(b"")
        workspace.tzfs("snapshot", "ws@a")
        for i in range(300):
            (mnt / "folder" / f"{i}").write_bytes(b"x")
        over = threading.Event()

        def rename() -> None:
            while not over.is_set():
                (mnt / "folder").rename(mnt / "other")
                (mnt / "other").rename(mnt / "folder")

        thread = threading.Thread(target=rename)
        thread.start()
        try:
            for _ in range(5):
                paths = [each.split()[1] for each in told(workspace, "ws@a") if each.endswith("contents,size,mtime")]
                assert len(paths) == 300
                assert len({os.path.dirname(path) for path in paths}) == 1
        finally:
            over.set()
            thread.join()


def test_a_read_only_mount_and_one_of_what_is_archived_answer_too(workspace: Workspace) -> None:
    with workspace.mounted() as mnt:
        (mnt / "f").write_text("1")
        workspace.tzfs("snapshot", "ws@a")
        (mnt / "f").write_text("2")
    with workspace.mounted("ro"):
        assert told(workspace, "ws@a") == ["M /f contents,mtime"]
        assert workspace.tzfs("versions", "-H", "ws", "/f").count("\n") == 2
        assert "+2" in workspace.tzfs("diff", "--patch", "ws@a")


def test_a_mount_refuses_what_cannot_be_compared(workspace: Workspace) -> None:
    with workspace.mounted():
        for name in ("a", "b"):
            workspace.call("snapshot.create", name=name)
        params: list[tuple[dict[str, Json], type[Exception]]] = [
            ({"from": "b", "to": "a"}, InvalidArgument),
            ({"from": "none"}, NotFound),
            ({"from": "a", "path": "none"}, NotFound),
            ({"from": "a", "path": "x" * 20_000}, InvalidArgument),
            ({"to": "a"}, InvalidArgument),
        ]
        for given, error in params:
            with workspace.client() as client, pytest.raises(error):
                client.ask("diff", given)
        assert workspace.call("diff", **{"from": "a", "to": "b"}) == 0
        assert workspace.call("versions", path="none") == 0
        assert workspace.call("versions", path="/") == 1


def test_what_a_killed_mount_had_made_durable_is_told(workspace: Workspace) -> None:
    pid = workspace.mount()
    fd = os.open(workspace.mnt / "f", os.O_WRONLY | os.O_CREAT)
    workspace.tzfs("snapshot", "ws@a")
    os.link(workspace.mnt / "f", workspace.mnt / "g")
    os.write(fd, b"1")
    os.fsync(fd)
    workspace.kill(pid)
    with contextlib.suppress(OSError):
        os.close(fd)
    changes = ["M / size,mtime", "+ /g", "M /f contents,size,mtime,links +1"]
    assert told(workspace, "ws@a") == changes
    with workspace.mounted():
        assert told(workspace, "ws@a") == changes


def test_a_mounted_clone_is_compared_with_where_it_came_from(workspace: Workspace) -> None:
    with workspace.mounted() as mnt:
        (mnt / "d").mkdir()
        for name in ("kept", "gone", "changed"):
            (mnt / "d" / name).write_text("1\n")
        workspace.tzfs("snapshot", "ws@s")
        workspace.tzfs("clone", "ws@s", "c")
        (mnt / "d/kept").write_text("in ws alone\n")
        with workspace.mounted(name="c", where=workspace.base / "other") as other:
            (other / "d/gone").unlink()
            with (other / "d/changed").open("a") as file:
                file.write("2\n")
                file.flush()
                expected = ["M /d size,mtime", "- /d/gone", "M /d/changed contents,size,mtime"]
                assert told(workspace, "ws@s", "c") == expected
            assert workspace.tzfs("diff", "-F", "ws@s", "c").splitlines() == [
                "M\t/\t/d",
                "-\tF\t/d/gone",
                "M\tF\t/d/changed",
            ]
            assert "@@ -1 +1,2 @@\n 1\n+2\n" in workspace.tzfs("diff", "--patch", "ws@s", "c")
            workspace.tzfs("snapshot", "c@t")
            assert told(workspace, "ws@s", "c@t") == expected
            with pytest.raises(InvalidArgument, match="no clone of it"):
                told(workspace, "c@t", "ws")
        assert told(workspace, "ws@s", "c") == expected
