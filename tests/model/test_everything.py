"""A rule machine on the real engine, on LMDB and segments: every operation there is, in any order, crashes and restarts
included, in a filesystem and its clones, against a model that keeps a full copy for each snapshot.

After each step every snapshot, the head and the counters are compared, and every few steps the figures of the
accounting with a recount, diffs and versions of files with the copies, and everything in the tables by `problems`.
There are `TZFS_MODEL_RUNS` runs of `TZFS_MODEL_STEPS` steps; `TZFS_MODEL_SEED` makes other ones.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests import tiers
from tests.engine.batches import small_batches
from tests.model import family
from tests.model.family import Family
from tests.model.world import WEIGHTS
from tzfs.engine import moving

NUMBERS: Final = st.integers(0, 63)
KINDS: Final = {**WEIGHTS, **family.KINDS}
RULES_OF_WEIGHT: Final = 4  # a step of so much weight is a rule; of more, several
Rule = Callable[..., None]


class Machine(RuleBasedStateMachine):
    """A filesystem and its clones; the rules below are their steps."""

    every = 1  # steps between two comparisons
    done: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tzfs-model-"))
        self.family = Family(self.folder)
        self.steps = 0

    def step(self, kind: str, which: int, a: int, b: int, c: int, d: int) -> None:
        self.family.apply(which, (kind, a, b, c, d))
        self.done[kind] += 1
        self.steps += 1

    @rule(a=NUMBERS, b=NUMBERS)
    def figures_and_travels(self, a: int, b: int) -> None:
        for world in self.family:
            world.figures()
            world.travels(a, b)

    @invariant()
    def everything_agrees(self) -> None:
        if self.steps % self.every == 0:
            for world in self.family:
                world.check(1 + self.steps % 5)

    def teardown(self) -> None:
        try:
            for world in self.family:
                world.check(3)
                world.figures()
                world.travels(self.steps, self.steps // 64)
        finally:
            self.family.close()
            shutil.rmtree(self.folder)


def _rule(kind: str) -> Rule:
    def step(self: Machine, which: int, a: int, b: int, c: int, d: int) -> None:
        self.step(kind, which, a, b, c, d)

    step.__name__ = step.__qualname__ = kind
    return rule(which=st.integers(0, 3), a=NUMBERS, b=NUMBERS, c=NUMBERS, d=NUMBERS)(step)


for kind, weight in KINDS.items():
    for number in range(-(-weight // RULES_OF_WEIGHT)):
        setattr(Machine, f"{kind}_{number}", _rule(kind))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr(moving, "SCAN_ROWS", 5)
    monkeypatch.setattr(moving, "PREFIXES_MAX", 2)
    monkeypatch.setattr(moving, "COPY_BYTES_MAX", 30_000)


def run(*, first: int, runs: int, steps: int, every: int) -> Counter[str]:
    """How often each step was made."""
    done: Counter[str] = Counter()
    machine = type("Machine", (Machine,), {"every": every, "done": done})
    run_state_machine_as_test(
        seed(first)(machine),
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return done


@tiers.patient
def test_whatever_is_done_all_agrees_with_the_plain_model() -> None:
    done = run(
        first=tiers.number("MODEL_SEED", short=0, long=1),
        runs=tiers.number("MODEL_RUNS", short=12, long=60),
        steps=tiers.number("MODEL_STEPS", short=60, long=150),
        every=5 if tiers.SLOW else 1,
    )
    print(f"{done.total()} steps: {dict(sorted(done.items()))}")
    assert done.total() > 200
    assert done.keys() == KINDS.keys() or done.total() < 2000
