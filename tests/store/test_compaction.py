"""Tables made as small as their rows: the same rows, whoever comes in between, and wherever it stops."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tzfs import failpoints
from tzfs.errors import Busy, TzfsError
from tzfs.format.keys import Table
from tzfs.store import lmdb_compaction
from tzfs.store.lmdb_store import LmdbMeta

POINTS = sorted(
    name
    for name in failpoints.KNOWN
    if name.startswith("compact.") and name.split(".")[1] not in ("begin", "log", "done")
)
ROWS = 20_000
KEPT = {b"%08d" % n: b"x" * 200 for n in range(ROWS - 100, ROWS)}
READ = """
import sys
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta
meta = LmdbMeta(sys.argv[1], readonly=True)
print("open", flush=True)
sys.stdin.readline()
txn = meta.begin_read()
print(len(list(txn.range(Table.INODE, b""))), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Tables of which nearly all is free."""
    meta = LmdbMeta(tmp_path / "meta", create=True)
    txn = meta.begin_write()
    txn.put_many(Table.INODE, [(b"%08d" % n, b"x" * 200) for n in range(ROWS)])
    txn.commit()
    txn = meta.begin_write()
    txn.delete_many(Table.INODE, [b"%08d" % n for n in range(ROWS - 100)])
    txn.commit()
    meta.close()
    return tmp_path / "meta"


@pytest.fixture
def meta(path: Path) -> Iterator[LmdbMeta]:
    opened = LmdbMeta(path)
    yield opened
    opened.close()


def rows(meta: LmdbMeta) -> dict[bytes, bytes]:
    txn = meta.begin_read()
    try:
        return dict(txn.range(Table.INODE, b""))
    finally:
        txn.close()


def put(meta: LmdbMeta, key: bytes) -> None:
    txn = meta.begin_write()
    txn.put(Table.INODE, key, b"")
    txn.commit()


def reader(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READ, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate("\n", timeout=60)
    return out.splitlines()[-1]


def test_the_tables_become_as_small_as_their_rows_and_go_on(meta: LmdbMeta, path: Path) -> None:
    whole, used = meta.slack()
    assert whole > 10 * used
    copy = meta.compaction()
    copy.run()
    copy.install()
    assert os.stat(path / "data.mdb").st_size == meta.slack()[0] < 2 * used
    assert rows(meta) == KEPT
    put(meta, b"later")
    assert rows(meta) == {**KEPT, b"later": b""}
    assert sorted(os.listdir(path.parent)) == ["meta"]
    meta.close()
    again = LmdbMeta(path)
    assert rows(again) == {**KEPT, b"later": b""}
    again.close()


def unlinked() -> list[str]:
    """Files that this process has open and that have no name any more."""
    there = Path("/proc/self/fd")
    return [link for fd in os.listdir(there) if (link := _link(there / fd)).endswith("data.mdb (deleted)")]


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # the listing's own
        return ""


def test_the_space_of_the_original_is_given_back_when_it_is_let_go(meta: LmdbMeta, path: Path) -> None:
    """For 400 MiB that takes the disk's file system 0.1 s, which need not be the loop's."""
    copy = meta.compaction()
    copy.run()
    copy.install()
    assert sorted(os.listdir(path.parent)) == ["meta"]
    assert len(unlinked()) == 1
    copy.let_go()
    assert unlinked() == []
    copy.let_go()
    assert rows(meta) == KEPT


def test_a_second_compaction_gains_nothing_and_loses_nothing(meta: LmdbMeta) -> None:
    sizes = []
    for _ in range(3):
        copy = meta.compaction()
        copy.run()
        copy.install()
        put(meta, b"between")
        sizes.append(meta.slack()[0])
    assert max(sizes) < 100 * 4096
    assert len(rows(meta)) == 101


def test_others_of_this_process_go_on_with_the_new_tables(meta: LmdbMeta, path: Path) -> None:
    other = LmdbMeta(path, readonly=True)
    copy = meta.compaction()
    copy.run()
    copy.install()
    put(meta, b"later")
    assert rows(other) == {**KEPT, b"later": b""}
    other.close()


def test_what_is_read_or_written_in_this_process_is_left_alone(meta: LmdbMeta, path: Path) -> None:
    other = LmdbMeta(path, readonly=True)
    txn = other.begin_read()
    copy = meta.compaction()
    copy.run()
    with pytest.raises(Busy, match="in this process"):
        copy.install()
    assert dict(txn.range(Table.INODE, b"")) == KEPT
    other.close()
    copy = meta.compaction()
    copy.run()
    put(meta, b"changed")
    with pytest.raises(Busy, match="changed while it was copied"):
        copy.install()
    assert sorted(os.listdir(path.parent)) == ["meta"]
    assert len(rows(meta)) == 101


def test_it_is_refused_while_another_process_has_the_tables_open(meta: LmdbMeta, path: Path) -> None:
    process = reader(path)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    inode = os.stat(path / "data.mdb").st_ino
    copy = meta.compaction()
    copy.run()
    with pytest.raises(Busy, match="another process"):
        copy.install()
    put(meta, b"later")
    assert finish(process) == "101"
    assert os.stat(path / "data.mdb").st_ino == inode
    copy = meta.compaction()
    copy.run()
    copy.install()
    assert len(rows(meta)) == 101


def test_who_comes_in_during_the_exchange_finds_the_new_tables(meta: LmdbMeta, path: Path) -> None:
    copy = meta.compaction()
    copy.run()
    failpoints.arm("compact.exchanged", "delay:1.5")  # time for it to wait for the old lock
    started: list[subprocess.Popen[str]] = []
    threading.Timer(0.0, lambda: started.append(reader(path))).start()
    try:
        copy.install()
    finally:
        failpoints.disarm_all()
    put(meta, b"later")
    while not started:
        pass
    assert started[0].stdout is not None
    assert started[0].stdout.readline() == "open\n"
    put(meta, b"and later")
    assert finish(started[0]) == "102"


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_leaves_the_rows_and_the_next_writer_tidies_up(path: Path, point: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            failpoints.arm(point, "crash")
            meta = LmdbMeta(path)
            copy = meta.compaction()
            copy.run()
            copy.install()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == failpoints.CRASH_STATUS
    lmdb_compaction.discard(path)
    assert sorted(os.listdir(path.parent)) == ["meta"]
    meta = LmdbMeta(path)
    assert rows(meta) == KEPT
    put(meta, b"later")
    meta.close()


@pytest.mark.parametrize("action", ["error:EIO", "error:ENOSPC"])
@pytest.mark.parametrize("point", POINTS)
def test_an_error_is_told_and_leaves_tables_that_go_on_or_are_lost(
    meta: LmdbMeta, path: Path, point: str, action: str
) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    copy = meta.compaction()
    failpoints.arm(point, action)
    try:
        copy.run()
        with pytest.raises(TzfsError):
            copy.install()
    finally:
        failpoints.disarm_all()
    assert copy.lost == (point == "compact.exchanged")
    assert rows(meta) == KEPT
    put(meta, b"later")
    after = sorted(os.listdir("/proc/self/fd"))
    assert len(after) - len(before) in (0, 1)  # the mark of a writer
    assert copy.lost or sorted(os.listdir(path.parent)) == ["meta"]
