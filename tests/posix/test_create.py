"""open(O_CREAT), mkdir, mknod, symlink and link: what they make, and why they refuse."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import clock_ticks, fails, linkat, make, opened

LONGEST = "n" * 255


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _link(path: Path) -> None:
    source = path.parent.parent / "source" if not path.parent.exists() else path.parent / "source"
    if not source.exists():
        source = next(p for p in path.parents if (p / "source").exists()) / "source"
    os.link(source, path)


MAKERS: dict[str, Callable[[Path], object]] = {
    "create": _create,
    "mkdir": os.mkdir,
    "mknod-file": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "mkfifo": os.mkfifo,
    "symlink": lambda path: os.symlink("target", path),
    "link": _link,
}
makers = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


@pytest.fixture(autouse=True)
def source(root: Path) -> Path:
    """What the `link` maker links to."""
    return make(root / "source", b"source")


@makers
def test_makes_a_name_that_is_found_listed_and_removable(root: Path, maker: Callable[[Path], object]) -> None:
    path = root / "new"
    maker(path)
    assert os.path.lexists(path)
    assert sorted(os.listdir(root)) == ["new", "source"]
    (os.rmdir if path.is_dir() else os.unlink)(path)
    assert os.listdir(root) == ["source"]


@makers
def test_existing_name_is_eexist_whatever_it_is(root: Path, maker: Callable[[Path], object]) -> None:
    make(root / "file")
    (root / "directory").mkdir()
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    for name in ("file", "directory", "dangling", "fifo"):
        with fails(errno.EEXIST):
            maker(root / name)
    assert not os.path.exists(root / "nowhere")


@makers
def test_missing_parent_is_enoent(root: Path, maker: Callable[[Path], object]) -> None:
    with fails(errno.ENOENT):
        maker(root / "missing" / "new")
    (root / "dangling").symlink_to("nowhere")
    with fails(errno.ENOENT):
        maker(root / "dangling" / "new")


@makers
def test_file_as_parent_is_enotdir(root: Path, maker: Callable[[Path], object]) -> None:
    os.mkfifo(root / "fifo")
    for parent in ("source", "fifo"):
        with fails(errno.ENOTDIR):
            maker(root / parent / "new")


@makers
def test_name_of_255_bytes_is_made_and_of_256_is_enametoolong(root: Path, maker: Callable[[Path], object]) -> None:
    maker(root / LONGEST)
    assert LONGEST in os.listdir(root)
    with fails(errno.ENAMETOOLONG):
        maker(root / (LONGEST + "n"))


@makers
def test_path_of_4096_bytes_is_enametoolong(root: Path, maker: Callable[[Path], object]) -> None:
    with fails(errno.ENAMETOOLONG):
        maker(Path(f"{root}/{'d/' * 2048}new"))


@makers
def test_loop_of_symlinks_in_the_path_is_eloop(root: Path, maker: Callable[[Path], object]) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with fails(errno.ELOOP):
        maker(root / "a" / "new")


@makers
def test_in_a_removed_directory_is_enoent(root: Path, maker: Callable[[Path], object]) -> None:
    (root / "gone").mkdir()
    with opened(root / "gone", os.O_PATH | os.O_DIRECTORY) as descriptor:
        (root / "gone").rmdir()
        inside = Path(f"/proc/self/fd/{descriptor}/new")
        with fails(errno.ENOENT):
            if maker is _link:
                os.link(root / "source", inside)
            else:
                maker(inside)


@makers
def test_moves_the_times_of_the_directory(root: Path, maker: Callable[[Path], object]) -> None:
    os.utime(root, (1_000_000_000, 1_000_000_000))
    before = root.stat()
    clock_ticks()
    maker(root / "new")
    after = root.stat()
    assert after.st_mtime_ns > before.st_ctime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_mode_is_masked_by_the_umask(root: Path, umask: int) -> None:
    os.umask(umask)
    with opened(root / "file", os.O_CREAT | os.O_WRONLY, 0o666):
        pass
    os.mkdir(root / "directory", 0o777)
    os.mknod(root / "node", stat.S_IFREG | 0o666)
    os.mkfifo(root / "fifo", 0o666)
    for name, asked in (("file", 0o666), ("directory", 0o777), ("node", 0o666), ("fifo", 0o666)):
        assert stat.S_IMODE((root / name).stat().st_mode) == asked & ~umask, name


def test_special_bits_are_kept_at_creation(root: Path) -> None:
    with opened(root / "suid", os.O_CREAT | os.O_WRONLY, 0o4755):
        pass
    os.mkdir(root / "sticky", 0o1777)
    assert stat.S_IMODE((root / "suid").stat().st_mode) == 0o4755
    assert stat.S_IMODE((root / "sticky").stat().st_mode) == 0o1755  # less the umask of 022


def test_new_objects_belong_to_their_maker_and_are_new(root: Path) -> None:
    clock_ticks()
    before = (root / "source").stat().st_ctime_ns
    _create(root / "file")
    (root / "directory").mkdir()
    (root / "symlink").symlink_to("target")
    seen = set()
    for name, kind, links, size in (
        ("file", stat.S_IFREG, 1, 0),
        ("directory", stat.S_IFDIR, 2, None),
        ("symlink", stat.S_IFLNK, 1, 6),
    ):
        found = (root / name).lstat()
        assert stat.S_IFMT(found.st_mode) == kind
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
        assert found.st_nlink == links
        assert size is None or found.st_size == size
        assert found.st_mtime_ns == found.st_ctime_ns
        assert before < found.st_mtime_ns
        assert found.st_dev == root.stat().st_dev
        seen.add(found.st_ino)
    assert len(seen) == 3


# -- open ----------------------------------------------------------------------------------------------------------


def test_open_with_o_creat_opens_what_is_there(root: Path) -> None:
    with opened(root / "source", os.O_CREAT | os.O_RDONLY) as descriptor:
        assert os.read(descriptor, 100) == b"source"


def test_open_with_o_creat_follows_a_dangling_symlink_and_o_excl_does_not(root: Path) -> None:
    (root / "pointer").symlink_to("made")
    with fails(errno.EEXIST):
        os.open(root / "pointer", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with opened(root / "pointer", os.O_CREAT | os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x")
    assert (root / "made").read_bytes() == b"x"


def test_file_made_without_write_bits_can_be_written_through_its_first_descriptor(root: Path) -> None:
    with opened(root / "new", os.O_CREAT | os.O_RDWR, 0o444) as descriptor:
        os.write(descriptor, b"written")
    assert (root / "new").read_bytes() == b"written"
    assert stat.S_IMODE((root / "new").stat().st_mode) == 0o444


def test_o_trunc_empties_and_moves_the_times(root: Path) -> None:
    path = root / "source"
    os.utime(path, (1, 1))
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        assert path.stat().st_size == 0
    assert path.stat().st_mtime > 1
    os.utime(path, (1, 1))
    with opened(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC):
        pass
    assert path.stat().st_mtime > 1, "also when it was empty"


def test_open_refuses_by_kind(root: Path) -> None:
    (root / "directory").mkdir()
    (root / "pointer").symlink_to("source")
    with fails(errno.EISDIR):
        os.open(root / "directory", os.O_WRONLY)
    with fails(errno.EISDIR):
        os.open(root / "directory", os.O_RDWR)
    with fails(errno.EISDIR):
        os.open(root / "directory", os.O_CREAT | os.O_RDONLY)
    with fails(errno.ENOTDIR):
        os.open(root / "source", os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.ELOOP):
        os.open(root / "pointer", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.ENOTDIR):
        os.open(root / "pointer", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    with fails(errno.ENOENT):
        os.open(root / "missing", os.O_RDONLY)
    with fails(errno.ENOENT):
        os.open(b"", os.O_RDONLY)
    with fails(errno.ENOTDIR):
        os.open(f"{root}/source/", os.O_RDONLY)
    with fails(errno.EISDIR):
        os.open(f"{root}/new/", os.O_CREAT | os.O_WRONLY)


def test_running_program_is_etxtbsy(root: Path) -> None:
    program = root / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(reading, 0)
        os.set_inheritable(writing, True)
        os.execv(program, ["sleep", "60"])
    try:
        os.close(reading)
        while os.readlink(f"/proc/{child}/exe") != str(program):
            pass
        with fails(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(writing)


def test_nameless_file(place: Place, root: Path) -> None:
    if not place.mode.makes_nameless:
        with fails(errno.EOPNOTSUPP, errno.EISDIR):
            os.open(root, os.O_TMPFILE | os.O_RDWR)
        return
    with opened(root, os.O_TMPFILE | os.O_RDWR) as descriptor:
        os.write(descriptor, b"named later")
        linkat(descriptor, root / "named")
    assert (root / "named").read_bytes() == b"named later"


# -- special files -------------------------------------------------------------------------------------------------


def test_fifo_carries_bytes_and_reports_enxio_without_a_reader(root: Path) -> None:
    fifo = root / "fifo"
    os.mkfifo(fifo, 0o600)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    with fails(errno.ENXIO):
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with opened(fifo, os.O_RDONLY | os.O_NONBLOCK) as reader, opened(fifo, os.O_WRONLY | os.O_NONBLOCK) as writer:
        os.write(writer, b"through")
        assert os.read(reader, 100) == b"through"
        with fails(errno.ESPIPE):
            os.lseek(reader, 0, os.SEEK_SET)
    assert fifo.stat().st_size == 0


def test_socket_is_bound_connected_and_enxio_to_open(root: Path) -> None:
    (root / "s").mkdir()
    previous = os.getcwd()
    os.chdir(root / "s")  # the path of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            with socket.socket(socket.AF_UNIX) as second, fails(errno.EADDRINUSE):
                second.bind("socket")
            client.connect("socket")
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(10) == b"hello"
            assert stat.S_ISSOCK(os.stat("socket").st_mode)
            with fails(errno.ENXIO):
                os.open("socket", os.O_RDWR)
        os.unlink("socket")
    finally:
        os.chdir(previous)


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize("device", [(1, 3), (0, 0), (4095, 1_048_575), (259, 70_000)])
def test_device_node_keeps_its_number(root: Path, kind: int, device: tuple[int, int]) -> None:
    os.mknod(root / "node", kind | 0o600, os.makedev(*device))
    found = (root / "node").stat()
    assert stat.S_IFMT(found.st_mode) == kind
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == device


@pytest.mark.needs("root")
def test_opening_a_device_node(place: Place, root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "driverless", stat.S_IFCHR | 0o666, os.makedev(4000, 77))
    if not place.mode.has_devices:
        with fails(errno.EACCES):
            os.open(root / "null", os.O_RDWR)
        return
    with opened(root / "null", os.O_RDWR) as descriptor:
        assert os.write(descriptor, b"x") == 1
    with fails(errno.ENXIO):
        os.open(root / "driverless", os.O_RDWR)


def test_mknod_refuses(root: Path) -> None:
    with fails(errno.EPERM):
        os.mknod(root / "directory", stat.S_IFDIR | 0o755)
    with fails(errno.EINVAL):
        os.mknod(root / "symlink", stat.S_IFLNK | 0o777)


@pytest.mark.needs("ordinary")
def test_device_node_is_eperm_for_an_ordinary_user(root: Path) -> None:
    with fails(errno.EPERM):
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


# -- symlinks and links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [b"x", b"../up/and\xff\xfeodd", b"t" * 60, b"t" * 3999, b"t" * 4000, b"t" * 4001, b"t" * 4095, b"/", b"a\nb"],
    ids=lambda t: f"{len(t)}-{t[:6]!r}",
)
def test_symlink_reads_back_exactly(root: Path, target: bytes) -> None:
    path = os.fsencode(root) + b"/pointer"
    os.symlink(target, path)
    assert os.readlink(path) == target
    assert os.lstat(path).st_size == len(target)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o777


def test_symlink_refuses_an_empty_or_too_long_target(root: Path) -> None:
    with fails(errno.ENOENT):
        os.symlink("", root / "pointer")
    with fails(errno.ENAMETOOLONG):
        os.symlink("t" * 4096, root / "pointer")
    assert not os.path.lexists(root / "pointer")


def test_readlink_refuses_what_is_no_symlink(root: Path) -> None:
    with fails(errno.EINVAL):
        os.readlink(root / "source")
    with fails(errno.EINVAL):
        os.readlink(root)
    with fails(errno.ENOENT):
        os.readlink(root / "missing")
    with fails(errno.ENOTDIR):
        os.readlink(root / "source" / "below")


def test_chain_of_40_symlinks_is_followed_and_of_41_is_eloop(root: Path) -> None:
    (root / "link1").symlink_to("source")
    for number in range(2, 42):
        (root / f"link{number}").symlink_to(f"link{number - 1}")
    assert (root / "link40").read_bytes() == b"source"
    with fails(errno.ELOOP):
        (root / "link41").read_bytes()


def test_link_is_one_file_under_two_names(root: Path) -> None:
    source, second = root / "source", root / "second"
    before = source.stat().st_ctime_ns
    clock_ticks()
    os.link(source, second)
    assert source.stat().st_ino == second.stat().st_ino
    assert source.stat().st_nlink == second.stat().st_nlink == 2
    assert source.stat().st_ctime_ns > before
    second.write_bytes(b"changed through the second")
    assert source.read_bytes() == b"changed through the second"
    second.chmod(0o600)
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    source.unlink()
    assert second.stat().st_nlink == 1
    assert second.read_bytes() == b"changed through the second"


def test_link_refuses_directories_missing_sources_and_other_filesystems(root: Path) -> None:
    (root / "directory").mkdir()
    with fails(errno.EPERM):
        os.link(root / "directory", root / "second")
    with fails(errno.ENOENT):
        os.link(root / "missing", root / "second")
    with fails(errno.EXDEV):
        os.link("/proc/version", root / "second")
    assert (root / "source").stat().st_nlink == 1


def test_link_to_a_symlink_itself(root: Path) -> None:
    (root / "pointer").symlink_to("source")
    os.link(root / "pointer", root / "second", follow_symlinks=False)
    assert os.readlink(root / "second") == "source"
    assert (root / "pointer").lstat().st_nlink == 2


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_special_files_can_be_linked(root: Path, kind: str) -> None:
    os.mknod(root / kind, (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK) | 0o600)
    os.link(root / kind, root / "second")
    assert (root / kind).stat().st_nlink == 2
    assert (root / "second").stat().st_ino == (root / kind).stat().st_ino


@pytest.mark.modes("disk", "tzfs")
def test_link_number_65001_is_emlink(root: Path) -> None:
    directory = root / "links"
    directory.mkdir()
    os.link(root / "source", directory / "2")
    for number in range(3, 65_001):
        os.link(directory / "2", directory / str(number))
    assert (root / "source").stat().st_nlink == 65_000
    with fails(errno.EMLINK):
        os.link(root / "source", directory / "one-too-many")
    (directory / "77").unlink()
    os.link(root / "source", directory / "fits-again")
