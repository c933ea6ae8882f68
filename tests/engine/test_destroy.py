"""Destroying snapshots: what goes at once, what is freed and foretold, and who is in the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.engine.world import GUID, charged
from tzfs import limits
from tzfs.engine.destroy import Readers, foreseen
from tzfs.engine.engine import Engine, Settings
from tzfs.errors import Busy, NotFound, Stale
from tzfs.format import keys, records
from tzfs.format.keys import ROOT, Table
from tzfs.format.records import Destroy, Shared
from tzfs.store.memory import MemoryMeta, MemoryPayload

CHUNK = 4096


class Filesystem:
    """An engine on memory, and what is often asked of it."""

    def __init__(self) -> None:
        self.meta, self.payload = MemoryMeta(), MemoryPayload()
        Engine.format(self.meta, guid=GUID, now_ns=1)
        self.open()

    def open(self) -> None:
        self.engine = Engine(self.meta, self.payload, settings=Settings(chunk_shift=12), clock=lambda: 5)

    def crash(self) -> None:
        self.engine.abandon()
        self.meta, self.payload = self.meta.after_crash(), self.payload.after_crash()
        self.open()

    def file(self, name: bytes, size: int = 3 * CHUNK) -> int:
        ino = self.engine.mknod(ROOT, name, 0o100644, uid=0, gid=0).ino
        self.engine.write(ino, 0, name[:1] * size)
        return ino

    def charged(self) -> int:
        txn = self.meta.begin_read()
        try:
            return charged(txn)
        finally:
            txn.close()

    def rest(self) -> int:
        """Everything that waits is done; what is charged then."""
        while True:
            self.engine.commit()
            while self.engine.background_step():
                pass
            if not self.engine.dirty:
                return self.charged()

    def destroys(self) -> list[Destroy]:
        txn = self.meta.begin_read()
        try:
            return [
                Destroy(*records.unpack_plain(Table.DESTROY, key, records.unseal(Table.DESTROY, key, value) or b""))
                for key, value in txn.range(Table.DESTROY, b"")
            ]
        finally:
            txn.close()

    def history(self, count: int = 4) -> None:
        """Snapshots s0, s1, ...: each alone sees a file, and the one after it sees another version of `kept`."""
        kept = self.file(b"kept")
        for step in range(count):
            self.file(b"%d" % step)
            self.engine.write(kept, step * 10, b"%d" % step * CHUNK)
            self.engine.snapshot(f"s{step}")
            self.engine.unlink(ROOT, b"%d" % step)
        self.rest()


@pytest.fixture
def fs() -> Iterator[Filesystem]:
    made = Filesystem()
    yield made
    assert made.engine.problems() == []
    assert made.engine.drift == []
    made.engine.close()


def test_the_name_is_gone_and_durable_before_anything_is_freed(fs: Filesystem) -> None:
    fs.history()
    before = fs.charged()
    told = fs.engine.destroy(["s1"])
    fs.crash()
    assert list(fs.engine.snapshots()) == ["s0", "s2", "s3"]
    assert fs.destroys() == [Destroy(1, 2, 3)]
    assert fs.charged() == before
    assert fs.engine.freeing() == told.bytes > 3 * CHUNK
    assert fs.rest() == before - told.bytes
    assert fs.destroys() == []
    assert fs.engine.freeing() == 0


@pytest.mark.parametrize("names", [["s0"], ["s3"], ["s1", "s2"], ["s3", "s0"], ["s0", "s1", "s2", "s3"]])
def test_what_is_foretold_is_freed(fs: Filesystem, names: list[str]) -> None:
    fs.history()
    txn = fs.meta.begin_read()
    foretold = foreseen(txn, names, fs.engine.counters.epoch)
    txn.close()
    before = fs.charged()
    told = fs.engine.destroy(names)
    assert told == foretold
    assert told.names == tuple(sorted(names))
    assert before - fs.rest() == told.bytes


def test_a_range_frees_what_none_of_its_snapshots_sees_alone(fs: Filesystem) -> None:
    fs.file(b"a")
    fs.engine.snapshot("a")
    fs.engine.snapshot("b")
    fs.engine.unlink(ROOT, b"a")
    fs.rest()
    txn = fs.meta.begin_read()
    alone = [foreseen(txn, [name], fs.engine.counters.epoch).bytes for name in "ab"]
    both = foreseen(txn, "ab", fs.engine.counters.epoch).bytes
    txn.close()
    assert alone == [0, 0]
    assert both > 3 * CHUNK
    before = fs.charged()
    assert fs.engine.destroy(["b", "a"]).bytes == both == before - fs.rest()


def test_after_the_only_snapshot_nothing_is_left_of_it(fs: Filesystem) -> None:
    empty = fs.rest()
    fs.file(b"a")
    fs.engine.snapshot("s")
    fs.engine.unlink(ROOT, b"a")
    fs.engine.destroy(["s"])
    assert fs.rest() == empty
    txn = fs.meta.begin_read()
    for table in (Table.DEAD, Table.DESTROY, Table.PUNCH, Table.CHUNK, Table.DIRENT):
        assert list(txn.range(table, b"")) == [], table
    assert len(list(txn.range(Table.CHANGE, b""))) == 1  # the root
    txn.close()


def test_many_are_queued_at_once_and_crashes_between_the_batches_lose_nothing(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DESTROY_BATCH_ROWS", 5)
    fs.history(12)
    before = fs.charged()
    told = [fs.engine.destroy([f"s{n}"]).bytes for n in (3, 0, 11, 4, 10, 7, 8)]
    assert len(fs.destroys()) == len(told)
    steps = 0
    while fs.destroys():
        fs.engine.background_step()
        steps += 1
        assert fs.engine.problems() == []
        if steps % 3 == 0:
            fs.crash()
    assert steps > 10
    assert fs.rest() == before - sum(told)


def test_what_is_removed_while_older_versions_wait_to_be_freed_stays_removed(fs: Filesystem) -> None:
    """Without a snapshot a removal takes the newest version out; here one lies below it that is about to go."""
    ino = fs.file(b"a", 10)
    fs.engine.snapshot("s")
    fs.engine.write(ino, 0, b"new")
    fs.engine.commit()
    fs.engine.destroy(["s"])
    fs.engine.unlink(ROOT, b"a")
    fs.engine.commit()
    assert fs.engine.find(ROOT, b"a") is None
    with pytest.raises(Stale):
        fs.engine.inode(ino)
    assert fs.engine.problems() == []
    fs.rest()
    assert fs.engine.find(ROOT, b"a") is None


def test_a_name_made_again_just_before_its_tombstone_goes_is_there(fs: Filesystem) -> None:
    """What was looked up for the new entry is the tombstone, which the background frees before the next commit."""
    fs.file(b"a", 10)
    fs.engine.snapshot("s")
    fs.engine.unlink(ROOT, b"a")
    fs.engine.commit()
    fs.engine.destroy(["s"])
    ino = fs.file(b"a", 10)
    fs.engine.background_step()
    fs.rest()
    assert fs.engine.lookup(ROOT, b"a").ino == ino


def test_writes_and_snapshots_go_on_between_the_batches(fs: Filesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DESTROY_BATCH_ROWS", 2)
    fs.history()
    before = fs.charged()
    told = fs.engine.destroy(["s0", "s2", "s3"])
    fs.engine.background_step()
    ino = fs.file(b"new")
    fs.engine.snapshot("later")
    fs.engine.background_step()
    fs.engine.unlink(ROOT, b"new")
    fs.engine.background_step()
    assert fs.engine.view("later").read(ino, 0, 5) == b"nnnnn"
    fs.rest()
    assert fs.engine.view("later").read(ino, 0, 5) == b"nnnnn"
    fs.engine.destroy(["later"])
    assert fs.rest() <= before - told.bytes


def test_its_name_can_be_given_again_at_once_to_another_snapshot(fs: Filesystem) -> None:
    ino = fs.file(b"a")
    fs.engine.snapshot("s")
    old = fs.engine.view("s")
    fs.engine.write(ino, 0, b"b")
    fs.engine.destroy(["s"])
    fs.engine.snapshot("s")
    fs.rest()
    assert fs.engine.view("s").read(ino, 0, 2) == b"ba"
    with pytest.raises(Stale, match="snapshot s has been destroyed"):
        old.read(ino, 0, 2)


def test_one_that_is_not_there_or_held_or_read_keeps_all_from_being_destroyed(fs: Filesystem) -> None:
    fs.history(2)
    with pytest.raises(NotFound, match="no snapshot 'none'"):
        fs.engine.destroy(["s0", "none"])

    @contextmanager
    def readers() -> Iterator[list[dict[str, str | int | float | None]]]:
        yield [{"pid": 12, "name": "s1", "epoch": 2, "mountpoint": "/mnt"}, {"pid": 13, "name": "other", "epoch": 9}]

    def answer() -> Readers:
        return readers()

    fs.engine.destroyer.readers = answer
    with pytest.raises(Busy, match=r"cannot destroy @s0, @s1: in use by pid 12, reading @s1, mounted at /mnt$") as busy:
        fs.engine.destroy(["s0", "s1"])
    assert busy.value.holders == ("pid 12, reading @s1, mounted at /mnt",)
    assert list(fs.engine.snapshots()) == ["s0", "s1"]
    fs.engine.destroy(["s0"])
    assert list(fs.engine.snapshots()) == ["s1"]


def test_the_views_of_a_snapshot_end_with_it_whatever_its_name_was_when_they_began(fs: Filesystem) -> None:
    fs.history(2)
    first, second = fs.engine.view("s0"), fs.engine.view("s1")
    fs.engine.marks.rename("s0", "renamed")
    later = fs.engine.view("renamed")
    fs.engine.snapshot("s0")
    fs.engine.destroy(["s0"])
    assert first.inode(ROOT) == later.inode(ROOT)
    fs.engine.destroy(["renamed"])
    for view in (first, later):
        with pytest.raises(Stale):
            view.inode(ROOT)
    assert second.inode(ROOT).ino == ROOT


def test_a_hold_is_in_the_way_and_is_named(fs: Filesystem) -> None:
    fs.history(2)
    fs.engine.close()
    fs.meta, fs.payload = fs.meta.after_crash(), fs.payload.after_crash()
    txn = fs.meta.begin_write()
    record = records.unpack_snapshot(
        b"s0", records.unseal(Table.SNAPSHOT, b"s0", txn.get(Table.SNAPSHOT, b"s0") or b"") or b""
    )
    record.holds["backup"] = 7
    txn.put(Table.SNAPSHOT, b"s0", records.seal(Table.SNAPSHOT, b"s0", records.pack_snapshot(record)))
    txn.commit()
    fs.open()
    with pytest.raises(Busy, match="in use by hold backup on @s0"):
        fs.engine.destroy(["s1", "s0"])
    assert list(fs.engine.snapshots()) == ["s0", "s1"]


def test_an_extent_with_several_lifetimes_is_foretold_where_all_of_them_end(fs: Filesystem) -> None:
    """The charge of `shared` belongs to no dead row, so only the whole of the snapshots that see it frees it."""
    fs.file(b"a", CHUNK)
    for name in "abc":
        fs.engine.snapshot(name)
    fs.rest()
    fs.engine.close()
    fs.meta, fs.payload = fs.meta.after_crash(), fs.payload.after_crash()
    shared = Shared(CHUNK, {keys.Epoch(1): keys.Epoch(2), keys.Epoch(3): keys.Epoch(4)})
    txn = fs.meta.begin_write()
    key = keys.shared(77)
    txn.put(Table.SHARED, key, records.seal(Table.SHARED, key, records.pack_shared(shared)))
    assert foreseen(txn, "a", 4).bytes == foreseen(txn, "c", 4).bytes == foreseen(txn, "b", 4).bytes == 0
    assert foreseen(txn, "ac", 4).bytes == foreseen(txn, "abc", 4).bytes == CHUNK
    txn.close()
    fs.open()


def test_what_is_to_be_freed_of_an_extent_with_several_lifetimes_is_told(fs: Filesystem) -> None:
    ino = fs.file(b"a", CHUNK + 1)
    fs.engine.snapshot("a")
    fs.engine.write(ino, 0, b"b" * CHUNK)
    fs.engine.snapshot("b")
    rollback = fs.engine.rollback("a")
    while rollback.step():
        pass
    fs.engine.snapshot("c")
    fs.engine.write(ino, 0, b"d" * CHUNK)
    before = fs.rest()
    told = fs.engine.destroy(["a", "c"])
    assert fs.engine.freeing() == told.bytes > CHUNK
    assert fs.rest() == before - told.bytes
    assert fs.engine.freeing() == 0
