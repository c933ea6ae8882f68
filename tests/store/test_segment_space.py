"""Space in segment files: what is reserved and given back, and blocks that are freed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.store.stores import opened, put, python
from tzfs.errors import NoSpace, StoreError
from tzfs.format.keys import extent_id
from tzfs.store import space

MIB = 1 << 20


def test_the_reserve_makes_the_file_and_is_given_back(tmp_path: Path) -> None:
    payload = opened(tmp_path, segment_bytes_max=64 << 20)
    path = tmp_path / "segments" / "1.seg"
    payload.reserve(4 << 20)
    assert path.stat().st_size == 4096
    assert path.stat().st_blocks * 512 >= 4 << 20
    put(payload, b"x" * 10_000)
    payload.close()
    assert path.stat().st_blocks * 512 < 1 << 20
    payload = opened(tmp_path)
    assert payload.read(extent_id(1, 1), 9_999, 1) == b"x"
    payload.close()


def test_what_a_crash_left_reserved_is_given_back_once_the_next_writer_begins_to_number(tmp_path: Path) -> None:
    code = (
        "import os, sys; from tzfs.store.segments import Segments\n"
        "s = Segments(sys.argv[1], guid=bytes(range(16)), create=True); s.reserve(4 << 20); os._exit(0)"
    )
    done = python(code, str(tmp_path / "segments"))
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / "segments" / "1.seg"
    assert path.stat().st_blocks * 512 >= 4 << 20
    payload = opened(tmp_path)
    payload.begin_numbering(1)
    payload.close()
    assert path.stat().st_blocks * 512 < 1 << 20
    assert path.stat().st_size == 4096


def test_a_segment_that_has_ended_gives_its_reserve_back_at_the_next_sync(tmp_path: Path) -> None:
    payload = opened(tmp_path, segment_bytes_max=8 << 20)
    payload.reserve(6 << 20)
    (first,) = put(payload, b"x" * 100_000)
    assert payload.segments()[1] >= 6 << 20
    payload.reserve(8_300_000)
    assert sorted(payload.segments()) == [1, 2]
    put(payload, b"y")
    assert payload.segments()[1] < 1 << 20
    assert payload.read(first, 99_999, 1) == b"x"
    payload.close()


@pytest.mark.parametrize("left", [0, 4096])
def test_a_refused_reserve_takes_nothing_and_leaves_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """In the present segment, and where it would have begun the next one."""
    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    payload.reserve(4 << 20)
    put(payload, b"x" * 10_000)
    before, blocks = payload.reserved, (tmp_path / "segments" / "1.seg").stat().st_blocks
    reserve = space.reserve

    def partly(fd: int, begin: int, nbytes: int) -> bool:  # as ext4 does
        if nbytes > 8 << 20:
            reserve(fd, begin, 6 << 20)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return reserve(fd, begin, nbytes)

    monkeypatch.setattr(space, "reserve", partly)
    with pytest.raises(NoSpace):
        payload.reserve((32 << 20) - 8192 - left if left else 20 << 20)
    assert payload.reserved == before
    assert sum(payload.segments().values()) <= blocks * 512 + 8192
    (extent,) = put(payload, b"y" * before)
    assert extent >> 32 == 1
    assert payload.reserved == 0
    payload.reserve(4 << 20)
    payload.close()


def test_less_is_reserved_where_more_does_not_fit_and_no_more_than_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    reserve = space.reserve

    def partly(fd: int, begin: int, nbytes: int) -> bool:  # as ext4 does
        reserve(fd, begin, min(nbytes, 6 * MIB))
        if nbytes > 6 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return True

    monkeypatch.setattr(space, "reserve", partly)
    payload.reserve(4 * MIB)
    assert payload.reserved == 4 * MIB
    assert payload.segments()[1] <= 4 * MIB + 8192
    payload.close()


def test_where_nothing_can_be_reserved_what_is_free_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10 * MIB
    monkeypatch.setattr(space, "reserve", lambda fd, begin, nbytes: False)
    monkeypatch.setattr(space, "free_bytes", lambda fd: free)
    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    with pytest.raises(NoSpace):
        payload.reserve(11 * MIB)
    payload.reserve(8 * MIB)
    assert not payload.reserve_supported
    assert payload.reserved == 8 * MIB
    extent = payload.allocate(7 * MIB)
    assert payload.reserved == MIB
    with pytest.raises(NoSpace):
        payload.reserve(4 * MIB)  # 7 of the 10 that are free have been given away
    payload.write([(extent, bytes(7 * MIB))])
    free = 3 * MIB
    with pytest.raises(NoSpace):
        payload.reserve(4 * MIB)
    payload.reserve(3 * MIB)
    payload.close()


def test_a_punch_frees_blocks_and_is_skipped_where_it_cannot_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = opened(tmp_path)
    (extent,) = put(payload, b"x" * 400_000)
    before = payload.segments()[1]
    payload.punch(extent, 400_000)
    assert payload.segments()[1] <= before - 400_000
    (extent,) = put(payload, b"x" * 400_000)
    monkeypatch.setattr(space, "_lib", _Refusing(errno.EOPNOTSUPP))
    payload.punch(extent, 400_000)
    assert payload.read(extent, 0, 1) == b"x"
    assert payload.reserve_supported
    payload.reserve(1000)
    assert not payload.reserve_supported
    monkeypatch.setattr(space, "free_bytes", lambda fd: 0)
    with pytest.raises(NoSpace):
        payload.reserve(payload.reserved + 1)
    monkeypatch.setattr(space, "_lib", _Refusing(errno.EIO))
    with pytest.raises(StoreError):
        payload.punch(extent, 400_000)
    payload.close()


class _Refusing:
    def __init__(self, error: int) -> None:
        self.error = error

    def tzfs_fallocate_keep(self, fd: int, offset: int, nbytes: int, /) -> int:
        return self.error

    tzfs_fallocate_punch = tzfs_fallocate_keep
