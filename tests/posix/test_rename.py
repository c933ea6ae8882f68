"""rename and renameat2: what replaces what, what is refused, exchange, and the link counts of directories."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    fails,
    make,
    opened,
    rename_exactly,
    renameat2,
)


@pytest.fixture
def tree(root: Path) -> Path:
    """file, other; empty, empty2; full/ with below/ and file; pointer -> file; fifo."""
    make(root / "file", b"file")
    make(root / "other", b"other")
    for name in ("empty", "empty2", "full", "full/below"):
        (root / name).mkdir()
    make(root / "full" / "file", b"in full")
    (root / "pointer").symlink_to("file")
    os.mkfifo(root / "fifo")
    return root


def test_moves_everything_the_name_stands_for(tree: Path) -> None:
    before = {name: (tree / name).lstat().st_ino for name in ("file", "empty", "full", "pointer", "fifo")}
    for name, ino in before.items():
        os.rename(tree / name, tree / f"{name}-renamed")
        assert not os.path.lexists(tree / name)
        assert (tree / f"{name}-renamed").lstat().st_ino == ino
        os.rename(tree / f"{name}-renamed", tree / "empty2" / name)
        assert (tree / "empty2" / name).lstat().st_ino == ino
    assert (tree / "empty2" / "full" / "file").read_bytes() == b"in full"
    assert os.readlink(tree / "empty2" / "pointer") == "file"


@pytest.mark.parametrize("target", ["other", "pointer", "fifo"])
def test_replaces_anything_that_is_no_directory(tree: Path, target: str) -> None:
    os.rename(tree / "file", tree / target)
    assert (tree / target).read_bytes() == b"file"
    assert not (tree / "file").exists()


@pytest.mark.parametrize("source", ["pointer", "fifo", "file"])
def test_anything_that_is_no_directory_replaces_a_file(tree: Path, source: str) -> None:
    ino = (tree / source).lstat().st_ino
    os.rename(tree / source, tree / "other")
    assert (tree / "other").lstat().st_ino == ino


def test_directory_replaces_an_empty_directory_only(tree: Path) -> None:
    os.rename(tree / "full", tree / "empty")
    assert sorted(os.listdir(tree / "empty")) == ["below", "file"]
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(tree / "empty2", tree / "empty")


def test_kinds_do_not_replace_each_other(tree: Path) -> None:
    with fails(errno.EISDIR):
        os.rename(tree / "file", tree / "empty")
    with fails(errno.EISDIR):
        os.rename(tree / "file", tree / "full")
    with fails(errno.ENOTDIR):
        os.rename(tree / "empty", tree / "file")
    with fails(errno.ENOTDIR):
        os.rename(tree / "empty", tree / "pointer")


def test_refuses_bad_paths(tree: Path) -> None:
    (tree / "loop").symlink_to("loop")
    long = tree / ("n" * 256)
    for source, target, number in (
        (tree / "missing", tree / "new", errno.ENOENT),
        (tree / "file", tree / "missing" / "new", errno.ENOENT),
        (tree / "missing" / "x", tree / "new", errno.ENOENT),
        (tree / "file" / "x", tree / "new", errno.ENOTDIR),
        (tree / "file", tree / "other" / "x", errno.ENOTDIR),
        (long, tree / "new", errno.ENAMETOOLONG),
        (tree / "file", long, errno.ENAMETOOLONG),
        (tree / "loop" / "x", tree / "new", errno.ELOOP),
        (tree / "file", tree / "loop" / "x", errno.ELOOP),
    ):
        with fails(number):
            os.rename(source, target)
    where = os.fsencode(tree)
    for old, new, number in (
        (b"", where + b"/new", errno.ENOENT),
        (where + b"/file", b"", errno.ENOENT),
        (where + b"/file/", where + b"/new", errno.ENOTDIR),
        (where + b"/file", where + b"/new/", errno.ENOTDIR),
    ):
        with fails(number):
            rename_exactly(old, new)
    rename_exactly(where + b"/empty/", where + b"/moved/")
    assert (tree / "moved").is_dir()


def test_directory_does_not_go_below_itself(tree: Path) -> None:
    for target in ("full/new", "full/below/new", "full/below"):
        with fails(errno.EINVAL, errno.ENOTEMPTY) if target == "full/below" else fails(errno.EINVAL):
            os.rename(tree / "full", tree / target)
    with fails(errno.ENOTEMPTY):
        os.rename(tree / "full" / "below", tree / "full")
    for dots in (".", ".."):
        with fails(errno.EBUSY, errno.EINVAL):
            rename_exactly(os.fsencode(tree / "full") + b"/" + dots.encode(), os.fsencode(tree / "new"))
        with fails(errno.EBUSY, errno.EINVAL):
            rename_exactly(os.fsencode(tree / "empty"), os.fsencode(tree / "full") + b"/" + dots.encode())


def test_mountpoint_is_busy(place: Place, root: Path) -> None:
    if not place.mode.tzfs:
        return
    with fails(errno.EBUSY, errno.EXDEV):
        os.rename(place.mountpoint, place.base / "elsewhere")
    with fails(errno.EBUSY):
        os.rmdir(place.mountpoint)


def test_other_filesystem_is_exdev(tree: Path) -> None:
    with fails(errno.EXDEV):
        os.rename(tree / "file", "/proc/new")
    with fails(errno.EXDEV):
        os.rename("/proc/version", tree / "new")


def test_onto_itself_or_another_name_of_the_same_file_does_nothing(tree: Path) -> None:
    os.rename(tree / "file", tree / "file")
    os.rename(tree / "full", tree / "full")
    os.link(tree / "file", tree / "second")
    os.rename(tree / "file", tree / "second")
    assert (tree / "file").stat().st_nlink == 2
    assert sorted(p.name for p in tree.iterdir() if p.name in ("file", "second")) == ["file", "second"]


def test_replaced_file_loses_one_name(tree: Path) -> None:
    os.link(tree / "other", tree / "second")
    os.rename(tree / "file", tree / "other")
    assert (tree / "second").stat().st_nlink == 1
    assert (tree / "second").read_bytes() == b"other"


def test_open_files_stay_what_they_were(tree: Path) -> None:
    with opened(tree / "file", os.O_RDWR) as moved, opened(tree / "other", os.O_RDWR) as replaced:
        os.rename(tree / "file", tree / "other")
        os.pwrite(moved, b"MOVED", 0)
        os.pwrite(replaced, b"GONE!", 0)
        assert os.fstat(moved).st_nlink == 1
        assert os.fstat(replaced).st_nlink == 0
        assert os.pread(replaced, 10, 0) == b"GONE!"
        assert (tree / "other").read_bytes() == b"MOVED"


def test_write_aside_then_rename_is_seen_whole_by_readers(root: Path) -> None:
    target = make(root / "target", b"0" * 20_000)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number in range(1, 200):
                make(root / "aside", b"%d" % (number % 10) * 20_000).rename(target)
            status = 0
        finally:
            os._exit(status)
    seen = 0
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        content = target.read_bytes()
        assert len(content) == 20_000
        assert len(set(content)) == 1
        seen += 1
    assert seen
    assert target.read_bytes() == b"9" * 20_000


def test_directory_link_counts_follow(tree: Path) -> None:
    def links(*names: str) -> list[int]:
        return [(tree / name).stat().st_nlink for name in names]

    assert links("full", "empty") == [3, 2]
    os.rename(tree / "full" / "below", tree / "empty" / "below")
    assert links("full", "empty") == [2, 3]
    (tree / "full" / "below").mkdir()
    os.rename(tree / "full" / "below", tree / "empty" / "below")  # replaces an empty one
    assert links("full", "empty") == [2, 3]
    renameat2(tree / "empty" / "below", tree / "full" / "file", RENAME_EXCHANGE)
    assert links("full", "empty") == [3, 2]
    assert (tree / "empty" / "below").read_bytes() == b"in full"


def test_working_directory_may_be_moved(tree: Path) -> None:
    previous = os.getcwd()
    os.chdir(tree / "full")
    try:
        os.rename(tree / "full", tree / "empty2" / "moved")
        assert os.getcwd() == str(tree / "empty2" / "moved")
        assert Path("file").read_bytes() == b"in full"
        make(Path("new"))
    finally:
        os.chdir(previous)
    assert (tree / "empty2" / "moved" / "new").exists()


# -- flags -----------------------------------------------------------------------------------------------------------


def test_noreplace_moves_only_to_a_free_name(tree: Path) -> None:
    for target in ("other", "empty", "pointer", "file"):
        with fails(errno.EEXIST):
            renameat2(tree / "file", tree / target, RENAME_NOREPLACE)
    renameat2(tree / "file", tree / "new", RENAME_NOREPLACE)
    assert (tree / "new").read_bytes() == b"file"
    with fails(errno.ENOENT):
        renameat2(tree / "missing", tree / "free", RENAME_NOREPLACE)


@pytest.mark.parametrize(
    ("one", "two"), [("file", "other"), ("file", "full"), ("empty", "full"), ("pointer", "fifo"), ("full/file", "file")]
)
def test_exchange_swaps_any_two(tree: Path, one: str, two: str) -> None:
    before = (tree / one).lstat().st_ino, (tree / two).lstat().st_ino
    renameat2(tree / one, tree / two, RENAME_EXCHANGE)
    assert ((tree / two).lstat().st_ino, (tree / one).lstat().st_ino) == before
    renameat2(tree / one, tree / two, RENAME_EXCHANGE)
    assert ((tree / one).lstat().st_ino, (tree / two).lstat().st_ino) == before


def test_exchange_refuses(tree: Path) -> None:
    with fails(errno.ENOENT):
        renameat2(tree / "file", tree / "missing", RENAME_EXCHANGE)
    with fails(errno.ENOENT):
        renameat2(tree / "missing", tree / "file", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(tree / "full", tree / "full" / "below", RENAME_EXCHANGE)
    with fails(errno.EINVAL, errno.ENOTEMPTY):
        renameat2(tree / "full" / "below", tree / "full", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(tree / "file", tree / "other", RENAME_EXCHANGE | RENAME_NOREPLACE)
    with fails(errno.EINVAL):
        renameat2(tree / "file", tree / "new", 1 << 7)


def test_dot_dot_follows_an_exchange(tree: Path) -> None:
    renameat2(tree / "full" / "below", tree / "empty", RENAME_EXCHANGE)
    assert os.stat(f"{tree}/empty/..").st_ino == tree.stat().st_ino
    assert os.stat(f"{tree}/full/below/..").st_ino == (tree / "full").stat().st_ino


@pytest.mark.needs("root")
def test_whiteout_is_left_behind_or_refused(place: Place, tree: Path) -> None:
    if place.mode.makes_whiteouts:
        renameat2(tree / "file", tree / "new", RENAME_WHITEOUT)
        assert (tree / "file").lstat().st_rdev == 0
    else:
        with fails(errno.EINVAL, errno.EPERM):
            renameat2(tree / "file", tree / "new", RENAME_WHITEOUT)
        assert (tree / "file").read_bytes() == b"file"
