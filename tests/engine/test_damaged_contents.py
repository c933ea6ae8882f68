"""Chunk records that are damaged: what overwrites or removes them whole works; what needs them says so, and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.damaging import damage
from tests.engine.conftest import Workspace
from tests.noise import noise
from tzfs.engine.engine import Settings
from tzfs.errors import CorruptionError
from tzfs.format import keys
from tzfs.format.keys import Table

CHUNK = 1 << Settings().chunk_shift
CONTENTS = noise(3 * CHUNK)


def _damaged(make: Callable[[], Workspace], *indexes: int) -> tuple[Workspace, int]:
    """A file of three chunks, of which the records of some have a bit that is wrong."""
    ws = make()
    ino = ws.file(b"f", CONTENTS)
    data = ws.engine.inode(ino).data
    ws.engine.close()
    txn = ws.meta.begin_write()
    for index in indexes:
        damage(txn, Table.CHUNK, keys.chunk(data, index))
    txn.commit()
    ws.reopen()
    return ws, ino


def _read(ws: Workspace, ino: int, offset: int, size: int) -> bytes:
    return bytes(ws.engine.plan_read(ino, offset, size).execute())


def test_a_write_that_cannot_read_what_it_keeps_changes_nothing(make: Callable[[], Workspace]) -> None:
    ws, ino = _damaged(make, 2)
    with pytest.raises(CorruptionError):
        ws.engine.write(ino, 0, bytes(2 * CHUNK + 1))  # of the last chunk, a part stays
    assert _read(ws, ino, 0, 2 * CHUNK) == CONTENTS[: 2 * CHUNK]
    ws.engine.commit()
    ws.restart()
    assert _read(ws, ino, 0, 2 * CHUNK) == CONTENTS[: 2 * CHUNK]
    assert ws.engine.drift == []


@pytest.mark.parametrize("damaged", [(1,), (0, 1, 2)])
def test_what_is_overwritten_whole_is_sound_again(make: Callable[[], Workspace], damaged: tuple[int, ...]) -> None:
    ws, ino = _damaged(make, *damaged)
    ws.engine.write(ino, 0, CONTENTS[::-1])
    ws.engine.commit()
    assert len(ws.engine.drift) == len(damaged)
    assert all("damaged record chunk/" in line and "not given back" in line for line in ws.engine.drift)
    ws.restart()
    assert _read(ws, ino, 0, 3 * CHUNK) == CONTENTS[::-1]


def test_a_damaged_file_can_be_removed(make: Callable[[], Workspace]) -> None:
    ws, ino = _damaged(make, 0, 2)
    sound = ws.file(b"sound", CONTENTS)
    ws.engine.commit()
    ws.engine.unlink(1, b"f")
    ws.engine.unlink(1, b"sound")
    ws.settle()
    assert ws.engine.failed is None
    assert len(ws.engine.drift) == 2
    ws.restart()
    assert ws.engine.find(1, b"f") is None
    assert _of(ws, ino) == _of(ws, sound) == 0


def _of(ws: Workspace, ino: int) -> int:
    """How many rows of inodes there are of it."""
    txn = ws.meta.begin_read()
    try:
        return sum(1 for _ in txn.range(Table.INODE, keys.inode(ino), keys.inode(ino + 1)))
    finally:
        txn.close()
