"""A small ext4 that is really full: what is reserved can be committed, what is not says so and changes nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.stores import GUID, fds_below, python
from tzfs.engine.engine import Engine
from tzfs.errors import NoSpace
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.redo import RedoLog
from tzfs.store.segments import Segments

DISK_BYTES = 24 << 20

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A fresh ext4 of 24 MiB on a loop device."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """Takes every free block."""
    path = folder / "filler"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for nbytes in (1 << 20, 4096):
            try:
                while True:
                    os.write(fd, bytes(nbytes))
            except OSError:
                continue
        os.fsync(fd)
    finally:
        os.close(fd)
    return path


def rows(meta: LmdbMeta) -> dict[bytes, bytes]:
    txn = meta.begin_read()
    try:
        return dict(txn.range(Table.INLINE, b""))
    finally:
        txn.close()


def put(meta: LmdbMeta, first: int, count: int) -> None:
    txn = meta.begin_write()
    for i in range(first, first + count):
        txn.put(Table.INLINE, i.to_bytes(8, "big"), bytes([i % 251]) * 4000)
    txn.commit()


def test_a_reserved_commit_succeeds_on_a_full_disk(disk: Path) -> None:
    meta = LmdbMeta(disk / "meta", create=True)
    put(meta, 0, 10)
    meta.reserve(8 << 20)
    fill(disk)
    with pytest.raises(OSError, match="No space"):
        (disk / "proof").write_bytes(bytes(8192))
    put(meta, 10, 1000)
    assert len(rows(meta)) == 1010
    meta.close()


def test_an_unreserved_commit_fails_as_no_space_and_changes_nothing(disk: Path) -> None:
    meta = LmdbMeta(disk / "meta", create=True)
    put(meta, 0, 10)
    before = rows(meta)
    filler = fill(disk)
    with pytest.raises(NoSpace):
        meta.reserve(4 << 20)
    with pytest.raises(NoSpace, match="commit"):
        put(meta, 10, 1000)
    assert rows(meta) == before
    filler.unlink()
    put(meta, 10, 1000)
    assert len(rows(meta)) == 1010
    meta.close()
    again = LmdbMeta(disk / "meta")
    assert len(rows(again)) == 1010
    again.close()
    assert fds_below(disk) == []


def test_a_reserve_takes_what_is_left_but_no_more(disk: Path) -> None:
    meta = LmdbMeta(disk / "meta", create=True)
    meta.reserve(12 << 20)
    with pytest.raises(NoSpace):
        meta.reserve(40 << 20)
    meta.reserve(12 << 20)
    free = os.statvfs(disk).f_bfree
    meta.close()
    assert os.statvfs(disk).f_bfree >= free + (12 << 20) // 4096


def test_reserved_payload_is_written_to_a_full_disk_and_unreserved_is_refused(disk: Path) -> None:
    payload = Segments(disk / "segments", guid=GUID, create=True)
    payload.reserve(4 << 20)
    filler = fill(disk)
    kept = [payload.allocate(1 << 20) for _ in range(4)]
    payload.write([(extent, bytes([i]) * (1 << 20)) for i, extent in enumerate(kept)])
    payload.sync()
    with pytest.raises(NoSpace):
        payload.reserve(64 << 20)
    lost = payload.allocate(32 << 20)
    with pytest.raises(NoSpace):
        payload.write([(lost, b"x" * (32 << 20))])
    assert payload.failed is None
    for i, extent in enumerate(kept):
        assert payload.read(extent, (1 << 20) - 1, 1) == bytes([i])
    filler.unlink()
    payload.punch(lost, 32 << 20)
    (again,) = (payload.allocate(1 << 20),)
    payload.write([(again, b"y" * (1 << 20))])
    payload.sync()
    assert payload.read(again, 0, 1) == b"y"
    payload.close()


def test_punching_gives_space_back_on_a_full_disk(disk: Path) -> None:
    payload = Segments(disk / "segments", guid=GUID, create=True)
    extent = payload.allocate(8 << 20)
    payload.write([(extent, b"x" * (8 << 20))])
    payload.sync()
    fill(disk)
    with pytest.raises(NoSpace):
        payload.reserve(4 << 20)
    payload.punch(extent, 8 << 20)
    payload.reserve(4 << 20)
    payload.close()


LOG_AND_DIE = """
import os, sys
from pathlib import Path
from tzfs import limits
from tzfs.engine.engine import Engine, Settings
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.redo import RedoLog
from tzfs.store.segments import Segments
disk, guid = Path(sys.argv[1]), bytes(range(16))
limits.META_RESERVE_BYTES = 4 << 20
meta = LmdbMeta(disk / "meta", create=True)
Engine.format(meta, guid=guid, now_ns=1)
payload = Segments(disk / "segments", guid=guid, create=True)
engine = Engine(meta, payload, redo=RedoLog(disk / "redo", guid), settings=Settings(dirty_bytes_max=1 << 20))
engine.write(engine.mknod(1, b"file", 0o100644, uid=0, gid=0).ino, 0, b"x" * 60_000)
engine.harden()
assert engine.logged == 2
os._exit(0)  # and the power goes: nothing was written to a segment
"""


def test_what_a_crash_had_reserved_serves_to_do_the_redo_log_again(disk: Path) -> None:
    done = python(LOG_AND_DIE, str(disk))
    assert (done.returncode, done.stderr) == (0, "")
    fill(disk)
    meta = LmdbMeta(disk / "meta")
    payload = Segments(disk / "segments", guid=GUID)
    log = RedoLog(disk / "redo", GUID)
    engine = Engine(meta, payload, redo=log)
    assert engine.redone == 2
    assert engine.read(engine.lookup(1, b"file").ino, 0, 100_000) == b"x" * 60_000
    engine.close()
    for part in (log, payload, meta):
        part.close()
