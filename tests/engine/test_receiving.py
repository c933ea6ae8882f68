"""Where a stream arrives: what is there already, quotas that are used up, files that get shorter."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine.conftest import Workspace
from tests.engine.histories import everything
from tests.engine.plain import ROOT
from tests.engine.streams import into, sent, sent_on, tree
from tests.engine.test_quotas import accounts, limit
from tzfs.engine.engine import Engine
from tzfs.errors import Exists, QuotaExceeded
from tzfs.receiving import Cut


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fs = everything(monkeypatch).fs
    return Engine(fs.meta, fs.payload)


def test_a_whole_stream_is_refused_by_a_filesystem_whose_root_has_attributes(source: Engine, ws: Workspace) -> None:
    ws.engine.setxattr(ROOT, b"user.mine", b"kept")
    with pytest.raises(Exists, match="not empty"):
        into(ws.engine, sent(source, "first"))
    assert ws.engine.listxattr(ROOT) == [b"user.mine"]


def test_a_file_that_got_shorter_within_a_gap_arrives_sound(ws: Workspace, make: Callable[[], Workspace]) -> None:
    elsewhere = make()
    ino = elsewhere.file(b"f", b"x" * 100)
    elsewhere.engine.write(ino, 150_000, b"y")
    elsewhere.engine.snapshot("long")
    elsewhere.engine.setattr(ino, size=5000)  # what is stored of the first chunk stays as it is
    elsewhere.engine.snapshot("short")
    into(ws.engine, sent(elsewhere.engine, "long"))
    into(ws.engine, sent(elsewhere.engine, "short", "long"))
    assert ws.engine.problems() == []
    assert tree(ws.engine.view("short")) == tree(elsewhere.engine.view("short"))


def test_a_quota_that_is_used_up_refuses_a_stream_before_it_begins(source: Engine, ws: Workspace) -> None:
    into(ws.engine, sent(source, "first"))
    limit(ws.engine, quota_bytes=accounts(ws.engine).charged.used)
    for resumable in (False, True):
        with pytest.raises(QuotaExceeded):
            into(ws.engine, sent(source, "second", "first"), resumable=resumable)
        assert ws.engine.problems() == []
    limit(ws.engine)
    into(ws.engine, sent(source, "second", "first"))
    ws.file(b"mine")


def test_a_quota_that_is_used_up_on_the_way_refuses_the_stream_and_no_more(
    source: Engine, ws: Workspace, make: Callable[[], Workspace]
) -> None:
    elsewhere = make()
    for i in range(40):
        elsewhere.file(b"f%d" % i, b"f" * 9000)
    elsewhere.engine.snapshot("first")
    ino = elsewhere.file(b"big", bytes(range(1, 256)) * 4000)
    elsewhere.engine.snapshot("second")
    into(ws.engine, sent(elsewhere.engine, "first"))
    limit(ws.engine, quota_bytes=accounts(ws.engine).charged.used + 300_000)
    for resumable in (False, True):
        with pytest.raises((QuotaExceeded, Cut)):
            into(ws.engine, sent(elsewhere.engine, "second", "first"), resumable=resumable)
        assert ws.engine.problems() == []
    limit(ws.engine)
    partial = ws.engine.receiver().partial
    assert partial is not None
    into(ws.engine, sent_on(elsewhere.engine, partial))
    assert ws.engine.read(ino, 0, 2 << 20) == bytes(range(1, 256)) * 4000
