"""Mountpoints: reading the table, telling dead mounts from live ones, taking away and nothing but the right ones.

The mounts are the kernel's own FUSE mounts without a daemon: while the descriptor of /dev/fuse is open one hangs, as
with a daemon that is stopped; once it is closed the mount is dead, as after a crash.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tzfs.errors import Busy, InvalidArgument, NotADirectory, NotEmpty, NotFound, StoreError
from tzfs.mount import mountpoint
from tzfs.mount.mountpoint import Mounted, locate, mount_at, mounts, prepare, source, unmount

MS_NOSUID_NODEV = 6
OTHER = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants a user with a name
MNT_DETACH = 2

Mount = Callable[..., int]


def mount(source: str, where: Path, fstype: str, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (source.encode(), os.fsencode(where), fstype.encode(), MS_NOSUID_NODEV, options.encode())
    if libc.mount(*(arguments[:3]), ctypes.c_ulong(arguments[3]), arguments[4]) != 0:
        raise OSError(ctypes.get_errno(), f"mount at {where}")


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Mount]:
    """Makes mounts that nobody answers; gives the descriptor whose closing kills one."""
    opened: list[int] = []

    def make(where: Path, source: str = "tzfs:ws", fstype: str = "fuse.tzfs", uid: int = 0) -> int:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        opened.append(fd)
        mount(source, where, fstype, f"fd={fd},rootmode=40000,user_id={uid},group_id={uid}")
        return fd

    yield make
    for fd in opened:
        try:
            os.close(fd)
        except OSError:
            continue  # the test has killed the mount
    clean(tmp_path)


@pytest.fixture
def dead(hanging: Mount) -> Callable[..., None]:
    def make(where: Path, source: str = "tzfs:ws", fstype: str = "fuse.tzfs", uid: int = 0) -> None:
        os.close(hanging(where, source, fstype, uid))

    return make


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A mount that can be used, and so be busy."""
    where = tmp_path / "tmpfs"
    where.mkdir()
    mount("none", where, "tmpfs")
    yield where
    clean(tmp_path)


def clean(below: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for left in reversed(mounts()):
        if left.path.is_relative_to(below):
            assert libc.umount2(os.fsencode(left.path), MNT_DETACH) == 0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


# -- the table ---------------------------------------------------------------------------------------------------------


def test_a_line_gives_path_type_and_source_whatever_optional_fields_it_has() -> None:
    assert mounts(
        b"22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n"
        b"40 22 0:35 / /run/user/0 rw shared:5 master:1 propagate_from:2 - tmpfs tmpfs rw,size=10k\n"
        b"57 22 0:57 / /ws rw,nosuid - fuse.tzfs tzfs:team/ws rw,user_id=0\n"
    ) == [
        Mounted(Path("/"), "ext4", "/dev/root"),
        Mounted(Path("/run/user/0"), "tmpfs", "tmpfs"),
        Mounted(Path("/ws"), "fuse.tzfs", "tzfs:team/ws"),
    ]


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b\012c", "/a\tb\nc"),
        (rb"/a\134040b", "/a\\040b"),
        (rb"/a\043", "/a#"),
        (b"/a\r\x0b\xc2\x85b", "/a\r\x0b\x85b"),
        (b"/\xff", "/\udcff"),
        (rb"/a\777\08", "/a\\777\\08"),
    ],
    ids=["blank", "tab and newline", "backslash", "hash", "other line ends", "no utf-8", "no escape"],
)
def test_paths_are_unescaped(written: bytes, path: str) -> None:
    assert mounts(b"57 22 0:57 / " + written + b" rw - fuse.tzfs tzfs:ws rw\n")[0].path == Path(path)


