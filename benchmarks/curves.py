"""What time travel costs by size: snapshot, diff, rollback, clone and destroy, and look-ups among many snapshots.

Everything is timed in the engine (the public API in this process, nothing mounted), with nothing dirty, and the figure
is the median.  `CHANGES` files, each in a folder of its own, differ between the snapshot and the head; a destroy is
timed to the last row it frees.  Look-ups and listings are of a filesystem just opened, so that none is in memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from benchmarks.report import number, table
from benchmarks.snapshots import FILES_IN_DIRECTORY

if TYPE_CHECKING:
    import tzfs

CHANGES: Final = 10
SIZES: Final = (1000, 10_000, 100_000, 1_000_000)
REPEATS: Final = 7
LOOKED_UP: Final = 1000
DEPTHS: Final = (1, 2, 4, 8)
VERBS: Final = ("snapshot", "diff", "rollback", "clone", "destroy")

Tell = Callable[[str], None]


class Curve(TypedDict):
    """Medians, in ms, of each of `VERBS` at one size."""

    files: int
    ms: dict[str, float]


class LookUps(TypedDict):
    """Medians, in us for each entry, of a folder of `LOOKED_UP` files."""

    among: str
    look_up_us: float
    listing_us: float


def timed_ms(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


def fill(fs: tzfs.FileSystem, *, first: int, files: int) -> None:
    for each in range(first, files):
        where = f"/{each // FILES_IN_DIRECTORY}"
        if each % FILES_IN_DIRECTORY == 0:
            fs.mkdir(where)
        fs.write_bytes(f"{where}/{each}", b"%d" % each)


def change(fs: tzfs.FileSystem, files: int, *, to: bytes) -> None:
    for each in range(0, files, files // CHANGES):
        fs.write_bytes(f"/{each // FILES_IN_DIRECTORY}/{each}", to)
    fs.sync()


# -- by size -----------------------------------------------------------------------------------------------------------


def measure_curves(folder: Path, *, sizes: tuple[int, ...], tell: Tell) -> list[Curve]:
    """Fills one filesystem to each of `sizes` in turn, and times every verb there."""
    import tzfs

    curves: list[Curve] = []
    filled = 0
    with tzfs.open_store(folder) as store:
        store.create("ws")
        for files in sizes:
            tell(f"time travel at {files:,} files")
            with store.open("ws") as fs:
                fill(fs, first=filled, files=files)
                filled = files
                times: dict[str, list[float]] = {verb: [] for verb in VERBS}
                for repeat in range(REPEATS):
                    name = f"at-{files}-{repeat}"
                    fs.sync()
                    times["snapshot"].append(timed_ms(partial(fs.snapshot, name)))
                    change(fs, files, to=b"changed %d" % repeat)
                    times["diff"].append(timed_ms(partial(compare, fs, name)))
                    times["rollback"].append(timed_ms(partial(fs.rollback, name, safety=False)))
                    fs.collect()
                    change(fs, files, to=b"differs %d" % repeat)
                    fs.snapshot(f"{name}-later")
                    times["destroy"].append(timed_ms(partial(destroy, fs, name)))
            for repeat in range(REPEATS):
                origin, name = f"ws@at-{files}-0-later", f"clone-{files}-{repeat}"
                times["clone"].append(timed_ms(partial(store.clone, origin, name)))
            curves.append(Curve(files=files, ms={verb: statistics.median(taken) for verb, taken in times.items()}))
    return curves


def compare(fs: tzfs.FileSystem, name: str) -> None:
    for _ in fs.diff(name):
        pass


def destroy(fs: tzfs.FileSystem, name: str) -> None:
    fs._engine.destroy([name])
    fs.collect()


# -- among many --------------------------------------------------------------------------------------------------------


def measure_look_ups(folder: Path, *, many: int, churned: int, tell: Tell) -> list[LookUps]:
    """Look-ups in the head alone, with `many` snapshots and clones, after `churned` creations and deletions, and in
    clones of clones."""
    import tzfs

    found: list[LookUps] = []
    with tzfs.open_store(folder) as store:
        store.create("ws")
        with store.open("ws") as fs:
            fs.mkdir("/d")
            for each in range(LOOKED_UP):
                fs.write_bytes(f"/d/{each:04}", b"%d" % each)
        found.append(look_ups(store, "ws", "nothing else"))
        tell(f"{many:,} snapshots")
        with store.open("ws") as fs:
            for each in range(many):
                fs.write_bytes("/changing", b"%d" % each)
                fs.snapshot(f"s{each}")
        found.append(look_ups(store, "ws", f"{many:,} snapshots"))
        tell(f"{many:,} clones")
        for each in range(many):
            store.clone("ws@s0", f"clones/c{each}")
        found.append(look_ups(store, "ws", f"as many, and {many:,} clones"))
        tell(f"{churned:,} creations and deletions over snapshots that go")
        with store.open("ws") as fs:
            churn(fs, churned)
        found.append(look_ups(store, "ws", f"and after {churned:,} creations and deletions"))
        origin = "ws@s0"
        for depth in range(1, max(DEPTHS) + 1):
            store.clone(origin, f"deep{depth}")
            if depth in DEPTHS:
                found.append(look_ups(store, f"deep{depth}", f"a clone of depth {depth}"))
            store.snapshot(f"deep{depth}@s")
            origin = f"deep{depth}@s"
    return found


def churn(fs: tzfs.FileSystem, churned: int) -> None:
    """Files come and go in the folder that is looked at, each seen by a snapshot that goes after the next is made."""
    each_time = LOOKED_UP
    for first in range(0, churned, each_time):
        names = [f"/d/{number:04}-{first}" for number in range(each_time)]
        for name in names:
            fs.write_bytes(name, b"soon gone")
        fs.snapshot(f"churn{first}")
        for name in names:
            fs.unlink(name)
        if first:
            destroy(fs, f"churn{first - each_time}")
    fs.collect()


def look_up_all(fs: tzfs.FileSystem, names: list[bytes]) -> None:
    engine = fs._engine
    directory = engine.lookup(1, b"d").ino
    for name in names:
        engine.lookup(directory, name)


def list_all(fs: tzfs.FileSystem) -> None:
    for _ in fs.scandir("/d"):
        pass


def look_ups(store: tzfs.Store, name: str, among: str) -> LookUps:
    names = [b"%04d" % each for each in range(LOOKED_UP)]
    singly, listed = [], []
    for _ in range(REPEATS):
        with store.open(name) as fs:
            singly.append(timed_ms(partial(look_up_all, fs, names)))
        with store.open(name) as fs:
            listed.append(timed_ms(partial(list_all, fs)))
    per_entry = 1e3 / LOOKED_UP
    return LookUps(
        among=among,
        look_up_us=statistics.median(singly) * per_entry,
        listing_us=statistics.median(listed) * per_entry,
    )


# -- what is printed ---------------------------------------------------------------------------------------------------


def render(curves: list[Curve], look_up: list[LookUps]) -> str:
    lines = [[f"{at['files']:,} files", *(number(at["ms"][verb]) for verb in VERBS)] for at in curves]
    ratios = [f"{curves[-1]['ms'][verb] / curves[0]['ms'][verb]:.2f}x" for verb in VERBS]
    lines.append(["ratio of times, last to first", *ratios])
    head = ["", *(f"{verb} ms" for verb in VERBS)]
    crowd = [[at["among"], number(at["look_up_us"]), number(at["listing_us"])] for at in look_up]
    return (
        f"time travel over {CHANGES} changed files, medians (time, lower is better)\n\n"
        + table(head, lines)
        + "\n\nlook-ups and listings of a folder just opened, us an entry, medians (time, lower is better)\n\n"
        + table(["with", "look-up us", "listing us"], crowd)
    )
