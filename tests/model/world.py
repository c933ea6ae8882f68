"""The world in which everything may happen: all that the engine can do, beside a plain model, as steps of four numbers.

It is what the power-cut recorder runs (`tests.crash.workload`) and what the rule machine runs (`test_everything`).  The
steps that it adds to those of `tests.engine` are the ones that need more than a model of the tree: large writes, space
(moving extents, compaction, collecting), quotas.  `figures` and `travels` compare what is not seen in a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from tests.engine import test_accounting as accounting
from tests.engine import test_diff as diffs
from tests.engine.compressing import contents
from tests.engine.conftest import Workspace
from tests.engine.plain import ROOT, Plain
from tests.engine.streams import into, sent
from tests.engine.test_quotas import accounts, limit
from tests.engine.test_restore import WEIGHTS as RESTORE_WEIGHTS
from tests.engine.world import DiskStores, MemoryStores, Step, compare
from tests.model.bringing import BRINGING_WEIGHTS, NODES, Bringing
from tzfs.engine.engine import Engine
from tzfs.engine.head import S_IFMT, S_IFREG
from tzfs.engine.history import FileVersion, file_versions
from tzfs.engine.moments import Moments
from tzfs.errors import QuotaExceeded

INODES_MAX: Final = 60  # beyond it the next creation removes a tree instead: a long run stays as quick as it began
NEED_BYTES: Final = 256 * 1024  # what one step may ask of a quota
MORE: Final = {
    "pour": 6,
    "compact": 3,
    "move": 12,
    "collect": 3,
    "quota": 2,
    "prune_tree": 3,
    "send": 2,
    "note": 2,
}
WEIGHTS: Final = {**RESTORE_WEIGHTS, **BRINGING_WEIGHTS, **MORE}
REORDERING: Final = ("compact", "collect", "quota", "send")  # which commit, and so want no job under way


def everything_but(engine: Engine) -> frozenset[int]:
    """All segments but the one being filled."""
    return frozenset(engine.payload.segments()) - {engine.payload.filling}


class Everything(Bringing):
    """A world with all steps.  `moving`: the steps of emptying segments that are still to be done; `committed_before`:
    the last step has committed what was there before it, and not itself."""

    committed_before = False

    def __init__(self, stores: MemoryStores | DiskStores) -> None:
        self.moving: Iterator[Callable[[], Callable[[], object]] | None] | None = None
        self.limits: dict[str, int] = {}
        super().__init__(stores)

    def _open(self) -> Engine:
        engine = super()._open()
        engine.settings.dirty_bytes_max = 512 * 1024
        limit(engine, **self.limits)
        return engine

    def apply(self, step: Step) -> None:
        what = step[0]
        if what in REORDERING:
            self._let_jobs_end()
        if what in ("create", "mkdir", "symlink") and len(self.model.nodes) > INODES_MAX:
            what = "prune_tree"
        # What a quota has to ask of the tables it commits before the step, which then is not in that commit.
        before = self.model.copy() if self.limits and what in EDITS else None
        commits = self.engine.commits
        super().apply((what, *step[1:]))
        self.committed_before = before is not None and self.engine.commits != commits
        if before is not None and self.committed_before:
            self.committed = before

    def _both(self, real: Callable[[], object], plain: Callable[[], None]) -> object:
        """What a quota refuses has changed nothing; and it must be nearly used up."""
        refused = False

        def asked() -> object:
            nonlocal refused
            try:
                return real()
            except QuotaExceeded:
                refused = True
                usages = {u.name: u.limit - u.used for u in self.engine.usages()}
                assert self.limits
                room = {name: left for name, left in usages.items() if left < (NEED_BYTES if "_" not in name else 64)}
                assert room, usages
                return None

        def changed() -> None:
            if not refused:
                plain()

        return super()._both(asked, changed)

    # -- steps -------------------------------------------------------------------------------------------------------

    def do_snapshot(self, a: int, b: int, c: int, d: int) -> None:
        most = self.limits.get("snapshots_max", 0)
        if not most or len(self.model.snapshots) < most:
            super().do_snapshot(a, b, c, d)
            return
        self._both(lambda: self.engine.snapshot("refused"), lambda: self.model.snapshot("refused"))
        assert "refused" not in self.model.snapshots

    def do_pour(self, a: int, b: int, c: int, d: int) -> None:
        ino = self._pick(a, lambda n: n.mode & S_IFMT == S_IFREG)
        payload = contents(20_000 + d * 2000, b * 64 + c)
        self._both(lambda: self.engine.write(ino, c * 1000, payload), lambda: self.model.write(ino, c * 1000, payload))

    def do_prune_tree(self, a: int, b: int, c: int, d: int) -> None:
        """A name in the root goes, with all below it."""
        entries = sorted(self.model.nodes[ROOT].entries)
        if entries:
            self._remove(ROOT, entries[a % len(entries)])

    def _remove(self, directory: int, name: bytes) -> None:
        ino = self.model.nodes[directory].entries[name]
        for inner in sorted(self.model.nodes[ino].entries):
            self._remove(ino, inner)
        is_dir = self.model.nodes[ino].is_dir
        (self.engine.rmdir if is_dir else self.engine.unlink)(directory, name)
        (self.model.rmdir if is_dir else self.model.unlink)(directory, name)

    def do_move(self, a: int, b: int, c: int, d: int) -> None:
        """A step of emptying all segments but the one being filled, or all of it; in between anything may come."""
        if self.moving is None:
            self.moving = self.engine.mover.steps(everything_but(self.engine))
        for job in self.moving:
            if job is not None:
                if a % 2:
                    self._let_jobs_end()
                    self.engine.commit()
                    self.commits, self.committed = self.engine.commits, self.model.copy()
                job()()
            if a % 4:
                return
        self.moving = None

    def do_compact(self, a: int, b: int, c: int, d: int) -> None:
        self.engine.commit()
        self.engine.release_log()
        copy = self.engine.compactor.begin()
        assert copy is not None
        copy.run()
        self.engine.compactor.end(copy)

    def do_collect(self, a: int, b: int, c: int, d: int) -> None:
        self.engine.end_flush()
        self.engine.collect()

    def do_send(self, a: int, b: int, c: int, d: int) -> None:
        """A snapshot and perhaps a later one, sent to another filesystem, which has their trees then."""
        order = [name for name, _ in self.moments() if name is not None]
        if not order:
            return
        i, j = sorted((a % len(order), b % len(order)))
        target = Workspace().engine
        into(target, sent(self.engine, order[i]))
        if i < j:
            into(target, sent(self.engine, order[j], order[i]))
        for name in {order[i], order[j]}:
            compare(target.view(name), self.model.snapshots[name], set(), 1 + c % 5)
        assert target.problems() == []
        target.close()

    def do_note(self, a: int, b: int, c: int, d: int) -> None:
        """A line in the log, or a change to the last."""
        if self.model.notes and c % 3 == 0:
            number, _ = self.model.notes.pop()
            self.engine.journal.amend(number, text="n" * a)
        else:
            number = self.engine.journal.append("run", text="n" * a)
        self.model.notes.append((number, a))

    def do_quota(self, a: int, b: int, c: int, d: int) -> None:
        """Other limits, most often none, or some that are soon reached."""
        self.engine.commit()
        self.limits = {}
        if a % 3 == 0:
            sums, room = accounts(self.engine).charged, 5000 * d
            chosen = {
                "quota_bytes": sums.used + room,
                "refquota_bytes": sums.referenced + room,
                "inodes_max": self.engine.counters.inodes + d % 8,
                "snapshots_max": 1 + d % 6,
            }
            names = list(chosen)
            self.limits = {name: chosen[name] for name in {names[b % 4], names[c % 4]}}
        limit(self.engine, **self.limits)

    def _reopen(self, model: Plain) -> None:
        self.moving = None
        super()._reopen(model)

    def check(self, page: int) -> None:
        super().check(page)
        told = [(e.number, len(str(e.fields["text"]))) for e in self.engine.journal.entries() if "text" in e.fields]
        assert told[::-1] == self.model.notes

    # -- comparing -----------------------------------------------------------------------------------------------------

    def moments(self) -> list[tuple[str | None, NODES]]:
        """What each snapshot sees, oldest first, and the head, by name; None is the head."""
        order = sorted(self.engine.snapshots(), key=lambda name: self.engine.snapshots()[name].epoch)
        return [*((name, self.model.snapshots[name]) for name in order), (None, self.named())]

    def figures(self) -> None:
        """Every figure of the accounting agrees with a recount, and the check finds nothing."""
        self.settled()
        accounting.check(self)
        sums = accounts(self.engine).charged
        told = {usage.name: usage.used for usage in self.engine.usages()}
        assert told.get("quota", sums.used) == sums.used
        assert told.get("refquota", sums.referenced) == sums.referenced
        assert self.engine.problems() == []

    def travels(self, a: int, b: int) -> None:
        """A diff between two moments, and the versions of a file, are those of the copies."""
        self.settled()
        moments = self.moments()
        i, j = sorted((a % len(moments), b % len(moments)))
        if i < j:
            diffs.agree(self.engine, moments[i], moments[j])
        paths = sorted({path for _, nodes in moments for path in _paths(nodes)})
        if paths:
            self._versions(paths[(a * 64 + b) % len(paths)], moments)

    def _versions(self, path: tuple[bytes, ...], moments: list[tuple[str | None, NODES]]) -> None:
        with Moments(self.engine.readable, self.engine.payload) as opened:
            told = [v for v in file_versions(opened, path) if v is not None]
        at = {name: (nodes, _find(nodes, path)) for name, nodes in moments}
        names = [name for name, (_, ino) in at.items() if ino is not None]
        covered: list[str | None] = []
        for version in told:
            span = _span([name for name, _ in moments], version)
            covered += span
            assert all(at[name][1] == version.ino for name in span), (path, version)
            facts = [diffs.facts(at[name][0][version.ino]) for name in span]
            assert all(x == y for x, y in pairwise(facts)), (path, version)
        assert covered == names, path


EDITS: Final = frozenset({
    "create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write", "pour", "truncate", "chmod", "chown",
    "setxattr", "removexattr", "prune_tree",
})  # fmt: skip


def _span(order: list[str | None], version: FileVersion) -> list[str | None]:
    """The moments from the first to the last that has the version."""
    return order[order.index(version.first) : order.index(version.last) + 1]


def _paths(nodes: NODES, ino: int = ROOT) -> Iterator[tuple[bytes, ...]]:
    for name, child in nodes[ino].entries.items():
        yield (name,)
        if nodes[child].is_dir:
            yield from ((name, *rest) for rest in _paths(nodes, child))


def _find(nodes: NODES, path: tuple[bytes, ...]) -> int | None:
    ino: int | None = ROOT
    for name in path:
        ino = None if ino is None else nodes[ino].entries.get(name)
    return ino
