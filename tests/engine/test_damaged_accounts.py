"""Damaged records of what counts and of what waits: the filesystem goes on without them, and nothing sound is given up.

Damage may be of a record or of its key, and neither tells which: so what a key says is believed only where something
else says it too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.damaging import damage_row
from tests.engine.conftest import Workspace
from tests.engine.test_redo import Logged
from tests.noise import noise
from tzfs.engine.engine import Settings
from tzfs.errors import CorruptionError
from tzfs.format import keys
from tzfs.format.keys import ROOT, Table
from tzfs.store.interface import WriteTransaction

LARGE = noise(300_000, "large")


def changed(ws: Workspace | Logged, act: Callable[[WriteTransaction], object]) -> None:
    """The tables, past all rules."""
    ws.engine.close()
    txn = ws.meta.begin_write()
    act(txn)
    txn.commit()
    ws.reopen()


def damage_all(*tables: Table) -> Callable[[WriteTransaction], None]:
    def act(txn: WriteTransaction) -> None:
        for table in tables:
            rows = list(txn.range(table, b""))
            assert rows
            for key, _ in rows:
                damage_row(txn, table, key)

    return act


def moved(table: Table, old: bytes, new: bytes) -> Callable[[WriteTransaction], None]:
    """A record under another key."""

    def act(txn: WriteTransaction) -> None:
        value = txn.get(table, old)
        assert value is not None
        txn.delete(table, old)
        txn.put(table, new, value)

    return act


def rows(ws: Workspace | Logged, table: Table) -> list[bytes]:
    txn = ws.meta.begin_read()
    try:
        return [key for key, _ in txn.range(table, b"")]
    finally:
        txn.close()


def data(ws: Workspace | Logged, name: bytes) -> bytes:
    return ws.engine.read(ws.engine.lookup(ROOT, name).ino, 0, 1 << 20)


def with_snapshot(ws: Workspace) -> Workspace:
    """Files of which a snapshot sees an older state: contents of two are gone since, one is there as it was."""
    for name in (b"gone", b"over", b"kept"):
        ws.file(name, LARGE)
    ws.file(b"small", b"inline")
    ws.engine.snapshot("s")
    ws.engine.unlink(ROOT, b"gone")
    ws.engine.unlink(ROOT, b"small")
    ws.engine.write(ws.engine.lookup(ROOT, b"over").ino, 0, LARGE[::-1])
    ws.engine.commit()
    return ws


# -- cells -----------------------------------------------------------------------------------------------------------


def test_where_cells_are_damaged_all_else_goes_on(make: Callable[[], Workspace]) -> None:
    ws = with_snapshot(make())
    changed(ws, damage_all(Table.CELL))
    ws.settings = Settings(quota_bytes=1 << 30)
    ws.restart()
    ws.engine.unlink(ROOT, b"kept")
    ws.file(b"new", LARGE)
    ws.engine.snapshot("t")
    assert [*ws.engine.destroy(["s"]).names] == ["s"]
    ws.settle()
    ws.restart()
    assert data(ws, b"new") == LARGE
    assert data(ws, b"over") == LARGE[::-1]
    ws.engine.rollback("t")
    assert [name for name, _ in ws.engine.readdir_plus(ROOT, b"", 10)] == [b"new", b"over"]
    problems = {problem.rule.name for problem in ws.engine.problems()}
    assert problems == {"RECORD", "CELL"}, "what is wrong is still told"


def test_each_damaged_cell_is_reported_once(make: Callable[[], Workspace]) -> None:
    ws = make()
    ws.file(b"f", LARGE)
    changed(ws, damage_all(Table.CELL))
    for number in range(3):
        ws.file(b"%d" % number, LARGE)
        ws.engine.commit()
    assert len(ws.engine.drift) == 1


def test_what_was_fsynced_over_a_damaged_cell_is_there_after_a_crash() -> None:
    fs = Logged()
    fs.file(b"f", LARGE)
    changed(fs, damage_all(Table.CELL))
    fs.file(b"important", b"contents")
    fs.engine.harden()
    fs.crash()
    assert fs.engine.redone
    assert data(fs, b"important") == b"contents"
    fs.engine.close()


# -- the deadlist ----------------------------------------------------------------------------------------------------


def test_versions_whose_rows_in_the_deadlist_are_damaged_are_freed_all_the_same(make: Callable[[], Workspace]) -> None:
    ws = with_snapshot(make())
    changed(ws, damage_all(Table.DEAD))
    ws.engine.destroy(["s"])
    ws.settle()
    ws.restart()
    assert ws.engine.failed is None
    left = [keys.dead_parts(key) for key in rows(ws, Table.DEAD)]
    assert left, "of an extent only the row says how large it is"
    assert {table for _, _, table, _ in left} == {Table.EXTENT}
    assert rows(ws, Table.DESTROY) == []
    for name in (b"gone", b"small"):
        assert ws.engine.find(ROOT, name) is None
        ws.file(name)
        ws.engine.unlink(ROOT, name)
    ws.restart()
    assert [name for name, _ in ws.engine.readdir_plus(ROOT, b"", 10)] == [b"kept", b"over"], "nothing old shows"
    assert data(ws, b"kept") == LARGE
    assert data(ws, b"over") == LARGE[::-1]


@pytest.mark.parametrize("part", ["prefix", "birth", "table"])
def test_a_key_of_the_deadlist_that_is_damaged_takes_nothing_with_it(make: Callable[[], Workspace], part: str) -> None:
    ws = with_snapshot(make())
    kept = ws.engine.lookup(ROOT, b"kept").ino
    found = next(key for key in rows(ws, Table.DEAD) if keys.dead_parts(key)[2] is Table.INODE)
    death, birth, _, _ = keys.dead_parts(found)
    other = {
        "prefix": keys.dead(death, birth, Table.INODE, keys.inode(kept)),  # whose version of that birth lives
        "birth": keys.dead(death, birth - 1, Table.INODE, found[17:]),
        "table": found[:16] + bytes((129,)) + found[17:],
    }[part]
    changed(ws, moved(Table.DEAD, found, other))
    ws.engine.destroy(["s"])
    ws.settle()
    ws.restart()
    assert other in rows(ws, Table.DEAD)
    assert data(ws, b"kept") == LARGE
    assert ws.engine.lookup(ROOT, b"kept").ino == kept


def test_many_damaged_rows_do_not_keep_the_rest_from_being_freed(
    make: Callable[[], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tzfs.limits.DESTROY_BATCH_ROWS", 4)
    ws = make()
    for number in range(12):
        ws.file(b"%02d" % number, LARGE[:5000])
    ws.engine.snapshot("s")
    for number in range(12):
        ws.engine.unlink(ROOT, b"%02d" % number)
    changed(ws, damage_all(Table.DEAD))
    ws.engine.destroy(["s"])
    ws.settle()
    assert {keys.dead_parts(key)[2] for key in rows(ws, Table.DEAD)} == {Table.EXTENT}
    assert len(rows(ws, Table.INODE)) == 1


def test_an_extent_whose_row_in_the_deadlist_is_damaged_is_not_moved(make: Callable[[], Workspace]) -> None:
    ws = with_snapshot(make())
    changed(ws, damage_all(Table.DEAD))
    for number in range(8):
        ws.file(b"%d" % number, LARGE)
    ws.engine.commit()
    for number in range(8):
        ws.engine.unlink(ROOT, b"%d" % number)
    ws.settle()
    ws.restart()
    ws.settle()
    assert ws.engine.failed is None
    view = ws.engine.view("s")
    assert view.read(view.lookup(ROOT, b"gone").ino, 0, 1 << 20) == LARGE


# -- what waits ------------------------------------------------------------------------------------------------------


def test_a_damaged_row_of_a_hole_is_passed_over(make: Callable[[], Workspace]) -> None:
    ws = make()
    ws.file(b"kept", LARGE)
    ws.file(b"f", LARGE)
    ws.engine.commit()
    ws.engine.unlink(ROOT, b"f")
    ws.engine.commit()
    ws.engine.abandon()
    txn = ws.meta.begin_write()
    damage_all(Table.PUNCH)(txn)
    txn.commit()
    ws.reopen()
    ws.settle()
    assert rows(ws, Table.PUNCH) == []
    assert [line for line in ws.engine.drift if "no hole is punched" in line]
    assert data(ws, b"kept") == LARGE


def orphaned(ws: Workspace) -> int:
    """A file without a name that a process had open when all ended."""
    ino = ws.file(b"f", LARGE)
    ws.file(b"kept", LARGE)
    ws.engine.commit()
    ws.engine.referenced = lambda number: True
    ws.engine.unlink(ROOT, b"f")
    ws.engine.commit()
    ws.engine.abandon()
    return ino


def test_an_orphan_is_found_though_its_row_is_damaged(make: Callable[[], Workspace]) -> None:
    ws = make()
    orphaned(ws)
    txn = ws.meta.begin_write()
    damage_all(Table.ORPHAN)(txn)
    txn.commit()
    ws.reopen()
    ws.settle()
    ws.restart()
    ws.assert_sound()
    assert rows(ws, Table.ORPHAN) == []
    assert len(rows(ws, Table.INODE)) == 2


@pytest.mark.parametrize("other", ["an inode with a name", "no inode", "a damaged inode"])
def test_what_is_no_orphan_is_not_taken_for_one(make: Callable[[], Workspace], other: str) -> None:
    ws = make()
    ino = orphaned(ws)
    number = {"an inode with a name": ino + 1, "no inode": ino + 1000, "a damaged inode": ino}[other]
    txn = ws.meta.begin_write()
    if other == "a damaged inode":
        damage_row(txn, Table.ORPHAN, keys.orphan(ino))
        for key, _ in list(txn.range(Table.INODE, keys.inode(ino), keys.inode(ino + 1))):
            damage_row(txn, Table.INODE, key)
    else:
        moved(Table.ORPHAN, keys.orphan(ino), keys.orphan(number))(txn)
    txn.commit()
    ws.reopen()
    ws.settle()
    ws.restart()
    assert rows(ws, Table.ORPHAN) == [keys.orphan(number)]
    assert [line for line in ws.engine.drift if "damaged record orphan/" in line]
    assert data(ws, b"kept") == LARGE


# -- segments --------------------------------------------------------------------------------------------------------


def lose_segments(txn: WriteTransaction) -> None:
    for key, _ in list(txn.range(Table.SEGMENT, b"")):
        txn.delete(Table.SEGMENT, key)


@pytest.mark.parametrize("how", [damage_all(Table.SEGMENT), lose_segments], ids=["damaged", "lost"])
def test_a_segment_whose_row_is_damaged_or_lost_stays(
    make: Callable[[], Workspace], how: Callable[[WriteTransaction], None]
) -> None:
    ws = make()
    for name in (b"a", b"b", b"c"):
        ws.file(name, LARGE)
    ws.engine.setxattr(ROOT, b"user.large", LARGE[:20_000])
    changed(ws, how)
    assert data(ws, b"a") == LARGE
    ws.engine.unlink(ROOT, b"a")
    ws.engine.write(ws.engine.lookup(ROOT, b"b").ino, 0, LARGE[::-1])
    for _ in range(3):
        ws.settle()
        ws.restart()
    assert (data(ws, b"b"), data(ws, b"c")) == (LARGE[::-1], LARGE)
    assert ws.engine.getxattr(ROOT, b"user.large") == LARGE[:20_000]


def test_a_segment_that_nothing_names_goes_also_where_it_was_begun_before_a_commit(
    make: Callable[[], Workspace],
) -> None:
    ws = make()
    ws.file(b"kept", LARGE)
    ws.restart()
    extent = ws.payload.allocate(8192)
    ws.file(b"small", b"inline")
    ws.engine.commit()
    ws.payload.write([(extent, bytes(8192))])
    ws.payload.sync()
    ws.crash()
    assert extent >> 32 not in ws.payload.segments()
    assert ws.engine.drift == []
    assert data(ws, b"kept") == LARGE


def test_a_segment_is_kept_where_what_might_name_it_is_damaged(make: Callable[[], Workspace]) -> None:
    ws = make()
    ws.file(b"f", LARGE)

    def act(txn: WriteTransaction) -> None:
        lose_segments(txn)
        damage_all(Table.CHUNK)(txn)

    changed(ws, act)
    assert len(ws.payload.segments()) == 1
    assert [line for line in ws.engine.drift if "has no row" in line]
    with pytest.raises(CorruptionError):
        data(ws, b"f")
