"""What compression costs and gives: one file written and read in sequence, of text and of noise, by each codec.

Text is the sources of Python's library, noise what no codec makes smaller.  In each round every setting takes its turn
in one mount, and the local disk beside them, so that all figures of a round are of the same minute; a write ends with
fsync, a read begins with the kernel's pages dropped.  How much smaller a file lies on the disk is what tzfs itself says
(`refcompressratio`).  Nothing is pinned: compression has a thread of its own, and the processors that there are.
"""

from __future__ import annotations

import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypedDict

from benchmarks.peers import Tzfs
from benchmarks.report import number, table
from benchmarks.workloads import MIB, drop

DISK: Final = "disk"
CODECS: Final = ("off", "lz4", "zstd")
CONTENTS: Final = ("text", "noise")
ACTS: Final = ("write", "read cold")


class CompressionRates(TypedDict):
    """MiB/s of one act on one kind of contents, by one setting; `ratio` is how many times smaller it lies there."""

    contents: str
    act: str
    setting: str
    values: list[float]
    median: float
    ratio_to_off: float | None
    ratio_to_disk: float | None
    smaller: float | None


def blocks(contents: str) -> list[bytes]:
    """Blocks of 1 MiB, no two of which are alike."""
    if contents == "noise":
        return [os.urandom(MIB) for _ in range(8)]
    library = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(library.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= 8 * MIB:
            break
    return [bytes(text[at : at + MIB]) for at in range(0, len(text) - MIB + 1, MIB)]


def write(path: Path, pieces: Sequence[bytes], *, mib: int) -> float:
    begun = time.perf_counter()
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        for each in range(mib):
            os.write(fd, pieces[each % len(pieces)])
        os.fsync(fd)
    finally:
        os.close(fd)
    return mib / (time.perf_counter() - begun)


def read_cold(path: Path, pieces: Sequence[bytes], *, mib: int) -> float:
    """`RuntimeError` where it does not hold what was written."""
    drop(1)
    buffer, total = bytearray(MIB), 0
    begun = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    try:
        while count := os.readv(fd, [buffer]):
            total += count
        took = time.perf_counter() - begun
        last = os.pread(fd, MIB, max(total - MIB, 0))
    finally:
        os.close(fd)
    if total != mib * MIB or last != pieces[(mib - 1) % len(pieces)]:
        raise RuntimeError(f"{path.name} does not hold what was written")
    return mib / took


def measure(folder: Path, *, mib: int, rounds: int, tell: Callable[[str], None]) -> list[CompressionRates]:
    """`Unavailable` where there can be no mount.  Reads are left out where nobody may drop the kernel's pages."""
    values: dict[tuple[str, str, str], list[float]] = {}
    smaller: dict[tuple[str, str], float] = {}
    pieces = {contents: blocks(contents) for contents in CONTENTS}
    beside = folder / DISK
    beside.mkdir(parents=True)
    target = Tzfs("tzfs")
    (folder / target.name).mkdir()
    try:
        mounted = target.start(folder / target.name)
        for round_ in range(rounds):
            tell(f"compression, round {round_ + 1} of {rounds}")
            for contents in CONTENTS:
                settings = [DISK, *CODECS]
                first = round_ % len(settings)
                for setting in settings[first:] + settings[:first]:
                    path = (beside if setting == DISK else mounted) / contents
                    if setting != DISK:
                        target.tzfs("set", f"compression={setting}", "ws")
                    rate = write(path, pieces[contents], mib=mib)
                    values.setdefault((contents, ACTS[0], setting), []).append(rate)
                    if os.geteuid() == 0:
                        rate = read_cold(path, pieces[contents], mib=mib)
                        values.setdefault((contents, ACTS[1], setting), []).append(rate)
                    if setting != DISK:
                        said = target.tzfs("get", "-Hp", "-o", "value", "refcompressratio", "ws")
                        smaller[contents, setting] = float(said)
                    path.unlink()
    finally:
        target.stop()
    return figures(values, smaller)


def figures(
    values: dict[tuple[str, str, str], list[float]], smaller: dict[tuple[str, str], float]
) -> list[CompressionRates]:
    medians = {what: statistics.median(found) for what, found in values.items()}

    def ratio(contents: str, act: str, setting: str, base: str) -> float | None:
        return None if setting in (base, DISK) else medians[contents, act, setting] / medians[contents, act, base]

    return [
        CompressionRates(
            contents=contents,
            act=act,
            setting=setting,
            values=found,
            median=medians[contents, act, setting],
            ratio_to_off=ratio(contents, act, setting, "off"),
            ratio_to_disk=ratio(contents, act, setting, DISK),
            smaller=smaller.get((contents, setting)),
        )
        for (contents, act, setting), found in values.items()
    ]


def render(rates: Sequence[CompressionRates]) -> str:
    found = {(rate["contents"], rate["act"], rate["setting"]): rate for rate in rates}
    lines = []
    for contents in CONTENTS:
        for act in ACTS:
            row = {s: found[contents, act, s] for s in (DISK, *CODECS) if (contents, act, s) in found}
            if row:
                cells = [number(row[s]["median"]) for s in (DISK, *CODECS)]
                cells += [f"{row['off']['ratio_to_disk'] or 0:.2f}x"]
                cells += [f"{row[s]['ratio_to_off'] or 0:.2f}x" for s in CODECS[1:]]
                lines.append([f"{contents}, {act}", *cells])
        times = {s: found[contents, ACTS[0], s]["smaller"] or 1.0 for s in CODECS}
        lines.append([f"{contents}, times smaller", "-", *(f"{times[s]:.2f}" for s in CODECS), "-", "-", "-"])
    heads = ["", DISK, *CODECS, "off/disk", "lz4/off", "zstd/off"]
    text = "compression: one file in sequence, median (MiB/s, higher is better)\n\n" + table(heads, lines)
    if not any(act == ACTS[1] for _, act, _ in found):
        text += "\n\nnot measured: reads: only root may drop the kernel's caches"
    return text
