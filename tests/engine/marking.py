"""Steps of the model's world that change what is said about snapshots: holds, labels, names, bookmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tzfs import errors
from tzfs.engine.engine import Engine
from tzfs.format import keys
from tzfs.format.keys import Table

if TYPE_CHECKING:
    from tests.engine.plain import Plain

TAGS = ("keep", "backup")
MARKING_WEIGHTS = {"hold": 2, "release": 2, "label": 2, "retitle": 2, "bookmark": 3, "unbookmark": 3}


class Marking:
    """The steps; `World` has the rest."""

    model: Plain
    engine: Engine
    names: int
    _both: Callable[[Callable[[], object], Callable[[], None]], object]

    def retitled(self, old: str, new: str) -> None:
        """A snapshot gets another name: for worlds that remember more of snapshots."""

    def _snapshot(self, number: int) -> str:
        """Most often one that is there."""
        found = sorted(self.model.snapshots)
        return found[number % len(found)] if found and number % 8 else "none"

    def _known(self, name: str) -> None:
        if name not in self.model.snapshots:
            raise errors.NotFound("")

    def do_hold(self, a: int, b: int, c: int, d: int) -> None:
        names, tag = {self._snapshot(a), self._snapshot(b)}, TAGS[c % 2]

        def plain() -> None:
            for name in names:
                self._known(name)
            for name in names:
                if tag in self.model.holds.get(name, ()):
                    raise errors.Exists("")
            for name in names:
                self.model.holds.setdefault(name, set()).add(tag)

        if len(names) == 1 or "none" not in names:  # of several errors it is open which comes
            self._both(lambda: self.engine.marks.hold(tag, sorted(names)), plain)

    def do_release(self, a: int, b: int, c: int, d: int) -> None:
        name, tag = self._snapshot(a), TAGS[c % 2]

        def plain() -> None:
            if tag not in self.model.holds.get(name, ()):
                raise errors.NotFound("")
            self.model.holds[name].remove(tag)

        self._both(lambda: self.engine.marks.release(tag, [name]), plain)

    def do_label(self, a: int, b: int, c: int, d: int) -> None:
        name, key, value = self._snapshot(a), f"test:{'xyz'[b % 3]}", None if c % 3 == 0 else "v" * (c * 40)

        def plain() -> None:
            self._known(name)
            labels = dict(self.model.labels.get(name, {}))
            if value is None:
                labels.pop(key, None)
            else:
                labels[key] = value
            if sum(map(len, labels.values())) > 3900:
                raise errors.LimitReached("")
            self.model.labels[name] = labels

        self._both(lambda: self.engine.marks.label([name], {key: value}), plain)

    def do_retitle(self, a: int, b: int, c: int, d: int) -> None:
        old = self._snapshot(a)
        self.names += 1
        new = self._snapshot(b) if b % 3 == 0 else f"r{self.names}"

        def plain() -> None:
            self._known(old)
            if new in self.model.snapshots:
                raise errors.Exists("")
            self.retitled(old, new)
            self.model.snapshots[new] = self.model.snapshots.pop(old)
            self.model.holds[new] = self.model.holds.pop(old, set())
            self.model.labels[new] = self.model.labels.pop(old, {})

        if new != "none":
            self._both(lambda: self.engine.marks.rename(old, new), plain)

    def do_bookmark(self, a: int, b: int, c: int, d: int) -> None:
        snapshot, name = self._snapshot(a), f"b{b % 4}"
        record = self.engine.snapshots().get(snapshot)

        def plain() -> None:
            self._known(snapshot)
            if name in self.model.bookmarks:
                raise errors.Exists("")
            assert record is not None
            self.model.bookmarks[name] = (record.epoch, sorted(self.model.snapshots[snapshot]))

        self._both(lambda: self.engine.bookmarks.create(snapshot, name), plain)

    def do_unbookmark(self, a: int, b: int, c: int, d: int) -> None:
        names = [f"b{a % 4}", f"b{b % 4}"][: 1 + c % 2]

        def plain() -> None:
            for name in names:
                if name not in self.model.bookmarks:
                    raise errors.NotFound("")
            for name in set(names):
                del self.model.bookmarks[name]

        self._both(lambda: self.engine.bookmarks.destroy(names), plain)

    def check_marks(self) -> None:
        """What is said of the snapshots; and that of each inode a bookmark's snapshot had, and that is gone since,
        there is a row that says so."""
        model, engine = self.model, self.engine
        for name, record in engine.snapshots().items():
            assert set(record.holds) == set(model.holds.get(name, ())), name
            labels = {key: value for key, value in record.properties.items() if key != "test:a"}
            assert labels == model.labels.get(name, {}), name
        assert {name: b.epoch for name, b in engine.bookmarks.all().items()} == {
            name: epoch for name, (epoch, _) in model.bookmarks.items()
        }
        if engine.dirty or not model.bookmarks:
            return
        txn = engine.meta.begin_read()
        try:
            for epoch, inodes in model.bookmarks.values():
                changed = [keys.change_parts(key) for key, _ in txn.range(Table.CHANGE, keys.u64(epoch + 1))]
                told = {int.from_bytes(prefix, "big") for _, table, prefix in changed if table is Table.INODE}
                assert set(inodes) - model.nodes.keys() <= told
        finally:
            txn.close()
