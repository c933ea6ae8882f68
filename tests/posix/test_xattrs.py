"""Extended attributes, where the mode keeps them; and one plain answer where it does not."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import fails, make, opened

KEPT = pytest.mark.needs("xattr")


@KEPT
def test_values_are_kept_exactly(root: Path) -> None:
    path = make(root / "file")
    values = {"user.empty": b"", "user.text": b"hello", "user.bytes": bytes(range(256)), "user.é": b"x"}
    for name, value in values.items():
        os.setxattr(path, name, value)
    assert sorted(os.listxattr(path)) == sorted(values)
    for name, value in values.items():
        assert os.getxattr(path, name) == value
    os.setxattr(path, "user.text", b"replaced by something longer")
    assert os.getxattr(path, "user.text") == b"replaced by something longer"
    os.removexattr(path, "user.text")
    assert sorted(os.listxattr(path)) == sorted(set(values) - {"user.text"})


@KEPT
def test_create_and_replace_flags(root: Path) -> None:
    path = make(root / "file")
    with fails(errno.ENODATA):
        os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"


@KEPT
def test_absent_names_are_enodata(root: Path) -> None:
    path = make(root / "file")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.absent")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.absent")
    assert os.listxattr(path) == []


@KEPT
def test_names_and_values_have_limits(place: Place, root: Path) -> None:
    path = make(root / "file")
    longest = "user." + "n" * 250
    os.setxattr(path, longest, b"1")
    assert os.listxattr(path) == [longest]
    with fails(errno.ERANGE):
        os.setxattr(path, longest + "n", b"1")
    with fails(errno.ERANGE):
        os.getxattr(path, longest + "n")
    with fails(errno.E2BIG):
        os.setxattr(path, "user.a", b"v" * 65_537)
    if place.mode.tzfs:  # ext4 keeps all of a file's attributes within one block: ENOSPC
        for length in (3999, 4000, 4096, 4097, 65_536):
            value = os.urandom(length)
            os.setxattr(path, "user.a", value)
            assert os.getxattr(path, "user.a") == value


@KEPT
def test_too_small_buffers_are_erange(root: Path) -> None:
    path = make(root / "file")
    os.setxattr(path, "user.a", b"0123456789")
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(100)
    where = os.fsencode(path)
    assert libc.getxattr(where, b"user.a", buffer, 0) == 10
    assert libc.getxattr(where, b"user.a", buffer, 10) == 10
    assert libc.getxattr(where, b"user.a", buffer, 9) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(where, buffer, 0) == len(b"user.a\0")
    assert libc.listxattr(where, buffer, 3) == -1
    assert ctypes.get_errno() == errno.ERANGE


@KEPT
def test_directories_have_them_and_symlinks_are_followed(root: Path) -> None:
    (root / "directory").mkdir()
    os.setxattr(root / "directory", "user.a", b"d")
    assert os.getxattr(root / "directory", "user.a") == b"d"
    (root / "pointer").symlink_to("directory")
    assert os.getxattr(root / "pointer", "user.a") == b"d"
    with fails(errno.EPERM):
        os.setxattr(root / "pointer", "user.a", b"s", follow_symlinks=False)
    os.mkfifo(root / "fifo")
    with fails(errno.EPERM):
        os.setxattr(root / "fifo", "user.a", b"f")


@KEPT
def test_they_belong_to_the_inode(root: Path) -> None:
    path = make(root / "file")
    os.setxattr(path, "user.a", b"1")
    os.link(path, root / "second")
    path.rename(root / "moved")
    assert os.getxattr(root / "second", "user.a") == b"1"
    with opened(root / "moved", os.O_RDWR) as descriptor:
        os.unlink(root / "moved")
        os.unlink(root / "second")
        os.setxattr(descriptor, "user.b", b"2")
        assert sorted(os.listxattr(descriptor)) == ["user.a", "user.b"]
    make(root / "file")
    assert os.listxattr(root / "file") == []


@KEPT
def test_setting_moves_the_change_time_only(root: Path) -> None:
    path = make(root / "file")
    os.utime(path, (1, 1))
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock has ticked
        os.setxattr(path, "user.a", b"1")
    assert path.stat().st_mtime == 1


@KEPT
def test_forty_of_them(root: Path) -> None:
    path = make(root / "file")
    for number in range(40):
        os.setxattr(path, f"user.{number}", str(number).encode())
    assert sorted(os.listxattr(path)) == sorted(f"user.{number}" for number in range(40))
    for number in range(0, 40, 2):
        os.removexattr(path, f"user.{number}")
    assert sorted(os.listxattr(path)) == sorted(f"user.{number}" for number in range(1, 40, 2))


@KEPT
@pytest.mark.needs("root")
def test_root_keeps_trusted_and_security_attributes(root: Path) -> None:
    path = make(root / "file")
    os.setxattr(path, "trusted.a", b"t")
    os.setxattr(path, "security.a", b"s")
    assert os.getxattr(path, "trusted.a") == b"t"
    assert os.getxattr(path, "security.a") == b"s"


@KEPT
def test_unknown_namespaces_are_refused(root: Path) -> None:
    path = make(root / "file")
    for name in ("nonamespace", "unknown.a"):
        with fails(errno.EOPNOTSUPP):
            os.setxattr(path, name, b"1")
    with fails(errno.EINVAL, errno.EOPNOTSUPP):
        os.setxattr(path, "user.", b"1")


@KEPT
def test_missing_files_are_enoent(root: Path) -> None:
    for call in (
        lambda: os.getxattr(root / "missing", "user.a"),
        lambda: os.setxattr(root / "missing", "user.a", b""),
        lambda: os.listxattr(root / "missing"),
        lambda: os.removexattr(root / "missing", "user.a"),
    ):
        with fails(errno.ENOENT):
            call()


@KEPT
@pytest.mark.needs("ordinary")
def test_rights_of_the_file_apply(root: Path) -> None:
    path = make(root / "file", mode=0o600)
    os.setxattr(path, "user.a", b"1")
    path.chmod(0o400)
    with fails(errno.EACCES):
        os.setxattr(path, "user.a", b"2")
    with fails(errno.EACCES):
        os.removexattr(path, "user.a")
    path.chmod(0o200)
    with fails(errno.EACCES):
        os.getxattr(path, "user.a")
    with fails(errno.EPERM):
        os.setxattr(path, "trusted.a", b"1")


@pytest.mark.needs("mount")
def test_modes_that_keep_none_say_enotsup(place: Place, root: Path) -> None:
    path = make(root / "file")
    if place.mode.keeps_xattrs:
        os.setxattr(path, "user.a", b"1")
        return
    for call in (
        lambda: os.getxattr(path, "user.a"),
        lambda: os.setxattr(path, "user.a", b"1"),
        lambda: os.listxattr(path),
        lambda: os.removexattr(path, "user.a"),
    ):
        with fails(errno.EOPNOTSUPP):
            call()
