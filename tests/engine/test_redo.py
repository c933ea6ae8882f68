"""Groups that only the redo log has: a crash leaves them there, payload and all; nothing is given back too early."""

from __future__ import annotations

import dataclasses

import pytest

from tests.engine.conftest import GUID
from tzfs.engine.engine import Engine, Settings
from tzfs.errors import CorruptionError, InvalidArgument, TzfsError
from tzfs.format.keys import DataId
from tzfs.format.operations import Op, pack_operations
from tzfs.format.records import Inode
from tzfs.limits import REDO_OPERATIONS_MAX, REDO_PAYLOAD_BYTES_MAX
from tzfs.store.memory import MemoryMeta, MemoryPayload, MemoryRedo


class Logged:
    """An engine with a redo log, on stores in memory of which a crash keeps what was synced."""

    def __init__(self, room: int = 100) -> None:
        self.meta, self.payload, self.redo = MemoryMeta(), MemoryPayload(), MemoryRedo(room)
        Engine.format(self.meta, guid=GUID, now_ns=1)
        self.engine = self._open()

    def _open(self) -> Engine:
        return Engine(self.meta, self.payload, redo=self.redo, settings=Settings())

    def crash(self) -> None:
        self.engine.abandon()
        self.reopen()

    def reopen(self) -> None:
        """The same stores in a new engine; the old one has been closed, or broken off."""
        self.meta, self.payload = self.meta.after_crash(), self.payload.after_crash()
        self.engine = self._open()

    def file(self, name: bytes, data: bytes) -> int:
        ino = self.engine.mknod(1, name, 0o100644, uid=1, gid=1).ino
        self.engine.write(ino, 0, data)
        return ino

    def contents(self, name: bytes, size: int = 1 << 20) -> bytes:
        return self.engine.read(self.engine.lookup(1, name).ino, 0, size)

    @property
    def commits(self) -> int:
        return self.meta.commits


def test_hardening_little_commits_no_tables_and_survives() -> None:
    fs = Logged()
    before = fs.commits
    for number in range(3):
        fs.file(b"small-%d" % number, b"%d" % number * 100)
        fs.file(b"page-%d" % number, b"%d" % number * 5000)
        fs.engine.harden()
    fs.file(b"later", b"never hardened")
    assert fs.commits == before
    assert fs.payload.syncs == 0
    fs.crash()
    assert fs.engine.redone == 12
    assert fs.contents(b"small-2") == b"2" * 100
    assert fs.contents(b"page-0") == b"0" * 5000
    assert fs.engine.find(1, b"later") is None
    assert fs.engine.problems() == []
    fs.engine.close()


def test_a_clean_engine_hardens_nothing() -> None:
    fs = Logged()
    fs.file(b"a", b"a")
    fs.engine.harden()
    fs.engine.harden()
    fs.crash()
    assert fs.engine.redone == 2


def test_a_full_log_makes_the_tables_commit() -> None:
    fs = Logged(room=2)
    before = fs.commits
    for number in range(3):
        fs.file(b"f%d" % number, b"x" * 5000)
        fs.engine.harden()
    assert fs.commits == before + 1
    fs.crash()
    assert fs.engine.redone == 0
    assert fs.contents(b"f2") == b"x" * 5000


def test_much_payload_goes_to_its_extents() -> None:
    fs = Logged()
    before = fs.commits
    fs.file(b"big", b"x" * (REDO_PAYLOAD_BYTES_MAX + 1))
    fs.engine.harden()
    assert fs.commits == before + 1
    fs.crash()
    assert len(fs.contents(b"big")) == REDO_PAYLOAD_BYTES_MAX + 1


def test_large_values_of_attributes_are_done_again_too() -> None:
    fs = Logged()
    ino = fs.file(b"a", b"a")
    fs.engine.setxattr(ino, b"user.large", b"v" * 9000, 0)
    fs.engine.harden()
    fs.crash()
    assert fs.engine.redone == 3
    assert fs.engine.getxattr(fs.engine.lookup(1, b"a").ino, b"user.large") == b"v" * 9000


