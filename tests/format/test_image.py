"""A store as format 1 was first written is read, and written on, by this tzfs; see `images/make.py`."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.damaging import damage_row
from tzfs.catalog import Catalog, FilesystemInfo
from tzfs.engine.committed import read_counters, read_superblock
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.snapshots import read_snapshots
from tzfs.engine.view import View
from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, unpack_counters
from tzfs.format.keys import FILESYSTEM_TABLES, LIVE, ROOT, VERSIONED, Ino, Table
from tzfs.format.records import seal, unpack_json, unseal
from tzfs.format.slices import unpack_slices, unpack_xattr
from tzfs.format.superblock import SUPERBLOCK_KEY, unpack_superblock
from tzfs.lifecycle import Command, State
from tzfs.opening import Reader, Writer
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.segment_files import HEADER_BYTES, header

IMAGE: Final = Path(__file__).parent / "images" / "format-1.tar.gz"
IMAGE_SHA256: Final = "6506b942dea47990567fb6e646a437646387eb6014c96c49a6aa36ed4c081259"
PARTITION: Final = 0xD891BB186B6FA8B1  # FNV-1a-64 of NUL, "ws"
ROWS: Final = {
    "inode": 62,
    "dirent": 55,
    "link": 2,
    "inline": 4,
    "chunk": 213,
    "xattr": 3,
    "change": 339,
    "dead": 19,
    "cell": 6,
    "orphan": 1,
    "reclaim": 2,
    "punch": 3,
    "snapshot": 2,
    "sys": 2,
    "segment": 1,
}

FileTree = dict[str, tuple[int, int, int, int, bytes]]  # path: mode, uid, gid, size, contents


def _pattern(length: int, seed: int) -> bytes:
    return b"".join(b"%08x%08x" % (seed, page) * 256 for page in range(length // 4096 + 1))[:length]


def _over(base: bytes, at: int, data: bytes) -> bytes:
    return base[:at] + data + base[at + len(data) :]


_LARGE: Final = _pattern(5 * 4096 + 100, 1)
_LARGE_SECOND: Final = _over(_LARGE, 4106, b"overwritten")
_SPARSE: Final = bytes(1 << 20) + b"end"
_ODD: Final = os.fsdecode(b"\xff\xfe not utf-8")

_ALWAYS: Final[FileTree] = {
    "to-small": (stat.S_IFLNK | 0o777, 0, 0, 9, b"small.txt"),
    "pipe": (stat.S_IFIFO | 0o622, 0, 0, 0, b""),
    "null": (stat.S_IFCHR | 0o666, 0, 0, 0, b""),
    _ODD: (stat.S_IFREG | 0o400, 0, 0, 0, b""),
    **{f"wide/f{i:02}": (stat.S_IFREG | 0o644, 1000, 100, 0, b"") for i in range(2, 40)},
}
_FIRST: Final[FileTree] = {
    **_ALWAYS,
    "wide": (stat.S_IFDIR | 0o755, 1000, 100, 41, b""),
    "wide/f00": (stat.S_IFREG | 0o644, 1000, 100, 0, b""),
    "wide/f01": (stat.S_IFREG | 0o644, 1000, 100, 0, b""),
    "wide/hard": (stat.S_IFREG | 0o644, 1000, 100, 6, b"first\n"),
    "small.txt": (stat.S_IFREG | 0o644, 1000, 100, 6, b"first\n"),
    "large.bin": (stat.S_IFREG | 0o600, 0, 0, len(_LARGE), _LARGE),
    "sparse": (stat.S_IFREG | 0o640, 0, 0, len(_SPARSE), _SPARSE),
    "gone-later": (stat.S_IFREG | 0o644, 0, 0, 409600, _pattern(409600, 3)),
}
_SECOND: Final[FileTree] = {
    **_ALWAYS,
    "wide": (stat.S_IFDIR | 0o2775, 1000, 100, 39, b""),
    "moved": (stat.S_IFREG | 0o644, 1000, 100, 0, b""),
    "wide/hard": (stat.S_IFREG | 0o644, 1000, 100, 6, b"second"),
    "small.txt": (stat.S_IFREG | 0o644, 1000, 100, 6, b"second"),
    "large.bin": (stat.S_IFREG | 0o600, 0, 0, len(_LARGE), _LARGE_SECOND),
    "sparse": (stat.S_IFREG | 0o640, 0, 0, len(_SPARSE), _SPARSE),
}
_HEAD: Final[FileTree] = {
    **_SECOND,
    "large.bin": (stat.S_IFREG | 0o600, 0, 0, len(_LARGE), _over(_LARGE_SECOND, 0, b"head")),
    "sparse": (stat.S_IFREG | 0o640, 0, 0, 1 << 19, bytes(1 << 19)),
    "rewritten": (stat.S_IFREG | 0o644, 0, 0, 12288, _pattern(12288, 6)),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    target = tmp_path / "store"
    target.mkdir(mode=0o700)
    with tarfile.open(IMAGE) as archive:
        archive.extractall(target, filter="data")
    return target


@pytest.fixture
def catalog(store: Path) -> Iterator[Catalog]:
    opened = Catalog.open(store, create=False)
    yield opened
    opened.close()


@pytest.fixture
def meta(store: Path) -> Iterator[LmdbMeta]:
    opened = LmdbMeta(_folder(store) / "meta", readonly=True)
    yield opened
    opened.close()


def _folder(store: Path) -> Path:
    return store / "fs" / f"{PARTITION:016x}"


def _writer(catalog: Catalog) -> Writer:
    info, lease = catalog.acquire("ws", info={"kind": "test"}, command=Command.OPEN)
    return Writer(info.folder, bytes.fromhex(info.guid), lease=lease, settings=Settings())


def _tree(source: Engine | View) -> FileTree:
    found: FileTree = {}

    def walk(directory: Ino, above: str) -> None:
        for name, inode in source.readdir_plus(directory, b"", 1000):
            path = above + os.fsdecode(name)
            kind = stat.S_IFMT(inode.mode)
            contents = b""
            if kind == stat.S_IFREG:
                contents = source.plan_read(inode.ino, 0, inode.size + 1).execute()
            elif kind == stat.S_IFLNK:
                contents = source.readlink(inode.ino)
            found[path] = (inode.mode, inode.uid, inode.gid, inode.size, contents)
            if kind == stat.S_IFDIR:
                walk(inode.ino, path + "/")

    walk(ROOT, "")
    return found


def test_the_image_is_the_one_that_was_frozen() -> None:
    assert hashlib.sha256(IMAGE.read_bytes()).hexdigest() == IMAGE_SHA256


# -- as bytes ----------------------------------------------------------------------------------------------------------


def test_every_table_has_the_rows_it_had(meta: LmdbMeta) -> None:
    txn = meta.begin_read()
    assert {t.name.lower(): n for t in FILESYSTEM_TABLES if (n := len(list(txn.range(t, b""))))} == ROWS
    txn.close()


def _slices(table: Table) -> Callable[[bytes, bytes], object]:
    return lambda key, body: unpack_slices(table, key, body)


def _numbers(table: Table) -> Callable[[bytes, bytes], object]:
    return lambda key, body: records.unpack_plain(table, key, body)


_READERS: Final[dict[Table, Callable[[bytes, bytes], object]]] = {
    Table.INODE: lambda key, body: records.unpack_inode(Ino(int.from_bytes(key[:8], "big")), key, body),
    Table.DIRENT: records.unpack_dirent,
    Table.CHUNK: _slices(Table.CHUNK),
    Table.XATTR: unpack_xattr,
    Table.SNAPSHOT: records.unpack_snapshot,
    **{t: _numbers(t) for t in (Table.DEAD, Table.CELL, Table.ORPHAN, Table.RECLAIM, Table.PUNCH, Table.SEGMENT)},
}


def test_every_record_is_intact_and_reads(meta: LmdbMeta) -> None:
    txn = meta.begin_read()
    for table in FILESYSTEM_TABLES:
        for key, value in txn.range(table, b""):
            body = unseal(table, key, value)
            assert body is not None or table in VERSIONED
            if body is not None and table in _READERS:
                _READERS[table](key, body)
            elif table is Table.SYS:
                assert {SUPERBLOCK_KEY: unpack_superblock, COUNTERS_KEY: unpack_counters}[key](value)
            else:
                assert table not in (Table.LINK, Table.CHANGE) or not body
    txn.close()


def test_the_superblock_says_format_1_without_features(meta: LmdbMeta) -> None:
    txn = meta.begin_read()
    found = read_superblock(txn)
    assert (found.format_version, found.created_by, found.generation, found.origin) == (1, "0.1.0", 1, None)
    assert (found.compat, found.ro_compat, found.incompat, found.extra) == (0, 0, 0, {})
    assert (found.checksum, found.payload_checksum, found.names) == ("fnv1a-folded", "xxh3-32/4k", "bytes")
    found.check(for_writing=True)
    counters = read_counters(txn)
    assert (counters.epoch, counters.next_segment) == (3, 2)
    assert (counters.inodes, counters.files, counters.directories, counters.symlinks, counters.others) == (
        49,
        44,
        2,
        1,
        2,
    )
    live = {
        keys.cell_parts(key): records.unpack_plain(Table.CELL, key, body)
        for key, value in txn.range(Table.CELL, b"")
        if (body := unseal(Table.CELL, key, value)) is not None
    }
    assert counters.bytes == sum(charge for (death, _), (_, charge) in live.items() if death == LIVE)
    txn.close()


def test_the_snapshots_have_their_epochs_and_properties(meta: LmdbMeta) -> None:
    txn = meta.begin_read()
    found = read_snapshots(txn)
    assert {name: (s.epoch, s.txg, s.properties, s.holds) for name, s in found.items()} == {
        "first": (1, 1, {"agent:run": "1"}, {}),
        "second é": (2, 2, {}, {}),
    }
    txn.close()


def test_the_segment_begins_with_its_header(store: Path, meta: LmdbMeta) -> None:
    txn = meta.begin_read()
    guid = bytes.fromhex(read_superblock(txn).guid)
    txn.close()
    page = (_folder(store) / "segments" / "1.seg").read_bytes()[:4096]
    assert page == header(guid, 1)
    assert page[:16].hex() == "545a465353454731" + "0000000100000000"
    assert page[HEADER_BYTES:] == bytes(4096 - HEADER_BYTES)


# -- as a store --------------------------------------------------------------------------------------------------------


def test_the_catalog_has_both_filesystems(catalog: Catalog) -> None:
    found = {str(info.name): info for info in catalog.list()}
    assert {name: info.state for name, info in found.items()} == {"ws": State.ACTIVE, "agents/old": State.ARCHIVED}
    assert found["ws"].folder.name == f"{PARTITION:016x}"
    assert found["agents/old"].folder.name == "cb2b67b537a0b4be"
    assert found["ws"].property("agent:task").parsable == "frozen"


@pytest.mark.parametrize(("name", "tree"), [("first", _FIRST), ("second é", _SECOND)])
def test_each_snapshot_shows_what_it_showed(catalog: Catalog, name: str, tree: FileTree) -> None:
    info = catalog.get("ws")
    reader = Reader(info.folder, bytes.fromhex(info.guid), name)
    try:
        assert _tree(reader.view) == tree
        small = reader.view.lookup(ROOT, b"small.txt")
        assert small.nlink == 2
        assert reader.view.getxattr(small.ino, b"user.short") == (b"v" if name == "first" else b"w")
        assert reader.view.getxattr(reader.view.lookup(ROOT, b"large.bin").ino, b"user.long") == _pattern(5000, 2)
        assert reader.view.lookup(ROOT, b"null").rdev == 0x103
    finally:
        reader.close()


def test_it_opens_for_writing_and_its_counters_are_right(catalog: Catalog) -> None:
    with _writer(catalog) as writer:
        engine = writer.engine
        assert engine.superblock.generation == 2
        assert (engine.orphans, engine.reclaiming) == (1, 2)
        assert _tree(engine) == _HEAD
        assert engine.problems() == []
        while engine.background_step():
            engine.commit()
        assert (engine.orphans, engine.reclaiming) == (0, 0)
        assert engine.problems() == []
        assert _tree(engine) == _HEAD
        assert _tree(engine.view("first")) == _FIRST


def test_it_can_be_written_on(catalog: Catalog) -> None:
    with _writer(catalog) as writer:
        large = writer.engine.lookup(ROOT, b"large.bin")
        writer.engine.write(large.ino, 2 * 4096 - 1, b"across")
        writer.engine.snapshot("third")
    changed = _over(_HEAD["large.bin"][4], 2 * 4096 - 1, b"across")
    with _writer(catalog) as writer:
        assert _tree(writer.engine) == {**_HEAD, "large.bin": (*_HEAD["large.bin"][:4], changed)}
        assert _tree(writer.engine.view("second é")) == _SECOND
        assert writer.engine.problems() == []
        assert writer.payload.next_segment > 2  # never the segment of a writer before


# -- from the future ---------------------------------------------------------------------------------------------------


def _info(store: Path) -> FilesystemInfo:
    catalog = Catalog.open(store, create=False)
    try:
        return catalog.get("ws")
    finally:
        catalog.close()


def _change_superblock(store: Path, **changes: object) -> None:
    meta = LmdbMeta(_folder(store) / "meta")
    txn = meta.begin_write()
    value = txn.get(Table.SYS, SUPERBLOCK_KEY)
    assert value is not None
    fields = unpack_json(Table.SYS, SUPERBLOCK_KEY, unseal(Table.SYS, SUPERBLOCK_KEY, value) or b"")
    assert isinstance(fields, dict)
    txn.put(Table.SYS, SUPERBLOCK_KEY, seal(Table.SYS, SUPERBLOCK_KEY, records.pack_json({**fields, **changes})))
    txn.commit()
    meta.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"incompat": 4}, "encryption"),
        ({"checksum": "crc32c"}, "crc32c"),
    ],
)
def test_a_snapshot_of_a_filesystem_from_the_future_is_not_read(
    store: Path, changes: dict[str, object], message: str
) -> None:
    _change_superblock(store, **changes)
    info = _info(store)
    with pytest.raises(ForeignStore, match=message):
        Reader(info.folder, bytes.fromhex(info.guid), "first")
    assert list((info.folder / "views").iterdir()) == []


def test_a_snapshot_of_one_that_may_be_read_but_not_written_is_read(store: Path) -> None:
    _change_superblock(store, ro_compat=1 << 9)
    info = _info(store)
    reader = Reader(info.folder, bytes.fromhex(info.guid), "first")
    assert _tree(reader.view) == _FIRST
    reader.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"incompat": 4}, "encryption"),
        ({"incompat": 1 << 40}, "bit 40"),
        ({"checksum": "crc32c"}, "crc32c"),
        ({"payload_checksum": "blake3"}, "blake3"),
        ({"names": "nfc"}, "nfc"),
    ],
)
def test_a_filesystem_from_the_future_is_not_opened_for_writing(
    store: Path, changes: dict[str, object], message: str
) -> None:
    _change_superblock(store, **changes)
    catalog = Catalog.open(store, create=False)
    try:
        with pytest.raises(ForeignStore, match=message) as raised:
            _writer(catalog)
        assert raised.value.hint
        assert catalog.holder(catalog.get("ws")) is None
    finally:
        catalog.close()


def test_what_a_later_tzfs_added_compatibly_stays(store: Path) -> None:
    _change_superblock(store, compat=4, later={"a": [1, None]})
    catalog = Catalog.open(store, create=False)
    _writer(catalog).close()
    catalog.close()
    meta = LmdbMeta(_folder(store) / "meta", readonly=True)
    txn = meta.begin_read()
    found = read_superblock(txn)
    assert (found.compat, found.extra, found.generation) == (4, {"later": {"a": [1, None]}}, 2)
    txn.close()
    meta.close()


def test_a_record_damaged_at_rest_is_corruption(store: Path) -> None:
    meta = LmdbMeta(_folder(store) / "meta")
    txn = meta.begin_write()
    damage_row(txn, Table.INODE, keys.inode(ROOT) + keys.suffix(1))
    txn.commit()
    meta.close()
    catalog = Catalog.open(store, create=False)
    info = catalog.get("ws")
    reader = Reader(info.folder, bytes.fromhex(info.guid), "first")
    with pytest.raises(CorruptionError, match="inode/0000000000000001"):
        reader.view.inode(ROOT)
    reader.close()
    catalog.close()
