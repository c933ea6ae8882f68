"""The same random calls on the place and on the local disk: the same errno for each, and the same tree at the end.

This finds what no table of expectations thought of.  A failure names its seed and step; run that seed again alone.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import base_folder, open_up, remove_tree
from tests.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

STEPS = 400
NAMES = ("a", "b", "c", "d", "e" * 255)


@pytest.fixture
def reference() -> Iterator[Path]:
    base = base_folder("tzfs-test-reference")
    yield base
    remove_tree(base)


def inner(parent: Path) -> Path:
    """A directory of its own for the calls: a symlink made by them may lead one step up, no further."""
    directory = parent / "inner"
    directory.mkdir()
    return directory


class Player:
    """Makes one random call after another below a directory; two of them with one seed make the same calls."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.descriptors: list[int] = []

    def path(self) -> Path:
        depth = self.random.choice((1, 1, 1, 2, 2, 3))
        return self.root.joinpath(*(self.random.choice(NAMES) for _ in range(depth)))

    def step(self) -> str:
        """One call, and its outcome as text that must be the same on both sides."""
        call = self.random.choice(sorted(n for n in dir(self) if n.startswith("do_")))
        try:
            outcome = getattr(self, call)()
        except OSError as error:
            number = error.errno or 0
            if number == errno.EEXIST and "rename" in call:
                number = errno.ENOTEMPTY  # either may be answered for a directory that is not empty
            outcome = errno.errorcode[number]
        return f"{call[3:]}: {outcome}"

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def do_create(self) -> object:
        flags = self.random.choice((0, os.O_EXCL, os.O_TRUNC, os.O_APPEND))
        self.descriptors.append(os.open(self.path(), os.O_CREAT | os.O_RDWR | flags, 0o644))
        return "opened"

    def do_open(self) -> object:
        flags = self.random.choice((os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_NOFOLLOW))
        path = self.path()
        if path.is_fifo():
            return "fifo"
        self.descriptors.append(os.open(path, flags))
        return "opened"

    def do_close(self) -> object:
        if self.descriptors:
            os.close(self.descriptors.pop(self.random.randrange(len(self.descriptors))))
        return "closed"

    def _descriptor(self) -> int:
        if not self.descriptors:
            raise OSError(errno.EBADF, "none is open")
        return self.random.choice(self.descriptors)

    def do_write(self) -> object:
        data, offset = (
            self.random.randbytes(self.random.choice((1, 100, 5000, 150_000))),
            self.random.randrange(400_000),
        )
        return os.pwrite(self._descriptor(), data, offset)

    def do_read(self) -> object:
        length, offset = self.random.randrange(200_000), self.random.randrange(400_000)
        return hash(os.pread(self._descriptor(), length, offset))

    def do_ftruncate(self) -> None:
        size = self.random.choice((0, 1, 4000, 4001, 131_072, 500_000))
        os.ftruncate(self._descriptor(), size)

    def do_fsync(self) -> None:
        os.fsync(self._descriptor())

    def do_fstat(self) -> object:
        found = os.fstat(self._descriptor())
        return found.st_size, found.st_nlink, oct(found.st_mode)

    def do_mkdir(self) -> None:
        self.path().mkdir(self.random.choice((0o755, 0o700)))

    def do_mkfifo(self) -> None:
        os.mkfifo(self.path())

    def do_symlink(self) -> None:
        self.path().symlink_to(self.random.choice((*NAMES, "a/b", "../a", ".", "t" * 4095)))

    def do_link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def do_unlink(self) -> None:
        self.path().unlink()

    def do_rmdir(self) -> None:
        self.path().rmdir()

    def do_rename(self) -> None:
        renameat2(self.path(), self.path(), 0)

    def do_rename_noreplace(self) -> None:
        renameat2(self.path(), self.path(), RENAME_NOREPLACE)

    def do_rename_exchange(self) -> None:
        renameat2(self.path(), self.path(), RENAME_EXCHANGE)

    def do_chmod(self) -> None:
        self.path().chmod(self.random.choice((0o644, 0o600, 0o755, 0o4755)) | 0o600)

    def do_utime(self) -> None:
        os.utime(self.path(), ns=(self.random.randrange(10**18), self.random.randrange(10**18)))

    def do_stat(self) -> object:
        return described(self.path())

    def do_listdir(self) -> object:
        return sorted(os.listdir(self.path()))

    def do_readlink(self) -> object:
        return os.readlink(self.path())


def described(path: Path) -> tuple[object, ...]:
    """What must be equal on both sides; directories' sizes and every change time are each side's own."""
    found = path.lstat()
    directory = stat.S_ISDIR(found.st_mode)
    return oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, None if directory else found.st_size


def tree(root: Path) -> dict[str, object]:
    """Everything below: attributes, contents and targets by path, and which paths are one inode."""
    inodes: dict[int, str] = {}
    out: dict[str, object] = {}
    for where, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(directories + files):
            path = Path(where) / name
            key = str(path.relative_to(root))
            same = inodes.setdefault(path.lstat().st_ino, key)
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            out[key] = (described(path), same == key, content)
    return out


@pytest.mark.parametrize("seed", range(15))
def test_random_calls_have_the_same_outcome_as_on_the_disk(root: Path, reference: Path, seed: int) -> None:
    here, there = Player(inner(root), seed), Player(inner(reference), seed)
    try:
        for number in range(STEPS):
            mine, theirs = here.step(), there.step()
            assert mine == theirs, f"seed {seed}, step {number}"
    finally:
        here.close()
        there.close()
    assert open_up(root) == open_up(reference), f"seed {seed}"
    assert tree(root) == tree(reference), f"seed {seed}"
