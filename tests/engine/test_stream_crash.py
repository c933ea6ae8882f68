"""A process dies at every step of a receive, on disk: the snapshot is there, or nothing of it is; and it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.dying import copied, died
from tests.engine.histories import everything
from tests.engine.streams import into, sent, sent_on, tree
from tzfs import failpoints, limits
from tzfs.engine.engine import Engine, Settings
from tzfs.errors import Busy
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.segments import Segments

GUID = bytes(range(16))
HITS = 3  # of each point: what comes later is more of the same
POINTS = frozenset(name for name in failpoints.KNOWN if name.startswith("receive."))


class Disk:
    """An engine on a folder, closed at the end or broken off."""

    def __init__(self, folder: Path) -> None:
        self.meta = LmdbMeta(folder / "meta")
        self.payload = Segments(folder / "segments", guid=GUID)
        settings = Settings(dirty_bytes_max=16 * limits.KIB, dirty_rows_max=40)
        self.engine = Engine(self.meta, self.payload, settings=settings, receiving=True)

    def __enter__(self) -> Engine:
        return self.engine

    def __exit__(self, *exception: object) -> None:
        self.engine.close()
        self.payload.close()
        self.meta.close()


@dataclass
class Stage:
    """A filesystem to send from, and folders that have its first snapshot."""

    source: Engine
    stream: bytes
    copy: Callable[[str], Path]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    fs = everything(monkeypatch).fs
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 4)
    source = Engine(fs.meta, fs.payload)
    source.snapshot("fourth")
    original = tmp_path / "original"
    original.mkdir()
    meta = LmdbMeta(original / "meta", create=True)
    Engine.format(meta, guid=GUID, now_ns=1)
    meta.close()
    Segments(original / "segments", guid=GUID, create=True).close()
    with Disk(original) as engine:
        into(engine, sent(source, "first"))

    def copy(name: str) -> Path:
        return copied(original, tmp_path / name)

    return Stage(source, sent(source, "fourth", "first", recursive=True), copy)


def received(folder: Path, stream: bytes, *, resumable: bool) -> None:
    """In a child: it may die."""
    with Disk(folder) as engine:
        into(engine, stream, resumable=resumable)


def given_up(folder: Path) -> None:
    with Disk(folder) as engine:
        engine.receiver().cancel()


@pytest.mark.parametrize("resumable", [False, True])
def test_after_a_crash_at_any_step_a_receive_is_whole_or_nothing_and_goes_on(stage: Stage, *, resumable: bool) -> None:
    with failpoints.counting() as counts:
        received(stage.copy("counted"), stage.stream, resumable=resumable)
    points = {
        p: n for p, n in counts.items() if p.split(".")[0] in ("receive", "staging", "commit", "segment", "journal")
    }
    assert points.keys() >= POINTS or not resumable
    went_on = 0
    for point, after in [(p, n) for p, times in points.items() for n in {*range(min(times, HITS)), times - 1}]:
        folder = stage.copy(f"{point}-{after}")
        assert died(partial(received, folder, stage.stream, resumable=resumable), point, after), (
            point,
            after,
        )
        with Disk(folder) as engine:
            names = list(engine.snapshots())
            assert names == ["first", "second", "third", "fourth"][: len(names)]
            for name in names:
                assert tree(engine.view(name)) == tree(stage.source.view(name))
            assert engine.problems() == []
            left = engine.receiver().partial
            assert left is None or resumable
            if left is not None:
                went_on += 1
                into(engine, sent_on(stage.source, left))
            elif names[-1] != "fourth":
                assert engine.unchanged() == names[-1]
                into(engine, sent(stage.source, "fourth", names[-1], recursive=True))
            for name in ("first", "second", "third", "fourth"):
                assert tree(engine.view(name)) == tree(stage.source.view(name))
            assert engine.problems() == []
            engine.mkdir(1, b"usable", 0o755, uid=0, gid=0)
        shutil.rmtree(folder)
    assert bool(went_on) is resumable


def test_a_receive_that_was_cut_by_a_crash_is_given_up_whole(stage: Stage) -> None:
    folder = stage.copy("cut")
    assert died(partial(received, folder, stage.stream, resumable=True), "staging.flip", 1)
    meta, payload = LmdbMeta(folder / "meta"), Segments(folder / "segments", guid=GUID)
    with pytest.raises(Busy):
        Engine(meta, payload)
    payload.close()
    meta.close()
    for after in range(3):
        died(partial(given_up, folder), "staging.withdraw", after)
    with Disk(folder) as engine:
        assert engine.receiver().partial is None
        assert engine.problems() == []
        assert list(engine.snapshots()) == ["first", "second"]
        into(engine, sent(stage.source, "fourth", "second"))
        assert tree(engine.view("fourth")) == tree(stage.source.view("fourth"))
