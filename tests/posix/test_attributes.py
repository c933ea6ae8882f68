"""chmod, chown and utimensat; which calls move which times; what clears suid and sgid; set-gid directories."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import (
    AT_SYMLINK_NOFOLLOW,
    UTIME_NOW,
    UTIME_OMIT,
    Person,
    clock_ticks,
    fails,
    make,
    opened,
    renameat2,
    utimensat,
)

OLD = 1_000_000_000  # a time, in seconds, long before any run of this suite


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- chmod ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 0o1, 0o644, 0o777, 0o1777, 0o4755, 0o6711, 0o7777])
def test_chmod_sets_every_bit(root: Path, mode: int) -> None:
    path = make(root / "file")
    path.chmod(mode)
    assert mode_of(path) == mode
    directory = root / "directory"
    directory.mkdir()
    directory.chmod(mode)
    assert mode_of(directory) == mode
    assert stat.S_ISDIR(directory.lstat().st_mode)
    directory.chmod(0o755)


def test_chmod_follows_symlinks_and_fchmod_takes_a_descriptor(root: Path) -> None:
    path = make(root / "file")
    (root / "pointer").symlink_to("file")
    (root / "pointer").chmod(0o640)
    assert mode_of(path) == 0o640
    with opened(path) as descriptor:
        os.fchmod(descriptor, 0o604)
    assert mode_of(path) == 0o604
    assert mode_of(root / "pointer") == 0o777


@pytest.mark.parametrize(
    "call",
    [
        lambda path: os.chmod(path, 0o644),
        lambda path: os.chown(path, -1, -1),
        os.utime,
        lambda path: os.truncate(path, 0),
        os.stat,
        os.listdir,
        os.statvfs,
    ],
    ids=["chmod", "chown", "utime", "truncate", "stat", "listdir", "statvfs"],
)
def test_calls_by_path_refuse_bad_paths(root: Path, call: Callable[[str | bytes], object]) -> None:
    make(root / "file")
    (root / "loop").symlink_to("loop")
    with fails(errno.ENOENT):
        call(f"{root}/missing")
    with fails(errno.ENOENT):
        call(b"")
    with fails(errno.ENOTDIR):
        call(f"{root}/file/below")
    with fails(errno.ENAMETOOLONG):
        call(f"{root}/{'n' * 256}")
    with fails(errno.ENAMETOOLONG):
        call(f"{root}/{'d/' * 2048}")
    with fails(errno.ELOOP):
        call(f"{root}/loop")


# -- chown ---------------------------------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_root_gives_files_away(root: Path) -> None:
    path = make(root / "file")
    os.chown(path, 1234, 5678)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)
    os.chown(path, -1, 9)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 9)
    os.chown(path, 2**32 - 2, -1)
    assert (path.stat().st_uid, path.stat().st_gid) == (2**32 - 2, 9)
    (root / "pointer").symlink_to("file")
    os.lchown(root / "pointer", 77, 78)
    assert ((root / "pointer").lstat().st_uid, path.stat().st_uid) == (77, 2**32 - 2)
    with opened(path) as descriptor:
        os.fchown(descriptor, 5, 6)
    assert (path.stat().st_uid, path.stat().st_gid) == (5, 6)


@pytest.mark.needs("others")
@pytest.mark.needs("root")
def test_owner_changes_the_group_to_one_of_hers_only(home: Path, alice: Person) -> None:
    path = home / "file"
    alice.must(lambda: make(path))
    alice.must(lambda: os.chown(path, -1, alice.groups[0]))
    assert path.stat().st_gid == alice.groups[0]
    alice.must(lambda: os.chown(path, alice.uid, -1))
    alice.cannot(lambda: os.chown(path, -1, 4242), errno.EPERM)
    alice.cannot(lambda: os.chown(path, 0, -1), errno.EPERM)


@pytest.mark.needs("ordinary")
def test_ordinary_user_gives_nothing_away(root: Path) -> None:
    path = make(root / "file")
    with fails(errno.EPERM):
        os.chown(path, 0, -1)
    with fails(errno.EPERM):
        os.chown(path, -1, 0)
    os.chown(path, os.geteuid(), os.getegid())


# -- times ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    [(0, 0), (1, 1), (OLD, 123_456_789), (2**31 - 1, 999_999_999), (2**31, 0), (2**32 + 5, 7), (-1, 500_000_000)],
    ids=str,
)
def test_times_are_kept_to_the_nanosecond(root: Path, moment: tuple[int, int]) -> None:
    path = make(root / "file")
    utimensat(path, moment, (moment[0] + 1, moment[1]))
    found = path.stat()
    assert found.st_atime_ns == moment[0] * 10**9 + moment[1]
    assert found.st_mtime_ns == (moment[0] + 1) * 10**9 + moment[1]


def test_utime_now_and_omit(root: Path) -> None:
    path = make(root / "file")
    utimensat(path, (OLD, 1), (OLD, 2))
    utimensat(path, (0, UTIME_OMIT), (OLD + 5, 3))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (OLD * 10**9 + 1, (OLD + 5) * 10**9 + 3)
    utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert path.stat().st_atime > OLD + 10
    assert path.stat().st_mtime_ns == (OLD + 5) * 10**9 + 3
    before = path.stat()
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert path.stat() == before
    os.utime(path)
    assert path.stat().st_mtime > OLD + 10


def test_times_of_a_symlink_are_its_own(root: Path) -> None:
    path = make(root / "file")
    (root / "pointer").symlink_to("file")
    utimensat(root / "pointer", (OLD, 1), (OLD, 2), flags=AT_SYMLINK_NOFOLLOW)
    assert (root / "pointer").lstat().st_mtime_ns == OLD * 10**9 + 2
    assert path.stat().st_mtime > OLD + 10
    os.utime(root / "pointer", (OLD, OLD))
    assert path.stat().st_mtime == OLD


def test_times_of_directories_and_through_descriptors(root: Path) -> None:
    (root / "directory").mkdir()
    os.utime(root / "directory", ns=(5, 6))
    assert (root / "directory").stat().st_mtime_ns == 6
    path = make(root / "file")
    with opened(path, os.O_RDWR) as descriptor:
        os.utime(descriptor, ns=(7, 8))
        assert os.fstat(descriptor).st_mtime_ns == 8
        os.write(descriptor, b"moves it on")
    assert path.stat().st_mtime > OLD


def test_times_set_after_a_write_stay_when_the_file_is_closed(root: Path) -> None:
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"x" * 10_000)
        os.utime(path, ns=(3, 4))
    assert path.stat().st_mtime_ns == 4
    with opened(path) as descriptor:
        os.fsync(descriptor)
    assert path.stat().st_mtime_ns == 4


def test_utimensat_refuses_nanoseconds_out_of_range(root: Path) -> None:
    path = make(root / "file")
    for wrong in (-1, 10**9, UTIME_OMIT - 1):
        with fails(errno.EINVAL):
            utimensat(path, (OLD, wrong), (OLD, 0))


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x")


def _rename(path: Path) -> None:
    path.rename(path.with_name("renamed"))
    path.with_name("renamed").rename(path)


MOVES: dict[str, tuple[Callable[[Path], object], str]] = {  # which times of the file itself the call moves
    "write": (_write, "mc"),
    "truncate-shorter": (lambda p: os.truncate(p, 1), "mc"),
    "truncate-longer": (lambda p: os.truncate(p, 100_000), "mc"),
    "chmod": (lambda p: p.chmod(0o600), "c"),
    "chown": (lambda p: os.chown(p, os.geteuid(), os.getegid()), "c"),
    "utime": (lambda p: utimensat(p, (OLD, 0), (0, UTIME_OMIT)), "c"),
    "link": (lambda p: os.link(p, p.with_name("second")), "c"),
    "unlink-of-another-name": (lambda p: p.with_name("other").unlink(), "c"),
    "rename": (_rename, "c"),
    "stat": (os.stat, ""),
    "open": (lambda p: os.close(os.open(p, os.O_RDWR)), ""),
    "read": (lambda p: p.read_bytes(), ""),
}


@pytest.mark.parametrize("name", MOVES)
def test_each_call_moves_its_times_and_no_others(root: Path, name: str) -> None:
    call, moved = MOVES[name]
    path = make(root / "file", b"content")
    os.link(path, root / "other")
    utimensat(path, (0, UTIME_NOW), (OLD, 0))
    before = path.stat()
    clock_ticks()
    call(path)
    after = path.stat()
    assert (after.st_mtime_ns > before.st_mtime_ns) == ("m" in moved)
    assert (after.st_ctime_ns > before.st_ctime_ns) == ("c" in moved)


def test_directory_times_move_with_its_entries_only(root: Path) -> None:
    directory = root / "directory"
    directory.mkdir()
    make(directory / "file")
    (directory / "below").mkdir()

    def moved(call: Callable[[], object]) -> bool:
        os.utime(directory, (OLD, OLD))
        call()
        return directory.stat().st_mtime > OLD

    assert moved(lambda: make(directory / "new"))
    assert moved(lambda: (directory / "new").rename(directory / "newer"))
    assert moved(lambda: (directory / "newer").rename(root / "out"))
    assert moved(lambda: (root / "out").rename(directory / "in"))
    assert moved((directory / "in").unlink)
    assert moved((directory / "d").mkdir)
    assert moved((directory / "d").rmdir)
    assert moved(lambda: os.symlink("x", directory / "s"))
    assert not moved(lambda: _write(directory / "file"))
    assert not moved(lambda: (directory / "file").chmod(0o600))
    assert not moved(lambda: make(directory / "below" / "deeper"))
    assert not moved(lambda: os.listdir(directory))


def test_reading_moves_the_access_time_where_it_is_kept(place: Place, root: Path) -> None:
    path = make(root / "file", b"content")
    os.utime(path, (OLD, OLD + 1))  # relatime: an access time before the modification is moved
    path.read_bytes()
    assert (path.stat().st_atime > OLD) == place.mode.stamps_reads


# -- suid and sgid -------------------------------------------------------------------------------------------------


@pytest.mark.needs("others")
@pytest.mark.parametrize("how", ["write", "truncate", "o_trunc", "chown"])
def test_suid_and_sgid_are_lost_when_somebody_not_root_changes_the_file(home: Path, alice: Person, how: str) -> None:
    path = home / "program"

    def act() -> None:
        make(path, b"content")
        path.chmod(0o6777)
        assert mode_of(path) == 0o6777
        if how == "write":
            _write(path)
        elif how == "truncate":
            os.truncate(path, 3)
        elif how == "o_trunc":
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        else:
            os.chown(path, alice.uid, alice.gid)
        assert mode_of(path) == 0o777, oct(mode_of(path))

    alice.must(act)
    assert mode_of(path) == 0o777


@pytest.mark.needs("ordinary")
@pytest.mark.parametrize("how", ["write", "truncate", "o_trunc", "chown"])
def test_suid_and_sgid_are_lost_in_every_mode(root: Path, how: str) -> None:
    path = make(root / "program", b"content", 0o6777)
    if how == "write":
        _write(path)
    elif how == "truncate":
        os.truncate(path, 3)
    elif how == "o_trunc":
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    else:
        os.chown(path, os.geteuid(), os.getegid())
    assert mode_of(path) == 0o777


@pytest.mark.needs("root")
def test_root_keeps_suid_when_writing_and_loses_it_when_giving_away(root: Path) -> None:
    path = make(root / "program", b"content", 0o6777)
    _write(path)
    assert mode_of(path) == 0o6777
    os.chown(path, 1234, 1234)
    assert mode_of(path) == 0o777
    directory = root / "directory"
    directory.mkdir()
    directory.chmod(0o2775)
    os.chown(directory, 1234, 1234)
    assert mode_of(directory) == 0o2775, "a directory's sgid is no privilege"


@pytest.mark.needs("root")
def test_sgid_without_group_execution_survives_a_write(root: Path) -> None:
    path = make(root / "file", b"content", 0o2644)
    os.chown(path, 1234, 1234)
    assert mode_of(path) == 0o2644


@pytest.mark.needs("root", "others")
def test_sgid_is_dropped_by_chmod_for_a_group_that_is_not_hers(home: Path, alice: Person) -> None:
    path = home / "file"
    alice.must(lambda: make(path))
    os.chown(path, alice.uid, 4242)
    alice.must(lambda: path.chmod(0o2755))
    assert mode_of(path) == 0o755
    os.chown(path, alice.uid, alice.groups[0])
    alice.must(lambda: path.chmod(0o2755))
    assert mode_of(path) == 0o2755


@pytest.mark.needs("root")
def test_set_gid_directory_hands_on_its_group(root: Path) -> None:
    directory = root / "directory"
    directory.mkdir()
    os.chown(directory, -1, 4242)
    directory.chmod(0o2775)
    make(directory / "file")
    (directory / "below").mkdir()
    (directory / "symlink").symlink_to("x")
    os.mkfifo(directory / "fifo")
    for name in ("file", "below", "symlink", "fifo"):
        assert (directory / name).lstat().st_gid == 4242, name
    assert mode_of(directory / "below") == 0o2755
    assert mode_of(directory / "file") == 0o644
    renameat2(make(root / "outside"), directory / "moved", 0)
    assert (directory / "moved").stat().st_gid == os.getegid(), "only what is made there inherits"


@pytest.mark.needs("root", "others")
def test_new_program_in_a_set_gid_directory_loses_sgid_unless_in_the_group(home: Path, alice: Person) -> None:
    home.chmod(0o2777)
    os.chown(home, alice.uid, 4242)
    alice.must(lambda: os.close(os.open(home / "foreign", os.O_CREAT | os.O_WRONLY, 0o2755)))
    assert (home / "foreign").stat().st_gid == 4242
    assert mode_of(home / "foreign") == 0o755
    os.chown(home, alice.uid, alice.groups[0])
    home.chmod(0o2777)
    alice.must(lambda: os.close(os.open(home / "hers", os.O_CREAT | os.O_WRONLY, 0o2755)))
    assert mode_of(home / "hers") == 0o2755
