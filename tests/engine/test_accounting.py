"""Every figure against a recount: of made-up lifetimes, and of the rows that random histories leave."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.world import MemoryStores, Step, World, generate, run
from tzfs.engine.accounting import Accounts, Cell, Sums
from tzfs.engine.settling import extent_charge
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, Epoch, ExtentId, Table
from tzfs.format.records import FLAG_INLINE, Shared, Snapshot
from tzfs.format.slices import slices_of
from tzfs.space import filesystem_facts, ratio
from tzfs.store.interface import ReadTransaction
from tzfs.store.memory import MemoryMeta

VERSIONED = (Table.INODE, Table.DIRENT, Table.LINK, Table.INLINE, Table.CHUNK, Table.XATTR)
HEAD = "head"


@dataclass(frozen=True)
class Thing:
    """A version or an extent: what it is charged, and from which epoch to which it was there."""

    charge: int
    lifetimes: tuple[tuple[int, int], ...]

    def seen_at(self, epoch: int) -> bool:
        return any(birth <= epoch < death for birth, death in self.lifetimes)


class Plain:
    """The figures by their definitions, each thing looked at from each view."""

    def __init__(self, things: list[Thing], snapshots: list[int], epoch: int) -> None:
        self.things, self.snapshots, self.epoch = things, sorted(snapshots), epoch

    def _sum(self, *, seen: list[int], unseen: list[int]) -> int:
        return sum(t.charge for t in self.things if all(map(t.seen_at, seen)) and not any(map(t.seen_at, unseen)))

    def referenced(self, epoch: int) -> int:
        return self._sum(seen=[epoch], unseen=[])

    def written(self, epoch: int) -> int:
        older = [s for s in self.snapshots if s < epoch]
        return self._sum(seen=[epoch], unseen=older[-1:])

    def written_since(self, since: int, epoch: int) -> int:
        return self._sum(seen=[epoch], unseen=[since])

    def used(self, snapshot: int) -> int:
        """What destroying it alone would free."""
        return self._sum(seen=[snapshot], unseen=[s for s in self.snapshots if s != snapshot] + [self.epoch])

    def by_snapshots(self) -> int:
        return sum(t.charge for t in self.things if not t.seen_at(self.epoch) and any(map(t.seen_at, self.snapshots)))

    def freeing(self) -> int:
        return self._sum(seen=[], unseen=[*self.snapshots, self.epoch])


def agree(sums: Sums, plain: Plain) -> None:
    assert sums.referenced == plain.referenced(plain.epoch)
    assert sums.written == plain.written(plain.epoch)
    assert sums.by_snapshots == plain.by_snapshots()
    assert sums.freeing + sums.staged == plain.freeing()
    assert sums.used == sums.referenced + sums.by_snapshots + sums.staged
    for found, epoch in zip(sums.snapshots, plain.snapshots, strict=True):
        assert found.referenced == plain.referenced(epoch)
        assert found.written == plain.written(epoch)
        assert found.used == plain.used(epoch)
    for since, at in itertools.product(plain.snapshots, [*plain.snapshots, plain.epoch]):
        if since < at:
            assert sums.written_since(since, at) == plain.written_since(since, at)


def cells_of(things: list[Thing]) -> tuple[list[Cell], list[Shared]]:
    """As FORMAT.md charges them: an extent of several lifetimes to its live one, or to `shared` alone."""
    cells: dict[tuple[int, int], int] = defaultdict(int)
    shared = []
    for thing in things:
        for birth, death in thing.lifetimes:
            cells[death, birth] += thing.charge if len(thing.lifetimes) == 1 or death == LIVE else 0
        if len(thing.lifetimes) > 1:
            shared.append(Shared(thing.charge, {Epoch(b): Epoch(d) for b, d in thing.lifetimes}))
    return [Cell(death, birth, charge) for (death, birth), charge in cells.items()], shared


EPOCHS = st.integers(0, 12)


@st.composite
def lifetimes(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """One or more, some of them perhaps live: after a restore two files have the extent at once."""
    births = sorted(draw(st.sets(EPOCHS, min_size=1, max_size=4)))
    lengths = draw(st.lists(st.integers(1, 9), min_size=len(births), max_size=len(births)))
    live = draw(st.lists(st.booleans(), min_size=len(births), max_size=len(births)))
    return tuple((b, LIVE if on else b + n) for b, n, on in zip(births, lengths, live, strict=True))


THINGS = st.lists(st.builds(Thing, st.integers(1, 1000), lifetimes()), max_size=12)


@given(THINGS, st.sets(st.integers(0, 9), max_size=5), st.integers(10, 13))
def test_sums_are_what_their_definitions_say(things: list[Thing], snapshots: set[int], epoch: int) -> None:
    cells, shared = cells_of(things)
    agree(Sums(cells, shared, snapshots, epoch), Plain(things, list(snapshots), epoch))


def recounted(txn: ReadTransaction, *, logical: bool = False) -> list[Thing]:
    """Every version and every extent that the rows name, with its charge by its own length.

    `logical`: by what its length would be were nothing compressed.
    """
    deaths: dict[tuple[int, bytes, int], int] = {}
    extents: dict[int, dict[int, int]] = defaultdict(dict)
    for key, _ in txn.range(Table.DEAD, b""):
        death, birth, table, prefix = keys.dead_parts(key)
        if table is Table.EXTENT:
            extents[int.from_bytes(prefix, "big")][birth] = death
        else:
            deaths[table, prefix, birth] = death
    things = []
    charges: dict[int, int] = {}
    for table in VERSIONED:
        for key, value in txn.range(table, b""):
            prefix, born = key[:-8], keys.birth_of(key)
            ended: int = deaths.get((table, prefix, born), LIVE)
            size = 0 if records.is_tombstone(value) else len(key) + len(value)
            for s in slices_of(table, key, records.unseal(table, key, value)):
                if s.embedded:
                    size += s.raw_bytes - s.stored_bytes if logical else 0
                    continue
                charges[s.extent] = extent_charge(s.raw_bytes if logical else s.stored_bytes)
                if ended == LIVE:
                    extents[s.extent][s.birth] = LIVE
            things.append(Thing(size, ((born, ended),)))
    for extent, lives in extents.items():
        things.append(Thing(charge_of(txn, extent, charges, logical=logical), tuple(lives.items())))
    return things


def charge_of(txn: ReadTransaction, extent: int, named: dict[int, int], *, logical: bool) -> int:
    """By a version that names it; or, where only lifetimes are left whose versions are gone, by what these say."""
    if extent in named:
        return named[extent]
    value = txn.get(Table.SHARED, keys.shared(extent))
    if value is not None:
        key = keys.shared(extent)
        shared = records.unpack_shared(key, records.unseal(Table.SHARED, key, value) or b"")
        return shared.charge + (shared.saved if logical else 0)
    (((charge,), saved),) = (
        records.unpack_charged(Table.DEAD, key, records.unseal(Table.DEAD, key, value) or b"")
        for key, value in txn.range(Table.DEAD, b"")
        if keys.dead_parts(key)[2:] == (Table.EXTENT, keys.u64(extent))
    )
    return charge + (saved if logical else 0)


def check(world: World) -> bool:
    """Compares every figure with the recount; whether anything was compressed."""
    engine = world.engine
    txn = engine.meta.begin_read()
    try:
        snapshots = engine.snapshots()
        accounts = Accounts(txn, snapshots, engine.counters.epoch)
        epochs: list[int] = [s.epoch for s in snapshots.values()]
        plain = Plain(recounted(txn), epochs, engine.counters.epoch)
        logical = Plain(recounted(txn, logical=True), epochs, engine.counters.epoch)
    finally:
        txn.close()
    agree(accounts.charged, plain)
    agree(accounts.logical, logical)
    live = sum(t.charge for t in plain.things for _, death in t.lifetimes if death == LIVE)
    assert live == engine.counters.bytes  # twice what has two live lifetimes
    assert accounts.charged.freeing == engine.freeing()
    assert accounts.charged.staged == 0
    for name, snapshot in snapshots.items():
        assert accounts.of(name).used == plain.used(snapshot.epoch)
        assert accounts.written_since(name) == plain.written_since(snapshot.epoch, plain.epoch)
    assert accounts.written_since("none") is None
    return accounts.logical.used > accounts.charged.used


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_after_any_history_every_figure_is_what_a_recount_of_the_rows_gives(first: int) -> None:
    seen = compressed = 0
    for seed in range(first, first + 40):
        stores = MemoryStores()
        begin: list[Step] = [("compression", 2, 3, 0, 0)] if seed % 2 else []  # zstd, large chunks
        world = run(begin + generate(seed), stores, every=1000)
        compressed += check(world)
        seen += len(world.model.snapshots)
    assert seen > 40  # the histories have snapshots
    assert compressed > 10  # and what is compressed


def test_logical_figures_have_what_compression_saved() -> None:
    meta = MemoryMeta()
    txn = meta.begin_write()
    rows = {(LIVE, 1): (1, 100, 300), (LIVE, 3): (1, 50, 0), (3, 1): (2, 70, 30), (5, 3): (1, 0, 0)}
    for (death, birth), (number, charge, saved) in rows.items():
        key = keys.cell(death, birth)
        body = records.pack_charged(Table.CELL, number, charge, saved=saved)
        txn.put(Table.CELL, key, records.seal(Table.CELL, key, body))
    shared = Shared(4096, {Epoch(2): Epoch(3), Epoch(3): Epoch(5)}, 8192)
    key = keys.shared(ExtentId(1 << 32 | 1))
    txn.put(Table.SHARED, key, records.seal(Table.SHARED, key, records.pack_shared(shared)))
    snapshots = {
        name: Snapshot(Epoch(epoch), bytes(16), 0, 0, 0, 0) for name, epoch in (("one", 1), ("two", 2), ("four", 4))
    }
    accounts = Accounts(txn, snapshots, 5)
    txn.close()
    assert (accounts.charged.used, accounts.logical.used) == (100 + 50 + 70 + 4096, 550 + 4096 + 8192)
    assert (accounts.charged.referenced, accounts.logical.referenced) == (150, 450)
    two = accounts.of("two"), accounts.of("two", logical=True)
    assert [s.referenced for s in two] == [100 + 70 + 4096, 400 + 100 + 4096 + 8192]
    facts = filesystem_facts(accounts)
    assert (facts["refcompressratio"], facts["logicalused"]) == ("3.00", str(550 + 4096 + 8192))
    assert facts["compressratio"] == ratio(550 + 4096 + 8192, 220 + 4096) == "2.97"
    assert ratio(0, 0) == "1.00"


def test_an_inline_file_is_charged_its_row_and_a_large_one_its_pages() -> None:
    world = World(MemoryStores())
    engine = world.engine
    small = engine.mknod(1, b"small", 0o100644, uid=0, gid=0).ino
    engine.write(small, 0, b"s" * 100)
    engine.snapshot("a")
    assert engine.inode(small).flags & FLAG_INLINE
    large = engine.mknod(1, b"large", 0o100644, uid=0, gid=0).ino
    engine.write(large, 0, b"l" * 4097)
    engine.write(small, 0, b"S")
    engine.commit()
    txn = engine.meta.begin_read()
    accounts = Accounts(txn, engine.snapshots(), engine.counters.epoch)
    txn.close()
    inline = 16 + 5 + 100
    inodes = {name: 16 + 5 + 85 + len(name) for name in (b"", b"small", b"large")}
    assert accounts.of("a").used == inline + inodes[b""] + inodes[b"small"]
    pages, rows = 8192, accounts.charged.written - 8192 - accounts.of("a").used
    assert pages == 2 * 4096
    assert 0 < rows < 600  # the new file's inode, name and two chunks
