"""What counts as a store, what is refused, and that nothing is followed out of one."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.catalog.stores import format_tables, tree
from tests.store.stores import fds_below, python
from tzfs import catalog_rows as rows
from tzfs.catalog import Catalog
from tzfs.errors import (
    CorruptionError,
    ForeignStore,
    NoSpace,
    NotFound,
    PermissionDenied,
    ReadOnly,
    StoreError,
    TzfsError,
)
from tzfs.format.keys import CATALOG_TABLES, Table
from tzfs.format.records import seal
from tzfs.names import Scope
from tzfs.store.interface import WriteTransaction
from tzfs.store.lmdb_store import LmdbMeta


def test_a_store_is_made_where_there_is_nothing(tmp_path: Path) -> None:
    root = tmp_path / "new" / "parents" / "store"
    with Catalog.open(root) as catalog:
        first = catalog.info
    assert sorted(os.listdir(root)) == ["catalog", "fs"]
    with Catalog.open(root, create=False) as catalog:
        assert catalog.info == first
        assert first.path == root
        assert len(bytes.fromhex(first.guid)) == 16


def test_a_store_is_made_in_an_empty_folder_and_on_a_disk_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Catalog.open(tmp_path / "empty").close()
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    Catalog.open(tmp_path / "disk").close()
    assert sorted(os.listdir(tmp_path / "disk")) == ["catalog", "fs", "lost+found"]


def test_a_store_that_is_not_there_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is none"):
        Catalog.open(tmp_path / "store", create=False)
    with pytest.raises(NotFound):
        Catalog.open(tmp_path / "store", readonly=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForeignStore, match="an empty folder"):
        Catalog.open(tmp_path / "empty", create=False)
    assert tree(tmp_path) == ["empty"]


def _a_file(root: Path) -> None:
    root.write_text("x")


def _notes(root: Path) -> None:
    root.mkdir()
    (root / "notes.txt").write_text("x")


def _hidden(root: Path) -> None:
    root.mkdir()
    (root / ".git").mkdir()


def _filesystems_without_catalog(root: Path) -> None:
    (root / "fs" / "0123456789abcdef").mkdir(parents=True)


def _a_catalog_of_shoes(root: Path) -> None:
    (root / "catalog").mkdir(parents=True)
    (root / "catalog" / "shoes.csv").write_text("x")


def _filesystems_with_empty_catalog(root: Path) -> None:
    (root / "catalog").mkdir(parents=True)
    (root / "fs" / "0123456789abcdef").mkdir(parents=True)


def _other_tables(root: Path) -> None:
    (root / "fs").mkdir(parents=True)
    LmdbMeta(root / "catalog", tables=[Table.INODE], create=True).close()


def _no_database(root: Path) -> None:
    (root / "fs").mkdir(parents=True)
    (root / "catalog").mkdir()
    (root / "catalog" / "data.mdb").write_bytes(b"#!/bin/sh\n" * 5000)


def _a_catalog_without_filesystems(root: Path) -> None:
    Catalog.open(root).close()
    (root / "fs").rmdir()


@pytest.mark.parametrize(
    "make",
    [
        _a_file,
        _notes,
        _hidden,
        _filesystems_without_catalog,
        _a_catalog_of_shoes,
        _filesystems_with_empty_catalog,
        _other_tables,
        _no_database,
        _a_catalog_without_filesystems,
    ],
)
@pytest.mark.parametrize("create", [True, False])
def test_what_is_not_a_store_is_refused_and_left_alone(tmp_path: Path, make: object, create: bool) -> None:
    assert callable(make)
    root = tmp_path / "store"
    make(root)
    before = [path for path in tree(root) if not path.endswith("lock.mdb")]
    with pytest.raises((ForeignStore, CorruptionError), match=str(root)):
        Catalog.open(root, create=create)
    assert [path for path in tree(root) if not path.endswith("lock.mdb")] == before
    assert fds_below(tmp_path) == []


def _change(root: Path, change: object) -> None:
    assert callable(change)
    meta = LmdbMeta(root / "catalog", tables=CATALOG_TABLES)
    txn = meta.begin_write()
    change(txn)
    txn.commit()
    meta.close()


def _rewrite_store(root: Path, **fields: int) -> None:
    def change(txn: WriteTransaction) -> None:
        value = txn.get(Table.CATALOG_STORE, b"store")
        assert value is not None
        body = json.dumps({**json.loads(value[5:]), **fields}).encode()
        txn.put(Table.CATALOG_STORE, b"store", seal(Table.CATALOG_STORE, b"store", body))

    _change(root, change)


def test_a_store_of_a_newer_version_is_refused_with_its_version(tmp_path: Path) -> None:
    Catalog.open(tmp_path).close()
    _rewrite_store(tmp_path, format=2)
    with pytest.raises(ForeignStore, match="has format 2, this tzfs knows 1"):
        Catalog.open(tmp_path)
    _rewrite_store(tmp_path, format=1, incompat=4)
    with pytest.raises(ForeignStore, match="features 0x4"):
        Catalog.open(tmp_path)
    assert fds_below(tmp_path) == []


def test_unknown_features_that_only_writers_must_know_leave_a_store_readable(tmp_path: Path) -> None:
    with Catalog.open(tmp_path) as catalog:
        info = catalog.create("ws", formatter=format_tables)
    _rewrite_store(tmp_path, ro_compat=2, compat=9)
    with Catalog.open(tmp_path) as catalog:
        assert catalog.list() == [info]
        with pytest.raises(ReadOnly, match="features 0x2"):
            catalog.destroy("ws")


def test_fields_of_a_later_version_are_kept(tmp_path: Path) -> None:
    with Catalog.open(tmp_path) as catalog:
        catalog.create("ws", formatter=format_tables)

    def change(txn: WriteTransaction) -> None:
        value = txn.get(Table.CATALOG, b"ws")
        assert value is not None
        body = json.dumps({**json.loads(value[5:]), "later": [1, 2]}).encode()
        txn.put(Table.CATALOG, b"ws", seal(Table.CATALOG, b"ws", body))

    _change(tmp_path, change)
    with Catalog.open(tmp_path) as catalog:
        catalog.archive("ws")
        catalog.rename("ws", "xs")
    meta = LmdbMeta(tmp_path / "catalog", tables=CATALOG_TABLES, readonly=True)
    txn = meta.begin_read()
    value = txn.get(Table.CATALOG, b"xs")
    meta.close()
    assert value is not None
    assert json.loads(value[5:])["later"] == [1, 2]


def test_a_damaged_record_is_named_and_hides_no_other(tmp_path: Path) -> None:
    with Catalog.open(tmp_path) as catalog:
        for name in ("a", "b", "c"):
            catalog.create(name, formatter=format_tables)

    def change(txn: WriteTransaction) -> None:
        value = txn.get(Table.CATALOG, b"b")
        assert value is not None
        txn.put(Table.CATALOG, b"b", value[:-1] + b"?")

    _change(tmp_path, change)
    with Catalog.open(tmp_path) as catalog:
        damage: list[CorruptionError] = []
        assert [str(i.name) for i in catalog.list(on_damage=damage.append)] == ["a", "c"]
        assert [str(error) for error in damage] == ["damaged record catalog/62: checksum does not match"]
        with pytest.raises(CorruptionError, match="catalog/62"):
            catalog.list()
        with pytest.raises(CorruptionError, match="catalog/62"):
            catalog.get("b")
        catalog.destroy("a")


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "sleeping"},
        {"state": 1},
        {"partition": "xyz"},
        {"partition": "f" * 17},
        {"guid": None},
        {"created_ns": "1"},
        {"created_ns": True},
        {"properties": {"a": 1}},
        {"properties": []},
        {"origin": 3},
    ],
)
def test_a_record_of_the_wrong_shape_is_damage(tmp_path: Path, fields: dict[str, object]) -> None:
    with Catalog.open(tmp_path) as catalog:
        catalog.create("ws", formatter=format_tables)

    def change(txn: WriteTransaction) -> None:
        value = txn.get(Table.CATALOG, b"ws")
        assert value is not None
        body = json.dumps({**json.loads(value[5:]), **fields}).encode()
        txn.put(Table.CATALOG, b"ws", seal(Table.CATALOG, b"ws", body))

    _change(tmp_path, change)
    with Catalog.open(tmp_path) as catalog, pytest.raises(CorruptionError, match="catalog/7773"):
        catalog.get("ws")


def test_the_rows_of_a_filesystem_are_these(tmp_path: Path) -> None:
    clock = count(5)
    with Catalog.open(tmp_path, clock=lambda: next(clock)) as catalog:
        info = catalog.create("team/ws", formatter=format_tables, properties={"a:b": "c"})
    meta = LmdbMeta(tmp_path / "catalog", tables=CATALOG_TABLES, readonly=True)
    txn = meta.begin_read()
    found = {table: dict(txn.range(table, b"")) for table in CATALOG_TABLES}
    meta.close()
    number = f"{info.partition:016x}".encode()
    assert set(found[Table.CATALOG]) == {b"team/ws"}
    assert found[Table.CATALOG][b"team/ws"][5:] == (
        b'{"changed_ns":7,"created_as":"team/ws","created_ns":6,"guid":"' + info.guid.encode() + b'",'
        b'"namespace":"team","origin":null,"partition":"' + number + b'","properties":{"a:b":"c"},"state":"active"}'
    )
    assert set(found[Table.CATALOG_STORE]) == {b"log/" + b"0" * 15 + b"1", b"partition/" + number, b"store"}
    assert found[Table.CATALOG_STORE][b"partition/" + number][5:] == b"team/ws"
    assert found[Table.CATALOG_STORE][b"store"][5:] == (
        b'{"compat":0,"created_ns":5,"format":1,"guid":"'
        + catalog.info.guid.encode()
        + b'","incompat":0,"ro_compat":0}'
    )
    assert found[Table.CATALOG_HOLD] == {}


@pytest.mark.parametrize("length", [3999, 4000, 4001, 7999, 8000, 8001, 12_000])
def test_a_body_of_any_length_is_read_back_whole_and_removed_whole(tmp_path: Path, length: int) -> None:
    meta = LmdbMeta(tmp_path / "catalog", tables=CATALOG_TABLES, create=True)
    scope = Scope("team")
    overhead = len(b'{"properties":{"a:b":""}}')
    txn = meta.begin_write()
    for size in (12_000, length):  # the shorter one must leave no piece of the longer behind
        rows.put_scope(txn, scope, {"a:b": "x" * (size - overhead)})
        assert rows.get_scope(txn, scope) == {"a:b": "x" * (size - overhead)}
        assert len(list(txn.range(Table.CATALOG_STORE, b""))) == -(-size // 4000)
    rows.put_scope(txn, scope, {})
    assert list(txn.range(Table.CATALOG_STORE, b"")) == []
    meta.close()


# -- links, mounts, permissions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link", ["catalog", "fs", "catalog/data.mdb", "catalog/lock.mdb", "catalog/transitions", "catalog/place"]
)
def test_a_link_inside_a_store_is_refused(tmp_path: Path, link: str) -> None:
    root = tmp_path / "store"
    with Catalog.open(root) as catalog:
        catalog.create("ws", formatter=format_tables)
    os.rename(root / link, tmp_path / "moved")
    (root / link).symlink_to(tmp_path / "moved")
    with pytest.raises(ForeignStore, match="a symbolic link inside a store"):
        Catalog.open(root)


@pytest.mark.parametrize("link", ["", "meta", "segments", "views", "lock", "meta/data.mdb", "meta/lock.mdb"])
def test_a_filesystem_with_a_link_in_it_is_not_opened(catalog: Catalog, tmp_path: Path, link: str) -> None:
    info = catalog.create("ws", formatter=format_tables)
    (info.folder / "lock").touch()
    os.rename(info.folder / link, tmp_path / "moved")
    (info.folder / link).symlink_to(tmp_path / "moved")
    for call in (lambda: catalog.acquire("ws", info={}), lambda: catalog.archive("ws")):
        with pytest.raises(TzfsError):
            call()
    assert catalog.get("ws").state == "active"


def test_a_store_reached_through_a_link_is_one(tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "store") as catalog:
        catalog.create("ws", formatter=format_tables)
    (tmp_path / "link").symlink_to("store")
    with Catalog.open(tmp_path / "link") as catalog:
        assert catalog.info.path == tmp_path / "store"
        assert catalog.get("ws").folder.parent == tmp_path / "store" / "fs"


@pytest.mark.parametrize("link", ["meta", "segments", "segments/1", "lock2"])
def test_destroy_removes_links_and_not_what_they_point_to(catalog: Catalog, tmp_path: Path, link: str) -> None:
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "file").write_text("x")
    info = catalog.create("ws", formatter=format_tables)
    if (info.folder / link).exists():
        os.rename(info.folder / link, tmp_path / "moved")
    (info.folder / link).symlink_to(precious)
    catalog.destroy("ws")
    assert not os.path.lexists(info.folder)
    assert tree(precious) == ["deep", "deep/file"]


@pytest.mark.parametrize("link", ["", "views", "views/1-0123456789abcdef"])
def test_destroy_does_not_begin_where_it_would_have_to_look_through_a_link(
    catalog: Catalog, tmp_path: Path, link: str
) -> None:
    info = catalog.create("ws", formatter=format_tables)
    (info.folder / "views" / "1-0123456789abcdef").touch()
    os.rename(info.folder / link, tmp_path / "moved")
    (info.folder / link).symlink_to(tmp_path / "moved")
    before = tree(tmp_path / "moved")
    with pytest.raises(StoreError, match="symbolic link"):
        catalog.destroy("ws")
    assert tree(tmp_path / "moved") == before
    assert catalog.get("ws").state == "active"


@pytest.mark.needs("root")
def test_destroy_stops_at_what_is_mounted_inside_and_goes_on_when_it_is_gone(catalog: Catalog) -> None:
    info = catalog.create("ws", formatter=format_tables)
    inside = info.folder / "segments" / "disk"
    inside.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tzfs-test", inside], check=True)
    try:
        (inside / "precious").write_text("x")
        with pytest.raises(TzfsError, match="something is mounted there"):
            catalog.destroy("ws")
        assert (inside / "precious").read_text() == "x"
        assert catalog.get("ws").state == "deleting"
    finally:
        subprocess.run(["umount", inside], check=True)
    catalog.destroy("ws")
    assert catalog.list() == []


@pytest.mark.needs("ordinary")
def test_a_store_that_may_not_be_entered_says_so(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Catalog.open(root).close()
    root.chmod(0)
    try:
        with pytest.raises(PermissionDenied, match="permission denied"):
            Catalog.open(root)
    finally:
        root.chmod(0o700)
    root.chmod(0o500)
    with pytest.raises(PermissionDenied):
        Catalog.open(root / "new")
    root.chmod(0o700)


OTHER_USER = """
import os, sys
from tzfs.catalog import Catalog
from tzfs.errors import TzfsError
os.setgid(65534); os.setgroups([]); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        Catalog.open(path).close()
    except TzfsError as error:
        print(type(error).__name__, error)
    else:
        print("opened")
