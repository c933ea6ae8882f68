"""What the daemon takes in memory of its own: to walk a large tree, and while payload streams through.

80,000 files in the long form, a quarter of them, and a quarter of what 80,000 may add, in the gate.
"""

from __future__ import annotations

import os

from tests import tiers
from tests.mount.workspace import Workspace, eventually
from tests.noise import noise

FILES = 80_000 if tiers.SLOW else 20_000
FILES_PER_DIRECTORY = 500
GROWTH_MIB_MAX = 110 if tiers.SLOW else 30  # with some 40 MiB at rest: 150 MiB
CONTENTS = b"contents of a small file\n" * 12


def memory_mib(pid: int) -> dict[str, float]:
    """The daemon's resident memory by kind: its own, and what is mapped of files."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {kind: int(fields[kind].split()[0]) / 1024 for kind in ("RssAnon", "RssFile", "RssShmem")}


def test_walking_a_large_tree_takes_bounded_memory(workspace: Workspace) -> None:
    with workspace.store() as store, store.open("ws") as fs:
        for number in range(FILES):
            directory, name = divmod(number, FILES_PER_DIRECTORY)
            if name == 0:
                fs.mkdir(f"/{directory}")
            fs.write_bytes(f"/{directory}/{name}", CONTENTS)
    pid = workspace.mount()
    os.listdir(workspace.mnt)
    rest = memory_mib(pid)
    seen = 0
    for path in workspace.mnt.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                assert file.read() == CONTENTS
            seen += 1
    walked = memory_mib(pid)
    workspace.unmount(pid)
    for what, figures in (("at rest", rest), ("walked", walked)):
        print(f"{what}: " + ", ".join(f"{kind} {mib:.0f} MiB" for kind, mib in figures.items()))
    assert seen == FILES
    assert walked["RssAnon"] - rest["RssAnon"] < GROWTH_MIB_MAX
    assert walked["RssAnon"] < 150


def test_streams_of_payload_take_the_same_memory_again_and_then_give_it_back(workspace: Workspace) -> None:
    workspace.tzfs("set", "txg_interval=1s", "ws")
    pid = workspace.mount()
    piece = noise(1 << 20)

    def stream(name: str) -> int:
        before = page_faults(pid)
        with open(workspace.mnt / name, "wb", buffering=0) as file:
            for _ in range(64):
                file.write(piece)
            os.fsync(file.fileno())
        return page_faults(pid) - before

    def given_back() -> bool:
        (workspace.mnt / "small").write_text("somebody is always doing something")
        return memory_mib(pid)["RssAnon"] < rest + 16

    rest = memory_mib(pid)["RssAnon"]
    taken = min(stream(f"{number}") for number in range(4))
    assert taken < 2000  # of 16,384 pages; without `memory.keep` over 4,000
    assert eventually(given_back)
    workspace.unmount(pid)


def page_faults(pid: int) -> int:
    """How many pages the process has had to be given."""
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[7])
