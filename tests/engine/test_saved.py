"""What compression has saved: carried through all that moves a charge, checked, and let be where nobody has said it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.engine.conftest import Workspace
from tests.engine.histories import Damaged
from tests.engine.test_compression import CHUNK, compressing, stored, words
from tests.noise import noise
from tzfs.engine.accounting import Accounts
from tzfs.engine.check.problems import Rule
from tzfs.engine.engine import Engine
from tzfs.format import keys, records
from tzfs.format.keys import Table
from tzfs.format.superblock import SAVED, SUPERBLOCK_KEY, pack_superblock, unpack_superblock
from tzfs.space import filesystem_facts

PAGE = 4096


def accounts(engine: Engine) -> Accounts:
    engine.commit()
    txn = engine.meta.begin_read()
    try:
        return Accounts(txn, engine.snapshots(), engine.counters.epoch)
    finally:
        txn.close()


def saved(engine: Engine) -> tuple[int, int]:
    """What is saved of `used` and of `referenced`."""
    found = accounts(engine)
    logical, charged = found.logical, found.charged
    return logical.used - charged.used, logical.referenced - charged.referenced


def pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def test_what_an_extent_saves_is_its_pages_and_goes_where_it_goes(ws: Workspace) -> None:
    engine = compressing(ws, "zstd")
    ino = ws.file(b"f", words(CHUNK))
    (s,) = stored(engine, ino)
    spared = CHUNK - pages(s.stored_bytes)
    assert spared > CHUNK // 2
    assert saved(engine) == (spared, spared)
    engine.snapshot("a")
    engine.write(ino, 0, noise(CHUNK))
    assert saved(engine) == (spared, 0)
    assert accounts(engine).of("a", logical=True).used - accounts(engine).of("a").used == spared
    engine.destroy(["a"])
    assert saved(engine) == (0, 0)
    ws.settle()
    ws.assert_sound()
    facts = filesystem_facts(accounts(engine))
    assert facts["logicalused"] == facts["used"]
    assert facts["compressratio"] == facts["refcompressratio"] == "1.00"


def test_an_embedded_chunk_saves_what_it_is_shorter(ws: Workspace) -> None:
    engine = compressing(ws, "lz4")
    ino = ws.file(b"f", bytes(20_000))
    (s,) = stored(engine, ino)
    assert saved(engine) == (20_000 - s.stored_bytes,) * 2
    engine.setattr(ino, size=7000)
    assert saved(engine) == (20_000 - s.stored_bytes,) * 2
    engine.snapshot("a")
    engine.write(ino, 0, b"x" * 9000)
    (new,) = stored(engine, ino)
    assert saved(engine) == (29_000 - s.stored_bytes - new.stored_bytes, 9000 - new.stored_bytes)
    engine.unlink(1, b"f")
    ws.settle()
    assert saved(engine) == (20_000 - s.stored_bytes, 0)
    engine.destroy(["a"])
    ws.settle()
    assert saved(engine) == (0, 0)
    ws.assert_sound()


@pytest.mark.parametrize("contents", [words(CHUNK), b"again" * 2000], ids=["extent", "embedded"])
def test_a_rollback_a_restore_and_taking_them_back_save_what_was_saved(ws: Workspace, contents: bytes) -> None:
    engine = compressing(ws, "zstd")
    ino = ws.file(b"f", contents)
    (s,) = stored(engine, ino)
    spared = s.raw_bytes - s.stored_bytes if s.embedded else pages(s.raw_bytes) - pages(s.stored_bytes)
    engine.snapshot("a")
    engine.unlink(1, b"f")
    engine.snapshot("b")
    assert saved(engine) == (spared, 0)
    rollback = engine.rollback("a")
    while rollback.step():
        pass
    assert saved(engine) == ((2 if s.embedded else 1) * spared, spared)  # by reference; a row is a row of its own
    ws.assert_sound()
    rollback = engine.rollback("b")
    assert rollback.step()
    while rollback.cancel():
        pass
    ws.assert_sound()
    rollback = engine.rollback("b")
    while rollback.step():
        pass
    ws.assert_sound()
    assert saved(engine)[1] == 0
    for name in ("a", "b"):
        engine.destroy([name])
        ws.settle()
        ws.assert_sound()
    assert saved(engine) == (0, 0)
    assert engine.drift == []


# -- the check ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(make: type[Workspace]) -> Damaged:
    """Extents and embedded chunks that live, are dead, and have been brought back by a restore."""
    ws = make()
    engine = compressing(ws, "zstd")
    inos = [ws.file(name, body) for name, body in ((b"f", words(CHUNK)), (b"g", words(CHUNK, 2)), (b"e", bytes(9000)))]
    engine.snapshot("a")
    for ino in inos:
        engine.write(ino, 0, noise(CHUNK))
    engine.snapshot("b")
    rollback = engine.rollback("a")
    while rollback.step():
        pass
    engine.write(inos[1], 0, words(CHUNK, 5))
    engine.unlink(1, b"e")
    ws.settle()
    ws.assert_sound()
    engine.close()
    return Damaged(ws.meta.after_crash(), ws.payload.after_crash())


def spoilt(fs: Damaged, table: Table, change: Callable[[int], int]) -> Iterator[Damaged]:
    """Copies with what is saved changed in one row of the table each."""
    for key, _ in fs.rows(table):
        body = fs.body(table, key)
        if table is Table.SHARED:
            shared = records.unpack_shared(key, body)
            bodies = [records.pack_shared(shared._replace(saved=change(shared.saved)))]
        else:
            fields, told = records.unpack_charged(table, key, body)
            bodies = [records.pack_charged(table, *fields, saved=change(told))]
        for spoilt_body in bodies:
            if spoilt_body != body:
                copy = fs.copy()
                copy.put(table, key, spoilt_body)
                yield copy


@pytest.mark.parametrize("change", [lambda n: n + PAGE, lambda n: max(0, n - 1), lambda n: 0], ids=["more", "1", "0"])
@pytest.mark.parametrize("table", [Table.CELL, Table.DEAD, Table.SHARED], ids=lambda table: table.name)
def test_a_check_notices_what_is_not_what_was_saved(
    history: Damaged, table: Table, change: Callable[[int], int]
) -> None:
    rules = {Table.CELL: {Rule.CELL}, Table.DEAD: {Rule.DEADLIST, Rule.SHARED}, Table.SHARED: {Rule.SHARED}}
    copies = list(spoilt(history, table, change))
    assert copies
    for copy in copies:
        assert rules[table] & {problem.rule for problem in copy.problems()}


# -- stores of before --------------------------------------------------------------------------------------------------


def forgotten(ws: Workspace) -> None:
    """The filesystem as a tzfs has left it that did not say what it saved."""
    ws.engine.close()
    txn = ws.meta.begin_write()
    for table in (Table.CELL, Table.DEAD):
        for key, value in list(txn.range(table, b"")):
            fields, _ = records.unpack_charged(table, key, records.unseal(table, key, value) or b"")
            txn.put(table, key, records.seal(table, key, records.pack_plain(table, *fields)))
    for key, value in list(txn.range(Table.SHARED, b"")):
        shared = records.unpack_shared(key, records.unseal(Table.SHARED, key, value) or b"")
        body = records.pack_shared(shared._replace(saved=0))
        txn.put(Table.SHARED, key, records.seal(Table.SHARED, key, body))
    superblock = unpack_superblock(txn.get(Table.SYS, SUPERBLOCK_KEY) or b"")
    assert superblock.has(SAVED)
    txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(superblock.with_features([SAVED], on=False)))
    txn.commit()
    ws.reopen()


@pytest.mark.parametrize("seed", range(8))
def test_a_store_that_does_not_say_what_was_saved_is_read_written_and_sound(make: type[Workspace], seed: int) -> None:
    """It says too little, never too much, and comes to nothing when all is gone."""
    r, ws = random.Random(seed), make()
    compressing(ws, "zstd")

    def changed() -> None:
        name = b"%d" % r.randrange(4)
        if ws.engine.find(1, name) is None:
            ws.file(name, words(r.choice((9000, CHUNK, 2 * CHUNK)), r.randrange(99)))
        elif r.random() < 0.4:
            ws.engine.unlink(1, name)
        else:
            body = r.choice((bytes(9000), words(30_000, r.randrange(99)), noise(9000)))
            ws.engine.write(ws.engine.lookup(1, name).ino, 0, body)

    def history(prefix: str) -> None:
        for number in range(30):
            changed()
            names = list(ws.engine.snapshots())
            what = r.random()
            if what < 0.3:
                ws.engine.snapshot(f"{prefix}{number}")
            elif names and what < 0.4:
                ws.engine.destroy([r.choice(names)])
            elif names and what < 0.5:
                rollback = ws.engine.rollback(r.choice(names))
                while rollback.step():
                    pass
            ws.settle()
            ws.assert_sound()

    history("a")
    whole = saved(ws.engine)
    forgotten(ws)
    compressing(ws, "zstd")
    ws.assert_sound()
    assert saved(ws.engine) == (0, 0) <= whole
    history("b")
    ws.engine.destroy(list(ws.engine.snapshots()))
    for name in [name for name, _, _ in ws.engine.readdir(1, b"", 100)]:
        ws.engine.unlink(1, name)
    ws.settle()
    ws.assert_sound()
    assert saved(ws.engine) == (0, 0)
    assert ws.engine.drift == []
    assert not ws.engine.superblock.has(SAVED)
    ws.engine.close()


def test_a_filesystem_of_before_that_has_nothing_compressed_says_all_from_then_on(ws: Workspace) -> None:
    ws.file(b"raw", words(CHUNK))
    ws.engine.commit()
    assert not ws.engine.superblock.has(SAVED)
    assert saved(ws.engine) == (0, 0)
    ino = ws.file(b"f", words(CHUNK))
    ws.engine.configure(replace(ws.engine.settings, compression=compressing(ws, "lz4").settings.compression))
    (s,) = stored(ws.engine, ino)
    assert ws.engine.superblock.has(SAVED)
    assert saved(ws.engine) == (CHUNK - pages(s.stored_bytes),) * 2
    assert keys.extent_offset(s.extent) % PAGE == 0
