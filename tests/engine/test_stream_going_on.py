"""Where a stream goes on after a cut: what a token may say, and a stream that was sent with another's."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.engine.conftest import Workspace
from tests.engine.streams import frames_of, into, sent, sent_on, tree
from tzfs.engine.partial import Partial, pack_token, unpack_token
from tzfs.errors import InvalidArgument
from tzfs.native import fnv1a32
from tzfs.receiving import Cut


def test_a_stream_that_goes_on_beyond_what_has_come_is_refused(ws: Workspace, make: Callable[[], Workspace]) -> None:
    """As one does that was sent with the token of another copy: what is between would be holes, and files missing."""
    large = ws.file(b"large", random.Random(1).randbytes(20 << 17))
    ws.file(b"then", b"x" * 10_000)
    ws.engine.snapshot("s")
    data = sent(ws.engine, "s")
    other = make()
    with pytest.raises(Cut) as cut:
        into(other.engine, data[: len(data) // 2], resumable=True)
    here = unpack_token(cut.value.token)
    assert here.ino == large
    for beyond in (replace(here, chunk=here.chunk + 1), replace(here, ino=here.ino + 1, chunk=0)):
        with pytest.raises(Cut, match="beyond what has come") as cut:
            into(other.engine, sent_on(ws.engine, beyond), resumable=True)
        assert unpack_token(cut.value.token) == here
    into(other.engine, sent_on(ws.engine, here))
    assert tree(other.engine.view("s")) == tree(ws.engine.view("s"))


def test_what_has_come_stays_where_the_next_stream_is_cut_before_anything_comes(
    ws: Workspace, make: Callable[[], Workspace]
) -> None:
    ws.file(b"large", random.Random(1).randbytes(20 << 17))
    ws.engine.snapshot("s")
    data = sent(ws.engine, "s")
    other = make()
    with pytest.raises(Cut) as cut:
        into(other.engine, data[: len(data) // 2], resumable=True)
    here = unpack_token(cut.value.token)
    rest = sent_on(ws.engine, here)
    begin, snapshot, *_ = frames_of(rest)
    for end in (begin[0], begin[0] + 3, snapshot[0] - 1, snapshot[0]):
        with pytest.raises(Cut, match="cut off") as cut:
            into(other.engine, rest[:end])
        assert unpack_token(cut.value.token) == here
    into(other.engine, rest)
    assert tree(other.engine.view("s")) == tree(ws.engine.view("s"))


def test_a_token_that_says_what_cannot_be_is_none() -> None:
    here = Partial("ws", "", "a" * 32, "b" * 32, 2, 3, anew=True)
    assert unpack_token(pack_token(here)) == here
    for number in (-1, 1 << 64):
        for wrong in (replace(here, ino=number), replace(here, chunk=number)):
            with pytest.raises(InvalidArgument, match="no resume token"):
                unpack_token(pack_token(wrong))
    for body in (b"", b"{}", b"[" * 100_000, b"\xff"):
        with pytest.raises(InvalidArgument, match="no resume token"):
            unpack_token(base64.urlsafe_b64encode(fnv1a32(body).to_bytes(4, "big") + body).decode())
