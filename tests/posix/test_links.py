"""Symbolic links and hard links."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.posix.calls import clock_ticks, fails, make


@pytest.fixture(autouse=True)
def source(root: Path) -> Path:
    """What is linked to."""
    return make(root / "source", b"source")


@pytest.mark.parametrize(
    "target",
    [b"x", b"../up/and\xff\xfeodd", b"t" * 60, b"t" * 3999, b"t" * 4000, b"t" * 4001, b"t" * 4095, b"/", b"a\nb"],
    ids=lambda t: f"{len(t)}-{t[:6]!r}",
)
def test_symlink_reads_back_exactly(root: Path, target: bytes) -> None:
    path = os.fsencode(root) + b"/pointer"
    os.symlink(target, path)
    assert os.readlink(path) == target
    assert os.lstat(path).st_size == len(target)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o777


def test_symlink_refuses_an_empty_or_too_long_target(root: Path) -> None:
    with fails(errno.ENOENT):
        os.symlink("", root / "pointer")
    with fails(errno.ENAMETOOLONG):
        os.symlink("t" * 4096, root / "pointer")
    assert not os.path.lexists(root / "pointer")


def test_readlink_refuses_what_is_no_symlink(root: Path) -> None:
    with fails(errno.EINVAL):
        os.readlink(root / "source")
    with fails(errno.EINVAL):
        os.readlink(root)
    with fails(errno.ENOENT):
        os.readlink(root / "missing")
    with fails(errno.ENOTDIR):
        os.readlink(root / "source" / "below")


def test_chain_of_40_symlinks_is_followed_and_of_41_is_eloop(root: Path) -> None:
    (root / "link1").symlink_to("source")
    for number in range(2, 42):
        (root / f"link{number}").symlink_to(f"link{number - 1}")
    assert (root / "link40").read_bytes() == b"source"
    with fails(errno.ELOOP):
        (root / "link41").read_bytes()


def test_link_is_one_file_under_two_names(root: Path) -> None:
    source, second = root / "source", root / "second"
    before = source.stat().st_ctime_ns
    clock_ticks()
    os.link(source, second)
    assert source.stat().st_ino == second.stat().st_ino
    assert source.stat().st_nlink == second.stat().st_nlink == 2
    assert source.stat().st_ctime_ns > before
    second.write_bytes(b"changed through the second")
    assert source.read_bytes() == b"changed through the second"
    second.chmod(0o600)
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    source.unlink()
    assert second.stat().st_nlink == 1
    assert second.read_bytes() == b"changed through the second"


def test_link_refuses_directories_missing_sources_and_other_filesystems(root: Path) -> None:
    (root / "directory").mkdir()
    with fails(errno.EPERM):
        os.link(root / "directory", root / "second")
    with fails(errno.ENOENT):
        os.link(root / "missing", root / "second")
    with fails(errno.EXDEV):
        os.link("/proc/version", root / "second")
    assert (root / "source").stat().st_nlink == 1


def test_link_to_a_symlink_itself(root: Path) -> None:
    (root / "pointer").symlink_to("source")
    os.link(root / "pointer", root / "second", follow_symlinks=False)
    assert os.readlink(root / "second") == "source"
    assert (root / "pointer").lstat().st_nlink == 2


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_special_files_can_be_linked(root: Path, kind: str) -> None:
    os.mknod(root / kind, (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK) | 0o600)
    os.link(root / kind, root / "second")
    assert (root / kind).stat().st_nlink == 2
    assert (root / "second").stat().st_ino == (root / kind).stat().st_ino


@pytest.mark.modes("disk", "tzfs")
def test_link_number_65001_is_emlink(root: Path) -> None:
    directory = root / "links"
    directory.mkdir()
    os.link(root / "source", directory / "2")
    for number in range(3, 65_001):
        os.link(directory / "2", directory / str(number))
    assert (root / "source").stat().st_nlink == 65_000
    with fails(errno.EMLINK):
        os.link(root / "source", directory / "one-too-many")
    (directory / "77").unlink()
    os.link(root / "source", directory / "fits-again")
