"""What time travel costs by size: snapshot, diff, rollback, clone and destroy, and look-ups among many snapshots.

Everything is timed in the engine (the public API in this process, nothing mounted), with nothing dirty.  `CHANGES`
files, each in a folder of its own, differ between the snapshot and the head; a destroy is timed to the last row it
frees.  Times are there twice: the median of those that the clock says, which has the waits for the disk, and the least
processor time, which a busy machine adds little to.  Look-ups and listings are given by the latter: *cold* in a
filesystem just opened, where no inode is in memory, *warm* when all are.

Ratios are to a small filesystem, with nothing else about it, that does the same by turns with the one in question:
how fast the machine is changes within minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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
FREED: Final = (10, 100, 1000, 10_000)  # files of which a destroyed snapshot alone has a version
FIGURES: Final = ("look_up", "look_up_warm", "listing", "listing_warm")
VERBS: Final = ("snapshot", "diff", "rollback", "clone", "destroy")

Tell = Callable[[str], None]
Times = dict[str, list[tuple[float, float]]]  # by verb; see `timed`


class Taken(TypedDict):
    """What something takes: the median by the clock, and the least of the processor's time."""

    ms: float
    cpu_ms: float


class Curve(TypedDict):
    """What each of `VERBS` takes at one size, and in a filesystem of the first size beside it."""

    files: int
    taken: dict[str, Taken]
    beside: dict[str, Taken]


class Freed(TypedDict):
    """What destroying a snapshot takes that alone has a version of so many files."""

    files: int
    taken: Taken


