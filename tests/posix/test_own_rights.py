"""What mode bits keep even an owner from, in every mode of mounting: for an ordinary user, whom the kernel checks.

Private mounts check modes in the daemon or not at all where root alone may enter; these tests see no difference.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import fails, make

pytestmark = pytest.mark.needs("ordinary")


def test_file_without_bits_is_eacces_to_its_owner(root: Path) -> None:
    path = make(root / "file", b"content", 0o000)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with fails(errno.EACCES):
            os.open(path, flags)
    with fails(errno.EACCES):
        os.truncate(path, 0)
    path.chmod(0o400)
    assert path.read_bytes() == b"content"
    path.chmod(0o077)
    with fails(errno.EACCES):
        os.open(path, os.O_RDONLY)
    path.chmod(0o600)
    assert path.read_bytes() == b"content"


def test_rights_given_and_taken_count_at_once(root: Path) -> None:
    path = make(root / "file", b"content")
    directory = root / "directory"
    directory.mkdir()
    make(directory / "file", b"below")
    for _ in range(3):
        path.chmod(0o000)
        with fails(errno.EACCES):
            path.read_bytes()
        path.chmod(0o644)
        assert path.read_bytes() == b"content"
        directory.chmod(0o600)
        with fails(errno.EACCES):
            (directory / "file").read_bytes()
        with fails(errno.EACCES):
            os.stat(directory / "missing")
        directory.chmod(0o700)
        assert (directory / "file").read_bytes() == b"below"


ENTRY_CALLS: dict[str, Callable[[Path], object]] = {
    "create": lambda d: os.close(os.open(d / "new", os.O_CREAT | os.O_WRONLY)),
    "mkdir": lambda d: (d / "new").mkdir(),
    "mknod": lambda d: os.mknod(d / "new"),
    "symlink": lambda d: (d / "new").symlink_to("x"),
    "link": lambda d: os.link(d.parent / "outside", d / "new"),
    "unlink": lambda d: (d / "file").unlink(),
    "rmdir": lambda d: (d / "below").rmdir(),
    "rename-within": lambda d: (d / "file").rename(d / "new"),
    "rename-out": lambda d: (d / "file").rename(d.parent / "new"),
    "rename-in": lambda d: (d.parent / "outside").rename(d / "new"),
    "rename-over": lambda d: (d.parent / "outside").rename(d / "file"),
}


@pytest.mark.parametrize("call", ENTRY_CALLS.values(), ids=ENTRY_CALLS)
@pytest.mark.parametrize("mode", [0o500, 0o600, 0o400, 0o000], ids=oct)
def test_changing_entries_needs_write_and_search(root: Path, call: Callable[[Path], object], mode: int) -> None:
    directory = root / "directory"
    directory.mkdir()
    make(directory / "file")
    (directory / "below").mkdir()
    make(root / "outside")
    directory.chmod(mode)
    try:
        with fails(errno.EACCES):
            call(directory)
    finally:
        directory.chmod(0o700)
    assert sorted(os.listdir(directory)) == ["below", "file"]
    call(directory)


def test_directory_without_read_is_searched_and_not_listed(root: Path) -> None:
    directory = root / "directory"
    directory.mkdir()
    make(directory / "file", b"x")
    directory.chmod(0o300)
    with fails(errno.EACCES):
        os.listdir(directory)
    assert (directory / "file").read_bytes() == b"x"
    directory.chmod(0o400)
    assert os.listdir(directory) == ["file"]
    with fails(errno.EACCES):
        os.stat(directory / "file")
    with fails(errno.EACCES):
        os.chdir(directory)
    directory.chmod(0o700)


def test_deep_path_is_cut_by_any_directory_on_it(root: Path) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    make(root / "a" / "b" / "c" / "file", b"x")
    assert (root / "a" / "b" / "c" / "file").read_bytes() == b"x"
    for name in ("a", "a/b", "a/b/c"):
        (root / name).chmod(0o600)
        with fails(errno.EACCES):
            os.stat(root / "a" / "b" / "c" / "file")
        (root / name).chmod(0o700)
    assert (root / "a" / "b" / "c" / "file").read_bytes() == b"x"


def test_running_a_file_needs_its_x_bit(root: Path) -> None:
    program = root / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    with fails(errno.EACCES):
        os.execv(program, ["program"])
    program.chmod(0o500)
    assert os.spawnv(os.P_WAIT, program, ["program"]) == 0


def test_sgid_of_a_group_that_is_not_ones_own_is_dropped(root: Path) -> None:
    path = make(root / "file")
    path.chmod(0o2755)
    assert path.stat().st_mode & 0o7777 == 0o2755, "one's own group"
