"""Filesystems of one store share nothing: the same names, inodes and keys in each are its own."""

from __future__ import annotations

import os
from pathlib import Path

from tzfs.format.keys import Table
from tzfs.management import Store, open_store
from tzfs.store.lmdb_store import LmdbMeta

NAMES = ("ws", "ns/ws", "xs")
CONTENTS = (Table.INODE, Table.DIRENT, Table.INLINE, Table.CHUNK, Table.XATTR)


def large(name: str) -> bytes:
    return (name.encode() * 50_000)[:100_000]


def fill(store: Store, name: str) -> None:
    """The same files everywhere, with contents that say where."""
    with store.open(name) as fs:
        fs.mkdir("/d")
        fs.write_bytes("/small", name.encode())
        fs.write_bytes("/d/large", large(name))
        fs.symlink(name, "/link")
        fs.setxattr("/small", "user.where", name.encode())
    store.snapshot(f"{name}@s")


def assert_own(store: Store, name: str) -> None:
    with store.open(name) as fs:
        assert sorted(fs.listdir("/")) == ["d", "link", "small"]
        assert fs.read_bytes("/small") == name.encode()
        assert fs.read_bytes("/d/large") == large(name)
        assert fs.readlink("/link") == name
        assert fs.getxattr("/small", "user.where") == name.encode()
        assert list(fs.snapshots()) == ["s"]
        assert fs._engine.problems() == []


def keys_of(store: Store, name: str) -> set[bytes]:
    meta = LmdbMeta(store.catalog.get(name).folder / "meta", readonly=True)
    txn = meta.begin_read()
    try:
        return {bytes([table]) + key for table in CONTENTS for key, _ in txn.range(table, b"")}
    finally:
        txn.close()
        meta.close()


def test_filesystems_with_the_same_keys_never_see_each_others(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        for name in NAMES:
            store.create(name)
        for name in NAMES:
            fill(store, name)
    with open_store(tmp_path / "store") as store:
        first, *others = [keys_of(store, name) for name in NAMES]
        assert all(keys == first for keys in others), "the keys are the same, so nothing but the place tells them apart"
        for name in NAMES:
            assert_own(store, name)
        with store.open("ws") as fs:
            fs.rmtree("/d")
            fs.collect()
        store.destroy("xs", recursive=True)
        assert_own(store, "ns/ws")


def test_an_old_name_created_again_has_nothing_of_what_was_there(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        for way in ("renamed", "destroyed"):
            store.create("ws")
            fill(store, "ws")
            if way == "renamed":
                store.rename("ws", "old")
            else:
                store.destroy("ws", recursive=True)
            store.create("ws")
            with store.open("ws") as fs:
                assert fs.listdir("/") == []
                assert fs.snapshots() == {}
            store.destroy("ws", recursive=True)
        with store.open("old") as fs:
            assert fs.read_bytes("/small") == b"ws"
        assert len(os.listdir(tmp_path / "store" / "fs")) == 1
