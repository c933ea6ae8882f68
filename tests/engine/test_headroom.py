"""Changes that are answered before they are done: as many as there is headroom for cannot be refused, nor wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.conftest import Workspace
from tests.noise import noise
from tzfs import failpoints
from tzfs.engine.engine import Settings
from tzfs.engine.txg import CHANGE_ROWS_MAX
from tzfs.errors import MountFailed
from tzfs.limits import CHUNK_SHIFT_DEFAULT, CHUNK_SHIFT_MIN, INLINE_BYTES_MAX, PAGE_BYTES

SIZES = st.sampled_from([1, 100, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, PAGE_BYTES, PAGE_BYTES + 1, 2 * PAGE_BYTES])


def cost(size: int) -> int:
    """What such a write takes of the headroom: its pages, and two more."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES + 2 * PAGE_BYTES


@given(
    st.lists(st.tuples(st.sampled_from(["write", "commit", "absorb", "begin", "end"]), st.integers(0, 5), SIZES)),
    st.lists(st.tuples(st.integers(0, 5), SIZES | st.none()), max_size=32),
    st.integers(0, 64),
    st.booleans(),
    st.sampled_from([CHUNK_SHIFT_MIN, CHUNK_SHIFT_DEFAULT]),
)
def test_what_there_is_headroom_for_needs_no_space_and_no_commit(
    before: list[tuple[str, int, int]],
    changes: list[tuple[int, int | None]],
    reserved: int,
    known: bool,
    chunk_shift: int,
) -> None:
    ws = Workspace(chunk_shift=chunk_shift)
    inos = [ws.file(b"%d" % i) for i in range(6)]
    for i in range(3):
        ws.engine.link(inos[i], 1, b"other %d" % i)
    if known:
        ws.engine.referenced = lambda ino: True
    sizes = [0] * 6
    names = {i: [b"%d" % i, *([b"other %d" % i] if i < 3 else [])] for i in range(6)}
    for kind, i, size in before:
        if kind == "write":
            ws.engine.write(inos[i], 0, noise(size))
            sizes[i] = max(sizes[i], size)
        else:
            ws.beside(kind)
    ws.payload.reserved = min(ws.payload.reserved, reserved * PAGE_BYTES)
    room = granted = ws.engine.headroom(32)
    removes = ws.engine.unhindered(32)
    assert removes or not room
    rows = ws.engine._head.dirty_rows
    ws.payload.full = ws.meta.full = True
    with failpoints.counting() as counts:
        for n, (i, change) in enumerate(changes):
            if change is None:
                if names[i] and removes:
                    assert ws.engine.unlink(1, names[i].pop(), 10**18 + n) == inos[i]
                    assert ws.engine.inode(1).mtime_ns == 10**18 + n
                continue
            size = max(change, sizes[i])
            if cost(size) > room or not (names[i] or known):
                break
            room -= cost(size)
            assert ws.engine.write(inos[i], 0, noise(size, str(n)), 10**18 + n) == size
            sizes[i] = size
            assert ws.engine.inode(inos[i]).mtime_ns == 10**18 + n
            assert ws.engine.read(inos[i], 0, size + 1) == noise(size, str(n))
    assert not counts
    assert ws.engine._head.dirty_rows - rows <= CHANGE_ROWS_MAX * len(changes)
    assert granted <= 0 or ws.engine._txg.unplaced() <= ws.payload.reserved
    ws.payload.full = ws.meta.full = False
    for ino in inos:
        ws.engine.forget(ino)
    ws.assert_sound()
    ws.engine.close()


def test_there_is_none_where_something_may_refuse_or_nothing_is_reserved(ws: Workspace) -> None:
    ino = ws.file(b"f")
    assert ws.engine.headroom(32) > 0
    ws.engine.commit()
    assert ws.engine.headroom(32) == 0  # until the next group has its reserve
    ws.engine.write(ino, 0, b"x")
    assert ws.engine.headroom(32) > 0
    assert ws.engine.headroom(10**6) == 0  # so many rows would have to be absorbed
    assert not ws.engine.unhindered(10**6)
    ws.engine.configure(Settings(quota_bytes=10**9))
    assert ws.engine.headroom(32) == 0
    assert ws.engine.unhindered(32)


def test_the_last_of_two_names_adds_as_many_rows_as_are_counted_for_a_change(ws: Workspace) -> None:
    ino = ws.file(b"f", b"contents")
    ws.engine.link(ino, 1, b"g")
    for name in (b"f", b"g"):
        ws.engine.commit()
        assert ws.engine._head.dirty_rows == 0
        ws.engine.unlink(1, name)
    assert ws.engine._head.dirty_rows == CHANGE_ROWS_MAX


def test_what_a_flush_places_meanwhile_is_no_room(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = ws.file(b"f")
    ws.engine.write(ino, 0, noise(50_000))
    ws.payload.reserved = 100 * PAGE_BYTES
    true, unplaced = ws.engine.headroom(32), ws.engine._txg.unplaced

    def placed() -> int:
        ws.payload.reserved -= PAGE_BYTES
        return unplaced() - PAGE_BYTES

    monkeypatch.setattr(ws.engine._txg, "unplaced", placed)
    assert ws.engine.headroom(32) == true > 0


def test_there_is_none_in_an_engine_that_has_failed() -> None:
    ws = Workspace()
    ino = ws.file(b"f")
    ws.engine.fail("it was to")
    assert ws.engine.headroom(32) == ws.engine.unhindered(32) == 0
    with pytest.raises(MountFailed, match="it was to"):
        ws.engine.write(ino, 0, b"x")
    ws.engine.close()
