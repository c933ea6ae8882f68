"""Applying clones in a store: fast-forward and merge against plain trees, conflicts, and a death at any step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.dying import copied, died
from tzfs import errors, failpoints, limits
from tzfs.applying import apply
from tzfs.engine.merge import Side
from tzfs.filesystem import FileSystem
from tzfs.management import Store, open_store
from tzfs.rolling_back import roll_back
from tzfs.tree import Tree

POINTS = ("apply.planned", "apply.named", "staging.batch", "staging.flip", "staging.flipped")
BIG = bytes(range(1, 256)) * 3000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "store")
    opened.create("ws")
    with opened.open("ws") as fs:
        fs.mkdir("/d")
        fs.mkdir("/e")
        fs.write_bytes("/d/big", BIG)
        fs.write_bytes("/d/small", b"small")
        fs.link("/d/small", "/hard")
        fs.symlink("d", "/link")
        fs.setxattr("/d", "user.x", b"v" * 5000)
        fs.write_bytes("/gone", b"gone")
    opened.snapshot("ws@s")
    opened.clone("ws@s", "c")
    with opened:
        yield opened


Entry = tuple[int, str]  # a directory, and a name in it


class Plain:
    """A tree as plain maps: what each place names, and what each inode is; `of` gives the number of an inode."""

    def __init__(self, fs: Tree, of: Callable[[int], int] = lambda ino: ino) -> None:
        self.places: dict[Entry, int] = {}
        self.inodes: dict[int, dict[str, object]] = {}
        todo = [("/", 1)]
        self.inodes[1] = self._inode(fs, "/")
        while todo:
            path, directory = todo.pop()
            for name, stat in fs.scandir(path):
                below, ino = f"{path.rstrip('/')}/{name}", of(stat.ino)
                self.places[directory, name] = ino
                self.inodes[ino] = self._inode(fs, below)
                if stat.is_dir:
                    todo.append((below, ino))

    @staticmethod
    def _inode(fs: Tree, path: str) -> dict[str, object]:
        stat = fs.stat(path, follow_symlinks=False)
        attributes = {} if stat.is_symlink else {key: fs.getxattr(path, key) for key in fs.listxattr(path)}
        contents = fs.read_bytes(path) if stat.is_file else fs.readlink(path) if stat.is_symlink else None
        return {"contents": contents, "mode": stat.mode, "mtime": stat.mtime_ns, "xattr": attributes}

    def renumber(self, old: int, new: int) -> None:
        self.inodes[new] = self.inodes.pop(old)
        self.places = {
            (new if directory == old else directory, name): new if ino == old else ino
            for (directory, name), ino in self.places.items()
        }

    def tree(self) -> dict[str, tuple[object, ...]]:
        """By path: all that can be seen, and which names are one file."""
        names: dict[int, list[str]] = {}
        found: dict[str, int] = {"/": 1}
        todo = [("", 1)]
        while todo:
            path, directory = todo.pop()
            for (parent, name), ino in self.places.items():
                if parent == directory:
                    found[f"{path}/{name}"] = ino
                    todo.append((f"{path}/{name}", ino))
                    names.setdefault(ino, []).append(f"{path}/{name}")
        assert len(found) == len(self.places) + 1, "all of it hangs together"
        return {
            path: (
                *(v for k, v in self.inodes[i].items() if k != "mtime" or self.inodes[i]["contents"] is not None),
                tuple(sorted(names.get(i, []))),
            )
            for path, i in found.items()
        }


def merged(base: Plain, ours: Plain, theirs: Plain) -> Plain:
    """The plain three-way merge of what has no conflict: of each map, whoever has changed it alone has it."""
    out = Plain.__new__(Plain)
    out.places, out.inodes = {}, {}
    for place in {*base.places, *ours.places, *theirs.places}:
        b, o, t = (side.places.get(place) for side in (base, ours, theirs))
        if (value := t if o == b else o) is not None:
            out.places[place] = value
    for ino in {1, *out.places.values()}:
        old, here, there = base.inodes.get(ino), ours.inodes.get(ino), theirs.inodes.get(ino)
        if old is None or here is None or there is None:
            out.inodes[ino] = dict(here or there or {})
            continue
        made = out.inodes[ino] = {key: there[key] if here[key] == old[key] else here[key] for key in old}
        if here["contents"] == old["contents"] and there["contents"] != old["contents"]:
            made["mtime"] = there["mtime"]
        elif here["contents"] != old["contents"]:  # alone, or both to the same
            made["mtime"] = here["mtime"]
        elif here["mtime"] != old["mtime"] and there["mtime"] != old["mtime"]:
            made["mtime"] = max(int(str(here["mtime"])), int(str(there["mtime"])))
    return out


def plain(store: Store, name: str, of: Callable[[int], int] = lambda ino: ino) -> Plain:
    with store.open(name) as fs:
        assert fs._engine.problems() == []
        return Plain(fs, of)


def plain_base(store: Store) -> Plain:
    with store.open_snapshot("ws@s") as view:
        return Plain(view)


def theirs_of(store: Store, base: Plain, ours: Plain) -> Plain:
    """The clone; what is new in it has other numbers than what is new in its origin, but where both made the same."""
    theirs = plain(store, "c", lambda ino: ino if ino in base.inodes else -ino)
    again = True
    while again:  # what is in a directory has a place once that has its number
        again = False
        for place, new in sorted(theirs.places.items(), key=lambda each: (abs(each[1]), each[0])):
            same = ours.places.get(place, 0)
            taken = same in base.inodes or same in theirs.inodes
            if new < 0 and same and not taken and alike(ours.inodes[same], theirs.inodes[new]):
                theirs.renumber(new, same)
                again = True
                break
    return theirs


def alike(a: dict[str, object], b: dict[str, object]) -> bool:
    return {**a, "mtime": 0} == {**b, "mtime": 0}


def change(fs: FileSystem, rng: random.Random, steps: int) -> None:
    """Any changes, of names, contents and attributes."""
    for _ in range(steps):
        paths = [f"{here.rstrip('/')}/{name}" for here, d, f in fs.walk("/") for name in (*d, *f)]
        directories = ["", *(path for path in paths if fs.stat(path, follow_symlinks=False).is_dir)]
        files = [path for path in paths if fs.stat(path, follow_symlinks=False).is_file]
        new = f"{rng.choice(directories)}/{rng.choice('abcdefghijklmnop')}"
        kind = rng.randrange(9)
        try:
            if kind == 0:
                fs.write_bytes(new, rng.randbytes(rng.choice((0, 10, 9000, 300_000))))
            elif kind == 1:
                fs.mkdir(new)
            elif kind == 2:
                fs.rename(rng.choice(paths), new)
            elif kind == 3:
                fs.unlink(rng.choice(paths))
            elif kind == 4 and files:
                with fs.open(rng.choice(files), "r+b") as file:
                    file.seek(rng.choice((0, 5000, 400_000)))
                    file.write(rng.randbytes(100))
            elif kind == 5 and files:
                fs.truncate(rng.choice(files), rng.choice((0, 100, 70_000, 500_000)))
            elif kind == 6:
                fs.setxattr(rng.choice(paths), "user.y", rng.randbytes(rng.choice((3, 6000))))
            elif kind == 7 and files:
                fs.link(rng.choice(files), new)
            elif rng.random() < 0.3:
                fs.rmtree(rng.choice(directories[1:] or ["/none"]))
            else:
                fs.chmod(rng.choice(paths), rng.choice((0o700, 0o755)))
        except errors.TzfsError:
            continue


def change_theirs(fs: FileSystem) -> None:
    with fs.open("/d/big", "r+b") as file:
        file.seek(300_000)
        file.write(b"theirs")
    fs.rename("/d", "/e/moved")
    fs.unlink("/gone")
    fs.unlink("/hard")
    fs.mkdir("/new")
    fs.write_bytes("/new/file", b"n" * 10_000)
    fs.link("/new/file", "/new/again")
    fs.setxattr("/new", "user.z", b"z" * 6000)


def change_ours(fs: FileSystem) -> None:
    fs.write_bytes("/e/ours", b"ours")
    fs.write_bytes("/d/added", b"into what they move")
    fs.chmod("/d/big", 0o600)


# -- what it makes ---------------------------------------------------------------------------------------------------


def test_where_the_origin_has_not_changed_it_becomes_what_the_clone_is(store: Store) -> None:
    with store.open("c") as fs:
        change_theirs(fs)
    done = apply(store, "c")
    assert done.fast_forward
    assert done.conflicts == ()
    assert plain(store, "ws").tree() == plain(store, "c").tree()
    assert done.safety is not None
    with store.open("ws") as fs:
        assert fs.log()[-1].kind == "apply"
        roll_back(fs._engine, done.safety)
    assert plain(store, "ws").tree() == plain_base(store).tree()


def test_changes_of_both_are_merged(store: Store) -> None:
    with store.open("c") as fs:
        change_theirs(fs)
    with store.open("ws") as fs:
        change_ours(fs)
    base = plain_base(store)
    ours = plain(store, "ws")
    expected = merged(base, ours, theirs_of(store, base, ours)).tree()
    done = apply(store, "c")
    assert not done.fast_forward
    assert plain(store, "ws").tree() == expected
    assert {"/e/moved/added", "/new/again", "/e/ours"} < expected.keys()
    assert store.check("ws", payload=True).problems == ()


def test_only_what_was_touched_is_copied(store: Store) -> None:
    with store.open("c") as fs, fs.open("/d/big", "r+b") as file:
        file.seek(300_000)
        file.write(b"theirs")
    with store.open("ws") as fs:
        before = fs._engine.counters.bytes
    assert apply(store, "c", safety=False).inodes == 1
    with store.open("ws") as fs:
        assert fs.read_bytes("/d/big") == BIG[:300_000] + b"theirs" + BIG[300_006:]
        assert abs(fs._engine.counters.bytes - before) < 4 * limits.PAGE_BYTES


def test_what_both_have_changed_alike_is_no_conflict(store: Store) -> None:
    def same(fs: FileSystem) -> None:
        change_theirs(fs)
        fs.mkdir("/both")
        fs.symlink("file", "/both/link")
        fs.write_bytes("/both/file", b"same")

    for name in ("ws", "c"):
        with store.open(name) as fs:
            fs.write_bytes(f"/of-{name}", b"so that their numbers differ")
            same(fs)
            fs.write_bytes(f"/both/{name}", b"beside")
    base, ours = plain_base(store), plain(store, "ws")
    expected = merged(base, ours, theirs_of(store, base, ours)).tree()
    done = apply(store, "c")
    assert [path for path in done.paths if path.startswith(("/both", "/of", "/new", "/hard"))] == ["/both/c", "/of-c"]
    assert plain(store, "ws").tree() == expected
    assert {"/both/ws", "/both/c", "/both/link"} < expected.keys()
    assert store.check("ws", payload=True).problems == ()


def test_a_clone_is_applied_again_with_what_has_been_added_to_it(store: Store) -> None:
    with store.open("c") as fs:
        change_theirs(fs)
    apply(store, "c")
    assert apply(store, "c").inodes == 0
    with store.open("ws") as fs:
        fs.write_bytes("/new/ours", b"ours")
    with store.open("c") as fs:
        fs.write_bytes("/new/theirs", b"theirs")
        fs.link("/new/file", "/e/third")
    apply(store, "c")
    with store.open("ws") as fs:
        assert sorted(fs.listdir("/new")) == ["again", "file", "ours", "theirs"]
        assert fs.stat("/e/third").ino == fs.stat("/new/file").ino
        assert fs.read_bytes("/new/theirs") == b"theirs"
    assert store.check("ws", payload=True).problems == ()


def test_a_quota_that_is_used_up_on_the_way_refuses_it_and_no_more(store: Store) -> None:
    with store.open("c") as fs:
        fs.write_bytes("/more", random.Random(0).randbytes(1_000_000))
        fs.write_bytes("/d/big", random.Random(1).randbytes(1_000_000))
    before = plain(store, "ws").tree()
    used = store.properties("ws")["used"].exact
    assert used is not None
    store.set_property("ws", "quota", f"{int(used) + 1_500_000}")
    with pytest.raises(errors.QuotaExceeded):
        apply(store, "c", safety=False)
    assert plain(store, "ws").tree() == before
    store.set_property("ws", "quota", "none")
    apply(store, "c", safety=False)
    assert plain(store, "ws").tree() == plain(store, "c").tree()


def test_nothing_to_apply_is_nothing_done(store: Store) -> None:
    done = apply(store, "c")
    assert (done.inodes, done.safety, done.paths) == (0, None, ())
    assert [info.name.snapshot for info in store.snapshots("ws")] == ["s"]


def test_another_clone_of_the_snapshot_takes_it_too(store: Store) -> None:
    store.clone("ws@s", "k")
    with store.open("c") as fs:
        change_theirs(fs)
    with store.open("k") as fs:
        change_ours(fs)
    base = plain_base(store)
    ours = plain(store, "k")
    expected = merged(base, ours, theirs_of(store, base, ours)).tree()
    apply(store, "c", onto="k")
    assert plain(store, "k").tree() == expected
    assert plain(store, "ws").tree() == base.tree()
    store.create("other")
    for onto in ("other", "c"):
        with pytest.raises(errors.InvalidArgument, match="not of the same snapshot"):
            apply(store, "c", onto=onto)


# -- conflicts -------------------------------------------------------------------------------------------------------


def write(path: str, data: bytes) -> Callable[[FileSystem], object]:
    return lambda fs: fs.write_bytes(path, data)


def _move_below_new(fs: FileSystem) -> None:
    fs.mkdir("/d/new")
    fs.rename("/e", "/d/new/e")


CONFLICTS: dict[str, tuple[Callable[[FileSystem], object], Callable[[FileSystem], object], str, str]] = {
    "contents": (write("/gone", b"ours"), write("/gone", b"theirs!"), "/gone", "contents"),
    "same name": (write("/x", b"ours"), write("/x", b"theirs!"), "/x", "something else"),
    "removed here": (lambda fs: fs.unlink("/gone"), write("/gone", b"theirs!"), "/gone", "removed by one, changed"),
    "removed there": (write("/gone", b"ours"), lambda fs: fs.unlink("/gone"), "/gone", "removed by one, changed"),
    "two places": (
        lambda fs: fs.rename("/gone", "/d/a"), lambda fs: fs.rename("/gone", "/d/b"), "/d/a", "two places",
    ),
    "moved and removed": (lambda fs: fs.rename("/gone", "/a"), lambda fs: fs.unlink("/gone"), "/a", "moved by the"),
    "two places of a directory": (
        lambda fs: fs.rename("/d", "/e/a"), lambda fs: fs.rename("/d", "/e/b"), "/e/a", "two places",
    ),
    "below each other": (
        lambda fs: fs.rename("/d", "/e/d"), lambda fs: fs.rename("/e", "/d/e"), "/e", "below the other",
    ),
    "below each other, through what is new": (
        lambda fs: fs.rename("/d", "/e/d"),
        _move_below_new,
        "/e", "below the other",
    ),
    "into what is gone": (lambda fs: fs.rmtree("/d"), write("/d/new", b"n"), "/d/new", "its directory was removed"),
    "gone with something in it": (
        write("/d/new", b"n"), lambda fs: fs.rmtree("/d"), "/d/new", "its directory was removed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CONFLICTS)
def test_a_conflict_changes_nothing_unless_somebody_is_preferred(store: Store, what: str) -> None:
    ours, theirs, path, reason = CONFLICTS[what]
    with store.open("ws") as fs:
        ours(fs)
    with store.open("c") as fs:
        theirs(fs)
    before, wanted = plain(store, "ws").tree(), plain(store, "c").tree()
    with pytest.raises(errors.Conflicting, match=reason):
        apply(store, "c")
    found = apply(store, "c", dry_run=True).conflicts
    assert any(where == path and reason in why for where, why in found), found
    assert plain(store, "ws").tree() == before
    assert [info.name.snapshot for info in store.snapshots("ws")] == ["s"]
    apply(store, "c", prefer="ours")
    assert plain(store, "ws").tree() == before
    apply(store, "c", prefer="theirs")
    assert plain(store, "ws").tree() == wanted


@pytest.mark.parametrize("seed", range(24))
def test_any_histories_are_merged_as_plain_trees_are(store: Store, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 5)
    rng = random.Random(seed)
    with store.open("ws") as fs:
        change(fs, rng, 15)
    store.snapshot("ws@t")
    store.destroy("c")
    store.clone("ws@t", "c")
    with store.open("ws") as fs:
        change(fs, rng, rng.choice((0, 3, 8)))
    with store.open("c") as fs:
        change(fs, rng, rng.choice((2, 8)))
    with store.open_snapshot("ws@t") as view:
        base = Plain(view)
    ours = plain(store, "ws")
    theirs = theirs_of(store, base, ours)
    found = apply(store, "c", dry_run=True)
    if found.fast_forward:
        assert not found.conflicts
    if not found.conflicts:
        apply(store, "c")
        assert plain(store, "ws").tree() == merged(base, ours, theirs).tree()
        if found.fast_forward:
            assert plain(store, "ws").tree() == theirs.tree()
        assert apply(store, "c").inodes == 0, "all of it is there"
        return
    before = ours.tree()
    with pytest.raises(errors.Conflicting):
        apply(store, "c")
    assert plain(store, "ws").tree() == before
    first = apply(store, "c", prefer=rng.choice(list(Side)))
    assert first.safety is not None or first.inodes == 0
    plain(store, "ws").tree()


# -- a death at any step -----------------------------------------------------------------------------------------------


def test_a_crash_leaves_all_of_it_or_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 3)
    with store.open("c") as fs:
        change_theirs(fs)
    with store.open("ws") as fs:
        change_ours(fs)
    base = plain_base(store)
    ours = plain(store, "ws")
    before, after = ours.tree(), merged(base, ours, theirs_of(store, base, ours)).tree()
    store.close()
    with failpoints.counting() as counts:
        _apply(copied(store.path, tmp_path / "counted"))
    commits = [point for point in counts if point.startswith("commit.")]
    assert len(commits) > 3
    for point in (*POINTS, *commits):
        for nth in sorted({0, counts[point] // 2, counts[point] - 1}):
            path = copied(store.path, tmp_path / f"{point}-{nth}")
            assert died(partial(_apply, path), point, nth), point
            with open_store(path) as there:
                now = plain(there, "ws").tree()
                assert now in (before, after), point
                apply(there, "c")
                assert plain(there, "ws").tree() == after
                assert apply(there, "c").inodes == 0
                assert there.check("ws", payload=True).problems == ()


def _apply(path: Path) -> None:
    with open_store(path) as store:
        apply(store, "c")


def test_a_clone_that_is_being_flattened_is_not_applied(tmp_path: Path) -> None:
    """Its removals have no rows any more where flattening has gone past them."""
    with open_store(tmp_path / "flattened") as store:
        store.create("ws")
        with store.open("ws") as fs:
            fs.write_bytes("/gone", b"g")
        store.snapshot("ws@s")
        store.clone("ws@s", "c")
        with store.open("c") as fs:
            fs.unlink("/gone")
            fs._engine.flattening.begin()
        with pytest.raises(errors.WrongState, match="cannot apply c: it is being flattened"):
            apply(store, "c")
        with store.open_readonly("ws") as tree:
            assert tree.listdir("/") == ["gone"]
