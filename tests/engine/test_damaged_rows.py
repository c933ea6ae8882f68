"""Damaged records of inodes and entries: the directory goes on, the name can be removed, what is wrong is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.damaging import damage
from tests.engine.conftest import Workspace
from tests.engine.test_clone_cost import chain
from tests.engine.test_redo import Logged
from tzfs.engine.engine import Engine
from tzfs.engine.namespace import RENAME_EXCHANGE
from tzfs.engine.view import View
from tzfs.errors import CorruptionError, NotADirectory, NotFound
from tzfs.format import keys
from tzfs.format.keys import ROOT, Table
from tzfs.format.records import UnreadableInode

NAMES: Final = [b"f%02d" % n for n in range(20)]
BAD: Final = b"f07"


def _damage(ws: Workspace | Logged, *records: tuple[Table, bytes]) -> None:
    ws.engine.close()
    txn = ws.meta.begin_write()
    for table, prefix in records:
        damage(txn, table, prefix)
    txn.commit()
    ws.reopen()


def _damaged(make: Callable[[], Workspace], table: Table) -> Workspace:
    ws = make()
    for name in NAMES:
        ws.file(name, b"contents")
    ino = ws.engine.lookup(ROOT, BAD).ino
    ws.engine.snapshot("s")
    _damage(ws, (table, keys.inode(ino) if table is Table.INODE else keys.dirent(ROOT, BAD)))
    return ws


def _trees(ws: Workspace) -> list[Engine | View]:
    return [ws.engine, ws.engine.view("s")]


def _list(tree: Engine | View, step: int = 3) -> dict[bytes, int]:
    """Name -> the inode's number, 0 where it cannot be read, -1 where the entry cannot."""
    found, after = dict[bytes, int](), b""
    while entries := tree.readdir_damaged(ROOT, after, step):
        names = [name for name, _ in entries]
        assert names == sorted(names)
        assert after < names[0]
        assert not found.keys() & set(names)
        for name, inode in entries:
            found[name] = inode.ino if not isinstance(inode, UnreadableInode) else 0 if inode.ino else -1
        after = names[-1]
    return found


def _expected(bad: int) -> dict[bytes, int]:
    return {name: bad if name == BAD else number for number, name in enumerate(NAMES, 2)}


def test_a_damaged_inode_is_listed_and_found_by_its_name(make: Callable[[], Workspace]) -> None:
    ws = _damaged(make, Table.INODE)
    for tree in _trees(ws):
        with pytest.raises(CorruptionError):
            tree.readdir_plus(ROOT, b"", 100)
        assert [_list(tree, step) for step in range(1, 25)] == [_expected(0)] * 24
        found = tree.find_damaged(ROOT, BAD)
        assert isinstance(found, UnreadableInode)
        assert (found.ino, found.mode) == (9, 0o100000)
        assert tree.find_damaged(ROOT, NAMES[0]) == tree.lookup(ROOT, NAMES[0])
        with pytest.raises(NotFound):
            tree.find_damaged(ROOT, b"none")


def test_of_a_damaged_entry_there_is_the_name(make: Callable[[], Workspace]) -> None:
    ws = _damaged(make, Table.DIRENT)
    for tree in _trees(ws):
        assert [_list(tree, step) for step in range(1, 25)] == [_expected(-1)] * 24
        with pytest.raises(CorruptionError, match=BAD.hex()):
            tree.find_damaged(ROOT, BAD)
    for remove in (ws.engine.unlink, ws.engine.rmdir):
        with pytest.raises(CorruptionError, match=BAD.hex()):
            remove(ROOT, BAD)
    assert ws.engine.failed is None


@pytest.mark.parametrize("cut", [0, 2, -9, -8, -1])
def test_an_entry_whose_key_is_damaged_does_not_end_a_listing(make: Callable[[], Workspace], cut: int) -> None:
    ws = make()
    directory = ws.engine.mkdir(ROOT, b"d", 0o755, uid=1, gid=1).ino
    for name in NAMES:
        ws.file(name, b"contents", directory)
    ws.engine.snapshot("s")
    ws.engine.close()
    txn = ws.meta.begin_write()
    prefix = keys.dirent(directory, BAD)
    birth, value = txn.seek(Table.DIRENT, prefix, keys.EPOCH_MAX) or (0, b"")
    key = prefix + keys.suffix(birth)
    txn.delete(Table.DIRENT, key)
    txn.put(Table.DIRENT, key[: 8 + cut] if cut >= 0 else key[:cut], value)
    txn.commit()
    ws.reopen()
    for tree in _trees(ws):
        with pytest.raises(CorruptionError, match="damaged key dirent/"):
            tree.readdir_plus(directory, b"", 100)
        for step in range(1, 25):
            found, after = list[tuple[bytes, bool]](), b""
            while entries := tree.readdir_damaged(directory, after, step):
                found += [(name, isinstance(inode, UnreadableInode)) for name, inode in entries]
                after = entries[-1][0]
            assert [name for name, bad in found if not bad] == [name for name in NAMES if name != BAD]
            assert [name for name, bad in found if bad] == {0: [b""], 2: [BAD[:2]]}.get(cut, [BAD])


