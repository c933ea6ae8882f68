"""Listings: complete, each name once, stable positions while entries come and go, large directories, link counts."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from pathlib import Path

import pytest

from tests.posix.calls import Directory, fails, make, opened

MANY = 20_000


def fill(directory: Path, count: int) -> list[str]:
    """So many empty files, made through a descriptor of the directory, and their names."""
    names = [f"name-{number:06d}" for number in range(count)]
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as where:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=where))
    return names


def test_listing_has_dot_and_dot_dot_and_every_kind(root: Path) -> None:
    directory = root / "directory"
    directory.mkdir()
    make(directory / "file")
    (directory / "below").mkdir()
    (directory / "pointer").symlink_to("x")
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "socket", stat.S_IFSOCK | 0o600)
    with Directory(directory) as stream:
        found = {}
        while (entry := stream.read()) is not None:
            assert entry[0] not in found
            found[entry[0]] = entry[1:]
    kinds = {b"file": 8, b"below": 4, b"pointer": 10, b"fifo": 1, b"socket": 12, b".": 4, b"..": 4}
    assert set(found) == set(kinds)
    for name, (ino, kind) in found.items():
        assert kind in (kinds[name], 0), name
        assert ino == os.lstat(os.fsencode(directory) + b"/" + name).st_ino, name


def test_listing_refuses_what_is_no_directory(root: Path) -> None:
    make(root / "file")
    with fails(errno.ENOTDIR):
        os.listdir(root / "file")
    with fails(errno.ENOENT):
        os.listdir(root / "missing")
    with opened(root / "file") as descriptor, fails(errno.ENOTDIR):
        os.listdir(descriptor)


def test_position_taken_anywhere_leads_back_there(root: Path) -> None:
    names = [os.fsencode(n) for n in fill(root, 300)]
    with Directory(root) as stream:
        positions = []
        order = []
        while True:
            positions.append(stream.tell())
            if (entry := stream.read()) is None:
                break
            order.append(entry[0])
        assert sorted(n for n in order if not n.startswith(b".")) == names
        for index in random.Random(7).sample(range(len(order)), 60):
            stream.seek(positions[index])
            assert stream.names() == order[index:]
        stream.rewind()
        assert stream.names() == order


def test_rewound_stream_shows_what_was_made_meanwhile(root: Path) -> None:
    with Directory(root) as stream:
        assert sorted(stream.names()) == [b".", b".."]
        make(root / "new")
        stream.rewind()
        assert sorted(stream.names()) == [b".", b"..", b"new"]


def test_removing_while_listing_skips_and_repeats_nothing(root: Path) -> None:
    names = set(fill(root, 5000))
    seen = []
    with Directory(root) as stream:
        while (entry := stream.read()) is not None:
            name = os.fsdecode(entry[0])
            if name not in (".", ".."):
                seen.append(name)
                os.unlink(root / name)
    assert len(seen) == len(set(seen))
    assert set(seen) == names
    assert os.listdir(root) == []


def test_positions_survive_removals_before_and_after_them(root: Path) -> None:
    fill(root, 2000)
    with Directory(root) as stream:
        order = []
        for _ in range(1000):
            entry = stream.read()
            assert entry is not None
            order.append(entry[0])
        position = stream.tell()
        rest = stream.names()
        for name in order[::2] + rest[::2]:
            if name not in (b".", b".."):
                os.unlink(os.fsencode(root) + b"/" + name)
        stream.seek(position)
        again = stream.names()
    assert len(again) == len(set(again))
    assert set(rest[1::2]) - {b".", b".."} <= set(again)
    assert not set(again) & set(order)


def test_names_made_while_listing_appear_at_most_once_and_hide_no_other(root: Path) -> None:
    names = {os.fsencode(n) for n in fill(root, 1000)}
    seen = []
    with Directory(root) as stream:
        number = 0
        while (entry := stream.read()) is not None:
            seen.append(entry[0])
            if number < 500:
                make(root / f"added-{number:04d}")
                number += 1
    assert len(seen) == len(set(seen))
    assert names <= set(seen)


def test_rm_rf_of_5000_files_in_nested_directories(root: Path) -> None:
    tree = root / "tree"
    for directory in range(10):
        below = tree / f"{directory}" / "below"
        below.mkdir(parents=True)
        fill(below, 250)
        fill(tree / f"{directory}", 250)
    subprocess.run(["rm", "-rf", tree], check=True, timeout=120)
    assert os.listdir(root) == []


@pytest.mark.modes("disk", "tzfs", "writeback-xattr", "noanswers", "stock-loop")  # no other mode lists differently
def test_directory_of_20000_entries(root: Path) -> None:
    directory = root / "large"
    directory.mkdir()
    names = fill(directory, MANY)
    assert sorted(os.listdir(directory)) == names
    with os.scandir(directory) as entries:
        assert sum(1 for e in entries if e.is_file(follow_symlinks=False) and e.stat().st_size == 0) == MANY
    assert (directory / names[MANY // 2]).exists()
    assert not (directory / "name-020000").exists()
    with fails(errno.ENOTEMPTY):
        directory.rmdir()
    random.Random(3).shuffle(names)
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as where:
        for name in names:
            os.unlink(name, dir_fd=where)
    assert os.listdir(directory) == []
    directory.rmdir()


def test_long_names_fill_a_listing_without_loss(root: Path) -> None:
    names = [b"%03d" % number + b"\xe9" * 252 for number in range(300)]
    for name in names:
        make(Path(os.fsdecode(os.fsencode(root) + b"/" + name)))
    assert sorted(os.listdir(os.fsencode(root))) == names


def test_link_count_of_a_directory_is_two_and_its_subdirectories(root: Path) -> None:
    for number in range(100):
        (root / f"d{number}").mkdir()
        make(root / f"f{number}")
        assert root.stat().st_nlink == 3 + number
    for number in range(100):
        (root / f"d{number}").rmdir()
    assert root.stat().st_nlink == 2


def test_two_streams_of_one_directory_are_independent(root: Path) -> None:
    fill(root, 50)
    with Directory(root) as one, Directory(root) as two:
        first = [one.read() for _ in range(20)]
        assert len(two.names()) == 52
        assert len(one.names()) == 52 - len(first)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 126, 127, 128, 129, 500])
def test_listing_is_complete_at_every_size(root: Path, count: int) -> None:
    names = fill(root, count)
    assert sorted(os.listdir(root)) == names
    with opened(root, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        assert sorted(os.listdir(descriptor)) == names
