"""Transaction groups: what a commit keeps, what a crash loses, and what is given back."""

from __future__ import annotations

import errno
import os

import pytest

from tests.engine.conftest import Workspace
from tzfs import errors, failpoints, limits
from tzfs.engine.engine import Engine, Settings
from tzfs.format.keys import Table

KIB = 1024


def test_a_directory_emptied_and_removed_in_one_group_leaves_no_rows(ws: Workspace) -> None:
    directory = ws.engine.mkdir(1, b"d", 0o755, uid=0, gid=0).ino
    ws.file(b"x", parent=directory)
    ws.engine.commit()
    ws.engine.unlink(directory, b"x")
    ws.engine.rmdir(1, b"d")
    ws.assert_sound()
    txn = ws.meta.begin_read()
    assert list(txn.range(Table.DIRENT, b"")) == []
    txn.close()


def test_what_was_freed_before_a_restart_is_given_back_after_it(ws: Workspace) -> None:
    ws.file(b"big", bytes([7]) * 1024 * KIB)
    ws.engine.commit()
    ws.engine.unlink(1, b"big")
    ws.restart()
    ws.settle()
    assert ws.engine.reclaimer.punched_bytes == 1024 * KIB
    ws.file(b"next", b"n" * 5000)
    ws.settle()
    assert list(ws.payload.segments()) == [2], "the dead segment is unlinked"


def test_each_group_has_a_number_of_its_own_over_restarts(ws: Workspace) -> None:
    seen = []
    for name in (b"a", b"b", b"c"):
        ws.file(name)
        seen.append(ws.engine.counters.txg)
        ws.restart()
    assert len(set(seen)) == 3


def test_properties_too_long_for_a_snapshot_are_refused_and_nothing_fails(ws: Workspace) -> None:
    ws.file(b"a")
    with pytest.raises(errors.LimitReached):
        ws.engine.snapshot("s", {"test:long": "x" * 8000})
    assert ws.engine.failed is None
    assert ws.engine.snapshot("s").epoch == 1


def test_a_crash_loses_what_was_not_committed_and_nothing_else(ws: Workspace) -> None:
    kept = ws.file(b"kept", b"k" * 9000)
    ws.engine.commit()
    ws.file(b"lost", b"l" * 9000)
    ws.engine.write(kept, 0, b"changed")
    ws.crash()
    assert [name for name, _, _ in ws.engine.readdir(1, b"", 10)] == [b"kept"]
    assert ws.engine.read(kept, 0, 10_000) == b"k" * 9000


def test_a_write_during_a_flush_wins_over_what_is_being_flushed(ws: Workspace) -> None:
    ino = ws.file(b"a", b"1" * 100_000)
    job = ws.engine.begin_flush()
    assert job is not None
    ws.engine.write(ino, 50_000, b"2" * 10)
    assert ws.engine.read(ino, 49_999, 12) == b"1" + b"2" * 10 + b"1"
    job.run()
    ws.engine.end_flush()
    assert ws.engine.read(ino, 49_999, 12) == b"1" + b"2" * 10 + b"1"
    ws.restart()
    assert ws.engine.read(ino, 49_999, 12) == b"1" + b"2" * 10 + b"1"


def test_whatever_is_accepted_beside_a_flush_is_reserved(ws: Workspace) -> None:
    """As much may wait to be flushed as is being flushed: together more than a group may have."""
    limit = 8 * limits.MIB
    ws.engine.configure(Settings(dirty_bytes_max=limit))
    ino = ws.file(b"a")
    room = ws.payload.reserved
    for at in range(0, 2 * limit - limits.MIB, limits.MIB):
        ws.engine.write(ino, at, b"1" * limits.MIB)
    job = ws.engine.begin_flush()
    assert job is not None
    for at in range(0, 2 * limit - limits.MIB, limits.MIB):
        ws.engine.write(ino, 2 * limit - limits.MIB + at, b"2" * limits.MIB)
        assert job.unplaced + ws.engine.dirty_bytes <= ws.payload.reserved
    assert job.unplaced + ws.engine.dirty_bytes > room
    job.run()
    ws.engine.end_flush()
    assert ws.engine.dirty_bytes <= ws.payload.reserved
    ws.restart()
    assert ws.engine.read(ino, 2 * limit - limits.MIB - 1, 2) == b"12"


def test_a_commit_does_not_wait_for_a_flush_whose_thread_has_not_started(ws: Workspace) -> None:
    """A write that must commit may come between the two, on the loop that would start the thread."""
    ino = ws.file(b"a", b"1" * 100_000)
    job = ws.engine.begin_flush()
    assert job is not None
    ws.engine.commit()
    job.run()  # the thread starts after all
    ws.engine.end_flush()
    ws.restart()
    assert ws.engine.read(ino, 0, 100_001) == b"1" * 100_000


