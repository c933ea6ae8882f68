"""Diffs between any two moments of any history, against full copies; and what each kind of change is told as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pytest

from tests.engine import test_rollback as rollbacks
from tests.engine import world as histories
from tests.engine.batches import small_batches
from tests.engine.conftest import Workspace
from tests.engine.plain import ROOT, Node
from tests.engine.world import DiskStores, MemoryStores
from tzfs import limits
from tzfs.engine.diff import Comparison, Difference
from tzfs.engine.engine import Engine
from tzfs.engine.history import FileVersion, file_versions
from tzfs.engine.moments import Moments
from tzfs.engine.view import Tables
from tzfs.errors import InvalidArgument, NotFound
from tzfs.format.keys import Epoch, Table
from tzfs.store.interface import ReadTransaction, Row

Nodes = dict[int, Node]
Name = tuple[int, bytes]


def diff(engine: Engine, older: str, newer: str | None = None, *, tables: Tables | None = None) -> list[Difference]:
    with Moments(tables or engine.readable, engine.payload) as moments:
        return [d for d in Comparison(*moments.ordered(older, newer), moments.tables).run() if d is not None]


def told(engine: Engine, older: str, newer: str | None = None) -> list[str]:
    """As lines: the kind, the path, the new path or what is changed."""
    engine.commit()
    return [line(found) for found in diff(engine, older, newer)]


def line(found: Difference) -> str:
    more = [] if found.new_path is None else [found.new_path]
    more += [",".join(found.changed)] if found.changed else []
    more += [f"{found.links:+}"] if found.links else []
    return " ".join([found.kind, found.path, *more])


# -- against full copies ---------------------------------------------------------------------------------------------


def names(nodes: Nodes) -> dict[int, set[Name]]:
    found: dict[int, set[Name]] = {}
    for directory, node in nodes.items():
        for name, ino in node.entries.items():
            found.setdefault(ino, set()).add((directory, name))
    return found


def path(nodes: Nodes, name: Name, of: dict[int, set[Name]]) -> str:
    directory, last = name
    if directory == ROOT:
        return "/" + last.decode()
    (above,) = of[directory]
    return f"{path(nodes, above, of)}/{last.decode()}"


def expected(old: Nodes, new: Nodes) -> set[tuple[str, int, str, str | None, int]]:
    """(kind, inode, path, new path, links) of every line that there must be."""
    lines: set[tuple[str, int, str, str | None, int]] = set()
    names_then, names_now = names(old), names(new)
    for ino in old.keys() | new.keys():
        then, now = names_then.get(ino, set()), names_now.get(ino, set())
        gone = sorted(path(old, name, names_then) for name in then - now)
        came = sorted(path(new, name, names_now) for name in now - then)
        both = min(len(gone), len(came))
        lines |= {("R", ino, a, b, 0) for a, b in zip(gone, came, strict=False)}
        lines |= {("-", ino, a, None, 0) for a in gone[both:]}
        lines |= {("+", ino, b, None, 0) for b in came[both:]}
        if ino in old and ino in new and ((then and now) or ino == ROOT):
            x, y = old[ino], new[ino]
            links = 0 if x.is_dir else len(now) - len(then)
            if facts(x) != facts(y) or links:
                here = min((path(new, name, names_now) for name in then & now or now), default="/")
                lines.add(("M", ino, here, None, links))
    return lines


def facts(node: Node) -> tuple[object, ...]:
    return node.mode, node.uid, node.gid, node.rdev, bytes(node.data), node.xattrs, len(node.entries)


def agrees(world: histories.World) -> int:
    """Whether the diffs between all moments are those of the model; how many there were.

    The model keeps no times: what differs in its mtime, perhaps because the same bytes were written again, may be told.
    """
    engine, model = world.engine, world.model
    world._let_jobs_end()
    engine.commit()
    world.commits, world.committed = engine.commits, model.copy()
    head = {ino: node for ino, node in model.nodes.items() if ino not in model.orphans}
    moments: dict[str | None, Nodes] = {None: head}
    moments.update(model.snapshots)
    order = sorted(engine.snapshots(), key=lambda name: engine.snapshots()[name].epoch)
    return sum(agree(engine, (x, moments[x]), (y, moments[y])) for x, y in combinations([*order, None], 2))


def agree(engine: Engine, older: tuple[str | None, Nodes], newer: tuple[str | None, Nodes]) -> int:
    """Whether a diff between two moments is that of the model's; how many lines it has."""
    assert older[0] is not None
    found = diff(engine, older[0], newer[0])
    real = {(d.kind.value, d.ino, d.path, d.new_path, d.links): set(d.changed) for d in found}
    assert len(real) == len(found)
    must = expected(older[1], newer[1])
    assert must <= real.keys(), f"{older[0]} to {newer[0]}"
    for more in real.keys() - must:
        assert {"mtime"} <= real[more] <= {"mtime", "contents"}, f"{older[0]} to {newer[0]}: {more}, {real[more]}"
    return len(found)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr("tzfs.engine.diff.DIRECTORIES_REMEMBERED_MAX", 4)


