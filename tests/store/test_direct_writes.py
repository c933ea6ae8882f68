"""Large writes that lie on whole pages go past the page cache; what cannot goes through it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.store.paged import paged
from tests.store.stores import opened, put
from tzfs.errors import NoSpace, StoreError

MIB = 1 << 20
CACHED, DIRECT = False, True


class Written:
    """How `os.pwritev` was called: (past the page cache, bytes); `answer` may write less, or fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[bool, int]] = []
        self.answer: Callable[[list[memoryview]], list[memoryview]] = lambda pieces: pieces
        self._pwritev = os.pwritev
        patch.setattr(os, "pwritev", self._call)

    def _call(self, fd: int, pieces: list[memoryview], offset: int) -> int:
        direct = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        self.calls.append((direct, sum(map(len, pieces))))
        return self._pwritev(fd, self.answer(pieces) if direct else pieces, offset)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


def noise(*sizes: int) -> list[bytes]:
    return [random.Random(size).randbytes(size) for size in sizes]


def test_much_on_whole_pages_goes_past_the_page_cache(tmp_path: Path, written: Written) -> None:
    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    large, odd, more, small, apart = noise(MIB, 5000, MIB + 4096, 32768, MIB)
    put_apart = paged(b"-" + apart)[1:]
    extents = put(payload, paged(large), odd, paged(more), paged(small), put_apart, paged(large)[4096:])
    assert written.calls == [
        (DIRECT, MIB),
        (CACHED, 8192),
        (DIRECT, MIB + 4096 + 32768),
        (CACHED, MIB),  # begins within a page
        (CACHED, MIB - 4096),  # is little
    ]
    for extent, data in zip(extents, (large, odd, more, small, apart, large[4096:]), strict=True):
        assert payload.read(extent, 0, len(data)) == data
    assert payload.segments()[1] >= 4 * MIB
    payload.close()
    payload = opened(tmp_path)
    assert payload.read(extents[2], MIB, 4096) == more[MIB:]
    payload.close()


def test_what_a_direct_write_leaves_goes_through_the_page_cache(tmp_path: Path, written: Written) -> None:
    written.answer = lambda pieces: [pieces[0][:8192]]
    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    data = noise(MIB, MIB + 4096)
    extents = put(payload, *map(paged, data))
    assert written.calls == [(DIRECT, 2 * MIB + 4096), (CACHED, 2 * MIB + 4096)]
    assert [payload.read(e, 0, len(d)) for e, d in zip(extents, data, strict=True)] == data
    payload.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("where", ["open", "write"])
def test_a_disk_that_cannot_write_directly_is_asked_once(
    tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    def refuse(pieces: list[memoryview]) -> list[memoryview]:
        raise OSError(number, os.strerror(number))

    opening = os.open
    asked = 0

    def refuse_open(path: Path, flags: int, mode: int = 0o777) -> int:
        nonlocal asked
        if flags & os.O_DIRECT:
            asked += 1
            raise OSError(number, os.strerror(number))
        return opening(path, flags, mode)

    if where == "open":
        monkeypatch.setattr(os, "open", refuse_open)
    written.answer = refuse
    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    data = noise(MIB, 2 * MIB)
    extents = [put(payload, paged(d))[0] for d in data]
    assert [size for direct, size in written.calls if not direct] == [MIB, 2 * MIB]
    assert asked + sum(direct for direct, _ in written.calls) == 1
    assert [payload.read(e, 0, len(d)) for e, d in zip(extents, data, strict=True)] == data
    payload.close()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, StoreError)])
def test_a_direct_write_that_fails_is_reported_and_may_be_tried_again(
    tmp_path: Path, written: Written, number: int, kind: type[StoreError]
) -> None:
    def fail(pieces: list[memoryview]) -> list[memoryview]:
        raise OSError(number, os.strerror(number))

    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    (data,) = noise(MIB)
    extent = payload.allocate(MIB)
    written.answer = fail
    with pytest.raises(kind, match="segment 1: write"):
        payload.write([(extent, paged(data))])
    written.answer = lambda pieces: pieces
    payload.write([(extent, paged(data))])
    payload.sync()
    assert payload.read(extent, 0, MIB) == data
    payload.close()


def test_without_a_descriptor_more_it_goes_through_the_page_cache(
    tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = opened(tmp_path, segment_bytes_max=32 * MIB)
    data = noise(MIB, 2 * MIB, 3 * MIB)
    extents = put(payload, paged(data[0]))
    opening = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opening(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    extents += put(payload, paged(data[1]))
    monkeypatch.setattr(os, "open", opening)
    extents += put(payload, paged(data[2]))
    assert written.calls == [(DIRECT, MIB), (CACHED, 2 * MIB), (DIRECT, 3 * MIB)]
    assert [payload.read(e, 0, len(d)) for e, d in zip(extents, data, strict=True)] == data
    payload.close()
