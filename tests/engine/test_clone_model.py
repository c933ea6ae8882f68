"""Clones against plain full copies: any operations in a clone, in its origin meanwhile, in clones of clones.

One seed replays a run.  A chain is made of worlds as in `test_model`: each a clone of a snapshot of the one before it,
with the same operations, crashes and restarts, snapshots, rollbacks and flattening; all of them are compared with
copies that know nothing of each other.
"""

from __future__ import annotations

import random
import time

import pytest

from tests import tiers
from tests.engine.batches import small_batches
from tests.engine.plain import Plain, copied
from tests.engine.test_rollback import WEIGHTS, TimeWorld
from tests.engine.world import MemoryStores, Step, World
from tests.model.inheriting import ClonedInMemory
from tzfs.engine.restore import Wanted
from tzfs.errors import Stale

LEAST = 10  # runs, however slow the machine is


class CloneWorld(TimeWorld):
    def __init__(self, stores: ClonedInMemory, nodes: Plain) -> None:
        super().__init__(stores)
        self.model = nodes
        self.committed = nodes.copy()

    def do_flatten(self, a: int, b: int, c: int, d: int) -> None:
        self._let_jobs_end()
        self.engine.flattening.begin()
        for _ in range(b % 9):
            self.engine.flattening.step()


def clone_of(world: World, name: str) -> CloneWorld:
    model = Plain()
    model.nodes = copied(world.model.snapshots[name])
    return CloneWorld(ClonedInMemory(world, name), model)


def generate(r: random.Random, n: int, *, crashes: bool, flattens: bool = False) -> list[Step]:
    weights = {what: w * r.choice((0.3, 1, 1, 3)) for what, w in WEIGHTS.items()}
    if not crashes:
        weights["retitle"] = 0  # a clone is made by a name
        weights["restart"] = weights["crash"] = weights["crashed"] = 0
    if flattens:
        weights["flatten"] = r.choice((0, 0, 4, 12))
    return [
        (what, r.randrange(64), r.randrange(64), r.randrange(64), r.randrange(64))
        for what in r.choices(list(weights), list(weights.values()), k=n)
    ]


def run(seed: int) -> None:
    r = random.Random(seed)
    worlds: list[TimeWorld] = [TimeWorld(MemoryStores())]
    for step in generate(r, r.randint(10, 80), crashes=True):
        worlds[0].apply(step)
    for depth in range(r.choice((1, 1, 2, 3))):
        last = worlds[-1]
        last._let_jobs_end()
        last.names += 1
        name = f"c{last.names}"
        last.engine.snapshot(name)
        last.old_orphans[name] = set(last.model.orphans)
        last.model.snapshot(name)
        last.engine.marks.hold("clone", [name])
        last.model.holds.setdefault(name, set()).add("clone")
        last.commits, last.committed = last.engine.commits, last.model.copy()
        for step in generate(r, r.choice((0, 5)), crashes=False):
            last.apply(step)
        last._let_jobs_end()
        worlds.append(clone_of(last, name))
        worlds[-1].check(2)
        assert worlds[-1].engine.problems() == []
        for i, step in enumerate(generate(r, r.randint(5, 60), crashes=True, flattens=True)):
            worlds[-1].apply(step)
            worlds[-1].check(1 + step[1] % 5)
            if step[2] % 6 == 0:
                worlds[-1].verify()
            if i % 7 == 0:
                worlds[r.randrange(depth + 1)].apply(generate(r, 1, crashes=False)[0])
    for world in worlds:
        world._let_jobs_end()
        world.engine.end_flush()
        world.check(3)
        world.verify()


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)


def search(first: int, seconds: float, most: int) -> int:
    until, seed = time.monotonic() + seconds, first
    while seed < first + LEAST or (time.monotonic() < until and seed < first + most):
        try:
            run(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        seed += 1
    return seed - first


@tiers.patient
def test_any_chain_of_clones_agrees_with_plain_copies() -> None:
    first = tiers.number("MODEL_SEED", short=0, long=1000)
    done = search(first, seconds=tiers.number("MODEL_S", short=20, long=600), most=10**9 if tiers.SLOW else 100)
    print(f"{done} chains from seed {first}")


def test_a_restore_in_a_clone_replaces_all_that_it_inherits() -> None:
    world = TimeWorld(MemoryStores())
    directory = world.engine.mkdir(1, b"d", 0o755, uid=0, gid=0).ino
    file = world.engine.mknod(directory, b"f", 0o100644, uid=0, gid=0).ino
    world.engine.write(file, 0, b"f" * 9000)
    world.engine.setxattr(file, b"user.a", b"v" * 6000)
    world.engine.snapshot("s")
    world.model.snapshot("s")
    clone = clone_of(world, "s").engine
    clone.snapshot("mine")
    restore = clone.restore("mine", [Wanted(directory, 1, b"d")], force=True)
    while restore.step():
        assert clone.problems() == []
    assert clone.problems() == []
    assert clone.lookup(1, b"d").ino != directory
    for ino in (directory, file):
        with pytest.raises(Stale):
            clone.inode(ino)
    assert clone.view("mine").read(file, 0, 9001) == b"f" * 9000