def run(seed: int, stores: MemoryStores | DiskStores) -> int:
    world = rollbacks.TimeWorld(stores)
    lines = 0
    try:
        for number, step in enumerate(histories.generate(seed, rollbacks.WEIGHTS)):
            world.apply(step)
            if number % 20 == 19:
                lines += agrees(world)
        return lines + agrees(world)
    finally:
        world.engine.abandon()
        stores.close()


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_the_diff_of_any_two_moments_is_that_of_their_copies(first: int) -> None:
    assert sum(run(seed, MemoryStores()) for seed in range(first, first + 20)) > 500


def test_so_it_is_on_disk(tmp_path: Path) -> None:
    assert run(500, DiskStores(tmp_path)) > 0


# -- one kind after another ------------------------------------------------------------------------------------------


def test_what_is_made_removed_written_and_renamed(ws: Workspace) -> None:
    engine = ws.engine
    folder = engine.mkdir(1, b"folder", 0o755, uid=0, gid=0).ino
    ws.file(b"inside", b"i" * 9000, folder)
    gone, written, moved = ws.file(b"gone", b"g"), ws.file(b"written", b"w" * 9000), ws.file(b"moved", b"m" * 9000)
    engine.snapshot("a")
    engine.unlink(1, b"gone")
    engine.write(written, 4096, b"W")
    engine.rename(1, b"moved", folder, b"elsewhere")
    engine.rename(1, b"folder", 1, b"renamed")
    made = ws.file(b"made", b"n")
    between = ws.file(b"between")
    engine.snapshot("b")
    engine.unlink(1, b"between")
    assert told(engine, "a") == [
        "M / size,mtime",
        "R /folder /renamed",
        "M /renamed size,mtime",
        "- /gone",
        "M /written contents,mtime",
        "R /moved /renamed/elsewhere",
        "+ /made",
    ]
    assert [d.ino for d in diff(engine, "a")] == [1, folder, folder, gone, written, moved, made]
    assert f"+ /between {between}" in [f"{d.kind} {d.path} {d.ino}" for d in diff(engine, "a", "b")]
    assert told(engine, "b") == ["M / size,mtime", "- /between"]


def test_links_are_lines_of_their_own_and_counted(ws: Workspace) -> None:
    engine = ws.engine
    ino, two = ws.file(b"f", b"1"), ws.file(b"two", b"2")
    engine.link(two, 1, b"two again")
    engine.snapshot("a")
    engine.link(ino, 1, b"g")
    engine.link(ino, 1, b"h")
    engine.unlink(1, b"two")
    assert told(engine, "a") == ["M / size,mtime", "+ /g", "+ /h", "M /f links +2", "- /two", "M /two again links -1"]
    engine.snapshot("b")
    engine.rename(1, b"f", 1, b"e")
    assert told(engine, "b") == ["M / mtime", "R /f /e"]
    engine.unlink(1, b"h")
    engine.unlink(1, b"g")
    engine.unlink(1, b"e")
    assert told(engine, "b") == ["M / size,mtime", "- /f", "- /g", "- /h"]


