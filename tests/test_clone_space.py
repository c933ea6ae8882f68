"""What a clone refers to: all that its origin's snapshot does, less what it has changed or removed, plus its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.damaging import damage_row
from tests.noise import noise
from tzfs import limits
from tzfs.engine import bequest
from tzfs.engine.check.problems import Rule
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.management import Store, open_store
from tzfs.restoring import wanted

FILE = 400_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as store:
        store.create("ws")
        with store.open("ws") as fs:
            fs.mkdir("/d")
            for i in range(4):
                fs.write_bytes(f"/d/{i}", noise(FILE, str(i)))
            fs.write_bytes("/text", b"some words " * 30_000)
            fs.write_bytes("/small", b"s" * 3000)
            fs.setxattr("/small", "user.x", noise(6000))
        store.snapshot("ws@s")
        yield store


def figure(store: Store, name: str, what: str = "referenced") -> int:
    if "@" in name:
        filesystem, _, snapshot = name.partition("@")
        (found,) = [each for each in store.snapshots(filesystem) if each.name.snapshot == snapshot]
        return int(found.properties[what].exact or "")
    return int(store.properties(name)[what].exact or "")


def sound(store: Store, name: str) -> None:
    with store.open(name) as fs:
        assert fs._engine.problems() == []


def test_a_new_clone_refers_to_what_its_origin_does_and_is_charged_nothing(store: Store) -> None:
    whole, logical = figure(store, "ws@s"), figure(store, "ws@s", "logicalreferenced")
    assert logical - 200_000 > whole > 4 * FILE
    store.clone("ws@s", "c")
    store.snapshot("c@t")
    store.clone("c@t", "d")
    for name in ("c", "c@t", "d"):
        assert (figure(store, name), figure(store, name, "logicalreferenced")) == (whole, logical)
    for name in ("c", "d"):
        assert figure(store, name, "used") == figure(store, name, "usedbydataset") == 0
    with store.open("ws") as fs:
        fs.unlink("/d/0")
    assert figure(store, "ws") < whole == figure(store, "c")


def test_what_is_removed_or_changed_is_not_referred_to_any_more(store: Store) -> None:
    store.clone("ws@s", "c")
    store.snapshot("c@before")
    whole = figure(store, "c")
    with store.open("c") as fs:
        fs.unlink("/d/0")
        fs.collect()
    sound(store, "c")
    left = figure(store, "c")
    assert FILE <= whole - left < FILE + 20_000
    assert figure(store, "c@before") == whole

    with store.open("c") as fs, fs.open("/d/1", "r+b") as file:
        file.write(b"changed")  # the first chunk is the clone's own from now on
    sound(store, "c")
    assert abs(figure(store, "c") - left) < 5000
    assert figure(store, "c", "used") > 100_000

    with store.open("c") as fs:
        fs.rmtree("/d")
        fs.unlink("/small")
        fs.unlink("/text")
        fs.collect()
    sound(store, "c")
    assert figure(store, "c") <= figure(store, "c", "logicalreferenced") < 2000
    assert figure(store, "c@before") == whole
    with store.open("c") as fs:
        fs.rollback("before", safety=False)
    sound(store, "c")
    assert abs(figure(store, "c") - whole) < 20_000  # copies of its own, which compress another way


def test_flattening_moves_it_and_changes_nothing(store: Store) -> None:
    store.clone("ws@s", "c")
    with store.open("c") as fs:
        fs.unlink("/d/0")
        fs.write_bytes("/small", b"changed")
        fs.collect()
    before = figure(store, "c")
    with store.open("c") as fs:
        fs._engine.flattening.begin()
        for _ in range(3):
            fs._engine.flattening.step()
            assert fs._engine.problems() == []
    assert abs(figure(store, "c") - before) < 5000
    store.flatten("c")
    sound(store, "c")
    assert abs(figure(store, "c") - before) < 20_000
    assert figure(store, "c") == figure(store, "c", "used")


def test_a_restore_that_is_broken_off_takes_nothing_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 3)
    store.clone("ws@s", "c")
    store.snapshot("c@t")
    before = figure(store, "c")
    with store.open("c") as fs:
        sources, _ = wanted(fs._engine, "t", ["/d"], None)
        restore = fs._engine.restore("t", sources, force=True)
        while fs._engine._head.txn.get(Table.SYS, bequest.key_of(fs._engine._head.staging or 0)) is None:
            assert restore.step()
        while restore.cancel():
            pass
        assert fs._engine.problems() == []
    assert figure(store, "c") == before


def test_what_several_keys_of_the_origin_share_counts_until_the_clone_is_flattened(store: Store) -> None:
    with store.open("ws") as fs:
        fs.restore("s", ["/d/0"], to="/")
        fs.collect()
    store.snapshot("ws@twice")
    store.clone("ws@twice", "c")
    whole = figure(store, "c")
    assert whole == figure(store, "ws@twice") < 5 * FILE
    with store.open("c") as fs:
        fs.unlink("/0")
        fs.collect()
    sound(store, "c")
    assert whole - figure(store, "c") < 5000


def test_a_sum_that_is_wrong_is_noticed(store: Store) -> None:
    store.clone("ws@s", "c")
    with store.open("c") as fs:
        fs.unlink("/d/0")
        fs._engine.commit()
        key = bequest.key_of(1)
        fs._engine._head.txn.put(Table.SYS, key, records.seal(Table.SYS, key, records.pack_sums(7, 0)))
        assert [problem.rule for problem in fs._engine.problems()] == [Rule.INHERITED]


def test_what_is_damaged_in_the_origin_can_be_removed_all_the_same(store: Store) -> None:
    store.clone("ws@s", "c")
    with store.open("ws") as fs:
        txn = fs._engine._head.txn
        damage_row(txn, Table.CHUNK, next(iter(txn.range(Table.CHUNK, b"")))[0])
        fs.write_bytes("/committed", b"with it")
    with store.open("c") as fs:
        fs.rmtree("/d")
        fs.unlink("/text")
        fs.collect()
        fs.sync()
        assert fs._engine.failed is None
        assert sorted(fs.listdir("/")) == ["small"]
    assert figure(store, "c") > 0