def test_many_operations_are_worth_a_commit() -> None:
    fs = Logged()
    before = fs.commits
    for number in range(REDO_OPERATIONS_MAX + 1):
        fs.engine.mknod(1, b"%d" % number, 0o100644, uid=1, gid=1)
    assert not fs.engine.logs
    fs.engine.harden()
    assert fs.commits == before + 1
    assert fs.engine.logs


def test_every_operation_is_done_again_as_it_was() -> None:
    """Times, owners, inode numbers and contents, an inode without a name included, that is written on and forgotten."""
    fs = Logged()
    engine = fs.engine
    engine.setattr(1, mode=0o2777, gid=5)  # what is made in it inherits its group
    engine.referenced = lambda ino: True
    directory = engine.mkdir(1, b"d", 0o755, uid=1, gid=1).ino
    kept = fs.file(b"kept", b"k" * 5000)
    engine.commit()
    engine.symlink(directory, b"link", b"t" * 4095, uid=2, gid=2)
    engine.mknod(directory, b"fifo", 0o010600, uid=3, gid=3)
    engine.mknod(directory, b"null", 0o020666, uid=3, gid=3, rdev=259)
    engine.link(kept, directory, b"second")
    engine.rename(1, b"kept", directory, b"moved", 0)
    engine.rename(directory, b"moved", directory, b"fifo", 2)
    engine.setxattr(kept, b"user.a", b"1", 0)
    engine.setxattr(kept, b"user.b", b"2", 0)
    engine.removexattr(kept, b"user.a")
    engine.write(kept, 20_000, b"end")
    engine.setattr(kept, size=15_000, mode=0o4711, uid=9, atime_ns=-5, mtime_ns=1 << 70)
    engine.mkdir(directory, b"gone", 0o700, uid=1, gid=1)
    engine.rmdir(directory, b"gone")
    orphan = fs.file(b"orphan", b"o" * 5000)
    engine.unlink(1, b"orphan")
    engine.write(orphan, 1, b"without a name")
    engine.setattr(orphan, size=0)
    engine.forget(orphan)
    last = fs.file(b"last", b"")
    engine.setattr(last, size=1 << 40)
    engine.harden()
    before, commits = everything(engine), fs.commits
    fs.crash()
    assert fs.commits == commits + 1, "done again, and the generation, in one commit"
    assert everything(fs.engine) == before
    assert fs.engine.mknod(1, b"next", 0o100644, uid=0, gid=0).ino == last + 1
    while fs.engine.background_step():
        pass
    assert fs.engine.orphans == 0
    assert fs.engine.problems() == []


def everything(engine: Engine, directory: int = 1) -> dict[bytes, tuple[Inode, bytes, list[tuple[bytes, bytes]]]]:
    """The tree, with attributes, the beginning of contents, and extended attributes."""
    out: dict[bytes, tuple[Inode, bytes, list[tuple[bytes, bytes]]]] = {}
    for name, inode in engine.readdir_plus(directory, b"", 1000):
        size = min(inode.size, 30_000)
        data = engine.read(inode.ino, 0, size) if inode.mode & 0o170000 == 0o100000 else b""
        attributes = [(key, engine.getxattr(inode.ino, key)) for key in engine.listxattr(inode.ino)]
        record = dataclasses.replace(inode, data=DataId(0), flags=0)
        out[name] = record, data, attributes
        if inode.mode & 0o170000 == 0o040000:
            out.update((name + b"/" + below, found) for below, found in everything(engine, inode.ino).items())
    return out


def test_a_log_that_does_not_fit_is_refused_and_kept() -> None:
    fs = Logged()
    assert fs.redo.append(fs.meta.commit_number, pack_operations([(Op.UNLINK, 1, 1, b"nowhere")]))
    fs.engine.abandon()
    meta = fs.meta.after_crash()
    for _ in range(2):
        with pytest.raises(CorruptionError, match="unlink: no entry b'nowhere'") as refused:
            Engine(meta, fs.payload.after_crash(), redo=fs.redo, settings=Settings())
        assert refused.value.hint
    assert len(fs.redo.pending(meta.commit_number)) == 1
    Engine(meta, fs.payload.after_crash(), settings=Settings()).close()


