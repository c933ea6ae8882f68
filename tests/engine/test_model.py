"""The engine against the plain model: any operations in any order, crashes and restarts included.

One seed replays a run; a failing run is shrunk and printed.  The slow tier, `TZFS_SLOW=1 pytest
tests/engine/test_model.py`, runs for `TZFS_MODEL_S` seconds (600) from `TZFS_MODEL_SEED` on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.engine.batches import small_batches
from tests.engine.world import DiskStores, fails, generate, run, shrink


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)


def search(first: int, seconds: float, most: int) -> int:
    until, seed = time.monotonic() + seconds, first
    while time.monotonic() < until and seed < first + most:
        steps = generate(seed)
        if reason := fails(steps):
            small = shrink(steps)
            lines = "\n".join(f"    {step}," for step in small)
            pytest.fail(f"seed {seed}: {reason}\nshrunk to {len(small)} steps: {fails(small)}\n{lines}")
        seed += 1
    return seed - first


def test_any_history_agrees_with_the_plain_model() -> None:
    assert search(first=0, seconds=20, most=150) >= 10


@pytest.mark.parametrize("seed", range(4))
def test_any_history_agrees_on_disk(tmp_path: Path, seed: int) -> None:
    run(generate(10_000 + seed), DiskStores(tmp_path), every=5)


@pytest.mark.slow
@pytest.mark.skipif("TZFS_SLOW" not in os.environ, reason="the slow tier: TZFS_SLOW=1")
@pytest.mark.timeout(100_000)
def test_many_histories_agree_with_the_plain_model() -> None:
    first = int(os.environ.get("TZFS_MODEL_SEED", "1000"))
    done = search(first, float(os.environ.get("TZFS_MODEL_S", "600")), 10**9)
    print(f"{done} histories from seed {first}")
