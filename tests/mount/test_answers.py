"""What C answers, asked as the pump asks it: well-formed requests, and what is kept in bounds.

Writes: test_answers_posted.py.  Malformed ones: test_answers_malformed.py.  Whether it says what the engine says:
test_answers_invariant.py; on a mount: test_answers_mounted.py.
"""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mount import wire
from tests.mount.answering import (
    DIRECTORY,
    FILE,
    LIVE_MAX,
    NAMES_MAX,
    NODES_MAX,
    SNAPSHOT_FILE,
    VALID_S,
    WHOLE,
    WRITING,
    inode,
    made,
)
from tests.mount.wire import Kernel
from tzfs import limits
from tzfs.mount.answers import Answers

# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_name_that_is_there_is_answered_with_its_attributes_and_counted(kernel: Kernel) -> None:
    assert not kernel.answers.knows(FILE)
    expected = wire.Attributes(FILE, 4097, 16, 1, 2, 3, 0o100644, 3, 61_001, 61_002, 0, 4096)
    assert kernel.lookup(DIRECTORY, b"there") == wire.Entry(FILE, 0, VALID_S, VALID_S, expected)
    assert kernel.lookup(DIRECTORY, b"there") is not None
    assert not kernel.answers.forget(FILE, 1)
    assert kernel.answers.forget(FILE, 1)


def test_absence_is_answered_only_in_a_directory_that_is_known_in_full(kernel: Kernel) -> None:
    absent = kernel.lookup(DIRECTORY, b"not there")
    assert absent is not None
    assert (absent.node, absent.valid_s) == (0, VALID_S)
    kernel.answers.put(inode(6, mode=0o40755))
    assert kernel.lookup(6, b"not there") is None
    assert kernel.lookup(7, b"not there") is None
    assert len(kernel.answers) == 0


def test_a_removed_name_is_absent_and_its_directory_has_changed(kernel: Kernel) -> None:
    kernel.answers.unname(DIRECTORY, b"there")
    absent = kernel.lookup(DIRECTORY, b"there")
    assert absent is not None
    assert absent.node == 0
    assert kernel.getattr(DIRECTORY) is None
    kernel.answers.unname(DIRECTORY, b"never there")


@pytest.mark.parametrize(("length", "answered"), [(0, False), (1, True), (255, True), (256, False), (5000, False)])
def test_names_of_a_length_there_cannot_be_are_left_to_the_operations(
    kernel: Kernel, length: int, answered: bool
) -> None:
    assert (kernel.lookup(DIRECTORY, b"n" * length) is not None) == answered
    kernel.answers.name(DIRECTORY, b"n" * length, FILE)
    assert (kernel.lookup(DIRECTORY, b"n" * length) is not None) == answered


def test_names_are_told_apart_by_all_their_bytes_and_by_their_directory(kernel: Kernel) -> None:
    for number, name in enumerate((b"n", b"nn", b"\xff" * 255, b"\xff" * 254 + b"\xfe", b"there\x01")):
        kernel.answers.put(inode(100 + number))
        kernel.answers.name(DIRECTORY, name, 100 + number)
    for number, name in enumerate((b"n", b"nn", b"\xff" * 255, b"\xff" * 254 + b"\xfe", b"there\x01")):
        entry = kernel.lookup(DIRECTORY, name)
        assert entry is not None
        assert entry.node == 100 + number
        assert kernel.lookup(DIRECTORY + 1, name) is None
    kernel.answers.name(DIRECTORY, b"n", FILE)  # it names another one now
    again = kernel.lookup(DIRECTORY, b"n")
    assert again is not None
    assert again.node == FILE


def test_a_name_whose_node_has_no_attributes_here_is_left_to_the_operations(kernel: Kernel) -> None:
    kernel.answers.drop(FILE)
    assert kernel.lookup(DIRECTORY, b"there") is None
    assert kernel.getattr(FILE) is None
    assert not kernel.answers.knows(FILE)
    kernel.answers.wrote(FILE, 1, 1)  # nothing to bring up to date
    assert kernel.getattr(FILE) is None


