"""Chunks of many pieces: wherever is written, a record names few slices, and room for them is asked for first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.conftest import Workspace
from tests.noise import noise
from tzfs.engine.compression import Compression
from tzfs.engine.engine import Settings
from tzfs.errors import CorruptionError, NoSpace
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.format.slices import unpack_slices
from tzfs.limits import PAGE_BYTES, SLICES_MAX

CHUNK = 1 << Settings().chunk_shift


def slices_of_chunks(ws: Workspace) -> list[int]:
    """How many each record of a chunk names."""
    txn = ws.meta.begin_read()
    try:
        rows = [(key, records.unseal(Table.CHUNK, key, value)) for key, value in txn.range(Table.CHUNK, b"")]
        return [len(unpack_slices(Table.CHUNK, key, body)) for key, body in rows if body is not None]
    finally:
        txn.close()


def write_pieces(ws: Workspace, ino: int, count: int, apart: int, size: int = 10) -> bytes:
    """`count` pieces, each `apart` bytes behind the last; what the file then has, if it had nothing."""
    contents = bytearray(apart * (count - 1) + size)
    for n in range(count):
        ws.engine.write(ino, n * apart, noise(size, str(n)))
        contents[n * apart : n * apart + size] = noise(size, str(n))
    return bytes(contents)


@pytest.mark.parametrize("count", [SLICES_MAX, SLICES_MAX + 1, 130, 300])
@pytest.mark.parametrize("below", [b"", noise(CHUNK)])
def test_pieces_all_over_a_chunk_become_few_slices(ws: Workspace, count: int, below: bytes) -> None:
    ino = ws.file(b"f", below)
    ws.engine.commit()
    written = write_pieces(ws, ino, count, CHUNK // 320, size=90)
    expected = bytearray(below.ljust(len(written), b"\0"))
    for n in range(count):
        at = n * (CHUNK // 320)
        expected[at : at + 90] = noise(90, str(n))
    ws.engine.commit()
    assert max(slices_of_chunks(ws)) <= SLICES_MAX
    ws.restart()
    assert ws.engine.read(ino, 0, 2 * CHUNK) == expected


def test_pieces_written_while_pieces_are_flushed_become_few_slices(ws: Workspace) -> None:
    ino = ws.file(b"f")
    ws.engine.setattr(ino, size=CHUNK)
    expected = bytearray(CHUNK)

    def write_half(half: int) -> None:
        for n in range(SLICES_MAX):
            at = (2 * n + half) * 4000
            ws.engine.write(ino, at, noise(100, f"{half} {n}"))
            expected[at : at + 100] = noise(100, f"{half} {n}")

    write_half(0)
    job = ws.engine.begin_flush()
    assert job is not None
    write_half(1)
    job.run()
    ws.engine.end_flush()
    assert ws.engine.read(ino, 0, CHUNK) == expected
    ws.engine.commit()
    assert max(slices_of_chunks(ws)) <= SLICES_MAX
    ws.restart()
    assert ws.engine.read(ino, 0, CHUNK) == expected


def test_pieces_for_which_there_is_no_room_are_refused_before_anything_changes(ws: Workspace) -> None:
    ino = ws.file(b"f", noise(CHUNK))
    ws.engine.commit()
    expected = bytearray(noise(CHUNK))
    for n in range(7):
        ws.engine.write(ino, n * 10_000 + 1, b"new")
        expected[n * 10_000 + 1 : n * 10_000 + 4] = b"new"
    ws.payload.full, ws.payload.reserved = True, ws.engine.dirty_bytes + 3 * PAGE_BYTES
    with pytest.raises(NoSpace):
        ws.engine.write(ino, 100_001, b"new")
    assert ws.engine.read(ino, 0, CHUNK) == expected
    ws.engine.write(ino, 1, b"!")  # takes nothing more
    expected[1:2] = b"!"
    ws.payload.full = False
    ws.engine.write(ino, 100_001, b"new")
    expected[100_001:100_004] = b"new"
    ws.restart()
    assert ws.engine.read(ino, 0, CHUNK) == expected


def test_what_keeps_much_for_little_is_written_anew_only_where_there_is_room(ws: Workspace) -> None:
    ino = ws.file(b"f", noise(CHUNK))
    ws.engine.commit()
    for full in (True, False):
        ws.engine.write(ino, 0, noise(CHUNK - 10_000, str(full)))
        if full:
            ws.payload.reserved = ws.engine.dirty_bytes
        ws.engine.commit()
        assert slices_of_chunks(ws) == [2 if full else 1]
    assert ws.engine.read(ino, 0, CHUNK) == noise(CHUNK - 10_000, "False") + noise(CHUNK)[-10_000:]


def test_a_chunk_in_its_record_that_is_written_to_takes_no_more_than_was_accepted() -> None:
    ws = Workspace(Compression.named("lz4"))
    ino = ws.file(b"f", b"a" * CHUNK)
    ws.engine.commit()
    ws.engine.write(ino, 5000, noise(PAGE_BYTES))
    accepted = ws.engine.dirty_bytes
    ws.payload.reserved = accepted
    ws.engine.commit()
    assert sum(ws.payload.segments().values()) - PAGE_BYTES <= accepted
    ws.restart()
    assert ws.engine.read(ino, 0, CHUNK) == b"a" * 5000 + noise(PAGE_BYTES) + b"a" * (CHUNK - 5000 - PAGE_BYTES)
    ws.assert_sound()
    ws.engine.close()


def test_a_file_cut_while_it_is_flushed_is_not_written_twice(ws: Workspace) -> None:
    ino = ws.file(b"f", noise(CHUNK))
    job = ws.engine.begin_flush()
    assert job is not None
    ws.engine.setattr(ino, size=50_000)
    assert ws.engine.dirty_bytes == 0
    ws.engine.setattr(ino, size=60_000)
    assert ws.engine.read(ino, 0, CHUNK) == noise(50_000) + bytes(10_000)
    job.run()
    ws.engine.end_flush()
    ws.restart()
    assert ws.engine.read(ino, 0, CHUNK) == noise(50_000) + bytes(10_000)


def test_pieces_beside_what_cannot_be_read_are_refused_and_nothing_is_lost(ws: Workspace) -> None:
    ino = ws.file(b"f", noise(CHUNK))
    ws.engine.commit()
    (segment,) = ws.payload.segments()
    damage(ws, segment, 1 + 50_000 // PAGE_BYTES)
    expected = bytearray(noise(CHUNK))
    for n in range(8):
        ws.engine.write(ino, n * 5000, b"new")
        expected[n * 5000 : n * 5000 + 3] = b"new"
    with pytest.raises(CorruptionError):
        ws.engine.write(ino, 100_000, b"new")
    ws.engine.commit()
    ws.restart()
    assert ws.engine.read(ino, 0, 49_000) == expected[:49_000]
    assert ws.engine.read(ino, 60_000, CHUNK) == expected[60_000:]
    with pytest.raises(CorruptionError):
        ws.engine.read(ino, 50_000, 1)


def damage(ws: Workspace, segment: int, block: int) -> None:
    for contents in (ws.payload._live, ws.payload._durable):
        contents[segment][block * PAGE_BYTES] ^= 1


@pytest.mark.parametrize("compression", ["off", "lz4", "zstd"])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 3 * CHUNK), st.sampled_from([1, 100, 5000, 40_000, CHUNK])),
            st.tuples(st.just("scatter"), st.integers(0, 2 * CHUNK), st.sampled_from([3, 9, 20])),
            st.tuples(st.just("truncate"), st.integers(0, 3 * CHUNK), st.just(0)),
            st.tuples(st.sampled_from(["begin", "end", "commit", "absorb", "snapshot"]), st.just(0), st.just(0)),
        ),
        max_size=30,
    )
)
def test_contents_are_what_was_written_and_records_stay_small(
    compression: str, steps: list[tuple[str, int, int]]
) -> None:
    ws = Workspace(Compression.named(compression))
    ino, expected, name = ws.file(b"f"), bytearray(), 0

    def write(offset: int, payload: bytes) -> None:
        ws.engine.write(ino, offset, payload)
        expected.extend(bytes(max(0, offset + len(payload) - len(expected))))
        expected[offset : offset + len(payload)] = payload

    for n, (kind, offset, size) in enumerate(steps):
        if kind == "write":
            write(offset, noise(size, str(n)) if n % 2 else bytes([n]) * size)
        elif kind == "scatter":
            for k in range(size):
                write(offset + 3000 * k, noise(50, f"{n} {k}"))
        elif kind == "truncate":
            ws.engine.setattr(ino, size=offset)
            del expected[offset:]
            expected.extend(bytes(offset - len(expected)))
        elif kind == "snapshot":
            name += 1
            ws.engine.snapshot(f"s{name}")
        else:
            ws.beside(kind)
        assert ws.engine.read(ino, 0, 4 * CHUNK) == expected
        head = ws.engine._head
        assert head.dirty_bytes == sum(chunk.accepted for c in head.contents.values() for chunk in c.chunks.values())
    ws.engine.commit()
    assert max(slices_of_chunks(ws), default=0) <= SLICES_MAX
    ws.assert_sound()
    ws.restart()
    assert ws.engine.read(ino, 0, 4 * CHUNK) == expected
    ws.engine.close()
