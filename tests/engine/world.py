"""A filesystem and its plain model, side by side; steps for both, drawn from a seed, run, compared and shrunk."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.compressing import COMPRESSING_WEIGHTS, Compressing, contents
from tests.engine.marking import MARKING_WEIGHTS, Marking
from tests.engine.plain import ROOT, Node, Plain
from tzfs import errors
from tzfs.engine.accounting import Accounts
from tzfs.engine.committed import read_counters
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.head import S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG
from tzfs.engine.inherited import Ancestry
from tzfs.engine.snapshots import read_snapshots
from tzfs.engine.view import View
from tzfs.format.keys import Table
from tzfs.format.records import Inode
from tzfs.store.interface import MetaStore, PayloadStore, ReadTransaction, RedoStore
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.memory import MemoryMeta, MemoryPayload, MemoryRedo
from tzfs.store.redo import RedoLog
from tzfs.store.segments import Segments

GUID = bytes(range(16))
NAMES = [b"a", b"b", b"c", b"a\x01", b"n" * 255]
CHUNK = 4096

Step = tuple[str, int, int, int, int]


def charged(txn: ReadTransaction) -> int:
    """What all that is in the tables is charged, whoever sees it."""
    sums = Accounts(txn, read_snapshots(txn), read_counters(txn).epoch).charged
    return sums.used + sums.freeing


class MemoryStores:
    """Stores in memory; a crash keeps what was synced."""

    def __init__(self) -> None:
        self.meta, self.payload = MemoryMeta(), MemoryPayload()
        self.redo = MemoryRedo(room=4)
        Engine.format(self.meta, guid=GUID, now_ns=1)

    def stores(self) -> tuple[MetaStore, PayloadStore, RedoStore]:
        return self.meta, self.payload, self.redo

    def ancestry(self) -> Ancestry | None:
        return None

    def crash(self) -> None:
        self.meta, self.payload = self.meta.after_crash(), self.payload.after_crash()

    def restart(self) -> None:
        self.crash()  # a closed engine has synced everything

    def close(self) -> None:
        pass


class DiskStores:
    """Stores on disk.  A crash here is that of the process: what was written stays, committed or not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.meta = LmdbMeta(folder / "meta", create=True)
        Engine.format(self.meta, guid=GUID, now_ns=1)
        self.payload = Segments(folder / "segments", guid=GUID, create=True)
        self.redo = RedoLog(folder / "redo", GUID)

    def stores(self) -> tuple[MetaStore, PayloadStore, RedoStore]:
        return self.meta, self.payload, self.redo

    def ancestry(self) -> Ancestry | None:
        return None

    def restart(self) -> None:
        self.close()
        self.meta = LmdbMeta(self._folder / "meta")
        self.payload = Segments(self._folder / "segments", guid=GUID)
        self.redo = RedoLog(self._folder / "redo", GUID)

    crash = restart

    def close(self) -> None:
        self.redo.close()
        self.payload.close()
        self.meta.close()


