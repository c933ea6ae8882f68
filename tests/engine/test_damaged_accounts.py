"""Damaged records of what counts and of what waits: the filesystem goes on without them, and nothing sound is given up.

Damage may be of a record or of its key, and neither tells which: so what a key says is believed only where something
else says it too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.damaging import damage_row
from tests.engine.conftest import GUID, Workspace
from tests.engine.test_redo import Logged
from tests.noise import noise
from tzfs.engine import beginning
from tzfs.engine.engine import Engine, Settings
from tzfs.errors import CorruptionError, ForeignStore, MountFailed, StoreError, TzfsError
from tzfs.format import keys, records
from tzfs.format.keys import ROOT, Table
from tzfs.format.slices import slices_of
from tzfs.store.interface import WriteTransaction
from tzfs.store.memory import MemoryMeta, MemoryPayload
from tzfs.store.segments import Segments

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
    ws.file(b"later", b"")
    rollback = ws.engine.rollback("t")
    while rollback.step():
        pass
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
    assert len(rows(ws, Table.DESTROY)) == 1, "as long as something is left"
    for name in (b"gone", b"small"):
        assert ws.engine.find(ROOT, name) is None
        ws.file(name)
        ws.engine.unlink(ROOT, name)
    ws.restart()
    assert [name for name, _ in ws.engine.readdir_plus(ROOT, b"", 10)] == [b"kept", b"over"], "nothing old shows"
    assert data(ws, b"kept") == LARGE
    assert data(ws, b"over") == LARGE[::-1]


def damaged_key(part: str, key: bytes, other: int) -> bytes:
    """A key of the deadlist that is about inode `other` now, or of another birth, or table."""
    death, birth, _, _ = keys.dead_parts(key)
    return {
        "prefix": keys.dead(death, birth, Table.INODE, keys.inode(other)),
        "birth": keys.dead(death, birth - 1, Table.INODE, key[17:]),
        "table": key[:16] + bytes((129,)) + key[17:],
        "table of the catalog": key[:16] + bytes((Table.CATALOG_STORE,)) + key[17:],
        "length": key[:20],
    }[part]


@pytest.mark.parametrize("part", ["prefix", "birth", "table", "table of the catalog", "length"])
def test_a_key_of_the_deadlist_that_is_damaged_takes_nothing_with_it(make: Callable[[], Workspace], part: str) -> None:
    ws = with_snapshot(make())
    kept = ws.engine.lookup(ROOT, b"kept").ino
    found = next(key for key in rows(ws, Table.DEAD) if keys.dead_parts(key)[2] is Table.INODE)
    other = damaged_key(part, found, kept)  # the version of that birth lives there
    changed(ws, moved(Table.DEAD, found, other))
    ws.engine.destroy(["s"])
    ws.settle()
    ws.restart()
    ws.settle()
    assert other in rows(ws, Table.DEAD)
    assert data(ws, b"kept") == LARGE
    assert ws.engine.lookup(ROOT, b"kept").ino == kept


def shows_nothing_old(ws: Workspace) -> None:
    """`gone` comes and goes, and the snapshot's does not come back."""
    ws.engine.destroy(["s"])
    ws.settle()
    ws.restart()
    ws.file(b"gone")
    ws.engine.commit()
    ws.engine.unlink(ROOT, b"gone")
    ws.settle()
    ws.restart()
    assert [name for name, _ in ws.engine.readdir_plus(ROOT, b"", 10)] == [b"kept", b"over"]
    assert ws.engine.find(ROOT, b"gone") is None


@pytest.mark.parametrize("table", [Table.DEAD, Table.CELL])
@pytest.mark.parametrize("byte", [2, -2], ids=["within its first number", "at its end"])
def test_what_could_not_be_freed_does_not_show_again(make: Callable[[], Workspace], table: Table, byte: int) -> None:
    ws = with_snapshot(make())
    for key in rows(ws, table):
        of_entry = table is Table.DEAD and keys.dead_parts(key)[2] is Table.DIRENT
        if of_entry or (table is Table.CELL and keys.cell_parts(key)[0] != keys.LIVE):
            other = bytearray(key)
            other[byte] ^= 1
            changed(ws, moved(table, key, bytes(other)))
    shows_nothing_old(ws)


def test_the_versions_of_a_name_whose_newer_ones_are_freed_do_not_show_again(make: Callable[[], Workspace]) -> None:
    ws = make()
    ws.file(b"f", LARGE)
    ws.file(b"gone", b"one")
    ws.engine.snapshot("s")
    for contents in (b"two", b"three"):
        ws.engine.unlink(ROOT, b"gone")
        ws.file(b"gone", contents)
        ws.engine.write(ws.engine.lookup(ROOT, b"f").ino, 0, noise(300_000, contents.decode()))
        ws.engine.snapshot(contents.decode())
    ws.engine.destroy(["two"])
    ws.settle()
    changed(ws, damage_all(Table.DEAD))
    ws.engine.destroy(["s", "three"])
    ws.settle()
    ws.restart()
    ws.engine.unlink(ROOT, b"gone")
    ino = ws.engine.lookup(ROOT, b"f").ino
    ws.engine.setattr(ino, size=1 << 17)
    ws.settle()
    ws.engine.setattr(ino, size=300_000)
    ws.restart()
    assert [name for name, _ in ws.engine.readdir_plus(ROOT, b"", 10)] == [b"f"]
    assert data(ws, b"f") == noise(300_000, "three")[: 1 << 17] + bytes(300_000 - (1 << 17))


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
    ws.restart()
    ws.settle()  # which tries it again
    assert len(rows(ws, Table.DESTROY)) == 1


