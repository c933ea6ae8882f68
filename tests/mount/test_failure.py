"""What a mount answers when its disk fails, fills, becomes read-only or has been damaged.

Disks are small ext4 images on loop devices, so those tests are root's.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace, eventually, number_of
from tests.noise import noise

MIB = 1 << 20
SMALL, LARGE = b"small " * 50, noise(MIB)  # a row; a MiB, which goes to its extents in a thread


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: Path, data: bytes, *, sync: bool = False) -> int:
    """Writes and closes; how many bytes were taken.  `OSError` where none were."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        done = 0
        while done < len(data):
            try:
                done += os.write(fd, data[done:])
            except OSError:
                if done == 0:
                    raise
                return done
        if sync:
            os.fsync(fd)
        return done
    finally:
        os.close(fd)


# -- a commit that fails -----------------------------------------------------------------------------------------------

# What must be durable, and the errno or exit code that says it is not.
TRIGGERS: dict[str, Callable[[Workspace], int]] = {
    "fsync": lambda w: number_of(lambda: fsync(w.mnt / "old")),
    "fsync of a directory": lambda w: number_of(lambda: fsync(w.mnt / "dir")),
    "snapshot": lambda w: w.run("snapshot", "ws@never").returncode,
    "sync": lambda w: w.run("sync", "ws").returncode,
}
EX_IOERR = 74


@pytest.mark.parametrize(
    ("point", "dirtied", "trigger"),
    [
        ("redo.append", SMALL, "fsync"),
        ("flush.sync", LARGE, "fsync"),
        ("commit.log", SMALL, "fsync of a directory"),
        ("commit.rows", SMALL, "snapshot"),
        ("flush.write", LARGE, "sync"),
    ],
)
def test_after_a_commit_that_failed_every_request_answers_eio_until_the_remount_has_the_last_commit(
    workspace: Workspace, point: str, dirtied: bytes, trigger: str
) -> None:
    workspace.tzfs("set", "txg_interval=60s", "ws")  # only the trigger commits
    with workspace.mounted("xattr"):
        for name in ("old", "known", "doomed", "removed"):
            write(workspace.mnt / name, LARGE)
        for name in ("dir", "empty", "listed"):
            (workspace.mnt / name).mkdir()
        (workspace.mnt / "link").symlink_to("known")
        os.setxattr(workspace.mnt / "old", "user.a", b"1")
    pid = workspace.mount("xattr", failpoints=f"{point}=error:EIO")
    top = workspace.mnt
    for name in ("old", "known", "doomed", "dir", "empty", "listed", "link"):
        os.lstat(top / name)  # the kernel knows them, and asks for no look-up later
    reading, writing = os.open(top / "known", os.O_RDONLY), os.open(top / "old", os.O_RDWR)
    listing = os.open(top / "listed", os.O_RDONLY)
    orphan = os.open(top / "removed", os.O_RDWR)
    (top / "removed").unlink()
    write(top / "lost", dirtied)
    os.pwrite(writing, b"lost", 0)
    assert TRIGGERS[trigger](workspace) == (errno.EIO if "fsync" in trigger else EX_IOERR)
    acts: dict[str, Callable[[], object]] = {
        "lookup": lambda: os.stat(top / "never seen"),
        "lookup in .zfs": lambda: os.stat(top / ".zfs" / "snapshot" / "never"),
        "readlink": lambda: os.readlink(top / "link"),
        "mknod": lambda: os.mknod(top / "fifo", 0o10644),
        "mkdir": lambda: os.mkdir(top / "new"),
        "symlink": lambda: os.symlink("a", top / "new"),
        "link": lambda: os.link(top / "known", top / "new"),
        "unlink": lambda: os.unlink(top / "doomed"),
        "rmdir": lambda: os.rmdir(top / "empty"),
        "rename": lambda: os.rename(top / "known", top / "renamed"),
        "create": lambda: os.close(os.open(top / "new", os.O_CREAT | os.O_WRONLY)),
        "open": lambda: os.close(os.open(top / "known", os.O_RDONLY)),
        "open for writing": lambda: os.close(os.open(top / "known", os.O_RDWR)),
        "truncate": lambda: os.truncate(top / "known", 1),
        "chmod": lambda: os.chmod(top / "known", 0o600),
        "utimens": lambda: os.utime(top / "dir", (1, 1)),
        "read": lambda: os.pread(reading, 10, 0),
        "write": lambda: os.pwrite(writing, b"more", 0),
        "write to a removed file": lambda: os.pwrite(orphan, b"more", 0),
        "fsync": lambda: os.fsync(writing),
        "fsyncdir": lambda: os.fsync(listing),
        "readdir": lambda: os.listdir(listing),
        "opendir": lambda: os.listdir(top / "dir"),
        "statfs": lambda: os.statvfs(top),
        "getxattr": lambda: os.getxattr(top / "old", "user.a"),
        "setxattr": lambda: os.setxattr(top / "old", "user.b", b"1"),
        "listxattr": lambda: os.listxattr(top / "old"),
        "removexattr": lambda: os.removexattr(top / "old", "user.a"),
    }
    try:
        answers = {what: number_of(act) for what, act in acts.items()}
    finally:
        for fd in (reading, writing, listing, orphan):
            os.close(fd)
    assert {what: os.strerror(n) for what, n in answers.items() if n != errno.EIO} == {}
    for command in (("sync", "ws"), ("snapshot", "ws@never"), ("gc", "ws")):
        done = workspace.run(*command)
        assert done.returncode == EX_IOERR, command
        assert point in done.stderr, "it does not say why"
        assert "mount it again" in done.stderr, "it does not say what to do"
    assert f"failpoint {point}" in workspace.tzfs("status")
    assert "ERROR tzfs.mount.daemon: the mount has failed" in workspace.log()
    assert f"failpoint {point}" in workspace.log()
    workspace.tzfs("umount", workspace.mnt)
    workspace.ended(pid)
    assert workspace.leftovers() == []
    assert workspace.problems() == []
    with workspace.mounted("xattr"):
        assert sorted(os.listdir(top)) == ["dir", "doomed", "empty", "known", "link", "listed", "old", "removed"]
        assert (top / "old").read_bytes() == LARGE
        assert os.listxattr(top / "old") == ["user.a"]
        assert os.listdir(top / ".zfs" / "snapshot") == []
        write(top / "again", LARGE, sync=True)
        workspace.tzfs("snapshot", "ws@never")


