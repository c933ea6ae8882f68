"""The program that is recorded on a whole store: its verbs, in any order, as the command line calls them.

After each verb it says what the store shows, as a copy of it does, and that this is durable:

    python -m tests.crash.store_workload STORE MARKS SEED STEPS
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

import tzfs
from tests.dying import copied
from tests.engine.batches import small_batches
from tests.noise import noise
from tzfs import applying, errors, receiving, time_travel
from tzfs.engine.merge import Side
from tzfs.lifecycle import State
from tzfs.management import Store, open_store
from tzfs.tree import Tree

NAMES: Final = ("a", "b", "c", "team/d")
SNAPSHOTS: Final = ("r", "s", "t")
FILES: Final = ("f", "g", "h", "d/f", "d/g")
REFUSED: Final = (
    errors.BadStream, errors.Busy, errors.Diverged, errors.Exists, errors.InvalidArgument, errors.NotEmpty,
    errors.NotFound, errors.NotSupported, errors.UsageError, errors.WrongState,
)  # fmt: skip
Shown = dict[str, dict[str, str]]  # of each filesystem: a digest of each snapshot and of the head (""), and its origin


class Verbs:
    """One of each; a verb that the store refuses does nothing."""

    def __init__(self, store: Store, r: random.Random) -> None:
        self.store, self.r = store, r
        self.made = 0

    def _any(self) -> str:
        names = [str(info.name) for info in self.store.filesystems()]
        return self.r.choice(names or ["none"])

    def _snapshot(self, name: str | None = None) -> str:
        there = [str(info.name) for info in self.store.snapshots(name or self._any())]
        return self.r.choice(there or ["none@none"])

    def _clone(self) -> str:
        clones = [str(info.name) for info in self.store.filesystems() if info.origin is not None]
        return self.r.choice(clones or ["none"])

    def create(self) -> None:
        self.store.create(self.r.choice(NAMES))

    def write(self) -> None:
        with self.store.open(self._any()) as fs:
            if not fs.exists("/d"):
                fs.mkdir("/d")
            for _ in range(self.r.randint(1, 6)):
                path = "/" + self.r.choice(FILES)
                if self.r.random() < 0.2 and fs.exists(path):
                    fs.unlink(path)
                else:
                    self.made += 1
                    size = self.r.choice((10, 5000, 40_000, 300_000))
                    fs.write_bytes(path, noise(size) if self.r.random() < 0.3 else b"%d" % self.made * (size // 4))

    def snapshot(self) -> None:
        self.store.snapshot(f"{self._any()}@{self.r.choice(SNAPSHOTS)}")

    def clone(self) -> None:
        self.store.clone(self._snapshot(), self.r.choice(NAMES))

    def flatten(self) -> None:
        self.store.flatten(self._clone())

    def apply(self) -> None:
        applying.apply(self.store, self._clone(), prefer=self.r.choice(list(Side)), safety=False)

    def rollback(self) -> None:
        time_travel.rollback(self.store, self._snapshot(), safety=False)

    def restore(self) -> None:
        time_travel.restore(self.store, self._snapshot(), ["/" + self.r.choice(FILES)], force=True)

    def receive(self) -> None:
        """All of a filesystem, as one that is new."""
        stream = io.BytesIO()
        tzfs.send(self.store, self._snapshot(), stream.write, recursive=self.r.random() < 0.5)
        stream.seek(0)
        receiving.receive(self.store, self.r.choice(NAMES), stream.read)

    def receive_more(self) -> None:
        """What another filesystem has that was received, or that this one was received from."""
        theirs = self._snapshot()
        name, stream = self._any(), io.BytesIO()
        guids = {str(info.name).partition("@")[2] for info in self.store.snapshots(name)}
        base = self.r.choice(sorted(guids) or ["none"])
        tzfs.send(self.store, theirs, stream.write, base=base)
        stream.seek(0)
        receiving.receive(self.store, name, stream.read)

    def destroy(self) -> None:
        self.store.destroy(self._any(), recursive=True)

    def destroy_snapshot(self) -> None:
        tzfs.destroy(self.store, self._snapshot())

    def rename(self) -> None:
        self.store.rename(self._any(), self.r.choice(NAMES))

    def collect(self) -> None:
        self.store.collect(self._any())


WEIGHTS: Final[dict[str, int]] = {
    "create": 6, "write": 14, "snapshot": 10, "clone": 10, "flatten": 6, "apply": 8, "rollback": 4, "restore": 4,
    "receive": 8, "receive_more": 3, "destroy": 3, "destroy_snapshot": 4, "rename": 3, "collect": 4,
}  # fmt: skip


def shown(store: Store) -> Shown:
    """All that there is to see."""
    found: Shown = {}
    for info in store.filesystems():
        assert info.state is State.ACTIVE, info
        name = str(info.name)
        origin = store.catalog.origin(info)
        states = {"origin": "" if origin is None else origin[1]}
        with store.open(name) as fs:
            states[""] = digest(fs)
        for snapshot in store.snapshots(name):
            with store.open_snapshot(snapshot.name) as view:
                states["@" + snapshot.name.snapshot] = digest(view)
        found[name] = states
    return found


def digest(tree: Tree) -> str:
    whole = hashlib.sha256()
    for here, directories, files in tree.walk("/"):
        for name in sorted([*directories, *files]):
            path = f"{here.rstrip('/')}/{name}"
            stat = tree.stat(path)
            whole.update(repr((path, stat.ino, stat.mode, stat.size, stat.nlink)).encode())
            if stat.is_file:
                whole.update(tree.read_bytes(path))
    return whole.hexdigest()


def main(folder: Path, marks: Path, seed: int, count: int) -> None:
    small_batches(pytest.MonkeyPatch())
    out, r = os.open(marks, os.O_WRONLY), random.Random(seed)
    elsewhere = Path(tempfile.mkdtemp())

    def mark(**said: object) -> None:
        os.write(out, json.dumps(said).encode())

    def look() -> Shown:
        with open_store(copied(folder, elsewhere / "copy")) as there:
            found = shown(there)
        shutil.rmtree(elsewhere / "copy")
        return found

    mark(op=0, state=look(), durable=True)
    chosen = [weight * r.choice((0.5, 1, 2)) for weight in WEIGHTS.values()]
    for number, kind in enumerate(["create", "write", "snapshot", *r.choices(list(WEIGHTS), chosen, k=count)], 1):
        mark(op=number, begins=kind)
        with open_store(folder) as store:
            verb: Callable[[], None] = getattr(Verbs(store, r), kind)
            with suppress(*REFUSED):
                verb()
        mark(op=number, state=look(), durable=True)
    shutil.rmtree(elsewhere)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
