"""Section 12 of FORMAT.md, checked on the frozen image from its rows alone, without the engine."""

from __future__ import annotations

import tarfile
from collections import defaultdict
from pathlib import Path
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import Final

import pytest

from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, unpack_counters
from tzfs.format.keys import FILESYSTEM_TABLES, LIVE, ROOT, VERSIONED, Ino, Table
from tzfs.format.records import FLAG_INLINE, Inode, unseal
from tzfs.format.slices import Slice, unpack_slices, unpack_xattr
from tzfs.store.lmdb_store import LmdbMeta

IMAGE: Final = Path(__file__).parent / "images" / "format-1.tar.gz"
EPOCHS: Final = (1, 2, 3)  # two snapshots and the head

Rows = dict[Table, dict[bytes, bytes]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Every row of `ws` with its value verified (1: every value matches its envelope)."""
    store = tmp_path_factory.mktemp("invariants")
    with tarfile.open(IMAGE) as archive:
        archive.extractall(store, filter="data")
    meta = LmdbMeta(store / "fs" / "d891bb186b6fa8b1" / "meta", readonly=True)
    txn = meta.begin_read()
    found = {table: dict(txn.range(table, b"")) for table in FILESYSTEM_TABLES}
    txn.close()
    meta.close()
    for table, values in found.items():
        for key, value in values.items():
            unseal(table, key, value)
    return found


def _body(rows: Rows, table: Table, key: bytes) -> bytes:
    body = unseal(table, key, rows[table][key])
    assert body is not None
    return body


def _versions(rows: Rows, table: Table) -> dict[bytes, list[int]]:
    """prefix -> births, newest first."""
    found = defaultdict(list)
    for key in rows[table]:
        found[key[:-8]].append(int(keys.birth_of(key)))
    return found


def _at(rows: Rows, table: Table, epoch: int) -> dict[bytes, bytes]:
    """prefix -> the body that is seen at an epoch."""
    found = {}
    for prefix, births in _versions(rows, table).items():
        visible = max((birth for birth in births if birth <= epoch), default=None)
        if visible is not None:
            key = prefix + keys.suffix(visible)
            body = unseal(table, key, rows[table][key])
            if body is not None:
                found[prefix] = body
    return found


def _inodes(rows: Rows, epoch: int) -> dict[int, Inode]:
    found = _at(rows, Table.INODE, epoch).items()
    return {int.from_bytes(p, "big"): records.unpack_inode(Ino(int.from_bytes(p, "big")), p, body) for p, body in found}


def _reclaims(rows: Rows) -> list[tuple[int, ...]]:
    return [records.unpack_plain(Table.RECLAIM, key, _body(rows, Table.RECLAIM, key)) for key in rows[Table.RECLAIM]]


def _slices(rows: Rows, epoch: int) -> dict[bytes, tuple[Slice, ...]]:
    """chunk -> its slices; what is being reclaimed reads as a hole."""
    found = {}
    for prefix, body in _at(rows, Table.CHUNK, epoch).items():
        data, index = int.from_bytes(prefix[:8], "big"), keys.chunk_index(prefix)
        if not any(data == d and lo <= index < hi and epoch >= at for d, lo, hi, at in _reclaims(rows)):
            found[prefix] = unpack_slices(Table.CHUNK, prefix, body)
    return found


def _counters(rows: Rows) -> Counters:
    return unpack_counters(rows[Table.SYS][COUNTERS_KEY])


def _extents(rows: Rows) -> dict[int, int]:
    """Every extent that a version names, by id, with its stored bytes."""
    named = [s for table in (Table.CHUNK, Table.XATTR) for slices in _all_slices(rows, table) for s in slices]
    return {s.extent: s.stored_bytes for s in named}


def _all_slices(rows: Rows, table: Table) -> list[tuple[Slice, ...]]:
    found = []
    for key in rows[table]:
        body = unseal(table, key, rows[table][key])
        if body is not None:
            value = unpack_slices(table, key, body) if table is Table.CHUNK else unpack_xattr(key, body)
            if isinstance(value, tuple):
                found.append(value)
    return found


def test_2_every_version_but_the_newest_is_dead_once_and_each_has_its_change_row(rows: Rows) -> None:
    dead = defaultdict(list)
    for key in rows[Table.DEAD]:
        death, birth, table, prefix = keys.dead_parts(key)
        dead[table, prefix].append((int(birth), int(death)))
    changes = {keys.change_parts(key) for key in rows[Table.CHANGE]}
    versions = {(table, prefix): births for table in VERSIONED for prefix, births in _versions(rows, table).items()}
    assert changes == {(birth, table, prefix) for (table, prefix), births in versions.items() for birth in births}
    for what, births in versions.items():
        newest, *older = sorted(births, reverse=True)
        assert sorted(born for born, _ in dead.get(what, [])) == sorted(older)
        for born, died in dead.get(what, []):
            assert died <= min(b for b in births if b > born)
            assert born < died <= newest
    assert {what for what in dead if what[0] is not Table.EXTENT} <= set(versions)


def test_3_nothing_is_born_above_the_head(rows: Rows) -> None:
    head = _counters(rows).epoch
    assert all(keys.birth_of(key) <= head for table in VERSIONED for key in rows[table])
    assert head == EPOCHS[-1]


def test_4_cells_are_the_sums_of_what_they_count(rows: Rows) -> None:
    cells: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    deaths = {}
    for key in rows[Table.DEAD]:
        death, birth, table, prefix = keys.dead_parts(key)
        (charge,) = records.unpack_plain(Table.DEAD, key, _body(rows, Table.DEAD, key))
        deaths[birth, table, prefix] = death
        cells[death, birth][0] += 1
        cells[death, birth][1] += charge
    for table in VERSIONED:
        for key, value in rows[table].items():
            birth = keys.birth_of(key)
            if (birth, table, key[:-8]) not in deaths:
                cells[LIVE, birth][0] += 1
                cells[LIVE, birth][1] += 0 if records.is_tombstone(value) else len(key) + len(value)
    for (_, born), stored in _live_lifetimes(rows).items():
        cells[LIVE, born][0] += 1
        cells[LIVE, born][1] += -(-stored // 4096) * 4096
    told = {
        keys.cell_parts(key): list(records.unpack_plain(Table.CELL, key, _body(rows, Table.CELL, key)))
        for key in rows[Table.CELL]
    }
    assert told == dict(cells)
    assert _counters(rows).bytes == sum(charge for (death, _), (_, charge) in told.items() if death == LIVE)


def _live_lifetimes(rows: Rows) -> dict[tuple[int, int], int]:
    """(extent, birth) -> stored bytes, of what the newest version of a key names (reclaimed or not)."""
    chunks = _at(rows, Table.CHUNK, LIVE).items()
    found = [s for prefix, body in chunks for s in unpack_slices(Table.CHUNK, prefix, body)]
    for prefix, body in _at(rows, Table.XATTR, LIVE).items():
        value = unpack_xattr(prefix, body)
        found += value if isinstance(value, tuple) else ()
    return {(s.extent, s.birth): s.stored_bytes for s in found}


@pytest.mark.parametrize("epoch", EPOCHS)
def test_5_names_and_inodes_agree_both_ways(rows: Rows, epoch: int) -> None:
    inodes = _inodes(rows, epoch)
    names = defaultdict(set)
    for prefix, body in _at(rows, Table.DIRENT, epoch).items():
        ino, kind = records.unpack_dirent(prefix, body)
        assert inodes[ino].mode >> 12 == kind
        names[int(ino)].add((int.from_bytes(prefix[:8], "big"), prefix[8:-1]))
    links = defaultdict(set)
    for prefix in _at(rows, Table.LINK, epoch):
        links[int.from_bytes(prefix[:8], "big")].add((int.from_bytes(prefix[8:16], "big"), prefix[16:-1]))
    for number, inode in inodes.items():
        told = {(int(inode.parent), inode.name)} if inode.parent else links[number]
        orphan = keys.orphan(number) in rows[Table.ORPHAN] and inode.nlink == 0
        assert names[number] == (set() if number == ROOT or orphan else told)
        assert not (inode.parent and links[number])
        if inode.mode & 0o170000 != S_IFDIR:
            assert inode.nlink == len(names[number])
            assert inode.nlink or orphan
    assert set(names) <= set(inodes)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_6_directories_are_one_tree_and_count_their_entries(rows: Rows, epoch: int) -> None:
    inodes = _inodes(rows, epoch)
    entries = defaultdict(list)
    for prefix, body in _at(rows, Table.DIRENT, epoch).items():
        entries[int.from_bytes(prefix[:8], "big")].append(records.unpack_dirent(prefix, body))
    for ino, inode in inodes.items():
        if S_IFMT(inode.mode) == S_IFDIR:
            assert inode.size == len(entries[ino])
            assert inode.nlink == 2 + sum(kind == S_IFDIR >> 12 for _, kind in entries[ino])
            above, steps = int(ino), 0
            while above != ROOT:
                above, steps = int(inodes[above].parent), steps + 1
                assert steps <= len(inodes)
        else:
            assert not entries[ino]
    assert set(entries) <= set(inodes)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_7_contents_hang_on_one_inode_and_are_where_it_says(rows: Rows, epoch: int) -> None:
    inodes = _inodes(rows, epoch)
    owners = defaultdict(list)
    for inode in inodes.values():
        if S_IFMT(inode.mode) in (S_IFREG, S_IFLNK):
            owners[int(inode.data)].append(inode)
    for prefix, body in _at(rows, Table.INLINE, epoch).items():
        (inode,) = owners[int.from_bytes(prefix, "big")]
        assert inode.flags & FLAG_INLINE
        assert len(body) <= min(inode.size, 4000)
    for prefix, slices in _slices(rows, epoch).items():
        end = 0
        for s in slices:
            assert s.offset >= end
            assert s.length > 0
            end = s.offset + s.length
            assert s.extent_offset + s.length <= s.raw_bytes == s.stored_bytes
            first, last = s.extent_offset // 4096, (s.extent_offset + s.length - 1) // 4096
            assert len(s.sums) == 4 * (last - first + 1)
        (inode,) = owners[int.from_bytes(prefix[:8], "big")]
        assert not inode.flags & FLAG_INLINE
        assert end <= 1 << inode.chunk_shift
        assert (keys.chunk_index(prefix) << inode.chunk_shift) + end <= inode.size


def test_8_a_lifetime_is_live_or_dead_and_not_both(rows: Rows) -> None:
    live = set(_live_lifetimes(rows))
    dead = {
        (int.from_bytes(prefix, "big"), int(birth))
        for _, birth, table, prefix in map(keys.dead_parts, rows[Table.DEAD])
        if table is Table.EXTENT
    }
    assert dead
    assert not live & dead
    assert {extent for extent, _ in live | dead} <= set(_extents(rows))


def test_9_extents_do_not_overlap_and_lie_within_what_is_committed(rows: Rows) -> None:
    end = {}
    for key in rows[Table.SEGMENT]:
        count, size, end[int.from_bytes(key, "big")] = records.unpack_plain(
            Table.SEGMENT, key, _body(rows, Table.SEGMENT, key)
        )
        assert count > 0 < size
    waiting = {int(keys.punch_parts(key)[1]) for key in rows[Table.PUNCH]}
    assert waiting
    above = 0
    for extent, stored in sorted(_extents(rows).items()):
        assert extent not in waiting
        assert extent >= above
        assert extent & 0xFFFFFFFF > 0
        above = extent + -(-stored // 4096)
        assert keys.extent_offset(extent) + stored <= end[keys.extent_segment(extent)]


def test_10_all_ids_are_below_the_next_ones(rows: Rows) -> None:
    counters = _counters(rows)
    inos = [int.from_bytes(key[:8], "big") for key in rows[Table.INODE]]
    data = [int.from_bytes(key[:8], "big") for table in (Table.INLINE, Table.CHUNK) for key in rows[table]]
    assert 0 < max(inos) < counters.next_ino
    assert 0 < max(data) < counters.next_data
    assert max(int.from_bytes(key, "big") for key in rows[Table.SEGMENT]) < counters.next_segment
    assert max(int.from_bytes(key, "big") for key in rows[Table.RECLAIM]) < counters.next_id