def test_a_commit_in_the_background_that_fails_is_told_without_anybody_asking(workspace: Workspace) -> None:
    workspace.tzfs("set", "txg_interval=50ms", "ws")
    with workspace.mounted():
        write(workspace.mnt / "old", LARGE)
    pid = workspace.mount(failpoints="commit.rows=error:ENOSPC")
    write(workspace.mnt / "lost", SMALL)
    assert eventually(lambda: workspace.stats("failed") is not None)
    assert number_of((workspace.mnt / "new").touch) == errno.EIO
    assert "failpoint commit.rows" in workspace.tzfs("status", "-H")
    workspace.kill(pid, signal.SIGTERM)
    with workspace.mounted():
        assert os.listdir(workspace.mnt) == ["old"]


def test_a_last_commit_that_fails_at_unmount_is_in_the_log_and_the_mount_ends(workspace: Workspace) -> None:
    workspace.tzfs("set", "txg_interval=60s", "ws")
    pid = workspace.mount(failpoints="commit.rows=error:EIO")
    write(workspace.mnt / "lost", SMALL)
    workspace.unmount(pid)
    assert "the mount has failed: commit of transaction group" in workspace.log()
    with workspace.mounted():
        assert os.listdir(workspace.mnt) == []


# -- disks -------------------------------------------------------------------------------------------------------------


BLOCK_BYTES = 4096
# A full disk of small blocks may have less than a page left.
of_both_block_sizes = pytest.mark.parametrize("disk", [BLOCK_BYTES, 1024], indirect=True)


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A fresh ext4 of 160 MiB on a loop device, with blocks of `BLOCK_BYTES`, or of as many as the test asks for."""
    block_bytes = getattr(request, "param", BLOCK_BYTES)
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(160 * MIB)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", str(block_bytes), image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def on_disk(disk: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace whose store is on that disk; its mounts go before the disk does."""
    made = Workspace(tmp_path, store=disk / "store")
    try:
        yield made
    finally:
        made.close()


