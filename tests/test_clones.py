"""Clones in a store: what keeps their origin, what becomes of both, and a process that dies at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import tzfs
from tests.dying import copied, died
from tests.noise import noise
from tzfs import errors, failpoints, limits
from tzfs.destroying import destroy
from tzfs.flattening import Flattened
from tzfs.format import keys
from tzfs.format.keys import ROOT, Table
from tzfs.format.records import UnreadableInode
from tzfs.layout import META
from tzfs.lifecycle import State
from tzfs.management import Store, open_store
from tzfs.marking import hold
from tzfs.store.interface import WriteTransaction
from tzfs.store.lmdb_store import LmdbMeta

POINTS = frozenset(name for name in failpoints.KNOWN if name.split(".")[0] in ("flatten", "clone"))
BIG = noise(512_000)  # which no codec makes smaller
HITS = 3


def fill(store: Store) -> None:
    """`ws` with a snapshot `s`, and changes after it."""
    store.create("ws")
    with store.open("ws") as fs:
        fs.mkdir("/d")
        fs.write_bytes("/d/big", BIG)
        fs.write_bytes("/d/small", b"small")
        fs.link("/d/small", "/hard")
        fs.symlink("d", "/link")
        fs.setxattr("/d", "user.x", b"v" * 5000)
    store.snapshot("ws@s")
    with store.open("ws") as fs:
        fs.write_bytes("/d/small", b"changed in ws")
        fs.unlink("/hard")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        fill(opened)
        yield opened


@contextmanager
def tables(store: Store) -> Iterator[WriteTransaction]:
    """Those of `ws`, to be changed past all rules."""
    meta = LmdbMeta(store.get("ws").folder / META)
    txn = meta.begin_write()
    yield txn
    txn.commit()
    meta.close()


def assert_as_cloned(store: Store, name: str, *, changed: bool = False) -> None:
    with store.open(name) as fs:
        assert sorted(fs.listdir("/")) == ["d", "hard", "link"]
        assert fs.read_bytes("/d/big") == (b"mine" + BIG[4:] if changed else BIG)
        assert fs.read_bytes("/hard") == b"small"
        assert fs.stat("/hard").nlink == 2
        assert fs.readlink("/link") == "d"
        assert fs.getxattr("/d", "user.x") == b"v" * 5000
        assert fs._engine.problems() == []


def origin(store: Store, name: str) -> str:
    return store.properties(name)["origin"].human


def test_a_clone_is_the_snapshot_and_each_goes_its_own_way(store: Store) -> None:
    store.clone("ws@s", "c", {"agent:x": "1"})
    assert_as_cloned(store, "c")
    assert store.get("c").property("agent:x").exact == "1"
    assert [entry.kind for entry in tzfs.log(store, "c")] == ["clone"]
    with store.open("c") as fs:
        with fs.open("/d/big", "r+b") as file:
            file.write(b"mine")
        fs.write_bytes("/new", b"n")
        fs.rename("/d", "/e")
    with store.open("ws") as fs:
        assert fs.read_bytes("/d/big") == BIG
        assert fs.read_bytes("/d/small") == b"changed in ws"
    with store.open("c") as fs:
        assert fs.read_bytes("/e/big") == b"mine" + BIG[4:]
        assert fs.read_bytes("/e/small") == b"small"
        assert fs._engine.problems() == []


def test_a_clone_is_written_while_its_origin_is(store: Store) -> None:
    store.clone("ws@s", "c")
    with store.open("ws") as ws, store.open("c") as c:
        for i in range(50):
            ws.write_bytes(f"/d/file-{i}", b"w" * i)
            c.write_bytes(f"/d/file-{i}", b"c" * i)
            assert c.read_bytes("/d/small") == b"small"
        ws.unlink("/d/big")
        ws.collect()
        assert c.read_bytes("/d/big") == BIG
        assert c.read_bytes("/d/file-9") == b"c" * 9


def test_a_snapshot_of_a_clone_is_read_with_its_origin(store: Store) -> None:
    store.clone("ws@s", "c")
    store.snapshot("c@s")
    with store.open("c") as fs:
        fs.write_bytes("/d/big", b"")
    with store.open_snapshot("c@s") as view:
        assert view.read_bytes("/d/big") == BIG
        assert view.getxattr("/d", "user.x") == b"v" * 5000
    assert store.check("c", payload=True).problems == ()


def test_origin_and_clones_are_told_by_the_names_of_now(store: Store) -> None:
    for name in ("b", "a"):
        store.clone("ws@s", name)
    store.rename("ws", "team/ws")
    store.rename("a", "z")
    assert origin(store, "z") == origin(store, "b") == "team/ws@s"
    (info,) = store.snapshots("team/ws")
    assert info.properties["clones"].human == "b,z"
    assert origin(store, "team/ws") == "-"


def test_an_origin_is_not_destroyed_while_it_has_clones(store: Store) -> None:
    store.clone("ws@s", "c")
    for dry_run in (True, False):
        with pytest.raises(errors.Busy, match="it has clones: c"):
            store.destroy("ws", recursive=True, dry_run=dry_run)
    store.destroy("c")
    store.destroy("ws", recursive=True)
    assert store.filesystems() == []


def test_an_archived_origin_is_read_and_cloned(store: Store) -> None:
    store.clone("ws@s", "c")
    store.archive("ws")
    assert_as_cloned(store, "c")
    store.clone("ws@s", "c2")
    assert_as_cloned(store, "c2")


def test_an_entry_whose_key_is_cut_in_the_origin_is_told_and_keeps_from_flattening(store: Store) -> None:
    store.clone("ws@s", "c")
    prefix = keys.dirent(ROOT, b"hard")
    with tables(store) as txn:
        birth, value = txn.seek(Table.DIRENT, prefix, 1) or (0, b"")
        key = prefix + keys.suffix(birth)
        txn.delete(Table.DIRENT, key)
        txn.put(Table.DIRENT, key[:-5], value)
    with store.open("c") as fs:
        with pytest.raises(errors.CorruptionError, match="damaged key dirent/"):
            fs.listdir("/")
        found = fs._engine.readdir_damaged(ROOT, b"", 10)
        assert [(name, isinstance(inode, UnreadableInode)) for name, inode in found] == [
            (b"d", False),
            (b"hard", True),
            (b"link", False),
        ]
    with pytest.raises(errors.CorruptionError):
        store.flatten("c")
    assert origin(store, "c") == "ws@s"


@pytest.mark.parametrize("table", [Table.INODE, Table.DIRENT, Table.CHUNK, Table.INLINE, Table.XATTR])
@pytest.mark.parametrize("how", ["cut", "begun", "longer", "inserted"])
def test_an_odd_key_in_the_origin_hides_nothing_from_a_clone_that_is_flattened(
    store: Store, table: Table, how: str
) -> None:
    """A row more, under a key that no row can have: flattening copies all the same, or stops and the origin stays."""
    store.clone("ws@s", "c")
    with tables(store) as txn:
        rows = [*txn.range(table, b"")]
        for key, value in rows:
            odd = {
                "cut": key[:-9],
                "begun": key[:5],
                "longer": key + b"\0",
                "inserted": key[:-8] + b"\x7f" + key[-8:],
            }[how]
            txn.put(table, odd, value)
    try:
        store.flatten("c")
    except errors.CorruptionError:
        assert origin(store, "c") == "ws@s"
        return
    assert_as_cloned(store, "c")


def test_a_damaged_orphan_of_the_origin_does_not_keep_from_flattening(store: Store) -> None:
    with tables(store) as txn:
        txn.put(Table.ORPHAN, keys.orphan(4711), b"\0" * 13)
    store.clone("ws@s", "c")
    store.flatten("c")
    assert_as_cloned(store, "c")


def test_a_hold_in_a_clone_counts_while_only_its_origin_cannot_be_read(store: Store) -> None:
    store.clone("ws@s", "c")
    store.snapshot("c@s")
    hold(store, "keep", ["c@s"])
    tables_folder = store.get("ws").folder / META
    tables_folder.rename(tables_folder.with_name("away"))
    for dry_run in (True, False):
        with pytest.raises(errors.Busy, match="hold keep"):
            destroy(store, "c", recursive=True, damaged=True, dry_run=dry_run)
    tables_folder.with_name("away").rename(tables_folder)
    assert_as_cloned(store, "c")
    tables_folder.rename(tables_folder.with_name("away"))
    done = destroy(store, "ws", clones=True, damaged=True)
    assert [str(name) for name in done.names] == ["c@s", "c", "ws"]
    assert store.filesystems() == []


def test_flattened_it_needs_its_origin_no_more(store: Store) -> None:
    store.clone("ws@s", "c")
    with store.open("c") as fs, fs.open("/d/big", "r+b") as file:
        file.write(b"mine")
    store.snapshot("c@s")
    store.clone("c@s", "cc")
    told: list[Flattened] = []
    done = store.flatten("c", progress=told.append)
    assert told[-1] == done
    assert done.bytes >= len(BIG) - (1 << limits.CHUNK_SHIFT_DEFAULT)
    assert origin(store, "c") == "-"
    with pytest.raises(errors.WrongState, match="not a clone"):
        store.flatten("c")
    store.destroy("ws", recursive=True)
    for name in ("c", "cc"):
        assert_as_cloned(store, name, changed=True)
        assert store.check(name, payload=True).problems == ()


def test_a_program_flattens_what_it_has_open(store: Store) -> None:
    store.clone("ws@s", "c")
    with store.open("c") as fs:
        fs.write_bytes("/d/more", b"m")
        fs.flatten()
        with pytest.raises(errors.WrongState):
            fs.flatten()
    store.destroy("ws", recursive=True)
    with store.open("c") as fs:
        assert fs.read_bytes("/d/more") == b"m"


def test_clones_of_clones_go_as_deep_as_the_limit(store: Store) -> None:
    last = "ws"
    for depth in range(limits.CLONE_DEPTH_MAX):
        store.clone(f"{last}@s", f"c{depth}")
        last = f"c{depth}"
        store.snapshot(f"{last}@s")
        assert_as_cloned(store, last)
    with pytest.raises(errors.LimitReached, match="as deep as look-ups go"):
        store.clone(f"{last}@s", "deeper")
    assert "deeper" not in [str(info.name) for info in store.filesystems()]
    store.flatten("c0")
    store.clone(f"{last}@s", "deeper")
    assert_as_cloned(store, "deeper")


def test_what_cannot_be_cloned(store: Store) -> None:
    with pytest.raises(errors.NotFound):
        store.clone("ws@other", "c")
    with pytest.raises(errors.NotFound):
        store.clone("other@s", "c")
    with pytest.raises(errors.Exists):
        store.clone("ws@s", "ws")
    assert [str(info.name) for info in store.filesystems()] == ["ws"]


# -- dying on the way --------------------------------------------------------------------------------------------------


def _flatten(store: Store) -> None:
    if store.get("c").origin is not None:
        store.flatten("c")


ACTS: dict[str, Callable[[Store], object]] = {
    "clone": lambda store: store.clone("ws@s", "new"),
    "flatten": _flatten,
    "destroy": lambda store: store.destroy("c"),
}


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "FLATTEN_BATCH_KEYS", 3)
    path = tmp_path / "store"
    with open_store(path) as store:
        fill(store)
        store.clone("ws@s", "c")
        with store.open("c") as fs, fs.open("/d/big", "r+b") as file:
            file.write(b"mine")
    return path


def _do(path: Path, act: str) -> None:
    with open_store(path) as store:
        ACTS[act](store)


def _passed(path: Path, act: str) -> dict[str, int]:
    with failpoints.counting() as counts:
        _do(path, act)
    return {point: n for point, n in counts.items() if point.split(".")[0] in ("flatten", "clone", "catalog", "commit")}


@pytest.mark.parametrize("act", list(ACTS))
def test_a_process_that_dies_leaves_too_much_held_at_most(original: Path, tmp_path: Path, act: str) -> None:
    passed = _passed(copied(original, tmp_path / "counted"), act)
    for point, nth in [(point, n) for point, times in passed.items() for n in range(min(times, HITS))]:
        path = copied(original, tmp_path / f"{point}-{nth}")
        assert died(partial(_do, path, act), point, nth), (point, nth)
        with open_store(path) as store:
            names = {str(info.name) for info in store.filesystems()}
            assert all(info.state is State.ACTIVE for info in store.filesystems())
            assert store.check("ws").problems == ()
            if "c" in names:
                assert_as_cloned(store, "c", changed=True)
            if "new" in names:
                assert_as_cloned(store, "new")
                store.destroy("new")
            if "c" in names:
                _flatten(store)
            store.destroy("ws", recursive=True)
            if "c" in names:
                assert_as_cloned(store, "c", changed=True)
                assert store.check("c", payload=True).problems == ()


def test_the_acts_pass_every_point_that_is_this_suites(original: Path, tmp_path: Path) -> None:
    assert {point for act in ACTS for point in _passed(copied(original, tmp_path / act), act)} >= POINTS


# -- destroying --------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_not_destroyed_while_it_has_clones_but_with_them(store: Store) -> None:
    store.snapshot("ws@t")
    store.clone("ws@s", "c")
    store.snapshot("c@x")
    store.clone("c@x", "cc")
    with pytest.raises(errors.Busy, match="there are clones of it: c"):
        tzfs.destroy(store, "ws@s")
    with store.open("ws") as fs, pytest.raises(errors.Busy, match="clone c of @s"):
        fs._engine.destroy(["s"])
    tzfs.destroy(store, "ws@t")
    tzfs.destroy(store, "ws@s", clones=True, dry_run=True)
    assert len(store.filesystems()) == 3
    tzfs.destroy(store, "ws@s", clones=True)
    assert [str(info.name) for info in store.filesystems()] == ["ws"]
    assert store.snapshots("ws") == []


def test_once_flattened_the_snapshot_it_came_from_goes(store: Store) -> None:
    store.clone("ws@s", "c")
    store.flatten("c")
    tzfs.destroy(store, "ws@s")
    assert_as_cloned(store, "c")


def test_a_change_that_cannot_read_all_it_keeps_of_an_origin_leaves_everything(store: Store) -> None:
    chunk = 1 << limits.CHUNK_SHIFT_DEFAULT
    contents = noise(3 * chunk, "kept")
    with store.open("ws") as fs:
        fs.write_bytes("/f", contents)
    store.snapshot("ws@t")
    store.clone("ws@t", "clone")
    damage_payload(store.path, contents[2 * chunk + 50_000 :][:64])
    with store.open("clone") as fs:
        with fs.open("/f", "r+b") as file:
            file.seek(chunk - 10)
            with pytest.raises(errors.CorruptionError, match=r"damaged payload: segment \d of the origin, byte \d+"):
                file.write(bytes(chunk + 20))
        with pytest.raises(errors.CorruptionError):
            fs.truncate("/f", 2 * chunk + 60_000)
        assert fs.stat("/f").size == 3 * chunk
        with fs.open("/f", "rb") as file:
            assert file.read(2 * chunk) == contents[: 2 * chunk]
            file.seek(2 * chunk + 60_000)
            assert file.read() == contents[2 * chunk + 60_000 :]


def damage_payload(path: Path, marker: bytes) -> None:
    """Changes a byte of the only segment that has these."""
    for segment in path.rglob("*.seg"):
        raw = bytearray(segment.read_bytes())
        at = raw.find(marker)
        if at >= 0:
            raw[at] ^= 1
            segment.write_bytes(raw)
            return
    raise AssertionError("no segment has it")
