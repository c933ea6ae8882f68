"""A damaged sum of what a clone does not inherit any more: a figure is not known then, and nothing else."""

from __future__ import annotations

import pytest

from tests.damaging import damage_row
from tests.engine.test_clone_model import clone_of
from tests.engine.test_rollback import TimeWorld
from tests.engine.world import MemoryStores
from tests.noise import noise
from tzfs.engine import bequest
from tzfs.errors import CorruptionError
from tzfs.format.keys import ROOT, Table


def test_a_damaged_sum_keeps_a_clone_from_nothing() -> None:
    origin = TimeWorld(MemoryStores())
    for name in (b"a", b"b"):
        origin.engine.write(origin.engine.mknod(ROOT, name, 0o100644, uid=0, gid=0).ino, 0, noise(20_000))
    origin.engine.snapshot("s")
    origin.model.snapshot("s")
    clone = clone_of(origin, "s")
    clone.engine.write(clone.engine.lookup(ROOT, b"a").ino, 0, b"x" * 4096)
    clone.engine.commit()
    clone.engine.close()
    txn = clone.stores.meta.begin_write()
    (key,) = [key for key, _ in txn.range(Table.SYS, bequest.KEY) if key.startswith(bequest.KEY)]
    damage_row(txn, Table.SYS, key)
    txn.commit()

    clone.stores.restart()
    clone.engine = clone._open()
    ino = clone.engine.lookup(ROOT, b"b").ino
    clone.engine.write(ino, 0, b"y" * 4096)
    clone.engine.harden()
    clone.engine.abandon()
    clone.stores.crash()
    clone.engine = clone._open()  # does again what the redo log has
    assert clone.engine.read(ino, 0, 4096) == b"y" * 4096
    clone.engine.write(ino, 4096, b"z" * 4096)
    clone.engine.commit()
    assert clone.engine.failed is None
    assert any("damaged record sys/" in text for text in (str(p) for p in clone.engine.problems()))
    clone.engine.close()
    with pytest.raises(CorruptionError):
        [*bequest.read(clone.stores.meta.begin_read())]
