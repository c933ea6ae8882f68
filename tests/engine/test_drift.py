"""A counter that says less than there is: it stops at zero and is reported, and the filesystem goes on."""

from __future__ import annotations

import stat
from dataclasses import fields

import pytest

from tests.engine.conftest import Workspace
from tzfs.engine.committed import read_counters
from tzfs.engine.head import DRIFT_MAX
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, pack_counters
from tzfs.format.keys import Ino, Table

KINDS = {"files": stat.S_IFREG, "others": stat.S_IFIFO}


def lost(ws: Workspace, table: Table) -> None:
    """Every counter row of the table says zero from now on; the engine is opened again."""
    ws.engine.close()
    txn = ws.meta.begin_write()
    for key, value in list(txn.range(table, b"")):
        body = records.unseal(table, key, value)
        assert body is not None
        count, size, *end = records.unpack_plain(table, key, body)
        assert count + size > 0
        txn.put(table, key, records.seal(table, key, records.pack_plain(table, 0, 0, *end)))
    txn.commit()
    ws.reopen()


def counters(ws: Workspace) -> Counters:
    txn = ws.meta.begin_read()
    try:
        return read_counters(txn)
    finally:
        txn.close()


def zeroed(ws: Workspace, *names: str) -> None:
    ws.engine.close()
    found = counters(ws)
    for name in names:
        setattr(found, name, 0)
    txn = ws.meta.begin_write()
    txn.put(Table.SYS, COUNTERS_KEY, records.seal(Table.SYS, COUNTERS_KEY, pack_counters(found)))
    txn.commit()
    ws.reopen()


@pytest.mark.parametrize("what", ["files", "directories", "symlinks", "others"])
def test_inodes_that_were_not_counted_can_be_removed(make: type[Workspace], what: str) -> None:
    ws = make()
    if what == "directories":
        ws.engine.mkdir(1, b"a", 0o755, uid=0, gid=0)
    elif what == "symlinks":
        ws.engine.symlink(1, b"a", b"target", uid=0, gid=0)
    else:
        ws.engine.mknod(1, b"a", KINDS[what] | 0o644, uid=0, gid=0)
    zeroed(ws, "inodes", what)
    (ws.engine.rmdir if what == "directories" else ws.engine.unlink)(1, b"a")
    ws.engine.commit()
    assert ws.engine.drift == ["counter inodes would be -1", f"counter {what} would be -1"]
    found = counters(ws)
    assert (found.inodes, getattr(found, what)) == (0, 0)
    assert all(getattr(found, field.name) >= 0 for field in fields(found))
    assert any(what in problem.words for problem in ws.engine.problems()) == (what == "directories")
    ws.engine.close()


def test_entries_that_were_not_counted_can_be_removed(make: type[Workspace]) -> None:
    ws = make()
    engine = ws.engine
    for directory in (b"a", b"b", b"c"):
        engine.mkdir(1, directory, 0o755, uid=0, gid=0)
        ws.file(b"f", b"", engine.lookup(1, directory).ino)
        engine.mkdir(engine.lookup(1, directory).ino, b"d", 0o755, uid=0, gid=0)
    a, b, c = (engine.lookup(1, name).ino for name in (b"a", b"b", b"c"))
    engine.close()
    txn = ws.meta.begin_write()
    for ino in (a, b, c):
        birth, value = txn.seek(Table.INODE, keys.inode(ino), keys.EPOCH_MAX) or (0, b"")
        key = keys.inode(ino) + keys.suffix(birth)
        inode = records.unpack_inode(Ino(ino), key, records.unseal(Table.INODE, key, value) or b"")
        inode.size, inode.nlink = 0, 2
        txn.put(Table.INODE, key, records.seal(Table.INODE, key, records.pack_inode(inode)))
    txn.commit()
    ws.reopen()
    engine = ws.engine
    engine.unlink(a, b"f")
    engine.rmdir(a, b"d")
    engine.rename(b, b"d", c, b"d")
    engine.rename(b, b"f", 1, b"f")
    engine.commit()
    expected = [
        *(("entries", a), ("entries", a), ("subdirectories", a)),
        *(("subdirectories", c), ("entries", b), ("subdirectories", b), ("entries", b)),
    ]
    assert engine.drift == [f"counter {what} of directory {ino} would be -1" for what, ino in expected]
    found = [(inode.size, inode.nlink) for inode in (engine.inode(a), engine.inode(b))]
    assert found == [(0, 2), (0, 2)]
    ws.crash()
    for ino, name in ((a, b"a"), (b, b"b")):
        assert ws.engine.readdir_plus(ino, b"", 10) == []
        ws.engine.rmdir(1, name)
    ws.engine.close()


def test_bytes_that_were_not_charged_can_be_freed(make: type[Workspace]) -> None:
    ws = make()
    ws.file(b"f", b"x" * 100_000)
    zeroed(ws, "bytes")
    ws.engine.unlink(1, b"f")
    ws.settle()
    assert [line.split(" would")[0] for line in ws.engine.drift] == ["counter bytes"]
    assert counters(ws).bytes == 0
    ws.engine.close()


@pytest.mark.parametrize("table", [Table.CELL, Table.SEGMENT])
def test_cells_and_segments_that_lost_count_stay_at_zero(make: type[Workspace], table: Table) -> None:
    ws = make()
    ws.file(b"f", b"x" * 100_000)
    ws.engine.commit()
    lost(ws, table)
    ws.engine.unlink(1, b"f")
    ws.settle()
    assert any(line.startswith(f"counter {table.name.lower()}") for line in ws.engine.drift)
    assert ws.engine.find(1, b"f") is None
    ws.file(b"g", b"y" * 100_000)
    ws.restart()
    assert ws.engine.read(ws.engine.lookup(1, b"g").ino, 0, 5) == b"yyyyy"
    ws.engine.close()


def test_there_is_an_end_to_what_is_told_of_drift(ws: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(DRIFT_MAX + 5):
        ws.engine._head.report_drift("bytes", -1)
        ws.engine._head.report(f"line {number}")
    assert len(ws.engine.drift) == len(caplog.records) == DRIFT_MAX
    del ws.engine.drift[:]  # which the end of the test looks at
