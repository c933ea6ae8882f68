"""Clones against plain full copies: any operations in a clone, in its origin meanwhile, in clones of clones.

One seed replays a run.  A chain is made of worlds as in `test_model`: each a clone of a snapshot of the one before it,
with the same operations, crashes and restarts, snapshots, rollbacks and flattening; all of them are compared with
copies that know nothing of each other.
"""

from __future__ import annotations

import copy
import os
import random
import time

import pytest

from tests.engine.plain import Plain
from tests.engine.test_model import GUID, MemoryStores, Step, World
from tests.engine.test_rollback import WEIGHTS, TimeWorld
from tzfs import limits
from tzfs.engine.beginning import format_clone
from tzfs.engine.cloning import kinds_of
from tzfs.engine.committed import read_superblock
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.inherited import Above, Ancestry
from tzfs.format.superblock import Origin
from tzfs.store.interface import MetaStore
from tzfs.store.memory import MemoryMeta, MemoryPayload, MemoryRedo


class CloneStores(MemoryStores):
    """The stores of a clone of the snapshot `name` of `origin`."""

    def __init__(self, origin: World, name: str) -> None:
        self.meta, self.payload = MemoryMeta(), MemoryPayload()
        self.redo = MemoryRedo(room=4)
        self._origin = origin
        record = origin.engine.snapshots()[name]
        origin.engine.commit()
        self.link = Origin(
            GUID.hex(), 1, record.guid.hex(), record.epoch,
            origin.engine.counters.next_ino, origin.engine.counters.next_data,
        )  # fmt: skip
        format_clone(self.meta, guid=GUID, now_ns=1, origin=self.link, kinds=kinds_of(record))

    def ancestry(self) -> Ancestry:
        stores = self._origin.stores
        above = stores.ancestry() if isinstance(stores, CloneStores) and cloned(stores.meta) else None
        return Ancestry(Above(stores.meta, stores.payload, self.link, above))


class CloneWorld(TimeWorld):
    def __init__(self, stores: CloneStores, nodes: Plain) -> None:
        super().__init__(stores)
        self.model = nodes
        self.committed = nodes.copy()

    def _open(self) -> Engine:
        assert isinstance(self.stores, CloneStores)
        meta, payload, redo = self.stores.stores()
        settings = Settings(chunk_shift=12, dirty_rows_max=10_000)
        ancestry = self.stores.ancestry() if cloned(meta) else None
        engine = Engine(meta, payload, redo=redo, settings=settings, clock=self._clock, ancestry=ancestry)
        engine.referenced = lambda ino: ino in self.model.open
        self.commits = engine.commits
        return engine

    def do_flatten(self, a: int, b: int, c: int, d: int) -> None:
        self._let_jobs_end()
        self.engine.flattening.begin()
        for _ in range(b % 9):
            self.engine.flattening.step()


def cloned(meta: MetaStore) -> bool:
    """Whether what is committed names an origin."""
    txn = meta.begin_read()
    try:
        return read_superblock(txn).origin is not None
    finally:
        txn.close()


def clone_of(world: World, name: str) -> CloneWorld:
    model = Plain()
    model.nodes = copy.deepcopy(world.model.snapshots[name])
    return CloneWorld(CloneStores(world, name), model)


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
    monkeypatch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 2)
    monkeypatch.setattr(limits, "RECLAIM_BATCH_CHUNKS", 3)
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 4)
    monkeypatch.setattr(limits, "FLATTEN_BATCH_KEYS", 5)


def search(first: int, seconds: float, most: int) -> int:
    until, seed = time.monotonic() + seconds, first
    while time.monotonic() < until and seed < first + most:
        try:
            run(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        seed += 1
    return seed - first


def test_any_chain_of_clones_agrees_with_plain_copies() -> None:
    assert search(0, seconds=20, most=100) >= 10


@pytest.mark.slow
@pytest.mark.skipif("TZFS_SLOW" not in os.environ, reason="the slow tier: TZFS_SLOW=1")
@pytest.mark.timeout(100_000)
def test_many_chains_of_clones_agree_with_plain_copies() -> None:
    first = int(os.environ.get("TZFS_MODEL_SEED", "1000"))
    done = search(first, float(os.environ.get("TZFS_MODEL_S", "600")), 10**9)
    print(f"{done} chains from seed {first}")
