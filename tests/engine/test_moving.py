"""Extents of sparse segments move: whatever sees them reads the same, and no counter can tell."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.workload import generate, state_of
from tests.engine.batches import small_batches
from tests.engine.test_crash import close, open_engine
from tests.engine.world import DiskStores
from tests.model.world import Everything
from tzfs.engine import moving
from tzfs.engine.engine import Engine
from tzfs.format.keys import Table
from tzfs.store import space


def write(engine: Engine, name: bytes, size: int, seed: int) -> None:
    try:
        ino = engine.lookup(1, name).ino
    except Exception:
        ino = engine.mknod(1, name, 0o100644, uid=0, gid=0).ino
    engine.write(ino, 0, random.Random(seed).randbytes(size))


def move(engine: Engine, segments: frozenset[int]) -> int:
    before = engine.mover.moved_bytes
    for job in engine.mover.steps(segments):
        if job is not None:
            engine.commit()
            job()()
    engine.collect()
    return engine.mover.moved_bytes - before


def rows(engine: Engine, *tables: Table) -> list[tuple[bytes, bytes]]:
    return [row for table in tables for row in engine._head.txn.range(table, b"")]


def test_the_small_segments_of_many_writers_become_one(tmp_path: Path) -> None:
    for number in range(moving.SMALL_MAX + 4):
        opened = open_engine(tmp_path)
        write(opened[0], b"%d" % number, 9000, number)
        write(opened[0], b"again", 9000, -number)  # what it was stays in a snapshot
        opened[0].setxattr(1, b"user.%d" % number, b"v" * 6000, 0)
        opened[0].snapshot(f"s{number}")
        close(*opened)
    opened = open_engine(tmp_path)
    engine = opened[0]
    before, cells = state_of(engine), rows(engine, Table.CELL, Table.CHANGE, Table.SNAPSHOT)
    assert len(engine.payload.segments()) > moving.SMALL_MAX
    assert move(engine, engine.mover.sparse()) == 3 * (moving.SMALL_MAX + 4) * 12288 - (moving.SMALL_MAX + 4) * 4096
    assert engine.problems() == []
    assert state_of(engine) == before
    assert rows(engine, Table.CELL, Table.CHANGE, Table.SNAPSHOT) == cells
    assert len(engine.payload.segments()) == 1
    assert engine.mover.sparse() == frozenset()
    close(*opened)


def test_on_a_disk_without_holes_a_segment_half_dead_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "punch_supported", lambda directory: False)
    monkeypatch.setattr(space, "punch", lambda fd, offset, nbytes: False)
    opened = open_engine(tmp_path)
    for number in range(8):
        write(opened[0], b"%d" % number, 100_000, number)
    opened[0].snapshot("s")
    for number in range(2, 8):
        opened[0].unlink(1, b"%d" % number)
    close(*opened)
    opened = open_engine(tmp_path)
    engine = opened[0]
    assert engine.mover.sparse() == frozenset(), "the snapshot sees it all"
    for number in range(2, 8):
        write(engine, b"%d" % number, 100_000, -number)
    engine.collect()
    for number in range(2, 8):
        engine.unlink(1, b"%d" % number)
    engine.collect()
    close(*opened)
    opened = open_engine(tmp_path)
    engine = opened[0]
    before = state_of(engine)
    sparse = engine.mover.sparse()
    size = sum(engine.payload.segments().values())
    move(engine, sparse)
    assert state_of(engine) == before
    assert not sparse & set(engine.payload.segments())
    assert sum(engine.payload.segments().values()) <= size
    close(*opened)


def test_whatever_happens_between_two_steps_nobody_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr(moving, "SCAN_ROWS", 5)
    monkeypatch.setattr(moving, "PREFIXES_MAX", 2)
    monkeypatch.setattr(moving, "COPY_BYTES_MAX", 30_000)
    moved = [history(tmp_path / str(seed), seed) for seed in range(5)]
    assert sum(each > 0 for each in moved) >= 2, moved


def history(folder: Path, seed: int) -> int:
    """Any operations with steps of moving in between; how much moved at most between two restarts."""
    folder.mkdir()
    world = Everything(DiskStores(folder))
    r, moved = random.Random(seed), 0
    for number, step in enumerate(generate(seed, 250)):
        world.apply(step)
        if step[0] in ("write", "pour", "background"):
            for _ in range(r.randrange(4)):
                world.apply(("move", r.randrange(64), 0, 0, 0))
        moved = max(moved, world.engine.mover.moved_bytes)
        if number % 25 == 24:
            world._let_jobs_end()
            world.check(10)
            assert world.engine.problems() == [], (seed, number)
    world._let_jobs_end()
    world.engine.close()
    world.stores.close()
    return moved
