"""Segments while a sync waits for the disk, and what is kept in memory after it."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.noise import noise
from tests.store.stores import GUID, SMALL_SEGMENT
from tzfs.format.keys import extent_offset
from tzfs.limits import PAGE_BYTES
from tzfs.store.segments import UNCACHED_BYTES_MIN, Segments

WAIT_S = 30.0


def test_room_is_found_and_written_while_a_sync_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = Segments(tmp_path / "segments", guid=GUID, create=True, segment_bytes_max=SMALL_SEGMENT)
    first = payload.allocate(4096)
    payload.write([(first, b"a" * 4096)])
    waiting, go_on, synced = threading.Event(), threading.Event(), list[int]()
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        waiting.set()
        assert go_on.wait(WAIT_S)
        synced.append(fd)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    syncing = threading.Thread(target=payload.sync)
    syncing.start()
    assert waiting.wait(WAIT_S)

    done = threading.Event()

    def others() -> None:
        payload.reserve(SMALL_SEGMENT // 2)
        second = payload.allocate(4096)
        payload.write([(second, b"b" * 4096)])
        done.set()

    beside = threading.Thread(target=others)
    beside.start()
    assert done.wait(WAIT_S / 10), "the disk kept somebody from a segment who does not wait for it"
    go_on.set()
    syncing.join(WAIT_S)
    beside.join(WAIT_S)
    assert len(synced) == 1
    payload.sync()
    assert len(synced) == 2, "what was written beside the first sync is synced by the next"
    payload.close()


def test_what_was_written_in_large_runs_is_not_kept_in_memory_once_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[tuple[int, int]] = []
    advise = os.posix_fadvise

    def recorded(fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        dropped.append((offset, length))
        advise(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", recorded)
    large, small = noise(UNCACHED_BYTES_MIN), noise(UNCACHED_BYTES_MIN - PAGE_BYTES)
    with closing(Segments(tmp_path / "segments", guid=GUID, create=True)) as segments:
        first, second = segments.allocate(len(large)), segments.allocate(len(small))
        segments.write([(first, large)])
        segments.write([(second, small)])
        assert dropped == []
        segments.sync()
        assert dropped == [(extent_offset(first), len(large))]
        segments.sync()
        assert len(dropped) == 1
        assert segments.read(first, 0, len(large)) == large