def test_what_is_no_line_of_the_table_is_passed_over() -> None:
    assert mounts(b"\n\n1 2 3\nno separator at all here\n - \n") == []


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "name", ["plain", "a b", "a\tb\nc", "back\\slash", "a\\040b", "hash#", "dash - dash", "ü\udcff"]
)
def test_a_mountpoint_of_any_name_is_found_and_taken_away(tmp_path: Path, dead: Mount, name: str) -> None:
    where = tmp_path / name
    where.mkdir()
    dead(where)
    assert mount_at(where) == Mounted(where, "fuse.tzfs", "tzfs:ws")
    assert prepare(where) == where
    assert mount_at(where) is None


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_a_mount_is_found_by_every_path_to_it(
    tmp_path: Path, directory: Path, hanging: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(directory)  # it hangs: to look at it would never end
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for target in (
        str(directory),
        "mnt",
        "./mnt",
        "mnt/",
        "folder/mnt",
        f"{tmp_path}/folder/../{tmp_path.name}/mnt",
    ):
        assert mount_at(locate(target)) == Mounted(directory, "fuse.tzfs", "tzfs:ws")


@pytest.mark.needs("root")
def test_a_link_to_a_mountpoint_means_the_mountpoint(tmp_path: Path, directory: Path, dead: Mount) -> None:
    (tmp_path / "link").symlink_to(directory)
    dead(directory)
    assert locate(tmp_path / "link") == directory
    assert prepare(tmp_path / "link") == directory
    assert mount_at(directory) is None


def test_a_whole_path_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert locate(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError):
        locate("relative")


def test_where_nothing_is_mounted_nothing_is_found(directory: Path) -> None:
    for path in (directory, directory / "absent" / "below"):
        assert mount_at(locate(path)) is None


@pytest.mark.needs("root")
def test_a_mount_of_another_kind_is_none_of_ours(tmpfs: Path) -> None:
    assert tmpfs not in [m.path for m in mountpoint.tzfs_mounts()]


@pytest.mark.parametrize(
    ("name", "after"), [("ws", ""), ("team/ws", ""), ("ws@s", "@s"), ("team/ws@a b:[1]", "@a b:[1]")]
)
def test_a_mount_says_where_its_filesystem_is_and_which_snapshot_of_it_it_shows(name: str, after: str) -> None:
    mounted = Mounted(Path("/mnt"), "fuse.tzfs", source(name, "0123456789abcdef"))
    assert mounted.source == f"tzfs:{name}[0123456789abcdef]"
    assert mounted.what == ("0123456789abcdef", after)
    assert Mounted(Path("/mnt"), "fuse.other", mounted.source).what == ("", "")
    assert Mounted(Path("/mnt"), "fuse.tzfs", "tzfs:ws").what == ("", "")


# -- preparing ---------------------------------------------------------------------------------------------------------


def test_an_empty_directory_is_fit_to_be_mounted_on(directory: Path) -> None:
    assert prepare(directory) == directory


def test_a_relative_path_and_links_on_the_way_are_resolved(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").symlink_to(".")
    assert prepare(Path("mnt")) == prepare(Path("folder/mnt/")) == directory
    monkeypatch.chdir(directory)
    assert prepare(Path(".")) == prepare(Path("../mnt")) == directory


def test_what_is_not_there_and_what_is_no_directory_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such directory") as caught:
        prepare(tmp_path / "absent")
    assert caught.value.hint == f"mkdir {tmp_path / 'absent'}"
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectory, match="file is not a directory"):
        prepare(tmp_path / "file")
    with pytest.raises(NotADirectory, match="not a directory on the way"):
        prepare(tmp_path / "file" / "below")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError, match="Too many levels"):
        prepare(tmp_path / "loop")


@pytest.mark.parametrize("below", [".", "store", "a/b/store"])
def test_a_mount_that_would_hide_its_store_is_refused(directory: Path, below: str) -> None:
    store = directory / below
    store.mkdir(parents=True, exist_ok=True)
    with pytest.raises(InvalidArgument, match="would hide"):
        prepare(directory, store=store)


@pytest.mark.parametrize("below", ["fs", "fs/0123456789abcdef/meta", "anything"])
def test_a_mountpoint_within_the_store_is_refused(directory: Path, below: str) -> None:
    where = directory / below
    where.mkdir(parents=True)
    link = directory.parent / "link"
    link.symlink_to(where)
    for path in (where, link):
        with pytest.raises(InvalidArgument, match="is part of the store"):
            prepare(path, store=directory)


