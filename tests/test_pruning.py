"""What the tables say of snapshots, held against a policy; and the snapshots that a writer takes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tzfs import marking
from tzfs.filesystem import FileSystem
from tzfs.format.keys import Epoch
from tzfs.format.records import Bookmark, Snapshot
from tzfs.management import Store, open_store
from tzfs.policies import prune
from tzfs.pruning import automatic_name, verdicts
from tzfs.tasks import PRUNE, SNAPSHOT, Task, Tasks

NOW_NS = 1_795_687_200_000_000_000  # 2026-11-26 10:00 UTC
HOUR_NS = 3600 * 10**9


def snapshot(number: int, *holds: str) -> Snapshot:
    created_ns = NOW_NS - (100 - number) * HOUR_NS
    return Snapshot(Epoch(number), bytes([number]) * 16, created_ns, 1, 1, 1, holds=dict.fromkeys(holds, 1))


def test_what_is_held_bookmarked_or_cloned_is_kept_and_says_so() -> None:
    snapshots = {f"auto-{i}": snapshot(i) for i in range(1, 6)} | {"auto-2": snapshot(2, "b", "a")}
    bookmarks = {
        "m": Bookmark(Epoch(3), bytes([3]) * 16, 0, 1),
        "of another of that epoch": Bookmark(Epoch(1), bytes([77]) * 16, 0, 1),
    }
    found = verdicts("1m", "auto-*", snapshots, bookmarks, {"auto-4": ["y", "x"]}, now_ns=NOW_NS)
    assert [(v.name, v.kept_by) for v in found] == [
        ("auto-1", None),
        ("auto-2", "held: a, b"),
        ("auto-3", "bookmarked: #m"),
        ("auto-4", "origin of x, y"),
        ("auto-5", "1m, 1 of 1"),
    ]


def test_an_automatic_name_is_the_time_in_utc_and_never_one_that_is_taken() -> None:
    first = automatic_name(NOW_NS + 999_999_999, [])
    assert first == "auto-2026-11-26T10:00:00Z"
    second = automatic_name(NOW_NS, [first])
    assert second == f"{first}-2"
    assert automatic_name(NOW_NS, [first, second]) == f"{first}-3"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as store:
        store.create("ws")
        yield store


def take(store: Store, task: Task = SNAPSHOT) -> str:
    """One run of the task, by a program that has the filesystem open."""
    with store.open("ws") as fs:
        info = store.get("ws")
        return Tasks(fs._engine, lambda name: info.property(name).parsable, info.state).run(task).said


def test_a_snapshot_is_taken_by_itself_when_something_has_changed_and_only_then(store: Store) -> None:
    said = take(store)
    assert said.startswith("took auto-2")
    assert take(store) == f"nothing has changed since {said.removeprefix('took ')}"
    changes: list[Callable[[FileSystem], object]] = [
        lambda fs: fs.write_text("a", "1"),
        lambda fs: fs.write_text("a", "2"),
        lambda fs: fs.chmod("a", 0o600),
        lambda fs: fs.rename("a", "b"),
        lambda fs: fs.unlink("b"),
    ]
    for change in changes:
        with store.open("ws") as fs:
            change(fs)
        assert take(store).startswith("took auto-2")
        assert take(store).startswith("nothing has changed since auto-2")
    with store.open("ws") as fs:
        fs.write_text("gone again", "")
        fs.unlink("gone again")
        fs.snapshot("mine")
    assert take(store) == "nothing has changed since mine"
    with store.open("ws") as fs:
        assert len([name for name in fs.snapshots() if name.startswith("auto-")]) == 6
        assert fs._engine.problems() == []


def test_snapshots_are_taken_when_they_are_due(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_text("a", "1")
        fs.sync()
    assert store.snapshots("ws") == []  # the default: never
    store.set_property("ws", "snapshot_interval", "1ms")
    with store.open("ws") as fs:
        fs.write_text("a", "2")
    assert [s.name.snapshot[:6] for s in store.snapshots("ws")] == ["auto-2"]


def names(store: Store) -> list[str]:
    return [info.name.snapshot for info in store.snapshots("ws")]


def test_what_the_policy_does_not_keep_is_destroyed_but_for_what_is_held_bookmarked_or_read(store: Store) -> None:
    with store.open("ws") as fs:
        for number in range(6):
            fs.write_text("a", str(number))
            fs.snapshot(f"auto-{number}")
    assert take(store, PRUNE) == "all 6 snapshots are kept"
    store.set_property("ws", "retention", "1w(keep=1)")
    marking.hold(store, "keep", ["ws@auto-1"])
    marking.bookmark(store, "ws@auto-2", "#mark")
    with store.open_snapshot("ws@auto-3") as then:
        marking.rename(store, "ws@auto-3", "@auto-three")
        assert take(store, PRUNE) == "destroyed 1 of 6 snapshots"
        assert then.read_text("a") == "3"
    assert names(store) == ["auto-0", "auto-1", "auto-2", "auto-three", "auto-5"]
    assert take(store, PRUNE) == "destroyed 1 of 5 snapshots"
    assert names(store) == ["auto-0", "auto-1", "auto-2", "auto-5"]
    store.clone("ws@auto-0", "clone")
    store.clone("ws@auto-2", "other")
    marking.release(store, "keep", ["ws@auto-1"])
    marking.drop_bookmark(store, "ws#mark")
    assert [(v.name, v.kept_by) for v in prune(store, "ws", dry_run=True)[0]] == [
        ("auto-0", "origin of clone"),
        ("auto-1", None),
        ("auto-2", "origin of other"),
        ("auto-5", "it is the newest"),
    ]
    assert take(store, PRUNE) == "destroyed 1 of 4 snapshots"
    store.destroy("other")
    assert [v.name for v in prune(store, "ws")[0] if v.kept_by is None] == ["auto-2"]
    assert names(store) == ["auto-0", "auto-5"]
    with store.open("clone") as fs:
        assert fs.read_text("a") == "0"
    assert store.check("ws").found == 0


def test_snapshots_are_pruned_when_it_is_due(store: Store) -> None:
    with store.open("ws") as fs:
        for name in ("auto-1", "auto-2", "auto-3"):
            fs.write_text("a", name)
            fs.snapshot(name)
    store.set_property("ws", "retention", "1w")
    store.set_property("ws", "prune_interval", "0")
    store.open("ws").close()
    assert len(names(store)) == 3
    store.set_property("ws", "prune_interval", "1ms")
    store.open("ws").close()
    assert names(store) == ["auto-1", "auto-3"]
