"""Keys: their bytes, their order, and that no key of one thing is met while looking for another."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format import keys
from tzfs.format.keys import EPOCH_MAX, FILESYSTEM_TABLES, LIVE, VERSIONED, Table
from tzfs.limits import NAME_BYTES_MAX, XATTR_NAME_BYTES_MAX

u64s = st.integers(0, EPOCH_MAX)
ids = st.one_of(st.integers(0, 3), st.integers(0, 1 << 40), u64s)
names = st.one_of(
    st.sampled_from([b"a", b"aa", b"ab", b"a\x01", b"\x01", b"\xff", b"a\xff"]),
    st.binary(min_size=1, max_size=NAME_BYTES_MAX).map(lambda b: b.replace(b"\0", b"\x01")),
)
BY_TABLE = {
    Table.INODE: ids.map(keys.inode),
    Table.DIRENT: st.builds(keys.dirent, ids, names),
    Table.LINK: st.builds(keys.link, ids, ids, names),
    Table.INLINE: ids.map(keys.inline),
    Table.CHUNK: st.builds(keys.chunk, ids, ids),
    Table.XATTR: st.builds(keys.xattr, ids, names),
}
prefixes = st.one_of(*BY_TABLE.values())
births = st.sets(u64s, min_size=1, max_size=5)
histories = st.one_of(*(st.dictionaries(p, births, min_size=1, max_size=12) for p in BY_TABLE.values()))
tables = st.sampled_from(list(Table))

GOLDEN = {
    "suffix": (keys.suffix(1), "fffffffffffffffe"),
    "suffix of 0": (keys.suffix(0), "ffffffffffffffff"),
    "inode": (keys.inode(0x0102030405), "0000000102030405"),
    "dirent": (keys.dirent(1, b"a.c"), "0000000000000001612e6300"),
    "link": (keys.link(7, 1, b"a"), "000000000000000700000000000000016100"),
    "inline": (keys.inline(9), "0000000000000009"),
    "chunk": (keys.chunk(9, 258), "00000000000000090000000000000102"),
    "xattr": (keys.xattr(7, b"user.a"), "0000000000000007757365722e6100"),
    "change": (keys.change(3, Table.CHUNK, keys.chunk(9, 0)), "00000000000000030500000000000000090000000000000000"),
    "dead": (keys.dead(4, 3, Table.INODE, keys.inode(7)), "00000000000000040000000000000003010000000000000007"),
    "dead extent": (
        keys.dead(4, 3, Table.EXTENT, keys.u64(keys.extent_id(2, 5))),
        "00000000000000040000000000000003140000000200000005",
    ),
    "cell": (keys.cell(LIVE, 3), "ffffffffffffffff0000000000000003"),
    "orphan": (keys.orphan(7), "0000000000000007"),
    "reclaim": (keys.reclaim(8), "0000000000000008"),
    "destroy": (keys.destroy(8), "0000000000000008"),
    "punch": (keys.punch(6, keys.extent_id(2, 5)), "00000000000000060000000200000005"),
    "shared": (keys.shared(keys.extent_id(2, 5)), "0000000200000005"),
    "segment": (keys.segment(2), "0000000000000002"),
}


@pytest.mark.parametrize("what", GOLDEN)
def test_a_key_has_exactly_these_bytes(what: str) -> None:
    made, expected = GOLDEN[what]
    assert made.hex() == expected


def test_every_table_has_exactly_this_number() -> None:
    in_order = """
        INODE DIRENT LINK INLINE CHUNK XATTR CHANGE DEAD CELL ORPHAN RECLAIM DESTROY PUNCH SHARED SNAPSHOT BOOKMARK LOG
        SYS SEGMENT EXTENT
    """
    numbers = {name: n for n, name in enumerate(in_order.split(), 1)}
    assert {t.name: int(t) for t in Table} == {**numbers, "CATALOG": 32, "CATALOG_STORE": 33, "CATALOG_HOLD": 34}
    assert Table.EXTENT not in FILESYSTEM_TABLES
    assert [int(t) for t in VERSIONED] == [1, 2, 3, 4, 5, 6]


@given(ids, ids, names, u64s)
def test_what_was_put_into_a_key_comes_out(a: int, b: int, name: bytes, birth: int) -> None:
    suffix = keys.suffix(birth)
    assert keys.birth_of(keys.inode(a) + suffix) == birth
    assert keys.dirent_name(keys.dirent(a, name) + suffix) == name
    assert keys.link_name(keys.link(a, b, name) + suffix) == (b, name)
    assert keys.xattr_name(keys.xattr(a, name) + suffix) == name
    assert keys.chunk_index(keys.chunk(a, b)) == keys.chunk_index(keys.chunk(a, b) + suffix) == b
    assert keys.cell_parts(keys.cell(a, b)) == (a, b)
    assert keys.punch_parts(keys.punch(a, b)) == (a, b)


@given(u64s, u64s, tables, prefixes)
def test_change_and_dead_keys_give_their_parts_back(death: int, birth: int, table: Table, prefix: bytes) -> None:
    assert keys.change_parts(keys.change(birth, table, prefix)) == (birth, table, prefix)
    assert keys.dead_parts(keys.dead(death, birth, table, prefix)) == (death, birth, table, prefix)


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_an_extent_id_is_its_segment_and_block(number: int, block: int) -> None:
    extent = keys.extent_id(number, block)
    assert (keys.extent_segment(extent), keys.extent_offset(extent)) == (number, block * 4096)


@given(histories, u64s)
def test_one_seek_lands_on_the_version_visible_at_an_epoch(there: dict[bytes, set[int]], epoch: int) -> None:
    rows = sorted(prefix + keys.suffix(birth) for prefix, born in there.items() for birth in born)
    for prefix, born in there.items():
        visible = max((birth for birth in born if birth <= epoch), default=None)
        at = bisect_left(rows, prefix + keys.suffix(epoch))
        found = rows[at] if at < len(rows) and rows[at][:-8] == prefix else None
        assert found == (None if visible is None else prefix + keys.suffix(visible))


@given(st.sampled_from([keys.dirent, keys.xattr]), ids, names, names)
def test_no_name_begins_the_key_of_another(key: object, directory: int, one: bytes, other: bytes) -> None:
    assert callable(key)
    if one != other:
        assert not key(directory, other).startswith(key(directory, one))
    assert (key(directory, one) < key(directory, other)) == (one < other)


@given(ids, ids, names, names)
def test_no_link_begins_the_key_of_another(ino: int, directory: int, one: bytes, other: bytes) -> None:
    if one != other:
        assert not keys.link(ino, directory, other).startswith(keys.link(ino, directory, one))


@given(ids, names, u64s, u64s)
def test_newer_versions_come_first(directory: int, name: bytes, one: int, other: int) -> None:
    prefix = keys.dirent(directory, name)
    assert (prefix + keys.suffix(one) < prefix + keys.suffix(other)) == (one > other)


@given(st.binary(min_size=1, max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_after_is_above_all_that_begins_with_a_prefix_and_below_all_else(p: bytes, tail: bytes, other: bytes) -> None:
    if not p.strip(b"\xff"):
        return
    stop = keys.after(p)
    assert p + tail < stop
    if other > p and not other.startswith(p):
        assert other >= stop


def test_after_passes_over_trailing_ff() -> None:
    assert keys.after(b"\x01\xff\xff") == b"\x02"
    assert keys.after(keys.u64(255)) == keys.u64(256)[:-1]


def test_the_longest_key_of_every_table_fits_the_store() -> None:
    name = b"n" * max(NAME_BYTES_MAX, XATTR_NAME_BYTES_MAX)
    longest = keys.dead(LIVE, LIVE, Table.LINK, keys.link(1, 1, name))
    assert len(longest) == 289
    assert len(longest) < 511


@pytest.mark.parametrize("size", range(30))
def test_a_key_of_another_length_is_damage(size: int) -> None:
    raw = bytes(size)
    if size != 16:
        with pytest.raises(CorruptionError):
            keys.cell_parts(raw)
        with pytest.raises(CorruptionError):
            keys.punch_parts(raw)
    if size < 10:
        with pytest.raises(CorruptionError):
            keys.change_parts(raw)
    if size < 18:
        with pytest.raises(CorruptionError):
            keys.dead_parts(raw)


def test_a_row_about_an_unknown_table_is_a_later_tzfs() -> None:
    with pytest.raises(ForeignStore, match="table 99"):
        keys.change_parts(keys.u64(1) + b"\x63" + keys.u64(1))
    with pytest.raises(ForeignStore, match="table 99"):
        keys.dead_parts(keys.u64(2) + keys.u64(1) + b"\x63" + keys.u64(1))
