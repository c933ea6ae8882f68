"""The redo log: what was appended is done again after a crash, in order, up to the first group that is not whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tzfs import failpoints
from tzfs.errors import Busy, CorruptionError, ForeignStore, StoreError
from tzfs.format.keys import ExtentId, Table, extent_id
from tzfs.store import folders, redo
from tzfs.store.interface import Change, Group
from tzfs.store.lmdb_store import LmdbMeta, LmdbWrite
from tzfs.store.memory import MemoryRedo
from tzfs.store.redo import HEADER_BYTES, LOG_BYTES_MAX, RedoLog, replay
from tzfs.store.segments import Segments

GUID = bytes(range(16))
PUT: Change = (Table.INODE, b"key", b"value")
DELETE: Change = (Table.DIRENT, b"gone", None)
PAYLOAD = [(extent_id(1, 1), b"x" * 5000)]

changes = st.lists(
    st.tuples(
        st.sampled_from([Table.INODE, Table.SYS, Table.CELL]),
        st.binary(min_size=1, max_size=40),
        st.none() | st.binary(max_size=300),
    ),
    max_size=6,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "redo"


def logged(path: Path, base: int, guid: bytes = GUID) -> list[Group]:
    log = RedoLog(path, guid, readonly=True)
    try:
        return log.pending(base)
    finally:
        log.close()


def filled(path: Path, groups: int, base: int = 7) -> None:
    log = RedoLog(path, GUID)
    for number in range(groups):
        assert log.append(base, [PUT, (Table.SYS, b"n", b"%d" % number)], PAYLOAD)
    log.close()


def test_without_a_file_there_is_nothing_to_do(path: Path) -> None:
    assert logged(path, 0) == []
    assert not path.exists()


def test_opening_makes_no_file(path: Path) -> None:
    RedoLog(path, GUID).close()
    assert not path.exists()


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(changes, max_size=5), data=st.binary(min_size=1, max_size=9000))
def test_what_was_appended_is_pending(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[Change]], data: bytes
) -> None:
    path = tmp_path_factory.mktemp("log") / "redo"
    log, memory = RedoLog(path, GUID), MemoryRedo()
    payload = [(extent_id(3, 9), data)]
    for group in groups:
        assert log.append(5, group, payload)
        assert memory.append(5, group, payload)
    log.close()
    assert logged(path, 5) == memory.pending(5) == [Group(group, payload) for group in groups]
    assert logged(path, 6) == []


def test_a_commit_of_the_tables_voids_what_was_before(path: Path) -> None:
    log = RedoLog(path, GUID)
    for base in (1, 2):
        for _ in range(3 - base):
            assert log.append(base, [PUT], ())
    assert len(log.pending(2)) == 1, "the second group is still one of the commit before"
    assert log.pending(1) == []
    log.close()


def test_a_cut_anywhere_leaves_whole_groups(path: Path) -> None:
    filled(path, 3)
    whole = path.read_bytes()
    sizes = set()
    for end in range(0, 3 * 8192 + 1, 256):
        path.write_bytes(whole[:end].ljust(len(whole), b"\0"))
        found = logged(path, 7)
        assert [group.changes[1][2] for group in found] == [b"%d" % n for n in range(len(found))]
        sizes.add(len(found))
    assert sizes == {0, 1, 2, 3}


def test_a_torn_piece_ends_the_log(path: Path) -> None:
    filled(path, 3)
    whole = path.read_bytes()
    for at in range(0, 5000, 512):
        path.write_bytes(whole[: 8192 + at] + bytes(512) + whole[8192 + at + 512 :])
        assert len(logged(path, 7)) == 1


def forged(tmp_path: Path, guid: bytes, base: int) -> bytes:
    """A page that is in every way the second group of `base`, but was made elsewhere."""
    path = tmp_path / "elsewhere"
    log = RedoLog(path, guid)
    for _ in range(2):
        assert log.append(base, [(Table.INODE, b"root", b"mine")], ())
    log.close()
    return path.read_bytes()[4096:8192]


@pytest.mark.parametrize("kind", ["the group after next", "of another filesystem", "of a newer version"])
def test_what_somebody_wrote_to_a_file_is_never_taken_for_a_group(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "of a newer version":
        monkeypatch.setattr(redo, "VERSION", 2)
    page = forged(tmp_path, bytes(16) if kind == "of another filesystem" else GUID, base=2)
    monkeypatch.undo()
    before_data = HEADER_BYTES + 15  # of the first page: the header, and the head of the payload
    log = RedoLog(path, GUID)
    assert log.append(1, [], [(extent_id(1, 1), bytes(4096 - before_data) + page)])
    assert path.read_bytes()[4096:8192] == page
    assert log.append(2, [PUT], ())
    log.close()
    assert logged(path, 2) == [Group([PUT], [])]


def test_a_later_group_of_another_life_is_not_taken_for_one_of_this(path: Path) -> None:
    filled(path, 3, base=7)
    log = RedoLog(path, GUID)
    log.clear()
    assert log.append(7, [PUT], PAYLOAD)  # an older copy of the tables was put back: the number comes again
    log.close()
    assert len(logged(path, 7)) == 1


def test_the_name_of_a_log_that_is_there_is_synced_before_anybody_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, 1)  # and whoever made it may have died before it synced the folder
    synced: list[Path] = []
    monkeypatch.setattr(folders, "sync", synced.append)
    log = RedoLog(path, GUID)
    for _ in range(2):
        assert log.append(8, [PUT], ())
    log.close()
    assert synced == [path.parent]


def test_a_full_log_takes_no_more(path: Path) -> None:
    log = RedoLog(path, GUID)
    taken = 0
    while log.append(1, [PUT], PAYLOAD):
        taken += 1
    assert taken == LOG_BYTES_MAX // 8192 == len(log.pending(1))
    assert path.stat().st_size == LOG_BYTES_MAX
    assert log.append(2, [PUT], ())
    assert not log.append(2, [PUT], [(extent_id(1, 1), bytes(LOG_BYTES_MAX))])
    log.close()


def test_a_full_disk_leaves_it_to_the_tables(path: Path) -> None:
    log = RedoLog(path, GUID)
    failpoints.arm("redo.make", "error:ENOSPC")
    assert not log.append(1, [PUT], ())
    assert log.append(1, [PUT], ())
    log.close()
    assert len(logged(path, 1)) == 1


def test_a_disk_that_fills_up_leaves_it_to_the_tables(path: Path) -> None:
    log = RedoLog(path, GUID)
    assert log.append(1, [PUT], ())
    failpoints.arm("redo.append", "error:ENOSPC")
    assert not log.append(1, [PUT], ())
    log.close()
    assert len(logged(path, 1)) == 1


def test_a_log_made_on_a_full_disk_still_gets_its_name_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, synced = RedoLog(path, GUID), list[Path]()
    monkeypatch.setattr(folders, "sync", synced.append)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert not log.append(1, [PUT], ())
    assert path.exists()
    assert synced == []
    assert log.append(1, [PUT], ())
    assert synced == [path.parent]
    log.close()


def test_nothing_is_appended_beyond_what_is_read(path: Path) -> None:
    path.write_bytes(bytes(2 * LOG_BYTES_MAX))
    log = RedoLog(path, GUID)
    taken = 0
    while log.append(1, [PUT], PAYLOAD):
        taken += 1
    log.close()
    assert taken == LOG_BYTES_MAX // 8192 == len(logged(path, 1))


def test_a_failed_write_is_an_error(path: Path) -> None:
    log = RedoLog(path, GUID)
    failpoints.arm("redo.append", "error:EIO")
    with pytest.raises(StoreError, match="redo"):
        log.append(1, [PUT], ())
    log.close()


def test_another_filesystems_log_is_refused(path: Path) -> None:
    filled(path, 1)
    with pytest.raises(ForeignStore, match=GUID.hex()):
        logged(path, 7, guid=bytes(16))


def test_a_log_of_the_future_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redo, "VERSION", 2)
    filled(path, 1)
    monkeypatch.undo()
    with pytest.raises(ForeignStore, match="version 2"):
        logged(path, 7)


def test_a_table_there_is_not_is_corruption(path: Path) -> None:
    log = RedoLog(path, GUID)
    assert log.append(7, [(Table.EXTENT, b"k", b"v")], ())
    log.close()
    with pytest.raises(CorruptionError, match="table 20"):
        logged(path, 7)


def test_a_link_is_not_followed(path: Path) -> None:
    path.symlink_to("/dev/null")
    with pytest.raises(StoreError):
        RedoLog(path, GUID)


class Filesystem:
    """Tables, payload and log in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = LmdbMeta(folder / "meta", create=True)
        self.payload = Segments(folder / "segments", guid=GUID, create=True)
        self.log = RedoLog(folder / "redo", GUID)

    def close(self) -> None:
        for part in (self.log, self.payload, self.meta):
            part.close()

    def rows(self, table: Table) -> dict[bytes, bytes]:
        txn = self.meta.begin_read()
        try:
            return dict(txn.range(table, b""))
        finally:
            txn.close()


