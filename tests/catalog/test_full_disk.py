"""Disks without a free byte, real ones: nothing dies there, and what is on them can be opened, emptied and removed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tzfs.errors import Busy, NoSpace
from tzfs.management import Store, open_store
from tzfs.store.lease import Lease, live_views

PAGES_ENOUGH = 20_000  # of tmpfs, for anything below
DATA = bytes(range(256)) * 80

pytestmark = pytest.mark.needs("root")


def tmpfs(folder: Path, *, pages: int, again: bool = False) -> None:
    options = f"nr_blocks={pages}" + ",remount" * again
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tzfs-test", folder], check=True)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        tmpfs(folder, pages=PAGES_ENOUGH)
    else:
        with (tmp_path / "image").open("wb") as file:
            file.truncate(PAGES_ENOUGH * 4096)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", tmp_path / "image"], check=True)
        subprocess.run(["mount", "-o", "loop", tmp_path / "image", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def use_up(folder: Path) -> None:
    """Takes every byte."""
    with open(folder / "filler", "ab", buffering=0) as filler:
        for nbytes in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    filler.write(bytes(nbytes))
        with suppress(OSError):
            os.fsync(filler.fileno())
    with pytest.raises(OSError, match="No space"):
        (folder / "proof").write_bytes(b"x")
    (folder / "proof").unlink(missing_ok=True)


def made(root: Path) -> None:
    with open_store(root) as store:
        store.create("ws")
        with store.open("ws") as fs:
            fs.mkdir("/d")
            for i in range(40):
                fs.write_bytes(f"/{i}", DATA)
                fs.write_bytes(f"/d/{i}", b"small")
        store.snapshot("ws@s")


def folder(store: Store) -> Path:
    (info,) = store.catalog.list()
    return info.folder


def test_a_lease_is_taken_though_there_is_no_room_to_say_by_whom(disk: Path) -> None:
    (disk / "fs").mkdir()
    use_up(disk)
    with Lease.acquire(disk / "fs", info={"kind": "test"}):
        assert Lease.holder(disk / "fs") == {}
        with pytest.raises(Busy, match="another process"):
            Lease.acquire(disk / "fs", info={})
    assert Lease.holder(disk / "fs") is None


def test_what_is_there_opens_is_read_and_can_be_emptied_and_destroyed(disk: Path) -> None:
    made(disk / "store")
    use_up(disk)
    with open_store(disk / "store") as store:
        with store.open_snapshot("ws@s") as view:
            assert view.read_bytes("/39") == DATA
            assert [told["pid"] for told in live_views(folder(store))] == [os.getpid()]
        with store.open("ws") as fs:
            told = Lease.holder(folder(store))
            assert told is not None
            assert told["pid"] == os.getpid(), "the lock file has kept its block"
            for i in range(40):
                assert fs.read_bytes(f"/{i}") == DATA
                fs.unlink(f"/{i}")
                fs.unlink(f"/d/{i}")
                fs.sync()
            fs.rmdir("/d")
            assert fs.listdir("/") == []
        store.destroy("ws", recursive=True)
        assert list(store.filesystems()) == []
    (disk / "filler").unlink()
    made(disk / "store")


def _store_with_a_filesystem(root: Path) -> None:
    with open_store(root) as store:
        if not list(store.filesystems()):
            store.create("ws")


def _in_child(root: Path) -> int:
    """How a child ended: 0 done, 1 refused for want of space, 2 anything else, negative: a signal."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            _store_with_a_filesystem(root)
            status = 0
        except NoSpace:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_whatever_number_of_pages_is_free_a_creation_is_done_or_refused_and_can_be_tried_again(tmp_path: Path) -> None:
    ended = set()
    for pages in (*range(2, 60, 2), *range(280, 400, 8)):
        folder = tmp_path / f"{pages}"
        folder.mkdir()
        tmpfs(folder, pages=pages)
        try:
            status = _in_child(folder / "store")
            assert status in (0, 1), f"{pages} pages: {status}"
            ended.add(status)
            tmpfs(folder, pages=PAGES_ENOUGH, again=True)
            assert _in_child(folder / "store") == 0, f"{pages} pages at first, then enough"
        finally:
            subprocess.run(["umount", folder], check=True)
    assert ended == {0, 1}
