"""A process dies at every step of what the library does with a filesystem; the next one finds it done or not done.

The steps are those that a run without a crash counts, from the opening of the store on.  (A mount's own steps:
tests/mount/test_lifecycle.py; a command's on the catalog: tests/catalog/test_crash.py; every step within commits:
tests/engine/test_crash.py.)  The last test here sees to it that together these suites die at every failpoint there is.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import tzfs
from tests import test_applying as apply_suite
from tests import test_clones as clone_suite
from tests import test_leaks
from tests.catalog import test_crash as catalog_suite
from tests.dying import copied, died
from tests.engine import test_crash as engine_suite
from tests.engine import test_stream_crash as stream_suite
from tests.mount import test_lifecycle as mount_suite
from tests.test_leaks import CONTENTS, crash
from tzfs import failpoints
from tzfs.lifecycle import State
from tzfs.management import Store, open_store

HITS = 2  # of each point in one act: what comes later is more of the same
POINTS = frozenset(
    name
    for name in failpoints.KNOWN
    if name.split(".")[0] in ("writer", "reader", "view", "lease") or name == "segment.folder"
)

ACTS: dict[str, Callable[[Store], object]] = {
    **test_leaks.ACTS,
    "archive": lambda store: store.archive("ws"),
    "activate": lambda store: store.activate("ws"),
    "destroy": lambda store: store.destroy("ws", recursive=True),
}
DONE: dict[str, Callable[[Store], bool]] = {
    "create": lambda store: "new" in names(store),
    "snapshot": lambda store: "new" in [s.name.snapshot for s in store.snapshots("ws")],
    "archive": lambda store: state(store) is State.ARCHIVED,
    "activate": lambda store: state(store) is State.ACTIVE,
    "destroy": lambda store: "ws" not in names(store),
}


def names(store: Store) -> list[str]:
    return [str(f.name) for f in store.filesystems()]


def state(store: Store) -> State:
    return store.catalog.get("ws").state


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with open_store(path) as store:
        store.create("ws")
        with store.open("ws") as fs:
            fs.write_bytes("/file", CONTENTS)
        store.snapshot("ws@s")
    return path


def do(path: Path, act: str) -> None:
    with open_store(path) as store:
        ACTS[act](store)


def assert_sound(store: Store, *, logged: bool) -> None:
    """Everything of the filesystem that was there before the act."""
    if state(store) is State.ARCHIVED:
        store.activate("ws")
    with store.open_snapshot("ws@s") as view:
        assert view.read_bytes("/file") == CONTENTS
    with store.open("ws") as fs:
        assert fs.read_bytes("/file") == CONTENTS
        if logged:
            assert [fs.read_bytes(f"/logged-{i}") for i in range(3)] == [b"x" * 5000] * 3
        assert fs._engine.problems() == []


def fresh(original: Path, path: Path, act: str) -> Path:
    """A store as the act wants it."""
    copied(original, path)
    with open_store(path) as store:
        if act in ("read only", "activate"):
            store.archive("ws")
    if act.endswith("after a crash"):
        crash(path)
    return path


def hits(path: Path, act: str) -> dict[str, int]:
    """How often the act passes each point; it is done then."""
    with failpoints.counting() as counts:
        do(path, act)
    return dict(counts)


@pytest.mark.parametrize("act", list(ACTS))
def test_after_a_crash_at_any_step_all_is_there_and_trying_again_works(
    original: Path, tmp_path: Path, act: str
) -> None:
    passed = hits(fresh(original, tmp_path / "counted", act), act)
    seen: set[bool] = set()
    for point, nth in [(point, n) for point, times in passed.items() for n in range(min(times, HITS))]:
        path = fresh(original, tmp_path / f"{point}-{nth}", act)
        assert died(partial(do, path, act), point, nth), (point, nth)
        with open_store(path) as store:
            done = act in DONE and DONE[act](store)
            seen.add(done)
            if not done:
                ACTS[act](store)
            assert act not in DONE or DONE[act](store)
            if act != "destroy":
                assert_sound(store, logged=act.endswith("after a crash"))
    assert seen == ({True, False} if act in DONE else {False})


def test_the_acts_pass_every_point_that_is_this_suites(original: Path, tmp_path: Path) -> None:
    passed = {point for act in ACTS for point in hits(fresh(original, tmp_path / act, act), act)}
    assert passed >= POINTS


def test_every_failpoint_there_is_is_died_at_by_a_suite() -> None:
    for module in pkgutil.walk_packages(tzfs.__path__, "tzfs."):
        if module.name.rpartition(".")[2] not in ("__main__", "build"):
            importlib.import_module(module.name)
    declared = {name for name in failpoints.KNOWN if not name.startswith("test.")}
    of_engine = set(engine_suite.POINTS) | clone_suite.POINTS | stream_suite.POINTS | set(apply_suite.POINTS)
    assert declared == POINTS | catalog_suite.POINTS | of_engine | mount_suite.CRASHED_AT