def fill(top: Path) -> dict[str, int]:
    """Writes and fsyncs files of a MiB until there is no room; how much of each was taken."""
    taken: dict[str, int] = {}
    for i in range(1000):
        name = f"{i}"
        try:
            taken[name] = write(top / name, LARGE, sync=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            if (top / name).exists():
                taken[name] = 0
            return taken
        if taken[name] < len(LARGE):
            return taken
    raise AssertionError("the disk does not become full")


def assert_there(top: Path, taken: dict[str, int]) -> None:
    assert sorted(os.listdir(top)) == sorted(taken)
    for name, size in taken.items():
        assert (top / name).read_bytes() == LARGE[:size], name


def use_up(disk: Path) -> None:
    """Takes whatever is left, from outside."""
    with open(disk / "filler", "ab", buffering=0) as filler:
        for nbytes in (MIB, 4096):
            while number_of(partial(filler.write, bytes(nbytes))) == 0:
                pass


@pytest.mark.needs("root")
@of_both_block_sizes
@pytest.mark.parametrize("end", ["unmount", "kill"])
def test_a_full_disk_answers_enospc_keeps_what_was_synced_and_lets_files_be_removed(
    on_disk: Workspace, disk: Path, end: str
) -> None:
    on_disk.tzfs("set", "dirty_max=2M", "ws")
    pid = on_disk.mount()
    top = on_disk.mnt
    taken = fill(top)
    use_up(disk)
    assert len(taken) > 20
    assert number_of(lambda: write(top / "one more", LARGE)) == errno.ENOSPC
    if (top / "one more").exists():  # its creation fitted in, its contents did not
        assert (top / "one more").stat().st_size == 0
        (top / "one more").unlink()
    with open(top / "0", "r+b", buffering=0) as file:
        assert number_of(lambda: os.pwrite(file.fileno(), noise(MIB, "x"), MIB)) == errno.ENOSPC
    assert (top / "0").stat().st_size == MIB
    assert on_disk.stats("failed") is None
    assert_there(top, taken)
    if end == "kill":
        on_disk.kill(pid)
    else:
        on_disk.unmount(pid)
        use_up(disk)
    pid = on_disk.mount()  # the disk is as full as before
    assert_there(top, taken)
    for name in list(taken)[: len(taken) // 2]:
        (top / name).unlink()
        del taken[name]
    on_disk.tzfs("gc", "ws")
    assert on_disk.number("gc", "punched_bytes") >= 8 * MIB
    for i in range(4):
        name = f"again-{i}"
        taken[name] = write(top / name, LARGE, sync=True)
        assert taken[name] == MIB
    assert_there(top, taken)
    on_disk.unmount(pid)
    (disk / "filler").unlink()
    assert on_disk.problems() == []
    with on_disk.mounted():
        assert_there(top, taken)


@pytest.mark.needs("root")
@of_both_block_sizes
@pytest.mark.parametrize("piece", [MIB, 100_000])
@pytest.mark.parametrize("compression", ["off", "lz4"])
def test_a_stream_onto_a_full_disk_ends_with_enospc_and_all_that_was_taken_can_be_synced(
    on_disk: Workspace, compression: str, piece: int
) -> None:
    on_disk.tzfs("set", f"compression={compression}", "ws")
    with on_disk.mounted() as top:
        for name in ("a", "b"):
            with open(top / name, "wb", buffering=0) as file:
                while number_of(partial(file.write, LARGE[:piece])) == 0:
                    pass
                os.fsync(file.fileno())
            assert on_disk.stats("failed") is None
            there = (top / name).read_bytes()
            assert len(there) > 40 * MIB
            assert there == (LARGE[:piece] * (len(there) // piece + 1))[: len(there)]
            (top / name).unlink()
            on_disk.tzfs("gc", "ws")
    assert on_disk.problems() == []


@of_both_block_sizes
@pytest.mark.needs("root")
@pytest.mark.parametrize(("compression", "size"), [("off", 4096), ("lz4", 100)])
def test_small_writes_all_over_a_file_on_a_full_disk_end_with_enospc_and_the_mount_goes_on(
    on_disk: Workspace, disk: Path, compression: str, size: int
) -> None:
    on_disk.tzfs("set", f"compression={compression}", "ws")
    order = random.Random(size)
    with on_disk.mounted() as top:
        expected = bytearray(noise(8 * MIB, "all over"))
        write(top / "file", bytes(expected), sync=True)
        fill(top)
        use_up(disk)
        refused = 0
        with open(top / "file", "r+b", buffering=0) as file:
            for n in range(3000):
                at, piece = order.randrange(len(expected) - size), noise(size, str(n))
                number = number_of(partial(os.pwrite, file.fileno(), piece, at))
                assert number in (0, errno.ENOSPC)
                if number == 0:
                    expected[at : at + size] = piece
                refused += number != 0
                if n % 300 == 299:
                    assert number_of(partial(os.fsync, file.fileno())) == 0
        assert refused
        assert on_disk.stats("failed") is None
        assert (top / "file").read_bytes() == expected
    assert on_disk.problems() == []
    with on_disk.mounted() as top:
        assert (top / "file").read_bytes() == expected


@pytest.mark.needs("root")
def test_a_disk_that_becomes_readonly_fails_the_mount_and_loses_nothing_that_was_synced(
    on_disk: Workspace, disk: Path, tmp_path: Path
) -> None:
    pid = on_disk.mount()
    top = on_disk.mnt
    write(top / "kept", LARGE, sync=True)
    on_disk.call("snapshot.create", name="s")
    fd = os.open(top / "lost", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.pwrite(fd, SMALL, 0)
        subprocess.run(["mount", "-o", "remount,abort", disk], check=True)  # what ext4 does when its disk fails
        assert number_of(lambda: os.fsync(fd)) == errno.EIO
        assert number_of(lambda: os.stat(top / "never seen")) == errno.EIO
        assert number_of(lambda: os.fsync(fd)) == errno.EIO
    finally:
        os.close(fd)
    assert number_of(lambda: write(top / "more", SMALL)) == errno.EIO
    done = on_disk.run("sync", "ws")
    assert done.returncode == EX_IOERR
    assert "Read-only file system" in done.stderr
    assert "the mount has failed" in on_disk.log()
    on_disk.unmount(pid)
    done = on_disk.run("mount", "ws", top)
    assert done.returncode != 0
    assert "read-only" in done.stderr.lower() or "cannot be written" in done.stderr
    subprocess.run(["umount", disk], check=True)
    subprocess.run(["e2fsck", "-fp", tmp_path / "image"], check=False, capture_output=True)
    subprocess.run(["mount", "-o", "loop", tmp_path / "image", disk], check=True)
    with on_disk.mounted():
        assert (top / "kept").read_bytes() == LARGE
        assert (top / ".zfs" / "snapshot" / "s" / "kept").read_bytes() == LARGE
        write(top / "more", LARGE, sync=True)
    assert on_disk.problems() == []


@pytest.mark.needs("root")
def test_a_disk_that_is_readonly_from_the_start_is_refused_in_plain_words(on_disk: Workspace, disk: Path) -> None:
    with on_disk.mounted():
        write(on_disk.mnt / "kept", LARGE)
    on_disk.tzfs("snapshot", "ws@s")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for command in (("mount", "ws", on_disk.mnt), ("create", "other"), ("snapshot", "ws@t"), ("destroy", "-r", "ws")):
        done = on_disk.run(*command)
        assert done.returncode not in (0, 70), command
        text = done.stderr.lower()
        assert "read-only" in text or "cannot be written" in text, (command, done.stderr)
        assert "internal error" not in text
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    with on_disk.mounted():
        assert (on_disk.mnt / "kept").read_bytes() == LARGE
    assert [left for left in on_disk.leftovers() if left != f"mount {disk}"] == []


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path, marker: bytes) -> int:
    """Flips a bit within each occurrence of the marker in a file; how many there are."""
    found = 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as raw:
        at = raw.find(marker)
        while at >= 0:
            found += 1
            raw[at + len(marker) // 2] ^= 1
            at = raw.find(marker, at + 1)
    return found


INLINE, EXTENT = b"inline, and to be damaged; " * 30, os.urandom(4096)


@pytest.fixture
def damaged(workspace: Workspace) -> tuple[Workspace, dict[str, int]]:
    """Mounted, after the contents of two files, one of either kind, were damaged; and the inode numbers of all."""
    with workspace.mounted():
        for name, data in (("row", INLINE), ("extent", LARGE + EXTENT + LARGE), ("good", LARGE), ("short", SMALL)):
            write(workspace.mnt / name, data)
        os.link(workspace.mnt / "good", workspace.mnt / "also-good")
        workspace.call("snapshot.create", name="s")
        for name in ("row", "extent"):  # newer than the snapshot, which has the damaged versions too
            os.chmod(workspace.mnt / name, 0o600)
        inodes = {name: os.stat(workspace.mnt / name).st_ino for name in os.listdir(workspace.mnt)}
    with workspace.store() as store:
        folder = store.get("ws").folder
    assert flip(folder / "meta" / "data.mdb", INLINE[:500]) > 0
    assert sum(flip(path, EXTENT) for path in (folder / "segments").iterdir()) == 1
    workspace.mount()
    return workspace, inodes


@pytest.mark.parametrize("name", ["row", "extent"])
def test_damaged_contents_answer_eio_for_that_file_which_the_log_names_and_all_else_goes_on(
    damaged: tuple[Workspace, dict[str, int]], name: str
) -> None:
    workspace, inodes = damaged
    top, snapshot = workspace.mnt, workspace.mnt / ".zfs" / "snapshot" / "s"
    for folder in (top, snapshot):
        assert sorted(os.listdir(folder)) == sorted(inodes)
        assert number_of((folder / name).read_bytes) == errno.EIO
    lines = [line for line in workspace.log().splitlines() if "ERROR" in line and "read" in line]
    assert len(lines) >= 2
    assert all(f"inode {inodes[name]}" in line for line in lines), lines
    if name == "extent":  # what is not damaged of it can be read
        with open(top / name, "rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4096, 0) == LARGE[:4096]
    for folder in (top, snapshot):
        assert (folder / "good").read_bytes() == (folder / "also-good").read_bytes() == LARGE
        assert (folder / "short").read_bytes() == SMALL
    assert workspace.stats("failed") is None
    write(top / "new", LARGE, sync=True)
    workspace.call("snapshot.create", name="t")
    assert (snapshot.parent / "t" / "new").read_bytes() == LARGE
    assert number_of((snapshot.parent / "t" / name).read_bytes) == errno.EIO
    write(top / name, LARGE, sync=True)  # replaced
    assert (top / name).read_bytes() == LARGE
    with workspace.mounted(name="ws@s", where=workspace.base / "past") as past:
        assert number_of((past / name).read_bytes) == errno.EIO
        assert (past / "good").read_bytes() == LARGE


def test_a_damaged_inode_answers_eio_for_that_file_which_the_log_names(workspace: Workspace) -> None:
    size = 123_456_789_012_345  # in its record, and nowhere else
    with workspace.mounted():
        write(workspace.mnt / "good", LARGE)
        write(workspace.mnt / "bad", SMALL)
        os.truncate(workspace.mnt / "bad", size)
        ino = os.stat(workspace.mnt / "bad").st_ino
    with workspace.store() as store:
        data = store.get("ws").folder / "meta" / "data.mdb"
    encoded = size.to_bytes(8, "big")
    assert flip(data, encoded) > 0
    with workspace.mounted():
        assert number_of(lambda: os.stat(workspace.mnt / "bad")) == errno.EIO
        assert any("ERROR" in line and "inode" in line for line in workspace.log().splitlines()), workspace.log()
        assert f"{ino:016x}" in workspace.log() or f"inode {ino}" in workspace.log(), workspace.log()
        assert (workspace.mnt / "good").read_bytes() == LARGE
        write(workspace.mnt / "new", SMALL, sync=True)
        assert workspace.stats("failed") is None
