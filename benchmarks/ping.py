"""How long a ping over the control socket waits while the mount is under full load.

One phase after another on one mount, each with its own writers in processes of their own:

    idle        nobody asks anything: what the socket, the pinger and the machine cost by themselves
    creating    small files, made and unlinked as fast as it goes, never synced: commits of as many rows as there may be
    syncing     small files, each synced
    streaming   large files written as fast as it goes: payload at its limit, flushed by a thread
    listing     directories of 2,000 files, with attributes
    all         all of those at once
    removing    all of those, and a file of 1 GiB is removed: chunks are reclaimed, extents punched

A ping is sent every 5 ms, or when the last one is answered.  Clients and daemon share the processors, so the *late*
column tells how late the pinger itself was woken from its pauses: what the machine adds to every figure beside it.
"""

from __future__ import annotations

import itertools
import os
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypedDict, cast

from benchmarks.peers import ROOT, Tzfs
from benchmarks.report import number, table
from benchmarks.snapshots import Control, socket_of

PAUSE_S: Final = 0.005
FIRST_S: Final = 0.5  # until the writers are at full speed
SMALL: Final = b"x" * 3000
PIECE: Final = bytes(range(256)) * 4096  # 1 MiB
PHASES: Final = {
    "idle": (),
    "creating": ("creating", "creating"),
    "syncing": ("syncing", "syncing"),
    "streaming": ("streaming",),
    "listing": ("listing",),
    "all": ("creating", "syncing", "streaming", "listing"),
    "removing": ("creating", "syncing", "streaming", "listing"),
}


class Pings(TypedDict):
    """Of one phase, in ms.  `commit_ms` is the mount's slowest commit so far."""

    phase: str
    count: int
    median_ms: float
    p99_ms: float
    max_ms: float
    late_ms: float
    commits: int
    commit_ms: float


# -- what loads the mount, in processes of their own -----------------------------------------------------------------


def creating(directory: Path) -> None:
    for turn in range(400):
        (directory / f"{turn}").write_bytes(SMALL)
    for turn in range(400):
        (directory / f"{turn}").unlink()


def syncing(directory: Path) -> None:
    with open(directory / f"{time.monotonic_ns() % 500}", "wb") as file:
        file.write(SMALL)
        file.flush()
        os.fsync(file.fileno())


def streaming(directory: Path) -> None:
    with open(directory / "large", "wb", buffering=0) as file:
        for _ in range(256):
            file.write(PIECE)


def listing(directory: Path) -> None:
    if not any(directory.iterdir()):
        for turn in range(2000):
            (directory / f"{turn}").touch()
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat()


KINDS: Final = {work.__name__: work for work in (creating, syncing, streaming, listing)}


def load(kind: str, directory: Path) -> None:
    """Does one kind of work, until standard input is closed."""
    work = KINDS[kind]
    while not select.select([sys.stdin], [], [], 0)[0]:
        work(directory)


class Load:
    """The processes of one phase; a context manager."""

    def __init__(self, base: Path, kinds: tuple[str, ...]) -> None:
        self._base, self._kinds = base, kinds
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> None:
        for place, kind in enumerate(self._kinds):
            directory = self._base / f"{kind}-{place}"
            directory.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "benchmarks.ping", kind, os.fspath(directory)]
            self._processes.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE))

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.communicate()
        self._processes.clear()


# -- measuring -------------------------------------------------------------------------------------------------------


def ping(control: Control, *, seconds: float) -> tuple[list[float], list[float]]:
    """How long each ping took, and how late each pause ended, in ms."""
    times: list[float] = []
    late: list[float] = []
    until = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < until:
        control.call("ping")
        ended = time.perf_counter()
        times.append((ended - begun) * 1e3)
        time.sleep(PAUSE_S)
        late.append((time.perf_counter() - ended - PAUSE_S) * 1e3)
    return times, late


def measure(folder: Path, *, seconds: float, removed_mib: int, tell: Callable[[str], None]) -> list[Pings]:
    """All phases, `seconds` each."""
    target = Tzfs("tzfs")
    folder.mkdir()
    directory = target.start(folder)
    out = []
    try:
        assert target.store is not None
        control = Control(socket_of(target.store))
        for phase, kinds in PHASES.items():
            tell(f"ping: {phase}")
            large = directory / "removed"
            if phase == "removing":
                with open(large, "wb", buffering=0) as file:
                    for _ in range(removed_mib):
                        file.write(PIECE)
                    os.fsync(file.fileno())
            with Load(directory, kinds):
                time.sleep(FIRST_S)
                if phase == "removing":
                    large.unlink()
                times, late = ping(control, seconds=seconds)
            out.append(summary(phase, times, late, cast("dict[str, dict[str, float]]", control.call("stats"))["txg"]))
            for entry in directory.iterdir():
                shutil.rmtree(entry)
            control.call("gc")
        control.close()
    finally:
        target.stop()
    return out


def summary(phase: str, times: list[float], late: list[float], txg: dict[str, float]) -> Pings:
    return Pings(
        phase=phase,
        count=len(times),
        median_ms=statistics.median(times),
        p99_ms=sorted(times)[len(times) * 99 // 100],
        max_ms=max(times),
        late_ms=max(late),
        commits=int(txg["commits"]),
        commit_ms=txg["slowest_ms"],
    )


def render(pings: list[Pings]) -> str:
    heads = ["", "pings", "median ms", "p99 ms", "max ms", "late ms", "commits", "slowest commit ms"]
    commits = [0, *(at["commits"] for at in pings)]
    lines = [
        [
            at["phase"],
            f"{at['count']:,}",
            *(number(value) for value in (at["median_ms"], at["p99_ms"], at["max_ms"], at["late_ms"])),
            str(here - before),
            number(at["commit_ms"]),
        ]
        for at, (before, here) in zip(pings, itertools.pairwise(commits), strict=True)
    ]
    return "a ping over the control socket under load (time, lower is better)\n\n" + table(heads, lines)


if __name__ == "__main__":
    load(sys.argv[1], Path(sys.argv[2]))
