"""Quotas from outside: set, refused, felt by programs on a mount, and seen by df."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace, eventually
from tests.noise import noise
from tzfs.errors import QuotaExceeded
from tzfs.management import open_store

MIB = 1024 * 1024


def refused(path: Path, size: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)) as caught, path.open("wb") as file:
        file.write(noise(size, "x"))
    assert caught.value.errno == errno.EDQUOT


def size_of(mnt: Path) -> tuple[int, int]:
    """(size, available) as df has them."""
    found = os.statvfs(mnt)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def test_a_quota_below_what_is_used_is_refused_as_zfs_does(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws", "-o", "quota=10M")
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        fs.write_bytes("f", noise(MIB, "x"))
        fs.snapshot("a")
        fs.unlink("f")
    told = tzfs.refused("set", "quota=1M", "ws", code=1)
    assert told.startswith("tzfs: cannot set quota of ws to 1M: 1.00M are used\nhint: at least 10")
    assert tzfs.ok("get", "-H", "-p", "-o", "value,source", "quota", "ws") == "10485760\tlocal\n"
    tzfs.ok("set", "refquota=1M", "ws")  # the head uses next to nothing
    tzfs.refused("set", "agent:x=1", "quota=1M", "ws", code=1)
    assert tzfs.ok("get", "-H", "-o", "value", "agent:x,quota,refquota", "ws") == "-\n10M\n1M\n"
    tzfs.ok("set", "quota=none", "refquota=none", "ws")
    assert tzfs.ok("get", "-H", "-o", "value", "quota,refquota", "ws") == "none\nnone\n"
    assert tzfs.ok("get", "-H", "-p", "-o", "value", "quota,refquota", "ws") == "0\n0\n"
    assert "a namespace has none" in tzfs.refused("set", "quota=1G", "team/", code=2)


def test_available_is_what_the_quotas_leave(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws", "-o", "quota=10M", "-o", "refquota=4M")
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        fs.write_bytes("f", noise(MIB, "x"))
        assert fs.statfs().blocks == 4 * MIB // 4096
    values = tzfs.ok("get", "-H", "-p", "-o", "value", "available,used,refer", "ws").split()
    available, used, referenced = map(int, values)
    assert available == 4 * MIB - referenced
    tzfs.ok("set", "quota=2M", "ws")
    assert tzfs.ok("list", "-H", "-p", "-o", "available", "ws") == f"{2 * MIB - used}\n"


def test_a_program_meets_its_quota(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws", "-o", "refquota=1M", "-o", "inode_quota=3", "-o", "snapshot_limit=1")
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        fs.write_bytes("f", noise(MIB // 2, "x"))
        with pytest.raises(QuotaExceeded, match="refquota of 1048576 bytes"):
            fs.write_bytes("f", noise(2 * MIB, "x"))
        fs.mkdir("d")
        with pytest.raises(QuotaExceeded, match="inode_quota is 3"):
            fs.mkdir("e")
    tzfs.ok("snapshot", "ws@a")
    told = tzfs.refused("snapshot", "ws@b", code=1)
    assert told == (
        "tzfs: there are 1 snapshots, and snapshot_limit is 1\n"
        "hint: destroy some, or raise it: tzfs set snapshot_limit=\n"
    )


def test_a_mount_feels_a_quota_at_once_and_df_shows_it(workspace: Workspace) -> None:
    with workspace.mounted() as mnt:
        (mnt / "f").write_bytes(noise(MIB, "x"))
        free = size_of(mnt)
        workspace.tzfs("set", "quota=4M", "ws")
        assert size_of(mnt)[0] in (4 * MIB, 4 * MIB - 4096)
        assert 3 * MIB - 65536 < size_of(mnt)[1] < 3 * MIB
        refused(mnt / "g", 4 * MIB)
        (mnt / "g").unlink()
        done = workspace.run("set", "quota=1M", "ws")
        assert (done.returncode, "cannot set quota of ws to 1M" in done.stderr) == (1, True)
        workspace.tzfs("set", "refquota=1150K", "quota=1200K", "ws")
        warned = workspace.tzfs("status").splitlines()
        assert any("quota has reached 80%: 1.00M of 1.17M" in line for line in warned), warned
        assert any("refquota has reached 80%: 1.00M of 1.12M" in line for line in warned), warned
        workspace.tzfs("set", "quota_warnings=99", "ws")
        assert "has reached" not in workspace.tzfs("status")
        workspace.tzfs("set", "quota_warnings=50,85,100", "quota_interval=10ms", "ws")
        assert eventually(lambda: "WARNING tzfs.mount.daemon: ws: refquota has reached 85%: 1.00M" in workspace.log())
        workspace.tzfs("set", "refquota=none", "quota=none", "inode_quota=2", "ws")
        assert "inode_quota has reached 100%: 2 of 2" in workspace.tzfs("status")
        with pytest.raises(OSError, match="quota"):
            (mnt / "d").mkdir()
        (mnt / "f").unlink()
        (mnt / "d").mkdir()
        workspace.tzfs("set", "inode_quota=none", "snapshot_limit=1", "ws")
        workspace.tzfs("snapshot", "ws@a")
        assert workspace.run("snapshot", "ws@b").stderr.startswith("tzfs: there are 1 snapshots")
        assert size_of(mnt)[1] > free[1] // 2


def test_what_a_mount_has_not_committed_counts_when_a_quota_is_set(workspace: Workspace) -> None:
    workspace.tzfs("set", "txg_interval=60s", "ws")
    with workspace.mounted() as mnt:
        (mnt / "f").write_bytes(noise(MIB, "x"))
        done = workspace.run("set", "refquota=1M", "ws")
        assert (done.returncode, "1.00M are used" in done.stderr) == (1, True)
        workspace.tzfs("set", "refquota=2M", "ws")
        refused(mnt / "g", MIB)
        assert (mnt / "f").read_bytes() == noise(MIB, "x")
