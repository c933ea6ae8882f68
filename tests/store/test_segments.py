"""What only segment files have: the header, durability step by step, descriptors, threads, crashes at each step."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.stores import GUID, fds_below, opened, put, python
from tzfs import failpoints
from tzfs.errors import CorruptionError, ForeignStore, InternalError, NoSpace, ReadOnly, StoreError
from tzfs.format.keys import extent_id
from tzfs.native import fnv1a64
from tzfs.store import segment_files as module
from tzfs.store.interface import SegmentGone
from tzfs.store.segments import Segments

# -- the file --------------------------------------------------------------------------------------------------------


def test_the_header_is_as_specified(tmp_path: Path) -> None:
    payload = opened(tmp_path)
    payload.begin_numbering(0x1234)
    put(payload, b"payload")
    payload.close()
    data = (tmp_path / "segments" / "4660.seg").read_bytes()
    head = b"TZFSSEG1" + b"\0\0\0\1" + b"\0\0\0\0" + GUID + b"\0\0\0\0\0\0\x12\x34"
    assert data[:48] == head + fnv1a64(head).to_bytes(8, "big")
    assert data[48:4096] == bytes(4096 - 48)
    assert data[4096:] == b"payload"


def test_folder_and_files_are_for_their_owner_only(tmp_path: Path) -> None:
    payload = opened(tmp_path)
    put(payload, b"x")
    assert stat.S_IMODE((tmp_path / "segments").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "segments" / "1.seg").stat().st_mode) == 0o600
    payload.close()


@pytest.mark.parametrize(
    ("at", "new", "error"),
    [
        (0, b"X", CorruptionError),
        (11, b"\2", CorruptionError),
        (20, b"X", CorruptionError),
        (47, b"X", CorruptionError),
    ],
)
def test_a_damaged_header_is_noticed(tmp_path: Path, at: int, new: bytes, error: type[Exception]) -> None:
    payload = opened(tmp_path)
    (extent,) = put(payload, b"x")
    payload.close()
    with (tmp_path / "segments" / "1.seg").open("r+b") as file:
        file.seek(at)
        file.write(new)
    payload = opened(tmp_path)
    with pytest.raises(error, match=r"1\.seg"):
        payload.read(extent, 0, 1)
    payload.close()
    assert fds_below(tmp_path) == []


@pytest.mark.parametrize(("guid", "number", "version"), [(bytes(16), 1, 1), (GUID, 2, 1), (GUID, 1, 2)])
def test_a_segment_that_belongs_elsewhere_is_foreign(tmp_path: Path, guid: bytes, number: int, version: int) -> None:
    (tmp_path / "segments").mkdir()
    head = module.HEADER.pack(module.MAGIC, version, 0, guid, number)
    (tmp_path / "segments" / "1.seg").write_bytes((head + fnv1a64(head).to_bytes(8, "big")).ljust(8192, b"\0"))
    payload = opened(tmp_path)
    with pytest.raises(ForeignStore):
        payload.read(extent_id(1, 1), 0, 1)
    payload.close()


def test_a_link_in_place_of_a_segment_is_not_followed(tmp_path: Path) -> None:
    payload = opened(tmp_path)
    (extent,) = put(payload, b"x")
    payload.close()
    (tmp_path / "segments" / "1.seg").rename(tmp_path / "elsewhere")
    (tmp_path / "segments" / "1.seg").symlink_to(tmp_path / "elsewhere")
    payload = opened(tmp_path)
    with pytest.raises(StoreError):
        payload.read(extent, 0, 1)
    payload.close()


def test_other_files_in_the_folder_are_none_of_ours(tmp_path: Path) -> None:
    payload = opened(tmp_path)
    put(payload, b"x")
    for name in ("0.seg", "01.seg", "seg", "7.seg~", "x.seg"):
        (tmp_path / "segments" / name).touch()
    assert list(payload.segments()) == [1]
    payload.close()


def test_a_folder_that_is_not_there_is_foreign(tmp_path: Path) -> None:
    with pytest.raises(ForeignStore):
        Segments(tmp_path / "segments", guid=GUID)
    with pytest.raises(StoreError):
        Segments(tmp_path / "no" / "segments", guid=GUID, create=True)


def test_for_reading_only_nothing_changes(tmp_path: Path) -> None:
    writer = opened(tmp_path)
    (extent,) = put(writer, b"x")
    reader = opened(tmp_path, readonly=True)
    assert reader.read(extent, 0, 1) == b"x"
    for use in (
        lambda: reader.allocate(1),
        lambda: reader.write([]),
        reader.sync,
        lambda: reader.punch(extent, 1),
        lambda: reader.remove_segment(1),
        lambda: reader.reserve(1),
    ):
        with pytest.raises(ReadOnly):
            use()
    reader.close()
    writer.close()


# -- writing and syncing ---------------------------------------------------------------------------------------------


def test_adjacent_extents_go_out_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    pwritev = os.pwritev

    def counted(fd: int, pieces: list[memoryview], offset: int) -> int:
        calls.append(len(pieces))
        return pwritev(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", counted)
    payload = opened(tmp_path)
    a, b, skipped, c, d = (payload.allocate(n) for n in (4096, 5000, 1, 4096, 1))
    payload.write([(a, b"a" * 4096), (b, b"b" * 5000), (c, b"c" * 4096), (d, b"d")])
    assert calls == [2, 2]
    assert skipped not in (a, b, c, d)
    assert [payload.read(e, 0, 1) for e in (a, b, c, d)] == [b"a", b"b", b"c", b"d"]
    assert payload.read(b, 4999, 1) == b"b"
    payload.close()


def test_more_pieces_than_one_call_may_have_are_split(tmp_path: Path) -> None:
    payload = opened(tmp_path, segment_bytes_max=16 << 20)
    extents = put(payload, *(b"%04d" % i for i in range(3000)))
    assert [payload.read(e, 0, 4) for e in extents] == [b"%04d" % i for i in range(3000)]
    payload.close()


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev

    def short(fd: int, pieces: list[memoryview], offset: int) -> int:
        return pwritev(fd, [pieces[0][:1500]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    payload = opened(tmp_path)
    extents = put(payload, b"a" * 5000, b"b" * 4096, b"c" * 100)
    monkeypatch.undo()
    assert [payload.read(e, 0, n) for e, n in zip(extents, (5000, 4096, 100), strict=True)] == [
        b"a" * 5000,
        b"b" * 4096,
        b"c" * 100,
    ]
    payload.close()


def test_every_written_segment_is_synced_before_the_folder_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def watched(name: str, call: Callable[[int], None]) -> Callable[[int], None]:
        def watching(fd: int) -> None:
            synced.append(f"{name} {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
            call(fd)

        return watching

    monkeypatch.setattr(os, "fsync", watched("fsync", os.fsync))
    monkeypatch.setattr(os, "fdatasync", watched("fdatasync", os.fdatasync))
    payload = opened(tmp_path, segment_bytes_max=64 * 1024)
    synced.clear()
    put(payload, b"a" * 50_000, b"b" * 50_000)
    assert synced == ["fdatasync 1.seg", "fdatasync 2.seg", "fsync segments"]
    synced.clear()
    put(payload, b"c")
    assert synced == ["fdatasync 2.seg"]
    synced.clear()
    payload.sync()
    assert synced == []
    payload.close()


@pytest.mark.parametrize("point", ["segment.sync", "segment.sync.folder"])
def test_a_failed_sync_is_never_tried_again(tmp_path: Path, point: str) -> None:
    payload = opened(tmp_path)
    extent = payload.allocate(1)
    payload.write([(extent, b"x")])
    failpoints.arm(point, "error:EIO")
    with pytest.raises(StoreError, match="sync") as caught:
        payload.sync()
    assert not isinstance(caught.value, NoSpace)
    with failpoints.counting() as counts, pytest.raises(StoreError, match="cannot be written any more"):
        payload.sync()
    assert counts == {}
    payload.close()


# -- reading and descriptors -----------------------------------------------------------------------------------------


def test_a_read_that_must_not_wait_answers_from_memory_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = opened(tmp_path)
    (extent,) = put(payload, b"x" * 5000)
    target = bytearray(5000)
    assert payload.read_into(extent, 0, memoryview(target), wait=False)
    assert target == b"x" * 5000
    beyond = bytearray(9000)
    assert not payload.read_into(extent, 0, memoryview(beyond), wait=False)
    for error in (errno.EAGAIN, errno.EOPNOTSUPP):
        monkeypatch.setattr(os, "preadv", _raising(error))
        assert not payload.read_into(extent, 0, memoryview(target), wait=False)
    monkeypatch.setattr(os, "preadv", _raising(errno.EIO))
    for wait in (False, True):
        with pytest.raises(StoreError):
            payload.read_into(extent, 0, memoryview(target), wait=wait)
    monkeypatch.undo()
    payload.close()
    payload = opened(tmp_path)
    assert not payload.read_into(extent, 0, memoryview(target), wait=False), "opening the file may wait"
    assert payload.read_into(extent, 0, memoryview(target))
    assert payload.read_into(extent, 0, memoryview(target), wait=False)
    payload.close()


def _raising(error: int) -> object:
    def raising(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    return raising


def test_no_more_descriptors_are_kept_than_allowed(tmp_path: Path) -> None:
    payload = opened(tmp_path, segment_bytes_max=16 * 1024, open_max=4)
    extents = put(payload, *(bytes([i]) * 10_000 for i in range(20)))
    assert len(payload.segments()) == 20
    for extent, i in [(e, i) for i, e in enumerate(extents)] * 3:
        assert payload.read(extent, 9_999, 1) == bytes([i])
        assert len(fds_below(tmp_path)) <= 4
    payload.close()
    assert fds_below(tmp_path) == []


def test_descriptors_are_not_inherited_by_programs(tmp_path: Path) -> None:
    payload = opened(tmp_path)
    put(payload, b"x")
    assert fds_below(tmp_path)
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(tmp_path)):
                assert not os.get_inheritable(int(fd))
        except FileNotFoundError:
            continue
    payload.close()


def test_threads_read_while_one_writes_and_descriptors_come_and_go(tmp_path: Path) -> None:
    payload = opened(tmp_path, segment_bytes_max=64 * 1024, open_max=3)
    extents = put(payload, *(bytes([i]) * 20_000 for i in range(30)))
    wrong: list[BaseException | int] = []

    def read(seed: int) -> None:
        try:
            for step in range(400):
                i = (seed * 7 + step * 11) % 30
                if payload.read(extents[i], 0, 20_000) != bytes([i]) * 20_000:
                    wrong.append(i)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for i in range(40):
        put(payload, bytes([i]) * 20_000)
    for thread in threads:
        thread.join()
    assert wrong == []
    payload.close()
    assert fds_below(tmp_path) == []


def test_in_a_forked_child_the_store_is_closed(tmp_path: Path) -> None:
    payload = opened(tmp_path)
    (extent,) = put(payload, b"x")
    pid = os.fork()
    if pid == 0:
        refused = 0
        for use in (lambda: payload.read(extent, 0, 1), lambda: payload.allocate(1), payload.sync):
            try:
                use()
            except InternalError:
                refused += 1
        payload.close()
        os._exit(0 if refused == 3 and fds_below(tmp_path) == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert payload.read(extent, 0, 1) == b"x"
    payload.close()


def test_a_segment_may_be_removed_while_it_is_open(tmp_path: Path) -> None:
    payload = opened(tmp_path, segment_bytes_max=64 * 1024)
    first, _ = put(payload, b"a" * 50_000, b"b" * 50_000)
    reader = opened(tmp_path, readonly=True)
    assert reader.read(first, 0, 1) == b"a"
    payload.remove_segment(1)
    assert reader.read(first, 0, 1) == b"a", "what is open stays readable"
    with pytest.raises(SegmentGone):
        payload.read(first, 0, 1)
    reader.close()
    payload.close()
    assert fds_below(tmp_path) == []


# -- failures at each step -------------------------------------------------------------------------------------------

STEPS = (
    "segment.folder",
    "segment.reserve",
    "segment.create",
    "segment.header",
    "segment.open",
    "segment.write",
    "segment.sync",
    "segment.sync.folder",
    "segment.punch",
    "segment.unlink",
)


def life(directory: Path) -> None:
    """Everything a writer does, passing every step."""
    payload = opened(directory, segment_bytes_max=64 * 1024)
    try:
        payload.reserve(8192)
        first, second = put(payload, b"a" * 50_000, b"b" * 50_000)
        payload.punch(first, 50_000)
        payload.remove_segment(min(payload.segments()))
        assert payload.read(second, 0, 1) == b"b"
    finally:
        payload.close()
    reader = opened(directory, readonly=True)
    try:
        reader.read(second, 0, 1)
    finally:
        reader.close()


def test_the_steps_are_those_that_are_declared(tmp_path: Path) -> None:
    with failpoints.counting() as counts:
        life(tmp_path)
    assert set(counts) == set(STEPS) == {name for name in failpoints.KNOWN if name.startswith("segment.")}


@pytest.mark.parametrize("point", STEPS)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_after_a_failure_at_any_step_nothing_leaks_and_the_next_writer_works(
    tmp_path: Path, point: str, error: str
) -> None:
    failpoints.arm(point, f"error:{error}")
    with pytest.raises(StoreError) as caught:
        life(tmp_path)
    assert isinstance(caught.value, NoSpace) == (error == "ENOSPC" and not point.startswith("segment.sync"))
    assert fds_below(tmp_path) == []
    life(tmp_path)
    assert fds_below(tmp_path) == []


@pytest.mark.parametrize("point", STEPS)
def test_after_a_crash_at_any_step_the_next_writer_works(tmp_path: Path, point: str) -> None:
    code = "import pathlib, sys; from tests.store.test_segments import life; life(pathlib.Path(sys.argv[1]))"
    done = python(code, str(tmp_path), environment={failpoints.ENVIRONMENT: f"{point}=crash"})
    assert done.returncode == failpoints.CRASH_STATUS
    left = Segments(tmp_path / "segments", guid=GUID).segments() if (tmp_path / "segments").exists() else {}
    payload = opened(tmp_path)
    assert payload.next_segment > max(left, default=0)
    payload.close()
    life(tmp_path)