@pytest.mark.parametrize(
    ("size", "mode", "rdev", "times"),
    [
        (0, 0o40755, 0, (0, 0, 0)),
        (1 << 40, 0o107777, 0, (-1, -(10**9), -(10**9) - 1)),
        (4096, 0o120777, 0, (-(1 << 63), (1 << 63) - 1, 999_999_999)),
        (limits.FILE_BYTES_MAX, 0o60600, (1 << 32) - 1, (10**18 + 1, 10**9 - 1, 10**9)),
    ],
)
def test_attributes_are_those_of_the_inode(
    kernel: Kernel, size: int, mode: int, rdev: int, times: tuple[int, int, int]
) -> None:
    kernel.answers.put(inode(44, mode=mode, size=size, rdev=rdev, times=times), 2 << limits.INO_BITS)
    node, blocks = 44 | 2 << limits.INO_BITS, (size + 4095) // 4096 * 8
    assert kernel.getattr(node) == wire.Attributes(node, size, blocks, *times, mode, 3, 61_001, 61_002, rdev, 4096)
    assert kernel.getattr(44) is None


def test_a_write_changes_size_and_times_alone(kernel: Kernel) -> None:
    kernel.answers.wrote(FILE, 1 << 33, -5)
    assert kernel.getattr(FILE) == wire.Attributes(
        FILE, 1 << 33, 1 << 24, 1, -5, -5, 0o100644, 3, 61_001, 61_002, 0, 4096
    )


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_NONBLOCK | os.O_APPEND])
@pytest.mark.parametrize("node", [FILE, SNAPSHOT_FILE])
def test_whoever_only_reads_gets_a_handle(kernel: Kernel, flags: int, node: int) -> None:
    assert kernel.open(node, flags) == node
    assert kernel.answers.writers() == []
    assert kernel.release(node, node)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_ACCMODE])
def test_handles_that_may_write_are_kept_account_of(kernel: Kernel, flags: int) -> None:
    handles = [kernel.open(FILE, flags), kernel.open(FILE, flags), kernel.open(FILE, os.O_RDONLY)]
    assert handles == [FILE | WRITING, FILE | WRITING, FILE]
    assert kernel.answers.writers() == [FILE]
    assert kernel.release(FILE, FILE | WRITING)
    assert kernel.release(FILE, FILE)
    assert kernel.answers.writers() == [FILE]
    assert kernel.release(FILE, FILE | WRITING)
    assert kernel.answers.writers() == []


@pytest.mark.parametrize("flags", [os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC])
def test_truncation_is_left_to_the_operations(kernel: Kernel, flags: int) -> None:
    assert kernel.open(FILE, flags) is None
    assert kernel.answers.writers() == []


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_what_is_read_only_is_not_opened_for_writing_here(kernel: Kernel, flags: int) -> None:
    assert kernel.open(SNAPSHOT_FILE, flags) is None
    assert kernel.open(LIVE_MAX + 1, flags) is None
    assert kernel.open(LIVE_MAX, flags) == LIVE_MAX | WRITING
    readonly = made(writable=False)
    readonly.start(unchecked=True)
    with Kernel(readonly) as other:
        assert other.open(FILE, flags) is None
        assert other.open(FILE, os.O_RDONLY) == FILE
        assert readonly.writers() == []


@pytest.mark.parametrize("form", ["one", "batch"])
def test_what_has_no_name_is_told_of_when_the_kernel_has_forgotten_it(kernel: Kernel, form: str) -> None:
    buried: list[int] = []
    answers = kernel.answers
    answers.forgotten = buried.extend
    for node in (FILE, 10, SNAPSHOT_FILE):
        answers.told(node)
        answers.told(node)
    answers.unlinked(FILE)
    answers.unlinked(77)  # of which the kernel knows nothing

    def forget(node: int, count: int) -> bool:
        return kernel.forget(node, count) if form == "one" else kernel.batch_forget([(node, count)])

    assert forget(FILE, 1)
    assert forget(10, 2)
    assert forget(SNAPSHOT_FILE, 5)
    assert forget(77, 1)
    assert answers.state.forgotten == 0
    assert len(answers) == 1
    assert forget(FILE, 1)
    assert answers.state.forgotten == 1
    assert not answers.knows(FILE)
    answers.bury()
    assert buried == [FILE]
    answers.bury()
    assert buried == [FILE]


