"""A damaged record of what an origin removes: its clone cannot read what that may be about, and does all else."""

from __future__ import annotations

import pytest

from tests.damaging import damage_row
from tests.engine.test_clone_model import clone_of
from tests.engine.test_rollback import TimeWorld
from tests.engine.world import MemoryStores
from tests.noise import noise
from tzfs.errors import CorruptionError
from tzfs.format.keys import ROOT, Table


def test_what_is_inherited_is_removed_all_the_same() -> None:
    origin = TimeWorld(MemoryStores())
    for name, size in ((b"a", 3_000_000), (b"b", 3_000_000), (b"c", 20_000), (b"gone", 3_000_000)):
        ino = origin.engine.mknod(ROOT, name, 0o100644, uid=0, gid=0).ino
        origin.engine.write(ino, 0, noise(size, name.decode()))
    origin.engine.snapshot("s")
    origin.model.snapshot("s")
    origin.engine.unlink(ROOT, b"gone")
    origin.engine.commit()
    clone = clone_of(origin, "s")
    origin.engine.abandon()
    txn = origin.stores.meta.begin_write()
    rows = [key for key, _ in txn.range(Table.RECLAIM, b"")]
    assert rows
    for key in rows:
        damage_row(txn, Table.RECLAIM, key)
    txn.commit()
    origin.stores.crash()

    engine = clone.engine
    with pytest.raises(CorruptionError):
        engine.read(engine.lookup(ROOT, b"a").ino, 0, 10)
    for name in (b"b", b"c"):
        ino = engine.lookup(ROOT, name).ino
        engine.unlink(ROOT, name)
        engine.forget(ino)
    made = engine.mknod(ROOT, b"own", 0o100644, uid=0, gid=0).ino
    engine.write(made, 0, b"own")
    engine.commit()
    assert engine.failed is None
    engine.close()
    clone.stores.restart()
    clone.engine = engine = clone._open()
    assert [entry[0] for entry in engine.readdir(ROOT, b"", 10)] == [b"a", b"gone", b"own"]
    assert engine.read(made, 0, 10) == b"own"
    with pytest.raises(CorruptionError):  # a task that fails, and is tried again
        engine.background_step()
    assert engine.failed is None
