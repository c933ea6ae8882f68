"""Large writes: what they carry goes from the kernel's request to the disk without a copy, and is what was written."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace
from tests.noise import noise
from tzfs.limits import KIB, MIB

MODES: dict[str, tuple[str, ...]] = {
    "default": (),
    "writeback": ("writeback",),
    "no answers in C": ("noanswers",),
    "without the pump": ("nopump",),
}
SIZES = [1, 32 * KIB - 1, 32 * KIB, 100_000, 128 * KIB, 512 * KIB, 514 * KIB, MIB - 1, MIB, MIB + 4096, 3 * MIB + 5]
OFFSETS = [0, 1, 4096, 100_000, 128 * KIB, 2 * MIB]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compression", ["off", "lz4"])
def test_writes_of_every_size_over_each_other_are_what_was_written(
    workspace: Workspace, mode: str, compression: str
) -> None:
    workspace.tzfs("set", f"compression={compression}", "ws")
    expected: dict[str, bytes] = {}
    with workspace.mounted(*MODES[mode]) as top:
        for number, size in enumerate(SIZES):
            written = bytearray()
            with open(top / str(number), "wb", buffering=0) as file:
                for turn, at in enumerate(OFFSETS):
                    data = noise(size, f"{size} {at}") if turn % 3 else bytes([turn + 1]) * size
                    assert os.pwrite(file.fileno(), data, at) == size
                    written.extend(bytes(max(0, at + size - len(written))))
                    written[at : at + size] = data
                    if turn == 3:
                        os.fsync(file.fileno())
            expected[str(number)] = bytes(written)
            assert (top / str(number)).read_bytes() == written
    assert workspace.problems() == []
    with workspace.mounted() as top:
        assert {name: (top / name).read_bytes() for name in expected} == expected


def test_writes_that_wait_for_a_rollback_carry_what_is_theirs(workspace: Workspace) -> None:
    """While nothing may change, requests wait one beside the other, each with its payload."""
    pid = workspace.mount(failpoints="staging.batch=delay:0.002")
    files = [workspace.mnt / f"w{number}" for number in range(4)]
    for file in files:
        file.touch()
    workspace.tzfs("snapshot", "ws@without")
    for number in range(1000):
        (workspace.mnt / f"f{number}").touch()
    workspace.tzfs("snapshot", "ws@with")
    ended = threading.Event()

    def write(file: Path) -> None:
        blocks = [noise(MIB, f"{file} {k}") for k in range(4)]
        with open(file, "r+b", buffering=0) as out:
            while not ended.is_set():
                for k, block in enumerate(blocks):
                    assert os.pwrite(out.fileno(), block, k * MIB) == MIB

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, file) for file in files]
        try:
            for name in ("without", "with") * 3:
                time.sleep(0.1)
                workspace.tzfs("rollback", f"ws@{name}")
        finally:
            ended.set()
        for writer in writers:
            writer.result()
    for file in files:
        expected, found = b"".join(noise(MIB, f"{file} {k}") for k in range(4)), file.read_bytes()
        pages = range(0, len(found), 4096)
        assert [at for at in pages if found[at : at + 4096] not in (expected[at : at + 4096], bytes(4096))] == []
    workspace.unmount(pid)
    assert workspace.problems() == []


def test_memory_of_large_writes_is_given_back(workspace: Workspace) -> None:
    """Nothing keeps a payload once it is on the disk."""
    pid = workspace.mount()

    def anonymous() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("RssAnon:"))

    def stream(name: str) -> None:
        with open(workspace.mnt / name, "wb", buffering=0) as file:
            for _ in range(100):
                file.write(block)
            os.fsync(file.fileno())

    block = noise(MIB)
    stream("first")
    rest = anonymous()
    for number in range(4):
        stream(f"more{number}")
    assert anonymous() < rest + 64 * MIB
