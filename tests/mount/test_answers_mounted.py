"""What C answers, on real mounts: that it does, that nobody can tell, and what becomes of it when things go wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.mount.workspace import PATIENCE_S, PROJECT, Workspace, eventually, number_of
from tests.noise import noise

pytestmark = pytest.mark.needs("root")  # who alone can have the kernel forget

MIB: Final = 1 << 20
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


def kernel_forgets() -> None:
    """The kernel lets go of names and inodes that nobody uses, absent names too, and will ask for them again."""
    DROP_CACHES.write_text("2")


def answered(workspace: Workspace) -> dict[str, int]:
    found = workspace.stats("answered_in_c")
    assert isinstance(found, dict)
    return {kind: count for kind, count in found.items() if isinstance(count, int)}


def work(top: Path) -> None:
    (top / "dir").mkdir()
    for number in range(100):
        (top / "dir" / str(number)).write_bytes(b"contents")
    kernel_forgets()
    for number in range(100):
        path = top / "dir" / str(number)
        assert path.read_bytes() == b"contents"
        assert path.stat().st_size == 8
        assert not (top / "dir" / f"absent {number}").exists()
        with path.open("r+b") as file:
            file.write(b"C")
        os.utime(path, (1, 1))
        assert path.stat().st_mtime == 1


# -- in the path, and out of it ----------------------------------------------------------------------------------------


def test_what_is_asked_most_is_answered_in_c(mounted: Workspace) -> None:
    work(mounted.mnt)
    found = answered(mounted)
    assert found["lookup"] > 100
    assert found["open"] > 100
    assert found["release"] > 100
    requests = mounted.stats("requests")
    assert isinstance(requests, dict)
    for kind, count in found.items():
        figures = requests[kind]
        assert isinstance(figures, dict)
        total = figures["count"]
        assert isinstance(total, int)
        assert total >= count


@pytest.mark.parametrize("option", ["noanswers", "nopump"])
def test_nothing_is_answered_in_c_where_it_is_switched_off(workspace: Workspace, option: str) -> None:
    with workspace.mounted(option) as top:
        work(top)
        assert answered(workspace) == {}


# -- the same to a client ----------------------------------------------------------------------------------------------

TIMES: Final = (
    0, 1, -1, 999_999_999, -999_999_999, -1_000_000_000, -1_000_000_001, 1 << 60, -(1 << 60), (1 << 63) - 1, -(1 << 63)
)  # fmt: skip


def odd_tree(top: Path) -> None:
    """Every kind of inode, and values at the edges of what there is."""
    for number, ns in enumerate(TIMES):
        (top / f"time {number}").touch()
        os.utime(top / f"time {number}", ns=(ns, TIMES[-number - 1]))
    for size in (0, 1, 4000, 4001, 4095, 4096, 4097, MIB, (1 << 32) - 1, 1 << 32, (1 << 40) - 1, 1 << 40):
        (top / f"size {size}").touch()
        os.truncate(top / f"size {size}", size)
    for mode in (0, 0o777, 0o1777, 0o2755, 0o4755, 0o7777):
        (top / f"file {mode:o}").touch()
        (top / f"file {mode:o}").chmod(mode)
        (top / f"dir {mode:o}").mkdir()
        (top / f"dir {mode:o}").chmod(mode)
    for number, device in enumerate((0, os.makedev(1, 3), os.makedev(0xFFF, 0xFFFFF), os.makedev(8, 256))):
        os.mknod(top / f"character {number}", 0o20600, device)
        os.mknod(top / f"block {number}", 0o60644, device)
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        directory = os.open(top, os.O_RDONLY)
        try:
            bound.bind(f"/proc/self/fd/{directory}/socket")
        finally:
            os.close(directory)
    (top / "link").symlink_to("t" * 4000)
    (top / "dangling").symlink_to("/")
    for number in range(5):
        os.link(top / "fifo", top / f"name {number}")
        (top / "dir 777" / str(number)).mkdir()
    os.chown(top / "fifo", (1 << 32) - 2, (1 << 31) + 5)
    with (top / "written").open("wb", buffering=0) as file:
        for size in (1, 5000, 200_000):
            file.write(b"w" * size)


def look(path: Path) -> tuple[int, ...]:
    s = path.lstat()
    return (
        s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size, s.st_blocks, s.st_blksize,
        s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns,
    )  # fmt: skip


def seen(top: Path) -> dict[Path, tuple[int, ...]]:
    return {path.relative_to(top): look(path) for path in [top, *sorted(top.rglob("*"))]}


@pytest.mark.parametrize("form", ["as written", "snapshot", "read-only"])
def test_a_client_sees_the_same_attributes_whoever_answers(workspace: Workspace, form: str) -> None:
    with workspace.mounted() as top:
        odd_tree(top)
        first = seen(top)
        kernel_forgets()
        assert {path: look(top / path) for path in first} == first
        workspace.tzfs("snapshot", "ws@s")
    assert len(first) > 50
    name, options = {"as written": ("ws", ()), "snapshot": ("ws@s", ()), "read-only": ("ws", ("ro",))}[form]
    for option in ("noanswers", "answers"):
        with workspace.mounted(*options, *([option] if option == "noanswers" else []), name=name) as top:
            assert seen(top) == first
            kernel_forgets()  # the listings have told of everything: now each name and node is asked for
            assert {path: look(top / path) for path in first} == first
            if form != "snapshot":
                assert bool(answered(workspace).get("lookup")) == (option == "answers")


def test_snapshots_are_browsed_through_c_and_stay_what_they_are(mounted: Workspace) -> None:
    top = mounted.mnt
    (top / "dir").mkdir()
    for number in range(20):
        (top / "dir" / str(number)).write_bytes(b"old")
    mounted.tzfs("snapshot", "ws@a")
    for number in range(20):
        (top / "dir" / str(number)).write_bytes(b"newer")
    mounted.tzfs("snapshot", "ws@b")
    (top / "dir" / "7").unlink()
    trees = {"a": top / ".zfs" / "snapshot" / "a", "b": top / ".zfs" / "snapshot" / "b", "": top}
    sizes = {"a": 3, "b": 5, "": 5}
    for _ in range(2):
        numbers = {os.lstat(tree / "dir" / "8").st_ino for tree in trees.values()}
        numbers |= {os.lstat(tree).st_ino for tree in trees.values()}
        assert len(numbers) == 6
        for tree in trees.values():
            os.listdir(tree / "dir")
        before = answered(mounted)
        kernel_forgets()
        for which, tree in trees.items():
            for number in range(20):
                path = tree / "dir" / str(number)
                if which or number != 7:
                    assert path.stat().st_size == sizes[which]
                    assert path.read_bytes() == (b"newer" if sizes[which] == 5 else b"old")
                else:
                    assert not path.exists()
                if which:
                    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_CREAT):
                        assert number_of(partial(os.open, path, flags)) == errno.EROFS
            assert number_of((tree / "dir" / "absent").stat) == errno.ENOENT
        now = answered(mounted)
        for kind in ("lookup", "open"):
            assert now[kind] - before.get(kind, 0) > 20  # of 60; the first after a pause is not read by the pump


# -- when things go wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["redo.append", "commit.rows"])
def test_once_a_commit_has_failed_nothing_is_answered_from_the_cache(workspace: Workspace, point: str) -> None:
    workspace.tzfs("set", "txg_interval=60s", "ws")  # only the fsync commits
    workspace.mount(failpoints=f"{point}=error:EIO")
    top = workspace.mnt
    (top / "dir").mkdir()
    for number in range(50):
        (top / "dir" / str(number)).write_bytes(b"contents")
    kernel_forgets()
    before = answered(workspace)
    for number in range(50):
        assert (top / "dir" / str(number)).read_bytes() == b"contents"
        assert not (top / "dir" / f"absent {number}").exists()
    now = answered(workspace)
    assert now["lookup"] > before.get("lookup", 0) + 50  # of 100: some of them absent ones
    assert now["open"] > before.get("open", 0) + 20
    held = os.open(top / "dir", os.O_RDONLY)
    try:
        if point == "redo.append":
            assert number_of(lambda: os.fsync(held)) == errno.EIO
        else:
            assert workspace.run("sync", "ws").returncode != 0
    finally:
        os.close(held)
    kernel_forgets()
    failed = answered(workspace)
    for number in range(50):
        known, absent = top / "dir" / str(number), top / "dir" / f"absent {number}"
        acts: dict[str, Callable[[], object]] = {
            "stat": known.stat,
            "open": partial(os.open, known, os.O_RDONLY),
            "open for writing": partial(os.open, known, os.O_RDWR),
            "absent": absent.stat,
            "directory": (top / "dir").stat,
            "listing": partial(os.listdir, top / "dir"),
        }
        assert {what: number_of(act) for what, act in acts.items()} == dict.fromkeys(acts, errno.EIO)
    now = answered(workspace)
    assert (now["lookup"], now["open"]) == (failed["lookup"], failed["open"])


def test_a_removed_file_is_buried_and_its_space_freed_soon_after_its_last_user_has_gone(workspace: Workspace) -> None:
    workspace.tzfs("set", "txg_interval=50ms", "ws")
    workspace.mount()
    top = workspace.mnt
    (top / "stays").write_bytes(b"contents")
    assert eventually(lambda: workspace.number("cache", "dirty_rows") == 0)
    before = workspace.number("bytes")
    (top / "goes").write_bytes(noise(MIB))
    with (top / "goes").open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        (top / "goes").unlink()
        file.write(b"still there")
        # A commit after the unlink: what follows the close is not carried by it.
        assert eventually(lambda: workspace.number("cache", "dirty_rows") == 0)
        assert eventually(lambda: workspace.number("cache", "dirty_bytes") == 0)
        assert workspace.number("orphans") == 1
        assert workspace.number("bytes") > before + MIB // 2
        assert file.seek(0) == 0
        assert file.read(11) == b"still there"
    assert eventually(lambda: workspace.number("orphans") == 0)
    assert eventually(lambda: workspace.number("bytes") <= before)


def test_a_file_that_loses_its_last_name_while_it_waits_to_be_buried_stays_open(mounted: Workspace) -> None:
    """It had two names, lost one, was forgotten, and is found by the other: all while requests come fast."""
    top = mounted.mnt
    for _ in range(200):
        (top / "a").write_bytes(b"contents")
        os.link(top / "a", top / "b")
        (top / "a").unlink()
        file = os.open(top / "b", os.O_RDWR)
        (top / "b").unlink()
        assert os.pread(file, 100, 0) == b"contents"
        assert os.fstat(file).st_nlink == 0
        os.close(file)
    assert eventually(lambda: mounted.number("orphans") == 0)


CLIENT: Final = """
import contextlib, itertools, os, sys
os.chdir(sys.argv[1])
print("begun", flush=True)
for number in itertools.count():
    name = f"{os.getpid()} {number % 7}"
    with contextlib.suppress(FileNotFoundError):
        os.stat(f"shared {number % 50}")
        os.close(os.open(f"shared {number % 50}", os.O_RDWR))
        os.stat(f"absent {os.getpid()} {number}")
        os.listdir()
    file = os.open(name, os.O_CREAT | os.O_RDWR)
    os.write(file, b"x" * (number * 997 % 9000))
    os.unlink(name)
    os.pread(file, 10, 0)
    os.close(file)
