"""What only tables on disk have: files and modes, sharing within a process, forks, other processes, the reserve."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.store.stores import fds_below, python, standing
from tzfs import failpoints
from tzfs.errors import Busy, CorruptionError, ForeignStore, InternalError, NoSpace, ReadOnly, StoreError, TablesLost
from tzfs.format.keys import CATALOG_TABLES, FILESYSTEM_TABLES, Table
from tzfs.limits import MAP_BYTES
from tzfs.store import space
from tzfs.store.lmdb_store import LmdbMeta


def put(meta: LmdbMeta, key: bytes, value: bytes) -> None:
    txn = meta.begin_write()
    txn.put(Table.SYS, key, value)
    txn.commit()


def got(meta: LmdbMeta, key: bytes) -> bytes | None:
    txn = meta.begin_read()
    try:
        return txn.get(Table.SYS, key)
    finally:
        txn.close()


def test_folder_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    put(meta, b"key", b"value")
    assert stat.S_IMODE((tmp_path / "meta").stat().st_mode) == 0o700
    names = sorted(path.name for path in (tmp_path / "meta").iterdir())
    assert names == ["data.mdb", "lock.mdb", "place"]
    for name in names:
        assert stat.S_IMODE((tmp_path / "meta" / name).stat().st_mode) == 0o600
    meta.close()


def test_the_huge_map_takes_no_space(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    assert MAP_BYTES >= 1 << 38
    assert (tmp_path / "meta" / "data.mdb").stat().st_size < 1 << 20
    assert meta.bytes_on_disk < 1 << 20
    meta.close()


def test_a_process_may_have_dozens_open(tmp_path: Path) -> None:
    metas = [
        LmdbMeta(tmp_path / str(i), create=True) for i in range(64)
    ]  # as many as 47 bits of address would not hold if each took 2 TiB
    put(metas[-1], b"key", b"value")
    assert got(metas[-1], b"key") == b"value"
    for meta in metas:
        meta.close()


def test_a_folder_without_tables_is_foreign(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        for readonly in (False, True):
            with pytest.raises(ForeignStore):
                LmdbMeta(folder, readonly=readonly)
    assert not (tmp_path / "data.mdb").exists()


def test_tables_that_are_not_there_are_foreign(tmp_path: Path) -> None:
    LmdbMeta(tmp_path / "meta", create=True).close()
    for readonly in (False, True):
        with pytest.raises(ForeignStore, match="has no table catalog"):
            LmdbMeta(tmp_path / "meta", tables=CATALOG_TABLES, readonly=readonly)
    assert fds_below(tmp_path) == []


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("missing", FILESYSTEM_TABLES, ids=lambda table: table.name.lower())
def test_without_sys_the_tables_are_lost_without_another_they_are_foreign(
    tmp_path: Path, missing: Table, readonly: bool
) -> None:
    others = tuple(table for table in FILESYSTEM_TABLES if table is not missing)
    LmdbMeta(tmp_path / "meta", tables=others, create=True).close()
    with pytest.raises(ForeignStore, match=f"has no table {missing.name.lower()}$") as refused:
        LmdbMeta(tmp_path / "meta", readonly=readonly)
    assert (type(refused.value) is TablesLost) == (missing is Table.SYS)
    assert fds_below(tmp_path) == []
    LmdbMeta(tmp_path / "meta", tables=others, readonly=readonly).close()


def test_tables_of_something_else_are_lost(tmp_path: Path) -> None:
    LmdbMeta(tmp_path / "meta", tables=CATALOG_TABLES, create=True).close()
    for readonly in (False, True):
        with pytest.raises(TablesLost, match="has no table sys"):
            LmdbMeta(tmp_path / "meta", readonly=readonly)
    assert fds_below(tmp_path) == []


def test_a_table_of_another_environment_is_our_bug(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", tables=CATALOG_TABLES, create=True)
    txn = meta.begin_read()
    with pytest.raises(InternalError, match="not one of this store's"):
        txn.get(Table.INODE, b"key")
    txn.close()
    with pytest.raises(InternalError, match="other tables"):
        LmdbMeta(tmp_path / "meta")
    meta.close()


def test_creating_what_is_there_keeps_it(tmp_path: Path) -> None:
    first = LmdbMeta(tmp_path / "meta", create=True)
    put(first, b"key", b"value")
    first.close()
    again = LmdbMeta(tmp_path / "meta", create=True)
    assert got(again, b"key") == b"value"
    again.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 10_000, bytes(8192)])
@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, content: bytes, readonly: bool) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises((ForeignStore, CorruptionError, StoreError)):
        LmdbMeta(tmp_path, readonly=readonly)
    assert (tmp_path / "data.mdb").read_bytes() == content
    assert fds_below(tmp_path) == []


# -- sharing ---------------------------------------------------------------------------------------------------------


def test_the_same_file_opened_twice_is_shared_until_the_last_close(tmp_path: Path) -> None:
    first = LmdbMeta(tmp_path / "meta", create=True)
    (tmp_path / "link").symlink_to(tmp_path / "meta")
    second = LmdbMeta(tmp_path / "link")
    put(first, b"key", b"value")
    assert got(second, b"key") == b"value"
    writing = second.begin_write()
    with pytest.raises(InternalError, match="already open"):
        first.begin_write()
    writing.close()
    first.close()
    put(second, b"key", b"other")
    assert got(second, b"key") == b"other"
    second.close()
    assert fds_below(tmp_path) == []


def test_a_reader_beside_a_writer_stays_a_reader(tmp_path: Path) -> None:
    writer = LmdbMeta(tmp_path / "meta", create=True)
    reader = LmdbMeta(tmp_path / "meta", readonly=True)
    with pytest.raises(ReadOnly):
        reader.begin_write()
    put(writer, b"key", b"value")
    assert got(reader, b"key") == b"value"
    writer.close()
    assert got(reader, b"key") == b"value"
    reader.close()


def test_a_writer_may_come_after_a_reader_but_not_into_its_transaction(tmp_path: Path) -> None:
    LmdbMeta(tmp_path / "meta", create=True).close()
    reader = LmdbMeta(tmp_path / "meta", readonly=True)
    reading = reader.begin_read()
    with pytest.raises(Busy):
        LmdbMeta(tmp_path / "meta")
    assert reading.get(Table.SYS, b"key") is None
    reading.close()
    writer = LmdbMeta(tmp_path / "meta")
    put(writer, b"key", b"value")
    assert got(reader, b"key") == b"value"
    writer.close()
    reader.close()
    assert fds_below(tmp_path) == []


def test_a_folder_made_anew_is_another_one(tmp_path: Path) -> None:
    old = LmdbMeta(tmp_path / "meta", create=True)
    put(old, b"key", b"old")
    (tmp_path / "meta").rename(tmp_path / "moved")
    new = LmdbMeta(tmp_path / "meta", create=True)
    assert got(new, b"key") is None
    assert got(old, b"key") == b"old"
    new.close()
    old.close()


# -- forks and other processes ---------------------------------------------------------------------------------------


def test_a_forked_child_may_use_nothing_and_disturbs_nothing(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    put(meta, b"key", b"value")
    reading, writing = meta.begin_read(), meta.begin_write()
    writing.put(Table.SYS, b"key", b"changed")
    pid = os.fork()
    if pid == 0:
        refused = 0
        for use in (
            meta.begin_read,
            meta.begin_write,
            lambda: reading.get(Table.SYS, b"key"),
            lambda: writing.put(Table.SYS, b"key", b"child"),
            writing.commit,
            lambda: LmdbMeta(tmp_path / "meta", readonly=True),
        ):
            try:
                use()
            except InternalError:
                refused += 1
        reading.close()
        writing.close()
        meta.close()
        os._exit(0 if refused == 6 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert reading.get(Table.SYS, b"key") == b"value"
    assert meta.readers() == 1
    writing.commit()
    reading.close()
    assert got(meta, b"key") == b"changed"
    meta.close()


READ_BESIDE = """
import sys
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta
meta = LmdbMeta(sys.argv[1], readonly=True)
txn = meta.begin_read()
print(txn.get(Table.SYS, b"key"))
txn.close()
meta.close()
"""

HOLD_READER = """
import sys
from tzfs.store.lmdb_store import LmdbMeta
meta = LmdbMeta(sys.argv[1], readonly=True)
txn = meta.begin_read()
print("ready", flush=True)
sys.stdin.read()
"""

DIE_WRITING = """
import os, sys
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta
meta = LmdbMeta(sys.argv[1])
txn = meta.begin_write()
txn.put(Table.SYS, b"key", b"lost")
os.kill(os.getpid(), 9)
"""


def test_another_process_reads_the_last_commit_beside_an_open_write_transaction(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    put(meta, b"key", b"committed")
    txn = meta.begin_write()
    txn.put(Table.SYS, b"key", b"not yet")
    done = python(READ_BESIDE, str(tmp_path / "meta"))
    assert (done.stdout, done.stderr) == ("b'committed'\n", "")
    txn.close()
    meta.close()


def test_readers_that_were_killed_are_reaped_at_the_next_open(tmp_path: Path) -> None:
    LmdbMeta(tmp_path / "meta", create=True).close()
    with standing(HOLD_READER, str(tmp_path / "meta")) as other:
        other.kill()
        other.wait()
    meta = LmdbMeta(tmp_path / "meta")
    assert meta._shared is not None
    assert str(other.pid) not in meta._shared.env.readers()
    meta.close()


def test_a_writer_that_was_killed_leaves_the_last_commit_and_no_lock(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    put(meta, b"key", b"committed")
    meta.close()
    assert python(DIE_WRITING, str(tmp_path / "meta")).returncode == -9
    meta = LmdbMeta(tmp_path / "meta")
    assert got(meta, b"key") == b"committed"
    put(meta, b"key", b"next")
    meta.close()


COMMIT_OR_CRASH = """
import sys
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta
meta = LmdbMeta(sys.argv[1])
txn = meta.begin_write()
txn.put(Table.SYS, b"key", b"new")
txn.commit()
"""


@pytest.mark.parametrize(
    ("point", "found"), [("meta.begin", b"old"), ("meta.commit", b"old"), ("meta.committed", b"new")]
)
def test_a_crash_in_a_commit_leaves_the_old_state_or_the_new(tmp_path: Path, point: str, found: bytes) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    put(meta, b"key", b"old")
    meta.close()
    done = python(COMMIT_OR_CRASH, str(tmp_path / "meta"), environment={failpoints.ENVIRONMENT: f"{point}=crash"})
    assert done.returncode == failpoints.CRASH_STATUS
    meta = LmdbMeta(tmp_path / "meta")
    assert got(meta, b"key") == found
    put(meta, b"key", b"retried")
    assert got(meta, b"key") == b"retried"
    meta.close()


CREATE_OR_CRASH = """
import sys
from tzfs.store.lmdb_store import LmdbMeta
LmdbMeta(sys.argv[1], create=True).close()
"""


def test_a_crash_at_any_step_of_creation_can_be_tried_again(tmp_path: Path) -> None:
    with failpoints.counting() as counts:
        LmdbMeta(tmp_path / "counted", create=True).close()
    assert len(counts) >= 6
    for i, point in enumerate(counts):
        folder = tmp_path / str(i)
        done = python(CREATE_OR_CRASH, str(folder), environment={failpoints.ENVIRONMENT: f"{point}=crash"})
        assert done.returncode == failpoints.CRASH_STATUS, point
        meta = LmdbMeta(folder, create=True)
        put(meta, b"key", b"value")
        assert got(meta, b"key") == b"value"
        meta.close()


# -- the reserve -----------------------------------------------------------------------------------------------------


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_the_reserve_lies_beyond_the_end_and_is_given_back_at_close(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    data = tmp_path / "meta" / "data.mdb"
    size, before = data.stat().st_size, allocated(data)
    meta.reserve(8 << 20)
    assert meta.reserve_supported
    assert data.stat().st_size == size
    assert allocated(data) >= before + (8 << 20)
    put(meta, b"key", b"value")
    meta.close()
    assert allocated(data) < 1 << 20
    meta = LmdbMeta(tmp_path / "meta", readonly=True)
    assert got(meta, b"key") == b"value"
    with pytest.raises(ReadOnly):
        meta.reserve(1)
    meta.close()


def test_a_reserve_that_is_still_there_costs_no_call(tmp_path: Path) -> None:
    meta = LmdbMeta(tmp_path / "meta", create=True)
    with failpoints.counting() as counts:
        for i in range(20):
            meta.reserve(4 << 20)
            put(meta, b"key", b"%d" % i)
    assert counts["meta.reserve"] == 1
    meta.close()


def test_where_space_cannot_be_reserved_what_is_free_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "reserve", lambda fd, offset, nbytes: False)
    meta = LmdbMeta(tmp_path / "meta", create=True)
    assert meta.reserve_supported
    meta.reserve(1 << 20)
    assert not meta.reserve_supported
    monkeypatch.setattr(space, "free_bytes", lambda fd: 1 << 20)
    meta.reserve(1 << 20)
    with pytest.raises(NoSpace):
        meta.reserve(2 << 20)
    meta.close()


def test_less_is_reserved_where_more_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever others take of the disk meanwhile."""
    asked: list[int] = []
    left = iter(range(1 << 40, 0, -4096))

    def scarce(fd: int, offset: int, nbytes: int) -> bool:
        asked.append(nbytes)
        if nbytes > 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return True

    monkeypatch.setattr(space, "reserve", scarce)
    monkeypatch.setattr(space, "free_bytes", lambda fd: next(left))
    meta = LmdbMeta(tmp_path / "meta", create=True)
    meta.reserve(1 << 20)
    assert asked == [2 << 20, 1 << 20]
    with pytest.raises(NoSpace, match="reserve"):
        meta.reserve(2 << 20)
    meta.close()


def test_a_disk_that_cannot_be_written_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LmdbMeta(tmp_path / "meta", create=True).close()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(ReadOnly):
        LmdbMeta(tmp_path / "meta")
    LmdbMeta(tmp_path / "meta", readonly=True).close()
    assert fds_below(tmp_path) == []


def test_a_lock_file_that_says_to_be_large_is_not_given_all_its_blocks(tmp_path: Path) -> None:
    LmdbMeta(tmp_path / "meta", create=True).close()
    os.truncate(tmp_path / "meta" / "lock.mdb", 1 << 30)
    LmdbMeta(tmp_path / "meta").close()
    assert (tmp_path / "meta" / "lock.mdb").stat().st_blocks * 512 <= 2 << 20
