"""destroy: snapshots, in ranges, across filesystems; filesystems with what they hold; and who is in the way."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import CommandLine
from tests.damaging import damage_row
from tests.noise import noise
from tzfs import destroying
from tzfs.catalog import FilesystemInfo
from tzfs.engine.committed import read_superblock
from tzfs.errors import (
    Busy,
    CorruptionError,
    ForeignStore,
    NotEmpty,
    NotFound,
    StoreError,
    TablesLost,
    TzfsError,
    exit_code_of,
)
from tzfs.format import keys
from tzfs.format.counters import COUNTERS_KEY
from tzfs.format.keys import Table
from tzfs.format.superblock import SUPERBLOCK_KEY, pack_superblock
from tzfs.layout import META
from tzfs.management import open_store
from tzfs.store.lease import ViewHold
from tzfs.store.lmdb_store import LmdbMeta


@pytest.fixture
def ws(tzfs: CommandLine) -> Iterator[CommandLine]:
    """A filesystem with snapshots a to e, between which a file of 300,000 bytes is made anew."""
    tzfs.ok("create", "ws")
    for name in "abcde":
        with open_store(tzfs.store) as store, store.open("ws") as fs:
            fs.write_bytes("/file", noise(300_000, name))
            fs.snapshot(name)
    yield tzfs
    if "ws" in tzfs.ok("list", "-H", "-o", "name").split():
        assert tzfs.ok("check", "ws").startswith("ws: no problems")


def names(tzfs: CommandLine, filesystem: str = "ws") -> list[str]:
    return [
        line.partition("@")[2] for line in tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot", filesystem).split()
    ]


def used(tzfs: CommandLine, name: str = "ws") -> int:
    return int(tzfs.ok("get", "-H", "-p", "-o", "value", "used", name))


def test_a_snapshot_is_destroyed_without_a_word_and_its_space_is_back(ws: CommandLine) -> None:
    before, alone = used(ws), used(ws, "ws@b")
    assert ws.ok("destroy", "ws@b") == ""
    assert names(ws) == ["a", "c", "d", "e"]
    assert alone > 300_000
    assert used(ws) == before - alone
    assert ws.ok("get", "-H", "-p", "-o", "value", "freeing", "ws") == "0\n"
    assert ws.refused("destroy", "ws@b", code=1) == "tzfs: no snapshot ws@b\nhint: tzfs list -t snapshot ws\n"


@pytest.mark.parametrize(
    ("which", "gone"),
    [
        ("a", "a"),
        ("e", "e"),
        ("b%d", "bcd"),
        ("%b", "ab"),
        ("d%", "de"),
        ("%", "abcde"),
        ("a,c%d,e", "acde"),
        ("c%c", "c"),
    ],
)
def test_what_is_said_before_is_what_is_done_and_freed(ws: CommandLine, which: str, gone: str) -> None:
    lines = "".join(f"destroy\tws@{name}\n" for name in gone)
    foretold = ws.ok("destroy", "-n", "-p", f"ws@{which}")
    size = int(foretold.removeprefix(f"{lines}reclaim\t"))
    assert names(ws) == [*"abcde"]
    words = ws.ok("destroy", "-nv", f"ws@{which}")
    assert re.fullmatch("".join(f"would destroy ws@{n}\n" for n in gone) + r"would reclaim [0-9.]+[BKM]\n", words)
    told = ws.json("destroy", "-n", "--json", f"ws@{which}")
    assert told == {"destroyed": [f"ws@{name}" for name in gone], "bytes": size, "dry_run": True}
    before = used(ws)
    assert ws.ok("destroy", "-v", f"ws@{which}") == words.replace("would ", "")
    assert names(ws) == [name for name in "abcde" if name not in gone]
    assert used(ws) == before - size


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--damaged", "ws@a"],
            2,
            "tzfs: ws@a is not a filesystem\nhint: a damaged one goes whole: destroy --damaged\n",
        ),
        (["ws@none"], 1, "tzfs: no snapshot ws@none\nhint: tzfs list -t snapshot ws\n"),
        (["ws@a,none"], 1, "no snapshot ws@none"),
        (["ws@a%none"], 1, "no snapshot ws@none"),
        (["ws@d%b"], 2, "ws@d%b: the first is newer than the last"),
        (["ws@"], 2, "snapshot name is empty"),
        (["ws@a,"], 2, "snapshot name is empty"),
        (["ws@a%b%c"], 2, "'%' is not allowed"),
        (["@a"], 2, "no filesystem stands before '@'"),
        (["none@a"], 1, "there is no such filesystem"),
        (["team/@a"], 2, "team/ is not a filesystem\nhint: -r means all filesystems in a namespace"),
        (["-r", "team/@a"], 1, "there is no filesystem in team/"),
        (["-r", "ws@none"], 1, "ws has no such snapshot"),
        (["ws"], 1, "cannot destroy ws: it has snapshots\nhint: -r destroys them too: ws@a, ws@b, ws@c, ws@d, ws@e\n"),
    ],
)
def test_destroy_refuses_and_nothing_is_gone(ws: CommandLine, arguments: list[str], code: int, message: str) -> None:
    assert message in ws.refused("destroy", *arguments, code=code)
    assert message in ws.refused("destroy", "-nv", *arguments, code=code)
    assert names(ws) == [*"abcde"]


def test_a_name_in_all_filesystems_of_a_namespace(tzfs: CommandLine) -> None:
    for name in ("team/one", "team/two", "team/three", "other"):
        tzfs.ok("create", name)
        tzfs.ok("snapshot", f"{name}@a")
    tzfs.ok("destroy", "team/two@a")
    assert tzfs.ok("destroy", "-r", "-n", "-v", "team/@a").startswith(
        "would destroy team/one@a\nwould destroy team/three@a\nwould reclaim "
    )
    tzfs.ok("destroy", "-r", "team/@a")
    assert tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot") == "other@a\n"
    assert tzfs.ok("destroy", "-r", "-v", "/@%").startswith("destroy other@a\n")


def test_who_holds_or_reads_it_is_named_and_nothing_is_gone(ws: CommandLine) -> None:
    ws.ok("hold", "keep", "ws@c")
    for arguments in (["ws@b%d"], ["-n", "ws@c"], ["-r", "ws"]):
        said = ws.refused("destroy", *arguments, code=75)
        assert "ws@c" in said.partition(": in use by hold keep on @c\nhint: release the holds first")[0]
    ws.ok("release", "keep", "ws@c")
    with open_store(ws.store) as store:
        folder = store.get("ws").folder
    with ViewHold.acquire(folder, name="c", epoch=3, info={"mountpoint": "/somewhere"}) as hold:
        pid = hold.path.name.partition("-")[0]
        for arguments in (["ws@%"], ["-n", "ws@c"]):
            meant = "ws@a, ws@b, ws@c, ws@d, ws@e" if "%" in arguments[0] else "ws@c"
            assert ws.refused("destroy", *arguments, code=75) == (
                f"tzfs: cannot destroy {meant}: in use by pid {pid}, "
                "reading @c, mounted at /somewhere\nhint: unmount it, or wait for that process to end\n"
            )
        ws.ok("rename", "ws@c", "@renamed")
        assert f"ws@renamed: in use by pid {pid}, reading @renamed, mounted" in ws.refused(
            "destroy", "ws@renamed", code=75
        )
        ws.ok("snapshot", "ws@c")
        ws.ok("destroy", "ws@c")
        ws.ok("rename", "ws@renamed", "@c")
        ws.ok("destroy", "ws@b")
    assert names(ws) == [*"acde"]
    ws.ok("destroy", "ws@c")


def test_clones_are_in_the_way_unless_they_go_too(ws: CommandLine) -> None:
    for name, origin in (("first", "ws@b"), ("second", "first@s")):
        ws.ok("clone", origin, name)
        ws.ok("snapshot", f"{name}@s")
    for arguments in (["ws@a%c"], ["-r", "ws"]):
        assert ws.refused("destroy", *arguments, code=75) == (
            "tzfs: cannot destroy ws@b: there are clones of it: first\nhint: -R destroys them too\n"
        )
    told = ws.ok("destroy", "-R", "-n", "-p", "ws@b").splitlines()
    assert told[:-1] == [f"destroy\t{name}" for name in ("second@s", "second", "first@s", "first", "ws@b")]
    ws.ok("destroy", "-R", "ws@b")
    assert ws.ok("list", "-H", "-o", "name") == "ws\n"
    assert names(ws) == [*"acde"]


def test_an_archived_filesystem_keeps_its_snapshots(ws: CommandLine) -> None:
    ws.ok("archive", "ws")
    assert "cannot destroy a snapshot of ws: it is ARCHIVED" in ws.refused("destroy", "ws@a", code=75)
    ws.ok("destroy", "-r", "ws")


# -- what is damaged ---------------------------------------------------------------------------------------------------

SYS_ROWS = {"superblock": SUPERBLOCK_KEY, "counters": COUNTERS_KEY}


def damage(tzfs: CommandLine, kind: str) -> None:
    with open_store(tzfs.store) as store:
        data = store.get("ws").folder / META / "data.mdb"
    if kind == "truncated":
        os.truncate(data, data.stat().st_size // 2)
    elif kind == "lost":
        data.unlink()
    elif kind == "overwritten":
        with data.open("r+b") as file:
            file.write(bytes(8192))
    else:
        meta = LmdbMeta(data.parent)
        txn = meta.begin_write()
        table = Table.SYS if kind in SYS_ROWS else Table[kind.upper()]
        damage_row(txn, table, next(iter(txn.range(table, SYS_ROWS.get(kind, b""))))[0])
        txn.commit()
        meta.close()


def can_be_read(tzfs: CommandLine, name: str) -> bool:
    """Whether a filesystem, or a snapshot, could be mounted read-only."""
    with open_store(tzfs.store) as store:
        try:
            with store.open_snapshot(name) if "@" in name else store.open_readonly(name) as tree:
                assert len(tree.read_bytes("/file")) == 300_000
        except (CorruptionError, TablesLost):
            return False
    return True


UNREADABLE = {"snapshot": 65, "superblock": 65, "counters": 65, "truncated": 65, "lost": 78, "overwritten": 78}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_filesystem_that_cannot_be_read_is_named_and_can_be_given_up(ws: CommandLine, kind: str) -> None:
    ws.ok("create", "other")
    ws.ok("hold", "keep", "ws@b")
    damage(ws, kind)
    assert not can_be_read(ws, "ws")
    listed = ws("list", "-H", "-o", "name")
    assert (listed.code, listed.out) == (UNREADABLE[kind], "other\nws\n")
    assert listed.err.startswith("tzfs: ws: ")
    for arguments in (["ws"], ["-r", "ws"], ["-R", "ws"]):
        said = ws.refused("destroy", *arguments, code=UNREADABLE[kind])
        assert said.endswith("to give up all that is in it: tzfs destroy --damaged ws\n")
        still = "its snapshots can still be mounted: ws@a, ws@b, ws@c, ws@d, ws@e; to give up"
        assert (still in said) == can_be_read(ws, "ws@a") == (kind == "counters")
    assert ws.ok("destroy", "-nv", "--damaged", "ws").startswith("would destroy ws\nwould reclaim ")
    told = ws.json("destroy", "--damaged", "--json", "ws")
    assert isinstance(told, dict)
    assert told["destroyed"] == ["ws"]
    assert told["bytes"] > 4096
    assert ws.ok("list", "-H", "-o", "name", "-t", "all") == "other\n"
    assert len(os.listdir(ws.store / "fs")) == 1


def test_a_filesystem_that_cannot_be_read_stays_as_long_as_it_has_clones(ws: CommandLine) -> None:
    ws.ok("clone", "ws@a", "copy")
    damage(ws, "snapshot")
    told = ws.refused("destroy", "--damaged", "ws", code=75)
    assert told == "tzfs: cannot destroy ws: there are clones of it: copy\nhint: -R destroys them too\n"
    ws.ok("destroy", "-R", "--damaged", "ws")
    assert ws.ok("list", "-H", "-o", "name") == ""


@pytest.mark.parametrize("also", [[], ["--damaged"]], ids=["plainly", "--damaged"])
def test_where_only_accounts_are_damaged_snapshots_and_holds_count(ws: CommandLine, also: list[str]) -> None:
    ws.ok("hold", "keep", "ws@b")
    damage(ws, "cell")
    assert can_be_read(ws, "ws")
    assert can_be_read(ws, "ws@a")
    assert ws.refused("destroy", *also, "ws", code=1) == (
        "tzfs: cannot destroy ws: it has snapshots\nhint: -r destroys them too: ws@a, ws@b, ws@c, ws@d, ws@e\n"
    )
    for dry in ([], ["-n"]):
        assert ws.refused("destroy", *dry, *also, "-r", "ws", code=75) == (
            "tzfs: cannot destroy ws@a, ws@b, ws@c, ws@d, ws@e: in use by hold keep on @b\n"
            "hint: release the holds first\n"
        )
    with pytest.raises(Busy, match="hold keep on @b"), open_store(ws.store) as store:
        store.destroy("ws", recursive=True)
    ws.ok("release", "keep", "ws@b")
    told = ws.json("destroy", *also, "-r", "--json", "ws")
    assert isinstance(told, dict)
    assert told["destroyed"] == ["ws@a", "ws@b", "ws@c", "ws@d", "ws@e", "ws"]
    assert told["bytes"] > 5 * 300_000
    assert ws.ok("list", "-H", "-o", "name", "-t", "all") == ""
    assert os.listdir(ws.store / "fs") == []


@pytest.mark.parametrize("also", [[], ["--damaged"]], ids=["plainly", "--damaged"])
def test_where_only_accounts_are_damaged_clones_are_told_by_snapshot(ws: CommandLine, also: list[str]) -> None:
    ws.ok("clone", "ws@b", "copy")
    damage(ws, "cell")
    assert ws.refused("destroy", *also, "-r", "ws", code=75) == (
        "tzfs: cannot destroy ws@b: there are clones of it: copy\nhint: -R destroys them too\n"
    )
    told = ws.ok("destroy", *also, "-R", "-p", "ws").splitlines()
    assert told[:-1] == [f"destroy\t{name}" for name in ("copy", "ws@a", "ws@b", "ws@c", "ws@d", "ws@e", "ws")]
    assert ws.ok("list", "-H", "-o", "name") == ""


def test_where_accounts_are_damaged_a_snapshot_can_be_destroyed_and_how_much_that_frees_is_not_known(
    ws: CommandLine,
) -> None:
    damage(ws, "cell")
    assert "damaged record cell/" in ws.refused("destroy", "-n", "ws@%", code=65)
    assert ws.ok("destroy", "-p", "ws@a") == "destroy\tws@a\nreclaim\t0\n"
    with pytest.raises(NotFound):
        can_be_read(ws, "ws@a")
    assert all(can_be_read(ws, f"ws@{name}") for name in "bcde")
    ws.ok("snapshot", "ws@f")
    assert "damaged record cell/" in ws("list", "-t", "snapshot", "ws").err
    with open_store(ws.store) as store:
        assert store.snapshot("ws@g").record.epoch
    ws.ok("destroy", "-r", "ws")


@pytest.mark.parametrize(("table", "key"), [(Table.RECLAIM, keys.u64(1)), (Table.BOOKMARK, b"b")])
def test_a_hold_that_damage_keeps_from_being_released_is_passed_over(ws: CommandLine, table: Table, key: bytes) -> None:
    ws.ok("hold", "keep", "ws@b")
    with open_store(ws.store) as store:
        meta = LmdbMeta(store.get("ws").folder / META)
    txn = meta.begin_write()
    txn.put(table, key, b"\0" * 40)
    txn.commit()
    meta.close()
    assert ws("release", "keep", "ws@b").code == 65
    in_use = "in use by hold keep on @b\nhint: release the holds first\n"
    assert ws.refused("destroy", "-r", "ws", code=75).endswith(in_use)
    assert "it has snapshots" in ws.refused("destroy", "--damaged", "ws", code=1)
    assert ws.ok("destroy", "--damaged", "-rnv", "ws").startswith("would destroy ws@a\n")
    ws.ok("destroy", "--damaged", "-r", "ws")
    assert ws.ok("list", "-H", "-o", "name") == ""


@pytest.mark.parametrize("what", ["meta", "meta/data.mdb"])
def test_what_has_something_else_in_the_place_of_its_tables_can_be_given_up(ws: CommandLine, what: str) -> None:
    with open_store(ws.store) as store:
        path = store.get("ws").folder / what
    path.rename(path.with_name("away"))
    path.touch() if what == "meta" else path.mkdir()
    for verb in (["list"], ["destroy", "ws"]):
        assert "no tables of tzfs here, but something else" in ws(*verb).err
    ws.ok("destroy", "--damaged", "ws")
    assert ws.ok("list", "-H", "-o", "name") == ""
    assert os.listdir(ws.store / "fs") == []


@pytest.mark.parametrize("error", [StoreError, ForeignStore])
def test_what_cannot_be_read_under_the_lease_for_another_reason_stays(
    ws: CommandLine, monkeypatch: pytest.MonkeyPatch, error: type[TzfsError]
) -> None:
    damage(ws, "snapshot")
    monkeypatch.setattr(destroying, "snapshots_of", lambda info: (_ for _ in ()).throw(error("meta: not now")))
    for arguments in (["-n"], []):
        told = ws.refused("destroy", *arguments, "--damaged", "ws", code=exit_code_of(error("")))
        assert told == "tzfs: meta: not now\n"
    monkeypatch.undo()
    assert ws("list", "-H", "-o", "name").out == "ws\n"
    assert len(os.listdir(ws.store / "fs")) == 1
    ws.ok("destroy", "--damaged", "ws")


@pytest.mark.parametrize("kind", ["of a newer tzfs", "a table is missing", "no memory", "damaged for a moment"])
def test_what_is_not_damaged_is_never_given_up(ws: CommandLine, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    ws.ok("hold", "keep", "ws@b")
    code = 78
    with open_store(ws.store) as store:
        folder = store.get("ws").folder / META
    if kind == "of a newer tzfs":
        meta = LmdbMeta(folder)
        txn = meta.begin_write()
        superblock = read_superblock(txn)
        txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(replace(superblock, incompat=1 << 30)))
        txn.commit()
    elif kind == "a table is missing":
        meta = LmdbMeta(folder)
        shared = meta._shared
        assert shared is not None
        bookmarks = shared.dbs[Table.BOOKMARK]
        assert bookmarks is not None
        with shared.env.begin(write=True) as dropping:
            dropping.drop(bookmarks)
        meta.close()
    else:
        error: TzfsError = StoreError("meta: open: no memory")
        if kind == "damaged for a moment":
            error = CorruptionError("damaged record")
        code = 74 if kind == "no memory" else 75
        monkeypatch.setattr(destroying, "check_empty", lambda info, **_: (_ for _ in ()).throw(error))
    said = ws.refused("destroy", "--damaged", "ws", code=code)
    assert "give up" not in said
    if kind == "damaged for a moment":
        assert said.endswith("ws: it has become readable just now\nhint: try again without --damaged\n")
    monkeypatch.undo()
    if kind == "of a newer tzfs":
        assert "a newer tzfs" in said
        txn = meta.begin_write()
        txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(superblock))
        txn.commit()
        meta.close()
    elif kind == "a table is missing":
        assert "has no table bookmark\nhint: if another version of tzfs made it, use that one; if it is" in said
        LmdbMeta(folder, create=True).close()  # it had no rows
    assert names(ws) == [*"abcde"]
    ws.ok("release", "keep", "ws@b")


def test_a_clone_of_a_damaged_filesystem_is_not_taken_for_damaged(ws: CommandLine) -> None:
    ws.ok("clone", "ws@a", "copy")
    damage(ws, "cell")
    ws.ok("snapshot", "copy@s")
    listed = ws("list", "-H", "-t", "all")
    assert re.fullmatch(r"copy\t\d.*\ncopy@s\t\d.*\nws\t-.*\n", listed.out)
    assert re.fullmatch(r"tzfs: ws: damaged record cell/[0-9a-f]+: checksum does not match\n", listed.err)
    assert "it has snapshots" in ws.refused("destroy", "--damaged", "copy", code=1)
    ws.ok("destroy", "-r", "copy")
    ws.ok("destroy", "-r", "ws")


@pytest.mark.parametrize(
    ("arguments", "between", "code", "told"),
    [
        ([], [["snapshot", "new@acknowledged"]], 1, "it has snapshots"),
        (["-r"], [["hold", "keep", "new@a"]], 75, "in use by hold keep on @a"),
        (["-r", "--damaged"], [["hold", "keep", "new@a"]], 75, "in use by hold keep on @a"),
        (["-R"], [["snapshot", "new@b"], ["hold", "keep", "new@b"]], 75, "in use by hold keep on @b"),
        ([], [["rename", "new", "old"], ["create", "new"]], 75, "another filesystem has just got this name"),
        ([], [["rename", "new", "old"]], 1, "there is no such filesystem"),
        ([], [["destroy", "-r", "new"]], 1, "new is gone: it was destroyed"),
        (["-R"], [["clone", "new@a", "copy"]], 75, "it has clones: copy"),
    ],
)
def test_what_comes_between_the_plan_and_its_lease_is_not_destroyed(
    tzfs: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    between: list[list[str]],
    code: int,
    told: str,
) -> None:
    """A snapshot that is acknowledged stays, also where a command that does not know of it is under way."""
    tzfs.ok("create", "new")
    if arguments:
        tzfs.ok("snapshot", "new@a")
    charged, there = destroying._charged, ""

    def others_are_faster(folder: Path) -> int:
        nonlocal there
        monkeypatch.setattr(destroying, "_charged", charged)  # for a destroy among them
        for each in between:
            tzfs.ok(*each)
        there = tzfs.ok("list", "-H", "-o", "name", "-t", "all")
        return charged(folder)

    monkeypatch.setattr(destroying, "_charged", others_are_faster)
    assert told in tzfs.refused("destroy", *arguments, "new", code=code)
    assert tzfs.ok("list", "-H", "-o", "name", "-t", "all") == there


def test_a_store_destroys_nothing_that_comes_after_it_has_looked(
    tzfs: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tzfs.ok("create", "ws")
    with open_store(tzfs.store) as store:
        destroy = store.catalog.destroy

        def others_are_faster(name: str, **how: Any) -> FilesystemInfo:
            if not how["dry_run"]:
                tzfs.ok("snapshot", "ws@acknowledged")
            return destroy(name, **how)

        monkeypatch.setattr(store.catalog, "destroy", others_are_faster)
        with pytest.raises(NotEmpty):
            store.destroy("ws")
    assert names(tzfs) == ["acknowledged"]


def test_a_bookmark_is_destroyed_as_a_snapshot_is(ws: CommandLine) -> None:
    ws.ok("bookmark", "ws@a", "#b")
    assert ws.ok("destroy", "-n", "-p", "ws#b") == "destroy\tws#b\nreclaim\t0\n"
    assert ws.ok("destroy", "-nv", "ws#b") == "would destroy ws#b\nwould reclaim 0B\n"
    for line in (["-nv", "ws#c"], ["-p", "ws#c"], ["ws#c"]):
        assert "no bookmark ws#c" in ws.refused("destroy", *line, code=1)
    assert "ws#b is not a filesystem" in ws.refused("destroy", "--damaged", "ws#b", code=2)
    said = json.loads(ws.ok("destroy", "--json", "ws#b"))
    assert said == {"destroyed": ["ws#b"], "bytes": 0, "dry_run": False}
    assert ws.ok("list", "-H", "-t", "bookmark", "ws") == ""


def test_of_a_sound_filesystem_nothing_more_is_destroyed(ws: CommandLine) -> None:
    assert "it has snapshots" in ws.refused("destroy", "--damaged", "ws", code=1)
    ws.ok("hold", "keep", "ws@b")
    assert "keep" in ws.refused("destroy", "-r", "--damaged", "ws", code=75)
    assert names(ws) == [*"abcde"]
    ws.ok("release", "keep", "ws@b")
