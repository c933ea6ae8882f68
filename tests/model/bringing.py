"""Steps of the model's world by which much comes at once: clones applied, streams received, commands remembered and
undone.

Where a step is several changes one after the other, each is `reached` by itself, so that whoever records a history can
say where it may be found after a cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tests.engine.plain import ROOT, Node, copied
from tests.engine.streams import into, sent, sent_on
from tests.engine.test_restore import RestoringWorld
from tests.engine.world import MemoryStores, World
from tests.model.inheriting import ClonedInMemory
from tests.model.merging import Tree, aspect, clone_tree, merged, tree_of
from tzfs import rolling_back, runs
from tzfs.engine.apply import Apply, Theirs
from tzfs.engine.engine import Engine
from tzfs.engine.merge import Side
from tzfs.engine.moments import Moments
from tzfs.errors import BadStream, Busy, NotSupported, QuotaExceeded
from tzfs.format.records import Snapshot
from tzfs.receiving import Cut

if TYPE_CHECKING:
    from tests.engine.world import DiskStores

BRINGING_WEIGHTS: Final = {"apply": 4, "apply_broken_off": 1, "receive": 3, "run": 4, "undo": 3}
ELSEWHERE: Final = (  # what is done in the other filesystem
    *("create", "write", "rename", "unlink") * 2, "mkdir", "symlink", "link", "rmdir", "truncate", "chmod", "chown",
    "setxattr", "removexattr", "commit",
)  # fmt: skip
SNAPSHOTS_MAX: Final = 6
NODES = dict[int, Node]


def changed_elsewhere(world: World, seed: int, steps: int) -> None:
    """Any changes of names, contents and attributes."""
    r = random.Random(seed)
    for kind in r.choices(ELSEWHERE, k=steps):
        world.apply((kind, r.randrange(64), r.randrange(64), r.randrange(64), r.randrange(64)))
    world._let_jobs_end()
    world.engine.end_flush()
    world.engine.commit()
    while world.engine.background_step():
        world.engine.commit()


class Bringing(RestoringWorld):
    """`runs` are the commands that run, by the numbers of their entries."""

    limits: dict[str, int]

    def __init__(self, stores: MemoryStores | DiskStores) -> None:
        self.said: Callable[[], None] = lambda: None
        super().__init__(stores)

    def settled(self) -> None:
        """What is in memory is committed."""
        self._let_jobs_end()
        self.engine.end_flush()
        self.engine.commit()
        self.reached()

    def reached(self) -> None:
        """All that has been done is committed, this part of the step included."""
        self.commits, self.committed = self.engine.commits, self.model.copy()
        self.said()

    def _open(self) -> Engine:
        engine = super()._open()
        self.runs, self.running = runs.Runs(engine), list[int]()
        return engine

    def named(self) -> NODES:
        """The tree of now."""
        return {ino: node for ino, node in self.model.nodes.items() if ino not in self.model.orphans}

    def _grant(self, work: Callable[[], object]) -> bool:
        """Does it; whether quotas allow it, of which nothing has happened else."""
        try:
            work()
        except QuotaExceeded:
            assert self.limits
            return False
        return True

    def _snapshot_taken(self, name: str) -> None:
        self.model.snapshot(name)
        self.old_orphans.setdefault(name, set(self.model.orphans))

    # -- applying ----------------------------------------------------------------------------------------------------

    def _other(self, name: str, seed: int, steps: int) -> World:
        """A clone of a snapshot, in memory, that has been changed."""
        other = World(ClonedInMemory(self, name))
        other.model.nodes = copied(self.model.snapshots[name])
        other.committed = other.model.copy()
        changed_elsewhere(other, seed, steps)
        return other

    def do_apply(self, a: int, b: int, c: int, d: int) -> None:
        """Of a clone that is made for it, at times twice."""
        name = self._target(a)
        if name is None:
            return
        self.settled()
        other = self._other(name, b * 64 + c, 1 + b % 9)
        for _ in range(1 + (a + d) % 2):
            self._apply(name, other, (None, None, Side.OURS, Side.THEIRS)[d % 4], safety=c % 3 == 0)
        other.engine.close()

    def do_apply_broken_off(self, a: int, b: int, c: int, d: int) -> None:
        name = self._target(a)
        if name is None:
            return
        self.settled()
        other = self._other(name, b * 64 + c, 1 + b % 9)
        self._apply(name, other, Side.THEIRS, stop=c % 9, crash=d % 2 == 0)
        other.engine.close()

    def _apply(
        self,
        name: str,
        other: World,
        prefer: Side | None,
        *,
        safety: bool = False,
        stop: int | None = None,
        crash: bool = False,
    ) -> None:
        base, ours = tree_of(self.model.snapshots[name]), tree_of(self.named())
        expected = merged(base, ours, theirs := clone_tree(base, ours, other.model.nodes))
        with Moments(other.engine.readable, other.engine.payload) as moments:
            view = self.engine.view(name)
            of = Theirs("other", view, moments.view(None), moments.tables, view.snapshot.epoch)
            steps = self.engine.apply(of, prefer)
            while steps.plan():
                pass
            reasons = {conflict.reason for conflict in steps.conflicts}
            assert reasons or expected is not None, "a conflict is missed"
            if expected is None and prefer is None:
                return
            if reasons and expected is not None:  # what was changed back, or to the same, has been changed all the same
                assert all("changed" in reason or "its directory" in reason for reason in reasons), reasons
                if prefer is None:
                    return
            if safety and steps.inodes and len(self.model.snapshots) < SNAPSHOTS_MAX:
                self.names += 1
                if self._grant(lambda: self.engine.snapshot(f"s{self.names}")):
                    self._snapshot_taken(f"s{self.names}")
                    self.reached()
            if not self._take_steps(steps, stop, crash=crash):
                return
        if not steps.inodes:
            assert reasons or expected is None or expected.places == ours.places
            return
        self._applied(expected if not reasons else None, ours, theirs)
        self.reached()

    def _take_steps(self, steps: Apply, stop: int | None, *, crash: bool) -> bool:
        """Whether all of it was done."""
        try:
            count = 0
            while steps.step():
                count += 1
                if count == stop:
                    break
                if count % 3 == 0:
                    assert self.engine.problems() == []
            else:
                return True
        except QuotaExceeded:
            assert self.limits
        else:
            if crash:
                self.engine.commit()
                self.committed = self.model.copy()
                self.do_crash(0, 0, 0, 0)
                return False
        while steps.cancel():
            assert self.engine.problems() == []
        return False

    def _applied(self, expected: Tree | None, ours: Tree, theirs: Tree) -> None:
        """The model becomes the merged tree, under the numbers that the engine has given; where there were conflicts,
        what the engine shows of what either side has."""
        model, engine = self.model, self.engine
        before = self.named()
        nodes = {ROOT: self._found(ROOT, expected.inodes[ROOT] if expected else None)}
        todo: list[tuple[int, int]] = [(ROOT, ROOT)]
        names: dict[int, int] = {}
        while todo:
            here, which = todo.pop()
            nodes[here].entries = {}
            for name, ino in ((name, int(ino)) for name, ino, _ in engine.readdir(here, b"", 1000)):
                nodes[here].entries[name] = ino
                names[ino] = names.get(ino, 0) + 1
                wanted, number = None, ino
                if expected is not None:
                    number = expected.places[which, name]
                    wanted = expected.inodes[number]
                else:
                    there = theirs.places.get((which, name), 0)
                    sides = {ours.places.get((which, name)), there}
                    known = which in ours.inodes  # else it is itself of theirs, under a number of its own
                    assert ino in sides or there not in ours.inodes or not known, (which, name)
                assert number == ino or number not in ours.inodes
                if ino not in nodes:
                    nodes[ino] = self._found(ino, wanted)
                    nodes[ino].parent = here
                    if nodes[ino].is_dir:
                        todo.append((ino, number))
            if expected is not None:
                assert {n for d, n in expected.places if d == which} == nodes[here].entries.keys()
        for ino, node in nodes.items():
            if node.is_dir:
                node.nlink = 2 + sum(nodes[child].is_dir for child in node.entries.values())
            else:
                node.nlink = names[ino]
            if expected is None and ino in ours.inodes and ino in theirs.inodes:
                for what in ("data", "mode", "owner", "xattrs"):
                    either = [aspect(side.inodes[ino], what) for side in (ours, theirs)]
                    assert aspect(node, what) in either, (ino, what)
        kept = {ino: model.nodes[ino] for ino in model.orphans}
        for ino in before.keys() - nodes.keys():
            if ino in model.open:
                model.orphans.add(ino)
                kept[ino] = before[ino]
                kept[ino].nlink, kept[ino].entries = 0, {}
        model.nodes = nodes | kept

    def _found(self, ino: int, wanted: Node | None) -> Node:
        """What the engine has, which must be what is wanted, names apart."""
        inode = self.engine.inode(ino)
        node = Node(inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev)
        if inode.data:
            node.data = bytearray(self.engine.plan_read(ino, 0, inode.size).execute())
        node.xattrs = {name: self.engine.getxattr(ino, name) for name in self.engine.listxattr(ino)}
        if wanted is not None:
            for what in ("data", "mode", "owner", "xattrs", "rdev"):
                assert aspect(node, what) == aspect(wanted, what), (ino, what)
        return node

    # -- receiving ---------------------------------------------------------------------------------------------------

    def do_receive(self, a: int, b: int, c: int, d: int) -> None:
        """What has been done elsewhere to a snapshot comes; into an empty filesystem, all of it.

        At times the stream is cut, and goes on, or is given up.
        """
        self.settled()
        if self.engine.cloned:
            try:
                self.engine.receiver()
            except NotSupported:
                return
            raise AssertionError("received into a clone")
        order = sorted(self.engine.snapshots(), key=lambda name: self.engine.snapshots()[name].epoch)
        base = None
        if order:
            base = order[-1 - (d % len(order) if d % 3 == 0 else 0)]
            if not self._as_at(base, order):
                return
        elif self.model.nodes.keys() != {ROOT} or self.model.nodes[ROOT].xattrs or self.engine.counters.epoch > 1:
            return
        if len(self.model.snapshots) >= SNAPSHOTS_MAX:
            return
        source = World(MemoryStores())
        if base is not None:
            into(source.engine, sent(self.engine, base))
            source.model.nodes = copied(self.model.snapshots[base])
        changed_elsewhere(source, b * 64 + c, 20 if base is None else b % 9)
        self.names += 1
        source.engine.snapshot(f"s{self.names}")
        source.model.snapshot(f"s{self.names}")
        self._receive(source, f"s{self.names}", base, a)
        source.engine.close()

    def _as_at(self, base: str, order: list[str]) -> bool:
        """The head becomes what a snapshot is, newer ones go, and nobody refers to anything; whether that may be."""
        for ino in sorted(self.model.open):
            self.model.forget(ino)
            self.engine.forget(ino)
        self.settled()
        newer = order[order.index(base) + 1 :]
        if any(self.model.holds.get(name) for name in newer):
            return False
        if newer:
            self.engine.destroy(newer)
            self.destroyed(newer)
            self.reached()
        rolling_back.roll_back(self.engine, base, safety=False)
        self._rolled_back(base)
        self.reached()
        return True

    def _receive(self, source: World, name: str, base: str | None, a: int) -> None:
        data = sent(source.engine, name, base)
        cut = len(data) * (a % 16) // 16 if a % 4 == 1 else len(data)
        try:
            into(self.engine, data[:cut], force=base is not None, resumable=a % 8 == 1)
        except QuotaExceeded:
            assert self.limits
            return
        except BadStream:
            assert cut < len(data)
            assert a % 8 != 1 or cut == 0 or self.engine.receiver().partial is None
            return
        except Cut as broken:
            refused = isinstance(broken.__cause__, QuotaExceeded)
            assert cut < len(data) or (refused and self.limits)
            if not self._goes_on(source, a):
                return
        assert name in self.engine.snapshots()
        self.model.nodes = copied(source.model.snapshots[name])
        self._snapshot_taken(name)
        self.reached()

    def _goes_on(self, source: World, a: int) -> bool:
        """Whether all of it came in the end."""
        assert self.engine.problems() == []
        receiver = self.engine.receiver()
        assert receiver.partial is not None
        if a % 3 and self._grant(lambda: self._again(source)):
            return True
        self.engine.receiver().cancel()
        assert self.engine.problems() == []
        return False

    def _again(self, source: World) -> None:
        partial = self.engine.receiver().partial
        assert partial is not None
        try:
            into(self.engine, sent_on(source.engine, partial), resumable=True)
        except Cut as error:
            raise error.__cause__ or error from None

    # -- commands ----------------------------------------------------------------------------------------------------

    def do_run(self, a: int, b: int, c: int, d: int) -> None:
        """A command begins, or, where enough run, one ends; in between anything may come."""
        self.settled()
        if len(self.running) < 1 + a % 2 and len(self.model.snapshots) < SNAPSHOTS_MAX:
            begun = self.runs.begin(["true"], "/", 1)
            assert begun.said is None or self.limits
            if begun.before is not None and begun.before not in self.model.snapshots:
                self._marked(begun.before, begun.entry)
            self.running.append(begun.entry)
            self.reached()
        elif self.running:
            self._end_run(self.running.pop(b % len(self.running)))

    def _end_run(self, entry: int) -> None:
        ended = self.runs.end(entry, {"code": 0})
        if ended.after is not None and ended.after not in self.model.snapshots:
            self._marked(ended.after, entry)
        self.reached()
        if ended.before is not None and ended.after is None and ended.said is None:
            assert self.model.snapshots[ended.before] == self.named(), "it has changed nothing"
        if ended.needless is not None:
            try:
                self.engine.destroy([ended.needless])
            except Busy:
                assert self.model.holds.get(ended.needless)
            else:
                self.destroyed([ended.needless])
            self.reached()

    def _marked(self, name: str, entry: int) -> None:
        """A snapshot has been taken for an entry."""
        self._snapshot_taken(name)
        self.model.labels[name] = {runs.MARK: str(entry)}

    def do_undo(self, a: int, b: int, c: int, d: int) -> None:
        """Of the last command, or undo, that changed something and after which nothing has changed."""
        self.settled()
        snapshots: dict[str, Snapshot] = self.engine.snapshots()
        for entry in self.engine.journal.entries():
            before, after = entry.fields.get("before"), entry.fields.get("after")
            if isinstance(before, str) and isinstance(after, str):
                break
        else:
            return
        if not {before, after} <= snapshots.keys() or self.model.snapshots[after] != self.named():
            return
        safety = after
        if rolling_back.stages_anything(self.engine, after):
            safety = rolling_back.safety_name(snapshots)
            if not self._grant(lambda: self.engine.snapshot(safety)):
                return
            self._snapshot_taken(safety)
            self.reached()
        if not self._grant(lambda: rolling_back.roll_back(self.engine, before, safety=False)):
            return
        self._rolled_back(before)
        self.reached()
        number, made = runs.undone(self.engine, entry.number, safety)
        assert made is not None or self.limits
        if made is not None:
            self._marked(made, number)
        self.reached()
