"""Creates on a mount while a destroyed snapshot is freed: how long each takes, beside those without, in the same run.

A filesystem is filled, a snapshot taken, everything removed, the snapshot destroyed; what it alone had is then freed in
the background, and given back to the disk.  Meanwhile another process creates files as fast as it goes.  Freeing is
held up and let go on by turns (`gc_interval`), so that whatever else the machine does falls on both alike, and so does
being asked how far it is.

    small files    of 64 KiB: four rows of the deadlist each
    large files    of 64 MiB: two rows for each 128 KiB

The contents are noise, which no codec makes smaller.
"""

from __future__ import annotations

import array
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypedDict, cast

from benchmarks.peers import ROOT, Tzfs
from benchmarks.report import number, table
from benchmarks.snapshots import Control, socket_of

KINDS: Final = {"small files": 64 << 10, "large files": 64 << 20}
POLL_S: Final = 0.02  # until it begins
ASK_S: Final = 0.25  # between two questions in a window: an answer takes the loop as long as several creates
FOLDER: Final = 1000  # files in one


class Creates(TypedDict):
    """Of one kind of contents; times in us but for the seconds that freeing took."""

    kind: str
    freed_mib: float
    freeing_s: float
    without: dict[str, float]
    during: dict[str, float]
    ratio_p99: float


# -- who creates, in a process of its own ----------------------------------------------------------------------------


def create(directory: Path, found: Path) -> None:
    """Creates files and removes them, until standard input is closed; (when, how long) of each create into a file."""
    times = array.array("d")
    while not select.select([sys.stdin], [], [], 0)[0]:
        for turn in range(200):
            path = directory / f"{turn}"
            began = time.monotonic()
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            times.extend((began, time.monotonic() - began))
        for turn in range(200):
            (directory / f"{turn}").unlink()
    found.write_bytes(times.tobytes())


@contextmanager
def creating(directory: Path, found: Path) -> Iterator[None]:
    directory.mkdir()
    command = [sys.executable, "-m", "benchmarks.destroying", os.fspath(directory), os.fspath(found)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.communicate()


# -- measuring -------------------------------------------------------------------------------------------------------


def fill(directory: Path, *, size: int, mib: int) -> None:
    noise = random.Random(size)
    for number_ in range((mib << 20) // size):
        folder = directory / f"{number_ // FOLDER}"
        if number_ % FOLDER == 0:
            folder.mkdir()
        with open(folder / f"{number_}", "wb", buffering=0) as file:
            for at in range(0, size, 1 << 20):
                file.write(noise.randbytes(min(size - at, 1 << 20)))


class Freeing:
    """What a mount still has to free of destroyed snapshots, and how that is held up."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._punched_before = self._figure("gc", "punched_bytes")

    def _figure(self, *path: str) -> int:
        found = self._control.call("stats")
        for name in path:
            found = cast("dict[str, object]", found)[name]
        return int(str(found))

    def let(self, on: bool) -> None:
        self._control.call("property.set", name="gc_interval", value="1h" if on else "0")

    def left(self) -> int:
        return int(str(cast("dict[str, object]", self._control.call("info"))["freeing"]))

    def punched(self) -> int:
        """Bytes given back to the disk since it was made."""
        return self._figure("gc", "punched_bytes") - self._punched_before

    def windows(self, *, seconds: float, to_give: int) -> Iterator[tuple[bool, float, float]]:
        """(whether it was freeing, from when, to when), by turns, until `to_give` bytes are given back."""
        while not self.over(to_give):
            yield False, *self._window(seconds, to_give)
            before = self.left(), self.punched()
            self.let(True)
            while (self.left(), self.punched()) == before and not self.over(to_give):
                time.sleep(POLL_S)  # it begins with the next commit
            yield True, *self._window(seconds, to_give)
            self.let(False)

    def _window(self, seconds: float, to_give: int) -> tuple[float, float]:
        """From when to when it was: so long, unless all is over before."""
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds and not self.over(to_give):
            time.sleep(ASK_S)
        return began, now

    def over(self, to_give: int) -> bool:
        """Whether nothing is left, and as many bytes are given back."""
        return self.left() == 0 and self.punched() >= to_give


def measure_one(folder: Path, kind: str, *, mib: int, seconds: float, tell: Callable[[str], None]) -> Creates:
    target = Tzfs("tzfs")
    folder.mkdir()
    directory = target.start(folder)
    try:
        assert target.store is not None
        control = Control(socket_of(target.store))
        tell(f"destroying: {mib} MiB in {kind}")
        fill(directory, size=KINDS[kind], mib=mib)
        control.call("snapshot.create", name="all")
        for entry in directory.iterdir():
            shutil.rmtree(entry)
        control.call("gc")
        freeing = Freeing(control)
        freeing.let(False)
        target.tzfs("destroy", "ws@all")
        left = freeing.left()
        tell(f"destroying: {left >> 20} MiB to be freed")
        with creating(directory / "new", folder / "times"):
            time.sleep(seconds)
            windows = list(freeing.windows(seconds=seconds, to_give=mib << 20))
        control.close()
    finally:
        target.stop()
    return summary(kind, left, windows, array.array("d", (folder / "times").read_bytes()))


def summary(kind: str, left: int, windows: list[tuple[bool, float, float]], times: array.array[float]) -> Creates:
    found: dict[bool, list[float]] = {False: [], True: []}
    for began, took in zip(times[::2], times[1::2], strict=True):
        for on, first, last in windows:
            if first <= began < last:
                found[on].append(took * 1e6)
    without, during = (figures(sorted(found[on])) for on in (False, True))
    return Creates(
        kind=kind,
        freed_mib=left / (1 << 20),
        freeing_s=sum(last - first for on, first, last in windows if on),
        without=without,
        during=during,
        ratio_p99=during["p99"] / without["p99"],
    )


def figures(times: list[float]) -> dict[str, float]:
    return {
        "count": len(times),
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "p99.9": times[len(times) * 999 // 1000],
        "max": times[-1],
    }


def measure(folder: Path, *, mib: int, seconds: float, tell: Callable[[str], None]) -> list[Creates]:
    """Each kind of contents, in a filesystem of its own."""
    folder.mkdir()
    return [measure_one(folder / str(n), kind, mib=mib, seconds=seconds, tell=tell) for n, kind in enumerate(KINDS)]


def render(found: list[Creates]) -> str:
    heads = ["", "creates", "p50 us", "p99 us", "p99.9 us", "max ms", "p99 to p99 without"]
    lines = []
    for one in found:
        for name, at in (("without", one["without"]), ("during the destroy", one["during"])):
            lines.append(
                [
                    f"{one['kind']}, {name}",
                    f"{at['count']:,}",
                    *(number(at[key]) for key in ("p50", "p99", "p99.9")),
                    number(at["max"] / 1e3),
                    number(one["ratio_p99"]) if at is one["during"] else "",
                ]
            )
    freed = "; ".join(f"{one['kind']}: {one['freed_mib']:.0f} MiB freed in {one['freeing_s']:.1f} s" for one in found)
    title = "creates on a mount while a destroyed snapshot is freed (time, lower is better)"
    return f"{title}\n\n{table(heads, lines)}\n\n{freed}"


if __name__ == "__main__":
    create(Path(sys.argv[1]), Path(sys.argv[2]))