def test_replay_does_rows_and_payload_again_once(tmp_path: Path) -> None:
    fs = Filesystem(tmp_path)
    txn = fs.meta.begin_write()
    txn.put(Table.DIRENT, b"gone", b"1")
    txn.commit()
    base = fs.meta.commit_number
    assert fs.log.append(base, [PUT, DELETE], PAYLOAD)
    assert fs.log.append(base, [(Table.INODE, b"key", b"later")], ())
    fs.close()

    again = Filesystem(tmp_path)
    assert replay(again.log, again.meta, again.payload) == 2
    assert again.rows(Table.INODE) == {b"key": b"later"}
    assert again.rows(Table.DIRENT) == {}
    assert again.payload.read(PAYLOAD[0][0], 0, 5000) == PAYLOAD[0][1]
    assert replay(again.log, again.meta, again.payload) == 0
    assert again.log.pending(base) == []
    assert again.meta.commit_number > base
    again.close()


def test_groups_of_a_writer_that_is_alive_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = Filesystem(tmp_path)
    base = fs.meta.commit_number
    assert fs.log.append(base, [PUT], ())
    begin_write = fs.meta.begin_write

    def after_the_other() -> LmdbWrite:  # which had the tables until it committed
        txn = begin_write()
        txn.put(Table.INODE, b"key", b"newer")
        txn.commit()
        return begin_write()

    monkeypatch.setattr(fs.meta, "begin_write", after_the_other)
    with pytest.raises(Busy, match="another process"):
        replay(fs.log, fs.meta, fs.payload)
    assert fs.rows(Table.INODE) == {b"key": b"newer"}
    fs.close()