def sparse(ws: Workspace) -> Workspace:
    """A segment of which little is left: `kept`, and what a snapshot has of `old`."""
    for name in (b"kept", b"old"):
        ws.file(name, noise(5000, name.decode()))
    for number in range(40):
        ws.file(b"%d" % number, noise(60_000, str(number)))
    ws.engine.commit()
    for number in range(40):
        ws.engine.unlink(ROOT, b"%d" % number)
    ws.settle()
    ws.engine.snapshot("s")
    ws.engine.unlink(ROOT, b"old")
    ws.engine.commit()
    return ws


def extent_of(ws: Workspace, name: bytes) -> int:
    prefix = keys.chunk(ws.engine.lookup(ROOT, name).data, 0)
    txn = ws.meta.begin_read()
    try:
        birth, value = txn.seek(Table.CHUNK, prefix, keys.EPOCH_MAX) or (0, b"")
        key = prefix + keys.suffix(birth)
        return slices_of(Table.CHUNK, key, records.unseal(Table.CHUNK, key, value))[0].extent
    finally:
        txn.close()


def move_all(ws: Workspace) -> None:
    segments = ws.engine.mover.sparse()
    assert segments
    for step in ws.engine.mover.steps(segments):
        if step is not None:
            step()()


@pytest.mark.parametrize("kind", ["record", "extent", "table"])
def test_what_a_damaged_row_of_the_deadlist_is_about_is_not_moved(make: Callable[[], Workspace], kind: str) -> None:
    ws = sparse(make())
    (key,) = (key for key in rows(ws, Table.DEAD) if keys.dead_parts(key)[2] is Table.EXTENT)
    other = key[:17] + keys.u64(extent_of(ws, b"kept")) if kind == "extent" else key[:16] + b"\x81" + key[17:]
    changed(ws, damage_all(Table.DEAD) if kind == "record" else moved(Table.DEAD, key, other))
    ws.file(b"another", noise(5000, "another"))
    ws.engine.commit()
    move_all(ws)
    for _ in range(2):
        ws.settle()
        ws.restart()
    assert ws.engine.failed is None
    assert data(ws, b"kept") == noise(5000, "kept")
    view = ws.engine.view("s")
    assert view.read(view.lookup(ROOT, b"old").ino, 0, 1 << 20) == noise(5000, "old")


def test_copies_that_rows_may_name_are_not_given_up_where_renaming_breaks_off(
    make: Callable[[], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = sparse(make())
    ws.restart()  # which begins another segment
    monkeypatch.setattr(ws.engine._head.versions, "settle", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        move_all(ws)
    with pytest.raises(MountFailed):
        ws.engine.commit()
    ws.crash()
    assert data(ws, b"kept") == noise(5000, "kept")


# -- what waits ------------------------------------------------------------------------------------------------------


def with_hole(ws: Workspace, act: Callable[[WriteTransaction], object]) -> Workspace:
    """What `f` had waits to be punched, and the tables are changed meanwhile."""
    ws.file(b"f", LARGE)
    ws.engine.commit()
    ws.engine.unlink(ROOT, b"f")
    ws.engine.commit()
    ws.engine.abandon()  # else the engine would punch it
    txn = ws.meta.begin_write()
    act(txn)
    txn.commit()
    ws.reopen()
    ws.settle()
    return ws


def test_a_damaged_row_of_a_hole_is_passed_over(make: Callable[[], Workspace]) -> None:
    ws = make()
    ws.file(b"kept", LARGE)
    with_hole(ws, damage_all(Table.PUNCH))
    assert rows(ws, Table.PUNCH) == []
    assert [line for line in ws.engine.drift if "no hole is punched" in line]
    assert data(ws, b"kept") == LARGE


def test_a_hole_that_waits_for_a_commit_that_never_comes_keeps_no_segment(make: Callable[[], Workspace]) -> None:
    def act(txn: WriteTransaction) -> None:
        ((key, _),) = txn.range(Table.PUNCH, b"")
        moved(Table.PUNCH, key, b"\0\1" + key[2:])(txn)

    ws = with_hole(make(), act)
    ws.restart()
    ws.settle()
    assert rows(ws, Table.SEGMENT) == []
    assert any("damaged record punch/" in problem.words for problem in ws.engine.problems())


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


def test_what_a_writer_of_little_leaves_behind_is_not_looked_for_in_all_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_segments() -> Segments:
        return Segments(tmp_path / "segments", guid=GUID, create=True)

    meta = MemoryMeta()
    Engine.format(meta, guid=GUID, now_ns=1)
    for number in range(3):
        payload = open_segments()
        engine = Engine(meta, payload)
        engine.mkdir(ROOT, b"%d" % number, 0o755, uid=0, gid=0)
        engine.commit()
        assert payload.segments()
        engine.abandon()
        payload.close()
        meta = meta.after_crash()
    monkeypatch.setattr(beginning, "_named", lambda txn, segments: 1 // 0)
    payload = open_segments()
    Engine(meta, payload).close()
    assert not payload.segments()
    payload.close()


@pytest.mark.parametrize("error", [StoreError, CorruptionError, ForeignStore])
def test_a_segment_that_cannot_be_looked_at_just_now_stays(
    make: Callable[[], Workspace], monkeypatch: pytest.MonkeyPatch, error: type[TzfsError]
) -> None:
    def refuse(self: MemoryPayload, number: int) -> None:
        raise error(f"segment {number}: open: Too many open files")

    ws = make()
    ws.file(b"f", LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryPayload, "data_ranges", refuse)
        changed(ws, lose_segments)
        assert [line for line in ws.engine.drift if "has no row" in line]
    ws.restart()
    assert data(ws, b"f") == LARGE


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