def test_what_the_kernel_has_been_told_of_again_since_it_forgot_is_not_buried(kernel: Kernel) -> None:
    """It had two names and lost one: forgotten, looked up by the other, opened, and that name goes as well."""
    buried: list[int] = []
    answers = kernel.answers
    answers.forgotten = buried.extend
    answers.told(FILE)
    answers.unlinked(FILE)
    assert kernel.forget(FILE, 1)
    answers.put(inode(FILE))
    assert kernel.lookup(DIRECTORY, b"there") is not None
    answers.unname(DIRECTORY, b"there")
    answers.unlinked(FILE)
    answers.bury()
    assert buried == []
    assert kernel.forget(FILE, 1)
    answers.bury()
    assert buried == [FILE]


def test_many_forgotten_at_once_are_all_buried(kernel: Kernel) -> None:
    buried: list[int] = []
    kernel.answers.forgotten = buried.extend
    nodes = [*range(100, 1100), *(7 << limits.INO_BITS | n for n in range(1000))]
    for node in nodes:
        kernel.answers.told(node)
        kernel.answers.unlinked(node)
    assert kernel.batch_forget([(node, 1) for node in nodes])
    kernel.answers.bury()
    assert sorted(buried) == sorted(nodes)
    assert len(kernel.answers) == 0


def test_access_is_answered_only_where_the_kernel_does_not_check(kernel: Kernel, answers: Answers) -> None:
    answers.put(inode(10, mode=0o100755))
    answers.put(inode(11, mode=0o100010))
    asked = [(FILE, os.X_OK), (FILE, os.R_OK | os.W_OK), (FILE, os.F_OK), (10, os.X_OK), (11, 7), (DIRECTORY, 7)]
    answers.put(inode(DIRECTORY, mode=0o40000))
    assert [kernel.access(*one) for one in asked] == [errno.EACCES, 0, 0, 0, 0, 0]
    assert kernel.access(12, os.F_OK) is None
    answers.start(unchecked=False)
    assert [kernel.access(*one) for one in asked] == [None] * len(asked)


def test_after_stop_nothing_is_answered_or_cached_and_counts_go_on(kernel: Kernel, answers: Answers) -> None:
    answers.told(FILE)
    answers.stop()
    for opcode, node, body in WHOLE:
        assert kernel.raw(wire.request(opcode, node, body)) == (False, None)
    answers.put(inode(20))
    answers.name(DIRECTORY, b"new", 20)
    assert (answers.state.node_count, answers.state.name_count) == (2, 1)
    assert answers.knows(FILE)
    answers.unlinked(FILE)
    assert answers.forget(FILE, 1)


def test_before_start_nothing_is_answered() -> None:
    with Kernel(made()) as kernel:
        kernel.answers.put(inode(FILE))
        kernel.answers.name(1, b"a", FILE)
        kernel.answers.complete(1)
        assert kernel.getattr(FILE) is None
        assert kernel.lookup(1, b"a") is None
        assert kernel.open(FILE, os.O_RDONLY) is None


