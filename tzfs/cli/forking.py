"""run --fork: one command in several fresh clones at once, and what came of each.

Each clone's command is a `tzfs run` of its own, remembered in that clone's log; this process hands on what they print,
a line at a time with the number of the clone before it, and waits for all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Final

from tzfs import journal
from tzfs.cli.output import document, printable, table
from tzfs.errors import TzfsError
from tzfs.format.log import Field
from tzfs.management import Store
from tzfs.names import FilesystemName, SnapshotName, parse_filesystem
from tzfs.runs import COUNTED, KIND

FORKS_MAX: Final = 64  # each has a mount of its own, of 50 MB and more
VARIABLE: Final = "TZFS_FORK"  # the number of the clone, from 0, in its command's environment


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the command in one clone: its exit code, and the fields of its entry in the clone's log."""

    fork: int
    clone: FilesystemName
    code: int
    entry: dict[str, Field]

    def to_json(self) -> dict[str, Field]:
        own: dict[str, Field] = {"fork": self.fork, "clone": str(self.clone), "code": self.code}
        return (
            own
            | {name: self.entry.get(name) for name in ("entry", "signal", "duration_ns", "before", "after")}
            | {name: self.entry.get(name, 0) for name in COUNTED.values()}
        )


def run_forks(
    store: Store, name: str, number: int, options: Sequence[str], command: Sequence[str], *, as_json: bool
) -> int:
    """Runs the command in `number` clones and prints the outcomes; 0 if all commands have exited with 0, else 1."""
    clones = _clones(store, parse_filesystem(name), number)
    began = [_start(store, clone, fork, options, command) for fork, clone in enumerate(clones)]
    try:
        codes = [process.wait() for process in began]
    except BaseException:
        for process in began:
            process.terminate()  # each passes it on
        for process in began:
            process.wait()
        raise
    finally:
        for thread in [thread for thread in threading.enumerate() if isinstance(thread, _Reader)]:
            thread.join()
    outcomes = [
        Outcome(fork, clone, code, _entry(store, clone))
        for fork, (clone, code) in enumerate(zip(clones, codes, strict=True))
    ]
    if as_json:
        document([outcome.to_json() for outcome in outcomes])
    else:
        _print(outcomes)
    return 0 if not any(codes) else 1


def _clones(store: Store, name: FilesystemName, number: int) -> list[FilesystemName]:
    """Fresh clones of the filesystem as it is now; where one cannot be made, those made go again."""
    taken, run = {str(info.name) for info in store.filesystems()}, 1
    while any(f"{name}-fork{run}-{fork}" in taken for fork in range(number)) or _has(store, name, f"fork{run}"):
        run += 1
    origin = SnapshotName(name, f"fork{run}")
    store.snapshot(origin)
    made: list[FilesystemName] = []
    try:
        for fork in range(number):
            clone = parse_filesystem(f"{name}-fork{run}-{fork}")
            store.clone(origin, clone)
            made.append(clone)
    except BaseException:
        for clone in made:
            store.destroy(clone)
        raise
    return made


def _has(store: Store, name: FilesystemName, snapshot: str) -> bool:
    return any(found.name.snapshot == snapshot for found in store.snapshots(name, settle=False))


class _Reader(threading.Thread):
    """Hands on what a command prints, to standard error: standard output is for the outcomes."""

    def __init__(self, fork: int, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._fork, self._stream, self._out = fork, stream, sys.stderr

    def run(self) -> None:
        with self._stream:
            for line in self._stream:
                text = line.decode(errors="backslashreplace").rstrip("\n")
                self._out.write(f"[{self._fork}] {printable(text)}\n")
                self._out.flush()


def _start(
    store: Store, clone: FilesystemName, fork: int, options: Sequence[str], command: Sequence[str]
) -> subprocess.Popen[bytes]:
    mount_options = [word for option in options for word in ("-o", option)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tzfs.cli", "--store", store.path, "run", *mount_options, str(clone), "--", *command],
        env={**os.environ, VARIABLE: str(fork)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    _Reader(fork, process.stdout).start()
    return process


def _entry(store: Store, clone: FilesystemName) -> dict[str, Field]:
    """The entry of the command in the clone's log; nothing where it is not there."""
    try:
        found = [logged for logged in journal.log(store, clone) if logged.kind == KIND]
    except TzfsError:
        return {}
    return found[-1].to_json() if found else {}


def _print(outcomes: Sequence[Outcome]) -> None:
    columns = ["fork", "clone", "code", "took", *COUNTED.values()]
    rows = []
    for outcome in outcomes:
        duration = outcome.entry.get("duration_ns")
        took = f"{duration / 1e9:.2f}s" if isinstance(duration, int) else "-"
        counts = [str(outcome.entry.get(name, 0)) for name in COUNTED.values()]
        rows.append([str(outcome.fork), str(outcome.clone), str(outcome.code), took, *counts])
    table(columns, rows, scripted=False, right=[c for c in columns if c != "clone"])


__all__ = ["Outcome", "run_forks"]
