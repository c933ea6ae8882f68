"""Who may do what: mode bits of files and directories, sticky directories, and what only an owner or root may."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.posix.calls import UTIME_NOW, UTIME_OMIT, Person, linkat, make, opened, utimensat

pytestmark = pytest.mark.needs("others")  # for an ordinary user `ordinary` holds too: see test_own_rights

PROTECTED_LINKS = Path("/proc/sys/fs/protected_hardlinks").read_text() != "0\n"


def give(path: Path, person: Person, mode: int) -> Path:
    """Makes it hers, with that mode."""
    os.chown(path, person.uid, person.gid, follow_symlinks=False)
    path.chmod(mode)
    return path


@pytest.mark.needs("root")
@pytest.mark.parametrize("mode", [0o000, 0o100, 0o200, 0o400, 0o070, 0o007, 0o040, 0o004, 0o020, 0o002, 0o666, 0o077])
def test_exactly_one_class_of_bits_decides(home: Path, alice: Person, bob: Person, mode: int) -> None:
    path = make(home / "file", b"content")
    for owner, group, bits in (
        (alice.uid, 4242, mode >> 6),  # the owner's, even when the others' grant more
        (bob.uid, alice.gid, mode >> 3),  # the group's: her own
        (bob.uid, alice.groups[0], mode >> 3),  # or one that she is also in
        (bob.uid, 4242, mode),  # everybody else's
    ):
        os.chown(path, owner, group)
        path.chmod(mode)
        for flags, needed in ((os.O_RDONLY, 4), (os.O_WRONLY, 2), (os.O_RDWR, 6)):
            expected = 0 if bits & needed == needed else errno.EACCES
            assert alice.does(partial(_open, path, flags)) == expected, (owner, group, flags)
        reads = 0 if bits & 4 else errno.EACCES
        assert alice.does(lambda: _access(path, os.R_OK)) == reads


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def _access(path: Path, wanted: int) -> None:
    if not os.access(path, wanted):
        raise PermissionError(errno.EACCES, "access", str(path))


@pytest.mark.needs("root")
def test_truncate_and_utime_need_the_right_to_write(home: Path, alice: Person, bob: Person) -> None:
    path = give(make(home / "file", b"content"), bob, 0o644)
    alice.cannot(lambda: os.truncate(path, 0), errno.EACCES)
    alice.cannot(lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), errno.EACCES)
    alice.cannot(lambda: os.utime(path), errno.EACCES)
    alice.cannot(lambda: os.utime(path, (1, 1)), errno.EPERM)
    alice.cannot(lambda: utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT)), errno.EPERM)
    path.chmod(0o666)
    alice.must(lambda: os.utime(path))
    alice.cannot(lambda: os.utime(path, (1, 1)), errno.EPERM)
    alice.must(lambda: os.truncate(path, 0))


@pytest.mark.needs("root")
def test_only_owner_and_root_change_mode_and_owner(home: Path, alice: Person, bob: Person) -> None:
    path = give(make(home / "file"), bob, 0o777)
    alice.cannot(lambda: path.chmod(0o600), errno.EPERM)
    alice.cannot(lambda: os.chown(path, alice.uid, -1), errno.EPERM)
    alice.cannot(lambda: os.chown(path, -1, alice.gid), errno.EPERM)
    bob.must(lambda: path.chmod(0o600))
    bob.cannot(lambda: os.chown(path, alice.uid, -1), errno.EPERM)
    assert path.stat().st_uid == bob.uid


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda d: os.close(os.open(d / "new", os.O_CREAT | os.O_WRONLY)),
    "mkdir": lambda d: (d / "new").mkdir(),
    "symlink": lambda d: (d / "new").symlink_to("x"),
    "mkfifo": lambda d: os.mkfifo(d / "new"),
    "link": lambda d: os.link(d.parent / "hers", d / "new"),
    "unlink": lambda d: (d / "file").unlink(),
    "rmdir": lambda d: (d / "below").rmdir(),
    "rename-within": lambda d: (d / "file").rename(d / "new"),
    "rename-out": lambda d: (d / "file").rename(d.parent / "new"),
    "rename-in": lambda d: (d.parent / "hers").rename(d / "new"),
}


@pytest.mark.needs("root")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("mode", [0o555, 0o666, 0o777], ids=oct)
def test_changing_entries_needs_write_and_search(
    home: Path, alice: Person, bob: Person, change: Callable[[Path], object], mode: int
) -> None:
    directory = home / "directory"
    directory.mkdir()
    give(make(home / "hers"), alice, 0o644)
    make(directory / "file")
    (directory / "below").mkdir()
    give(directory, bob, mode)
    if mode == 0o777:
        alice.must(lambda: change(directory))
    else:
        alice.cannot(lambda: change(directory), errno.EACCES)


@pytest.mark.needs("root")
def test_search_and_read_of_a_directory_are_apart(home: Path, alice: Person, bob: Person) -> None:
    directory = home / "directory"
    directory.mkdir()
    make(directory / "file", b"content", 0o644)
    give(directory, bob, 0o711)
    alice.cannot(lambda: os.listdir(directory), errno.EACCES)
    alice.must((directory / "file").read_bytes)
    alice.must(lambda: os.chdir(directory))
    directory.chmod(0o744)
    alice.must(lambda: os.listdir(directory))
    alice.cannot(lambda: os.stat(directory / "file"), errno.EACCES)
    alice.cannot(lambda: os.stat(directory / "missing"), errno.EACCES)
    alice.cannot(lambda: os.chdir(directory), errno.EACCES)
    directory.chmod(0o755)
    alice.must(lambda: os.stat(directory / "file"))
    directory.chmod(0o700)
    alice.cannot(lambda: os.stat(directory / "file"), errno.EACCES)
    alice.cannot(lambda: os.readlink(directory / "file"), errno.EACCES)


@pytest.mark.needs("root")
@pytest.mark.parametrize("victim", ["file", "directory", "symlink"])
def test_sticky_directory_protects_what_others_own(home: Path, alice: Person, bob: Person, victim: str) -> None:
    shared = home / "shared"
    shared.mkdir()
    give(shared, Person(61_003, 61_003), 0o1777)
    path = shared / victim

    def make_victim() -> None:
        if victim == "file":
            make(path, mode=0o666)
        elif victim == "directory":
            path.mkdir(0o777)
        else:
            path.symlink_to("x")

    remove = path.rmdir if victim == "directory" else path.unlink
    bob.must(make_victim)
    alice.cannot(remove, errno.EPERM, errno.EACCES)
    alice.cannot(lambda: path.rename(shared / "moved"), errno.EPERM, errno.EACCES)
    alice.must(lambda: make(shared / "hers"))
    if victim != "directory":
        alice.cannot(lambda: (shared / "hers").rename(path), errno.EPERM, errno.EACCES)
    bob.must(remove)
    bob.must(make_victim)
    os.chown(shared, alice.uid, alice.gid)
    shared.chmod(0o1777)
    alice.must(remove)  # the directory's owner may
    assert os.path.lexists(shared / "hers")


@pytest.mark.needs("root")
def test_new_files_belong_to_the_caller(home: Path, alice: Person) -> None:
    for name, change in CHANGES.items():
        if name in ("create", "mkdir", "symlink", "mkfifo"):
            directory = home / name
            directory.mkdir()
            give(directory, alice, 0o755)
            alice.must(partial(change, directory))
            found = (directory / "new").lstat()
            assert (found.st_uid, found.st_gid) == (alice.uid, alice.gid), name


@pytest.mark.needs("root")
def test_o_noatime_is_for_the_owner(home: Path, alice: Person, bob: Person) -> None:
    path = give(make(home / "file"), bob, 0o666)
    alice.cannot(lambda: os.open(path, os.O_RDONLY | os.O_NOATIME), errno.EPERM)
    bob.must(lambda: os.open(path, os.O_RDONLY | os.O_NOATIME))


@pytest.mark.needs("root")
def test_linking_anothers_file_follows_the_system_s_rule(home: Path, alice: Person, bob: Person) -> None:
    path = give(make(home / "file"), bob, 0o600)
    if PROTECTED_LINKS:
        alice.cannot(lambda: os.link(path, home / "second"), errno.EPERM)
    else:
        alice.must(lambda: os.link(path, home / "second"))


@pytest.mark.needs("root")
def test_execution_needs_an_x_bit_for_everybody(home: Path, alice: Person) -> None:
    program = home / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    give(program, alice, 0o644)
    alice.cannot(lambda: os.execv(program, ["program"]), errno.EACCES)
    with pytest.raises(PermissionError):
        os.execv(program, ["program"])
    program.chmod(0o755)
    alice.must(lambda: os.execv(program, ["program"]))


@pytest.mark.needs("root")
def test_rights_are_checked_at_open_and_not_after(home: Path, alice: Person) -> None:
    path = give(make(home / "file", b"content"), alice, 0o600)

    def act() -> None:
        with opened(path, os.O_RDWR) as descriptor:
            path.chmod(0)
            assert os.pread(descriptor, 10, 0) == b"content"
            os.pwrite(descriptor, b"CONTENT", 0)
            os.ftruncate(descriptor, 3)

    alice.must(act)
    assert path.read_bytes() == b"CON"


@pytest.mark.needs("root")
def test_moving_anothers_directory_needs_the_right_to_write_it(home: Path, alice: Person, bob: Person) -> None:
    (home / "a" / "moved").mkdir(parents=True)
    (home / "b").mkdir()
    for name in ("a", "b"):
        give(home / name, alice, 0o755)
    give(home / "a" / "moved", bob, 0o755)
    alice.must(lambda: (home / "a" / "moved").rename(home / "a" / "renamed"))
    alice.cannot(lambda: (home / "a" / "renamed").rename(home / "b" / "moved"), errno.EACCES)
    (home / "a" / "renamed").chmod(0o777)
    alice.must(lambda: (home / "a" / "renamed").rename(home / "b" / "moved"))


def test_linkat_of_an_open_file_gives_it_a_second_name(home: Path, alice: Person) -> None:
    def act() -> None:
        path = make(home / "file", b"x")
        with opened(path, os.O_RDWR) as descriptor:
            linkat(descriptor, home / "second")
        assert path.stat().st_nlink == 2

    alice.must(act)