"""


@pytest.mark.needs("root")
def test_another_user_is_refused_in_clear_words(tmp_path: Path) -> None:
    Catalog.open(tmp_path / "store").close()
    tmp_path.chmod(0o755)
    done = python(OTHER_USER, str(tmp_path / "store"), str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["PermissionDenied"] * 2
    assert all("permission denied" in line for line in lines)


@pytest.mark.needs("root")
def test_a_store_on_a_read_only_disk_is_read(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tzfs-test", root], check=True)
    try:
        with Catalog.open(root) as catalog:
            info = catalog.create("ws", formatter=format_tables)
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        with Catalog.open(root) as catalog:
            assert catalog.info.readonly is not None
            assert catalog.list() == [info]
            with pytest.raises(ReadOnly):
                catalog.create("xs", formatter=format_tables)
    finally:
        subprocess.run(["umount", root], check=True)


def _fill(path: Path) -> None:
    """Takes every block that the disk still has."""
    with open(path, "ab", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


@pytest.mark.needs("root")
@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_a_full_disk_refuses_a_creation_leaves_nothing_of_it_and_lets_destroy_make_room(
    tmp_path: Path, when: str
) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tzfs-test", root], check=True)
    try:
        with Catalog.open(root) as catalog:
            info = catalog.create("ws", formatter=format_tables)
            (info.folder / "lock").write_text("{}\n")  # as a mount that was killed leaves it
        if when == "before it is opened":
            _fill(info.folder / "segments" / "ballast")
        with Catalog.open(root) as catalog:
            if when == "while it is open":
                catalog.set_property("ws", "a:b", "c")  # the catalog has its reserve, a new filesystem finds no space
                _fill(info.folder / "segments" / "ballast")
            for _ in range(3):
                with pytest.raises(NoSpace):
                    catalog.create("xs", formatter=format_tables)
                assert [str(i.name) for i in catalog.list()] == ["ws"]
                assert os.listdir(root / "fs") == [info.folder.name]
            catalog.destroy("ws")
            assert catalog.create("xs", formatter=format_tables).state == "active"
    finally:
        subprocess.run(["umount", root], check=True)