def test_a_change_that_no_operation_describes_is_committed() -> None:
    fs = Logged()
    fs.engine._head.begin_change()
    fs.engine._head.end_change()
    before = fs.commits
    assert not fs.engine.logs
    fs.engine.harden()
    assert fs.commits == before + 1


def test_what_background_work_changes_between_groups_is_in_the_log() -> None:
    fs = Logged()
    for number in range(4):
        fs.file(b"f%d" % number, b"x" * 5000)
    fs.engine.commit()
    fs.engine.unlink(1, b"f0")
    fs.engine.commit()
    while fs.engine.background_step():  # punches f0's extent, whose row goes from the open transaction
        pass
    fs.file(b"g", b"y")
    fs.engine.harden()
    fs.crash()
    assert fs.engine.redone == 2
    assert fs.engine.problems() == []


def test_nothing_is_given_back_that_the_committed_tables_still_name() -> None:
    fs = Logged()
    fs.file(b"f", b"old" * 3000)
    fs.engine.commit()
    ino = fs.engine.lookup(1, b"f").ino
    before = fs.payload.after_crash()
    fs.engine.write(ino, 0, b"new" * 3000)
    fs.engine.harden()
    while fs.engine.background_step():
        pass
    after = fs.payload.after_crash()
    assert before.segments() == after.segments()
    assert fs.engine.reclaimer.punched_bytes == 0
    fs.engine.commit()
    while fs.engine.background_step():
        pass
    assert fs.engine.reclaimer.punched_bytes > 0
    assert fs.contents(b"f") == b"new" * 3000


def test_a_snapshot_after_logged_groups_has_them_and_voids_the_log() -> None:
    fs = Logged()
    fs.file(b"a", b"a" * 5000)
    fs.engine.harden()
    fs.engine.snapshot("s")
    fs.crash()
    assert fs.engine.redone == 0
    view = fs.engine.view("s")
    assert view.lookup(1, b"a").size == 5000


def test_the_interval_counts_from_the_first_logged_change() -> None:
    fs = Logged()
    assert fs.engine.commit_due_at_ns() is None
    fs.file(b"a", b"a")
    due = fs.engine.commit_due_at_ns()
    fs.engine.harden()
    assert fs.engine.commit_due_at_ns() == due
    fs.file(b"b", b"b")
    assert fs.engine.commit_due_at_ns() == due
    fs.engine.commit()
    assert fs.engine.commit_due_at_ns() is None


def test_whatever_a_program_gives_as_mode_or_owner_can_be_logged() -> None:
    """Of a mode only some bits count, and an owner that no row can have is refused before anything has changed."""
    fs = Logged()
    ino = fs.file(b"a", b"a")
    fs.engine.setattr(ino, mode=-1)
    fs.engine.setattr(1, mode=1 << 40 | 0o750)
    for owner in (-1, 1 << 32):
        with pytest.raises(InvalidArgument):
            fs.engine.setattr(ino, uid=owner)
        with pytest.raises(InvalidArgument):
            fs.engine.setattr(ino, gid=owner, mode=0)
    fs.engine.harden()
    fs.crash()
    assert fs.engine.lookup(1, b"a").mode == 0o107777
    assert fs.engine.inode(1).mode == 0o040750


def test_a_disk_that_is_full_when_it_is_opened_again_keeps_the_log_for_later() -> None:
    fs = Logged()
    fs.file(b"a", b"a" * 5000)
    fs.engine.harden()
    fs.engine.abandon()
    for _ in range(2):
        fs.meta, fs.payload = fs.meta.after_crash(), fs.payload.after_crash()
        fs.meta.full = fs.payload.full = True
        with pytest.raises(TzfsError, match="no space left"):
            fs._open()
    fs.meta, fs.payload = fs.meta.after_crash(), fs.payload.after_crash()
    fs.engine = fs._open()
    assert fs.engine.redone == 2
    assert fs.contents(b"a") == b"a" * 5000
    assert fs.engine.problems() == []
