"""Rollback against the plain model: to any snapshot, over any history, broken off, crashed, and rolled back itself."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests.engine import world as histories
from tests.engine.batches import small_batches
from tests.engine.conftest import Workspace
from tests.engine.plain import copied
from tests.engine.world import DiskStores, MemoryStores, Step, World
from tzfs.engine.rollback import Rollback
from tzfs.errors import Busy, NotFound, Stale
from tzfs.rolling_back import newer_than

WEIGHTS = {**histories.WEIGHTS, "snapshot": 10, "rollback": 8, "broken_off": 3, "crashed": 2}


class TimeWorld(World):
    """A world in which it is also rolled back.  `old_orphans`: those that there were at each snapshot."""

    def __init__(self, stores: MemoryStores | DiskStores) -> None:
        self.old_orphans: dict[str, set[int]] = {}
        super().__init__(stores)

    def apply(self, step: Step) -> None:
        if step[0] in ("rollback", "broken_off", "crashed"):
            self._let_jobs_end()
        super().apply(step)

    def do_snapshot(self, a: int, b: int, c: int, d: int) -> None:
        super().do_snapshot(a, b, c, d)
        for name in self.model.snapshots:
            self.old_orphans.setdefault(name, set(self.model.orphans))

    def retitled(self, old: str, new: str) -> None:
        self.old_orphans[new] = self.old_orphans.pop(old)

    def destroyed(self, names: list[str]) -> None:
        super().destroyed(names)
        for name in names:
            del self.old_orphans[name]

    def _rolled_back(self, name: str) -> None:
        model = self.model
        kept = {ino: model.nodes[ino] for ino in model.orphans & self.old_orphans[name]}
        model.nodes = copied(model.snapshots[name]) | kept
        model.orphans = set(kept)
        model.open &= set(model.nodes)
        for orphans in self.old_orphans.values():  # what has a name again, and then loses it, is another orphan
            orphans -= model.nodes.keys() - kept.keys()

    def _target(self, a: int) -> str | None:
        names = sorted(self.model.snapshots)
        return names[a % len(names)] if names else None

    def do_rollback(self, a: int, b: int, c: int, d: int) -> None:
        """In every third case the newer snapshots go with it."""
        name = self._target(a)
        if name is not None:
            going = list(newer_than(self.engine.snapshots(), name)) if d % 3 == 0 else []
            if any(self.model.holds.get(each) for each in going):
                with pytest.raises(Busy):
                    self.engine.rollback(name, going)
                return
            rollback = self.engine.rollback(name, going)
            while rollback.step():
                if c % 3 == 0:
                    assert self.engine.problems() == []
            self._rolled_back(name)
            self.destroyed(going)

    def _part(self, a: int, b: int) -> tuple[Rollback, int] | None:
        """A rollback of which a few steps are done; how many orphans it has ended, which stays so."""
        name = self._target(a)
        if name is None:
            return None
        rollback = self.engine.rollback(name)
        for _ in range(b % 12):
            if not rollback.step():
                self._rolled_back(name)
                return None
        for ino in sorted(self.model.orphans - {int(o) for o in self.engine.orphan_inodes()}):
            self.model.forget(ino)
        return rollback, b

    def do_broken_off(self, a: int, b: int, c: int, d: int) -> None:
        part = self._part(a, b)
        if part is not None:
            if c % 2:
                assert self.engine.problems() == []
            while part[0].cancel():
                assert self.engine.problems() == []

    def do_crashed(self, a: int, b: int, c: int, d: int) -> None:
        part = self._part(a, b)
        if part is not None and c % 2:
            self.engine.commit()
        if part is not None:
            self.committed = self.model.copy() if c % 2 or b % 12 else self.committed
            self.do_crash(0, 0, 0, 0)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr(histories, "World", TimeWorld)


@pytest.mark.parametrize("first", range(0, 80, 10))
def test_any_history_with_rollbacks_agrees_with_the_plain_model(first: int) -> None:
    for seed in range(first, first + 10):
        histories.run(histories.generate(seed, WEIGHTS), MemoryStores())


def test_rolling_back_brings_everything_back_and_newer_snapshots_stay(ws: Workspace) -> None:
    engine = ws.engine
    kept, gone = ws.file(b"kept", b"k" * 9000), ws.file(b"gone", b"g" * 300_000)
    engine.setxattr(kept, b"user.long", b"v" * 6000)
    engine.snapshot("a")
    engine.write(kept, 4096, b"K" * 10)
    engine.setxattr(kept, b"user.long", b"w" * 6000)
    engine.unlink(1, b"gone")
    made = ws.file(b"made", b"m" * 5000)
    engine.rename(1, b"kept", 1, b"moved")
    engine.snapshot("b")
    used = engine.payload.segments()
    rolled(engine.rollback("a"))
    assert [name for name, _, _ in engine.readdir(1, b"", 10)] == [b"gone", b"kept"]
    assert (engine.read(kept, 0, 9001), engine.read(gone, 0, 300_001)) == (b"k" * 9000, b"g" * 300_000)
    assert engine.getxattr(kept, b"user.long") == b"v" * 6000
    with pytest.raises(Stale):
        engine.inode(made)
    assert engine.payload.segments() == used  # by reference: no payload was written
    rolled(engine.rollback("b"))
    assert [name for name, _, _ in engine.readdir(1, b"", 10)] == [b"made", b"moved"]
    assert engine.read(made, 0, 9000) == b"m" * 5000
    assert engine.mknod(1, b"new", 0o100644, uid=0, gid=0).ino > made
    assert list(engine.snapshots()) == ["a", "b"]


def rolled(rollback: Rollback) -> Rollback:
    while rollback.step():
        pass
    return rollback


def test_nothing_is_done_where_nothing_has_changed(ws: Workspace) -> None:
    ws.file(b"f", b"f" * 5000)
    ws.engine.snapshot("a")
    epoch = ws.engine.counters.epoch
    assert rolled(ws.engine.rollback("a")).staged == 0
    assert ws.engine.counters.epoch == epoch


def test_changes_are_refused_while_it_stages_and_reads_go_on(ws: Workspace) -> None:
    ino = ws.file(b"f", b"f" * 5000)
    ws.engine.snapshot("a")
    ws.engine.write(ino, 0, b"F")
    ws.engine.commit()
    rollback = ws.engine.rollback("a")
    assert rollback.step()
    for change in (
        lambda: ws.engine.write(ino, 0, b"!"),
        lambda: ws.engine.unlink(1, b"f"),
        lambda: ws.engine.mkdir(1, b"d", 0o755, uid=0, gid=0),
        lambda: ws.engine.setattr(ino, mode=0o600),
        lambda: ws.engine.snapshot("b"),
        lambda: ws.engine.destroy(["a"]),
    ):
        with pytest.raises(Busy):
            change()
    assert ws.engine.read(ino, 0, 2) == b"Ff"
    while rollback.step():
        pass
    assert ws.engine.read(ino, 0, 2) == b"ff"
    ws.engine.write(ino, 0, b"!")


def test_there_must_be_such_a_snapshot(ws: Workspace) -> None:
    with pytest.raises(NotFound, match="nothing"):
        ws.engine.rollback("nothing")


def test_an_extent_of_too_many_lifetimes_is_copied(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tzfs.engine.staging.LIFETIMES_MAX", 3)
    ino = ws.file(b"f", b"f" * 9000)
    ws.engine.snapshot("full")
    for i in range(6):
        ws.engine.write(ino, 0, b"%d" % i * 9000)
        ws.engine.snapshot(f"s{i}")
        rolled(ws.engine.rollback("full"))
        assert ws.engine.read(ino, 0, 9000) == b"f" * 9000
        ws.assert_sound()
        ws.engine.snapshot(f"r{i}")


def test_newer_snapshots_go_in_the_commit_that_rolls_back(ws: Workspace) -> None:
    ino = ws.file(b"f", b"a" * 5000)
    for name in "abc":
        ws.engine.snapshot(name)
        ws.engine.write(ino, 0, name.encode() * 9000)
    ws.engine.commit()
    rollback = ws.engine.rollback("a", ["b", "c"])
    while not rollback.staged:
        assert rollback.step()
    assert [*ws.engine.snapshots()] == ["a", "b", "c"]
    view, commits = ws.engine.view("b"), ws.engine.commits
    rolled(rollback)
    assert ws.engine.commits == commits + 1
    assert [*ws.engine.snapshots()] == ["a"]
    with pytest.raises(Stale):
        view.inode(1)
    while ws.engine.background_step():
        pass
    assert ws.engine.problems() == []
    assert ws.engine.read(ino, 0, 9000) == b"a" * 5000


def test_what_comes_to_be_used_before_the_flip_takes_the_rollback_back(ws: Workspace) -> None:
    ino = ws.file(b"f", b"a")
    ws.engine.snapshot("a")
    ws.engine.write(ino, 0, b"b")
    ws.engine.snapshot("b")
    rollback = ws.engine.rollback("a", ["b"])
    while not rollback.staged:
        assert rollback.step()
    ws.engine.destroyer.readers = lambda: nullcontext([{"pid": 1, "epoch": ws.engine.snapshots()["b"].epoch}])
    with pytest.raises(Busy, match="pid 1"):
        rolled(rollback)
    while rollback.cancel():
        pass
    assert [*ws.engine.snapshots()] == ["a", "b"]
    assert ws.engine.read(ino, 0, 1) == b"b"
    with pytest.raises(Busy, match="pid 1"):
        ws.engine.rollback("a", ["b"])
    assert ws.engine.problems() == []


def test_newer_snapshots_go_also_where_nothing_has_changed(ws: Workspace) -> None:
    for name in "ab":
        ws.engine.snapshot(name)
    rolled(ws.engine.rollback("a", ["b"]))
    assert [*ws.engine.snapshots()] == ["a"]
