"""The redo log: what was appended is done again after a crash, in order, up to the first group that is not whole."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tzfs import failpoints
from tzfs.errors import CorruptionError, ForeignStore, StoreError
from tzfs.format.operations import Op, Operation, pack_operations
from tzfs.store import folders, redo
from tzfs.store.memory import MemoryRedo
from tzfs.store.redo import HEADER_BYTES, LOG_BYTES_MAX, RedoLog

GUID = bytes(range(16))
PAGE = b"x" * 5000  # written: with the rest of a group more than a page, less than two
WRITE: Operation = (Op.WRITE, 17, 2, 4096, PAGE)


def unlink(number: int) -> Operation:
    return (Op.UNLINK, number, 1, b"f%d" % number)


UNLINK: Final = pack_operations([unlink(0)])

ids, names = st.integers(0, (1 << 64) - 1), st.binary(max_size=255)
times, words = st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, (1 << 32) - 1)
operations = st.lists(
    st.one_of(
        st.tuples(st.just(Op.CREATE), times, ids, words, words, words, ids, ids, names, st.binary(max_size=4095)),
        st.tuples(st.just(Op.LINK), times, ids, ids, names),
        st.tuples(st.sampled_from([Op.UNLINK, Op.RMDIR, Op.REMOVEXATTR]), times, ids, names),
        st.tuples(st.just(Op.RENAME), times, ids, ids, words, names, names),
        st.tuples(st.just(Op.SETATTR), times, ids, *[st.none() | words] * 3, st.none() | ids, *[st.none() | times] * 3),
        st.tuples(st.just(Op.WRITE), times, ids, ids, st.binary(max_size=9000)),
        st.tuples(st.just(Op.SETXATTR), times, ids, words, names, st.binary(max_size=300)),
    ),
    max_size=6,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "a store's"
    folder.mkdir()
    return folder / "redo"


def logged(path: Path, base: int, guid: bytes = GUID) -> list[Operation]:
    log = RedoLog(path, guid, readonly=True)
    try:
        return log.pending(base)
    finally:
        log.close()


def filled(path: Path, groups: int, base: int = 7) -> None:
    log = RedoLog(path, GUID)
    for number in range(groups):
        assert log.append(base, pack_operations([WRITE, unlink(number)]))
    log.close()


def test_without_a_file_there_is_nothing_to_do(path: Path) -> None:
    assert logged(path, 0) == []
    assert not path.exists()


def test_opening_makes_no_file(path: Path) -> None:
    RedoLog(path, GUID).close()
    assert not path.exists()


@settings(max_examples=100, deadline=None)
@given(groups=st.lists(operations, max_size=5))
def test_what_was_appended_is_pending(tmp_path_factory: pytest.TempPathFactory, groups: list[list[Operation]]) -> None:
    path = tmp_path_factory.mktemp("log") / "redo"
    log, memory = RedoLog(path, GUID), MemoryRedo()
    for group in groups:
        assert log.append(5, pack_operations(group))
        assert memory.append(5, pack_operations(group))
    log.close()
    assert logged(path, 5) == memory.pending(5) == [operation for group in groups for operation in group]
    assert logged(path, 6) == []


@pytest.mark.parametrize("body", [b"\0", b"\x0a" * 40, UNLINK[:-1], UNLINK + b"\3", UNLINK[:5]])
def test_what_is_no_operation_is_corruption(path: Path, body: bytes) -> None:
    log = RedoLog(path, GUID)
    assert log.append(7, body)
    log.close()
    with pytest.raises(CorruptionError, match="redo"):
        logged(path, 7)


def test_a_commit_of_the_tables_voids_what_was_before(path: Path) -> None:
    log = RedoLog(path, GUID)
    for base in (1, 2):
        for _ in range(3 - base):
            assert log.append(base, UNLINK)
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
        assert found == [operation for n in range(len(found) // 2) for operation in (WRITE, unlink(n))]
        sizes.add(len(found) // 2)
    assert sizes == {0, 1, 2, 3}


def test_a_torn_piece_of_the_last_group_ends_the_log(path: Path) -> None:
    filled(path, 2)
    whole = path.read_bytes()
    for at in range(0, 5000, 512):
        path.write_bytes(whole[: 8192 + at] + bytes(512) + whole[8192 + at + 512 :])
        assert logged(path, 7) == [WRITE, unlink(0)]


@pytest.mark.parametrize("group", [0, 1, 3])
@pytest.mark.parametrize("at", [44, 64, HEADER_BYTES, 512, 5000])
def test_damage_before_a_whole_group_is_told_and_can_be_given_up(path: Path, group: int, at: int) -> None:
    """The later one was written when this one was durable."""
    filled(path, 5)
    raw = bytearray(path.read_bytes())
    raw[group * 8192 + at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptionError, match=f"byte {group * 8192} is damaged") as told:
        logged(path, 7)
    assert told.value.hint is not None
    command, option, size, name = shlex.split(told.value.hint.rsplit(": ", 1)[1])
    assert (command, option, name) == ("truncate", "-s", str(path))
    os.truncate(path, int(size))
    assert logged(path, 7) == [operation for n in range(group) for operation in (WRITE, unlink(n))]


def test_damage_to_the_last_group_cannot_be_told_from_a_write_that_was_cut_off(path: Path) -> None:
    filled(path, 3)
    raw = bytearray(path.read_bytes())
    raw[2 * 8192 + 600] ^= 1
    path.write_bytes(raw)
    assert logged(path, 7) == [operation for n in range(2) for operation in (WRITE, unlink(n))]


def forged(tmp_path: Path, guid: bytes, base: int) -> bytes:
    """A page that is in every way the second group of `base`, but was made elsewhere."""
    path = tmp_path / "elsewhere"
    log = RedoLog(path, guid)
    for _ in range(2):
        assert log.append(base, pack_operations([(Op.RMDIR, 1, 1, b"mine")]))
    log.close()
    return path.read_bytes()[4096:8192]


@pytest.mark.parametrize("kind", ["the group after next", "of another filesystem", "of a newer version"])
def test_what_somebody_wrote_to_a_file_is_never_taken_for_a_group(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "of a newer version":
        monkeypatch.setattr(redo, "VERSION", 3)
    page = forged(tmp_path, bytes(16) if kind == "of another filesystem" else GUID, base=2)
    monkeypatch.undo()
    before_data = HEADER_BYTES + len(pack_operations([(Op.WRITE, 1, 2, 0, b"")]))  # of the first page
    log = RedoLog(path, GUID)
    assert log.append(1, pack_operations([(Op.WRITE, 1, 2, 0, bytes(4096 - before_data) + page)]))
    assert path.read_bytes()[4096:8192] == page
    assert log.append(2, UNLINK)
    log.close()
    assert logged(path, 2) == [unlink(0)]


def test_a_later_group_of_another_life_is_not_taken_for_one_of_this(path: Path) -> None:
    filled(path, 3, base=7)
    log = RedoLog(path, GUID)
    log.clear()
    assert log.append(7, pack_operations([WRITE]))  # an older copy of the tables was put back: the number comes again
    log.close()
    assert logged(path, 7) == [WRITE]


def test_the_name_of_a_log_that_is_there_is_synced_before_anybody_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, 1)  # and whoever made it may have died before it synced the folder
    synced: list[Path] = []
    monkeypatch.setattr(folders, "sync", synced.append)
    log = RedoLog(path, GUID)
    for _ in range(2):
        assert log.append(8, UNLINK)
    log.close()
    assert synced == [path.parent]


def test_a_full_log_takes_no_more(path: Path) -> None:
    log = RedoLog(path, GUID)
    taken = 0
    while log.append(1, pack_operations([WRITE])):
        taken += 1
    assert taken == LOG_BYTES_MAX // 8192 == len(log.pending(1))
    assert path.stat().st_size == LOG_BYTES_MAX
    assert log.append(2, UNLINK)
    assert not log.append(2, pack_operations([(Op.WRITE, 1, 2, 0, bytes(LOG_BYTES_MAX))]))
    log.close()


def test_a_full_disk_leaves_it_to_the_tables(path: Path) -> None:
    log = RedoLog(path, GUID)
    failpoints.arm("redo.make", "error:ENOSPC")
    assert not log.append(1, UNLINK)
    assert log.append(1, UNLINK)
    log.close()
    assert len(logged(path, 1)) == 1


def test_a_disk_that_fills_up_leaves_it_to_the_tables(path: Path) -> None:
    log = RedoLog(path, GUID)
    assert log.append(1, UNLINK)
    failpoints.arm("redo.append", "error:ENOSPC")
    assert not log.append(1, UNLINK)
    log.close()
    assert len(logged(path, 1)) == 1


def test_a_log_made_on_a_full_disk_still_gets_its_name_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, synced = RedoLog(path, GUID), list[Path]()
    monkeypatch.setattr(folders, "sync", synced.append)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert not log.append(1, UNLINK)
    assert path.exists()
    assert synced == []
    assert log.append(1, UNLINK)
    assert synced == [path.parent]
    log.close()


def test_nothing_is_appended_beyond_what_is_read(path: Path) -> None:
    path.write_bytes(bytes(2 * LOG_BYTES_MAX))
    log = RedoLog(path, GUID)
    taken = 0
    while log.append(1, pack_operations([WRITE])):
        taken += 1
    log.close()
    assert taken == LOG_BYTES_MAX // 8192 == len(logged(path, 1))


def test_a_failed_write_is_an_error(path: Path) -> None:
    log = RedoLog(path, GUID)
    failpoints.arm("redo.append", "error:EIO")
    with pytest.raises(StoreError, match="redo"):
        log.append(1, UNLINK)
    log.close()


def test_another_filesystems_log_is_refused(path: Path) -> None:
    filled(path, 1)
    with pytest.raises(ForeignStore, match=GUID.hex()):
        logged(path, 7, guid=bytes(16))


def test_a_log_of_the_future_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redo, "VERSION", 3)
    filled(path, 1)
    monkeypatch.undo()
    with pytest.raises(ForeignStore, match="version 3"):
        logged(path, 7)


def test_after_clearing_the_same_base_begins_anew(path: Path) -> None:
    log = RedoLog(path, GUID)
    assert log.append(7, UNLINK)
    log.clear()  # the tables were replaced by a copy, whose commits have come to the same number
    assert log.append(7, pack_operations([WRITE]))
    log.close()
    assert logged(path, 7) == [WRITE]


def test_a_link_is_not_followed(path: Path) -> None:
    path.symlink_to("/dev/null")
    with pytest.raises(StoreError):
        RedoLog(path, GUID)
