"""Power cuts on a whole store: filesystems are made, cloned, received, flattened, renamed and destroyed whole or not at
all, and what is left can be used and taken away.

A failure names the seeds that make the same image again.  `TZFS_CUTS` says how many are made at least, and
`TZFS_CUTS_SEED` from which history on.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from tests import tiers
from tests.crash import store_workload
from tests.crash.powercut import Image, record, write_out
from tests.crash.test_powercut import Allows, Recorded, cut, recorder
from tzfs.errors import TzfsError
from tzfs.management import open_store

__all__ = ["recorder"]


def recorded(library: Path, where: Path, seed: int, count: int) -> Recorded:
    folder = where / "store"
    where.mkdir(parents=True)
    open_store(folder).close()
    shutil.copytree(folder, where / "before", symlinks=True)
    events = record(library, folder, where / "log", store_workload.__name__, str(seed), str(count))
    return Recorded(where / "before", folder, events)


def wrong_with(image: Image, where: Path, allows: Allows) -> str | None:
    """What is wrong with an image; None where it is as it must be."""
    shutil.rmtree(where, ignore_errors=True)
    write_out(image, where)
    try:
        with open_store(where) as store:
            found = store_workload.shown(store)
            if not allows(found):
                return f"found {found}"
            for name in found:
                if problems := store.check(name, payload=True).problems:
                    return f"{name}: {problems[0]} and {len(problems) - 1} more"
                store.collect(name)
            left = store_workload.shown(store)
            for name in found:
                if not left[name]["origin"]:
                    found[name]["origin"] = ""  # flattening has gone on
            if left != found:
                return f"collecting changed {found} to {left}"
        return _taken_away(where, len(found))
    except TzfsError as error:
        return f"{type(error).__name__}: {error}"


def _taken_away(where: Path, count: int) -> str | None:
    """Whether everything can be destroyed, clones before what they came from."""
    with open_store(where) as store:
        for _ in range(count):
            there = store.filesystems()
            origins = {origin[0].guid for origin in map(store.catalog.origin, there) if origin is not None}
            store.destroy(next(info.name for info in there if info.guid not in origins), recursive=True)
        if left := [path.name for path in (where / "fs").iterdir()]:
            return f"left over: {left}"
    return None


@tiers.patient
def test_many_power_cuts_leave_each_verb_done_or_not_done(recorder: Path, tmp_path: Path) -> None:
    seed = tiers.number("CUTS_SEED", short=100)
    left = tiers.number("CUTS", short=60, long=2000)
    made = 0
    failures: list[str] = []
    during: Counter[str] = Counter()
    while made < left and len(failures) < 20:
        place = tmp_path / str(seed)
        try:
            history = recorded(recorder, place, seed, 30)
        except AssertionError as error:  # others may go on to show something
            failures.append(str(error))
            seed += 1
            continue
        found = cut(history, place, seed=seed, images=60, during=during, wrong=wrong_with)
        failures += [f"history {seed}, {wrong}" for wrong in found]
        shutil.rmtree(place)
        made, seed = made + 60, seed + 1
        print(f"store {seed - 1}: {made} images in all, {len(failures)} failures", flush=True)
    print(f"at {dict(sorted(during.items()))}", flush=True)
    assert failures == [], "\n".join(failures)
    assert made < 2000 or set(store_workload.WEIGHTS) <= during.keys()
