"""Compacting the tables under an engine: what was logged before and after it, and what it finds in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.test_crash import close, open_engine
from tzfs import failpoints
from tzfs.engine.engine import Engine
from tzfs.errors import Busy, MountFailed, StoreError


def names(engine: Engine) -> list[bytes]:
    return [name for name, _, _ in engine.readdir(1, b"", 1000)]


def compact(engine: Engine) -> None:
    engine.commit()
    copy = engine.compactor.begin()
    assert copy is not None
    copy.run()
    engine.compactor.end(copy)


def test_what_the_redo_log_has_counts_for_the_tables_it_follows_and_no_others(tmp_path: Path) -> None:
    opened = open_engine(tmp_path)
    engine = opened[0]
    made = []
    for number in range(3):  # the copies all begin to count at the same commit
        compact(engine)
        for letter in b"ab":
            made.append(b"%c%d" % (letter, number))
            engine.mkdir(1, made[-1], 0o755, uid=0, gid=0)
            engine.harden()
    engine.abandon()
    close(*opened)
    opened = open_engine(tmp_path)
    assert names(opened[0]) == sorted(made)
    assert opened[0].problems() == []
    close(*opened)


def test_what_is_not_committed_goes_into_the_new_tables(tmp_path: Path) -> None:
    opened = open_engine(tmp_path)
    engine = opened[0]
    engine.commit()
    copy = engine.compactor.begin()
    assert copy is not None
    ino = engine.mknod(1, b"while", 0o100644, uid=0, gid=0).ino
    copy.run()
    engine.write(ino, 0, b"x" * 9000)
    engine.compactor.end(copy)
    engine.harden()
    engine.abandon()
    close(*opened)
    opened = open_engine(tmp_path)
    assert opened[0].read(opened[0].lookup(1, b"while").ino, 0, 9000) == b"x" * 9000
    assert opened[0].problems() == []
    close(*opened)


def test_tables_that_were_changed_meanwhile_stay(tmp_path: Path) -> None:
    opened = open_engine(tmp_path)
    engine = opened[0]
    for change in (lambda: engine.task_rows.put("t", {}), lambda: engine.snapshot("s")):
        engine.commit()
        copy = engine.compactor.begin()
        assert copy is not None
        copy.run()
        change()
        with pytest.raises(Busy):
            engine.compactor.end(copy)
    assert engine.problems() == []
    assert list(engine.snapshots()) == ["s"]
    assert list(engine.task_rows.all()) == ["t"]
    close(*opened)


def test_an_exchange_that_may_not_last_ends_the_engine(tmp_path: Path) -> None:
    opened = open_engine(tmp_path)
    engine = opened[0]
    engine.mkdir(1, b"before", 0o755, uid=0, gid=0)
    failpoints.arm("compact.exchanged", "error:EIO")
    try:
        with pytest.raises(StoreError, match="compact: Input"):
            compact(engine)
    finally:
        failpoints.disarm_all()
    with pytest.raises(MountFailed):
        engine.mkdir(1, b"after", 0o755, uid=0, gid=0)
    close(*opened)
    opened = open_engine(tmp_path)
    assert names(opened[0]) == [b"before"]
    close(*opened)
