"""unlink and rmdir, and the life of a file after its last name."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from tests.posix.calls import fails, linkat, make, opened


def test_unlink_takes_anything_but_directories(root: Path) -> None:
    make(root / "file")
    (root / "pointer").symlink_to("file")
    os.mkfifo(root / "fifo")
    (root / "directory").mkdir()
    for name in ("pointer", "fifo", "file"):
        os.unlink(root / name)
    assert os.listdir(root) == ["directory"]
    with fails(errno.EISDIR):
        os.unlink(root / "directory")


def test_unlink_refuses_bad_paths(root: Path) -> None:
    make(root / "file")
    (root / "loop").symlink_to("loop")
    for path, number in (
        (f"{root}/missing", errno.ENOENT),
        ("", errno.ENOENT),
        (f"{root}/file/x", errno.ENOTDIR),
        (f"{root}/file/", errno.ENOTDIR),
        (f"{root}/{'n' * 256}", errno.ENAMETOOLONG),
        (f"{root}/{'d/' * 2048}x", errno.ENAMETOOLONG),
        (f"{root}/loop/x", errno.ELOOP),
        (f"{root}/.", errno.EISDIR),
        (f"{root}/..", errno.EISDIR),
    ):
        with fails(number, errno.EINVAL) if path.endswith(".") else fails(number):
            os.unlink(path)


def test_rmdir_takes_empty_directories_only(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "full").mkdir()
    make(root / "full" / "file")
    (root / "to-empty").symlink_to("empty")
    os.rmdir(root / "empty")
    assert not (root / "empty").exists()
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir(root / "full")
    with fails(errno.ENOTDIR):
        os.rmdir(root / "full" / "file")
    with fails(errno.ENOTDIR):
        os.rmdir(root / "to-empty")
    (root / "full" / "file").unlink()
    os.rmdir(root / "full")


def test_rmdir_refuses_bad_paths(root: Path) -> None:
    make(root / "file")
    (root / "directory" / "below").mkdir(parents=True)
    (root / "loop").symlink_to("loop")
    for path, number in (
        (f"{root}/missing", errno.ENOENT),
        ("", errno.ENOENT),
        (f"{root}/file/x", errno.ENOTDIR),
        (f"{root}/{'n' * 256}", errno.ENAMETOOLONG),
        (f"{root}/loop/x", errno.ELOOP),
        (f"{root}/directory/below/.", errno.EINVAL),
        (f"{root}/directory/below/..", errno.ENOTEMPTY),
    ):
        with fails(number):
            os.rmdir(path)


def test_removed_directory_counts_down_and_its_stream_is_empty(root: Path) -> None:
    assert root.stat().st_nlink == 2
    (root / "directory").mkdir()
    assert root.stat().st_nlink == 3
    with opened(root / "directory", os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        (root / "directory").rmdir()
        assert root.stat().st_nlink == 2
        assert os.fstat(descriptor).st_nlink == 0
        with fails(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
        with fails(errno.ENOENT):
            os.mkdir("new", dir_fd=descriptor)
        with fails(errno.ENOENT):
            os.stat("any", dir_fd=descriptor)


def test_removed_working_directory_is_enoent(root: Path) -> None:
    previous = os.getcwd()
    (root / "directory").mkdir()
    os.chdir(root / "directory")
    try:
        os.rmdir(root / "directory")
        with fails(errno.ENOENT):
            os.getcwd()
        with fails(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY)
    finally:
        os.chdir(previous)


# -- without a name --------------------------------------------------------------------------------------------------


def test_unlinked_open_file_lives_on(root: Path) -> None:
    path = make(root / "file", b"before")
    with opened(path, os.O_RDWR) as descriptor:
        path.unlink()
        assert os.fstat(descriptor).st_nlink == 0
        assert os.pread(descriptor, 10, 0) == b"before"
        os.pwrite(descriptor, b"x" * 500_000, 6)
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_size == 500_006
        os.fchmod(descriptor, 0o600)
        os.utime(descriptor, (1, 1))
        assert os.fstat(descriptor).st_mtime == 1
        os.ftruncate(descriptor, 3)
        assert os.pread(descriptor, 10, 0) == b"bef"
        with fails(errno.ENOENT):
            linkat(descriptor, root / "again")
    assert os.listdir(root) == []


def test_new_file_of_the_same_name_is_another(root: Path) -> None:
    path = make(root / "file", b"old")
    with opened(path, os.O_RDWR) as old:
        path.unlink()
        make(path, b"new")
        assert os.fstat(old).st_ino != path.stat().st_ino
        os.pwrite(old, b"OLD", 0)
        assert path.read_bytes() == b"new"
        assert os.pread(old, 3, 0) == b"OLD"
        with opened(f"/proc/self/fd/{old}") as again:
            assert os.pread(again, 3, 0) == b"OLD"


def test_descriptors_of_two_processes_keep_it_alive(root: Path) -> None:
    path = make(root / "file", b"shared")
    reading, writing = os.pipe()
    with opened(path, os.O_RDWR) as descriptor:
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0 if os.pread(descriptor, 6, 0) == b"shared" else 1)
        path.unlink()
    os.close(reading)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0


def test_many_unlinked_files_at_once(root: Path) -> None:
    descriptors = []
    for number in range(200):
        descriptors.append(os.open(root / str(number), os.O_CREAT | os.O_RDWR))
        os.write(descriptors[-1], b"%d" % number)
        os.unlink(root / str(number))
    assert os.listdir(root) == []
    for number, descriptor in enumerate(descriptors):
        assert os.pread(descriptor, 10, 0) == b"%d" % number
        os.close(descriptor)


def test_name_removed_through_one_link_leaves_the_other_locked_and_open(root: Path) -> None:
    path = make(root / "file", b"x")
    os.link(path, root / "second")
    with opened(path, os.O_RDWR) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path.unlink()
        with opened(root / "second", os.O_RDWR) as other, fails(errno.EAGAIN):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert os.fstat(descriptor).st_nlink == 1


@pytest.mark.needs("mount")
def test_inodes_of_removed_files_come_back(root: Path) -> None:
    """The figures are a mount's own; those of the local disk move with whatever else runs there."""

    def used() -> int:
        found = os.statvfs(root)
        return found.f_files - found.f_ffree

    for number in range(10):
        make(root / str(number), b"x" * 10_000)
    full = used()
    for number in range(10):
        (root / str(number)).unlink()
    deadline = time.monotonic() + 60
    while used() > full - 10:  # when the kernel has forgotten them
        assert time.monotonic() < deadline, f"{used()} of {full} inodes are still in use"