def test_a_reply_that_nobody_takes_counts_for_nothing(answers: Answers) -> None:
    """The kernel has withdrawn the request: the write fails, and it has not been told of the node."""
    buried: list[int] = []
    answers.forgotten = buried.extend
    closed = os.open(os.devnull, os.O_RDONLY)
    try:
        assert answers.try_answer(closed, wire.request(wire.LOOKUP, DIRECTORY, b"there\0"))
        assert not answers.knows(FILE)
        assert answers.try_answer(closed, wire.request(wire.OPEN, FILE, wire.open_body(os.O_RDWR)))
        assert answers.writers() == []
        answers.told(FILE)
        answers.unlinked(FILE)
        answers.put(inode(FILE))
        assert answers.try_answer(closed, wire.request(wire.LOOKUP, DIRECTORY, b"there\0"))
        assert answers.knows(FILE)
        file = inode(20)
        answers.entry(DIRECTORY, b"made", file)
        answers.opened(20)
        assert not answers.created(closed, 7, 20 | WRITING)
        assert not answers.knows(20)
        assert answers.writers() == []
    finally:
        os.close(closed)
    answers.bury()
    assert buried == []


def test_a_file_that_was_made_is_answered_as_it_stands(kernel: Kernel, answers: Answers) -> None:
    file = inode(20, size=5000)
    answers.entry(DIRECTORY, b"made", file)
    answers.opened(20)
    entry = kernel.created(20 | WRITING)
    assert entry is not None
    assert (entry.node, entry.generation, entry.valid_s, entry.attr_valid_s) == (20, 0, VALID_S, VALID_S)
    assert entry.attributes == kernel.getattr(20)
    assert answers.knows(20)
    assert answers.writers() == [20]
    answers.drop(20)
    assert kernel.created(20 | WRITING) is None, "it cannot be said what there is"
    assert not answers.knows(20)
    assert answers.writers() == []


def test_figures_are_by_kind(kernel: Kernel, answers: Answers) -> None:
    kernel.lookup(DIRECTORY, b"there")
    kernel.lookup(6, b"there")
    kernel.getattr(FILE)
    kernel.forget(FILE, 1)
    kernel.batch_forget([(FILE, 1), (DIRECTORY, 1)])
    handle = kernel.open(FILE, os.O_RDONLY)
    assert handle is not None
    kernel.release(FILE, handle)
    kernel.access(FILE, 0)
    answers.state.room = 16384
    assert kernel.write(FILE, FILE | WRITING, bytes(4097)) == 4097
    answers.state.removes = 1
    assert kernel.unlink(DIRECTORY, b"there")
    found = answers.statistics()
    assert {kind: count for kind, (count, _, _) in found.items()} == {
        "lookup": 1, "getattr": 1, "open": 1, "release": 1, "forget": 2, "access": 1, "write": 1, "unlink": 1
    }  # fmt: skip
    assert found.pop("write") == found.pop("unlink") == (1, 0, 0), "they are not done yet"
    assert all(0 < slowest <= total for _, total, slowest in found.values())


# -- counts ------------------------------------------------------------------------------------------------------------

