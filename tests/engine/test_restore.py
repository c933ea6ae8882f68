"""Restore against the plain model: any files and trees of a snapshot, to anywhere, replacing or not, in any history."""

from __future__ import annotations

import copy

import pytest

from tests.engine import test_rollback as rollbacks
from tests.engine import world as histories
from tests.engine.batches import small_batches
from tests.engine.conftest import Workspace
from tests.engine.plain import ROOT, Node, Plain
from tests.engine.test_rollback import TimeWorld
from tests.engine.world import NAMES, MemoryStores, Step
from tzfs import errors
from tzfs.engine.engine import Engine
from tzfs.engine.restore import Restore, Wanted
from tzfs.errors import Exists, InvalidArgument, NotFound

WEIGHTS = {**rollbacks.WEIGHTS, "restore": 14, "restore_broken_off": 3}


def find(model: Plain, ino: int) -> list[tuple[int, bytes]]:
    return [(i, name) for i, node in model.nodes.items() for name, child in node.entries.items() if child == ino]


def check(model: Plain, wanted: list[Wanted], *, force: bool) -> None:
    """What must be refused, by the plain model."""
    replaced = set()
    for w in wanted:
        node = model.nodes.get(w.directory)
        if node is None:
            raise errors.Stale("")
        if not node.is_dir or w.directory in model.orphans:
            raise NotFound("")
        if w.name in node.entries:
            if not force:
                raise Exists("")
            replaced.add(node.entries[w.name])
    for w in wanted:
        up = w.directory
        while up != ROOT:
            if up in replaced:
                raise InvalidArgument("")
            up = model.nodes[up].parent


def remove(model: Plain, directory: int, name: bytes) -> None:
    """A name and, of a directory, all below it."""
    ino = model.nodes[directory].entries.pop(name)
    node = model.nodes[ino]
    for inner in list(node.entries):
        remove(model, ino, inner)
    if node.is_dir:
        model.nodes[directory].nlink -= 1
    model._unname(ino)


def bring(model: Plain, engine: Engine, nodes: dict[int, Node], w: Wanted, made: dict[int, int]) -> None:
    """What is wanted, of a snapshot's nodes, under the numbers that the engine has given."""
    ino = engine.lookup(w.directory, w.name).ino
    if nodes[w.source].nlink > 1 and not nodes[w.source].is_dir:
        assert made.setdefault(w.source, ino) == ino, "two names of one file are one file again"
    model.nodes[w.directory].entries[w.name] = ino
    if ino in model.nodes:
        model.nodes[ino].nlink += 1
        return
    node = model.nodes[ino] = copy.deepcopy(nodes[w.source])
    node.parent, inner = w.directory, node.entries
    node.entries = {}
    node.nlink = 1 + node.is_dir  # and what is in it
    model.nodes[w.directory].nlink += node.is_dir
    for name, child in inner.items():
        bring(model, engine, nodes, Wanted(child, ino, name), made)


class RestoringWorld(TimeWorld):
    def apply(self, step: Step) -> None:
        if step[0].startswith("restore"):
            self._let_jobs_end()
        super().apply(step)

    def _wanted(self, a: int, b: int, c: int, d: int) -> tuple[str, list[Wanted]] | None:
        name = self._target(a)
        if name is None or not (sources := sorted(set(self.model.snapshots[name]) - {ROOT})):
            return None
        wanted = {}
        for i in range(1 + d % 3):
            directory, called = self._dir(c + 7 * i), NAMES[(d + i) % len(NAMES)]
            wanted[directory, called] = Wanted(sources[(b + i * c) % len(sources)], directory, called)
        return name, list(wanted.values())

    def do_restore(self, a: int, b: int, c: int, d: int) -> None:
        found = self._wanted(a, b, c, d)
        if found is None:
            return
        name, wanted = found
        force = (a + b) % 3 > 0
        restore = self.engine.restore(name, wanted, force=force)

        def real() -> None:
            try:
                while restore.step():
                    if c % 3 == 0:
                        assert self.engine.problems() == []
            except errors.TzfsError:
                while restore.cancel():
                    pass
                raise

        self._both(real, lambda: self._restored(name, wanted, force=force))

    def _restored(self, name: str, wanted: list[Wanted], *, force: bool) -> None:
        check(self.model, wanted, force=force)
        made: dict[int, int] = {}
        for w in wanted:
            if w.name in self.model.nodes[w.directory].entries:
                remove(self.model, w.directory, w.name)
        for w in wanted:
            bring(self.model, self.engine, self.model.snapshots[name], w, made)

    def do_restore_broken_off(self, a: int, b: int, c: int, d: int) -> None:
        found = self._wanted(a, b, c, d)
        if found is None:
            return
        name, wanted = found
        restore = self.engine.restore(name, wanted, force=True)
        try:
            for _ in range(b % 9):
                if not restore.step():
                    self._restored(name, wanted, force=True)
                    return
        except errors.TzfsError:
            pass
        if d % 2:
            self.engine.commit()
            self.committed = self.model.copy()
            self.do_crash(0, 0, 0, 0)
        else:
            while restore.cancel():
                assert self.engine.problems() == []


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr(histories, "World", RestoringWorld)