class LookUps(TypedDict):
    """Processor time in us for each entry of a folder of `LOOKED_UP` files, by `FIGURES`, the least of all repetitions.

    `beside`: in a filesystem with nothing else about it.
    """

    among: str
    us: dict[str, float]
    beside: dict[str, float]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(ms by the clock, ms of this process on a processor)"""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - begun) * 1e3, (time.process_time() - used) * 1e3


def taken(times: Sequence[tuple[float, float]]) -> Taken:
    return Taken(ms=statistics.median(ms for ms, _ in times), cpu_ms=min(cpu for _, cpu in times))


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


def measure_curves(folder: Path, *, sizes: tuple[int, ...], tell: Tell) -> tuple[list[Curve], list[Freed]]:
    """Fills one filesystem to each of `sizes` in turn, and times every verb there; and destroys of all sizes in it."""
    import tzfs

    curves: list[Curve] = []
    freed: list[Freed] = []
    filled = 0
    with tzfs.open_store(folder) as store:
        for name in ("small", "ws"):
            store.create(name)
        with store.open("small") as small:
            fill(small, first=0, files=sizes[0])
        for files in sizes:
            tell(f"time travel at {files:,} files")
            with store.open("small") as small, store.open("ws") as fs:
                fill(fs, first=filled, files=files)
                filled = files
                times: dict[str, Times] = {name: {verb: [] for verb in VERBS} for name in ("small", "ws")}
                for repeat in range(REPEATS):
                    time_verbs(small, times["small"], sizes[0], f"at-{files}-{repeat}")
                    time_verbs(fs, times["ws"], files, f"at-{files}-{repeat}")
                if files == sizes[-1]:
                    freed = [measure_destroy(fs, each) for each in FREED if each <= files]
            for repeat in range(REPEATS):
                for name, of in times.items():
                    origin, clone = f"{name}@at-{files}-0-later", f"{name}-clone-{files}-{repeat}"
                    of["clone"].append(timed(partial(store.clone, origin, clone)))
            took = {name: {verb: taken(each) for verb, each in of.items()} for name, of in times.items()}
            curves.append(Curve(files=files, taken=took["ws"], beside=took["small"]))
    return curves, freed


def time_verbs(fs: tzfs.FileSystem, times: Times, files: int, name: str) -> None:
    """Once each of `VERBS` but a clone, in a filesystem of so many files; `name` is free for a snapshot."""
    fs.sync()
    times["snapshot"].append(timed(partial(fs.snapshot, name)))
    change(fs, files, to=b"changed " + name.encode())
    times["diff"].append(timed(partial(compare, fs, name)))
    times["rollback"].append(timed(partial(fs.rollback, name, safety=False)))
    settle(fs)
    change(fs, files, to=b"differs " + name.encode())
    fs.snapshot(f"{name}-later")
    times["destroy"].append(timed(partial(destroy, fs, name)))


def measure_destroy(fs: tzfs.FileSystem, files: int) -> Freed:
    """Destroys snapshots that alone have a version of each of `files` files."""
    times = []
    for repeat in range(3):
        for name in ("freed", "kept"):
            for each in range(files):
                fs.write_bytes(f"/{each // FILES_IN_DIRECTORY}/{each}", f"{name} {repeat}".encode())
            fs.snapshot(f"{name}-{files}-{repeat}")
        times.append(timed(partial(destroy, fs, f"freed-{files}-{repeat}")))
    return Freed(files=files, taken=taken(times))


def compare(fs: tzfs.FileSystem, name: str) -> None:
    for _ in fs.diff(name):
        pass


def destroy(fs: tzfs.FileSystem, name: str) -> None:
    fs.destroy_snapshots(name)
    settle(fs)


def settle(fs: tzfs.FileSystem) -> None:
    """What is to be freed is freed; unlike `collect` it does not look for segments to be emptied, or smaller tables."""
    while fs._engine.background_step():
        pass
    fs.sync()


# -- among many --------------------------------------------------------------------------------------------------------


def measure_look_ups(folder: Path, *, many: int, churned: int, tell: Tell) -> list[LookUps]:
    """Look-ups in the head alone, with `many` snapshots and clones, after `churned` creations and deletions, and in
    clones of clones."""
    import tzfs

    found: list[LookUps] = []
    with tzfs.open_store(folder) as store:
        for name in ("alone", "ws"):
            store.create(name)
            with store.open(name) as fs:
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
    destroy(fs, f"churn{first}")
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
    least: dict[str, dict[str, float]] = {"alone": {}, name: {}}
    for _ in range(REPEATS):
        for of, us in least.items():
            for what in ("look_up", "listing"):
                with store.open(of) as fs:
                    work = partial(look_up_all, fs, names) if what == "look_up" else partial(list_all, fs)
                    fs._engine.lookup(1, b"d")
                    for state in ("", "_warm", "_warm"):
                        per_entry = timed(work)[1] * 1e3 / LOOKED_UP
                        us[what + state] = min(us.get(what + state, per_entry), per_entry)
    return LookUps(among=among, us=least[name], beside=least["alone"])


# -- what is printed ---------------------------------------------------------------------------------------------------


def render(curves: list[Curve], freed: list[Freed], look_up: list[LookUps]) -> str:
    sections = []
    for title, of in (("medians by the clock", clock), ("least processor time", processor)):
        lines = []
        for at in curves:
            lines.append([f"{at['files']:,} files", *(number(of(at["taken"][verb])) for verb in VERBS)])
            ratios = (of(at["taken"][verb]) / of(at["beside"][verb]) for verb in VERBS)
            lines.append([f"... to {curves[0]['files']:,} beside it", *(f"{ratio:.2f}x" for ratio in ratios)])
        head = ["", *(f"{verb} ms" for verb in VERBS)]
        sections.append(
            f"time travel over {CHANGES} changed files, {title} (time, lower is better)\n\n" + table(head, lines)
        )
    rows = [
        [
            f"{at['files']:,} files", number(at["taken"]["ms"]), number(at["taken"]["cpu_ms"]),
            number(at["taken"]["cpu_ms"] * 1e3 / at["files"]),
        ]
        for at in freed
    ]  # fmt: skip
    sections.append(
        f"destroying a snapshot in a filesystem of {curves[-1]['files']:,} files, by what it alone has of them\n\n"
        + table(["", "ms", "cpu ms", "cpu us a file"], rows)
    )
    crowd = [
        [
            entry["among"],
            *(
                word
                for figure in FIGURES
                for word in (number(entry["us"][figure]), f"{entry['us'][figure] / entry['beside'][figure]:.2f}x")
            ),
        ]
        for entry in look_up
    ]
    sections.append(
        "look-ups and listings, processor time in us an entry, and to one with nothing else beside it (time, lower is "
        "better)\n\n" + table(["with", *(word for figure in FIGURES for word in (figure, ""))], crowd)
    )
    return "\n\n".join(sections)


def clock(at: Taken) -> float:
    return at["ms"]


def processor(at: Taken) -> float:
    return at["cpu_ms"]