@pytest.mark.parametrize("table", [Table.INODE, Table.DIRENT])
def test_what_has_changed_since_is_listed_with_what_is_damaged(make: Callable[[], Workspace], table: Table) -> None:
    ws = _damaged(make, table)
    for n in range(3):
        ws.engine.rename(ROOT, NAMES[n], ROOT, b"g%02d" % n)
        ws.file(b"h%02d" % n)
        ws.file(b"a%02d" % n)
        ws.engine.unlink(ROOT, NAMES[-1 - n])
    for n in range(6, 12):  # around it
        if NAMES[n] != BAD:
            ws.engine.unlink(ROOT, NAMES[n])
    expected = {*NAMES[3:6], BAD, *NAMES[12:-3], *(b"%c%02d" % (c, n) for c in b"agh" for n in range(3))}
    for step in range(1, 25):
        found = _list(ws.engine, step)
        assert set(found) == expected
        assert [name for name, number in found.items() if number <= 0] == [BAD]


def test_a_file_whose_inode_is_lost_is_like_one_whose_is_damaged(make: Callable[[], Workspace]) -> None:
    ws = make()
    lost = ws.file(b"lost", b"contents")
    ws.engine.snapshot("s")
    ws.engine.close()
    txn = ws.meta.begin_write()
    txn.delete(Table.INODE, keys.inode(lost) + keys.suffix(1))
    txn.commit()
    ws.reopen()
    for tree in _trees(ws):
        with pytest.raises(CorruptionError, match="does not exist"):
            tree.lookup(ROOT, b"lost")
        with pytest.raises(CorruptionError, match="does not exist"):
            tree.readdir_plus(ROOT, b"", 10)
        assert _list(tree) == {b"lost": 0}
    ws.engine.unlink(ROOT, b"lost")
    ws.restart()
    assert _list(ws.engine) == {}


def test_a_file_whose_inode_is_damaged_can_be_replaced(make: Callable[[], Workspace]) -> None:
    ws = _damaged(make, Table.INODE)
    number = ws.engine.lookup(ROOT, NAMES[0]).ino
    with pytest.raises(CorruptionError):
        ws.engine.rename(ROOT, NAMES[0], ROOT, BAD, RENAME_EXCHANGE)
    with pytest.raises(CorruptionError):
        ws.engine.rename(ROOT, BAD, ROOT, b"elsewhere")
    directory = ws.engine.mkdir(ROOT, b"d", 0o755, uid=1, gid=1)
    with pytest.raises(NotADirectory):
        ws.engine.rename(ROOT, b"d", ROOT, BAD)
    assert directory.nlink == 2
    assert ws.engine.rename(ROOT, NAMES[0], ROOT, BAD) == (number, 9)
    ws.restart()
    assert ws.engine.lookup(ROOT, BAD).ino == number
    assert NAMES[0] not in _list(ws.engine)


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
    assert _list(ws.engine.view("s")) == _expected(0)
    ws.engine.destroy(["s"])
    ws.settle()
    ws.restart()
    assert _rows(ws, Table.INODE) == 1, "the root's"
    assert _rows(ws, Table.DIRENT) == 0


@pytest.mark.parametrize("damaged", [[], [b"one"], [b"three"], [b"one", b"two", b"three"]])
def test_of_several_names_each_can_be_removed_and_the_record_goes_with_the_last(
    make: Callable[[], Workspace], damaged: list[bytes]
) -> None:
    ws = make()
    ino = ws.file(b"one", b"contents")
    for name in (b"two", b"three"):
        ws.engine.link(ino, ROOT, name)
    _damage(ws, (Table.INODE, keys.inode(ino)), *((Table.LINK, keys.link(ino, ROOT, name)) for name in damaged))
    for name in (b"two", b"one"):
        ws.engine.unlink(ROOT, name)
    assert _list(ws.engine) == {b"three": 0}
    ws.restart()
    assert _list(ws.engine) == {b"three": 0}
    ws.engine.unlink(ROOT, b"three")
    ws.restart()
    assert [_rows(ws, table) for table in (Table.INODE, Table.DIRENT, Table.LINK)] == [1, 0, 0]


