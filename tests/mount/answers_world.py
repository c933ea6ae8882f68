"""An engine with its operations, what the kernel would know of them, and the steps that change either: what
test_answers_invariant.py stands on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

import pyfuse3
from hypothesis import strategies as st

from tests.mount import wire
from tests.mount.wire import Kernel
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.view import View
from tzfs.errors import Stale
from tzfs.format.keys import ROOT
from tzfs.format.records import Inode
from tzfs.mount.answers import POSTED_MAX
from tzfs.mount.nodes import INO_MASK, ZFS_NODE
from tzfs.mount.operations import Operations
from tzfs.store.memory import MemoryMeta, MemoryPayload

T = TypeVar("T")
GUID: Final = bytes(range(16))
NAMES: Final = (b"a", b"b", b"c", b"\xff" * 255)
CONTEXT: Final = pyfuse3.RequestContext()
NODES_MAX, NAMES_MAX = 1 << 17, 1 << 18
FIELDS: Final = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")


class Refused(Exception):
    """A handler answered an errno."""


def result(request: Coroutine[Any, Any, T]) -> T:
    """What a handler answers that does not wait."""
    try:
        request.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    except pyfuse3.FUSEError as error:
        raise Refused(error.errno) from None
    raise AssertionError("the handler waits")


def as_replied(inode: Inode, tree: int = 0) -> wire.Attributes:
    return wire.Attributes(
        inode.ino | tree,
        inode.size,
        (inode.size + 4095) // 4096 * 8,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        4096,
    )


@dataclass
class World:
    """An engine, its operations, and what the kernel would know of them."""

    engine: Engine
    operations: Operations
    kernel: Kernel
    told: dict[int, int] = field(default_factory=dict)  # look-up counts, ours
    nodes: list[int] = field(default_factory=lambda: [int(ROOT)])  # every one there has been
    listings: dict[int, tuple[int, int]] = field(default_factory=dict)  # handle -> node, where it goes on
    writing: list[int] = field(default_factory=list)  # open handles
    crowded: bool = False
    checked: int = 0
    answered: int = 0
    posted: int = 0
    unlinked: int = 0

    def crowd(self) -> None:
        """The bounds are made out to be near: from a few names and nodes on each new one drives one out."""
        if self.crowded:
            self.operations.answers.state.name_count = NAMES_MAX - 5
            self.operations.answers.state.node_count = NODES_MAX - 5

    def node(self, number: int) -> int:
        return self.nodes[number % len(self.nodes)]

    def directory(self, number: int) -> int:
        found = [node for node in self.nodes if self.is_directory(node)]
        return found[number % len(found)]

    def is_directory(self, node: int) -> bool:
        inode = self.inode(node)
        return inode is not None and inode.mode >> 12 == 4

    def tree(self, node: int) -> Engine | View:
        return self.engine if node <= INO_MASK else self.operations._views.view(node >> 40)

    def inode(self, node: int) -> Inode | None:
        try:
            return self.tree(node).inode(node & INO_MASK)
        except Stale:
            return None

    def learn(self, entry: pyfuse3.EntryAttributes) -> int:
        node = int(cast(Any, entry.st_ino))
        return self.learn_of(node) if node else 0

    def learn_of(self, node: int) -> int:
        self.told[node] = self.told.get(node, 0) + 1
        if node not in self.nodes and node >> 40 != ZFS_NODE >> 40:
            self.nodes.append(node)
        return node

    def warm(self) -> None:
        """The handlers are asked for everything, so that C knows it, and whatever is not told of next is found out."""
        for directory in [node for node in self.nodes if self.is_directory(node)]:
            for name in NAMES:
                with suppress(Refused):
                    entry = result(self.operations.lookup(directory, name, CONTEXT))
                    if entry.st_ino:
                        self.operations.answers.forget(int(cast(Any, entry.st_ino)), 1)
        for node in self.nodes:
            with suppress(Refused):
                result(self.operations.getattr(node, CONTEXT))

    def check(self) -> None:
        """C is asked for everything, and forgets what it thereby told."""
        answers = self.kernel.answers
        directories = [node for node in self.nodes if self.is_directory(node)]
        for directory in directories:
            for name in (*NAMES, b"never", b".zfs"):
                self.checked += 1
                entry = self.kernel.lookup(directory, name)
                if entry is None:
                    continue
                self.answered += 1
                truth = self.tree(directory).find(directory & INO_MASK, name)
                if not entry.node:
                    assert truth is None, (directory, name)
                    assert (directory, name) != (ROOT, b".zfs")
                    continue
                assert truth is not None, (directory, name)
                assert entry.node == truth.ino | directory & ~INO_MASK
                assert entry.attributes == as_replied(truth, directory & ~INO_MASK)
                answers.forget(entry.node, 1)
        for node in self.nodes:
            self.checked += 1
            found = self.kernel.getattr(node)
            if found is not None:
                self.answered += 1
                inode = self.inode(node)
                assert inode is not None, node
                assert found == as_replied(inode, node & ~INO_MASK)
        for node in (*self.nodes, ZFS_NODE):
            assert answers.knows(node) == (self.told.get(node, 0) > 0), node
        assert sorted(answers.writers()) == sorted({handle & INO_MASK for handle in self.writing})
        for kind, s in self.operations.figures().items():
            assert s.total_ns <= s.count * s.slowest_ns, kind
        # What has no name is there as long as the kernel knows it, and is gone once that is buried.
        for ino in self.engine.orphan_inodes():
            assert self.told.get(ino) or answers.state.forgotten, ino


def made(*, crowded: bool = False) -> World:
    ticks = iter(range(10**18, 2 * 10**18, 1_000_000_007))
    meta, payload = MemoryMeta(), MemoryPayload()
    Engine.format(meta, guid=GUID, now_ns=1)
    engine = Engine(meta, payload, settings=Settings(), clock=lambda: next(ticks))
    operations = Operations(engine, xattr=True, snapdir_visible=lambda: True)
    operations.answers.start(unchecked=True)
    world = World(engine, operations, Kernel(operations.answers), crowded=crowded)
    world.crowd()
    return world


# -- steps: each takes the world and three numbers ---------------------------------------------------------------------


def name(number: int) -> bytes:
    return NAMES[number % len(NAMES)]


def mknod(w: World, a: int, b: int, c: int) -> None:
    w.learn(result(w.operations.mknod(w.directory(a), name(b), (0o10644, 0o20600, 0o100755)[c % 3], c, CONTEXT)))


def create(w: World, a: int, b: int, c: int) -> None:
    flags = (os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY, os.O_RDWR | os.O_EXCL)[c % 4]
    opened, entry = result(w.operations.create(w.directory(a), name(b), 0o104755, flags | os.O_CREAT, CONTEXT))
    w.learn(entry)
    handle = int(cast(Any, opened.fh))
    if handle >> 63:
        w.writing.append(handle)


def create_at_once(w: World, a: int, b: int, c: int) -> None:
    """As the pump does it: without pyfuse3, and C answers."""
    flags = (os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY, os.O_RDWR | os.O_EXCL)[c % 4]
    handle = w.operations.create_at_once(w.directory(a), name(b), 0o104755, flags | os.O_CREAT, a, b)
    if handle < 0:
        raise Refused(-handle)
    entry = w.kernel.created(handle)
    assert entry is not None
    node = w.learn_of(entry.node)
    assert entry.attributes == as_replied(w.engine.inode(node))
    if handle >> 63:
        w.writing.append(handle)


def unlink_at_once(w: World, a: int, b: int, c: int) -> None:
    answer = w.operations.unlink_at_once(w.directory(a), name(b))
    if answer:
        raise Refused(-answer)


def mkdir(w: World, a: int, b: int, c: int) -> None:
    w.learn(result(w.operations.mkdir(w.directory(a), name(b), 0o755 | (c % 2) << 10, CONTEXT)))


def symlink(w: World, a: int, b: int, c: int) -> None:
    w.learn(result(w.operations.symlink(w.directory(a), name(b), b"t" * (c + 1), CONTEXT)))


def link(w: World, a: int, b: int, c: int) -> None:
    w.learn(result(w.operations.link(w.node(c), w.directory(a), name(b), CONTEXT)))


def unlink(w: World, a: int, b: int, c: int) -> None:
    result(w.operations.unlink(w.directory(a), name(b), CONTEXT))


def rmdir(w: World, a: int, b: int, c: int) -> None:
    result(w.operations.rmdir(w.directory(a), name(b), CONTEXT))


def rename(w: World, a: int, b: int, c: int) -> None:
    flags = (0, 0, pyfuse3.RENAME_EXCHANGE, pyfuse3.RENAME_NOREPLACE)[c // 16 % 4]
    result(w.operations.rename(w.directory(a), name(b), w.directory(c), name(c // 4), flags, CONTEXT))


def lookup(w: World, a: int, b: int, c: int) -> None:
    """As the kernel does it: C first."""
    directory, wanted = w.directory(a), name(b)
    entry = w.kernel.lookup(directory, wanted)
    if entry is None:
        w.learn(result(w.operations.lookup(directory, wanted, CONTEXT)))
    elif entry.node:
        w.told[entry.node] = w.told.get(entry.node, 0) + 1


def look_at(w: World, a: int, b: int, c: int) -> None:
    result(w.operations.getattr(w.node(a), CONTEXT))


def setattr_(w: World, a: int, b: int, c: int) -> None:
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode, wanted.st_uid, wanted.st_gid = cast(Any, (b * 64 + c) & 0o7777), b, c
    wanted.st_size, wanted.st_atime_ns = c * c * 100, -b
    wanted.st_mtime_ns, wanted.st_ctime_ns = c - (1 << 62), b * 10**9 + 999_999_999
    fields = SimpleNamespace(**{f"update_{f}": bool(b * 5 + c >> i & 1) for i, f in enumerate(FIELDS)})
    result(w.operations.setattr(w.node(a), wanted, cast(Any, fields), None, CONTEXT))


def open_(w: World, a: int, b: int, c: int) -> None:
    node = w.node(a)
    inode = w.inode(node)
    if inode is None or inode.mode >> 12 != 8:
        return
    flags = (os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDONLY, os.O_RDONLY | os.O_TRUNC)[b % 4]
    handle = w.kernel.open(node, flags)
    if handle is None:
        handle = int(cast(Any, result(w.operations.open(node, flags, CONTEXT)).fh))
    if handle >> 63:
        w.writing.append(handle)


def release(w: World, a: int, b: int, c: int) -> None:
    if w.writing:
        handle = w.writing.pop(a % len(w.writing))
        if b % 2:
            result(w.operations.release(handle))
        else:
            assert w.kernel.release(handle & INO_MASK, handle)


def write(w: World, a: int, b: int, c: int) -> None:
    if w.writing:
        result(w.operations.write(w.writing[a % len(w.writing)], b * 700, bytes(c * 90)))


def post(w: World, a: int, b: int, c: int) -> None:
    """As the kernel does it: C first, while there is room, and what it has answered is done before all else."""
    begin_posting(w)
    for k, handle in enumerate(w.writing[a % len(w.writing) :][: c % 4] if w.writing else []):
        payload = bytes([b + k + 1]) * (b * 90 + k + 1)
        written = w.kernel.write(handle & INO_MASK, handle, payload)
        if written is None:
            w.operations.end_posting()
            result(w.operations.write(handle, 0, payload))
            begin_posting(w)
        else:
            assert written == len(payload)
            w.posted += 1
        if b % 4 == k:
            post_unlink(w, a, b)
    if c % 8 > 4:
        post_unlink(w, a + c, b)
        if b % 3 == 0:  # it may be what has just lost its name
            forget(w, a, 63, 1)
    w.operations.end_posting()


def begin_posting(w: World) -> None:
    """What `Operations.begin_posting` does for a mount that commits."""
    state = w.operations.answers.state
    state.removes, state.room = w.engine.unhindered(POSTED_MAX), w.engine.headroom(POSTED_MAX)


def post_unlink(w: World, a: int, b: int) -> None:
    directory = w.directory(a)
    before = w.engine.find(directory, name(b)) if directory <= INO_MASK else None
    if w.kernel.unlink(directory, name(b)):
        assert before is not None
        assert before.mode >> 12 != 4
        w.unlinked += 1


def xattr(w: World, a: int, b: int, c: int) -> None:
    if c % 2:
        result(w.operations.setxattr(w.node(a), b"user.x", bytes(b), CONTEXT))
    else:
        result(w.operations.removexattr(w.node(a), b"user.x", CONTEXT))


def forget(w: World, a: int, b: int, c: int) -> None:
    known = [node for node in w.told if node not in {handle & INO_MASK for handle in w.writing}]
    if not known:
        return
    node = known[a % len(known)]
    count = min(w.told[node], b + 1)
    w.told[node] -= count
    if not w.told[node]:
        del w.told[node]
    if c % 3 == 0:
        result(w.operations.forget([(node, count)]))
    elif c % 3 == 1:
        assert w.kernel.forget(node, count)
    else:
        assert w.kernel.batch_forget([(node, count)])


def bury(w: World, a: int, b: int, c: int) -> None:
    w.operations.answers.bury()
    assert all(w.told.get(ino) for ino in w.engine.orphan_inodes())


def opendir(w: World, a: int, b: int, c: int) -> None:
    node = w.directory(a)
    w.listings[result(w.operations.opendir(node, CONTEXT))] = (node, 0)


def readdir(w: World, a: int, b: int, c: int) -> None:
    """A piece of a listing, as far as what the kernel gave for it had room; now and then from its beginning again."""
    if not w.listings:
        opendir(w, a, b, c)
    handle = sorted(w.listings)[a % len(w.listings)]
    node, at = w.listings[handle]
    at = 0 if c % 8 == 0 else at
    taken: list[bytes] = []
    result(w.operations.readdir(handle, at, cast(Any, (taken, b % 6 + 1))))
    for entry in taken:
        if entry == b".zfs" and node == ROOT:
            w.told[ZFS_NODE] = w.told.get(ZFS_NODE, 0) + 1
        elif entry not in (b".", b".."):
            found = w.tree(node).find(node & INO_MASK, entry)
            assert found is not None
            w.told[found.ino | node & ~INO_MASK] = w.told.get(found.ino | node & ~INO_MASK, 0) + 1
            if found.ino | node & ~INO_MASK not in w.nodes:
                w.nodes.append(found.ino | node & ~INO_MASK)
    w.listings[handle] = (node, at + len(taken))


def releasedir(w: World, a: int, b: int, c: int) -> None:
    if w.listings:
        handle = sorted(w.listings)[a % len(w.listings)]
        del w.listings[handle]
        result(w.operations.releasedir(handle))


def commit(w: World, a: int, b: int, c: int) -> None:
    w.engine.commit()
    while w.engine.background_step():
        pass


def snapshot(w: World, a: int, b: int, c: int) -> None:
    text = f"s{len(w.engine.snapshots())}"
    w.engine.snapshot(text)
    w.learn(result(w.operations.lookup(ZFS_NODE, b"snapshot", CONTEXT)))
    w.learn(result(w.operations.lookup(ZFS_NODE + 1, text.encode(), CONTEXT)))


def evict(w: World, a: int, b: int, c: int) -> None:
    """What want of room does, at its worst: everything goes."""
    w.operations.answers.clear()
    w.crowd()


STEPS: Final[tuple[Callable[[World, int, int, int], None], ...]] = (
    mknod, create, create_at_once, mkdir, symlink, link, unlink, unlink_at_once, rmdir, rename, rename, lookup, look_at,
    setattr_, open_, release, write, post, post, xattr, forget, forget, bury, opendir, readdir, readdir, releasedir,
    commit, snapshot, evict,
)  # fmt: skip
NUMBERS = st.integers(0, 63)


def at(step: Callable[[World, int, int, int], None], a: int = 0, b: int = 0, c: int = 0) -> tuple[int, int, int, int]:
    return STEPS.index(step), a, b, c


SOMETHING: Final = (at(mkdir, 0, 0), at(mkdir, 0, 1), at(create, 1, 0), at(mknod, 1, 1), at(mkdir, 2, 0))


def run(steps: list[tuple[int, int, int, int]], *, crowded: bool = False, warm: bool = False) -> World:
    w = made(crowded=crowded)
    with w.kernel:
        for step in SOMETHING:
            STEPS[step[0]](w, *step[1:])
        for which, a, b, c in steps:
            with suppress(Refused):
                STEPS[which](w, a, b, c)
            w.check()
            if warm:
                w.warm()
        for node, count in list(w.told.items()):
            result(w.operations.forget([(node, count)]))
        w.operations.answers.bury()
        assert w.engine.orphans == 0
        assert len(w.operations.answers) == 0
        assert w.engine.failed is None
        w.engine.commit()
        assert w.engine.problems() == []
        w.engine.close()
    return w
