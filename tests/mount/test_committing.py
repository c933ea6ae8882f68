"""When a mounted engine commits: here, that a writer who is faster than the disk does not keep the loop waiting."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.engine.world import MemoryStores
from tests.mount.wire import Kernel
from tzfs import failpoints, limits
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.reclaim import Backlog
from tzfs.errors import CorruptionError
from tzfs.format.keys import ExtentId
from tzfs.mount.committing import BACKGROUND_PAUSE_S, BUSY_PAUSE_S, Committer
from tzfs.mount.operations import Operations
from tzfs.store.interface import Buffer
from tzfs.store.memory import MemoryMeta, MemoryPayload

PIECE = bytes(limits.KIB * 128)
NOISE = random.Random(1).randbytes(1 << limits.CHUNK_SHIFT_DEFAULT)  # a chunk, which no codec makes smaller
ENDLESS = 16 * limits.MIB  # what the writer writes during one flush, if nobody stops it


class SlowPayload(MemoryPayload):
    """A disk that takes until the writer is stopped, or has written far more than may be left."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = threading.Condition()
        self.waited_for_long_enough = False

    def tell(self, long_enough: bool) -> None:
        with self.progress:
            self.waited_for_long_enough = long_enough
            self.progress.notify()

    def write(self, parts: Sequence[tuple[ExtentId, Buffer]]) -> None:
        if threading.current_thread() is not threading.main_thread():
            with self.progress:
                assert self.progress.wait_for(lambda: self.waited_for_long_enough, 60)
        super().write(parts)


class MeasuredEngine(Engine):
    left = 0  # dirty payload that the last commit found, to be written while the loop waits

    def commit(self) -> None:
        self.left = self.dirty_bytes
        super().commit()


def test_a_commit_leaves_little_to_be_written_on_the_loop_however_fast_the_writer() -> None:
    meta, payload = MemoryMeta(), SlowPayload()
    Engine.format(meta, guid=bytes(16), now_ns=1)
    engine = MeasuredEngine(meta, payload, settings=Settings(dirty_bytes_max=limits.GIB))
    ino = engine.mknod(1, b"file", 0o100644, uid=0, gid=0).ino
    engine.write(ino, 0, PIECE * 64)
    committer = Committer(engine, failed=lambda reason: None)

    async def write() -> None:
        """As the mount's handler does, without an end."""
        written = 0
        while True:
            written += engine.write(ino, written % (32 * limits.MIB), PIECE)
            stopped = committer.ahead
            payload.tell(stopped or engine.dirty_bytes >= ENDLESS)
            if stopped:
                await committer.make_room()
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await committer.commit()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert engine.left <= limits.FLUSH_REMAINDER_BYTES_MAX + len(PIECE)
    engine.write(ino, 0, PIECE * 8)
    assert not committer.ahead  # until the next flush
    engine.close()


class CountedCommitter(Committer):
    turns = 0  # of `run`

    def _wait_s(self) -> float | None:
        self.turns += 1
        assert self.turns < 100, "it goes round without an end"
        return super()._wait_s()


def test_just_enough_for_a_flush_is_flushed_once_and_then_it_waits() -> None:
    meta, payload = MemoryMeta(), SlowPayload()
    Engine.format(meta, guid=bytes(16), now_ns=1)
    engine = Engine(meta, payload, settings=Settings(txg_interval_s=1000.0))
    ino = engine.mknod(1, b"file", 0o100644, uid=0, gid=0).ino
    committer = CountedCommitter(engine, failed=lambda reason: None)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            await trio.testing.wait_all_tasks_blocked()
            for at in range(0, limits.FLUSH_AHEAD_BYTES, limits.MIB):
                engine.write(ino, at, PIECE * 8)
            assert engine.dirty_bytes == limits.FLUSH_AHEAD_BYTES
            committer.changed()
            await trio.testing.wait_all_tasks_blocked()  # on the disk
            payload.tell(long_enough=True)
            async with committer._lock:
                assert engine.dirty_bytes == 0
            await trio.testing.wait_all_tasks_blocked()
            assert engine.dirty  # the commit is for later
            nursery.cancel_scope.cancel()

    with failpoints.counting() as counts:
        trio.run(main, clock=trio.testing.MockClock())
    assert (counts["flush.write"], counts.get("commit.begin", 0)) == (1, 0)
    assert committer.turns == 3  # before the change, on it, and after the flush
    engine.close()


def test_a_change_that_commits_nothing_makes_nobody_believe_that_it_did() -> None:
    """Such as a hold on no snapshot at all, while somebody waits for what is too much for the redo log."""
    stores = MemoryStores()
    meta, payload, redo = stores.stores()
    engine = Engine(meta, payload, redo=redo)
    ino = engine.mknod(1, b"file", 0o100644, uid=0, gid=0).ino
    engine.write(ino, 0, b"x" * (limits.REDO_PAYLOAD_BYTES_MAX + 1))
    committer = Committer(engine, failed=lambda reason: None)

    async def main() -> None:
        async with trio.open_nursery() as nursery, committer._lock:
            nursery.start_soon(committer.change, lambda: engine.marks.hold("tag", []))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(committer.harden)
            await trio.testing.wait_all_tasks_blocked()

    trio.run(main)
    engine.abandon()
    stores.crash()
    meta, payload, redo = stores.stores()
    again = Engine(meta, payload, redo=redo)
    assert again.lookup(1, b"file").size == limits.REDO_PAYLOAD_BYTES_MAX + 1
    again.close()