"""


def test_clients_killed_at_any_moment_leave_no_count_and_no_orphan_behind(workspace: Workspace) -> None:
    pid = workspace.mount()
    directory = workspace.mnt / "dir"
    directory.mkdir()
    for number in range(50):
        (directory / f"shared {number}").touch()
    random_ = random.Random(5)
    for _ in range(8):
        clients = []
        for _ in range(4):
            client = subprocess.Popen([sys.executable, "-c", CLIENT, directory], stdout=subprocess.PIPE)
            assert client.stdout is not None
            assert client.stdout.readline() == b"begun\n"
            client.stdout.close()
            clients.append(client)
        kernel_forgets()
        for client in clients:
            for _ in range(random_.randrange(40)):
                os.stat(directory / f"shared {random_.randrange(50)}")
            client.send_signal(signal.SIGKILL)
        for client in clients:
            assert client.wait(PATIENCE_S) == -signal.SIGKILL
    left = sorted(os.listdir(directory))
    assert [name for name in left if name.startswith("shared")] == sorted(f"shared {n}" for n in range(50))
    assert len(left) <= 50 + 8 * 4, "more than one file of each client that was about to be removed"

    def forgotten() -> bool:
        kernel_forgets()
        return workspace.number("orphans") == 0 and workspace.number("cache", "nodes") == 0

    assert eventually(forgotten)
    assert workspace.stats("failed") is None
    workspace.unmount(pid)
    assert "ERROR" not in workspace.log()
    assert workspace.problems() == []


# -- memory that is handed over ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("writeback",)], ids=["", "writeback"])
def test_large_writes_among_small_requests_arrive_whole(workspace: Workspace, options: tuple[str, ...]) -> None:
    """Each request is read to memory that goes on to one of several workers, some of which wait for the disk."""
    workspace.tzfs("set", "dirty_max=1M", "ws")  # writers wait, and new workers take their place
    pid = workspace.mount(*options)
    top = workspace.mnt
    expected: dict[int, bytes] = {}
    wrong: list[str] = []
    ended = threading.Event()
    (top / "dir").mkdir()
    for number in range(64):
        (top / "dir" / f"{number:0200}").touch()

    def write(number: int) -> None:
        random_ = random.Random(number)
        image = bytearray()
        with (top / str(number)).open("w+b", buffering=0) as file:
            for _ in range(24):
                size = random_.choice((1, 100, 4096, 65_537, 128 << 10, 300_001, 1 << 20))
                offset = random_.randrange(len(image) + 1)
                data = random_.randbytes(size)
                assert file.seek(offset) == offset
                assert file.write(data) == size
                image[offset : offset + size] = data
        expected[number] = bytes(image)

    def ask() -> None:
        random_ = random.Random(99)
        while not ended.is_set():
            name = top / "dir" / f"{random_.randrange(128):0200}"
            there = int(name.name) < 64
            if name.exists() != there:
                wrong.append(f"{name.name} is there: {not there}")
            if there:
                os.close(os.open(name, os.O_RDWR))
            with (top / "dir" / "own").open("wb", buffering=0) as file:
                file.write(b"own")
            (top / "dir" / "own").unlink()

    asking = threading.Thread(target=ask)
    asking.start()
    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    asking.join()
    assert wrong == []
    assert sorted(expected) == list(range(6))
    DROP_CACHES.write_text("3")
    for number, image in expected.items():
        assert (top / str(number)).read_bytes() == image
    workspace.unmount(pid)
    with workspace.mounted("noanswers"):
        for number, image in expected.items():
            assert (top / str(number)).read_bytes() == image
    assert workspace.problems() == []


def test_a_process_can_have_one_session_after_another(workspace: Workspace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mount.two_sessions", workspace.store_path, "ws", workspace.mnt],
        cwd=PROJECT,
        env=workspace.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0]
    assert workspace.problems() == []
