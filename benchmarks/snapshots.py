"""What only tzfs has: the time of a snapshot by size of the filesystem, and the daemon's memory after a walk.

A snapshot is timed three ways, with nothing dirty: in the engine (the public API in this process, nothing mounted),
over the control socket of a mount, and as the command `tzfs snapshot`, which adds the start of an interpreter.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypedDict, cast

from benchmarks.peers import Tzfs, Unavailable
from benchmarks.report import number, table

FILES_IN_DIRECTORY: Final = 1000
SNAPSHOTS: Final = 20
RPC_TIMEOUT_S: Final = 60


class SnapshotTimes(TypedDict):
    """Medians, in ms; None where it was not measured."""

    files: int
    engine_ms: float | None
    control_ms: float | None
    command_ms: float | None


class Memory(TypedDict):
    """Of the daemon after a walk, in KiB.  `rss_file_kib` is mapped page cache, which the kernel takes back at need."""

    files: int
    before_rss_anon_kib: int
    rss_anon_kib: int
    rss_file_kib: int
    rss_shmem_kib: int


def rss_kib(pid: int) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words and words[0].startswith("Rss")}


def fill(directory: Path, *, first: int, files: int) -> None:
    for number_ in range(first, files):
        folder = directory / f"{number_ // FILES_IN_DIRECTORY:03}"
        if number_ % FILES_IN_DIRECTORY == 0 or number_ == first:
            folder.mkdir(exist_ok=True)
        with open(folder / f"{number_ % FILES_IN_DIRECTORY:03}", "wb") as file:
            file.write(b"%d" % number_)


def synced(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def walk(directory: Path, *, files: int) -> int:
    """Stat every file until `files` have been seen; how many were."""
    seen = 0
    for folder in sorted(os.listdir(directory)):
        with os.scandir(directory / folder) as entries:
            seen += sum(entry.stat(follow_symlinks=False).st_size > 0 for entry in entries)
        if seen >= files:
            break
    return seen


def median_ms(take: Callable[[str], object], names: itertools.count[int]) -> float:
    times = []
    for _ in range(SNAPSHOTS):
        name = f"bench-{next(names)}"
        begun = time.perf_counter()
        take(name)
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


class Control:
    """One connection to a mount's control socket: JSON-RPC 2.0, one message a line."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(RPC_TIMEOUT_S)
        self._socket.connect(path)
        self._stream = self._socket.makefile("rwb")
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters: str) -> object:
        number_ = next(self._numbers)
        message = {"jsonrpc": "2.0", "id": number_, "method": method, "params": parameters}
        self._stream.write(json.dumps(message).encode() + b"\n")
        self._stream.flush()
        while line := self._stream.readline():
            answer = cast(dict[str, object], json.loads(line))
            if answer.get("id") != number_:
                continue  # a notification of progress
            if "error" in answer:
                raise Unavailable(f"{method}: {answer['error']}")
            return answer["result"]
        raise Unavailable("the control socket was closed")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def socket_of(store: Path) -> str:
    """Where the mount of `ws` listens, as its lease says."""
    from tzfs.catalog import Catalog

    with Catalog.open(store, create=False, readonly=True) as catalog:
        holder = catalog.holder(catalog.get("ws"))
    if holder is None or not holder.get("socket"):
        raise Unavailable("the mount does not say where its control socket is")
    return str(holder["socket"])


def through_socket(store: Path, names: itertools.count[int]) -> float:
    control = Control(socket_of(store))
    try:
        return median_ms(lambda name: control.call("snapshot.create", name=name), names)
    finally:
        control.close()


def in_engine(store: Path, names: itertools.count[int]) -> float:
    import tzfs

    with tzfs.open_store(store) as opened, opened.open("ws") as filesystem:
        return median_ms(filesystem.snapshot, names)


def measure(
    folder: Path, *, sizes: tuple[int, ...], walked: int, tell: Callable[[str], None]
) -> tuple[list[SnapshotTimes], Memory]:
    """Fill one filesystem to each of `sizes` in turn, take snapshots at each, and walk the last one after a remount."""
    target = Tzfs("tzfs")
    folder.mkdir()
    directory = target.start(folder)
    times: list[SnapshotTimes] = []
    names = itertools.count()
    try:
        assert target.store is not None
        filled = 0
        for files in sizes:
            tell(f"snapshots at {files:,} files")
            fill(directory, first=filled, files=files)
            filled = files
            synced(directory)
            over_socket = through_socket(target.store, names)
            command = median_ms(lambda name: target.tzfs("snapshot", f"ws@{name}"), names)
            target.unmount()
            engine = in_engine(target.store, names)
            target.mount()
            times.append(SnapshotTimes(files=files, engine_ms=engine, control_ms=over_socket, command_ms=command))
        tell(f"memory after a walk over {walked:,} files")
        pids = target.daemons()
        if len(pids) != 1:
            raise Unavailable(f"{len(pids)} processes serve the mount, where one was expected")
        pid = pids[0]
        before = rss_kib(pid)
        seen = walk(directory, files=walked)
        after = rss_kib(pid)
        memory = Memory(
            files=seen,
            before_rss_anon_kib=before["RssAnon"],
            rss_anon_kib=after["RssAnon"],
            rss_file_kib=after["RssFile"],
            rss_shmem_kib=after["RssShmem"],
        )
    finally:
        target.stop()
    return times, memory


def render(times: list[SnapshotTimes], memory: Memory) -> str:
    lines = [
        [f"{at['files']:,} files", number(at["engine_ms"]), number(at["control_ms"]), number(at["command_ms"])]
        for at in times
    ]
    first, last = times[0], times[-1]
    ratios = []
    for here, there in (
        (last["engine_ms"], first["engine_ms"]),
        (last["control_ms"], first["control_ms"]),
        (last["command_ms"], first["command_ms"]),
    ):
        ratios.append(f"{here / there:.2f}x" if here and there else "-")
    lines.append(["ratio of times, last to first", *ratios])
    heads = ["", "engine ms", "control socket ms", "command ms"]
    mib = {name: value / 1024 for name, value in memory.items() if isinstance(value, int) and name != "files"}
    return (
        "a snapshot with nothing dirty, median (time, lower is better)\n\n"
        + table(heads, lines)
        + f"\n\nthe daemon after a walk over {memory['files']:,} files: RssAnon {mib['rss_anon_kib']:.0f} MiB "
        f"({mib['before_rss_anon_kib']:.0f} before); apart from it, mapped: RssFile {mib['rss_file_kib']:.0f} MiB, "
        f"RssShmem {mib['rss_shmem_kib']:.0f} MiB"
    )