@pytest.mark.parametrize("first", range(0, 80, 10))
def test_any_history_with_restores_agrees_with_the_plain_model(first: int) -> None:
    for seed in range(first, first + 10):
        histories.run(histories.generate(seed, WEIGHTS), MemoryStores())


def restored(restore: Restore) -> Restore:
    while restore.step():
        pass
    return restore


def test_a_tree_comes_back_by_reference_with_all_that_it_has(ws: Workspace) -> None:
    engine = ws.engine
    top = engine.mkdir(1, b"top", 0o750, uid=3, gid=4).ino
    big = ws.file(b"big", b"b" * 300_000, top)
    engine.link(big, top, b"again")
    sparse = ws.file(b"sparse", b"", top)
    engine.write(sparse, 1 << 20, b"s" * 5000)
    engine.setxattr(sparse, b"user.long", b"v" * 6000)
    engine.setattr(big, mtime_ns=5, mode=0o4711)
    engine.symlink(top, b"link", b"big", uid=1, gid=1)
    engine.snapshot("a")
    for name in (b"big", b"again", b"sparse", b"link"):
        engine.unlink(top, name)
    engine.rmdir(1, b"top")
    ws.settle()
    segments = engine.payload.segments()
    restored(engine.restore("a", [Wanted(top, 1, b"top")]))
    assert engine.payload.segments() == segments
    back = engine.lookup(1, b"top")
    assert (back.mode & 0o7777, back.uid, back.gid, back.size) == (0o750, 3, 4, 4)
    file = engine.lookup(back.ino, b"big")
    assert file == engine.lookup(back.ino, b"again")
    assert (file.nlink, file.mtime_ns, file.mode & 0o7777, file.ino > big) == (2, 5, 0o4711, True)
    assert engine.read(file.ino, 0, 300_001) == b"b" * 300_000
    holes = engine.lookup(back.ino, b"sparse")
    assert engine.read(holes.ino, (1 << 20) - 5, 10_000) == bytes(5) + b"s" * 5000
    assert engine.getxattr(holes.ino, b"user.long") == b"v" * 6000
    engine.write(file.ino, 0, b"changed")
    assert engine.view("a").read(big, 0, 7) == b"bbbbbbb"


def test_what_is_there_is_replaced_only_when_asked(ws: Workspace) -> None:
    engine = ws.engine
    ino = ws.file(b"f", b"old" * 3000)
    engine.snapshot("a")
    engine.write(ino, 0, b"new")
    restore = engine.restore("a", [Wanted(ino, 1, b"f")])
    with pytest.raises(Exists, match="f exists"):
        restored(restore)
    while restore.cancel():
        pass
    assert engine.read(ino, 0, 3) == b"new"
    engine.referenced = lambda number: number == ino
    restored(engine.restore("a", [Wanted(ino, 1, b"f")], force=True))
    assert engine.read(engine.lookup(1, b"f").ino, 0, 3) == b"old"
    assert engine.read(ino, 0, 3) == b"new"  # whoever has it open goes on with it
    engine.write(ino, 0, b"still")
    engine.forget(ino)


def test_the_same_extents_twice_in_one_restore_are_copied(ws: Workspace) -> None:
    engine = ws.engine
    ino = ws.file(b"f", b"f" * 9000)
    engine.snapshot("a")
    restored(engine.restore("a", [Wanted(ino, 1, b"g"), Wanted(ino, 1, b"h")]))
    assert engine.lookup(1, b"g").ino != engine.lookup(1, b"h").ino
    engine.snapshot("b")
    g = engine.lookup(1, b"g").ino
    restored(engine.restore("b", [Wanted(ino, 1, b"i"), Wanted(g, 1, b"j")]))
    for name in (b"f", b"g", b"h", b"i", b"j"):
        assert engine.read(engine.lookup(1, name).ino, 0, 9001) == b"f" * 9000


def test_commits_between_its_steps_are_none_of_its_business(ws: Workspace) -> None:
    engine = ws.engine
    ino = ws.file(b"f", b"small")
    for i in range(9):
        engine.setxattr(ino, b"user.%d" % i, b"v" * (5000 if i % 3 == 0 else 5))
    engine.snapshot("a")
    restore = engine.restore("a", [Wanted(ino, 1, b"f")], force=True)
    while restore.step():
        ws.assert_sound()  # which commits
    back = engine.lookup(1, b"f").ino
    assert back != ino
    assert engine.read(back, 0, 10) == b"small"
    assert len(engine.listxattr(back)) == 9
