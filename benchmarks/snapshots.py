"""What only tzfs has: the time of a snapshot by size of the filesystem, and the daemon's memory after a walk.

A snapshot is timed three ways, with nothing dirty: in the engine (the public API in this process, nothing mounted),
over the control socket of a mount, and as the command `tzfs snapshot`, which adds the start of an interpreter.
There is a filesystem of each size, and they are timed by turns: how fast the machine is changes within minutes.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
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


def fill(directory: Path, *, files: int) -> None:
    for number_ in range(files):
        folder = directory / f"{number_ // FILES_IN_DIRECTORY:03}"
        if number_ % FILES_IN_DIRECTORY == 0:
            folder.mkdir()
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


def medians_ms(takes: Sequence[Callable[[str], object]], names: itertools.count[int]) -> list[float]:
    """Of each of `takes`, which are called by turns."""
    times: list[list[float]] = [[] for _ in takes]
    for _ in range(SNAPSHOTS):
        for take, of in zip(takes, times, strict=True):
            name = f"bench-{next(names)}"
            begun = time.perf_counter()
            take(name)
            of.append((time.perf_counter() - begun) * 1e3)
    return [statistics.median(of) for of in times]


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


def through_socket(stores: Sequence[Path], names: itertools.count[int]) -> list[float]:
    with ExitStack() as stack:
        controls = [stack.enter_context(closing(Control(socket_of(store)))) for store in stores]
        return medians_ms([partial(snapshot_through, control) for control in controls], names)


def snapshot_through(control: Control, name: str) -> None:
    control.call("snapshot.create", name=name)


def by_command(targets: Sequence[Tzfs], names: itertools.count[int]) -> list[float]:
    return medians_ms([partial(snapshot_by_command, target) for target in targets], names)


def snapshot_by_command(target: Tzfs, name: str) -> None:
    target.tzfs("snapshot", f"ws@{name}")


def in_engine(stores: Sequence[Path], names: itertools.count[int]) -> list[float]:
    import tzfs

    with ExitStack() as stack:
        opened = [stack.enter_context(tzfs.open_store(store)) for store in stores]
        return medians_ms([stack.enter_context(store.open("ws")).snapshot for store in opened], names)


def measure(
    folder: Path, *, sizes: tuple[int, ...], walked: int, tell: Callable[[str], None]
) -> tuple[list[SnapshotTimes], Memory]:
    """Fill a filesystem to each of `sizes`, take snapshots of them by turns, and walk the last one after a remount."""
    folder.mkdir()
    targets: list[Tzfs] = []
    stores: list[Path] = []
    names = itertools.count()
    with ExitStack() as stack:
        for files in sizes:
            tell(f"snapshots at {files:,} files")
            target = Tzfs("tzfs")
            room = folder / f"{files}"
            room.mkdir()
            stack.callback(target.stop)
            directory = target.start(room)
            fill(directory, files=files)
            synced(directory)
            assert target.store is not None
            targets.append(target)
            stores.append(target.store)
        over_socket, commands = through_socket(stores, names), by_command(targets, names)
        for target in targets:
            target.unmount()
        times = [
            SnapshotTimes(files=files, engine_ms=engine, control_ms=control, command_ms=command)
            for files, engine, control, command in zip(
                sizes, in_engine(stores, names), over_socket, commands, strict=True
            )
        ]
        last = targets[-1]
        last.mount()
        tell(f"memory after a walk over {walked:,} files")
        pids = last.daemons()
        if len(pids) != 1:
            raise Unavailable(f"{len(pids)} processes serve the mount, where one was expected")
        pid = pids[0]
        before = rss_kib(pid)
        assert last.mountpoint is not None
        seen = walk(last.mountpoint, files=walked)
        after = rss_kib(pid)
        memory = Memory(
            files=seen,
            before_rss_anon_kib=before["RssAnon"],
            rss_anon_kib=after["RssAnon"],
            rss_file_kib=after["RssFile"],
            rss_shmem_kib=after["RssShmem"],
        )
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
