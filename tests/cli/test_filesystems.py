"""create, rename, archive, activate, destroy, snapshot, sync, gc, and where the store is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tzfs.cli import run


def test_create_says_nothing_and_sets_what_it_is_told(tzfs: CommandLine) -> None:
    assert tzfs.ok("create", "-o", "recordsize=64K", "-o", "agent:model=small", "team/ws") == ""
    assert tzfs.ok("get", "-H", "-p", "recordsize,agent:model", "team/ws") == (
        "team/ws\trecordsize\t65536\tlocal\nteam/ws\tagent:model\tsmall\tlocal\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ws"], 1, "tzfs: cannot create ws: there is one already, and it is ACTIVE\n"),
        (["a/b/c"], 2, "more than one '/'"),
        (["ws@s"], 2, "'@' begins a snapshot's name"),
        (["."], 2, "'.' is a path"),
        (["new", "-o", "recordsize=3K"], 2, "property recordsize: '3K' is not allowed\nhint: give 4K - 1M, a power"),
        (["new", "-o", "recordsize"], 2, "'recordsize' is not PROPERTY=VALUE"),
        (["new", "-o", "colour=red"], 1, "there is no property 'colour'\nhint: native ones are type, creation"),
        (["new", "-o", "used=1"], 1, "property used is computed"),
        (["new", "-o", "a:b=1", "-o", "a:b=2"], 2, "property a:b is given twice"),
        (["new", "-o", "Agent:x=1"], 2, "user property 'Agent:x'"),
        ([], 2, "missing argument '[NAMESPACE/]NAME'\nhint: tzfs create --help\n"),
        (["new", "extra"], 2, "got unexpected extra argument"),
    ],
)
def test_create_refuses(tzfs: CommandLine, arguments: list[str], code: int, message: str) -> None:
    tzfs.ok("create", "ws")
    assert message in tzfs.refused("create", *arguments, code=code)
    assert tzfs.ok("list", "-H", "-o", "name") == "ws\n"


def test_rename_moves_the_snapshots_and_properties_along(tzfs: CommandLine) -> None:
    tzfs.ok("create", "old", "-o", "a:b=c")
    tzfs.ok("snapshot", "old@s")
    assert tzfs.ok("rename", "old", "team/new") == ""
    assert tzfs.ok("list", "-H", "-o", "name,a:b", "-t", "all") == "team/new\tc\nteam/new@s\t-\n"
    tzfs.ok("create", "old")
    assert "there is one already" in tzfs.refused("rename", "old", "team/new", code=1)
    assert "there is no such filesystem" in tzfs.refused("rename", "none", "other", code=1)


def test_archive_and_activate(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    assert tzfs.ok("archive", "ws") == ""
    assert tzfs.ok("get", "-H", "-o", "value", "state", "ws") == "archived\n"
    assert tzfs.refused("snapshot", "ws@s", code=75) == (
        "tzfs: cannot snapshot ws: it is ARCHIVED\nhint: make it writable: tzfs activate ws\n"
    )
    assert tzfs.refused("archive", "ws", code=75) == "tzfs: cannot archive ws: it is ARCHIVED\n"
    assert tzfs.ok("activate", "ws") == ""
    tzfs.ok("snapshot", "ws@s")


def test_destroy_says_first_what_it_would_do(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    tzfs.ok("snapshot", "ws@a", "ws@b")
    assert tzfs.ok("destroy", "-r", "-n", "ws") == ""
    told = tzfs.ok("destroy", "-r", "-n", "-v", "ws")
    assert re.fullmatch("would destroy ws@a\nwould destroy ws@b\nwould destroy ws\nwould reclaim [0-9.]+[BK]\n", told)
    assert tzfs.ok("list", "-H", "-o", "name", "-t", "all") == "ws\nws@a\nws@b\n"
    assert tzfs.ok("destroy", "-r", "-v", "ws") == told.replace("would ", "")
    assert tzfs.ok("list", "-H") == ""
    assert "there is no such filesystem" in tzfs.refused("destroy", "ws", code=1)


def test_snapshot_takes_several_and_properties_of_ones_own(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    assert tzfs.ok("snapshot", "-o", "agent:step=3", "ws@a", "ws@b") == ""
    assert tzfs.ok("get", "-H", "agent:step", "ws@a", "ws@b") == (
        "ws@a\tagent:step\t3\tlocal\nws@b\tagent:step\t3\tlocal\n"
    )
    assert "ws@a exists" in tzfs.refused("snapshot", "ws@a", code=1)
    assert "user properties only" in tzfs.refused("snapshot", "-o", "recordsize=64K", "ws@c", code=2)
    assert "it has no '@'" in tzfs.refused("snapshot", "ws", code=2)
    assert "no such filesystem" in tzfs.refused("snapshot", "none@s", code=1)


def test_a_bad_name_among_several_takes_no_snapshot(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    tzfs.refused("snapshot", "ws@a", "ws@b c", code=2)
    assert tzfs.ok("list", "-H", "-t", "snapshot") == ""


def test_sync_and_gc(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    assert tzfs.ok("sync", "ws") == ""
    assert tzfs.ok("gc", "ws") == "ws: 0B given back, 0 chunks and 0 orphans removed, 0 segments unlinked\n"
    assert tzfs.json("gc", "--json", "ws") == {
        "bytes": 0, "orphans": 0, "chunks": 0, "segments": 0, "moved": 0, "tables": 0, "in_use": False,
    }  # fmt: skip
    for command in ("sync", "gc"):
        assert "no such filesystem" in tzfs.refused(command, "none", code=1)


def test_the_store_is_the_option_else_the_variable_else_the_data_directory(
    tzfs: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["create", "xdg"]) == 0
    data = tmp_path / "data" / "tzfs"
    assert data.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TZFS_STORE", str(tmp_path / "named"))
    assert run(["create", "named"]) == 0
    tzfs.ok("create", "option")
    for place, name in ((data, "xdg"), (tmp_path / "named", "named"), (tzfs.store, "option")):
        assert CommandLine(place).ok("list", "-H", "-o", "name") == f"{name}\n"
