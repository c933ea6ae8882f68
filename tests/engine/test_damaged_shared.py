"""A damaged row of `shared`: nobody knows who else names its extent, so that one is never given back."""

from __future__ import annotations

import pytest

from tests.engine.conftest import Workspace
from tests.engine.test_damaged_accounts import LARGE, changed, damage_all, data
from tzfs.format.keys import ROOT, Table


def rolled_back() -> Workspace:
    """A file that the head and a snapshot have by the same extents."""
    ws = Workspace()
    ws.file(b"f", LARGE)
    ws.engine.snapshot("s")
    ws.engine.write(ws.engine.lookup(ROOT, b"f").ino, 0, LARGE[::-1])
    ws.engine.commit()
    rollback = ws.engine.rollback("s")
    while rollback.step():
        pass
    ws.settle()
    return ws


@pytest.fixture
def ws() -> Workspace:
    """`rolled_back`, the rows of the extents damaged."""
    ws = rolled_back()
    changed(ws, damage_all(Table.SHARED))
    return ws


def in_snapshot(ws: Workspace) -> bytes:
    view = ws.engine.view("s")
    return bytes(view.read(view.lookup(ROOT, b"f").ino, 0, len(LARGE)))


def test_what_is_overwritten_stays_where_a_snapshot_has_it(ws: Workspace) -> None:
    ws.engine.write(ws.engine.lookup(ROOT, b"f").ino, 0, b"n" * len(LARGE))
    ws.engine.commit()
    for _ in range(2):
        ws.settle()
        assert ws.engine.failed is None
        assert in_snapshot(ws) == LARGE
        assert data(ws, b"f") == b"n" * len(LARGE)
        assert any("damaged record shared/" in str(problem) for problem in ws.engine.problems())
        ws.restart()


def test_a_snapshot_is_destroyed_and_the_head_keeps_what_it_has(ws: Workspace) -> None:
    ws.engine.destroy(["s"])
    for _ in range(2):
        ws.settle()
        assert ws.engine.failed is None
        assert data(ws, b"f") == LARGE
        ws.restart()


def test_a_rollback_copies_what_it_cannot_share(ws: Workspace) -> None:
    ws.engine.write(ws.engine.lookup(ROOT, b"f").ino, 0, b"n" * len(LARGE))
    ws.engine.commit()
    rollback = ws.engine.rollback("s")
    while rollback.step():
        pass
    for _ in range(2):
        ws.settle()
        assert data(ws, b"f") == in_snapshot(ws) == LARGE
        ws.restart()


def test_a_row_that_is_lost_is_found_by_a_check() -> None:
    ws = rolled_back()
    changed(ws, lambda txn: [txn.delete(Table.SHARED, key) for key, _ in list(txn.range(Table.SHARED, b""))])
    assert [problem for problem in ws.engine.problems() if "shared" in str(problem)]
    assert data(ws, b"f") == in_snapshot(ws) == LARGE
