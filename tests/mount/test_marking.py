"""Holds, labels, names and bookmarks of snapshots under a running mount."""

from __future__ import annotations

import os

import pytest

from tests.mount.workspace import Workspace
from tzfs import marking
from tzfs.errors import Busy, InvalidArgument, NotFound, ReadOnly


def snapshots(workspace: Workspace) -> list[str]:
    return sorted(os.listdir(workspace.mnt / ".zfs" / "snapshot"))


@pytest.mark.parametrize("options", [(), ("noanswers",)], ids=["answers in C", "no answers in C"])
def test_a_renamed_snapshot_is_shown_at_once_and_whoever_browses_it_goes_on(
    workspace: Workspace, options: tuple[str, ...]
) -> None:
    with workspace.mounted(*options) as mnt:
        (mnt / "folder").mkdir()
        (mnt / "folder" / "file").write_text("then")
        workspace.tzfs("snapshot", "ws@old")
        (mnt / "folder" / "file").write_text("now")
        folder = mnt / ".zfs" / "snapshot"
        assert (folder / "old" / "folder" / "file").read_text() == "then"
        assert snapshots(workspace) == ["old"]
        with (folder / "old" / "folder" / "file").open() as held:
            inside = os.open(folder / "old" / "folder", os.O_RDONLY | os.O_DIRECTORY)
            node = os.stat(folder / "old").st_ino
            for _ in range(3):  # there and back: the kernel must not remember either name
                workspace.tzfs("rename", "ws@old", "@new")
                assert snapshots(workspace) == ["new"]
                assert not (folder / "old").exists()
                assert (folder / "new" / "folder" / "file").read_text() == "then"
                assert os.stat(folder / "new").st_ino == node
                workspace.tzfs("rename", "ws@new", "ws@old")
                assert snapshots(workspace) == ["old"]
                assert not (folder / "new").exists()
                assert (folder / "old" / "folder" / "file").read_text() == "then"
            assert held.read() == "then"
            assert os.listdir(inside) == ["file"]
            os.close(inside)
        workspace.tzfs("rename", "ws@old", "@other")
        workspace.tzfs("snapshot", "ws@old")
        assert (folder / "old" / "folder" / "file").read_text() == "now"
        assert (folder / "other" / "folder" / "file").read_text() == "then"


def test_a_read_only_mount_shows_what_is_said_and_changes_nothing(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@a")
    workspace.tzfs("hold", "keep", "ws@a")
    with workspace.mounted("ro"), workspace.store() as store:
        for change in (
            lambda: marking.hold(store, "more", ["ws@a"]),
            lambda: marking.release(store, "keep", ["ws@a"]),
            lambda: marking.label(store, ["ws@a"], {"a:b": "1"}),
            lambda: marking.rename(store, "ws@a", "@b"),
            lambda: marking.bookmark(store, "ws@a", "#a"),
        ):
            with pytest.raises(ReadOnly, match="mounted read-only"):
                change()
        assert [(str(h.snapshot), h.tag) for h in marking.holds(store, ["ws@a"])] == [("ws@a", "keep")]


def test_a_mount_looks_at_names_by_itself(workspace: Workspace) -> None:
    with workspace.mounted():
        workspace.call("snapshot.create", name="a")
        for method, params in (
            ("snapshot.rename", {"old": "a", "new": "../b"}),
            ("snapshot.rename", {"old": "a", "new": "x/y"}),
            ("snapshot.hold", {"tag": "two\nlines", "names": ["a"]}),
            ("snapshot.label", {"names": ["a"], "properties": {"recordsize": "4K"}}),
            ("snapshot.label", {"names": ["a"], "properties": {"A:B": None}}),
            ("bookmark.create", {"snapshot": "a", "name": "#b"}),
        ):
            with pytest.raises(InvalidArgument):
                workspace.call(method, **params)
        with pytest.raises(NotFound):
            workspace.call("bookmark.destroy", names=["b"])


def test_what_a_dropped_bookmark_has_kept_goes_in_the_background_of_the_mount(workspace: Workspace) -> None:
    with workspace.mounted() as mnt:
        workspace.call("snapshot.create", name="a")
        workspace.call("bookmark.create", snapshot="a", name="a")
        for i in range(100):
            (mnt / f"{i}").write_bytes(b"x")
        workspace.tzfs("snapshot", "ws@b")
        for i in range(100):
            (mnt / f"{i}").unlink()
        workspace.tzfs("sync", "ws")
        workspace.call("bookmark.destroy", names=["a"])
        workspace.tzfs("gc", "ws")
        assert workspace.tzfs("check", "ws").startswith("ws: no problems")
    assert workspace.problems() == []


def test_a_program_that_has_the_filesystem_open_does_it_itself(workspace: Workspace) -> None:
    with workspace.store() as store, store.open("ws") as fs:
        fs.snapshot("a")
        with pytest.raises(Busy):
            marking.hold(store, "keep", ["ws@a"])
        fs.hold("keep", "a")
        fs.rename_snapshot("a", "b")
        fs.bookmark("b", "mark")
        assert {name: set(s.holds) for name, s in fs.snapshots().items()} == {"b": {"keep"}}
        assert list(fs.bookmarks()) == ["mark"]
        fs.release("keep", "b")
        fs.drop_bookmark("mark")
        assert fs.bookmarks() == {}
        with pytest.raises(InvalidArgument):
            fs.rename_snapshot("b", "no good")
        assert fs._engine.problems() == []
