"""Requests that no kernel sends: cut short, counting wrong, of no known kind, or any bytes at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mount import wire
from tests.mount.answering import DIRECTORY, FILE, SNAPSHOT_FILE, WHOLE, inode, made
from tests.mount.wire import Kernel
from tzfs.mount.answers import Answers


@pytest.mark.parametrize(("opcode", "node", "body"), WHOLE)
def test_requests_cut_short_are_left_to_libfuse_at_every_byte(
    kernel: Kernel, answers: Answers, opcode: int, node: int, body: bytes
) -> None:
    answers.told(FILE)
    answers.state.room, answers.state.removes = 1 << 20, 1
    whole = wire.request(opcode, node, body)
    for length in range(len(whole)):
        cut = wire.request(opcode, node, body, length=length)[:length]
        assert kernel.raw(cut) == (False, None), length
        assert kernel.raw(whole[:length]) == (False, None), "its header says more"
    assert kernel.raw(wire.request(opcode, node, body, length=len(whole) + 1)) == (False, None)
    assert answers.knows(FILE)
    assert answers.writers() == []
    assert list(answers.posted()) == []
    assert kernel.raw(whole)[0]


@pytest.mark.parametrize("count", [1, 2, (1 << 28) + 1, (1 << 32) - 1])
def test_a_batch_that_counts_more_than_it_holds_forgets_nothing(kernel: Kernel, answers: Answers, count: int) -> None:
    answers.told(FILE)
    forgets = [(FILE, 1)] * (count - 1 if count < 3 else 1)
    assert not kernel.batch_forget(forgets, count=count)
    assert answers.knows(FILE)
    assert kernel.batch_forget([(FILE, 1)] * 3, count=0)
    assert answers.knows(FILE)
    assert kernel.batch_forget([(FILE, 1)] * 3, count=1)
    assert not answers.knows(FILE)


def test_a_name_without_its_end_is_left_to_libfuse(kernel: Kernel) -> None:
    for name in (b"there", b"absent", b"n" * 255, b"n" * 4000):
        assert kernel.raw(wire.request(wire.LOOKUP, DIRECTORY, name)) == (False, None)


def test_every_other_opcode_is_left_to_libfuse(kernel: Kernel) -> None:
    known = {wire.LOOKUP, wire.GETATTR, wire.UNLINK, wire.OPEN, wire.WRITE, wire.RELEASE, wire.FORGET}
    known |= {wire.BATCH_FORGET, wire.ACCESS}
    for opcode in (*set(range(wire.OPCODE_MAX)) - known, 4096, 1 << 20, (1 << 32) - 1):
        assert kernel.raw(wire.request(opcode, FILE, bytes(64))) == (False, None)


@given(opcode=st.integers(0, wire.OPCODE_MAX), node=st.sampled_from([0, 1, DIRECTORY, FILE, SNAPSHOT_FILE, 2**64 - 1]),
       body=st.binary(max_size=300), unchecked=st.booleans())  # fmt: skip
def test_any_bytes_at_all_harm_nothing(opcode: int, node: int, body: bytes, unchecked: bool) -> None:
    answers = made()
    answers.start(unchecked=unchecked)
    answers.state.room = 1 << 20
    answers.put(inode(FILE))
    answers.name(DIRECTORY, b"there", FILE)
    with Kernel(answers) as kernel:
        done, reply = kernel.raw(wire.request(opcode, node, body))
        assert done or reply is None
        entry = kernel.lookup(DIRECTORY, b"there")
        assert entry is not None
        assert entry.node == FILE
