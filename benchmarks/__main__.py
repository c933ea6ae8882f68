"""The runner: `python -m benchmarks [--quick] [--json FILE] [--only ROW,...] [--targets NAME,...]`.

All targets stand at once.  A round takes each row through all targets in turn, beginning with another one each round,
so that what the machine does meanwhile befalls all alike; the figure of a cell is the median of the rounds.
Everything is done twice: *pinned*, client and daemon on one processor, and *free*, where the scheduler places them.  A
ratio between figures of different placement says nothing, and none is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import compressing, curves, destroying, diffs, peers, ping, report, snapshots, tree
from benchmarks.workloads import ROWS, Client, Job, Row

PLACEMENTS: Final = ("pinned", "free")
SNAPSHOT_SECTION: Final = "snapshots"
PING_SECTION: Final = "ping"
DESTROYING_SECTION: Final = "destroying"
DIFF_SECTION: Final = "diff"
CURVES_SECTION: Final = "curves"
COMPRESSION_SECTION: Final = "compression"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chosen_rows(only: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """The rows to report, and those to run: also what they build on."""
    reported = [row for row in ROWS if not only or any(word in row.name for word in only)]
    wanted = {row.name for row in reported} | {need for row in reported for need in row.needs}
    return reported, [row for row in ROWS if row.name in wanted]


class Runner:
    """Targets that stand, a client for each, and what they have yielded."""

    def __init__(self, results: report.Results, rows: Sequence[Row], *, files: int, mib: int, archive: Path) -> None:
        self.results = results
        self.rows = rows
        self.files = files
        self.mib = mib
        self.archive = archive
        self.standing: dict[str, tuple[peers.Target, Path, Client]] = {}
        self.cpus = os.sched_getaffinity(0)

    def place(self, placement: str) -> None:
        cpus = {max(self.cpus)} if placement == "pinned" else self.cpus
        for target, _, client in self.standing.values():
            peers.pin([*target.daemons(), client.process.pid], cpus)

    def round(self, placement: str, number: int) -> None:
        names = list(self.standing)
        names = names[number % len(names) :] + names[: number % len(names)]
        failed: set[str] = set()
        for row in self.rows:
            for name in names:
                if name not in failed:
                    self.cell(placement, number, row, name, failed)
        for name in names:
            self.work(name, "clear", placement, number)

    def cell(self, placement: str, number: int, row: Row, name: str, failed: set[str]) -> None:
        what = f"{row.name} on {name}"
        if row.cold and os.geteuid() != 0:
            self.results.skipped[row.name] = "only root may drop the kernel's caches"
            return
        target = self.standing[name][0]
        before = target.requests()
        try:
            value = self.work(name, row.name, placement, number)
        except RuntimeError as error:
            self.results.skipped[what] = str(error)
            failed.update({name} if any(row.name in other.needs for other in self.rows) else ())
            return
        self.results.add(placement, row.name, name, value)
        after = target.requests()
        if before is not None and after is not None:
            grown = {kind: count - before.get(kind, 0) for kind, count in after.items()}
            self.results.requests[placement, row.name, name] = {kind: n for kind, n in grown.items() if n}

    def work(self, name: str, row: str, placement: str, number: int) -> float:
        _, directory, client = self.standing[name]
        place = str(directory / f"{placement}-{number}")
        return client.run(Job(row, place, self.files, self.mib, str(self.archive)))


def end(number: int, _: object) -> None:
    """As when it is interrupted: nothing stays mounted.  Once is enough."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one round of everything, made small: a trial of the runner"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values there")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT,...",
        help="rows whose name has one of these; 'snapshots', 'diff', 'curves', 'compression', 'ping', 'destroying'",
    )
    parser.add_argument("--targets", default=",".join(peers.DEFAULT), help="default: %(default)s")
    parser.add_argument("--placements", default=",".join(PLACEMENTS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 5, quick: 1")
    parser.add_argument("--files", type=int, help="small files a row; default: 2000, quick: 200")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    options = parser.parse_args(argv)
    known = peers.all_targets()
    names = options.targets.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    placements = options.placements.split(",")
    if unknown := set(placements) - set(PLACEMENTS):
        parser.error(f"no such placement: {', '.join(sorted(unknown))}; there are {', '.join(PLACEMENTS)}")
    only = [word for word in options.only.split(",") if word]
    reported, rows = chosen_rows(only)
    with_snapshots = "tzfs" in names and (not only or SNAPSHOT_SECTION in only)
    with_diffs = "tzfs" in names and (not only or DIFF_SECTION in only)
    with_curves = "tzfs" in names and (not only or CURVES_SECTION in only)
    with_ping = "tzfs" in names and (not only or PING_SECTION in only)
    with_compression = "tzfs" in names and (not only or COMPRESSION_SECTION in only)
    with_destroying = "tzfs" in names and (not only or DESTROYING_SECTION in only)
    sections = (with_snapshots, with_ping, with_diffs, with_curves, with_compression, with_destroying)
    if not rows and not any(sections):
        parser.error(
            f"--only: no row has {options.only!r} in its name; there are: {'; '.join(row.name for row in ROWS)}"
        )
    rounds = options.rounds or (1 if options.quick else 5)
    files = options.files or (200 if options.quick else 2000)
    results = report.Results(reported)
    document: dict[str, object] = {
        "machine": report.machine(),
        "options": {"rounds": rounds, "files": files, "quick": options.quick, "targets": names},
    }
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup
            signal.signal(number, end)
    with ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="tzfs-bench-", dir=options.dir))
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        if rows:
            measure_rows(
                stack, base, results, rows, known, names, placements, rounds=rounds, files=files, quick=options.quick
            )
            print(report.render(results, placements, names))
            document["rows"] = results.figures(placements, names)
        if with_snapshots:
            sizes = (100, 2000) if options.quick else (1000, 100_000)
            try:
                times, memory = snapshots.measure(
                    base / "snapshots", sizes=sizes, walked=2000 if options.quick else 80_000, tell=tell
                )
                print("\n" + snapshots.render(times, memory))
                document |= {"snapshots": times, "memory": memory}
            except peers.Unavailable as reason:
                results.skipped["snapshots and memory"] = str(reason)
                print(f"\nnot measured: snapshots and memory: {reason}")
        if with_diffs:
            compared = diffs.measure(base / "diffs", sizes=(100, 2000) if options.quick else (1000, 100_000), tell=tell)
            print("\n" + diffs.render(compared))
            document["diffs"] = compared
        if with_curves:
            grown, freed = curves.measure_curves(
                base / "curves", sizes=(100, 1000) if options.quick else curves.SIZES, tell=tell
            )
            crowd = curves.measure_look_ups(
                base / "crowd",
                many=20 if options.quick else 1000,
                churned=3000 if options.quick else 100_000,
                tell=tell,
            )
            print("\n" + curves.render(grown, freed, crowd))
            document |= {"curves": grown, "destroys": freed, "look-ups": crowd}
        if with_compression:
            try:
                rates = compressing.measure(
                    base / "compression", mib=16 if options.quick else 256, rounds=rounds, tell=tell
                )
                print("\n" + compressing.render(rates))
                document["compression"] = rates
            except peers.Unavailable as reason:
                results.skipped["compression"] = str(reason)
                print(f"\nnot measured: compression: {reason}")
        if with_ping:
            try:
                pings = ping.measure(
                    base / "ping",
                    seconds=2 if options.quick else 15,
                    removed_mib=64 if options.quick else 1024,
                    tell=tell,
                )
                print("\n" + ping.render(pings))
                document["ping"] = pings
            except peers.Unavailable as reason:
                results.skipped["ping"] = str(reason)
                print(f"\nnot measured: ping: {reason}")
        if with_destroying:
            try:
                creates = destroying.measure(
                    base / "destroying",
                    mib=64 if options.quick else 1024,
                    seconds=0.5 if options.quick else 2,
                    tell=tell,
                )
                print("\n" + destroying.render(creates))
                document["destroying"] = creates
            except peers.Unavailable as reason:
                results.skipped["destroying"] = str(reason)
                print(f"\nnot measured: destroying: {reason}")
        document["skipped"] = results.skipped
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def measure_rows(
    stack: ExitStack,
    base: Path,
    results: report.Results,
    rows: Sequence[Row],
    known: dict[str, peers.Target],
    names: Sequence[str],
    placements: Sequence[str],
    *,
    rounds: int,
    files: int,
    quick: bool,
) -> None:
    """Stand up the targets, and go round them."""
    needs_tree = any("untar" in (row.name, *row.needs) for row in rows)
    if needs_tree:
        tell("making a tree")
    archive = tree.make(base, files=300 if quick else tree.FILES) if needs_tree else base / "none"
    runner = Runner(results, rows, files=files, mib=16 if quick else 256, archive=archive)
    for name in names:
        target = known[name]
        folder = base / name
        folder.mkdir()
        stack.callback(target.stop)
        try:
            directory = target.start(folder)
            if not isinstance(target, peers.Disk) and not target.daemons():
                raise peers.Unavailable("its daemon was not found, so it cannot be pinned")
        except peers.Unavailable as reason:
            results.skipped[name] = str(reason)
            tell(f"{name} is left out: {reason}")
            target.stop()
            continue
        client = Client()
        stack.callback(client.close)
        runner.standing[name] = (target, directory, client)
    for number in range(rounds):
        for placement in placements:
            tell(f"round {number + 1} of {rounds}, {placement}")
            runner.place(placement)
            runner.round(placement, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
