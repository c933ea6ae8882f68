"""Small writes and unlinks that C has answered and that are done after it, as programs see them."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace, eventually
from tests.noise import noise
from tzfs.limits import KIB


def posted(workspace: Workspace, kind: str = "write") -> int:
    found = workspace.stats("answered_in_c")
    assert isinstance(found, dict)
    count = found.get(kind, 0)
    assert isinstance(count, int)
    return count


def rewrite(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        assert os.pwrite(fd, data, 0) == len(data)
    finally:
        os.close(fd)


def until_posted(workspace: Workspace, kind: str, *streaks: Sequence[Callable[[], object]]) -> None:
    """Does it all until some is posted: on a busy machine the daemon may have to give way after each request."""

    def once() -> bool:
        for act in itertools.chain(*streaks):
            act()
        return posted(workspace, kind) > before

    before = posted(workspace, kind)
    assert eventually(once)


@pytest.mark.parametrize("options", [(), ("writeback",), ("xattr",)])
def test_what_was_written_is_there_at_once_and_after_the_next_mount(
    workspace: Workspace, options: tuple[str, ...]
) -> None:
    sizes = [1, 100, 4000, 4001, 4096, 5000, 8192, 8193, 100]
    expected: dict[str, tuple[bytes, int]] = {}
    with workspace.mounted(*options) as top:
        for turn in range(4):
            for i in range(300):
                size = sizes[(i + turn) % len(sizes)]
                rewrite(top / f"{i}", noise(size, f"{turn} {i}"))
                if i % 7 == 0:
                    with open(top / f"{i}", "ab", buffering=0) as file:
                        file.write(b"more")
                if i % 11 == 0:
                    os.truncate(top / f"{i}", size // 2)
                if i % 13 == 0:
                    os.rename(top / f"{i}", top / "moved")
                    os.rename(top / "moved", top / f"{i}")
        if not options:
            full = noise(8192, "full")
            until_posted(workspace, "write", [partial(rewrite, top / f"{i}", full) for i in range(300)])
        before = time.time_ns()
        for i in range(300):
            data = noise(8192 + 4, f"last {i}")
            for part in (data[2:-2], data[1:-3], data[4:], data[:-4]):  # the last follow others
                rewrite(top / f"{i}", part)
            stat = os.stat(top / f"{i}")
            found = (top / f"{i}").read_bytes()
            assert found[:8192] == data[:8192]
            assert stat.st_size == len(found)
            if "writeback" not in options:  # then it is the kernel's, whose clock is coarser
                assert before <= stat.st_mtime_ns <= time.time_ns()
            expected[f"{i}"] = found, stat.st_mtime_ns
    assert workspace.problems() == []
    with workspace.mounted() as top:
        for name, (data, mtime_ns) in expected.items():
            assert (top / name).read_bytes() == data
            if "writeback" not in options:
                assert os.stat(top / name).st_mtime_ns == mtime_ns


def test_a_snapshot_and_an_fsync_have_what_was_answered_before(workspace: Workspace) -> None:
    pid = workspace.mount()
    top = workspace.mnt
    for i in range(40):
        rewrite(top / f"{i}", noise(4 * KIB, "first"))
    workspace.tzfs("snapshot", "ws@s")
    for i in range(40):
        rewrite(top / f"{i}", noise(4 * KIB, "second"))
    fd = os.open(top / "0", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    workspace.kill(pid)
    assert workspace.problems() == []
    with workspace.mounted() as top:
        for i in range(40):
            assert (top / ".zfs/snapshot/s" / f"{i}").read_bytes() == noise(4 * KIB, "first")
            assert (top / f"{i}").read_bytes() == noise(4 * KIB, "second")


def test_where_a_quota_may_refuse_nothing_is_posted(workspace: Workspace) -> None:
    workspace.tzfs("set", "quota=1M", "ws")
    with workspace.mounted() as top:
        refused = 0
        for i in range(150):
            try:
                rewrite(top / f"{i}", noise(8 * KIB, f"{i}"))
            except OSError as error:
                if error.errno != errno.EDQUOT:
                    raise
                refused += 1
        assert refused
        assert posted(workspace) == 0
    assert workspace.problems() == []


def test_a_file_without_a_name_takes_posted_writes_to_its_end(workspace: Workspace) -> None:
    with workspace.mounted() as top:
        fds = []
        for i in range(50):
            fds.append(os.open(top / f"{i}", os.O_RDWR | os.O_CREAT))
            os.unlink(top / f"{i}")
        for turn in range(3):
            for fd in fds:
                os.pwrite(fd, noise(4 * KIB, f"{turn} {fd}"), 0)
        for fd in fds:
            assert os.pread(fd, 8 * KIB, 0) == noise(4 * KIB, f"2 {fd}")
        last = noise(4 * KIB, "last")
        until_posted(workspace, "write", [partial(os.pwrite, fd, last, 0) for fd in fds])
        for fd in fds:
            assert os.pread(fd, 8 * KIB, 0) == last
            os.close(fd)
        assert eventually(lambda: workspace.number("orphans") == 0)
    assert workspace.problems() == []


def test_writers_that_are_killed_leave_whole_writes(workspace: Workspace) -> None:
    program = (
        "import os, sys\n"
        "k = 0\n"
        "while True:\n"
        "    for i in range(50):\n"
        "        fd = os.open(f'{sys.argv[1]}/{i}', os.O_WRONLY | os.O_CREAT)\n"
        "        os.pwrite(fd, b'%8d' % k * 512, 0)\n"
        "        os.close(fd)\n"
        "        k += 1\n"
    )
    with workspace.mounted() as top:

        def once() -> bool:
            writer = subprocess.Popen(["python3", "-c", program, top])
            time.sleep(0.2)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            for path in top.iterdir():
                data = path.read_bytes()
                assert data == data[:8] * (len(data) // 8)
                assert len(data) in (0, 4 * KIB)
            return next(rounds) >= 10 and posted(workspace) > 0

        rounds = itertools.count(1)
        assert eventually(once)
    assert workspace.problems() == []


def test_what_was_removed_is_gone_at_once_and_after_the_next_mount(workspace: Workspace) -> None:
    with workspace.mounted() as top:
        (top / "names").mkdir()
        for i in range(400):
            rewrite(top / f"{i}", noise(100, f"{i}"))
            if i % 3 == 0:
                os.link(top / f"{i}", top / "names" / f"{i}")
            if i % 5 == 0:
                os.symlink("nowhere", top / f"link {i}")
        held = [os.open(top / f"{i}", os.O_RDWR) for i in range(100, 120)]
        for i in range(200):
            os.unlink(top / f"{i}")
            if i % 5 == 0:
                os.unlink(top / f"link {i}")
        assert {int(name) for name in os.listdir(top) if name.isdecimal()} == set(range(200, 400))
        for i in range(200, 300):
            before = time.time_ns()
            os.unlink(top / f"{i}")
            after = time.time_ns()
            assert before <= os.stat(top).st_mtime_ns <= after
            if i % 3 == 0:
                found = os.stat(top / "names" / f"{i}")
                assert found.st_nlink == 1
                assert before <= found.st_ctime_ns <= after
            with pytest.raises(FileNotFoundError):
                os.unlink(top / f"{i}")
        for i, fd in enumerate(held, 100):
            assert os.pread(fd, 200, 0) == noise(100, f"{i}")
            os.pwrite(fd, b"without a name", 0)
            assert os.fstat(fd).st_nlink == (i % 3 == 0)
            os.close(fd)
        for i in range(300, 350):  # a new one of that name is not what was removed
            os.unlink(top / f"{i}")
            rewrite(top / f"{i}", b"new")
        again = [top / f"again {i}" for i in range(200)]
        until_posted(workspace, "unlink", [path.touch for path in again], [path.unlink for path in again])
        assert eventually(lambda: workspace.number("orphans") == 0)
    assert workspace.problems() == []
    with workspace.mounted() as top:
        assert {int(name) for name in os.listdir(top) if name.isdecimal()} == set(range(300, 400))
        assert {(top / f"{i}").read_bytes() for i in range(300, 350)} == {b"new"}
        for i in range(0, 400, 3):
            changed = b"without a name" if 100 <= i < 120 else b""
            assert (top / "names" / f"{i}").read_bytes() == changed + noise(100, f"{i}")[len(changed) :]


def test_trees_are_removed_whole_beside_snapshots_that_keep_them(workspace: Workspace) -> None:
    with workspace.mounted() as top:
        for turn in range(5):
            for d in range(20):
                (top / f"{d}").mkdir()
                for i in range(20):
                    rewrite(top / f"{d}" / f"{i}", noise(100, f"{turn} {d} {i}"))
            workspace.tzfs("snapshot", f"ws@{turn}")
            subprocess.run(["rm", "-r", *(top / f"{d}" for d in range(20))], check=True)
            assert os.listdir(top) == []
        for turn in range(5):
            for d in range(20):
                kept = top / ".zfs" / "snapshot" / f"{turn}" / f"{d}"
                assert len(os.listdir(kept)) == 20
                assert (kept / "7").read_bytes() == noise(100, f"{turn} {d} 7")
    assert workspace.problems() == []


def test_what_was_removed_before_an_fsync_stays_so_when_the_daemon_is_killed(workspace: Workspace) -> None:
    pid = workspace.mount()
    top = workspace.mnt
    for i in range(100):
        rewrite(top / f"{i}", b"x")
    for i in range(0, 100, 2):
        os.unlink(top / f"{i}")
    fd = os.open(top, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    workspace.kill(pid)
    assert workspace.problems() == []
    with workspace.mounted() as top:
        assert sorted(map(int, os.listdir(top))) == list(range(1, 100, 2))
