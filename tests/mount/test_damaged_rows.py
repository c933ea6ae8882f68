"""A damaged record of an inode or an entry, mounted: one name suffers, its directory and all that is in it goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.mount.workspace import Workspace, number_of
from tzfs.format import keys
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta

NAMES: Final = [f"file-{n:03}" for n in range(150)]  # several of the kernel's buffers
BAD: Final = NAMES[70]


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
        with workspace.store() as store:
            folder = store.get("ws").folder
        meta = LmdbMeta(folder / "meta")
        txn = meta.begin_write()
        prefix = keys.inode(ino) if table is Table.INODE else keys.dirent(directory, BAD.encode())
        found = txn.seek(table, prefix, keys.EPOCH_MAX)
        assert found is not None
        txn.put(table, prefix + keys.suffix(found[0]), found[1][:-1] + bytes([found[1][-1] ^ 1]))
        txn.commit()
        meta.close()
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


def test_a_damaged_entry_lets_the_others_be_listed_and_then_says_so(damaged: Callable[[Table], Workspace]) -> None:
    workspace = damaged(Table.DIRENT)
    others = [name for name in NAMES if name != BAD]
    for top in _trees(workspace):
        for _ in range(2):
            assert _listed(top) == (others, errno.EIO)
            assert number_of((top / BAD).stat) == errno.EIO
            assert [(top / name).read_text() for name in others] == others
        told = subprocess.run(["ls", top], capture_output=True, text=True, check=False)
        assert told.stdout.split() == others
        assert told.returncode != 0
        assert "Input/output error" in told.stderr
    lines = [line for line in workspace.log().splitlines() if "ERROR" in line and "damaged record dirent/" in line]
    assert any(BAD.encode().hex() in line for line in lines), lines
    top = workspace.mnt / "d"
    for name in others:
        (top / name).unlink()
    assert _listed(top) == ([], errno.EIO)
    assert number_of(top.rmdir) == errno.ENOTEMPTY
    assert workspace.stats("failed") is None