def test_a_store_beside_the_mountpoint_stays(directory: Path) -> None:
    assert prepare(directory, store=directory.parent / "mnt2") == directory


def test_a_directory_with_something_in_it_is_refused_unless_it_is_asked_for(directory: Path) -> None:
    (directory / ".hidden").touch()
    with pytest.raises(NotEmpty, match="is not empty") as caught:
        prepare(directory)
    assert caught.value.hint is not None
    assert "-o nonempty" in caught.value.hint
    assert prepare(directory, nonempty=True) == directory


@pytest.mark.needs("root")
def test_a_dead_mount_of_ours_is_taken_away(directory: Path, dead: Mount) -> None:
    dead(directory)
    assert mountpoint.is_dead(directory)
    assert prepare(directory) == directory
    assert mount_at(directory) is None
    assert os.listdir(directory) == []


@pytest.mark.needs("root")
def test_dead_mounts_on_top_of_each_other_are_all_taken_away(directory: Path, dead: Mount) -> None:
    # a second mount on a dead one has to be moved there
    for _ in range(3):
        aside = directory.parent / "aside"
        aside.mkdir(exist_ok=True)
        dead(aside)
        move(aside, directory)
    assert len([m for m in mounts() if m.path == directory]) == 3
    assert prepare(directory) == directory
    assert mount_at(directory) is None


def move(what: Path, where: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(what), os.fsencode(where), None, ctypes.c_ulong(8192), None) != 0:
        raise OSError(ctypes.get_errno(), "move")


@pytest.mark.needs("root")
def test_a_dead_mount_of_another_program_is_kept(directory: Path, dead: Mount) -> None:
    dead(directory, "sshfs:host", "fuse.sshfs")
    with pytest.raises(Busy, match="sshfs:host is mounted there"):
        prepare(directory)
    assert mount_at(directory) == Mounted(directory, "fuse.sshfs", "sshfs:host")


@pytest.mark.needs("root")
def test_a_live_mount_is_kept_and_named(tmpfs: Path) -> None:
    with pytest.raises(Busy) as caught:
        prepare(tmpfs)
    assert caught.value.holders == ("none",)
    assert caught.value.hint == "unmount it first"
    with pytest.raises(Busy):
        prepare(Path("/"))


@pytest.mark.needs("root")
def test_a_live_mount_that_a_link_leads_to_is_kept(tmpfs: Path) -> None:
    link = tmpfs.parent / "link"
    link.symlink_to(tmpfs)
    with pytest.raises(Busy):
        prepare(link)


# -- unmounting --------------------------------------------------------------------------------------------------------


@pytest.mark.needs("root")
@pytest.mark.parametrize("lazy", [False, True])
def test_a_mount_that_hangs_is_taken_away_without_being_touched(directory: Path, hanging: Mount, lazy: bool) -> None:
    hanging(directory)
    unmount(directory, lazy=lazy)
    assert mount_at(directory) is None


@pytest.mark.needs("root")
def test_a_mount_that_is_used_is_busy_unless_lazy(tmpfs: Path) -> None:
    with open(tmpfs / "file", "w"):
        with pytest.raises(Busy, match="programs are using it") as caught:
            unmount(tmpfs)
        assert caught.value.hint == "leave it and close its files, or give --lazy"
        assert mount_at(tmpfs) is not None
        unmount(tmpfs, lazy=True)
        assert mount_at(tmpfs) is None


@pytest.mark.needs("root")
def test_where_nothing_is_mounted_there_is_nothing_to_take_away(directory: Path) -> None:
    with pytest.raises(NotFound, match="nothing is mounted there"):
        unmount(directory)
    with pytest.raises(NotFound, match="nothing is mounted there"):
        unmount(directory / "absent")


@pytest.mark.needs("root")
def test_a_link_is_not_followed_when_unmounting(tmpfs: Path) -> None:
    link = tmpfs.parent / "link"
    link.symlink_to(tmpfs)
    with pytest.raises(NotFound):
        unmount(link)
    assert mount_at(tmpfs) is not None


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for a daemon: it ends when its standard input does."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


