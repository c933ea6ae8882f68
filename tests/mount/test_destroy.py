"""Snapshots destroyed under a running mount: their folders vanish, what is open in them ends, all else goes on."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace, eventually
from tests.noise import noise
from tzfs.errors import Busy, ReadOnly


def folder(workspace: Workspace, name: str) -> Path:
    return workspace.mnt / ".zfs" / "snapshot" / name


def destroy(workspace: Workspace, *names: str, dry_run: bool = False) -> object:
    return workspace.call("snapshot.destroy", names=[*names], dry_run=dry_run)


def test_its_folder_is_gone_when_the_answer_comes(mounted: Workspace) -> None:
    for name in ("a", "b", "c"):
        (mounted.mnt / "file").write_text(name)
        mounted.call("snapshot.create", name=name)
    for name in ("a", "b", "c"):
        assert (folder(mounted, name) / "file").read_text() == name  # and the kernel remembers
    destroy(mounted, "a", "c")
    assert os.listdir(mounted.mnt / ".zfs" / "snapshot") == ["b"]
    for name in ("a", "c"):
        for path in (folder(mounted, name), folder(mounted, name) / "file"):
            with pytest.raises(FileNotFoundError):
                os.stat(path)
    assert (folder(mounted, "b") / "file").read_text() == "b"
    assert (mounted.mnt / "file").read_text() == "c"


def test_what_is_open_in_it_answers_estale(mounted: Workspace) -> None:
    (mounted.mnt / "dir").mkdir()
    for name in ("file", "dir/other", "dir/third"):
        (mounted.mnt / name).write_bytes(noise(3_000_000, "x"))
    mounted.call("snapshot.create", name="s")
    with open(folder(mounted, "s") / "file", "rb", buffering=0) as file:
        directory = os.open(folder(mounted, "s") / "dir", os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert file.read(10) == noise(10, "x")
            destroy(mounted, "s")
            for use in (
                lambda: os.pread(file.fileno(), 10, 2_500_000),
                lambda: os.stat("other", dir_fd=directory),
                lambda: os.listdir(directory),
            ):
                with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                    use()
        finally:
            os.close(directory)
    mounted.call("snapshot.create", name="another")


def test_another_snapshot_of_its_name_is_another_folder(mounted: Workspace) -> None:
    (mounted.mnt / "file").write_text("old")
    mounted.call("snapshot.create", name="s")
    assert (folder(mounted, "s") / "file").read_text() == "old"
    before = os.stat(folder(mounted, "s") / "file")
    destroy(mounted, "s")
    (mounted.mnt / "file").write_text("new")
    mounted.call("snapshot.create", name="s")
    assert (folder(mounted, "s") / "file").read_text() == "new"
    assert os.stat(folder(mounted, "s") / "file").st_ino != before.st_ino


def test_its_space_comes_back_in_the_background(mounted: Workspace) -> None:
    (mounted.mnt / "file").write_bytes(os.urandom(5_000_000))
    mounted.call("snapshot.create", name="s")
    (mounted.mnt / "file").unlink()
    told = destroy(mounted, "s", dry_run=True)
    assert isinstance(told, dict)
    assert told["names"] == ["s"]
    assert int(str(told["bytes"])) > 5_000_000
    assert destroy(mounted, "s") == told
    assert eventually(lambda: mounted.tzfs("get", "-H", "-p", "-o", "value", "freeing", "ws") == "0\n")
    assert eventually(lambda: mounted.number("gc", "punched_bytes") >= 5_000_000)


def test_one_that_is_mounted_elsewhere_stays_and_the_mount_is_named(mounted: Workspace) -> None:
    mounted.call("snapshot.create", name="a")
    mounted.call("snapshot.create", name="b")
    past = mounted.base / "past"
    with mounted.mounted(name="ws@a", where=past):
        for dry_run in (True, False):
            with pytest.raises(Busy, match=f"reading @a, mounted at {past}"):
                destroy(mounted, "b", "a", dry_run=dry_run)
        assert sorted(os.listdir(mounted.mnt / ".zfs" / "snapshot")) == ["a", "b"]
    destroy(mounted, "b", "a")
    assert os.listdir(mounted.mnt / ".zfs" / "snapshot") == []


def test_a_read_only_mount_destroys_nothing(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@s")
    with workspace.mounted("ro"):
        with pytest.raises(ReadOnly, match="cannot destroy a snapshot of ws: it is mounted read-only"):
            destroy(workspace, "s")
        assert os.listdir(workspace.mnt / ".zfs" / "snapshot") == ["s"]


def test_the_status_says_what_destroyed_snapshots_still_hold(mounted: Workspace) -> None:
    mounted.call("property.set", name="gc_interval", value="0")
    (mounted.mnt / "file").write_bytes(noise(5_000_000))
    mounted.call("snapshot.create", name="s")
    (mounted.mnt / "file").unlink()
    mounted.call("sync")
    assert mounted.tzfs("status", "-H").endswith("\tok\n")
    destroy(mounted, "s")
    assert re.search(r"\tfreeing 4\.\d+M\n", mounted.tzfs("status", "-H"))
    [told] = json.loads(mounted.tzfs("status", "--json"))
    assert told["freeing"] >= 5_000_000
    mounted.tzfs("gc", "ws")
    assert mounted.tzfs("status", "-H").endswith("\tok\n")