NODES = st.sampled_from(
    [1, 2, 4095, 4096, 4097, LIVE_MAX, 1 << 40 | 1, 2 << 40 | 1, (limits.SNAPSHOT_VIEWS_MAX - 1) << 40 | 2, 1 << 62]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("told"), NODES, st.just(0)),
        st.tuples(st.sampled_from(["forget", "forgotten by the kernel"]), NODES, st.integers(0, 4) | st.just(1 << 63)),
        st.tuples(st.sampled_from(["tell", "opened", "closed"]), NODES, st.just(0)),
        st.tuples(st.just("bury"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@given(STEPS)
def test_counts_are_those_of_a_plain_model(steps: list[tuple[str, int, int]]) -> None:
    counts: dict[int, int] = {}
    to_tell: set[int] = set()
    waiting: list[int] = []
    writers: dict[int, int] = {}
    buried: list[int] = []
    expected: list[int] = []
    answers = made()
    answers.start(unchecked=True)
    answers.forgotten = buried.extend
    with Kernel(answers) as kernel:
        for what, node, count in steps:
            match what:
                case "told":
                    answers.told(node)
                    counts[node] = counts.get(node, 0) + 1
                case "forget" | "forgotten by the kernel":
                    left = counts.get(node, 0) - count
                    gone = left <= 0
                    if gone:
                        counts.pop(node, None)
                    else:
                        counts[node] = left
                    if what == "forget":
                        assert answers.forget(node, count) == gone
                    else:
                        assert kernel.forget(node, count)
                        waiting += [node] if gone and node in to_tell else []
                    if gone:
                        to_tell.discard(node)
                case "tell":
                    answers.unlinked(node)
                    to_tell |= {node} & counts.keys()
                case "opened":
                    answers.opened(node)
                    writers[node] = writers.get(node, 0) + 1
                case "closed":
                    answers.closed(node)
                    writers[node] = max(writers.get(node, 0) - 1, 0)
                case "bury":
                    answers.bury()
                    expected += [one for one in waiting if one not in counts]
                    waiting.clear()
            assert len(answers) == len(counts)
            assert answers.knows(node) == (node in counts)
            assert answers.state.forgotten == len(waiting)
            assert sorted(answers.writers()) == sorted(one for one, n in writers.items() if n)
            assert sorted(buried) == sorted(expected)


def test_writers_are_all_told_whatever_their_number() -> None:
    answers = made()
    nodes = [*range(1, 3000), *(1 << 40 | n for n in range(1, 3000))]
    for node in nodes:
        answers.opened(node)
    assert sorted(answers.writers()) == nodes
    for node in nodes:
        answers.closed(node)
        answers.closed(node)
    assert answers.writers() == []


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_names_beyond_the_bound_take_completeness_with_them(kernel: Kernel, answers: Answers) -> None:
    for directory in range(1000, 1016):
        answers.put(inode(directory, mode=0o40755))
        answers.complete(directory)
    per_directory = NAMES_MAX // 16
    for number in range(NAMES_MAX - 1):  # with "there": as many as there may be
        answers.name(1000 + number // per_directory, b"%d" % number, FILE)
    assert (answers.state.name_count, answers.evictions) == (NAMES_MAX, 0)
    for directory in range(1000, 1016):
        assert kernel.lookup(directory, b"absent") is not None
    for number in range(100):
        answers.name(2000, b"%d" % number, FILE)
        assert (answers.state.name_count, answers.evictions) == (NAMES_MAX, number + 1)
    missing = set()
    for number in range(NAMES_MAX - 1):
        directory, name = 1000 + number // per_directory, b"%d" % number
        entry = kernel.lookup(directory, name)
        if entry is None:
            missing.add(directory)  # left to the operations, rather than absent
        else:
            assert entry.node == FILE
    assert missing
    for directory in range(1000, 1016):
        assert (kernel.lookup(directory, b"absent") is None) == (directory in missing)
    answers.clear()
    assert (answers.state.name_count, answers.state.node_count) == (0, 0)
    assert answers.evictions == 101
    assert kernel.lookup(1000, b"absent") is None
    assert answers.knows(FILE)


def test_what_is_asked_for_stays_for_the_most_part_and_the_rest_goes(kernel: Kernel, answers: Answers) -> None:
    wanted = range(1 << 20, (1 << 20) + 50)
    asked = missed = 0
    for number in range(3 * NODES_MAX):
        answers.put(inode(number))
        if number % 1000 == 0:
            for node in wanted:
                asked += 1
                if kernel.getattr(node) is None:
                    missed += 1
                    answers.put(inode(node))
    assert answers.state.node_count == NODES_MAX
    assert missed < asked / 100  # 50 at the beginning, and what the first round of the search for room takes


def test_a_directory_that_is_dropped_is_no_longer_complete(kernel: Kernel, answers: Answers) -> None:
    directories = range(1 << 20, (1 << 20) + 64)
    for directory in directories:
        answers.put(inode(directory, mode=0o40755))
        answers.complete(directory)
    for number in range(3 * NODES_MAX):
        answers.put(inode(number))
    dropped = 0
    for directory in directories:
        known = kernel.getattr(directory) is not None
        answers.put(inode(directory, mode=0o40755))
        assert (kernel.lookup(directory, b"absent") is not None) == known
        dropped += not known
    assert dropped
