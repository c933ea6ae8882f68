"""The program that is recorded: the engine and its model side by side, on disk, any operations in any order; where the
folder has a clone, flattening too.

After each operation, and each part of one that is a change of its own, it says what the model looks like, and whether
that has been acknowledged as durable:

    python -m tests.crash.workload FOLDER MARKS SEED STEPS
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import count as count_from
from pathlib import Path
from typing import Final

import pytest

from tests.engine.batches import small_batches
from tests.engine.plain import ROOT, Node, Plain
from tests.engine.world import GUID, DiskStores, Step
from tests.model.family import Clone
from tests.model.world import EDITS, WEIGHTS, Everything
from tests.store.paged import all_direct
from tzfs.engine.engine import Engine
from tzfs.engine.head import S_IFLNK, S_IFMT, S_IFREG
from tzfs.engine.inherited import Ancestry
from tzfs.engine.view import View
from tzfs.opening import Reader, format_clone_of
from tzfs.origins import open_ancestry, origin_of
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.redo import RedoLog
from tzfs.store.segments import Segments

OFTEN: Final = {
    "commit": 30,
    "snapshot": 4,
    "destroy": 3,
    "pour": 6,
    "background": 12,
    "restart": 2,
    "crash": 2,
    "flush": 6,
    "absorb": 8,
    "compact": 6,
    "move": 6,
    "rollback": 3,
    "broken_off": 2,
    "restore": 4,
    "restore_broken_off": 1,
    "apply": 6,
    "apply_broken_off": 2,
    "receive": 5,
    "run": 6,
    "undo": 5,
}
MARKS: Final = "#"
PARTITION: Final = 1  # of a clone's origin, which lies beside it
ORIGIN_SNAPSHOT: Final = "origin"
State = dict[str, str]  # a digest of each: "" is the head, MARKS what is said of snapshots, the others are snapshots


class Formatted(DiskStores):
    """The stores in a folder that has been formatted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.meta = LmdbMeta(folder / "meta")
        self.payload = Segments(folder / "segments", guid=GUID)
        self.redo = RedoLog(folder / "redo", GUID)
        self._origins = ExitStack()
        self._ancestry: Ancestry | None = None

    def ancestry(self) -> Ancestry | None:
        """Its origins do not change: they are opened once, and again where it is opened again."""
        if (origin := origin_of(self.meta)) is None:
            return None
        if self._ancestry is None:
            self._ancestry = open_ancestry(self._folder, origin, self._origins)
        return self._ancestry

    def close(self) -> None:
        self._origins.close()
        self._ancestry = None
        super().close()


def clone(origin: Path, folder: Path) -> None:
    """Makes `folder` a clone of a snapshot with something of everything in it, of a filesystem made in `origin`."""
    world = Everything(DiskStores(origin))
    r = random.Random(0)
    for kind in r.choices(sorted((EDITS | {"snapshot", "open"}) - {"prune_tree", "unlink", "rmdir"}), k=300):
        world.apply((kind, r.randrange(64), r.randrange(64), r.randrange(64), r.randrange(64)))
    assert len(world.model.nodes) > 8
    world.engine.snapshot(ORIGIN_SNAPSHOT)
    world.engine.close()
    world.stores.close()
    with Reader(origin, GUID, ORIGIN_SNAPSHOT) as source:
        format_clone_of(source, folder, GUID, partition=PARTITION)


def generate(seed: int, count: int, *, cloned: bool = False) -> list[Step]:
    r = random.Random(seed)
    weights = {**WEIGHTS, **OFTEN, "flatten": 6} if cloned else {**WEIGHTS, **OFTEN}
    chosen = [w * r.choice((0.3, 1, 1, 3)) for w in weights.values()]
    kinds = r.choices(list(weights), chosen, k=count)
    if not cloned and seed % 2:
        kinds[0] = "receive"  # into an empty filesystem: all of it
    return [(kind, r.randrange(64), r.randrange(64), r.randrange(64), r.randrange(64)) for kind in kinds]


def as_cloned(stores: Formatted) -> Clone:
    """A world of a clone in which nothing has happened yet; its model is what the engine shows."""
    world = Clone(stores, Plain())
    world.model.nodes = _nodes(world.engine)
    for ino, node in world.model.nodes.items():
        if node.is_dir:
            node.parent = world.engine.parent_of(ino)
    world.committed = world.model.copy()
    return world


