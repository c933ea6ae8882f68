"""Small writes and unlinks that C answers before they are done: which, how many, and what is seen of them meanwhile."""

from __future__ import annotations

import time

import pytest

from tests.mount.answering import DIRECTORY, FILE, SNAPSHOT_FILE, WRITING, inode
from tests.mount.wire import Kernel
from tzfs.limits import INO_MAX
from tzfs.mount.answers import POSTED_MAX, Answers


def test_a_write_of_all_that_a_file_has_is_posted_and_seen(kernel: Kernel, answers: Answers) -> None:
    answers.put(inode(FILE, size=100))
    answers.state.room = 1 << 20
    before = time.time_ns()
    assert kernel.write(FILE, FILE | WRITING, b"x" * 100) == 100
    assert kernel.write(FILE, FILE | WRITING, b"y" * 101) == 101
    assert kernel.write(FILE, FILE | WRITING, b"z" * 100) is None, "it keeps a byte"
    found = kernel.getattr(FILE)
    assert found is not None
    assert (found.size, found.blocks) == (101, 8)
    posted = list(answers.posted())
    assert [(node, data, gone) for node, data, _, gone in posted] == [
        (FILE, b"x" * 100, False), (FILE, b"y" * 101, False),
    ]  # fmt: skip
    assert found.mtime_ns == found.ctime_ns == posted[1][2]
    assert before <= posted[0][2] <= posted[1][2] <= time.time_ns()
    assert list(answers.posted()) == []


@pytest.mark.parametrize(
    ("node", "handle", "size", "offset"),
    [
        (FILE, FILE | WRITING, 99, 0),  # something stays
        (FILE, FILE | WRITING, 100, 1),
        (FILE, FILE | WRITING, 8193, 0),  # not small
        (FILE, FILE, 100, 0),  # not open for that
        (FILE, DIRECTORY | WRITING, 100, 0),
        (DIRECTORY, DIRECTORY | WRITING, 100, 0),
        (SNAPSHOT_FILE, SNAPSHOT_FILE | WRITING, 100, 0),
        (6, 6 | WRITING, 100, 0),  # not known
    ],
)
def test_every_other_write_is_left_to_the_operations(
    kernel: Kernel, answers: Answers, node: int, handle: int, size: int, offset: int
) -> None:
    for at, mode in ((FILE, 0o100644), (DIRECTORY, 0o040755), (SNAPSHOT_FILE, 0o100644)):
        answers.put(inode(at & INO_MAX, mode=mode, size=100), at & ~INO_MAX)
    answers.state.room = 1 << 20
    assert kernel.write(node, handle, bytes(size), offset) is None
    assert list(answers.posted()) == []
    assert kernel.write(FILE, FILE | WRITING, bytes(100)) == 100


def test_no_more_is_posted_than_there_is_room_for(kernel: Kernel, answers: Answers) -> None:
    answers.put(inode(FILE))
    for room, size, count in (
        (0, 1, 0),
        (12287, 1, 0),
        (12288, 1, 1),
        (12288, 4096, 1),
        (12288, 4097, 0),
        (3 * 12288 + 4095, 4096, 3),
        (1 << 40, 8192, POSTED_MAX),
    ):
        answers.put(inode(FILE))
        answers.state.room = room
        written = [kernel.write(FILE, FILE | WRITING, bytes(size)) for _ in range(POSTED_MAX + 1)]
        assert written == [size] * count + [None] * (POSTED_MAX + 1 - count)
        assert len(list(answers.posted())) == count


def test_nothing_is_posted_once_it_has_stopped(kernel: Kernel, answers: Answers) -> None:
    answers.put(inode(FILE))
    answers.state.room = 1 << 20
    answers.stop()
    assert kernel.write(FILE, FILE | WRITING, b"x") is None


def test_an_unlink_of_what_is_known_is_posted_and_seen(kernel: Kernel, answers: Answers) -> None:
    buried: list[int] = []
    answers.forgotten = buried.extend
    answers.complete(DIRECTORY)
    answers.entry(DIRECTORY, b"file", inode(20))
    assert not kernel.unlink(DIRECTORY, b"file"), "nobody has said that it can be done"
    answers.state.removes, answers.state.room = 1, 1 << 20
    before = time.time_ns()
    assert kernel.write(20, 20 | WRITING, b"x") == 1
    assert kernel.unlink(DIRECTORY, b"file")
    assert not kernel.unlink(DIRECTORY, b"file"), "it is gone"
    absent = kernel.lookup(DIRECTORY, b"file")
    assert absent is not None
    assert absent.node == 0
    assert kernel.getattr(20) is kernel.getattr(DIRECTORY) is None, "they have changed"
    assert kernel.write(20, 20 | WRITING, b"y") is None
    posted = list(answers.posted())
    assert [(node, data, gone) for node, data, _, gone in posted] == [(20, b"x", False), (DIRECTORY, b"file", True)]
    assert before <= posted[0][2] <= posted[1][2] <= time.time_ns()
    assert kernel.forget(20, 1)
    answers.bury()
    assert buried == [20]


@pytest.mark.parametrize("name", [b"folder", b"unknown", b"attributes unknown", b"there\0", b"", b"n" * 256])
def test_every_other_unlink_is_left_to_the_operations(kernel: Kernel, answers: Answers, name: bytes) -> None:
    answers.entry(DIRECTORY, b"folder", inode(20, mode=0o040755))
    answers.name(DIRECTORY, b"attributes unknown", 21)
    answers.name(DIRECTORY, b"there", FILE)
    answers.put(inode(FILE))
    answers.entry(SNAPSHOT_FILE, b"there", inode(FILE))
    answers.state.removes = 1
    assert not kernel.unlink(DIRECTORY, name)
    assert not kernel.unlink(SNAPSHOT_FILE, b"there")
    assert list(answers.posted()) == []
    assert kernel.unlink(DIRECTORY, b"there")


def test_what_has_changed_is_as_much_a_file_as_before(kernel: Kernel, answers: Answers) -> None:
    for name, node, mode in ((b"file", 20, 0o100644), (b"folder", 21, 0o040755)):
        answers.entry(DIRECTORY, name, inode(node, mode=mode))
        answers.drop(node)  # renamed, say
    answers.state.removes = 1
    assert not kernel.unlink(DIRECTORY, b"folder")
    assert kernel.unlink(DIRECTORY, b"file")


def test_no_more_is_removed_than_can_be_remembered(kernel: Kernel, answers: Answers) -> None:
    for i in range(POSTED_MAX + 1):
        answers.entry(DIRECTORY, b"%d" % i, inode(20 + i))
    answers.state.removes = 1
    assert [kernel.unlink(DIRECTORY, b"%d" % i) for i in range(POSTED_MAX + 1)] == [True] * POSTED_MAX + [False]
    assert [data for _, data, _, _ in answers.posted()] == [b"%d" % i for i in range(POSTED_MAX)]
    assert kernel.unlink(DIRECTORY, b"%d" % POSTED_MAX)
