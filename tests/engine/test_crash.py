"""The process dies, or the disk answers an error, at every point of opening, flushing, committing, snapshots and
background work; what is found afterwards is a commit, and none before the last one that was acknowledged.

A child runs a fixed workload on disk, with one failpoint armed, and says after each step that it is durable.  The
parent opens what it left behind, counts everything again, compares with the states the workload goes through, and does
the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.batches import small_batches
from tzfs import failpoints, limits
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.txg import SLACK_BYTES
from tzfs.errors import TzfsError
from tzfs.store import redo
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.redo import RedoLog
from tzfs.store.segments import Segments

GUID = bytes(range(16))
ELSEWHERE = {"meta.create.folder", "meta.create.sync", "segment.folder"}  # of making a filesystem: tests/test_crash.py
PARTS = (
    "flush",
    "commit",
    "snapshot",
    "bookmark",
    "destroy",
    "reclaim",
    "punch",
    "open",
    "segment",
    "meta",
    "redo",
    "staging",
    "compact",
    "move",
    "journal",
)
POINTS = sorted(name for name in failpoints.KNOWN if name.split(".")[0] in PARTS and name not in ELSEWHERE)
SETTINGS = Settings(dirty_bytes_max=64 * limits.KIB)
SEGMENT_BYTES = (
    2 * SETTINGS.dirty_bytes_max + SLACK_BYTES + 128 * limits.KIB
)  # the reserve, and room for one large file
State = dict[str, str]  # path -> first bytes and size; "@name" for each snapshot


def small(patch: pytest.MonkeyPatch) -> None:
    """So that the workload's files are large enough for background work, and its groups for the log to grow."""
    small_batches(patch, staging=2)
    patch.setattr(redo, "LOG_BYTES_FIRST", limits.PAGE_BYTES)


def workload(engine: Engine) -> Iterator[State]:
    """Steps, each ended by a commit; yields the state that is durable then.  Can be begun again at any of them."""
    names = {name for name, _, _ in engine.readdir(1, b"", 1000)}
    for step in range(10):
        name = b"file-%d" % step
        if name not in names:
            ino = engine.mknod(1, name, 0o100644, uid=0, gid=0).ino
            engine.write(ino, 0, b"%d" % step * 3000)
        if step == 0 and b"moves" not in names:
            engine.write(engine.mknod(1, b"moves", 0o100644, uid=0, gid=0).ino, 0, b"M" * 9000)
        if step % 3 == 1 and (big := b"big-%d" % step) not in names:
            ino = engine.mknod(1, big, 0o100644, uid=0, gid=0).ino
            for chunk in range(5):
                engine.write(ino, chunk << 17, b"B" * 9000)
        if step % 3 == 2 and (big := b"big-%d" % (step - 1)) in {n for n, _, _ in engine.readdir(1, b"big", 1000)}:
            engine.unlink(1, big)
        if step == 6 and b"file-7" not in names:
            yield from there_and_back(engine)
        if step % 2 == 0:
            engine.absorb()
        if step % 4 == 3 and f"s{step}" not in engine.snapshots():
            engine.snapshot(f"s{step}")
        if step % 4 == 3:
            mark(engine, f"s{step}")
        elif step == 9 and "s7" in engine.snapshots():
            if engine.snapshots()["s7"].holds:
                engine.marks.release("keep", ["s7"])
            engine.destroy(["s7"])  # it alone sees a large file
        elif step % 2:
            engine.commit()
        else:
            engine.harden()
        for _ in range(3 if step == 9 else 1):  # freed, punched, unlinked
            while engine.background_step():
                pass
            if step == 7:
                for job in engine.mover.steps(frozenset(engine.payload.segments()) - {engine.payload.filling}):
                    if job is not None:
                        engine.commit()
                        job()()
            if step in (4, 6, 7):
                engine.collect()
            if step in (4, 6):
                engine.release_log()
                copy = engine.compactor.begin()
                assert copy is not None
                copy.run()
                engine.compactor.end(copy)
            if step in (5, 9):
                engine.commit()
            else:
                engine.harden()
        yield state_of(engine)


def there_and_back(engine: Engine) -> Iterator[State]:
    """Changes after a snapshot, a rollback that is broken off, and one with which a newer snapshot goes."""
    if "back" not in engine.snapshots():
        ino = engine.mknod(1, b"scratch-a", 0o100644, uid=0, gid=0).ino
        engine.write(ino, 0, b"old" * 3000)
        engine.snapshot("back")
        yield state_of(engine)
    engine.write(engine.lookup(1, b"scratch-a").ino, 0, b"new" * 3000)
    if engine.find(1, b"scratch-b") is None:
        engine.mknod(1, b"scratch-b", 0o100644, uid=0, gid=0)
    engine.commit()
    yield state_of(engine)
    for broken_off in (True, False):
        if not broken_off and "forth" not in engine.snapshots():
            engine.snapshot("forth")
            yield state_of(engine)
        rollback = engine.rollback("back", () if broken_off else ["forth"])
        rollback.step()
        engine.commit()
        while rollback.cancel() if broken_off else rollback.step():
            engine.commit()
        engine.harden()
        yield state_of(engine)


