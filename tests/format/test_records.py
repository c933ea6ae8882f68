"""Records: their bytes, that what was put in comes out, and what a newer tzfs may have written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.format.samples import FIXED_KEY, SAMPLES, SNAPSHOT
from tzfs.errors import CorruptionError, ForeignStore, LimitReached
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, pack_counters, unpack_counters
from tzfs.format.keys import DataId, Epoch, ExtentId, Ino, Table, Txg
from tzfs.format.records import Bookmark, Inode, Shared, Snapshot
from tzfs.format.slices import (
    EMBEDDED_BYTES_MAX,
    NOWHERE,
    XATTR_EXTENTS,
    Slice,
    extents_of,
    pack_slices,
    pack_xattr,
    unpack_slices,
    unpack_xattr,
)
from tzfs.limits import CHUNK_SHIFT_MAX, NAME_BYTES_MAX, PAGE_BYTES, SLICES_MAX
from tzfs.native import decode_inodes, page_sums, reference
from tzfs.store.interface import VALUE_BYTES_MAX

GOLDEN = (Path(__file__).parent / "golden.txt").read_text().split("\n")

u32s, u64s = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
i64s = st.integers(-(1 << 63), (1 << 63) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

inodes = st.builds(
    Inode,
    ino=u64s.map(Ino),
    mode=u32s,
    uid=u32s,
    gid=u32s,
    nlink=u32s,
    size=u64s,
    data=u64s.map(DataId),
    rdev=u64s,
    atime_ns=i64s,
    mtime_ns=i64s,
    ctime_ns=i64s,
    btime_ns=i64s,
    flags=u32s,
    chunk_shift=st.integers(0, 255),
    parent=u64s.map(Ino),
    name=st.binary(max_size=NAME_BYTES_MAX),
)
slices = st.builds(
    Slice,
    u32s,
    u32s,
    u64s.map(ExtentId),
    u64s.map(Epoch),
    u32s,
    u32s,
    u32s,
    st.integers(0, 255),
    st.binary(max_size=40).map(lambda b: b[: len(b) // 4 * 4]),
    st.just(b""),
)
embedded = st.builds(
    lambda offset, length, begin, raw, codec, stored: Slice(
        offset, length, *NOWHERE, begin, raw, len(stored), codec, b"", stored
    ),
    u32s,
    u32s,
    u32s,
    u32s,
    st.integers(0, 255),
    st.binary(min_size=1, max_size=EMBEDDED_BYTES_MAX),
)
slice_lists = st.lists(slices, max_size=SLICES_MAX).map(tuple)
snapshots = st.builds(
    Snapshot,
    u64s.map(Epoch),
    st.binary(min_size=16, max_size=16),
    i64s,
    u64s,
    u64s,
    u64s,
    st.dictionaries(texts, texts, max_size=3),
    st.dictionaries(texts, i64s, max_size=3),
)
bookmarks = st.builds(
    Bookmark,
    u64s.map(Epoch),
    st.binary(min_size=16, max_size=16),
    i64s,
    u64s,
    st.dictionaries(texts, texts, max_size=3),
)
FIELDS = {
    Table.CELL: 2,
    Table.DEAD: 1,
    Table.ORPHAN: 1,
    Table.RECLAIM: 4,
    Table.PUNCH: 1,
    Table.SEGMENT: 3,
}


@given(u64s, u64s, u64s)
def test_what_is_saved_stands_behind_a_charge_where_there_is_any(number: int, charge: int, saved: int) -> None:
    for table, fields in ((Table.CELL, (number, charge)), (Table.DEAD, (charge,))):
        body = records.pack_charged(table, *fields, saved=saved)
        assert records.unpack_charged(table, b"k", body) == (fields, saved)
        assert (body == records.pack_plain(table, *fields)) == (saved == 0)
        with pytest.raises(CorruptionError):
            records.unpack_charged(table, b"k", records.pack_plain(table, *fields) + bytes(8))
    shared = Shared(charge, {Epoch(1): Epoch(2), Epoch(3): keys.LIVE}, saved)
    assert records.unpack_shared(b"k", records.pack_shared(shared)) == shared
    with pytest.raises(CorruptionError):
        records.unpack_shared(b"k", records.pack_shared(shared._replace(saved=0)) + bytes(8))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_record_has_exactly_these_bytes(name: str) -> None:
    at = GOLDEN.index(name)
    sample = SAMPLES[name]
    assert (sample.key.hex(), sample.value.hex()) == (GOLDEN[at + 1].strip(), GOLDEN[at + 2].strip())


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_bytes_read_back_as_what_they_mean(name: str) -> None:
    at = GOLDEN.index(name)
    key, value = bytes.fromhex(GOLDEN[at + 1]), bytes.fromhex(GOLDEN[at + 2])
    assert SAMPLES[name].read(key, value) == SAMPLES[name].means


def test_every_golden_record_is_still_made() -> None:
    assert [line for line in GOLDEN if line and not line.startswith(" ")] == list(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_envelope_is_what_the_format_says(name: str) -> None:
    sample = SAMPLES[name]
    version, checksum, body = sample.value[0], sample.value[1:5], sample.value[5:]
    assert version == (0x81 if "tombstone" in name else 1)
    told = bytes((sample.table,)) + len(sample.key).to_bytes(2, "big") + sample.key + bytes((version,)) + body
    h = 0xCBF29CE484222325
    for byte in told:
        h = (h ^ byte) * 0x100000001B3 % (1 << 64)
    assert (h >> 32 ^ h % (1 << 32)).to_bytes(4, "big") == checksum
    assert reference.record_sum(sample.table, sample.key, version, body).to_bytes(4, "big") == checksum


@given(inodes, u64s)
def test_an_inode_comes_back(inode: Inode, birth: int) -> None:
    key = keys.inode(inode.ino) + keys.suffix(birth)
    body = records.unseal(Table.INODE, key, records.seal(Table.INODE, key, records.pack_inode(inode)))
    assert body is not None
    assert records.unpack_inode(inode.ino, key, body) == inode


@given(st.lists(inodes, max_size=4))
def test_inodes_decoded_in_c_are_the_same(made: list[Inode]) -> None:
    rows = [(keys.inode(i.ino) + keys.suffix(1), i) for i in made]
    sealed = [records.seal(Table.INODE, key, records.pack_inode(i)) for key, i in rows]
    for columns, (_, i) in zip(decode_inodes(Table.INODE, [key for key, _ in rows], sealed), rows, strict=True):
        times = [t % (1 << 64) for t in (i.atime_ns, i.mtime_ns, i.ctime_ns, i.btime_ns)]
        fixed = [i.mode, i.uid, i.gid, i.nlink, i.size, i.data, i.rdev, *times, i.flags, i.chunk_shift, i.parent]
        assert list(columns) == fixed


@given(slice_lists)
def test_slices_come_back(made: tuple[Slice, ...]) -> None:
    assert unpack_slices(Table.CHUNK, b"k", pack_slices(made)) == made


@given(embedded)
def test_what_lies_in_a_chunks_record_comes_back(made: Slice) -> None:
    body = pack_slices((made,))
    assert len(body) + records.ENVELOPE_BYTES <= VALUE_BYTES_MAX
    assert unpack_slices(Table.CHUNK, b"k", body) == (made,)
    assert extents_of(Table.CHUNK, b"k", body) == []
    with pytest.raises(ForeignStore):
        unpack_xattr(b"k", bytes((XATTR_EXTENTS,)) + body)
    with pytest.raises(CorruptionError):
        unpack_slices(Table.CHUNK, b"k", body[: -len(made.embedded)])


@given(st.one_of(st.binary(max_size=4000), slice_lists))
def test_an_attribute_comes_back(value: bytes | tuple[Slice, ...]) -> None:
    assert unpack_xattr(b"k", pack_xattr(value)) == value


@given(u64s, st.integers(0, 255))
def test_a_directory_entry_comes_back(ino: int, kind: int) -> None:
    assert records.unpack_dirent(b"k", records.pack_dirent(ino, kind)) == (ino, kind)


@given(st.data())
def test_a_row_of_integers_comes_back(data: st.DataObject) -> None:
    for table, count in FIELDS.items():
        fields = tuple(data.draw(st.lists(u64s, min_size=count, max_size=count)))
        assert records.unpack_plain(table, b"k", records.pack_plain(table, *fields)) == fields
    fields = tuple(data.draw(st.lists(i64s, min_size=3, max_size=3)))
    assert records.unpack_plain(Table.DESTROY, b"k", records.pack_plain(Table.DESTROY, *fields)) == fields


@given(u64s, st.dictionaries(u64s.map(Epoch), u64s.map(Epoch), max_size=5))
def test_a_shared_extent_comes_back(charge: int, lifetimes: dict[Epoch, Epoch]) -> None:
    shared = Shared(charge, lifetimes)
    assert records.unpack_shared(b"k", records.pack_shared(shared)) == shared


@given(snapshots)
def test_a_snapshot_comes_back(snapshot: Snapshot) -> None:
    assert records.unpack_snapshot(b"k", records.pack_snapshot(snapshot)) == snapshot


@given(st.lists(u64s, min_size=12, max_size=12))
def test_counters_come_back(numbers: list[int]) -> None:
    epoch, txg, ino, data, *rest = numbers
    counters = Counters(Epoch(epoch), Txg(txg), Ino(ino), DataId(data), *rest)
    assert unpack_counters(records.seal(Table.SYS, COUNTERS_KEY, pack_counters(counters))) == counters


@given(bookmarks)
def test_a_bookmark_comes_back(bookmark: Bookmark) -> None:
    assert records.unpack_bookmark(b"k", records.pack_bookmark(bookmark)) == bookmark


def test_fields_of_a_later_version_in_a_snapshot_are_kept() -> None:
    body = records.pack_snapshot(SNAPSHOT).replace(b'{"holds"', b'{"colour":[1,null],"holds"')
    later = records.unpack_snapshot(b"k", body)
    assert later.extra == {"colour": [1, None]}
    assert records.pack_snapshot(later) == body


@pytest.mark.parametrize("table", list(Table))
def test_a_tombstone_has_no_body_and_says_so(table: Table) -> None:
    value = records.tombstone(table, b"key")
    assert len(value) == records.ENVELOPE_BYTES
    assert records.is_tombstone(value)
    assert records.unseal(table, b"key", value) is None
    assert not records.is_tombstone(records.seal(table, b"key", b""))
    assert records.unseal(table, b"key", records.seal(table, b"key", b"")) == b""


def _sealed_as(version: int, table: Table, key: bytes, body: bytes) -> bytes:
    return bytes((version,)) + reference.record_sum(table, key, version, body).to_bytes(4, "big") + body


@pytest.mark.parametrize("version", [0, 2, 3, 127, 0x80, 0x82, 0xFF])
def test_an_intact_record_of_another_version_is_a_later_tzfs(version: int) -> None:
    with pytest.raises(ForeignStore) as caught:
        records.unseal(Table.INODE, b"key", _sealed_as(version, Table.INODE, b"key", b"body"))
    assert caught.value.hint


def test_a_tombstone_with_a_body_is_damage() -> None:
    with pytest.raises(CorruptionError):
        records.unseal(Table.INODE, b"key", _sealed_as(0x81, Table.INODE, b"key", b"body"))


@pytest.mark.parametrize("first", [129, 200, 255])
def test_contents_of_another_kind_are_a_later_tzfs(first: int) -> None:
    with pytest.raises(ForeignStore):
        unpack_slices(Table.CHUNK, b"key", bytes((first,)) + b"payload")
    with pytest.raises(ForeignStore):
        unpack_xattr(b"key", bytes((first,)) + b"payload")


def test_a_record_with_the_most_slices_stays_within_a_page() -> None:
    """Each of the 16 slices of the largest chunk may touch two pages more than it fills."""
    chunk_bytes = 1 << CHUNK_SHIFT_MAX
    length = chunk_bytes // SLICES_MAX
    sums = page_sums(bytes(length + 2 * PAGE_BYTES))
    made = tuple(
        Slice(i * length, length, keys.extent_id(1, 1), Epoch(1), 1, 1 << 20, 1 << 20, 0, sums)
        for i in range(SLICES_MAX)
    )
    assert len(records.seal(Table.CHUNK, b"k", pack_slices(made))) <= VALUE_BYTES_MAX


def test_properties_that_would_not_fit_a_page_are_refused_when_packed() -> None:
    fits = Snapshot(Epoch(1), bytes(16), 0, 1, 1, 1, {"a:b": "x" * 3900})
    assert len(records.seal(Table.SNAPSHOT, b"k", records.pack_snapshot(fits))) <= VALUE_BYTES_MAX
    with pytest.raises(LimitReached):
        records.pack_snapshot(Snapshot(Epoch(1), bytes(16), 0, 1, 1, 1, {"a:b": "x" * 4000}))


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"{", b"nul", b"NaN", b"[" * 100_000, b"1" * 5000, b"{}\0", b'"\xed\xa0\x80"']
)
def test_what_is_not_json_is_damage(body: bytes) -> None:
    with pytest.raises(CorruptionError):
        records.unpack_json(Table.SYS, b"k", body)


@given(
    st.dictionaries(texts, st.one_of(texts, i64s, st.none(), st.booleans(), st.lists(texts, max_size=2)), max_size=4)
)
def test_json_is_canonical_and_comes_back(value: dict[str, object]) -> None:
    packed = records.pack_json(value)
    assert records.unpack_json(Table.SYS, b"k", packed) == value
    assert records.pack_json(dict(reversed(list(value.items())))) == packed


def test_samples_cover_every_table_of_a_filesystem_that_has_records() -> None:
    reserved = {Table.LOG}
    assert {s.table for s in SAMPLES.values()} == set(keys.FILESYSTEM_TABLES) - reserved
    assert set(SAMPLES) >= FIXED_KEY
