"""Any history with everything in it: quotas and settings that change, and the redo log's groups among them.  A crash
finds what had been done when it was last hardened, or later, whole and to the last time stamp; also where the openings
after it die.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.workload import OFTEN, state_of
from tests.engine.batches import small_batches
from tests.engine.plain import Plain
from tests.engine.test_redo import everything
from tests.engine.world import WEIGHTS, DiskStores, MemoryStores, Step
from tests.model.bringing import BRINGING_WEIGHTS
from tests.model.world import Everything
from tzfs import errors, failpoints, limits
from tzfs.engine.engine import Engine, Settings

OURS = {"harden": 40, "crash": 12, "dying": 8, "limit": 5, "recordsize": 3, "remember": 4}
LOGGED = {
    "create": 12, "mkdir": 6, "symlink": 3, "link": 6, "unlink": 10, "rmdir": 4, "rename": 10, "write": 20,
    "truncate": 8, "chmod": 2, "chown": 2, "setxattr": 5, "removexattr": 3, "open": 6, "forget": 5, "absorb": 4,
    "flush": 4, "background": 4, "harden": 12, "crash": 2, "remember": 1,
}  # fmt: skip
MOST = {what: weight for what, weight in {**WEIGHTS, **OFTEN, **OURS}.items() if what not in BRINGING_WEIGHTS}
DYING = ("open.generation", "open.trim", "redo.replay", "commit.begin", "commit.publish", "commit.rows", "commit.done")
COMMITTING = ("harden", "commit", "restart", "crash", "dying")


class Hardened(Everything):
    """`states` are those since it was last durable, that one first, each with the model as it was."""

    def __init__(self, stores: MemoryStores | DiskStores) -> None:
        self.settings = Settings(chunk_shift=12, dirty_rows_max=10_000)
        self.redone = self.refused = self.died = 0
        super().__init__(stores)
        self.states = [(self._whole(), self.model.copy())]

    def _open(self) -> Engine:
        meta, payload, redo = self.stores.stores()
        engine = Engine(meta, payload, redo=redo, settings=replace(self.settings), clock=self._clock)
        engine.referenced = lambda ino: ino in self.model.open
        self.commits = engine.commits
        self.redone += engine.redone
        return engine

    def _whole(self) -> tuple[object, object]:
        tree = {
            path: (replace(found[0], chunk_shift=0), *found[1:])  # which is only how it is stored
            for path, found in everything(self.engine).items()
        }
        return tree, state_of(self.engine)

    def _both(self, real: Callable[[], object], plain: Callable[[], None]) -> object:
        """A quota is none of the model's business."""

        def refused_or_not() -> object:
            try:
                return real()
            except errors.QuotaExceeded:
                self.refused += 1
                raise _Refused from None

        try:
            return super()._both(refused_or_not, plain)
        except _Refused:
            return None

    def apply(self, step: Step) -> None:
        super().apply(step)
        if step[0] in COMMITTING or not self.engine.dirty:
            self.states.clear()
        self._note()

    def _note(self) -> None:
        self.states.append((self._whole(), self.model.copy()))

    def do_harden(self, a: int, b: int, c: int, d: int) -> None:
        self.engine.harden()

    def do_limit(self, a: int, b: int, c: int, d: int) -> None:
        """Quotas that little more fits into, or none."""
        used = self.engine.counters.bytes
        quota, refquota, inodes = (a % 3 == n and 1 for n in range(3))
        self.settings.quota_bytes = quota * (4 * used + 20_000)
        self.settings.refquota_bytes = refquota * (used + 20_000)
        self.settings.inodes_max = inodes * (self.engine.counters.inodes + 3)
        self.engine.configure(replace(self.settings))

    def do_recordsize(self, a: int, b: int, c: int, d: int) -> None:
        self.settings.chunk_shift = 12 + a % 6
        if b % 2:  # else from the next opening on
            self.engine.configure(replace(self.settings))

    def do_remember(self, a: int, b: int, c: int, d: int) -> None:
        self.engine.task_rows.put("gc", {"last_ns": a})

    def do_dying(self, a: int, b: int, c: int, d: int) -> None:
        self._crash([DYING[n % len(DYING)] for n in (a, b, c)[: 1 + d % 3]])

    def do_crash(self, a: int, b: int, c: int, d: int) -> None:
        self._crash([])

    def _crash(self, deaths: list[str]) -> None:
        self._note()
        self.moving = None
        self.engine.abandon()
        self.stores.crash()
        for death in deaths:
            failpoints.arm(death, "error:EIO")
            try:
                self._open().abandon()
            except (errors.TzfsError, OSError):
                self.died += 1
            finally:
                failpoints.disarm_all()
            self.stores.crash()
        self.engine = self._open()
        self._reopened(self._whole())

    def _reopened(self, found: tuple[object, object]) -> None:
        models: list[Plain] = [model for state, model in self.states if state == found]
        assert models, f"none of the {len(self.states)} states since it was last durable"
        self.model = models[-1]
        self.model.restarted()
        while self.engine.background_step():
            self.engine.commit()
        assert self.engine.problems() == []
        self.commits = self.engine.commits
        self.committed = self.model.copy()


class _Refused(Exception):
    """A quota has refused something."""


def generate(seed: int) -> list[Step]:
    """Now everything, now only what leaves it to the log to be durable."""
    r = random.Random(seed)
    steps: list[Step] = []
    for phase in range(8):
        weights = LOGGED if phase % 2 else MOST
        kinds = r.choices(list(weights), [w * r.choice((0.3, 1, 1, 3)) for w in weights.values()], k=r.randint(5, 40))
        if phase % 2:
            kinds += ["harden", r.choice(("crash", "dying"))]
        steps += [(kind, r.randrange(64), r.randrange(64), r.randrange(64), r.randrange(64)) for kind in kinds]
    return steps


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr(limits, "ABSORB_ROWS", 40)
    monkeypatch.setattr(limits, "REDO_OPERATIONS_MAX", 20)


def run(seed: int, stores: MemoryStores | DiskStores) -> Hardened:
    world = Hardened(stores)
    try:
        for number, step in enumerate(generate(seed)):
            try:
                if step[0] != "compact" or isinstance(stores, DiskStores):
                    world.apply(step)
            except BaseException as error:
                error.add_note(f"seed {seed}, step {number}: {step}")
                raise
        world.check(3)
        world.do_crash(0, 0, 0, 0)
        world.check(3)
        world.engine.close()
    finally:
        failpoints.disarm_all()
        stores.close()
    return world


def test_a_crash_finds_all_that_was_hardened_after_any_history() -> None:
    worlds = [run(seed, MemoryStores()) for seed in range(30)]
    assert sum(world.redone for world in worlds) > 100
    assert sum(world.refused for world in worlds) > 10
    assert sum(world.died for world in worlds) > 20


@pytest.mark.parametrize("seed", range(1000, 1006))
def test_a_crash_finds_all_that_was_hardened_on_disk(tmp_path: Path, seed: int) -> None:
    run(seed, DiskStores(tmp_path))
