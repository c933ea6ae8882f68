"""What only tzfs has: the time of a diff of ten changes, by size of the filesystem.

Each change is in a folder of its own; the diff is taken to the end, in the engine (the public API in this process) and
by the command `tzfs diff`, which adds the start of an interpreter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypedDict

from benchmarks.report import number, table
from benchmarks.snapshots import FILES_IN_DIRECTORY

CHANGES: Final = 10
DIFFS: Final = 20


class DiffTimes(TypedDict):
    """Medians, in ms, of a diff that says `lines` lines."""

    files: int
    lines: int
    engine_ms: float
    command_ms: float


def measure(folder: Path, *, sizes: tuple[int, ...], tell: Callable[[str], None]) -> list[DiffTimes]:
    """Fill one filesystem to each of `sizes` in turn, change ten files at each, and compare."""
    import tzfs

    times: list[DiffTimes] = []
    filled = 0
    with tzfs.open_store(folder) as store:
        store.create("ws")
        for files in sizes:
            tell(f"diffs at {files:,} files")
            name = f"at-{files}"
            with store.open("ws") as fs:
                for each in range(filled, files):
                    where = f"/{each // FILES_IN_DIRECTORY}"
                    if each % FILES_IN_DIRECTORY == 0:
                        fs.mkdir(where)
                    fs.write_bytes(f"{where}/{each}", b"%d" % each)
                fs.snapshot(name)
                for each in range(0, files, files // CHANGES):
                    fs.write_bytes(f"/{each // FILES_IN_DIRECTORY}/{each}", b"changed")
                taken, lines = [], 0
                for _ in range(DIFFS):
                    begun = time.perf_counter()
                    lines = len(list(fs.diff(name)))
                    taken.append((time.perf_counter() - begun) * 1e3)
            filled = files
            command = [sys.executable, "-m", "tzfs.cli", "--store", str(folder), "diff", f"ws@{name}"]
            commands = []
            for _ in range(DIFFS // 4):
                begun = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                commands.append((time.perf_counter() - begun) * 1e3)
            times.append(
                DiffTimes(
                    files=files,
                    lines=lines,
                    engine_ms=statistics.median(taken),
                    command_ms=statistics.median(commands),
                )
            )
    return times


def render(times: list[DiffTimes]) -> str:
    lines = [
        [f"{at['files']:,} files", number(at["lines"]), number(at["engine_ms"]), number(at["command_ms"])]
        for at in times
    ]
    first, last = times[0], times[-1]
    ratios = [f"{last['engine_ms'] / first['engine_ms']:.2f}x", f"{last['command_ms'] / first['command_ms']:.2f}x"]
    lines.append(["ratio of times, last to first", "", *ratios])
    return f"a diff of {CHANGES} changes, median (time, lower is better)\n\n" + table(
        ["", "lines", "engine ms", "command ms"], lines
    )