def test_a_file_cut_during_a_flush_stays_cut(ws: Workspace) -> None:
    ino = ws.file(b"a", b"1" * 100_000)
    job = ws.engine.begin_flush()
    assert job is not None
    ws.engine.setattr(ino, size=70_000)
    ws.engine.setattr(ino, size=80_000)
    job.run()
    ws.engine.end_flush()
    ws.restart()
    assert ws.engine.read(ino, 0, 100_000) == b"1" * 70_000 + bytes(10_000)


def test_a_file_removed_during_a_flush_gives_its_extents_back(ws: Workspace) -> None:
    ws.file(b"a", b"1" * 100_000)
    job = ws.engine.begin_flush()
    assert job is not None
    ws.engine.unlink(1, b"a")
    job.run()
    ws.engine.end_flush()
    ws.settle()
    assert ws.engine.reclaimer.punched_bytes >= 100_000


def test_a_failed_sync_of_payload_fails_the_engine_and_a_reopen_finds_the_last_commit(ws: Workspace) -> None:
    ws.file(b"kept")
    ws.engine.commit()
    ws.file(b"lost", b"x" * 10_000)
    ws.payload.fail_next_sync = errors.StoreError("the disk has failed")
    with pytest.raises(errors.StoreError):
        ws.engine.commit()
    for call in (lambda: ws.engine.lookup(1, b"kept"), lambda: ws.file(b"more"), ws.engine.commit):
        with pytest.raises(errors.MountFailed):
            call()
    ws.crash()
    assert [name for name, _, _ in ws.engine.readdir(1, b"", 10)] == [b"kept"]


@pytest.mark.parametrize("point", ["commit.begin", "commit.publish", "commit.rows", "commit.done"])
def test_an_error_anywhere_in_a_commit_fails_the_engine(ws: Workspace, point: str) -> None:
    ws.file(b"kept")
    ws.engine.commit()
    ws.file(b"unsure")
    failpoints.arm(point, "error:EIO")
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            ws.engine.commit()
    finally:
        failpoints.disarm_all()
    with pytest.raises(errors.MountFailed):
        ws.engine.inode(1)
    ws.crash()
    names = [name for name, _, _ in ws.engine.readdir(1, b"", 10)]
    assert names == ([b"kept", b"unsure"] if point == "commit.done" else [b"kept"])


def test_an_exception_within_a_change_poisons_the_group(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.file(b"kept")
    ws.engine.commit()
    monkeypatch.setattr(ws.engine._head, "touch", lambda inode: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ws.file(b"half")
    with pytest.raises(errors.MountFailed):
        ws.engine.commit()
    ws.crash()
    assert [name for name, _, _ in ws.engine.readdir(1, b"", 10)] == [b"kept"]


def test_a_full_store_refuses_what_adds_and_lets_what_removes_go_on(ws: Workspace) -> None:
    ino = ws.file(b"a", b"x" * 10_000)
    ws.engine.commit()
    ws.payload.full = True
    with pytest.raises(errors.NoSpace):
        ws.engine.write(ino, 0, b"y")
    with pytest.raises(errors.NoSpace):
        ws.file(b"b")
    assert ws.engine.read(ino, 0, 3) == b"xxx"
    ws.engine.unlink(1, b"a")
    ws.payload.full = False
    ws.engine.commit()
    assert ws.engine.readdir(1, b"", 10) == []


def test_a_writer_that_lost_its_lease_cannot_commit(ws: Workspace) -> None:
    ws.file(b"a")
    ws.engine._head.txn.close()  # as if its process had been stopped for long, and the lease taken from it
    second = Engine(ws.meta, ws.payload.after_crash())
    second.close()
    ws.engine._head.txn = ws.meta.begin_write()
    ws.engine._head.versions.begin(ws.engine._head.txn)
    with pytest.raises(errors.Fenced):
        ws.engine.commit()


def test_the_snapshot_takes_the_same_rows_whatever_the_size(ws: Workspace) -> None:
    for i in range(500):
        ws.file(b"%d" % i)
    ws.engine.commit()
    before = ws.engine.commits
    ws.engine.snapshot("s")
    assert ws.engine.commits == before + 1
    assert ws.engine.dirty_rows == 0


def test_large_removed_files_are_reclaimed_in_bounded_batches(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 4)
    monkeypatch.setattr(limits, "RECLAIM_BATCH_CHUNKS", 3)
    ino = ws.file(b"big")
    for i in range(10):
        ws.engine.write(ino, i << 17, b"x" * 5000)
    ws.engine.commit()
    ws.engine.unlink(1, b"big")
    ws.engine.commit()
    assert ws.engine.reclaiming == 1
    ws.crash()
    assert ws.engine.reclaiming == 1, "a crash does not forget it"
    steps = 0
    while ws.engine.reclaiming:
        ws.engine.background_step()
        steps += 1
    assert steps == 4
    ws.settle()
    txn = ws.meta.begin_read()
    assert list(txn.range(Table.CHUNK, b"")) == []
    txn.close()
