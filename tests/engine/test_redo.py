"""Groups that only the redo log has: a crash leaves them there, payload and all; nothing is given back too early."""

from __future__ import annotations

from tests.engine.conftest import GUID
from tzfs.engine.engine import Engine, Settings
from tzfs.limits import REDO_PAYLOAD_BYTES_MAX
from tzfs.store.memory import MemoryMeta, MemoryPayload, MemoryRedo
from tzfs.store.redo import replay


class Logged:
    """An engine with a redo log, on stores in memory of which a crash keeps what was synced."""

    def __init__(self, room: int = 100) -> None:
        self.meta, self.payload, self.redo = MemoryMeta(), MemoryPayload(), MemoryRedo(room)
        Engine.format(self.meta, guid=GUID, now_ns=1)
        self.replayed = self._open()

    def _open(self) -> int:
        replayed = replay(self.redo, self.meta, self.payload)
        self.engine = Engine(self.meta, self.payload, redo=self.redo, settings=Settings())
        return replayed

    def crash(self) -> None:
        self.engine.abandon()
        self.meta, self.payload = self.meta.after_crash(), self.payload.after_crash()
        self.replayed = self._open()

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
    assert fs.replayed == 3
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
    assert fs.replayed == 1


def test_a_full_log_makes_the_tables_commit() -> None:
    fs = Logged(room=2)
    before = fs.commits
    for number in range(3):
        fs.file(b"f%d" % number, b"x" * 5000)
        fs.engine.harden()
    assert fs.commits == before + 1
    fs.crash()
    assert fs.replayed == 0
    assert fs.contents(b"f2") == b"x" * 5000


def test_much_payload_goes_to_its_extents() -> None:
    fs = Logged()
    before = fs.commits
    fs.file(b"big", b"x" * (REDO_PAYLOAD_BYTES_MAX + 1))
    fs.engine.harden()
    assert fs.commits == before + 1
    fs.crash()
    assert len(fs.contents(b"big")) == REDO_PAYLOAD_BYTES_MAX + 1


def test_large_values_of_attributes_are_synced_first() -> None:
    fs = Logged()
    ino = fs.file(b"a", b"a")
    fs.engine.setxattr(ino, b"user.large", b"v" * 9000, 0)
    fs.engine.harden()
    fs.crash()
    assert fs.engine.getxattr(fs.engine.lookup(1, b"a").ino, b"user.large") == b"v" * 9000


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
    assert fs.replayed == 1
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
    assert fs.replayed == 0
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
