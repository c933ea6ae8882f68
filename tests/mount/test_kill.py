"""kill -9 of the daemon under load: what was fsynced or snapshotted is there, the rest a prefix of what was answered.

Four writers go through the same steps, each in a directory of its own: write a temporary file, fsync every fourth,
rename it to its number, remove the file five numbers back.  So at any moment a directory has one of a few shapes, and
what comes back after a kill must have one, not before the last fsync that was answered.  `TZFS_KILLS` says how often.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiers
from tests.mount.workspace import Workspace

WRITERS = 4
KEPT = 5
KILLS = tiers.number("KILLS", short=3, long=50)
WRITER = """
import os, sys
top, i = sys.argv[1], int(sys.argv[2])
os.chdir(top)
while True:
    with open("tmp", "wb", buffering=0) as file:
        file.write(b"%d\\n" % i * (1 + i % 7 * 400))
        if i % 4 == 0:
            os.fsync(file.fileno())
            print(i, flush=True)
    os.rename("tmp", str(i))
    if i >= 5:
        os.unlink(str(i - 5))
    i += 1
"""


def contents(i: int) -> bytes:
    return b"%d\n" % i * (1 + i % 7 * 400)


def shape(directory: Path, begun: int) -> int:
    """The number of the last whole step; fails where the directory has a shape that no moment of the writer had."""
    names = set(os.listdir(directory))
    temporary = "tmp" in names
    numbers = sorted(int(name) for name in names - {"tmp"})
    last = numbers[-1] if numbers else begun - 1
    assert numbers == list(range(numbers[0], last + 1)) if numbers else True, f"a hole in {numbers}"
    if last >= KEPT:
        oldest = numbers[0]
        assert oldest in (last - KEPT, last - KEPT + 1), f"{numbers}: removed too early, or not at all"
        assert not temporary or oldest == last - KEPT + 1, "the next step began before this one had ended"
    for number in numbers:
        assert (directory / str(number)).read_bytes() == contents(number), f"file {number} is torn"
    if temporary:
        assert (directory / "tmp").read_bytes() in (b"", contents(last + 1)), "the temporary file is torn"
    return last


@pytest.mark.timeout(1200)
def test_what_a_kill_leaves_is_a_prefix_with_all_that_was_synced(workspace: Workspace) -> None:
    seed = int(os.environ.get("TZFS_SEED", "0"))
    print(f"TZFS_SEED={seed}")
    choose = random.Random(seed)
    last = [-1] * WRITERS
    for kill in range(KILLS):
        pid = workspace.mount()
        tops = [workspace.mnt / f"writer-{w}" for w in range(WRITERS)]
        for w, top in enumerate(tops):  # the step that the kill broke off
            top.mkdir(exist_ok=True)
            (top / "tmp").unlink(missing_ok=True)
            (top / str(last[w] - KEPT)).unlink(missing_ok=True)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, top, str(last[w] + 1)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for w, top in enumerate(tops)
        ]
        synced = list(last)
        try:
            moment, snapshot = choose.randint(5, 60), choose.randint(0, 4)
            for n in range(moment):
                w = n % WRITERS
                stdout = writers[w].stdout
                assert stdout is not None
                synced[w] = int(stdout.readline())
                if n == snapshot:
                    workspace.call("snapshot.create", name=f"kill-{kill}")
                    frozen = _tree(workspace.mnt / ".zfs" / "snapshot" / f"kill-{kill}")
            workspace.kill(pid)
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()
        pid = workspace.mount()
        for w, top in enumerate(tops):
            found = shape(top, last[w] + 1)
            begun = found + 1 if (top / "tmp").exists() and (top / "tmp").stat().st_size else found
            assert begun >= synced[w], f"writer {w}: {synced[w]} was synced, {found} is there"
            last[w] = found
            shape(workspace.mnt / ".zfs" / "snapshot" / f"kill-{kill}" / top.name, 0)
        assert _tree(workspace.mnt / ".zfs" / "snapshot" / f"kill-{kill}") == frozen
        workspace.unmount(pid)
        assert workspace.problems() == []


def _tree(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
