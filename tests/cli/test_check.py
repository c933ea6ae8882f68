"""`tzfs check`: what it prints and how it ends, of a sound filesystem and of a damaged one; mounted or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.mount.workspace import NAME, PROJECT, Workspace
from tests.noise import noise
from tzfs.checking import Checked
from tzfs.cli import cli
from tzfs.engine.check.problems import Progress, Rule
from tzfs.errors import ForeignStore
from tzfs.format import keys, records
from tzfs.format.keys import Table
from tzfs.format.superblock import SUPERBLOCK_KEY, pack_superblock, unpack_superblock
from tzfs.layout import META, SEGMENTS
from tzfs.management import Store, open_store
from tzfs.store.lmdb_store import LmdbMeta

CONTENTS = noise(10_240)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        opened.create("ws")
        with opened.open("ws") as fs:
            fs.mkdir("/d")
            fs.write_bytes("/d/file", CONTENTS)
            fs.write_bytes("/small", b"small")
        opened.snapshot("ws@s")
        with opened.open("ws") as fs:
            fs.write_bytes("/d/file", CONTENTS[::-1])
        yield opened


def run(store: Store, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["--store", str(store.path), "check", *arguments], standalone_mode=False)
    assert done.exception is None, done.exception
    return (done.return_value if isinstance(done.return_value, int) else 0), done.stdout, done.stderr


def damage_payload(store: Store) -> None:
    """Another byte in every extent of 10,240 bytes."""
    for path in (store.get("ws").folder / SEGMENTS).iterdir():
        raw = bytearray(path.read_bytes())
        for at in range(4096, len(raw), 4096):
            raw[at] ^= 1
        path.write_bytes(raw)


def damage_row(store: Store, damage: Callable[[LmdbMeta], None]) -> None:
    meta = LmdbMeta(store.get("ws").folder / META)
    damage(meta)
    meta.close()


def change(meta: LmdbMeta, table: Table, key: bytes, value: bytes | None) -> None:
    txn = meta.begin_write()
    if value is None:
        txn.delete(table, key)
    else:
        txn.put(table, key, value)
    txn.commit()


def test_a_sound_filesystem_ends_with_0_and_one_line(store: Store) -> None:
    code, out, err = run(store, "ws")
    assert (code, err) == (0, "")
    assert out.startswith("ws: no problems; ")
    code, out, _ = run(store, "ws", "--payload")
    assert code == 0
    assert out.endswith("rows and 20K of contents read\n")


def test_a_damaged_row_is_a_line_and_exit_code_65(store: Store) -> None:
    damage_row(store, lambda meta: change(meta, Table.SNAPSHOT, b"s", None))
    code, out, _ = run(store, "ws")
    assert code == 65
    assert "deadlist: dead/" in out
    assert out.splitlines()[-1].startswith("ws: ")


def test_damaged_contents_are_found_with_payload_only(store: Store) -> None:
    damage_payload(store)
    assert run(store, "ws")[0] == 0
    code, out, _ = run(store, "ws", "--payload", "--json")
    assert code == 65
    *rows, whole = map(json.loads, out.splitlines())
    assert {row["rule"] for row in rows} == {"payload"}
    assert whole["problems"] == len(rows) == 2
    assert whole["payload_bytes"] == 2 * len(CONTENTS)


def test_tables_that_cannot_be_opened_are_a_problem(store: Store) -> None:
    os.truncate(store.get("ws").folder / META / "data.mdb", 5000)
    found = store.check("ws")
    assert [problem.rule for problem in found.problems] == [Rule.TABLES]


def test_a_superblock_that_is_gone_is_a_problem(store: Store) -> None:
    damage_row(store, lambda meta: change(meta, Table.SYS, SUPERBLOCK_KEY, None))
    assert {problem.rule for problem in store.check("ws").problems} == {Rule.SUPERBLOCK}


def test_a_filesystem_of_a_later_tzfs_is_not_judged(store: Store) -> None:
    def later(meta: LmdbMeta) -> None:
        txn = meta.begin_read()
        superblock = unpack_superblock(txn.get(Table.SYS, SUPERBLOCK_KEY) or b"")
        txn.close()
        object.__setattr__(superblock, "incompat", 1 << 40)
        change(meta, Table.SYS, SUPERBLOCK_KEY, pack_superblock(superblock))

    damage_row(store, later)
    with pytest.raises(ForeignStore):
        store.check("ws")


def test_what_the_redo_log_has_is_checked_too(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_bytes("/logged", CONTENTS)
        fs.sync()
        rows = store.check  # a writer holds the lease: nobody else may look
        with pytest.raises(Exception, match="in use"):
            rows("ws")
    assert store.check("ws", payload=True).problems == ()


def test_progress_is_told_and_ends_with_what_was_read(store: Store) -> None:
    told: list[Progress] = []
    found = store.check("ws", payload=True, progress=told.append)
    assert isinstance(found, Checked)
    assert (told[-1].stage, told[-1].rows, told[-1].payload_bytes) == ("done", found.rows, found.payload_bytes)


def test_a_terminal_sees_how_far_it_is(store: Store) -> None:
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "tzfs.cli", "--store", str(store.path), "check", "ws", "--payload"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=end, text=True) as process:
        os.close(end)
        out, _ = process.communicate()
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert process.returncode == 0
    assert out.startswith("ws: no problems")
    assert "checking ws" in shown
    assert "100%" in shown


def test_an_archived_filesystem_is_checked(store: Store) -> None:
    store.archive("ws")
    assert store.check("ws").problems == ()


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path)
    try:
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


def test_a_mounted_filesystem_is_checked_by_its_mount(workspace: Workspace) -> None:
    with workspace.mounted() as where:
        for i in range(200):
            (where / f"file-{i}").write_bytes(CONTENTS if i % 4 == 0 else b"small")
        told: list[Progress] = []
        with workspace.store() as opened:
            found = opened.check(NAME, payload=True, progress=told.append)
        assert found.problems == ()
        assert found.payload_bytes == 50 * len(CONTENTS)
        assert told[-1].stage == "done"
        (where / "file-0").unlink()
        assert workspace.tzfs("check", NAME).startswith(f"{NAME}: no problems; ")
    assert workspace.tzfs("check", NAME, "--payload").startswith(f"{NAME}: no problems; ")
    with workspace.mounted("ro"):
        assert workspace.tzfs("check", NAME).startswith(f"{NAME}: no problems; ")


def test_what_a_mount_finds_reaches_the_client(workspace: Workspace) -> None:
    key = keys.change(1, Table.INODE, keys.inode(9999))
    with workspace.store() as opened:
        meta = LmdbMeta(opened.get(NAME).folder / META)
        change(meta, Table.CHANGE, key, records.seal(Table.CHANGE, key, b""))
        meta.close()
    with workspace.mounted():
        done = workspace.run("check", NAME)
    assert done.returncode == 65
    assert done.stdout.startswith(f"change: change/{key.hex()}: there is no such version\n")
