"""Segments while a sync waits for the disk."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.store.stores import GUID, SMALL_SEGMENT
from tzfs.store.segments import Segments

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