def mark(engine: Engine, snapshot: str) -> None:
    """A hold and a bookmark of the snapshot; the bookmark of the one before it goes, with what it has kept."""
    if not engine.snapshots()[snapshot].holds:
        engine.marks.hold("keep", [snapshot])
    if older := engine.bookmarks.all().keys() - {snapshot}:
        engine.bookmarks.destroy(older)
    if snapshot not in engine.bookmarks.all():
        engine.bookmarks.create(snapshot, snapshot)


def state_of(engine: Engine) -> State:
    out = {}
    for name, inode in engine.readdir_plus(1, b"", 1000):
        out[name.decode()] = f"{engine.read(inode.ino, 0, 3).decode()} {inode.size}"
    for snapshot, record in engine.snapshots().items():
        out[f"@{snapshot}"] = str(record.inodes)
        out |= {f"@{snapshot} held by {tag}": "" for tag in record.holds}
    return out


def open_engine(folder: Path) -> tuple[Engine, RedoLog, Segments, LmdbMeta]:
    fresh = not (folder / "meta").exists()
    meta = LmdbMeta(folder / "meta", create=fresh)
    try:
        if fresh:
            Engine.format(meta, guid=GUID, now_ns=1)
        payload = Segments(folder / "segments", guid=GUID, create=fresh, segment_bytes_max=SEGMENT_BYTES)
        try:
            log = RedoLog(folder / "redo", GUID)
            try:
                return Engine(meta, payload, redo=log, settings=SETTINGS), log, payload, meta
            except BaseException:
                log.close()
                raise
        except BaseException:
            payload.close()
            raise
    except BaseException:
        meta.close()
        raise


def close(engine: Engine, log: RedoLog, payload: Segments, meta: LmdbMeta) -> None:
    try:
        if engine.failed is None:
            engine.close()
        else:
            engine.abandon()
    finally:
        log.close()
        payload.close()
        meta.close()


def child(folder: Path) -> None:
    """The program that dies: prints each durable state."""
    small(pytest.MonkeyPatch())
    opened = open_engine(folder)
    for state in workload(opened[0]):
        print(json.dumps(state), flush=True)
    close(*opened)


def states(folder: Path) -> list[State]:
    """The states that the workload goes through when nothing happens."""
    opened = open_engine(folder)
    found = [state_of(opened[0]), *workload(opened[0])]
    close(*opened)
    return found


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        return states(tmp_path_factory.mktemp("expected"))


def prepare(folder: Path) -> None:
    """A filesystem with a segment, and a step that only the redo log has, so that opening has something to do again."""
    opened = open_engine(folder)
    steps = workload(opened[0])
    for _ in range(3):
        next(steps)
    opened[0].abandon()
    close(*opened)


def check_and_finish(folder: Path, said: list[State], expected: list[State]) -> None:
    """What is there is a state of the workload, none before the last one said; and the rest can still be done."""
    opened = open_engine(folder)
    try:
        engine = opened[0]
        assert engine.problems() == []
        found = state_of(engine)
        begun = {key for state in expected for key in state}
        assert set(found) <= begun
        if said:
            missing = {
                k: v for k, v in said[-1].items() if found.get(k) != v and not k.startswith(("big-", "scratch-", "@s7"))
            }
            assert not missing, "acknowledged, and gone"
        for name, value in found.items():
            assert any(state.get(name) == value for state in expected), f"{name} is neither old nor new"
        *_, last = workload(engine)
        assert {k: v for k, v in last.items() if k[0] != "@"} == {k: v for k, v in expected[-1].items() if k[0] != "@"}
        assert {k for k in last if k[0] == "@"} == {k for k in expected[-1] if k[0] == "@"}
        assert engine.problems() == []
        assert engine.drift == []
    finally:
        close(*opened)


@pytest.mark.parametrize("nth", [1, 4])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_leaves_a_commit(tmp_path: Path, expected: list[State], point: str, nth: int) -> None:
    prepare(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", "import sys, pathlib; from tests.engine import test_crash as t; "
         "t.child(pathlib.Path(sys.argv[1]))", str(tmp_path)],
        env={**os.environ, "TZFS_FAILPOINTS": f"{point}=crash@{nth}", "PYTHONPATH": os.getcwd()},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == failpoints.CRASH_STATUS or (run.returncode == 0 and nth > 1), run.stderr
    said = [json.loads(line) for line in run.stdout.splitlines()]
    check_and_finish(tmp_path, said, expected)


def test_a_delay_at_every_step_changes_nothing(tmp_path: Path, expected: list[State]) -> None:
    prepare(tmp_path)
    for point in POINTS:
        failpoints.arm(point, "delay:0.001")
    try:
        with failpoints.counting() as counts:
            check_and_finish(tmp_path, [], expected)
    finally:
        failpoints.disarm_all()
    assert set(counts) >= set(POINTS)


@pytest.mark.parametrize("action", ["error:EIO", "error:ENOSPC"])
@pytest.mark.parametrize("point", POINTS)
def test_an_error_leaves_a_commit_and_everything_given_back(
    tmp_path: Path, expected: list[State], point: str, action: str
) -> None:
    prepare(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    said: list[State] = []
    failpoints.arm(point, action)
    try:
        opened = open_engine(tmp_path)
    except (TzfsError, OSError):
        failpoints.disarm_all()
    else:
        try:
            said.extend(workload(opened[0]))
        except (TzfsError, OSError):
            pass
        finally:
            failpoints.disarm_all()
            close(*opened)
    assert sorted(os.listdir("/proc/self/fd")) == before
    check_and_finish(tmp_path, said, expected)