@pytest.mark.needs("root")
def test_unmounting_waits_for_the_daemon(directory: Path, hanging: Mount, process: subprocess.Popen[bytes]) -> None:
    hanging(directory)
    with pytest.raises(Busy, match=f"is unmounted, but process {process.pid} is still at work"):
        unmount(directory, daemon=process.pid, timeout_s=0.05)
    assert mount_at(directory) is None
    hanging(directory)
    assert process.stdin is not None
    process.stdin.close()
    unmount(directory, daemon=process.pid)  # it is not reaped: a zombie has ended
    assert process.poll() is not None


@pytest.mark.needs("root")
def test_a_lazy_unmount_does_not_wait(directory: Path, hanging: Mount, process: subprocess.Popen[bytes]) -> None:
    hanging(directory)
    unmount(directory, lazy=True, daemon=process.pid)
    assert process.poll() is None


@pytest.mark.needs("root")
def test_a_daemon_that_has_gone_already_is_not_waited_for(
    directory: Path, dead: Mount, process: subprocess.Popen[bytes]
) -> None:
    process.kill()
    process.wait()
    dead(directory)
    before = os.listdir("/proc/self/fd")
    unmount(directory, daemon=process.pid)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.needs("root")
def test_fusermount3_does_it_where_umount_may_not(
    directory: Path, hanging: Mount, monkeypatch: pytest.MonkeyPatch, tmpfs: Path
) -> None:
    monkeypatch.setattr(mountpoint, "_umount", lambda path, lazy: False)
    hanging(directory)
    unmount(directory)
    assert mount_at(directory) is None
    with pytest.raises(NotFound, match="nothing is mounted there"):
        unmount(directory)
    with open(tmpfs / "file", "w"), pytest.raises(Busy):
        unmount(tmpfs)


def test_without_fusermount3_it_is_told_what_to_install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(directory))
    with pytest.raises(StoreError) as caught:
        mountpoint._fusermount(directory, lazy=False)
    assert caught.value.hint == "install fuse3"


# -- ordinary users ----------------------------------------------------------------------------------------------------


def as_user(work: Callable[[], object]) -> str:
    """What `work` says as an ordinary user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            try:
                told = str(work())
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
            os.write(writing, told.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that an ordinary user reaches."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    clean(path)
    shutil.rmtree(path)


@pytest.mark.needs("root")
def test_a_user_may_mount_where_it_may_write_and_nowhere_else(shared: Path) -> None:
    mine, theirs, sticky = shared / "mine", shared / "theirs", shared / "sticky"
    for path in (mine, theirs, sticky):
        path.mkdir()
    os.chown(mine, OTHER, OTHER)
    sticky.chmod(0o1777)
    assert as_user(lambda: prepare(mine)) == str(mine)
    for path in (theirs, sticky):
        refused = as_user(partial(prepare, path))
        assert refused == f"PermissionDenied: mountpoint {path} is not a directory of yours"


@pytest.mark.needs("root")
def test_a_user_takes_its_own_dead_mount_away_and_nobody_elses(shared: Path, dead: Mount) -> None:
    mine, roots = shared / "mine", shared / "roots"
    for path in (mine, roots):
        path.mkdir()
    os.chown(mine, OTHER, OTHER)
    dead(mine, uid=OTHER)
    dead(roots)
    assert as_user(lambda: prepare(mine)) == str(mine)
    assert mount_at(mine) is None
    assert as_user(lambda: unmount(roots)).startswith("NotPermitted: ")
    assert mount_at(roots) is not None


@pytest.mark.needs("root")
def test_a_directory_that_a_user_may_not_enter_is_denied(shared: Path) -> None:
    (shared / "closed" / "mnt").mkdir(parents=True)
    (shared / "closed").chmod(0o700)
    assert as_user(lambda: prepare(shared / "closed" / "mnt")).startswith("PermissionDenied: ")