def test_a_collection_ends_with_what_was_there_when_it_began_however_much_is_removed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 1)
    monkeypatch.setattr(limits, "RECLAIM_BATCH_CHUNKS", 2)
    engine = Engine(*MemoryStores().stores()[:2], settings=Settings(txg_interval_s=1000.0))
    committer = Committer(engine, failed=lambda reason: None)

    def make(name: bytes) -> None:
        ino = engine.mknod(1, name, 0o100644, uid=0, gid=0).ino
        for index in range(8):
            engine.write(ino, index * len(NOISE), NOISE)
        engine.commit()

    for name in (b"first", b"second"):
        make(name)
    engine.snapshot("s")
    for name in (b"first", b"second"):
        engine.unlink(1, name)
    engine.destroy(["s"])

    step, numbers = engine.reclaimer.step, itertools.count()

    def outdone(*arguments: Backlog) -> bool:
        """For each batch of work that is done, four more."""
        more, name = step(*arguments), b"%d" % next(numbers)
        assert int(name) < 100, "the collection goes on without an end"
        make(name)
        engine.unlink(1, name)
        return more

    monkeypatch.setattr(engine.reclaimer, "step", outdone)
    with failpoints.counting() as counts:
        trio.run(committer.collect, clock=trio.testing.MockClock(autojump_threshold=0))
    assert counts["reclaim.batch"] == 2 * (4 + 1)  # the last of each file finds nothing
    assert not engine.destroyer.pending
    assert engine.reclaimer.punched_bytes >= 2 * 8 * len(NOISE)
    assert engine.reclaiming  # what came later is for later
    engine.close()


@pytest.mark.parametrize(("quiet", "pause_s"), [(True, BACKGROUND_PAUSE_S), (False, BUSY_PAUSE_S)])
def test_a_batch_of_the_background_is_rare_while_requests_come(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, pause_s: float
) -> None:
    monkeypatch.setattr(limits, "DESTROY_BATCH_ROWS", 2)
    engine = Engine(*MemoryStores().stores()[:2])
    for number in range(20):
        engine.mknod(1, b"%d" % number, 0o100644, uid=0, gid=0)
    engine.snapshot("s")
    for number in range(20):
        engine.unlink(1, b"%d" % number)
    engine.commit()
    engine.destroy(["s"])
    committer = Committer(engine, failed=lambda reason: None)
    committer.quiet = lambda: quiet
    began: list[float] = []
    step = engine.destroyer.step

    def timed() -> None:
        began.append(trio.current_time())
        step()

    monkeypatch.setattr(engine.destroyer, "step", timed)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            while engine.destroyer.pending:
                await trio.sleep(pause_s)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    pauses = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert len(pauses) >= 10
    assert sorted(pauses)[len(pauses) // 2] == pytest.approx(pause_s)
    engine.close()


def test_what_cannot_wait_ends_the_pause_of_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DESTROY_BATCH_ROWS", 1)
    engine = Engine(*MemoryStores().stores()[:2], settings=Settings(dirty_rows_max=20, txg_interval_s=3600))
    engine.mknod(1, b"file", 0o100644, uid=0, gid=0)
    engine.snapshot("s")
    engine.unlink(1, b"file")
    engine.commit()
    engine.destroy(["s"])
    committer = Committer(engine, failed=lambda reason: None)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            await trio.testing.wait_all_tasks_blocked()  # in the pause after the first batch
            before, commits = trio.current_time(), engine.commits
            while not engine.commit_due:
                engine.mknod(1, b"%d" % engine.dirty_rows, 0o100644, uid=0, gid=0)
            committer.changed()
            await trio.testing.wait_all_tasks_blocked()
            assert engine.commits == commits + 1
            assert trio.current_time() == before
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock())
    engine.close()


def test_a_posted_write_that_cannot_be_done_fails_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    engine = Engine(*MemoryStores().stores()[:2], settings=Settings())
    operations = Operations(engine, Committer(engine, failed=failures.append))
    operations.answers.start(unchecked=True)
    handle = operations.create_at_once(1, b"f", 0o100644, os.O_RDWR, 0, 0)
    assert operations.write_at_once(handle, 0, b"x") == 1
    assert operations.begin_posting()
    with Kernel(operations.answers) as kernel:
        assert kernel.write(handle & limits.INO_MAX, handle, b"yy") == 2

        def impossible(*arguments: object) -> int:
            raise CorruptionError("damaged")

        monkeypatch.setattr(engine, "write", impossible)
        operations.end_posting()
    assert failures == ["what had been answered could not be done: damaged"]
    engine.close()
