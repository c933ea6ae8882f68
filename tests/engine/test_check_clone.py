"""What `check` says of a clone: nothing of files without a name in its origin, all that a removed one has left."""

from __future__ import annotations

import pytest

from tests.engine.batches import small_batches
from tests.engine.test_clone_model import clone_of
from tests.engine.test_rollback import TimeWorld
from tests.engine.world import MemoryStores
from tzfs.engine.check.problems import Rule
from tzfs.engine.engine import Engine
from tzfs.format.keys import Ino, Table

OF_FILES = (Table.INLINE, Table.CHUNK, Table.XATTR)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)


def origin() -> tuple[TimeWorld, list[Ino]]:
    """A file of chunks and one of a few bytes, both with attributes."""
    world = TimeWorld(MemoryStores())
    files = []
    for name, size in ((b"large", 200_000), (b"small", 10)):
        files.append(world.engine.mknod(1, name, 0o100644, uid=0, gid=0).ino)
        world.engine.write(files[-1], 0, b"f" * size)
        world.engine.setxattr(files[-1], b"user.a", b"v")
        world.engine.setxattr(files[-1], b"user.b", b"v" * 6000)
    return world, files


def cloned(world: TimeWorld) -> Engine:
    world.engine.snapshot("s")
    world.model.snapshot("s")
    return clone_of(world, "s").engine


def test_what_a_file_without_a_name_has_is_no_problem_while_the_clone_is_flattened() -> None:
    world, files = origin()
    world.engine.referenced = lambda ino: True
    for name in (b"large", b"small"):
        world.engine.unlink(1, name)
    assert world.engine.orphan_inodes() == files
    clone = cloned(world)
    clone.flattening.begin()
    steps = 0
    while clone.flattening.pending:
        assert clone.problems() == []
        clone.flattening.step()
        steps += 1
    assert clone.problems() == []
    assert steps > 3


def test_what_a_file_removed_in_the_clone_has_left_is_reported() -> None:
    world, _ = origin()
    clone = cloned(world)
    for name in (b"large", b"small"):
        clone.unlink(1, name)
    clone.commit()
    while clone.background_step():
        pass
    assert clone.problems() == []
    txn = clone._head.txn
    hidden = {table: [key for key, _ in txn.range(table, b"")] for table in OF_FILES}
    assert all(hidden.values())
    for table, tombstones in hidden.items():
        for key in tombstones:
            txn.delete(table, key)
    found = {(problem.rule, problem.table) for problem in clone.problems()}
    assert {(Rule.OWNER, "inline"), (Rule.OWNER, "chunk"), (Rule.ATTRIBUTE, "xattr")} <= found