def test_a_file_in_the_place_of_another_and_of_another_type(ws: Workspace) -> None:
    engine = ws.engine
    ws.file(b"f", b"1")
    ws.file(b"t", b"1")
    engine.snapshot("a")
    ws.file(b"new", b"2")
    engine.rename(1, b"new", 1, b"f")
    engine.unlink(1, b"t")
    engine.mkdir(1, b"t", 0o755, uid=0, gid=0)
    assert told(engine, "a") == ["M / mtime", "- /f", "- /t", "+ /f", "+ /t"]


def test_what_came_back_to_what_it_was_is_not_told(ws: Workspace) -> None:
    engine = ws.engine
    large, small = ws.file(b"large", b"l" * 3_000_000), ws.file(b"small", b"s")
    grown = ws.file(b"grown", b"g" * 100)
    engine.setxattr(small, b"user.a", b"1")
    engine.snapshot("a")
    times = {ino: engine.inode(ino).mtime_ns for ino in (large, small, grown)}
    engine.write(large, 2_500_000, b"L")
    engine.write(large, 2_500_000, b"l")
    engine.setattr(small, size=0)
    engine.write(small, 0, b"s")
    engine.setxattr(small, b"user.a", b"2")
    engine.setxattr(small, b"user.a", b"1")
    engine.setattr(small, mode=0o600)
    engine.setattr(small, mode=0o644)
    engine.write(grown, 100, b"G" * 9000)
    engine.setattr(grown, size=100)
    for ino, mtime_ns in times.items():
        engine.setattr(ino, mtime_ns=mtime_ns)
    assert told(engine, "a") == []
    engine.write(large, 2_500_000, b"L")
    engine.setxattr(small, b"user.b", b"2")
    engine.write(grown, 99, b"G")
    for ino, mtime_ns in times.items():
        engine.setattr(ino, mtime_ns=mtime_ns)
    assert told(engine, "a") == ["M /large contents", "M /small xattr", "M /grown contents"]


def test_orphans_have_no_name_to_be_told_by(ws: Workspace) -> None:
    engine = ws.engine
    ino = ws.file(b"f", b"1")
    engine.referenced = lambda number: number in (ino, ino + 1)
    engine.snapshot("a")
    engine.unlink(1, b"f")
    ws.file(b"short")
    engine.unlink(1, b"short")
    engine.write(ino, 0, b"2")
    assert told(engine, "a") == ["M / size,mtime", "- /f"]
    engine.snapshot("b")
    engine.write(ino, 0, b"3")
    engine.forget(ino)
    assert told(engine, "b") == []


def test_a_rollback_leaves_nothing_to_tell_from_what_it_went_back_to(ws: Workspace) -> None:
    engine = ws.engine
    ino = ws.file(b"f", b"1" * 9000)
    engine.snapshot("a")
    engine.write(ino, 5, b"2")
    ws.file(b"g")
    engine.snapshot("b")
    rollbacks.rolled(engine.rollback("a"))
    assert told(engine, "a") == []
    assert told(engine, "b") == ["M / size,mtime", "M /f contents,mtime", "- /g"]


def test_the_order_is_as_zfs_wants_it(ws: Workspace) -> None:
    ws.engine.snapshot("a")
    ws.engine.snapshot("b")
    for older, newer in (("b", "a"), ("a", "a")):
        with pytest.raises(InvalidArgument):
            diff(ws.engine, older, newer)
    with pytest.raises(NotFound):
        diff(ws.engine, "a", "c")


class Counted:
    """Tables that count the rows looked at."""

    def __init__(self, meta: Tables) -> None:
        self._meta = meta
        self.rows = 0

    def begin_read(self) -> ReadTransaction:
        return CountedTransaction(self, self._meta.begin_read())


class CountedTransaction:
    def __init__(self, counted: Counted, txn: ReadTransaction) -> None:
        self._counted, self._txn = counted, txn
        self.get, self.get_many, self.close = txn.get, txn.get_many, txn.close

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        self._counted.rows += 1
        return self._txn.seek(table, prefix, epoch)

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        self._counted.rows += len(prefixes)
        return self._txn.seek_many(table, prefixes, epoch)

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        for row in self._txn.range(table, start, stop, reverse=reverse):
            self._counted.rows += 1
            yield row


