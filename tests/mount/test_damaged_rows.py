"""A damaged record of an inode or an entry, mounted: one name suffers, its directory and all that is in it goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.damaging import damage
from tests.mount.workspace import Workspace, number_of
from tzfs.format import keys
from tzfs.format.keys import Table
from tzfs.store.interface import WriteTransaction
from tzfs.store.lmdb_store import LmdbMeta

NAMES: Final = [f"file-{n:03}" for n in range(150)]  # several of the kernel's buffers
BAD: Final = NAMES[70]


@contextmanager
def _tables(workspace: Workspace) -> Iterator[WriteTransaction]:
    """The tables of the filesystem, which nobody has mounted, to be changed past all rules."""
    with workspace.store() as store:
        meta = LmdbMeta(store.get("ws").folder / "meta")
    txn = meta.begin_write()
    yield txn
    txn.commit()
    meta.close()


def _damage(workspace: Workspace, table: Table, prefix: bytes) -> None:
    with _tables(workspace) as txn:
        damage(txn, table, prefix)


@pytest.fixture
def damaged(workspace: Workspace) -> Callable[[Table], Workspace]:
    def damage(table: Table) -> Workspace:
        top = workspace.mnt / "d"
        with workspace.mounted():
            top.mkdir()
            for name in NAMES:
                (top / name).write_text(name)
            directory, ino = top.stat().st_ino, (top / BAD).stat().st_ino
            workspace.call("snapshot.create", name="s")
        prefix = keys.inode(ino) if table is Table.INODE else keys.dirent(directory, BAD.encode())
        _damage(workspace, table, prefix)
        workspace.mount()
        return workspace

    return damage


def _listed(top: Path) -> tuple[list[str], int]:
    """The names that a listing tells, and the errno that it ends with."""
    names: list[str] = []
    try:
        with os.scandir(top) as entries:
            for entry in entries:
                names.append(entry.name)
                assert entry.is_file(follow_symlinks=False)  # from the entry's type
    except OSError as error:
        return names, error.errno or -1
    return names, 0


def _trees(workspace: Workspace) -> list[Path]:
    return [workspace.mnt / "d", workspace.mnt / ".zfs" / "snapshot" / "s" / "d"]


def test_a_damaged_inode_leaves_the_directory_whole(damaged: Callable[[Table], Workspace]) -> None:
    workspace = damaged(Table.INODE)
    with workspace.mounted(name="ws@s", where=workspace.base / "past") as past:
        for top in (*_trees(workspace), past / "d"):
            for _ in range(2):
                assert _listed(top) == (NAMES, 0)
                for name in NAMES:
                    if name == BAD:
                        assert number_of((top / name).stat) == number_of((top / name).read_bytes) == errno.EIO
                    else:
                        assert (top / name).read_text() == name
                assert number_of((top / "none").stat) == errno.ENOENT
    assert any("ERROR" in line and "damaged record inode/" in line for line in workspace.log().splitlines())
    shutil.rmtree(workspace.mnt / "d")
    assert os.listdir(workspace.mnt) == []
    assert workspace.stats("failed") is None
    (workspace.mnt / "new").write_text("new")
    assert len(os.listdir(_trees(workspace)[1])) == len(NAMES)


def test_a_file_with_a_damaged_inode_is_removed_without_having_been_listed(
    damaged: Callable[[Table], Workspace],
) -> None:
    workspace = damaged(Table.INODE)
    top = workspace.mnt / "d"
    (top / BAD).unlink()
    assert _listed(top) == ([name for name in NAMES if name != BAD], 0)
    assert number_of((top / BAD).stat) == errno.ENOENT
    (top / BAD).write_text("anew")
    assert _listed(top) == (NAMES, 0)


def test_nothing_is_read_of_a_damaged_file_and_it_can_be_replaced(damaged: Callable[[Table], Workspace]) -> None:
    workspace = damaged(Table.INODE)
    out = os.open(workspace.base / "out", os.O_WRONLY | os.O_CREAT)
    for top in _trees(workspace):
        fd = os.open(top / BAD, os.O_RDONLY)
        for read in (
            partial(os.read, fd, 10),
            partial(os.pread, fd, 10, 5000),
            partial(os.sendfile, out, fd, 0, 10),
            partial(os.lseek, fd, 0, os.SEEK_END),
            partial(os.fstat, fd),
        ):
            assert number_of(read) == errno.EIO, read
        os.close(fd)
    os.close(out)
    top = workspace.mnt / "d"
    (top / "new").write_text("new")
    os.replace(top / "new", top / BAD)
    assert (top / BAD).read_text() == "new"
    assert _listed(top) == (NAMES, 0)


def test_a_damaged_directory_does_not_take_those_in_it_along(workspace: Workspace) -> None:
    with workspace.mounted():
        (workspace.mnt / "upper" / "lower").mkdir(parents=True)
        (workspace.mnt / "upper" / "lower" / "file").write_text("contents")
        ino = (workspace.mnt / "upper").stat().st_ino
    _damage(workspace, Table.INODE, keys.inode(ino))
    with workspace.mounted():
        assert os.listdir(workspace.mnt / "upper" / "lower") == ["file"]
        assert (workspace.mnt / "upper" / "lower" / "file").read_text() == "contents"
        assert number_of(lambda: os.listdir(workspace.mnt / "upper")) == errno.EIO


def test_of_a_damaged_entry_there_is_the_name(damaged: Callable[[Table], Workspace]) -> None:
    workspace = damaged(Table.DIRENT)
    others = [name for name in NAMES if name != BAD]
    for top in _trees(workspace):
        for _ in range(2):
            assert _listed(top) == (NAMES, 0)
            assert number_of((top / BAD).stat) == number_of((top / BAD).read_bytes) == errno.EIO
            assert [(top / name).read_text() for name in others] == others
        told = subprocess.run(["ls", "-l", top], capture_output=True, text=True, check=False)
        assert [line.split()[-1] for line in told.stdout.splitlines()[1:]] == NAMES
        assert told.returncode != 0
        assert "Input/output error" in told.stderr
        copied = workspace.base / f"copy-of-{top.parent.name}"
        told = subprocess.run(["cp", "-a", top, copied], capture_output=True, text=True, check=False)
        assert told.returncode != 0
        assert sorted(os.listdir(copied)) == others, told.stderr
    lines = [line for line in workspace.log().splitlines() if "ERROR" in line]
    assert any(f"the record of entry b'{BAD}' is damaged" in line for line in lines), lines
    assert any("damaged record dirent/" in line and BAD.encode().hex() in line for line in lines), lines
    top = workspace.mnt / "d"
    assert number_of((top / BAD).unlink) == errno.EIO
    for name in others:
        (top / name).unlink()
    assert _listed(top) == ([BAD], 0)
    assert number_of(top.rmdir) == errno.ENOTEMPTY
    assert workspace.stats("failed") is None


@pytest.mark.parametrize("key", [b"m/\0", b"m\0x\0", b".\0", b"", b"m", b"m\0"], ids=repr)
def test_a_damaged_entry_without_a_name_ends_the_listing_with_an_error(workspace: Workspace, key: bytes) -> None:
    names = ["a", "m", "z"]
    with workspace.mounted() as top:
        (top / "d").mkdir()
        for name in names:
            (top / "d" / name).touch()
        directory = (top / "d").stat().st_ino
    with _tables(workspace) as txn:
        prefix = keys.dirent(directory, b"m")
        found = txn.seek(Table.DIRENT, prefix, keys.EPOCH_MAX)
        assert found is not None
        birth = keys.suffix(found[0])
        txn.delete(Table.DIRENT, prefix + birth)
        txn.put(Table.DIRENT, keys.u64(directory) + key + (birth if key[1:] not in (b"", b"\0") else b""), found[1])
    expected = (["a", "z"], errno.EIO) if key not in (b"m", b"m\0") else (names, 0)
    with workspace.mounted() as top:
        for _ in range(2):
            assert _listed(top / "d") == expected
