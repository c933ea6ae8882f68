"""One filesystem whose folder is not what it should be, and commands that are about others or about all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.damaging import damage_row
from tzfs.errors import Busy, exit_code_of
from tzfs.format.keys import Table
from tzfs.format.superblock import SUPERBLOCK_KEY
from tzfs.management import Store, open_store
from tzfs.store.lmdb_store import LmdbMeta


def spoil(folder: Path, what: str) -> None:
    """`the folder`, `views` or `the lock` of a filesystem becomes a file, a folder, a link or a fifo."""
    which, _, becomes = what.partition(" is ")
    path = {"the folder": folder, "views": folder / "views", "a view": folder / "views" / "1-0"}.get(
        which, folder / "lock"
    )
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if becomes == "a link":
        path.symlink_to(path)
    elif becomes == "a fifo":
        os.mkfifo(path)
    else:
        path.touch() if becomes == "a file" else path.mkdir()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("the folder is a file", True),
        ("the folder is a link", True),
        ("views is a file", True),
        ("the lock is a link", True),
        ("the lock is a fifo", False),
        ("a view is a fifo", False),
    ],
)
def test_who_has_another_is_told_and_another_is_collected(tzfs: CommandLine, what: str, told: bool) -> None:
    for name in ("bad", "open", "unused"):
        tzfs.ok("create", name)
    with open_store(tzfs.store) as store:
        spoil(store.get("bad").folder, what)
        with store.open("open"):
            lines = [line.split("\t") for line in tzfs.ok("status", "-H").splitlines()]
            assert [line[0] for line in lines] == (["bad", "open"] if told else ["open"])
            assert lines[-1][2:] == [str(os.getpid()), "program", "ok"]
            assert not told or str(store.get("bad").folder) in lines[0][4]
            collected = tzfs("gc", "--all")
            assert "unused: " in collected.out
            assert collected.err.startswith("tzfs: bad: ") == (what != "a view is a fifo")


@pytest.fixture
def damaged(tzfs: CommandLine) -> CommandLine:
    """`a/bad`, whose tables are lost, beside `a/good` and `z`, all with a snapshot s that is held."""
    for name in ("a/bad", "a/good", "z"):
        tzfs.ok("create", name)
        tzfs.ok("snapshot", f"{name}@s")
        tzfs.ok("hold", "keep", f"{name}@s")
    with open_store(tzfs.store) as store:
        (store.get("a/bad").folder / "meta" / "data.mdb").unlink()
    return tzfs


@pytest.mark.parametrize(
    ("line", "out"),
    [
        (["holds", "-rH", "/@s"], ["a/good@s", "z@s"]),
        (["holds", "-rH", "a@s"], ["a/good@s"]),
        (["holds", "-rH", "--json", "a/@s"], ['"a/good@s"']),
        (["log", "-H"], ["a/bad", "a/good", "z"]),
        (["events"], ["a/bad", "a/good", "z"]),
        (["snapshot", "-r", "/@t"], []),
        (["snapshot", "-r", "a@t"], []),
        (["hold", "-r", "more", "/@s"], []),
        (["release", "-r", "keep", "/@s"], []),
        (["rename", "-r", "/@s", "@t"], []),
        (["list", "-H", "-o", "name", "-t", "snapshot"], ["a/good@s", "z@s"]),
        (["gc", "--all"], ["a/good: ", "z: "]),
    ],
)
def test_a_command_about_all_does_the_others_and_names_the_damaged_one(
    damaged: CommandLine, line: list[str], out: list[str]
) -> None:
    answer = damaged(*line)
    assert all(word in answer.out for word in out)
    with open_store(damaged.store) as store:
        assert answer.err == f"tzfs: a/bad: {store.get('a/bad').folder}/meta: no tables of tzfs here\n"
        assert answer.code == 78
        there = {name: set(store.snapshots(name)[0].record.holds) for name in ("a/good", "z")}
        newest = {name: store.snapshots(name)[-1].name.snapshot for name in ("a/good", "z")}
    everywhere = "a@" not in line[-1]
    if line[0] == "snapshot":
        assert newest == {"a/good": "t", "z": "t" if everywhere else "s"}
    if line[0] == "rename":
        assert newest == {"a/good": "t", "z": "t"}
    held = {"hold": {"keep", "more"}, "release": set[str]()}.get(line[0], {"keep"})
    assert there == {"a/good": held, "z": held}


@pytest.mark.parametrize("what", ["the lock is a folder", "the folder is a link", "views is a file"])
def test_a_folder_that_is_something_else_keeps_no_other_from_its_turn(tzfs: CommandLine, what: str) -> None:
    for name in ("a", "z"):
        tzfs.ok("create", name)
        tzfs.ok("snapshot", f"{name}@s")
    with open_store(tzfs.store) as store:
        spoil(store.get("a").folder, what)
    for line in (["hold", "-r", "k", "/@s"], ["snapshot", "-r", "/@t"], ["rename", "-r", "/@s", "@u"], ["gc", "--all"]):
        answer = tzfs(*line)
        assert answer.code in (74, 78), line
        assert re.fullmatch("tzfs: a: [^\n]+\n(hint: [^\n]+\n)?", answer.err), line
    assert tzfs("list", "-H", "-o", "name", "-t", "snapshot", "z").out.split() == ["z@u", "z@t"]
    assert tzfs.ok("holds", "-H", "z@u").split()[:2] == ["z@u", "k"]
    for line in (["snapshot", "a@v"], ["run", "a", "--", "true"], ["check", "a"], ["bookmark", "a@s", "#b"]):
        assert tzfs(*line).err.startswith("tzfs: a: "), line


def test_where_only_the_damaged_one_is_meant_nothing_else_is_said(damaged: CommandLine) -> None:
    for line in (["holds", "-rH"], ["hold", "-r", "k"], ["release", "-r", "keep"]):
        answer = damaged(*line, "a/bad@s")
        assert answer.code == 78
        assert re.fullmatch("tzfs: a/bad: [^\n]+\n", answer.err)
    assert damaged("holds", "-r", "--json", "a/bad@s").out == "[]\n"
    assert "no snapshot z@none" in damaged.refused("holds", "-r", "z@none", code=1)


def test_one_that_may_have_no_more_snapshots_keeps_no_other_from_its_own(tzfs: CommandLine) -> None:
    for name in ("a", "b", "c"):
        tzfs.ok("create", name)
    with open_store(tzfs.store) as store, store.open("b"):
        answer = tzfs("snapshot", "-r", "/@t")
    assert answer.code == exit_code_of(Busy(""))
    assert answer.err.startswith("tzfs: filesystem b is in use by pid ")
    tzfs.ok("set", "snapshot_limit=1", "a")
    answer = tzfs("snapshot", "-r", "/@u")
    assert re.fullmatch(r"tzfs: a: .*snapshot_limit is 1\n(hint: [^\n]+\n)?", answer.err)
    found = tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot").split()
    assert found == ["a@t", "b@u", "c@t", "c@u"]


def test_one_that_goes_just_then_is_not_told_as_damaged(damaged: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "is_gone", lambda self, info: info.name.name == "bad")
    for line in (["log"], ["events"], ["snapshot", "-r", "/@t"], ["holds", "-r", "/@s"], ["gc", "--all"], ["list"]):
        damaged.ok(*line)
    damaged.ok("destroy", "-rn", "/@t")


def test_the_quota_of_a_store_does_without_what_cannot_be_read(damaged: CommandLine) -> None:
    assert int(damaged.ok("get", "-Hp", "-o", "value", "used", "/")) > 0
    damaged.ok("set", "quota=10G", "/")
    assert damaged.ok("get", "-H", "-o", "value", "quota", "/") == "10G\n"
    damaged.ok("snapshot", "z@more")


@pytest.mark.parametrize(
    "line",
    [
        ["snapshot", "bad@t"],
        ["hold", "more", "bad@s"],
        ["release", "keep", "bad@s"],
        ["holds", "bad@s"],
        ["clone", "bad@s", "copy"],
        ["send", "bad@s"],
        ["get", "used", "bad"],
        ["log", "bad"],
        ["gc", "bad"],
        ["destroy", "-n", "bad@s"],
        ["destroy", "-n", "bad"],
        ["rollback", "bad@s"],
        ["diff", "bad@s"],
        ["prune", "bad"],
        ["restore", "bad@s", "x"],
    ],
)
def test_damage_is_told_with_the_name_of_its_filesystem(tzfs: CommandLine, line: list[str]) -> None:
    tzfs.ok("create", "bad")
    tzfs.ok("snapshot", "bad@s")
    with open_store(tzfs.store) as store:
        meta = LmdbMeta(store.get("bad").folder / "meta")
    txn = meta.begin_write()
    damage_row(txn, Table.SYS, SUPERBLOCK_KEY)
    txn.commit()
    meta.close()
    answer = tzfs(*line)
    assert answer.code == 65
    assert answer.err.startswith("tzfs: bad: damaged record sys/")


SPOILT = [
    "the folder is a file",
    "the folder is a link",
    "the folder is a fifo",
    "views is a file",
    "views is a link",
    "views is a fifo",
    "the lock is a folder",
    "the lock is a link",
    "the lock is a fifo",
]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("what", SPOILT)
def test_what_is_not_a_filesystems_folder_any_more_can_be_given_up(tzfs: CommandLine, what: str, held: bool) -> None:
    tzfs.ok("create", "bad")
    tzfs.ok("snapshot", "bad@s")
    if held:
        tzfs.ok("hold", "keep", "bad@s")
    with open_store(tzfs.store) as store:
        folder = store.get("bad").folder
    spoil(folder, what)
    assert tzfs("destroy", "-r", "bad").code in (74, 75, 78)
    assert tzfs.ok("destroy", "--damaged", "-rn", "bad") == ""
    assert tzfs("list", "-H", "-o", "name").out == "bad\n"
    assert tzfs.ok("destroy", "--damaged", "-r", "bad") == ""
    assert tzfs.ok("list", "-H", "-o", "name") == ""
    assert os.listdir(folder.parent) == []


def test_what_a_link_in_the_place_of_a_folder_leads_to_is_left_alone(tzfs: CommandLine, tmp_path: Path) -> None:
    tzfs.ok("create", "bad")
    with open_store(tzfs.store) as store:
        folder = store.get("bad").folder
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    before = sorted(os.listdir(tmp_path / "away"))
    assert "a symbolic link inside a store" in tzfs.refused("destroy", "bad", code=78)
    tzfs.ok("destroy", "--damaged", "bad")
    assert not os.path.lexists(folder)
    assert sorted(os.listdir(tmp_path / "away")) == before


@pytest.mark.parametrize("what", ["", "meta", "meta/data.mdb"])
def test_no_link_is_followed_to_tables_that_are_only_read(tzfs: CommandLine, tmp_path: Path, what: str) -> None:
    tzfs.ok("create", "bad")
    tzfs.ok("snapshot", "bad@s")
    tzfs.ok("clone", "bad@s", "clone")
    tzfs.ok("create", "good")
    with open_store(tzfs.store) as store:
        folder = store.get("bad").folder
    away = tmp_path / "away"
    os.rename(folder / what, away)
    (folder / what).symlink_to(away)
    (away / "lock.mdb").unlink(missing_ok=True) if away.is_dir() else None
    before = sorted(away.rglob("*"))
    for line in (["list"], ["list", "-t", "all"], ["log"], ["diff", "bad@s"], ["holds", "bad@s"], ["send", "bad@s"]):
        answer = tzfs(*line)
        assert answer.code == 78, line
        assert re.search("symbolic link|a link to one", answer.err), line
    assert "good" in tzfs("list").out
    assert "symbolic link" in tzfs("check", "clone").err
    assert sorted(away.rglob("*")) == before


def test_a_fifo_in_the_tables_folder_makes_nobody_wait(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    with open_store(tzfs.store) as store:
        folder = store.get("ws").folder
    (folder / "meta" / "place").unlink()
    os.mkfifo(folder / "meta" / "place")
    tzfs.ok("list")


USER = """
import sys
from tzfs.management import open_store
with open_store(sys.argv[1]) as store:
    if sys.argv[2] == "writer":
        fs = store.open("bad")
    else:
        reader = store.reader("bad@s")
    print("open", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "writer":
        fs.write_bytes("/f", bytes(100_000))
        fs.sync()
        print(fs.read_bytes("/f") == bytes(100_000))
    else:
        print(reader.view.lookup(1, b"f").size)
"""


@pytest.mark.parametrize("how", ["writer", "reader"])
@pytest.mark.parametrize("what", ["views is a file", "the lock is a folder", "the folder is a link"])
def test_what_somebody_has_open_is_not_given_up_whatever_became_of_its_folder(
    tzfs: CommandLine, tmp_path: Path, what: str, how: str
) -> None:
    tzfs.ok("create", "bad")
    with open_store(tzfs.store) as store:
        folder = store.get("bad").folder
        with store.open("bad") as fs:
            fs.write_bytes("/f", b"five!")
            fs.snapshot("s")
    with subprocess.Popen(
        [sys.executable, "-c", USER, tzfs.store, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        assert user.stdout.readline() == "open\n"
        if what == "the folder is a link":
            folder.rename(tmp_path / "away")
            folder.symlink_to(tmp_path / "away")
        else:
            spoil(folder, what)
        for line in (["-r", "bad"], ["bad"], ["-n", "-r", "bad"]):
            assert tzfs("destroy", "--damaged", *line).code in (1, 75), line
        user.stdin.write("\n")
        user.stdin.flush()
        assert user.stdout.readline() in ("True\n", "5\n")
    assert user.returncode == 0
    tzfs.ok("destroy", "--damaged", "-r", "bad")


def test_this_process_is_one_of_those_that_have_it_open(tzfs: CommandLine) -> None:
    tzfs.ok("create", "bad")
    with open_store(tzfs.store) as store, store.open("bad") as fs:
        spoil(store.get("bad").folder, "the lock is a folder")
        told = tzfs.refused("destroy", "--damaged", "bad", code=75)
        assert told.startswith("tzfs: cannot destroy bad: a process has its tables open\n")
        fs.write_bytes("/f", b"still")
        fs.sync()
    tzfs.ok("destroy", "--damaged", "bad")


def test_what_is_not_there_is_told_in_the_words_of_the_command(tzfs: CommandLine) -> None:
    said = tzfs.refused("run", "nope", "--", "true", code=1)
    assert said.startswith("tzfs: cannot run in nope: there is no such filesystem\n")
