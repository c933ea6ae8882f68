"""fsync and its kin, statfs, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.posix.calls import fails, make, opened


def test_sync_calls_take_files_and_directories(root: Path) -> None:
    path = make(root / "file", b"x")
    with opened(path, os.O_RDWR) as descriptor:
        os.write(descriptor, b"y")
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    with opened(path) as descriptor:
        os.fsync(descriptor)
    with opened(root, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    with fails(errno.EBADF):
        os.fsync(descriptor)
    os.mkfifo(root / "fifo")
    with opened(root / "fifo", os.O_RDWR) as descriptor, fails(errno.EINVAL):
        os.fsync(descriptor)
    os.sync()


def test_statvfs_tells_real_figures(root: Path) -> None:
    found = os.statvfs(root)
    assert found.f_namemax == 255
    assert found.f_bsize >= 512
    assert 0 < found.f_bavail <= found.f_bfree <= found.f_blocks
    assert 0 < found.f_ffree <= found.f_files
    with opened(root) as descriptor:
        again = os.fstatvfs(descriptor)
        assert (again.f_bsize, again.f_namemax) == (found.f_bsize, found.f_namemax)
        assert abs(again.f_blocks - found.f_blocks) < found.f_blocks / 100, "others use the disk below meanwhile"


def _in_child(path: Path, lock: int, *, record: bool) -> bool:
    """Whether another process gets that lock at once."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            with opened(path, os.O_RDWR) as descriptor:
                (fcntl.lockf if record else fcntl.flock)(descriptor, lock | fcntl.LOCK_NB)
            status = 0
        except OSError as error:
            status = 1 if error.errno in (errno.EAGAIN, errno.EACCES) else 2
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


@pytest.mark.parametrize("record", [False, True], ids=["flock", "fcntl"])
def test_locks_exclude_other_processes(root: Path, record: bool) -> None:
    path = make(root / "file", b"x" * 100)
    take = fcntl.lockf if record else fcntl.flock
    with opened(path, os.O_RDWR) as descriptor:
        take(descriptor, fcntl.LOCK_EX)
        assert not _in_child(path, fcntl.LOCK_EX, record=record)
        assert not _in_child(path, fcntl.LOCK_SH, record=record)
        take(descriptor, fcntl.LOCK_SH)
        assert _in_child(path, fcntl.LOCK_SH, record=record)
        assert not _in_child(path, fcntl.LOCK_EX, record=record)
        take(descriptor, fcntl.LOCK_UN)
        assert _in_child(path, fcntl.LOCK_EX, record=record)
        take(descriptor, fcntl.LOCK_EX)
    assert _in_child(path, fcntl.LOCK_EX, record=record), "closing lets it go"


def test_record_locks_cover_ranges(root: Path) -> None:
    path = make(root / "file", b"x" * 100)
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 10, 0)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with opened(path, os.O_RDWR) as other:
                    fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
                    with fails(errno.EAGAIN, errno.EACCES):
                        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
