"""Each function of `tzfs.native` gives what its reference in plain Python gives, bit for bit, and refuses misuse."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable
from dataclasses import astuple
from types import ModuleType
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tzfs import native
from tzfs.format import keys, records
from tzfs.format.keys import DataId, Ino, Table
from tzfs.native import reference

EDGES: Final = (0, 1, 2, 7, 8, 16, 17, 128, 129, 240, 241, 1024, 4095, 4096, 4097, 8191, 8192, 8193, 131071, 131073)
FORMS: Final[tuple[Callable[[bytes], native.Buffer], ...]] = (bytes, bytearray, memoryview)


def _filled(seed: int, length: int) -> bytes:
    """Bytes that differ from page to page."""
    return b"".join(
        struct.pack(">Q", (seed + 1) * 0x9E3779B97F4A7C15 * (i + 1) % (1 << 64)) for i in range(length // 8 + 1)
    )[:length]


_contents = st.one_of(
    st.binary(max_size=300),
    st.builds(_filled, st.integers(0, 255), st.sampled_from(EDGES)),
)
_buffers = st.builds(lambda data, form: form(data), _contents, st.sampled_from(FORMS))
_tables = st.integers(0, 255)
_keys = st.binary(max_size=300)


def test_each_function_has_a_reference_of_the_same_signature() -> None:
    def public(module: ModuleType) -> dict[str, list[str]]:
        return {
            name: [p for p in inspect.signature(function).parameters if p != "seed"]
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if not name.startswith("_") and name != "cast"
        }

    assert public(native) == public(reference)
    assert len(public(native)) == 10


# -- FNV-1a ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "full", "folded"),
    [
        (b"", 0xCBF29CE484222325, 0x4FD0BFC1),
        (b"a", 0xAF63DC4C8601EC8C, 0x296230C0),
        (b"foobar", 0x85944171F73967E8, 0x72AD2699),
    ],
)
def test_fnv1a_of_known_texts(data: bytes, full: int, folded: int) -> None:
    assert native.fnv1a64(data) == reference.fnv1a64(data) == full
    assert native.fnv1a32(data) == reference.fnv1a32(data) == folded == (full >> 32) ^ (full & 0xFFFFFFFF)


@given(_contents)
def test_fnv1a(data: bytes) -> None:
    assert native.fnv1a64(data) == reference.fnv1a64(data)
    assert native.fnv1a32(data) == reference.fnv1a32(data)


# -- records ---------------------------------------------------------------------------------------------------------


@given(_tables, st.integers(0, 255), st.lists(st.tuples(_keys, st.binary(max_size=300)), max_size=20))
def test_seal_many(table: int, version: int, rows: list[tuple[bytes, bytes]]) -> None:
    found, bodies = [key for key, _ in rows], [body for _, body in rows]
    sealed = native.seal_many(table, version, found, bodies)
    assert sealed == reference.seal_many(table, version, found, bodies)
    assert native.verify_many(table, found, sealed) == -1


@pytest.mark.parametrize("module", [native, reference])
def test_seal_many_refuses_more_keys_than_bodies(module: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"2 keys for 1 bodies|argument 2 is shorter"):
        module.seal_many(1, 1, [b"a", b"b"], [b""])


@given(_tables, st.lists(st.tuples(_keys, st.binary(max_size=300)), max_size=20))
def test_records_sealed_together_are_those_sealed_alone(table: int, rows: list[tuple[bytes, bytes]]) -> None:
    assert records.seal_many(table, rows) == [(key, records.seal(table, key, body)) for key, body in rows]


@given(
    _tables, _keys, st.integers(0, 255), st.one_of(st.binary(max_size=300), st.sampled_from([bytes(4000), b"x" * 4097]))
)
def test_record_sum(table: int, key: bytes, version: int, body: bytes) -> None:
    assert native.record_sum(table, key, version, body) == reference.record_sum(table, key, version, body)


def test_record_sum_of_a_known_record() -> None:
    assert native.record_sum(1, keys.inode(1), 1, b"body") == reference.fnv1a32(
        b"\x01\x00\x08" + bytes(7) + b"\x01\x01body"
    )


_sealed = st.lists(st.tuples(_keys, st.binary(max_size=300)), max_size=8)


@given(_tables, _sealed, st.data())
def test_verify_many_finds_the_first_damaged_value(
    table: int, rows: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    found = [key for key, _ in rows]
    values = [records.seal(table, key, body) for key, body in rows]
    assert native.verify_many(table, found, values) == reference.verify_many(table, found, values) == -1
    if rows:
        hurt = data.draw(st.integers(0, len(rows) - 1))
        at = data.draw(st.integers(0, len(values[hurt]) - 1))
        bit = data.draw(st.integers(0, 7))
        values[hurt] = values[hurt][:at] + bytes([values[hurt][at] ^ 1 << bit]) + values[hurt][at + 1 :]
        assert native.verify_many(table, found, values) == reference.verify_many(table, found, values) == hurt


@given(_tables, st.lists(st.tuples(_keys, st.binary(max_size=12)), max_size=4))
def test_verify_many_of_anything(table: int, rows: list[tuple[bytes, bytes]]) -> None:
    found, values = [key for key, _ in rows], [value for _, value in rows]
    assert native.verify_many(table, found, values) == reference.verify_many(table, found, values)


_u32, _u64, _i64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
_inodes = st.builds(
    records.Inode,
    ino=st.integers(1, 2**40 - 1).map(Ino),
    mode=_u32,
    uid=_u32,
    gid=_u32,
    nlink=_u32,
    size=_u64,
    data=_u64.map(DataId),
    rdev=_u64,
    atime_ns=_i64,
    mtime_ns=_i64,
    ctime_ns=_i64,
    btime_ns=_i64,
    flags=_u32,
    chunk_shift=st.integers(0, 255),
    parent=_u64.map(Ino),
    name=st.binary(max_size=255),
)


@given(st.lists(_inodes, max_size=5))
def test_decode_inodes(inodes: list[records.Inode]) -> None:
    found = [keys.inode(i.ino) + keys.suffix(7) for i in inodes]
    values = [records.seal(Table.INODE, k, records.pack_inode(i)) for k, i in zip(found, inodes, strict=True)]
    rows = native.decode_inodes(Table.INODE, found, values)
    assert rows == reference.decode_inodes(Table.INODE, found, values)
    for row, inode in zip(rows, inodes, strict=True):
        signed = [(n + (1 << 63)) % (1 << 64) - (1 << 63) if 7 <= at <= 10 else n for at, n in enumerate(row)]
        assert (inode.ino, *signed, inode.name) == astuple(inode)


@pytest.mark.parametrize("function", [native.decode_inodes, reference.decode_inodes])
@pytest.mark.parametrize("wrong", ["tombstone", "version", "checksum", "short", "empty"])
def test_decode_inodes_says_which_is_damaged(
    function: Callable[[int, list[bytes], list[bytes]], list[tuple[int, ...]]], wrong: str
) -> None:
    found = [keys.inode(ino) + keys.suffix(1) for ino in (1, 2, 3)]
    body = bytes(records.INODE_BYTES)
    values = [records.seal(Table.INODE, key, body) for key in found]
    values[1] = {
        "tombstone": records.tombstone(Table.INODE, found[1]),
        "version": b"\x02" + native.record_sum(Table.INODE, found[1], 2, body).to_bytes(4, "big") + body,
        "checksum": values[0],
        "short": records.seal(Table.INODE, found[1], body[1:]),
        "empty": b"",
    }[wrong]
    with pytest.raises(ValueError, match=r"^1$"):
        function(Table.INODE, found, values)


# -- payload ---------------------------------------------------------------------------------------------------------


@given(_buffers)
def test_page_sums(data: native.Buffer) -> None:
    assert native.page_sums(data) == reference.page_sums(data)


def test_page_sums_of_a_known_page() -> None:
    assert native.page_sums(b"a").hex() == "1e964e1f"
    assert native.page_sums(b"") == b""


@given(_contents, st.sampled_from(FORMS), st.data())
def test_pages_match_finds_the_first_page_that_differs(
    contents: bytes, form: Callable[[bytes], native.Buffer], data: st.DataObject
) -> None:
    sums = reference.page_sums(contents)
    assert native.pages_match(form(contents), sums) == reference.pages_match(contents, sums) == -1
    if contents:
        at = data.draw(st.integers(0, len(contents) - 1))
        hurt = contents[:at] + bytes([contents[at] ^ 1]) + contents[at + 1 :]
        assert native.pages_match(form(hurt), sums) == reference.pages_match(hurt, sums) == at // 4096
        at = data.draw(st.integers(0, len(sums) - 1))
        sums = sums[:at] + bytes([sums[at] ^ 1]) + sums[at + 1 :]
        assert native.pages_match(form(contents), sums) == reference.pages_match(contents, sums) == at // 4


@given(st.sampled_from(EDGES), st.sampled_from(FORMS), st.data())
def test_is_zero(length: int, form: Callable[[bytes], native.Buffer], data: st.DataObject) -> None:
    assert native.is_zero(form(bytes(length)))
    assert reference.is_zero(form(bytes(length)))
    if length:
        at = data.draw(st.sampled_from([0, length // 2, length - 1]))
        hurt = form(bytes(at) + b"\x01" + bytes(length - at - 1))
        assert not native.is_zero(hurt)
        assert not reference.is_zero(hurt)


@st.composite
def _gathers(draw: st.DrawFn) -> tuple[int, list[tuple[int, native.Buffer]]]:
    length = draw(st.one_of(st.integers(0, 64), st.sampled_from(EDGES)))
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=8)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return length, [(lo, draw(st.sampled_from(FORMS))(_filled(lo % 256, hi - lo))) for lo, hi in pairs]


@given(_gathers(), st.booleans())
def test_gather(case: tuple[int, list[tuple[int, native.Buffer]]], through_a_view: bool) -> None:
    length, pieces = case
    ours, theirs = bytearray(b"\xaa" * length), bytearray(b"\x55" * length)
    native.gather(memoryview(ours) if through_a_view else ours, pieces)
    reference.gather(theirs, pieces)
    assert ours == theirs


def test_gather_writes_nothing_beyond_its_target() -> None:
    around = bytearray(b"\xaa" * 12)
    native.gather(memoryview(around)[4:8], [(1, b"xy")])
    assert around == b"\xaa" * 4 + b"\0xy\0" + b"\xaa" * 4


# -- misuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [native, reference])
@pytest.mark.parametrize(
    "pieces",
    [
        [(-1, b"x")],
        [(4, b"x")],
        [(0, b"xxxxx")],
        [(1 << 64, b"x")],
        [(2, b"x"), (0, b"x")],
        [(0, b"xx"), (1, b"xx")],
        [(5, b"")],
    ],
)
def test_gather_refuses_pieces_out_of_bounds_or_order_and_changes_nothing(
    module: ModuleType, pieces: list[tuple[int, bytes]]
) -> None:
    target = bytearray(b"keep")
    with pytest.raises(ValueError, match="ascend"):
        module.gather(target, pieces)
    assert target == b"keep"


@pytest.mark.parametrize("module", [native, reference])
@pytest.mark.parametrize(("length", "sums"), [(0, 4), (1, 0), (1, 3), (1, 5), (4096, 8), (4097, 4)])
def test_pages_match_refuses_sums_of_another_length(module: ModuleType, length: int, sums: int) -> None:
    with pytest.raises(ValueError, match="bytes of sums"):
        module.pages_match(bytes(length), bytes(sums))


@pytest.mark.parametrize("module", [native, reference])
def test_verify_many_refuses_more_keys_than_values(module: ModuleType) -> None:
    for found, values in (([b"k"], []), ([], [b"v"])):
        for refusing in (module.verify_many, module.decode_inodes):
            with pytest.raises(ValueError, match=r"keys (for|and) |is (shorter|longer)"):  # ours, or `zip`'s
                refusing(1, found, values)


def test_decode_inodes_refuses_keys_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="one length"):
        native.decode_inodes(1, [b"ab", b"c"], [b"", b""])