def test_a_directory_whose_inode_is_damaged_stays(make: Callable[[], Workspace]) -> None:
    ws = make()
    ino = ws.engine.mkdir(ROOT, b"d", 0o755, uid=1, gid=1).ino
    ws.file(b"inside", b"", ino)
    _damage(ws, (Table.INODE, keys.inode(ino)))
    for remove in (ws.engine.unlink, ws.engine.rmdir):
        with pytest.raises(CorruptionError):
            remove(ROOT, b"d")
    assert ws.engine.failed is None
    assert _list(ws.engine) == {b"d": 0}


LONG: Final = bytes(20_000)  # more than fits a record: it lies in an extent
DAMAGED: Final = [["inode"], ["small", "large"], ["inode", "small", "large"]]


def _damaged_attributes(ws: Workspace | Logged, damaged: list[str], *, seen: bool = False) -> None:
    """A file with attributes, of whose records these are damaged; `seen` by a snapshot."""
    ino = ws.file(b"f", b"contents")
    for name, value in ((b"user.small", b"value"), (b"user.large", LONG), (b"user.sound", LONG)):
        ws.engine.setxattr(ino, name, value)
    if seen:
        ws.engine.snapshot("s")
    rows = {what: (Table.XATTR, keys.xattr(ino, b"user." + what.encode())) for what in ("small", "large")}
    rows["inode"] = Table.INODE, keys.inode(ino)
    _damage(ws, *(rows[what] for what in damaged))


@pytest.mark.parametrize("damaged", DAMAGED, ids=" ".join)
@pytest.mark.parametrize("seen", [False, True])
def test_damaged_attributes_go_with_their_file(make: Callable[[], Workspace], damaged: list[str], seen: bool) -> None:
    ws = make()
    _damaged_attributes(ws, damaged, seen=seen)
    ws.engine.unlink(ROOT, b"f")
    ws.engine.commit()
    assert len([line for line in ws.engine.drift if "not given back" in line]) == len(damaged)
    ws.settle()
    ws.restart()
    if seen:
        ws.engine.destroy(["s"])
        ws.settle()
        ws.restart()
    assert [_rows(ws, table) for table in (Table.INODE, Table.DIRENT, Table.XATTR)] == [1, 0, 0]


@pytest.mark.parametrize("damaged", DAMAGED, ids=" ".join)
def test_removing_a_damaged_file_is_done_again_from_the_redo_log(damaged: list[str]) -> None:
    fs = Logged()
    _damaged_attributes(fs, damaged)
    fs.engine.unlink(ROOT, b"f")
    fs.engine.harden()
    fs.crash()
    assert fs.engine.redone == 1
    fs.engine.collect()
    fs.engine.close()
    fs.reopen()
    assert fs.engine.readdir_plus(ROOT, b"", 10) == []
    assert [_rows(fs, table) for table in (Table.INODE, Table.DIRENT, Table.XATTR, Table.ORPHAN)] == [1, 0, 0, 0]


@pytest.mark.parametrize("kind", ["damaged", "lost"])
def test_an_orphan_whose_record_is_damaged_ends_all_the_same(make: Callable[[], Workspace], kind: str) -> None:
    ws = make()
    ino = ws.file(b"f", b"contents")
    ws.engine.commit()
    ws.engine.referenced = lambda number: True
    ws.engine.unlink(ROOT, b"f")
    ws.engine.commit()
    ws.engine.abandon()  # else the engine would bury it
    txn = ws.meta.begin_write()
    if kind == "damaged":
        damage(txn, Table.INODE, keys.inode(ino))
    else:
        for key, _ in list(txn.range(Table.INODE, keys.inode(ino))):
            txn.delete(Table.INODE, key)
    txn.commit()
    ws.reopen()
    ws.settle()
    ws.restart()
    assert [_rows(ws, table) for table in (Table.INODE, Table.DIRENT, Table.ORPHAN)] == [1, 0, 0]


def test_what_a_clone_inherits_damaged_can_be_removed_there() -> None:
    engine, origins = chain()
    txn = origins[-1].meta.begin_write()
    damage(txn, Table.INODE, keys.inode(9))
    txn.commit()
    with pytest.raises(CorruptionError):
        engine.lookup(ROOT, b"007")
    engine.unlink(ROOT, b"007")
    engine.commit()
    assert engine.find(ROOT, b"007") is None
    assert b"007" not in [name for name, _ in engine.readdir_plus(ROOT, b"", 1000)]
    engine.close()


def _rows(ws: Workspace | Logged, table: Table) -> int:
    txn = ws.meta.begin_read()
    try:
        return sum(1 for _ in txn.range(table, b""))
    finally:
        txn.close()
