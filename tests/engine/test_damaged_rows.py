"""Damaged records of inodes and entries: the directory goes on, the name can be removed, what is wrong is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.engine.conftest import Workspace
from tzfs.engine.engine import Engine
from tzfs.engine.view import View
from tzfs.errors import CorruptionError, NotFound
from tzfs.format import keys
from tzfs.format.keys import ROOT, Table
from tzfs.format.records import UnreadableInode

NAMES: Final = [b"f%02d" % n for n in range(20)]
BAD: Final = b"f07"


def _damage(ws: Workspace, table: Table, prefix: bytes) -> None:
    """A bit of the newest version of a record changes."""
    ws.engine.close()
    txn = ws.meta.begin_write()
    found = txn.seek(table, prefix, keys.EPOCH_MAX)
    assert found is not None
    txn.put(table, prefix + keys.suffix(found[0]), found[1][:-1] + bytes([found[1][-1] ^ 1]))
    txn.commit()
    ws._reopen()


def _damaged(make: Callable[[], Workspace], table: Table) -> Workspace:
    ws = make()
    for name in NAMES:
        ws.file(name, b"contents")
    ino = ws.engine.lookup(ROOT, BAD).ino
    ws.engine.snapshot("s")
    _damage(ws, table, keys.inode(ino) if table is Table.INODE else keys.dirent(ROOT, BAD))
    return ws


def _trees(ws: Workspace) -> list[Engine | View]:
    return [ws.engine, ws.engine.view("s")]


def _list(tree: Engine | View, step: int = 3) -> tuple[dict[bytes, bool], list[CorruptionError]]:
    """Name -> whether its inode can be read; and what is wrong with other entries."""
    found, errors, after = dict[bytes, bool](), list[CorruptionError](), b""
    while True:
        entries, damaged = tree.readdir_damaged(ROOT, after, step)
        errors += damaged
        if not entries:
            return found, errors
        found |= {name: not isinstance(inode, UnreadableInode) for name, inode in entries}
        after = entries[-1][0]


def test_a_damaged_inode_is_listed_and_found_by_its_name(make: Callable[[], Workspace]) -> None:
    ws = _damaged(make, Table.INODE)
    for tree in _trees(ws):
        with pytest.raises(CorruptionError):
            tree.readdir_plus(ROOT, b"", 100)
        assert _list(tree) == ({name: name != BAD for name in NAMES}, [])
        found = tree.find_damaged(ROOT, BAD)
        assert isinstance(found, UnreadableInode)
        assert (found.ino, found.mode) == (9, 0o100000)
        assert tree.find_damaged(ROOT, NAMES[0]) == tree.lookup(ROOT, NAMES[0])
        with pytest.raises(NotFound):
            tree.find_damaged(ROOT, b"none")


def test_a_damaged_entry_is_left_out_and_named(make: Callable[[], Workspace]) -> None:
    ws = _damaged(make, Table.DIRENT)
    for tree in _trees(ws):
        found, errors = _list(tree)
        assert found == dict.fromkeys([name for name in NAMES if name != BAD], True)
        assert len(errors) == 1
        assert BAD.hex() in str(errors[0])
        with pytest.raises(CorruptionError, match=BAD.hex()):
            tree.find_damaged(ROOT, BAD)


@pytest.mark.parametrize("table", [Table.INODE, Table.DIRENT])
def test_what_has_changed_since_is_listed_with_what_is_damaged(make: Callable[[], Workspace], table: Table) -> None:
    ws = _damaged(make, table)
    for n in range(3):
        ws.engine.rename(ROOT, NAMES[n], ROOT, b"g%02d" % n)
        ws.file(b"h%02d" % n)
        ws.engine.unlink(ROOT, NAMES[-1 - n])
    expected = {*NAMES[3:-3], *(b"%c%02d" % (c, n) for c in b"gh" for n in range(3))}
    found, errors = _list(ws.engine)
    assert set(found) == (expected if table is Table.INODE else expected - {BAD})
    assert len(errors) == (table is Table.DIRENT)


@pytest.mark.parametrize("ending", ["crash", "restart"])
def test_a_file_whose_inode_is_damaged_can_be_removed(make: Callable[[], Workspace], ending: str) -> None:
    ws = _damaged(make, Table.INODE)
    before = ws.engine.counters.files
    assert ws.engine.unlink(ROOT, BAD) == 9
    for name in NAMES:
        if name != BAD:
            ws.engine.unlink(ROOT, name)
    ws.engine.commit()
    assert before - ws.engine.counters.files == len(NAMES)
    assert [line for line in ws.engine.drift if "damaged record inode/" in line and "not given back" in line]
    getattr(ws, ending)()
    ws.settle()
    assert ws.engine.readdir_plus(ROOT, b"", 100) == []
    assert ws.engine.find(ROOT, BAD) is None
    assert _list(ws.engine.view("s"))[0] == {name: name != BAD for name in NAMES}
    ws.engine.destroy(["s"])
    ws.settle()
    ws.restart()
    assert _rows(ws, Table.INODE) == 1, "the root's"
    assert _rows(ws, Table.DIRENT) == 0


def test_of_several_names_each_can_be_removed_and_the_record_goes_with_the_last(
    make: Callable[[], Workspace],
) -> None:
    ws = make()
    ino = ws.file(b"one", b"contents")
    for name in (b"two", b"three"):
        ws.engine.link(ino, ROOT, name)
    _damage(ws, Table.INODE, keys.inode(ino))
    for name in (b"two", b"one"):
        ws.engine.unlink(ROOT, name)
        assert _list(ws.engine)[0].get(name) is None
    assert _list(ws.engine)[0] == {b"three": False}
    ws.restart()
    assert _list(ws.engine)[0] == {b"three": False}
    ws.engine.unlink(ROOT, b"three")
    ws.restart()
    assert [_rows(ws, table) for table in (Table.INODE, Table.DIRENT, Table.LINK)] == [1, 0, 0]


def test_a_directory_whose_inode_is_damaged_stays(make: Callable[[], Workspace]) -> None:
    ws = make()
    ino = ws.engine.mkdir(ROOT, b"d", 0o755, uid=1, gid=1).ino
    ws.file(b"inside", b"", ino)
    _damage(ws, Table.INODE, keys.inode(ino))
    for remove in (ws.engine.unlink, ws.engine.rmdir):
        with pytest.raises(CorruptionError):
            remove(ROOT, b"d")
    assert ws.engine.failed is None
    assert _list(ws.engine)[0] == {b"d": False}


def _rows(ws: Workspace, table: Table) -> int:
    txn = ws.meta.begin_read()
    try:
        return sum(1 for _ in txn.range(table, b""))
    finally:
        txn.close()