@pytest.mark.parametrize("left", ["nothing", "an empty file", "a page of zeros", "the header", "all"])
def test_a_segment_that_the_crash_took_is_made_again(tmp_path: Path, left: str) -> None:
    fs = Filesystem(tmp_path)
    extent = fs.payload.allocate(5000)
    fs.payload.write([(extent, b"y" * 5000)])
    assert fs.log.append(fs.meta.commit_number, [PUT], [(extent, b"y" * 5000)])
    fs.close()
    segment = tmp_path / "segments" / "1.seg"
    match left:
        case "nothing":
            segment.unlink()
        case "an empty file":
            segment.write_bytes(b"")
        case "a page of zeros":
            segment.write_bytes(bytes(4096))
        case "the header":
            segment.write_bytes(segment.read_bytes()[:4096])
    again = Filesystem(tmp_path)
    assert replay(again.log, again.meta, again.payload) == 1
    assert again.payload.read(extent, 0, 5000) == b"y" * 5000
    again.payload.begin_numbering(1)
    assert again.payload.allocate(1) == extent_id(2, 1), "nothing is appended to what a crash left"
    again.close()


def test_restoring_never_writes_into_a_foreign_segment(tmp_path: Path) -> None:
    fs = Filesystem(tmp_path)
    other = Segments(tmp_path / "segments", guid=bytes(16))
    extent = other.allocate(10)
    other.write([(extent, b"theirs")])
    other.close()
    with pytest.raises(ForeignStore):
        fs.payload.restore([(ExtentId(extent), b"ours")])
    fs.close()