class World(Marking, Compressing):
    """An engine and its model, side by side.  `committed` is the model as of the last commit."""

    def __init__(self, stores: MemoryStores | DiskStores) -> None:
        self.stores = stores
        self.model = Plain()
        self.settings = Settings(chunk_shift=12, dirty_rows_max=10_000)
        self.engine = self._open()
        self.committed = self.model.copy()
        self.job = None
        self.time = 0
        self.names = 0
        self.steps: dict[str, int] = {}

    def _open(self) -> Engine:
        settings = replace(self.settings)
        meta, payload, redo = self.stores.stores()
        above = self.stores.ancestry()
        engine = Engine(meta, payload, redo=redo, settings=settings, clock=self._clock, ancestry=above)
        engine.referenced = lambda ino: ino in self.model.open
        self.commits = engine.commits
        return engine

    def _clock(self) -> int:
        self.time = getattr(self, "time", 0) + 1
        return self.time

    # -- steps -------------------------------------------------------------------------------------------------------

    def _both(self, real: Callable[[], object], plain: Callable[[], None]) -> object:
        """Does it in both; the errors must be of one class.  The engine's answer."""
        said: object = None
        failed: type[BaseException] | None = None
        try:
            said = real()
        except errors.TzfsError as error:
            failed = type(error)
        if failed is None:
            plain()
        else:
            with pytest.raises(failed):
                plain()
        return said

    def apply(self, step: Step) -> None:
        what, a, b, c, d = step
        self.steps[what] = self.steps.get(what, 0) + 1
        if what in ("commit", "snapshot", "destroy", "restart", "crash", *MARKING_WEIGHTS):
            self._let_jobs_end()  # a commit waits for the job, which nobody else would run here
        getattr(self, f"do_{what}")(a, b, c, d)
        if what == "commit" or (self.engine.commits != self.commits and what not in ("crash", "restart")):
            self.commits = self.engine.commits
            self.committed = self.model.copy()

    def _pick(self, number: int, which: Callable[[Node], bool] = lambda n: True) -> int:
        found = sorted(i for i, n in self.model.nodes.items() if which(n))
        return found[number % len(found)] if found else ROOT

    def _dir(self, number: int) -> int:
        return self._pick(number, lambda n: n.is_dir)

    def _new(self, parent: int, name: bytes, real: Callable[[], int], mode: int, gid: int, **more: object) -> None:
        data, rdev = more.get("data", b""), more.get("rdev", 0)
        assert isinstance(data, bytes)
        assert isinstance(rdev, int)
        made: list[int] = []

        def plain() -> None:
            self.model.check_new(parent, name)
            self.model.create(made[0], parent, name, mode, gid, data, rdev)

        def create() -> None:
            made.append(real())

        self._both(create, plain)

    def do_create(self, a: int, b: int, c: int, d: int) -> None:
        parent, name = self._dir(a), NAMES[b % len(NAMES)]
        mode, rdev = (S_IFREG | 0o644, 0) if c % 5 else (S_IFIFO | 0o600, 0)
        self._new(
            parent,
            name,
            lambda: self.engine.mknod(parent, name, mode, uid=7, gid=d % 3, rdev=rdev).ino,
            mode,
            d % 3,
        )
        if c % 2 and (ino := self.model.nodes.get(parent, Node(0, 0, 0, 0)).entries.get(name)):
            self.model.open.add(ino)

    def do_mkdir(self, a: int, b: int, c: int, d: int) -> None:
        parent, name, mode = self._dir(a), NAMES[b % len(NAMES)], 0o2755 if c % 4 == 0 else 0o755
        self._new(
            parent, name, lambda: self.engine.mkdir(parent, name, mode, uid=7, gid=d % 3).ino, S_IFDIR | mode, d % 3
        )
        if c % 3 == 0 and (ino := self.model.nodes.get(parent, Node(0, 0, 0, 0)).entries.get(name)):
            self.model.open.add(ino)

    def do_symlink(self, a: int, b: int, c: int, d: int) -> None:
        parent, name, target = self._dir(a), NAMES[b % len(NAMES)], b"t" * (4095 if c % 3 == 0 else c + 1)

        def real() -> int:
            return self.engine.symlink(parent, name, target, uid=7, gid=0).ino

        self._new(parent, name, real, S_IFLNK | 0o777, 0, data=target)

    def do_link(self, a: int, b: int, c: int, d: int) -> None:
        ino, parent, name = self._pick(a), self._dir(b), NAMES[c % len(NAMES)]
        self._both(lambda: self.engine.link(ino, parent, name), lambda: self.model.link(ino, parent, name))

    def do_unlink(self, a: int, b: int, c: int, d: int) -> None:
        parent, name = self._entry(a, b)
        self._both(lambda: self.engine.unlink(parent, name), lambda: self.model.unlink(parent, name))

    def do_rmdir(self, a: int, b: int, c: int, d: int) -> None:
        parent, name = self._entry(a, b)
        self._both(lambda: self.engine.rmdir(parent, name), lambda: self.model.rmdir(parent, name))

    def _entry(self, a: int, b: int) -> tuple[int, bytes]:
        """Most often a name that is there."""
        entries = sorted((i, name) for i, n in self.model.nodes.items() for name in n.entries)
        if b % 8 == 0 or not entries:
            return self._dir(a), NAMES[b % len(NAMES)]
        return entries[a % len(entries)]

    def do_rename(self, a: int, b: int, c: int, d: int) -> None:
        parent, name = self._entry(a, b)
        target, new, flags = self._dir(c), NAMES[d % len(NAMES)], (0, 0, 0, 1, 2)[(a + c) % 5]
        self._both(
            lambda: self.engine.rename(parent, name, target, new, flags),
            lambda: self.model.rename(parent, name, target, new, flags),
        )

    def do_write(self, a: int, b: int, c: int, d: int) -> None:
        ino = self._pick(a, lambda n: n.mode & S_IFMT == S_IFREG)
        offset, size = ((b * 97) % 3000, c * 13 % 1200) if d % 3 else (b % 24 * CHUNK // 2, c % 4 * CHUNK + c)
        payload = contents(size, self.time)
        self._both(lambda: self.engine.write(ino, offset, payload), lambda: self.model.write(ino, offset, payload))

    def do_truncate(self, a: int, b: int, c: int, d: int) -> None:
        ino = self._pick(a, lambda n: n.mode & S_IFMT == S_IFREG)
        size = (0, b * 31, b % 24 * CHUNK // 2, b % 5 * 1000)[c % 4]
        self._both(lambda: self.engine.setattr(ino, size=size), lambda: self.model.truncate(ino, size))

    def do_chmod(self, a: int, b: int, c: int, d: int) -> None:
        ino, mode = self._pick(a), b * 73 % 0o10000
        self.engine.setattr(ino, mode=mode, mtime_ns=-c * 10**9 - 1)
        node = self.model.nodes[ino]
        node.mode = node.mode & S_IFMT | mode

    def do_chown(self, a: int, b: int, c: int, d: int) -> None:
        ino = self._pick(a)
        self.engine.setattr(ino, uid=b, gid=c)
        node = self.model.nodes[ino]
        node.uid, node.gid = b, c
        if not node.is_dir:
            node.mode &= ~0o4000
            if node.mode & 0o010:
                node.mode &= ~0o2000

    def do_setxattr(self, a: int, b: int, c: int, d: int) -> None:
        ino, name, flags = self._pick(a), b"user." + NAMES[b % 3], (0, 0, 0, 1, 2)[c % 5]
        value = bytes([d + 1]) * (5000 + d if d % 4 == 0 else d * 9)

        def plain() -> None:
            xattrs = self.model.node(ino).xattrs
            if flags == 1 and name in xattrs:
                raise errors.Exists("")
            if flags == 2 and name not in xattrs:
                raise errors.NoAttribute("")
            xattrs[name] = value

        self._both(lambda: self.engine.setxattr(ino, name, value, flags), plain)

    def do_removexattr(self, a: int, b: int, c: int, d: int) -> None:
        ino, name = self._pick(a, lambda n: bool(n.xattrs)), b"user." + NAMES[b % 3]

        def plain() -> None:
            if name not in self.model.node(ino).xattrs:
                raise errors.NoAttribute("")
            del self.model.node(ino).xattrs[name]

        self._both(lambda: self.engine.removexattr(ino, name), plain)

    def do_open(self, a: int, b: int, c: int, d: int) -> None:
        ino = self._pick(a)
        if ino not in self.model.orphans:
            self.model.open.add(ino)

    def do_forget(self, a: int, b: int, c: int, d: int) -> None:
        if self.model.open:
            ino = sorted(self.model.open)[a % len(self.model.open)]
            self.model.forget(ino)
            self.engine.forget(ino)

    def do_snapshot(self, a: int, b: int, c: int, d: int) -> None:
        if len(self.model.snapshots) < 6:
            self.names += 1
            name = f"s{self.names}"
            self.engine.snapshot(name, {"test:a": str(a)})
            self.model.snapshot(name)

    def do_destroy(self, a: int, b: int, c: int, d: int) -> None:
        """One, or a range; in every fourth case all that is freed is compared with what was foretold."""
        names = list(self.engine.snapshots())
        first = a % len(names) if names else 0
        chosen = names[first : first + (1, 1, 2, 3)[b % 4]]
        exact = c % 4 == 0 and self.engine.flushing is None
        if exact:
            before = self._charged_at_rest()
        if any(self.model.holds.get(name) for name in chosen):
            with pytest.raises(errors.Busy):
                self.engine.destroy(chosen)
            return
        told = self.engine.destroy(chosen)
        self.destroyed(chosen)
        assert told.names == tuple(chosen)
        if exact:
            assert self.engine.freeing() == told.bytes == before - self._charged_at_rest(), f"freed by {chosen}"
            assert self.engine.freeing() == 0

    def destroyed(self, names: list[str]) -> None:
        """These snapshots are no more."""
        for name in names:
            del self.model.snapshots[name]
            self.model.holds.pop(name, None)
            self.model.labels.pop(name, None)

    def _charged_at_rest(self) -> int:
        """What everything is charged when there is nothing left to do."""
        self.engine.commit()
        while self.engine.background_step():
            pass
        self.engine.commit()
        txn = self.engine.meta.begin_read()
        try:
            assert self.engine._head.staging is not None or not [*txn.range(Table.DESTROY, b"")]
            return charged(txn)
        finally:
            txn.close()

    def do_commit(self, a: int, b: int, c: int, d: int) -> None:
        if a % 3:
            self.engine.harden()
        else:
            self.engine.commit()

    def do_flush(self, a: int, b: int, c: int, d: int) -> None:
        """The two halves of a flush with other steps in between; the job itself may run late."""
        if self.engine.flushing is None:
            job = self.engine.begin_flush()
            if job is not None and a % 2:
                job.run()
        else:
            if not self.engine.flushing.finished:
                self.engine.flushing.run()
            if a % 3:
                self.engine.end_flush()

    def do_absorb(self, a: int, b: int, c: int, d: int) -> None:
        self.engine.absorb()

    def do_background(self, a: int, b: int, c: int, d: int) -> None:
        for _ in range(1 + a % 3):
            self.engine.background_step()

    def do_restart(self, a: int, b: int, c: int, d: int) -> None:
        self.engine.close()
        self.stores.restart()
        self._reopen(self.model)

    def do_crash(self, a: int, b: int, c: int, d: int) -> None:
        self.engine.abandon()
        self.stores.crash()
        self._reopen(self.committed)

    def _let_jobs_end(self) -> None:
        if self.engine.flushing is not None and not self.engine.flushing.finished:
            self.engine.flushing.run()

    def _reopen(self, model: Plain) -> None:
        self.model = model
        self.engine = self._open()
        self.model.restarted()
        while self.engine.background_step():
            self.engine.commit()
        self.engine.commit()
        self.commits = self.engine.commits
        self.committed = self.model.copy()

    # -- comparing ---------------------------------------------------------------------------------------------------

    def check(self, page: int) -> None:
        compare(self.engine, self.model.nodes, self.model.orphans, page)
        for name, nodes in self.model.snapshots.items():
            compare(self.engine.view(name), nodes, set(), page)
        c = self.engine.counters
        assert (c.inodes, c.files, c.directories, c.symlinks, c.others) == self.model.counted()
        assert self.engine.drift == []
        self.check_marks()

    def verify(self) -> None:
        if self.engine.flushing is None:
            assert self.engine.problems() == []
            self.commits = self.engine.commits
            self.committed = self.model.copy()


def compare(source: Engine | View, nodes: dict[int, Node], orphans: set[int], page: int) -> None:
    seen, todo = set(), [ROOT]
    while todo:
        ino = todo.pop()
        listed = dict(_listing(source, ino, page))
        assert list(listed) == sorted(nodes[ino].entries), f"listing of {ino}"
        for name, child in nodes[ino].entries.items():
            assert listed[name].ino == child
            assert source.lookup(ino, name) == listed[name] == source.inode(child)
            if nodes[child].is_dir:
                todo.append(child)
                assert source.parent_of(child) == ino
            seen.add(child)
    assert seen | orphans | {ROOT} == set(nodes)
    for ino, node in nodes.items():
        inode = source.inode(ino)
        size = len(node.entries) if node.is_dir else len(node.data)
        assert (inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev, inode.size) == (
            (node.mode, node.uid, node.gid, node.nlink, node.rdev, size)
        ), f"inode {ino}"
        if node.mode & S_IFMT == S_IFREG:
            assert source.read(ino, 0, size + 10) == node.data, f"contents of {ino}"
            assert source.read(ino, size // 2, size // 3) == node.data[size // 2 :][: size // 3]
        elif node.mode & S_IFMT == S_IFLNK:
            assert source.readlink(ino) == node.data
        assert {n: source.getxattr(ino, n) for n in source.listxattr(ino)} == node.xattrs, f"attributes of {ino}"


def _listing(source: Engine | View, ino: int, page: int) -> Iterator[tuple[bytes, Inode]]:
    after = b""
    while batch := source.readdir_plus(ino, after, page):
        yield from batch
        after = batch[-1][0]


WEIGHTS = {
    "create": 12, "mkdir": 4, "symlink": 3, "link": 4, "unlink": 8, "rmdir": 3, "rename": 8, "write": 20,
    "truncate": 8, "chmod": 2, "chown": 2, "setxattr": 4, "removexattr": 2, "open": 4, "forget": 5, "snapshot": 5,
    "destroy": 3, "commit": 6, "absorb": 5, "flush": 8, "background": 6, "restart": 1, "crash": 2,
    **MARKING_WEIGHTS, **COMPRESSING_WEIGHTS,
}  # fmt: skip


def generate(seed: int, of: Mapping[str, float] = WEIGHTS) -> list[Step]:
    """Steps of the kinds in `of`, some of which come more often and some less in one history."""
    r = random.Random(seed)
    weights = [w * r.choice((0.3, 1, 1, 3)) for w in of.values()]
    return [
        (what, r.randrange(64), r.randrange(64), r.randrange(64), r.randrange(64))
        for what in r.choices(list(of), weights, k=r.randint(20, 120))
    ]


def run(steps: list[Step], stores: MemoryStores | DiskStores, *, every: int = 1) -> World:
    world = World(stores)
    try:
        for i, step in enumerate(steps):
            world.apply(step)
            if i % every == 0:
                world.check(1 + step[1] % 5)
            if step[2] % 6 == 0:
                world.verify()
        world.check(3)
        world._let_jobs_end()
        world.engine.end_flush()
        world.verify()
    finally:
        stores.close()
    return world


def fails(steps: list[Step]) -> str | None:
    try:
        run(steps, MemoryStores())
    except Exception as error:  # whatever it is, shrinking keeps it
        return f"{type(error).__name__}: {error}"[:600]
    return None


def shrink(steps: list[Step]) -> list[Step]:
    n = len(steps) // 2
    while n:
        i = 0
        while i < len(steps):
            less = steps[:i] + steps[i + n :]
            if fails(less):
                steps = less
            else:
                i += n
        n //= 2
    return steps
