"""A chunk's buffer and its slices against plain arrays of bytes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tests.store.paged import paged
from tzfs.engine import slices
from tzfs.engine.buffers import SHARED_BYTES_MIN, Buffer
from tzfs.format.keys import Epoch, ExtentId
from tzfs.format.slices import CODEC_RAW, Slice
from tzfs.native import page_sums

Payload = bytes | bytearray | memoryview
Write = tuple[int, int, Callable[[bytes], Payload]]
CHUNK = 2 * SHARED_BYTES_MIN
WRITES = st.lists(
    st.tuples(
        st.integers(0, CHUNK - 1),
        st.one_of(st.integers(1, 100), st.sampled_from([4096, SHARED_BYTES_MIN, CHUNK])),
        st.sampled_from([bytes, bytearray, memoryview, paged]),
    ),
    max_size=8,
)


def payload(n: int, size: int) -> bytes:
    return bytes([n + 1]) * size


@given(WRITES, st.integers(0, CHUNK))
def test_a_buffer_holds_what_was_written_and_nothing_else(writes: list[Write], cut: int) -> None:
    buffer, plain, written = Buffer(), bytearray(CHUNK), bytearray(CHUNK)
    for n, (offset, size, kind) in enumerate(writes):
        offset = 0 if size >= SHARED_BYTES_MIN and n % 2 == 0 else offset
        size = min(size, CHUNK - offset)
        given_bytes = kind(payload(n, size))
        buffer.write(offset, given_bytes)
        if isinstance(given_bytes, bytearray):
            given_bytes[:] = bytes(size)  # the caller's own bytes may change afterwards
        plain[offset : offset + size] = payload(n, size)
        written[offset : offset + size] = b"\1" * size
    buffer.truncate(cut)
    written[cut:] = bytes(CHUNK - cut)
    found = bytearray(CHUNK)
    for offset, data in buffer.within(0, CHUNK):
        found[offset : offset + len(data)] = b"\1" * len(data)
        assert data == plain[offset : offset + len(data)]
    assert found == written
    ends = [edge for span in buffer.spans for edge in span]
    assert ends == sorted(set(ends)), "spans ascend and do not touch"


@given(WRITES, WRITES)
def test_a_newer_buffer_lies_over_an_older_one(
    older: list[tuple[int, int, type[bytes]]], newer: list[tuple[int, int, type[bytes]]]
) -> None:
    plain, parts = bytearray(CHUNK), []
    for part in (older, newer):
        buffer = Buffer()
        for n, (offset, size, kind) in enumerate(part):
            size = min(size, CHUNK - offset)
            buffer.write(offset, kind(payload(n, size)))
            plain[offset : offset + size] = payload(n, size)
        parts.append(buffer)
    both = parts[1].over(parts[0])
    for offset, data in both.within(0, CHUNK):
        assert data == plain[offset : offset + len(data)]


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 20_000)), max_size=8))
def test_slices_cover_what_was_inserted_and_keep_the_sums_of_what_is_left(spans: list[tuple[int, int]]) -> None:
    """Each slice's sums must be those of the pages of its extent that it still touches."""
    extents: dict[int, bytes] = {}
    held: slices.Slices = ()
    plain = bytearray(100_000)
    for n, (offset, size) in enumerate(spans):
        raw = bytes((n * 31 + i * 7) % 256 for i in range(size))
        extents[n] = raw
        plain[offset : offset + size] = raw
        new = Slice(offset, size, ExtentId(n), Epoch(1), 0, size, size, CODEC_RAW, page_sums(raw))
        held = slices.insert(held, new)
    at = 0
    for s in held:
        assert s.offset >= at
        at = s.offset + s.length
        raw = extents[s.extent]
        assert raw[s.extent_offset : s.extent_offset + s.length] == plain[s.offset : at]
        first = s.extent_offset // 4096
        last = -(-(s.extent_offset + s.length) // 4096)
        assert s.sums == page_sums(raw)[4 * first : 4 * last]