# -- states ------------------------------------------------------------------------------------------------------------


def state_of_model(model: Plain) -> State:
    named = {ino: node for ino, node in model.nodes.items() if ino not in model.orphans}
    said = {name: (sorted(model.holds.get(name, ())), model.labels.get(name, {})) for name in model.snapshots}
    bookmarks = {name: epoch for name, (epoch, _) in model.bookmarks.items()}
    return {
        "": _digest(named),
        MARKS: _marks(said, bookmarks),
        **{name: _digest(nodes) for name, nodes in model.snapshots.items()},
    }


def state_of(engine: Engine) -> State:
    said = {
        name: (sorted(s.holds), {k: v for k, v in s.properties.items() if k != "test:a"})
        for name, s in engine.snapshots().items()
    }
    bookmarks = {name: b.epoch for name, b in engine.bookmarks.all().items()}
    return {
        "": _digest(_nodes(engine)),
        MARKS: _marks(said, bookmarks),
        **{name: _digest(_nodes(engine.view(name))) for name in engine.snapshots()},
    }


def _marks(said: Mapping[str, tuple[list[str], dict[str, str]]], bookmarks: Mapping[str, int]) -> str:
    text = repr(sorted((name, tags, sorted(labels.items())) for name, (tags, labels) in said.items()))
    return hashlib.sha256((text + repr(sorted(bookmarks.items()))).encode()).hexdigest()


def _nodes(source: Engine | View) -> dict[int, Node]:
    """All that is reachable from the root, read whole."""
    nodes: dict[int, Node] = {}
    todo = [ROOT]
    while todo:
        ino = todo.pop()
        if ino in nodes:
            continue
        inode = source.inode(ino)
        node = nodes[ino] = Node(inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev)
        if node.is_dir:
            node.entries = {name: child for name, child, _ in _listing(source, ino)}
            todo += node.entries.values()
        elif inode.mode & S_IFMT == S_IFREG:
            node.data = bytearray(source.read(ino, 0, inode.size))
        elif inode.mode & S_IFMT == S_IFLNK:
            node.data = bytearray(source.readlink(ino))
        node.xattrs = {name: source.getxattr(ino, name) for name in source.listxattr(ino)}
    return nodes


def _listing(source: Engine | View, ino: int) -> Iterator[tuple[bytes, int, int]]:
    after = b""
    while batch := source.readdir(ino, after, 100):
        yield from batch
        after = batch[-1][0]


def _digest(nodes: Mapping[int, Node]) -> str:
    whole = hashlib.sha256()
    for ino in sorted(nodes):
        n = nodes[ino]
        fields = (ino, n.mode, n.uid, n.gid, n.nlink, n.rdev, len(n.data), sorted(n.entries.items()))
        whole.update(repr((fields, sorted(n.xattrs.items()))).encode() + n.data)
    return whole.hexdigest()


def main(folder: Path, marks: Path, seed: int, count: int) -> None:
    patch = pytest.MonkeyPatch()
    small_batches(patch)
    if seed % 2:
        all_direct(patch)
    out = os.open(marks, os.O_WRONLY)

    def mark(**said: object) -> None:
        os.write(out, json.dumps(said).encode())

    stores = Formatted(folder)
    cloned = origin_of(stores.meta) is not None
    world = as_cloned(stores) if cloned else Everything(stores)
    numbers = count_from(1)
    mark(op=0, state=state_of_model(world.model), durable=True)
    for step in generate(seed, count, cloned=cloned):
        op = next(numbers)

        def said(kind: str = step[0]) -> None:
            nonlocal op
            mark(op=op, state=state_of_model(world.model), durable=True)
            op = next(numbers)
            mark(op=op, begins=kind)

        world.said = said
        mark(op=op, begins=step[0])
        commits = world.commits
        world.apply(step)
        durable = step[0] in ("commit", "crash", "restart") or world.commits != commits
        durable = durable and not world.committed_before
        mark(op=op, state=state_of_model(world.model), durable=durable)
    world._let_jobs_end()
    world.engine.close()
    world.stores.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
