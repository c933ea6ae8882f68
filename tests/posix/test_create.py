"""open(O_CREAT), mkdir, mknod, symlink and link: what they make, and why they refuse."""

from __future__ import annotations

import errno
import os
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
