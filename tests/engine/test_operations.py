"""Each operation in process: its effect, and every error of its manual page that an engine can answer.

The same operations are held to the kernel's own filesystems, on real mounts, by `tests/posix`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.engine.conftest import Workspace
from tzfs import errors, limits
from tzfs.engine.engine import Engine
from tzfs.errors import errno_of
from tzfs.format.keys import Ino
from tzfs.format.records import Inode

REG, DIR, LNK, FIFO, CHR = 0o100000, 0o040000, 0o120000, 0o010000, 0o020000
LONG = b"n" * 256


class Tree:
    """What the table of errors works on: a directory with a file, a symlink, a full and an empty directory."""

    def __init__(self, ws: Workspace) -> None:
        e = self.engine = ws.engine
        self.file = ws.file(b"file", b"contents")
        self.other = ws.file(b"other")
        self.link = e.symlink(1, b"link", b"target", uid=0, gid=0).ino
        self.full = e.mkdir(1, b"full", 0o755, uid=0, gid=0).ino
        self.inner = e.mkdir(self.full, b"inner", 0o755, uid=0, gid=0).ino
        self.empty = e.mkdir(1, b"empty", 0o755, uid=0, gid=0).ino
        gone = e.mkdir(1, b"gone", 0o755, uid=0, gid=0).ino
        e.referenced = lambda ino: ino == gone
        e.rmdir(1, b"gone")
        self.removed = gone  # a directory that somebody still stands in
        e.setxattr(self.file, b"user.a", b"1")
        e.commit()


Call = Callable[[Engine, Tree], object]


def make(e: Engine, parent: int, name: bytes, mode: int = REG | 0o644) -> Inode:
    return e.mknod(parent, name, mode, uid=0, gid=0)


ERRORS: list[tuple[str, int, Call]] = [
    ("lookup: no entry", errno.ENOENT, lambda e, t: e.lookup(1, b"missing")),
    ("lookup: not a directory", errno.ENOTDIR, lambda e, t: e.lookup(t.file, b"a")),
    ("lookup: name too long", errno.ENAMETOOLONG, lambda e, t: e.lookup(1, LONG)),
    ("lookup: stale", errno.ESTALE, lambda e, t: e.lookup(999, b"a")),
    ("getattr: stale", errno.ESTALE, lambda e, t: e.inode(999)),
    ("readlink: stale", errno.ESTALE, lambda e, t: e.readlink(999)),
    ("read: stale", errno.ESTALE, lambda e, t: e.read(999, 0, 1)),
    ("write: stale", errno.ESTALE, lambda e, t: e.write(999, 0, b"a")),
    ("readdir: stale", errno.ESTALE, lambda e, t: e.readdir(999, b"", 10)),
    ("getxattr: stale", errno.ESTALE, lambda e, t: e.getxattr(999, b"user.a")),
    ("setxattr: stale", errno.ESTALE, lambda e, t: e.setxattr(999, b"user.a", b"1")),
    ("listxattr: stale", errno.ESTALE, lambda e, t: e.listxattr(999)),
    ("removexattr: stale", errno.ESTALE, lambda e, t: e.removexattr(999, b"user.a")),
    ("mknod: stale", errno.ESTALE, lambda e, t: make(e, 999, b"a")),
    ("unlink: stale", errno.ESTALE, lambda e, t: e.unlink(999, b"a")),
    ("rmdir: stale", errno.ESTALE, lambda e, t: e.rmdir(999, b"a")),
    ("rename: stale", errno.ESTALE, lambda e, t: e.rename(999, b"a", 1, b"b")),
    ("rename: to a stale directory", errno.ESTALE, lambda e, t: e.rename(1, b"file", 999, b"b")),
    ("mknod: exists", errno.EEXIST, lambda e, t: make(e, 1, b"file")),
    ("mknod: not a directory", errno.ENOTDIR, lambda e, t: make(e, t.file, b"a")),
    ("mknod: name too long", errno.ENAMETOOLONG, lambda e, t: make(e, 1, LONG)),
    ("mknod: empty name", errno.EINVAL, lambda e, t: make(e, 1, b"")),
    ("mknod: a slash", errno.EINVAL, lambda e, t: make(e, 1, b"a/b")),
    ("mknod: dot dot", errno.EINVAL, lambda e, t: make(e, 1, b"..")),
    ("mknod: a directory", errno.EINVAL, lambda e, t: make(e, 1, b"a", DIR | 0o755)),
    ("mknod: in a removed directory", errno.ENOENT, lambda e, t: make(e, t.removed, b"a")),
    ("mkdir: exists", errno.EEXIST, lambda e, t: e.mkdir(1, b"file", 0o755, uid=0, gid=0)),
    ("mkdir: in a removed directory", errno.ENOENT, lambda e, t: e.mkdir(t.removed, b"a", 0o755, uid=0, gid=0)),
    ("mkdir: not a directory", errno.ENOTDIR, lambda e, t: e.mkdir(t.file, b"a", 0o755, uid=0, gid=0)),
    ("mkdir: name too long", errno.ENAMETOOLONG, lambda e, t: e.mkdir(1, LONG, 0o755, uid=0, gid=0)),
    ("symlink: not a directory", errno.ENOTDIR, lambda e, t: e.symlink(t.file, b"a", b"t", uid=0, gid=0)),
    ("symlink: in a removed directory", errno.ENOENT, lambda e, t: e.symlink(t.removed, b"a", b"t", uid=0, gid=0)),
    ("symlink: name too long", errno.ENAMETOOLONG, lambda e, t: e.symlink(1, LONG, b"t", uid=0, gid=0)),
    ("symlink: exists", errno.EEXIST, lambda e, t: e.symlink(1, b"file", b"t", uid=0, gid=0)),
    ("symlink: empty target", errno.EINVAL, lambda e, t: e.symlink(1, b"a", b"", uid=0, gid=0)),
    ("symlink: target too long", errno.ENAMETOOLONG, lambda e, t: e.symlink(1, b"a", b"t" * 4096, uid=0, gid=0)),
    ("readlink: not a symlink", errno.EINVAL, lambda e, t: e.readlink(t.file)),
    ("link: a directory", errno.EPERM, lambda e, t: e.link(t.empty, 1, b"a")),
    ("link: exists", errno.EEXIST, lambda e, t: e.link(t.file, 1, b"other")),
    ("link: stale", errno.ESTALE, lambda e, t: e.link(999, 1, b"a")),
    ("link: not a directory", errno.ENOTDIR, lambda e, t: e.link(t.file, t.other, b"a")),
    ("link: in a removed directory", errno.ENOENT, lambda e, t: e.link(t.file, t.removed, b"a")),
    ("link: name too long", errno.ENAMETOOLONG, lambda e, t: e.link(t.file, 1, LONG)),
    ("unlink: no entry", errno.ENOENT, lambda e, t: e.unlink(1, b"missing")),
    ("unlink: a directory", errno.EISDIR, lambda e, t: e.unlink(1, b"empty")),
    ("unlink: not in a directory", errno.ENOTDIR, lambda e, t: e.unlink(t.file, b"a")),
    ("unlink: name too long", errno.ENAMETOOLONG, lambda e, t: e.unlink(1, LONG)),
    ("rmdir: name too long", errno.ENAMETOOLONG, lambda e, t: e.rmdir(1, LONG)),
    ("rmdir: not in a directory", errno.ENOTDIR, lambda e, t: e.rmdir(t.file, b"a")),
    ("rmdir: itself", errno.EINVAL, lambda e, t: e.rmdir(t.empty, b".")),
    ("rmdir: no entry", errno.ENOENT, lambda e, t: e.rmdir(1, b"missing")),
    ("rmdir: not a directory", errno.ENOTDIR, lambda e, t: e.rmdir(1, b"file")),
    ("rmdir: not empty", errno.ENOTEMPTY, lambda e, t: e.rmdir(1, b"full")),
    ("rename: no entry", errno.ENOENT, lambda e, t: e.rename(1, b"missing", 1, b"a")),
    ("rename: over a full directory", errno.ENOTEMPTY, lambda e, t: e.rename(1, b"empty", 1, b"full")),
    ("rename: a file over a directory", errno.EISDIR, lambda e, t: e.rename(1, b"file", 1, b"empty")),
    ("rename: a directory over a file", errno.ENOTDIR, lambda e, t: e.rename(1, b"empty", 1, b"file")),
    ("rename: into itself", errno.EINVAL, lambda e, t: e.rename(1, b"full", t.inner, b"a")),
    ("rename: noreplace", errno.EEXIST, lambda e, t: e.rename(1, b"file", 1, b"other", 1)),
    ("rename: exchange with nothing", errno.ENOENT, lambda e, t: e.rename(1, b"file", 1, b"missing", 2)),
    ("rename: exchange with its own parent", errno.EINVAL, lambda e, t: e.rename(1, b"full", t.full, b"inner", 2)),
    ("rename: contradictory flags", errno.EINVAL, lambda e, t: e.rename(1, b"file", 1, b"other", 3)),
    ("rename: unknown flags", errno.EINVAL, lambda e, t: e.rename(1, b"file", 1, b"other", 4)),
    ("rename: into a removed directory", errno.ENOENT, lambda e, t: e.rename(1, b"file", t.removed, b"a")),
    ("rename: name too long", errno.ENAMETOOLONG, lambda e, t: e.rename(1, b"file", 1, LONG)),
    ("rename: old name too long", errno.ENAMETOOLONG, lambda e, t: e.rename(1, LONG, 1, b"a")),
    ("rename: not from a directory", errno.ENOTDIR, lambda e, t: e.rename(t.file, b"a", 1, b"b")),
    ("rename: not into a directory", errno.ENOTDIR, lambda e, t: e.rename(1, b"other", t.file, b"b")),
    ("read: a directory", errno.EISDIR, lambda e, t: e.read(t.full, 0, 1)),
    ("read: negative", errno.EINVAL, lambda e, t: e.read(t.file, -1, 1)),
    ("write: a directory", errno.EISDIR, lambda e, t: e.write(t.full, 0, b"a")),
    ("write: a symlink", errno.EINVAL, lambda e, t: e.write(t.link, 0, b"a")),
    ("write: too far", errno.EFBIG, lambda e, t: e.write(t.file, limits.FILE_BYTES_MAX, b"a")),
    ("truncate: a directory", errno.EISDIR, lambda e, t: e.setattr(t.full, size=0)),
    ("truncate: a symlink", errno.EINVAL, lambda e, t: e.setattr(t.link, size=0)),
    ("truncate: negative", errno.EINVAL, lambda e, t: e.setattr(t.file, size=-1)),
    ("truncate: too far", errno.EFBIG, lambda e, t: e.setattr(t.file, size=limits.FILE_BYTES_MAX + 1)),
    ("setattr: stale", errno.ESTALE, lambda e, t: e.setattr(999, mode=0)),
    ("readdir: not a directory", errno.ENOTDIR, lambda e, t: e.readdir(t.file, b"", 10)),
    ("getxattr: none", errno.ENODATA, lambda e, t: e.getxattr(t.file, b"user.b")),
    ("setxattr: create what exists", errno.EEXIST, lambda e, t: e.setxattr(t.file, b"user.a", b"2", 1)),
    ("setxattr: replace what does not", errno.ENODATA, lambda e, t: e.setxattr(t.file, b"user.b", b"2", 2)),
    ("setxattr: both", errno.EINVAL, lambda e, t: e.setxattr(t.file, b"user.a", b"2", 3)),
    ("setxattr: too large", errno.E2BIG, lambda e, t: e.setxattr(t.file, b"user.b", b"2" * 65537)),
    ("setxattr: name too long", errno.ERANGE, lambda e, t: e.setxattr(t.file, b"user." + LONG, b"2")),
    ("setxattr: no name", errno.EINVAL, lambda e, t: e.setxattr(t.file, b"", b"2")),
    ("removexattr: none", errno.ENODATA, lambda e, t: e.removexattr(t.file, b"user.b")),
    ("view: no such snapshot", errno.ENOENT, lambda e, t: e.view("missing")),
    ("snapshot: no name", errno.EINVAL, lambda e, t: e.snapshot("")),
    ("snapshot: name too long", errno.EINVAL, lambda e, t: e.snapshot("n" * 256)),
]


@pytest.mark.parametrize(("number", "call"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
@pytest.mark.parametrize("committed", [False, True], ids=["dirty", "committed"])
def test_an_error_has_its_errno_and_changes_nothing(ws: Workspace, number: int, call: Call, committed: bool) -> None:
    tree = Tree(ws)
    if not committed:
        ws.engine.setattr(1, mode=0o700)
    was_dirty, before = ws.engine.dirty, ws.engine.readdir_plus(1, b"", 100)
    with pytest.raises(errors.TzfsError) as raised:
        call(ws.engine, tree)
    assert errno_of(raised.value) == number
    assert ws.engine.dirty == was_dirty
    assert ws.engine.readdir_plus(1, b"", 100) == before
    ws.engine.forget(tree.removed)


def new_number(e: Engine, t: Tree) -> None:
    e.mkdir(1, b"new", 0o755, uid=0, gid=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda e, t: make(e, 1, b"new"),
        new_number,
        lambda e, t: e.symlink(1, b"new", b"target", uid=0, gid=0),
    ],
    ids=["mknod", "mkdir", "symlink"],
)
def test_when_the_last_inode_number_is_given_nothing_is_made_and_all_else_goes_on(ws: Workspace, call: Call) -> None:
    tree = Tree(ws)
    ws.engine.counters.next_ino = Ino(limits.INO_MAX)
    last = make(ws.engine, 1, b"last")
    assert last.ino == limits.INO_MAX
    with pytest.raises(errors.LimitReached) as raised:
        call(ws.engine, tree)
    assert errno_of(raised.value) == errno.ENOSPC
    assert ws.engine.find(1, b"new") is None
    ws.engine.write(last.ino, 0, b"data")
    ws.engine.forget(tree.removed)
    ws.restart()
    assert ws.engine.read(limits.INO_MAX, 0, 10) == b"data"


ADDING: dict[str, Call] = {
    "mknod": lambda e, t: make(e, 1, b"new"),
    "mkdir": new_number,
    "symlink": lambda e, t: e.symlink(1, b"new", b"target", uid=0, gid=0),
    "link": lambda e, t: e.link(t.file, 1, b"new"),
    "write": lambda e, t: e.write(t.file, 0, b"changed"),
    "setxattr": lambda e, t: e.setxattr(t.file, b"user.b", b"2"),
    "snapshot": lambda e, t: e.snapshot("s"),
}


@pytest.mark.parametrize("name", ADDING)
def test_on_a_full_disk_what_adds_says_so_and_changes_nothing(ws: Workspace, name: str) -> None:
    tree = Tree(ws)
    ws.engine.forget(tree.removed)
    ws.engine.commit()
    before = ws.engine.readdir_plus(1, b"", 100)
    ws.meta.full = ws.payload.full = True
    with pytest.raises(errors.NoSpace) as raised:
        ADDING[name](ws.engine, tree)
    assert errno_of(raised.value) == errno.ENOSPC
    assert not ws.engine.dirty
    assert ws.engine.readdir_plus(1, b"", 100) == before
    assert ws.engine.snapshots() == {}
    ws.meta.full = ws.payload.full = False
    ADDING[name](ws.engine, tree)


def test_a_directory_does_not_move_to_where_there_are_too_many(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINKS_MAX", 4)
    top = ws.engine.mkdir(1, b"top", 0o755, uid=0, gid=0).ino
    for name in (b"a", b"b"):
        ws.engine.mkdir(top, name, 0o755, uid=0, gid=0)
    ws.engine.mkdir(1, b"c", 0o755, uid=0, gid=0)
    with pytest.raises(errors.TooManyLinks) as raised:
        ws.engine.rename(1, b"c", top, b"c")
    assert errno_of(raised.value) == errno.EMLINK
    ws.engine.rename(1, b"c", top, b"a")  # in the place of another it may


FAILED: dict[str, Call] = {
    "lookup": lambda e, t: e.lookup(1, b"file"),
    "getattr": lambda e, t: e.check(),
    "setattr": lambda e, t: e.setattr(t.file, mode=0),
    "truncate": lambda e, t: e.setattr(t.file, size=0),
    "read": lambda e, t: e.read(t.file, 0, 1),
    "write": lambda e, t: e.write(t.file, 0, b"a"),
    "readdir": lambda e, t: e.readdir(1, b"", 10),
    "listing with attributes": lambda e, t: e.readdir_plus(1, b"", 10),
    "readlink": lambda e, t: e.readlink(t.link),
    "rename": lambda e, t: e.rename(1, b"file", 1, b"a"),
    "unlink": lambda e, t: e.unlink(1, b"file"),
    "rmdir": lambda e, t: e.rmdir(1, b"empty"),
    "getxattr": lambda e, t: e.getxattr(t.file, b"user.a"),
    "listxattr": lambda e, t: e.listxattr(t.file),
    "removexattr": lambda e, t: e.removexattr(t.file, b"user.a"),
    "statfs": lambda e, t: e.statfs(),
    "fsync": lambda e, t: e.harden(),
    "commit": lambda e, t: e.commit(),
    **ADDING,
}


@pytest.mark.parametrize("name", FAILED)
def test_once_the_disk_has_failed_every_operation_says_so(ws: Workspace, name: str) -> None:
    tree = Tree(ws)
    ws.engine.write(tree.file, 0, b"x" * 10_000)
    ws.payload.fail_next_sync = errors.StoreError("the disk has failed")
    with pytest.raises(errors.StoreError):
        ws.engine.commit()
    with pytest.raises(errors.MountFailed) as raised:
        FAILED[name](ws.engine, tree)
    assert errno_of(raised.value) == errno.EIO


def test_every_kind_of_inode_can_be_made(ws: Workspace) -> None:
    for name, mode, rdev in ((b"r", REG | 0o640, 0), (b"f", FIFO | 0o600, 0), (b"c", CHR | 0o600, 0x103)):
        made = ws.engine.mknod(1, name, mode, uid=5, gid=6, rdev=rdev)
        assert (made.mode, made.uid, made.gid, made.rdev, made.nlink, made.size) == (mode, 5, 6, rdev, 1, 0)
    ws.restart()
    assert ws.engine.lookup(1, b"c").rdev == 0x103


def test_files_in_a_set_group_id_directory_take_its_group_and_directories_its_bit(ws: Workspace) -> None:
    top = ws.engine.mkdir(1, b"team", 0o2775, uid=1, gid=50).ino
    file = ws.engine.mknod(top, b"f", REG | 0o644, uid=1, gid=1)
    below = ws.engine.mkdir(top, b"d", 0o755, uid=1, gid=1)
    assert file.gid == below.gid == 50
    assert below.mode & 0o2000
    assert not file.mode & 0o2000


def test_a_new_owner_takes_set_user_id_away(ws: Workspace) -> None:
    ino = make(ws.engine, 1, b"f", REG | 0o6755).ino
    assert ws.engine.setattr(ino, uid=7).mode & 0o7777 == 0o755
    ws.engine.setattr(ino, mode=0o2745)  # without group execute, the bit means mandatory locking
    assert ws.engine.setattr(ino, gid=7).mode & 0o7777 == 0o2745


def test_times_are_kept_to_the_nanosecond_and_before_1970(ws: Workspace) -> None:
    ino = ws.file(b"f")
    ws.engine.setattr(ino, atime_ns=1_234_567_890_123_456_789, mtime_ns=-1)
    ws.restart()
    inode = ws.engine.inode(ino)
    assert (inode.atime_ns, inode.mtime_ns) == (1_234_567_890_123_456_789, -1)
    assert ws.engine.setattr(ino, mtime_ns=1 << 70).mtime_ns == (1 << 63) - 1


def test_a_hole_reads_as_zeros_and_takes_nothing(ws: Workspace) -> None:
    ino = ws.file(b"sparse")
    before = ws.engine.counters.bytes
    ws.engine.write(ino, 1 << 40, b"end")
    ws.engine.setattr(ino, size=1 << 41)
    ws.engine.commit()
    assert ws.engine.read(ino, (1 << 40) - 2, 7) == b"\0\0end\0\0"
    assert ws.engine.read(ino, 1 << 30, 10) == bytes(10)
    assert ws.engine.counters.bytes - before < 10_000


def test_growing_after_shrinking_does_not_bring_old_bytes_back(ws: Workspace) -> None:
    for size in (3000, 100_000, 400_000):
        ino = ws.file(b"f%d" % size, b"x" * size)
        ws.engine.commit()
        ws.engine.setattr(ino, size=size // 3)
        ws.engine.setattr(ino, size=size)
        ws.restart()
        assert ws.engine.read(ino, 0, size) == b"x" * (size // 3) + bytes(size - size // 3)


@pytest.mark.parametrize("size", [1, 3999, 4000, 4001, 4095])
def test_symlink_targets_of_every_length(ws: Workspace, size: int) -> None:
    ino = ws.engine.symlink(1, b"l", b"t" * size, uid=0, gid=0).ino
    assert ws.engine.readlink(ino) == b"t" * size
    ws.restart()
    assert ws.engine.readlink(ino) == b"t" * size


@pytest.mark.parametrize("size", [0, 1, 3999, 4000, 65536])
def test_attribute_values_of_every_length(ws: Workspace, size: int) -> None:
    ino = ws.file(b"f")
    ws.engine.setxattr(ino, b"user.a", b"v" * size)
    ws.engine.snapshot("s")
    ws.engine.removexattr(ino, b"user.a")
    ws.restart()
    assert ws.engine.listxattr(ino) == []
    assert ws.engine.view("s").getxattr(ino, b"user.a") == b"v" * size


def test_the_list_of_attribute_names_has_a_limit(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "XATTR_LIST_BYTES_MAX", 20)
    ino = ws.file(b"f")
    ws.engine.setxattr(ino, b"user.12345", b"")
    with pytest.raises(errors.AttributeTooBig):
        ws.engine.setxattr(ino, b"user.67890", b"")


def test_links_and_subdirectories_have_a_limit(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINKS_MAX", 3)
    ino = ws.file(b"f")
    ws.engine.link(ino, 1, b"g")
    ws.engine.link(ino, 1, b"h")
    with pytest.raises(errors.TooManyLinks) as raised:
        ws.engine.link(ino, 1, b"i")
    assert errno_of(raised.value) == errno.EMLINK
    ws.engine.mkdir(1, b"d", 0o755, uid=0, gid=0)
    with pytest.raises(errors.TooManyLinks):
        ws.engine.mkdir(1, b"e", 0o755, uid=0, gid=0)


def test_an_unlinked_file_lives_until_it_is_forgotten_and_not_over_a_crash(ws: Workspace) -> None:
    ino = ws.file(b"f", b"still here")
    ws.engine.referenced = lambda number: number == ino
    ws.engine.unlink(1, b"f")
    ws.engine.snapshot("s")
    ws.engine.write(ino, 0, b"STILL")
    assert ws.engine.read(ino, 0, 20) == b"STILL here"
    assert ws.engine.inode(ino).nlink == 0
    ws.crash()
    ws.settle()
    with pytest.raises(errors.Stale):
        ws.engine.inode(ino)
    assert ws.engine.orphans == 0


def test_statfs_counts_what_there_is(ws: Workspace) -> None:
    before = ws.engine.statfs()
    ws.file(b"f", b"x" * 100_000)
    ws.engine.commit()
    after = ws.engine.statfs()
    assert after.blocks - before.blocks == 100_000 // 4096 + 1
    assert (after.files - after.files_free) - (before.files - before.files_free) == 1
