"""A sign of life while the mount has all the work that there is; how soon it comes, `benchmarks.ping` measures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from tests.mount.workspace import PATIENCE_S, Workspace
from tests.noise import noise

PINGS = 300
MIB = noise(1 << 20, "x")


def creating(directory: Path) -> None:
    for turn in range(50):
        (directory / f"{turn}").write_bytes(b"small")
    for turn in range(50):
        (directory / f"{turn}").unlink()


def syncing(directory: Path) -> None:
    with open(directory / "synced", "wb") as file:
        file.write(b"small")
        file.flush()
        os.fsync(file.fileno())


def streaming(directory: Path) -> None:
    with open(directory / "large", "wb", buffering=0) as file:
        for _ in range(32):
            file.write(MIB)


def listing(directory: Path) -> None:
    for turn in range(100):
        (directory / f"{turn}").touch()
    assert len([entry.stat() for entry in os.scandir(directory)]) == 100


def removing(directory: Path) -> None:
    with open(directory / "removed", "wb") as file:
        for turn in range(256):
            os.pwrite(file.fileno(), b"x" * 4096, turn << 17)
        os.fsync(file.fileno())
    (directory / "removed").unlink()


def test_a_ping_is_answered_and_nothing_fails_while_everything_is_done_at_once(workspace: Workspace) -> None:
    workspace.tzfs("set", "dirty_max=1M", "txg_interval=50ms", "ws")  # commits and flushes all the time
    pid = workspace.mount()
    enough = threading.Event()
    failures: list[BaseException] = []
    turns: dict[str, int] = {}

    def work(job: Callable[[Path], None]) -> None:
        try:
            directory = workspace.mnt / job.__name__
            directory.mkdir()
            while not enough.is_set():
                job(directory)
                turns[job.__name__] = turns.get(job.__name__, 0) + 1
        except BaseException as error:
            failures.append(error)

    jobs = (creating, syncing, streaming, listing, removing)
    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        with workspace.client() as client:
            pings = 0
            while pings < PINGS or (len(turns) < len(jobs) and not failures):
                assert client.ask("ping", {}, timeout_s=PATIENCE_S) == "pong"
                pings += 1
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert not failures
    workspace.unmount(pid)
    assert workspace.problems() == []
