"""The engine against the plain model: any operations in any order, crashes and restarts included.

One seed replays a run; a failing run is shrunk and printed.  `TZFS_MODEL_S` says for how many seconds runs are made,
`TZFS_MODEL_SEED` from which on.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests import tiers
from tests.engine.batches import small_batches
from tests.engine.world import DiskStores, fails, generate, run, shrink

LEAST = 10  # runs, however slow the machine is


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)


def search(first: int, seconds: float, most: int) -> int:
    until, seed = time.monotonic() + seconds, first
    while seed < first + LEAST or (time.monotonic() < until and seed < first + most):
        steps = generate(seed)
        if reason := fails(steps):
            small = shrink(steps)
            lines = "\n".join(f"    {step}," for step in small)
            pytest.fail(f"seed {seed}: {reason}\nshrunk to {len(small)} steps: {fails(small)}\n{lines}")
        seed += 1
    return seed - first


@tiers.patient
def test_any_history_agrees_with_the_plain_model() -> None:
    first = tiers.number("MODEL_SEED", short=0, long=1000)
    done = search(first, seconds=tiers.number("MODEL_S", short=20, long=600), most=10**9 if tiers.SLOW else 150)
    print(f"{done} histories from seed {first}")


@pytest.mark.parametrize("seed", range(4))
def test_any_history_agrees_on_disk(tmp_path: Path, seed: int) -> None:
    run(generate(10_000 + seed), DiskStores(tmp_path), every=5)
