"""Files made and removed without pyfuse3, as programs see it: as with it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace, eventually

Answer = tuple[str, int | tuple[int, ...]]


def answer_of(act: Callable[[], object]) -> int:
    """Its errno, or 0."""
    try:
        act()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def make(path: Path | str, flags: int = 0, mode: int = 0o666, *, at: int | None = None) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | flags, mode, dir_fd=at))


def shape(path: Path) -> tuple[int, ...]:
    found = os.lstat(path)
    return found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size, found.st_ino


def answers(top: Path) -> Iterator[Answer]:
    """What a program is answered, step by step."""
    for mask in (0, 0o022, 0o077, 0o777):
        before = os.umask(mask)
        try:
            for mode in (0, 0o600, 0o666, 0o4755, 0o2755, 0o1644, 0o7777):
                path = top / f"{mask:o}-{mode:o}"
                make(path, mode=mode)
                yield path.name, shape(path)
        finally:
            os.umask(before)
    inherits = top / "inherits"
    inherits.mkdir()
    os.chown(inherits, 61_001, 61_002)
    os.chmod(inherits, 0o2777)
    make(inherits / "file", mode=0o2775)
    yield "setgid", shape(inherits / "file")
    yield "of the directory", shape(inherits)
    yield "exists", answer_of(lambda: make(inherits / "file", os.O_EXCL))
    yield "opened", answer_of(lambda: make(inherits / "file"))
    (inherits / "file").write_bytes(b"contents")
    make(inherits / "file", os.O_TRUNC)
    yield "cut", shape(inherits / "file")
    for name in ("n" * 255, "n" * 256, "line\nbreak", "\udcff\udcfe"):
        yield ascii(name), answer_of(partial(make, inherits / name))
    yield "a directory", answer_of(lambda: make(inherits, os.O_EXCL))
    yield "of a file", answer_of(lambda: make(inherits / "file" / "x"))
    yield "absent", answer_of(lambda: os.unlink(inherits / "absent"))
    yield "unlink a directory", answer_of(lambda: os.unlink(inherits))
    os.link(inherits / "file", top / "other name")
    os.unlink(inherits / "file")
    yield "one name less", shape(top / "other name")
    with open(top / "other name", "rb") as held:
        os.unlink(top / "other name")
        found = os.fstat(held.fileno())
        yield "without a name", (found.st_nlink, found.st_size)
    yield "again", answer_of(lambda: os.unlink(top / "other name"))
    os.mkfifo(top / "fifo")
    os.symlink("nowhere", top / "link")
    yield "through a link", answer_of(lambda: make(top / "link"))
    yield "nowhere", shape(top / "nowhere")
    for name in ("fifo", "link"):
        yield f"unlink {name}", answer_of(partial(os.unlink, top / name))
    (top / "gone").mkdir()
    gone = os.open(top / "gone", os.O_RDONLY)
    (top / "gone").rmdir()
    yield "in what is gone", answer_of(lambda: make("x", at=gone))
    yield "out of what is gone", answer_of(lambda: os.unlink("x", dir_fd=gone))
    os.close(gone)
    for path in (top / ".zfs" / "x", top / ".zfs" / "snapshot" / "x", top / ".zfs" / "snapshot" / "s" / "x"):
        yield f"create {path.relative_to(top)}", answer_of(partial(make, path))
    yield "unlink in a snapshot", answer_of(lambda: os.unlink(top / ".zfs" / "snapshot" / "s" / "old"))
    yield "the names", tuple(len(name) for name in sorted(os.listdir(top)))
    yield "the root", shape(top)[:4]


@pytest.mark.parametrize("options", [(), ("xattr",), ("writeback",)])
def test_answers_are_those_of_a_mount_where_pyfuse3_gives_them(workspace: Workspace, options: tuple[str, ...]) -> None:
    workspace.tzfs("create", "other")
    found = []
    for name, pump in (("ws", "on"), ("other", "off")):
        workspace.environment["TZFS_PUMP"] = pump
        with workspace.mounted(*options, name=name) as top:
            make(top / "old")
            workspace.tzfs("snapshot", f"{name}@s")
            found.append(list(answers(top)))
    assert workspace.problems() == []
    assert found[0] == found[1]
    known = dict(found[0])
    assert [known[what] for what in ("exists", "opened", "a directory", "of a file")] == [
        errno.EEXIST, 0, errno.EEXIST, errno.ENOTDIR,
    ]  # fmt: skip
    assert [known[what] for what in ("absent", "unlink a directory", "again", "in what is gone")] == [
        errno.ENOENT, errno.EISDIR, errno.ENOENT, errno.ENOENT,
    ]  # fmt: skip
    assert known["without a name"] == (0, 0)
    inherited, masked = known["setgid"], known["22-7777"]
    assert isinstance(inherited, tuple)
    assert isinstance(masked, tuple)
    assert inherited[:5] == (0o102755, 0, 61_002, 1, 0)
    assert masked[0] == 0o107755
    assert [known[what] for what in (repr("n" * 255), repr("n" * 256))] == [0, errno.ENAMETOOLONG]
    assert known["create .zfs/snapshot/s/x"] == known["unlink in a snapshot"] == errno.EROFS


def test_no_more_is_made_than_a_quota_allows_and_all_is_counted(workspace: Workspace) -> None:
    workspace.tzfs("set", "inode_quota=50", "ws")
    with workspace.mounted() as top:
        found = [answer_of(partial(make, top / f"{i}")) for i in range(70)]
        made = found.index(errno.EDQUOT)
        assert made > 40
        assert found == [0] * made + [errno.EDQUOT] * (70 - made)
        for i in range(20):
            os.unlink(top / f"{i}")
        assert answer_of(partial(make, top / "again")) == 0
        stats = workspace.stats("requests")
    assert isinstance(stats, dict)
    for kind, counts in (("create", (71, 70 - made)), ("unlink", (20, 0))):
        one = stats[kind]
        assert isinstance(one, dict)
        assert (one["count"], one["errors"]) == counts
    assert workspace.problems() == []


def test_while_the_filesystem_is_rolled_back_they_wait(workspace: Workspace) -> None:
    """Another program makes files all the while: what it was told of after the last rollback is there."""
    program = (
        "import itertools, os, sys, time\n"
        "for k in itertools.count():\n"
        "    os.close(os.open(f'{sys.argv[1]}/{k}', os.O_CREAT | os.O_EXCL | os.O_WRONLY))\n"
        "    time.sleep(0.0005)\n"
    )
    with workspace.mounted() as top:
        made = top / "made"
        made.mkdir()
        workspace.tzfs("snapshot", "ws@s")

        def numbers() -> list[int]:
            return sorted(map(int, os.listdir(made)))

        with subprocess.Popen([sys.executable, "-c", program, made]) as running:
            for _ in range(3):
                assert eventually(lambda: len(numbers()) > 100)
                workspace.tzfs("rollback", "ws@s")
            assert eventually(lambda: len(numbers()) > 100)
            assert running.poll() is None, "it was refused"
            running.terminate()
        left = numbers()
        assert left[0] > 300
        assert left == list(range(left[0], left[0] + len(left)))
    assert workspace.problems() == []
