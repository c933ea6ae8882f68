"""What `PayloadStore` promises, held against every implementation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.stores import SMALL_SEGMENT, Made
from tzfs import failpoints
from tzfs.errors import CorruptionError, InternalError, NoSpace, StoreError
from tzfs.format.keys import ExtentId, extent_id, extent_offset, extent_segment
from tzfs.limits import PAGE_BYTES
from tzfs.store.interface import Buffer, PayloadStore, SegmentGone
from tzfs.store.memory import MemoryPayload


def put(payload: PayloadStore, *pieces: Buffer) -> list[ExtentId]:
    extents = [payload.allocate(len(p)) for p in pieces]
    payload.write(list(zip(extents, pieces, strict=True)))
    payload.sync()
    return extents


def test_what_was_written_is_read_whole_and_in_part(store: Made) -> None:
    payload = store.payload()
    pieces: list[Buffer] = [b"a", bytearray(b"b" * 4096), memoryview(b"c" * 4097), b"d" * 70_000]
    extents = put(payload, *pieces)
    for extent, piece in zip(extents, pieces, strict=True):
        assert payload.read(extent, 0, len(piece)) == bytes(piece)
        assert payload.read(extent, len(piece) // 2, 1) == bytes(piece[:1])
        target = bytearray(len(piece))
        assert payload.read_into(extent, 0, memoryview(target))
        assert target == bytes(piece)
    assert payload.read(extents[1], 0, 0) == b""
    payload.close()


def test_extents_are_aligned_disjoint_and_ascend(store: Made) -> None:
    payload = store.payload()
    sizes = [1, 4095, 4096, 4097, 100_000, 1, 300_000, 300_000, 300_000, 300_000, 1]
    extents = [payload.allocate(n) for n in sizes]
    assert extents == sorted(extents)
    taken: set[tuple[int, int]] = set()
    for extent, nbytes in zip(extents, sizes, strict=True):
        begin = extent_offset(extent)
        assert begin >= PAGE_BYTES, "block 0 is the header's"
        assert begin % PAGE_BYTES == 0
        assert begin + nbytes <= SMALL_SEGMENT
        blocks = {(extent_segment(extent), b) for b in range(begin // PAGE_BYTES, -(-(begin + nbytes) // PAGE_BYTES))}
        assert not taken & blocks
        taken |= blocks
    assert {extent_segment(e) for e in extents} == {1, 2}
    assert payload.next_segment == 3
    payload.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.tuples(st.integers(1, 20_000), st.booleans()), max_size=12), min_size=1, max_size=6)
)
def test_any_order_of_allocating_and_writing_reads_back(store: Made, batches: list[list[tuple[int, bool]]]) -> None:
    payload = store.payload(segment_bytes_max=128 * 1024)
    kept: dict[ExtentId, bytes] = {}
    for batch in batches:
        new = {payload.allocate(n): (bytes([n % 251 + 1]) * n, written) for n, written in batch}
        payload.write([(e, data) for e, (data, written) in new.items() if written])
        kept.update({e: data for e, (data, written) in new.items() if written})
    payload.sync()
    for extent, data in kept.items():
        assert payload.read(extent, 0, len(data)) == data
    payload.close()


def test_only_numbers_above_all_that_were_ever_used_are_begun(store: Made) -> None:
    payload = store.payload()
    payload.begin_numbering(7)
    assert payload.next_segment == 7
    (extent,) = put(payload, b"x")
    assert extent_segment(extent) == 7
    again = store.payload_again(payload)
    again.begin_numbering(3)
    assert again.next_segment == 8
    (other,) = put(again, b"y")
    assert extent_segment(other) == 8
    assert again.read(extent, 0, 1) == b"x"
    again.close()


def test_numbering_begins_once(store: Made) -> None:
    payload = store.payload()
    payload.allocate(1)
    with pytest.raises(InternalError):
        payload.begin_numbering(9)
    payload.close()


def test_nothing_is_written_to_a_segment_of_another_writer(store: Made) -> None:
    payload = store.payload()
    (extent,) = put(payload, b"kept")
    again = store.payload_again(payload)
    for number in (extent_segment(extent), extent_segment(extent) + 5):
        with pytest.raises(InternalError, match="not begun by this writer"):
            again.write([(extent_id(number, 1), b"lost")])
    assert again.read(extent, 0, 4) == b"kept"
    again.close()


def test_a_read_beyond_the_end_is_corruption_and_a_missing_segment_is_gone(store: Made) -> None:
    payload = store.payload()
    (extent,) = put(payload, b"x" * 5000)
    with pytest.raises(CorruptionError, match="segment 1"):
        payload.read(extent, 0, 9000)
    with pytest.raises(SegmentGone):
        payload.read(extent_id(99, 1), 0, 1)
    payload.close()


def test_punched_space_reads_as_zeros_and_leaves_its_neighbours(store: Made) -> None:
    payload = store.payload()
    a, b, c = put(payload, b"a" * 8192, b"b" * 8000, b"c" * 8192)
    before = payload.segments()[1]
    payload.punch(b, 8000)
    payload.punch(b, 8000)
    assert payload.read(b, 0, 8000) == bytes(8000)
    assert payload.read(a, 0, 8192) == b"a" * 8192
    assert payload.read(c, 0, 8192) == b"c" * 8192
    assert payload.segments()[1] <= before
    payload.close()


def test_punched_space_is_a_hole_in_what_takes_space(store: Made) -> None:
    payload = store.payload()
    a, b, c = put(payload, b"a" * 8192, b"b" * 8000, b"c" * 4096)
    payload.punch(b, 8000)
    held = payload.data_ranges(extent_segment(a))
    assert held is not None, "the disk under the tests cannot punch holes"
    inside = [r for r in held if r[1] > extent_offset(a)]
    assert inside[0][1] == extent_offset(b)
    assert inside[1:] == [(extent_offset(c), extent_offset(c) + 4096)]
    with pytest.raises(SegmentGone):
        payload.data_ranges(99)
    payload.close()


def test_a_removed_segment_is_gone_and_may_be_removed_again(store: Made) -> None:
    payload = store.payload(segment_bytes_max=64 * 1024)
    first, second = put(payload, b"a" * 50_000, b"b" * 50_000)
    assert sorted(payload.segments()) == [1, 2]
    payload.remove_segment(1)
    payload.remove_segment(1)
    payload.punch(first, 50_000)
    assert sorted(payload.segments()) == [2]
    with pytest.raises(SegmentGone):
        payload.read(first, 0, 1)
    assert payload.read(second, 0, 1) == b"b"
    with pytest.raises(InternalError, match="being filled"):
        payload.remove_segment(2)
    payload.sync()
    payload.close()


@pytest.mark.parametrize("nbytes", [0, -1, SMALL_SEGMENT])
def test_an_extent_that_fits_no_segment_is_our_bug(store: Made, nbytes: int) -> None:
    payload = store.payload()
    with pytest.raises(InternalError):
        payload.allocate(nbytes)
    payload.close()


def test_reserve_then_append_as_often_as_wanted(store: Made) -> None:
    payload = store.payload()
    kept = []
    for i in range(8):
        payload.reserve(200_000)
        kept += put(payload, bytes([i + 1]) * 200_000)
    assert [payload.read(e, 199_999, 1)[0] for e in kept] == list(range(1, 9))
    assert payload.reserve_supported
    payload.close()


def test_what_is_reserved_is_there_until_it_is_given_away(store: Made) -> None:
    payload = store.payload()
    assert payload.reserved == 0
    payload.reserve(200_000)
    before = payload.reserved
    assert before >= 200_000
    extents = [payload.allocate(n) for n in (1, 4096, 100_000)]
    assert payload.reserved == before - (1 + 1 + 25) * 4096
    payload.reserve(payload.reserved)  # which is there
    assert payload.reserved == before - 27 * 4096
    payload.allocate(before)
    assert payload.reserved == 0
    payload.reserve(1)
    assert payload.reserved >= 1
    payload.write([(extent, b"x") for extent in extents])
    payload.close()


def test_a_failed_write_may_be_tried_again(store: Made) -> None:
    payload = store.payload()
    extent = payload.allocate(3)
    for expected in (NoSpace, StoreError):
        _fail_next_write(payload, expected)
        with pytest.raises(expected):
            payload.write([(extent, b"abc")])
        assert payload.failed is None
    payload.write([(extent, b"abc")])
    payload.sync()
    assert payload.read(extent, 0, 3) == b"abc"
    payload.close()


WRITING: list[Callable[[PayloadStore], object]] = [
    lambda p: p.allocate(1),
    lambda p: p.write([]),
    lambda p: p.sync(),
    lambda p: p.punch(extent_id(1, 1), 1),
    lambda p: p.remove_segment(1),
    lambda p: p.reserve(1),
    lambda p: p.begin_numbering(1),
]


def test_after_a_failed_sync_nothing_is_written_and_everything_still_read(store: Made) -> None:
    payload = store.payload()
    (kept,) = put(payload, b"kept")
    extent = payload.allocate(3)
    payload.write([(extent, b"abc")])
    if isinstance(payload, MemoryPayload):
        payload.fail_next_sync = StoreError("the disk is broken")
    else:
        failpoints.arm("segment.sync", "error:EIO")
    with pytest.raises(StoreError):
        payload.sync()
    assert payload.failed
    for use in WRITING:
        with pytest.raises(StoreError, match="cannot be written any more"):
            use(payload)
    assert payload.read(kept, 0, 4) == b"kept"
    payload.close()


def test_a_closed_payload_store_says_so(store: Made) -> None:
    payload = store.payload()
    payload.close()
    payload.close()
    with pytest.raises(InternalError, match="closed"):
        payload.read(extent_id(1, 1), 0, 1)
    for use in WRITING:
        with pytest.raises(InternalError, match="closed"):
            use(payload)


def _fail_next_write(payload: PayloadStore, kind: type[StoreError]) -> None:
    if isinstance(payload, MemoryPayload):
        payload.fail_next_write = kind("it failed")
    else:
        failpoints.arm("segment.write", "error:ENOSPC" if kind is NoSpace else "error:EIO")