def test_only_what_has_changed_is_looked_at(ws: Workspace) -> None:
    """Counted, not timed: with ten times the files, and of a large file ten times as much written, it is as much."""
    engine = ws.engine

    def looked(files: int, chunks: int) -> int:
        inos = [ws.file(b"%d-%d" % (files, i)) for i in range(files)]
        engine.snapshot(f"{files}")
        engine.write(inos[5], 0, b"x" * (chunks << limits.CHUNK_SHIFT_DEFAULT))
        engine.unlink(1, b"%d-7" % files)
        engine.commit()
        tables = Counted(engine.meta)
        assert len(diff(engine, f"{files}", tables=tables)) == 3
        return tables.rows

    assert looked(100, 80) == looked(1000, 800) - 1  # there is one snapshot more


# -- the versions of one file ----------------------------------------------------------------------------------------


def versions(engine: Engine, *path: bytes) -> list[FileVersion]:
    engine.commit()
    with Moments(engine.meta, engine.payload) as moments:
        return [found for found in file_versions(moments, path) if found is not None]


def test_a_file_has_a_version_for_each_that_some_snapshot_or_the_head_has(ws: Workspace) -> None:
    engine = ws.engine
    engine.snapshot("before")
    folder = engine.mkdir(1, b"d", 0o755, uid=0, gid=0).ino
    ino = ws.file(b"f", b"1" * 9000, folder)
    engine.snapshot("a")
    engine.snapshot("b")
    engine.write(ino, 5, b"2")
    engine.snapshot("c")
    engine.unlink(folder, b"f")
    engine.snapshot("gone")
    again = ws.file(b"f", b"3", folder)
    engine.snapshot("d")
    engine.rename(1, b"d", 1, b"e")
    engine.snapshot("elsewhere")
    engine.rename(1, b"e", 1, b"d")
    found = versions(engine, b"d", b"f")
    assert [(v.first, v.last, v.ino, v.size) for v in found] == [
        ("a", "b", ino, 9000),
        ("c", "c", ino, 9000),
        ("d", "d", again, 1),
        (None, None, again, 1),
    ]
    assert found[0].mtime_ns < found[1].mtime_ns
    assert versions(engine, b"d", b"nothing") == []
    assert versions(engine, b"d", b"f", b"below a file") == []


def test_what_was_changed_in_place_under_the_same_time_is_another_version(ws: Workspace) -> None:
    engine = ws.engine
    ino = ws.file(b"f", b"1" * 3_000_000)
    mtime_ns = engine.inode(ino).mtime_ns
    for name in ("a", "b", "c"):
        engine.snapshot(name)
        engine.write(ino, 2_000_000, b"1" if name == "a" else name.encode())
        engine.setattr(ino, mtime_ns=mtime_ns)
    assert [(v.first, v.last) for v in versions(engine, b"f")] == [("a", "b"), ("c", "c"), (None, None)]


def test_a_path_restricts_a_diff(ws: Workspace) -> None:
    engine = ws.engine
    folder = engine.mkdir(1, b"d", 0o755, uid=0, gid=0).ino
    _, inside, other = (ws.file(name, b"1", where) for name, where in ((b"o", folder), (b"i", folder), (b"dd", 1)))
    engine.snapshot("a")
    engine.rename(folder, b"o", 1, b"o")
    engine.write(inside, 0, b"2")
    engine.write(other, 0, b"2")
    engine.commit()
    with Moments(engine.meta, engine.payload) as moments:
        a, b = moments.ordered("a", None)

        def within(*path: bytes) -> list[str]:
            return [line(d) for d in Comparison(a, b, moments.tables, path).run() if d is not None]

        assert within(b"d") == ["M /d size,mtime", "R /d/o /o", "M /d/i contents,mtime"]
        assert within(b"d", b"i") == ["M /d/i contents,mtime"]
        assert within(b"o") == within(b"d", b"o") == ["R /d/o /o"]
        assert len(within()) == 5
        with pytest.raises(NotFound):
            within(b"d", b"none")
