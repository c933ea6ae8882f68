"""Finding names and reading attributes: stat, access, odd names, deep paths, and names that were not there before."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.posix.calls import fails, make, opened

ODD_NAMES = (
    b" ",
    b"\n",
    b"\t\r\x1b[31m",
    b"\xff\xfe\x80",  # not UTF-8
    b"\xc3\xa9",  # composed
    b"e\xcc\x81",  # the same letter decomposed: another name
    b"-rf",
    b"...",
    b"a\\b",
    b"*?[]",
    b"'\"`$(x)",
    b"\x01",
    bytes(range(1, 47)) + bytes(range(48, 256)),  # every byte a name may hold
    b"\xff" * 255,
    "文件".encode(),
    b".zfs2",
)


def test_missing_names_are_enoent_and_found_once_made(root: Path) -> None:
    path = root / "late"
    for _ in range(3):
        with fails(errno.ENOENT):
            path.stat()
        make(path)
        assert path.stat().st_size == 0
        path.unlink()
    with fails(errno.ENOENT):
        os.stat(root / "missing" / "below")
    with fails(errno.ENOENT):
        os.stat(b"")


def test_path_through_a_file_is_enotdir(root: Path) -> None:
    make(root / "file")
    for path in (f"{root}/file/below", f"{root}/file/", f"{root}/file/.", f"{root}/file/.."):
        with fails(errno.ENOTDIR):
            os.stat(path)


def test_too_long_names_and_paths_are_enametoolong(root: Path) -> None:
    with fails(errno.ENOENT):
        os.stat(root / ("n" * 255))
    with fails(errno.ENAMETOOLONG):
        os.stat(root / ("n" * 256))
    with fails(errno.ENAMETOOLONG):
        os.stat(f"{root}/{'./' * 2048}")
    assert os.stat(f"{root}/{'./' * 1000}").st_ino == root.stat().st_ino


def test_symlink_loop_is_eloop_for_stat_and_not_for_lstat(root: Path) -> None:
    (root / "self").symlink_to("self")
    with fails(errno.ELOOP):
        os.stat(root / "self")
    assert stat.S_ISLNK(os.lstat(root / "self").st_mode)


def test_names_are_bytes_and_nothing_else(root: Path) -> None:
    where = os.fsencode(root)
    for number, name in enumerate(ODD_NAMES):
        make(Path(os.fsdecode(where + b"/" + name)), str(number).encode())
    assert sorted(os.listdir(where)) == sorted(ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        with open(where + b"/" + name, "rb") as file:
            assert file.read() == str(number).encode(), name
    for name in ODD_NAMES:
        os.rename(where + b"/" + name, where + b"/moved")
        os.rename(where + b"/moved", where + b"/" + name)
        os.unlink(where + b"/" + name)
    assert os.listdir(where) == []


def test_names_differ_by_case(root: Path) -> None:
    make(root / "Name", b"upper")
    make(root / "name", b"lower")
    assert (root / "Name").read_bytes() == b"upper"
    assert (root / "name").read_bytes() == b"lower"


def test_stat_fstat_and_lstat_agree(root: Path) -> None:
    path = make(root / "file", b"12345")
    with opened(path) as descriptor:
        for attribute in ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
            values = {getattr(s, attribute) for s in (os.stat(path), os.lstat(path), os.fstat(descriptor))}
            assert len(values) == 1, attribute


def test_inode_number_is_the_listing_s_too_and_stays(root: Path) -> None:
    for number in range(20):
        make(root / str(number))
    (root / "directory").mkdir()
    listed = {entry.name: entry.inode() for entry in os.scandir(root)}
    assert listed == {name: os.lstat(root / name).st_ino for name in os.listdir(root)}
    assert len(set(listed.values())) == 21
    os.rename(root / "3", root / "directory" / "moved")
    assert (root / "directory" / "moved").stat().st_ino == listed["3"]


def test_access_answers_by_mode_bits(root: Path) -> None:
    path = make(root / "file", mode=0o600)
    assert os.access(path, os.F_OK | os.R_OK | os.W_OK)
    assert not os.access(path, os.X_OK), "not even root executes a file without an x bit"
    path.chmod(0o700)
    assert os.access(path, os.X_OK)
    assert not os.access(root / "missing", os.F_OK)
    assert os.access(root, os.R_OK | os.W_OK | os.X_OK)


def test_preferred_block_size_and_blocks_are_sane(root: Path) -> None:
    path = make(root / "file", b"x" * 100_000)
    with opened(path) as descriptor:
        os.fsync(descriptor)
    found = path.stat()
    assert found.st_blksize >= 512
    assert found.st_blksize & (found.st_blksize - 1) == 0
    assert 100_000 <= found.st_blocks * 512 <= 4 * 100_000


def test_path_of_4000_bytes_and_directories_200_deep(root: Path) -> None:
    previous = os.getcwd()
    try:
        os.chdir(root)
        for level in range(200):
            os.mkdir(f"directory-{level:08d}")
            os.chdir(f"directory-{level:08d}")
        make(Path("bottom"), b"deep")
        assert os.getcwd().endswith("directory-00000199")
        for _ in range(200):
            os.chdir("..")
        assert os.path.samefile(".", root)
        path = "/".join(f"directory-{level:08d}" for level in range(200)) + "/bottom"
        assert 3500 < len(path) < 4096
        with open(path, "rb") as file:
            assert file.read() == b"deep"
        os.mkdir("second")
        os.rename("directory-00000000", "second/moved")
        shutil.rmtree("second")
    finally:
        os.chdir(previous)
    assert os.listdir(root) == []


@pytest.mark.modes("disk", "tzfs", "stock-loop")
def test_directories_two_thousand_deep_can_be_made_and_removed(root: Path) -> None:
    descriptors = [os.open(root, os.O_RDONLY | os.O_DIRECTORY)]
    depth = 2000
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptors[-1])
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptors[-1])
        if len(descriptors) > 1:
            os.close(descriptors.pop())
        descriptors.append(below)
    os.close(descriptors.pop())
    for level in range(depth, 0, -1):
        # From above, through as many steps as one path holds: the names are one byte long.
        if level * 2 < 4000:
            os.rmdir("/".join(["d"] * level), dir_fd=descriptors[0])
        else:
            middle = os.open("/".join(["d"] * (level - 1500)), os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptors[0])
            os.rmdir("/".join(["d"] * 1500), dir_fd=middle)
            os.close(middle)
    os.close(descriptors.pop())
    assert os.listdir(root) == []


def test_dot_and_dot_dot_name_what_they_should(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    assert os.stat(root / "a" / "b" / "..").st_ino == os.stat(root / "a").st_ino
    assert os.stat(f"{root}/a/.").st_ino == os.stat(root / "a").st_ino
    (root / "c").mkdir()
    os.rename(root / "a" / "b", root / "c" / "b")
    assert os.stat(f"{root}/c/b/..").st_ino == os.stat(root / "c").st_ino
