"""Quotas: nothing goes beyond them, what is refused has changed nothing, and what removes is never refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.engine import world as histories
from tests.engine.conftest import Workspace
from tests.engine.test_rollback import WEIGHTS, TimeWorld
from tests.engine.world import MemoryStores
from tzfs import limits
from tzfs.engine.accounting import Accounts
from tzfs.engine.engine import Engine, Settings
from tzfs.engine.quotas import ROW_BYTES, crossed
from tzfs.engine.restore import Wanted
from tzfs.errors import QuotaExceeded

PAGE = limits.PAGE_BYTES
MIB = limits.MIB


def accounts(engine: Engine) -> Accounts:
    """Of what is committed."""
    txn = engine.meta.begin_read()
    try:
        return Accounts(txn, engine.snapshots(), engine.counters.epoch)
    finally:
        txn.close()


def limit(
    engine: Engine, *, quota_bytes: int = 0, refquota_bytes: int = 0, inodes_max: int = 0, snapshots_max: int = 0
) -> None:
    """Sets all four."""
    engine.configure(
        replace(
            engine.settings,
            quota_bytes=quota_bytes,
            refquota_bytes=refquota_bytes,
            inodes_max=inodes_max,
            snapshots_max=snapshots_max,
        )
    )


def used(ws: Workspace) -> int:
    ws.engine.commit()
    return accounts(ws.engine).charged.used


def until_refused(step: Callable[[int], object]) -> int:
    """Calls `step` with 0, 1, ... until the quota refuses; how many it took."""
    for number in itertools.count():
        try:
            step(number)
        except QuotaExceeded:
            break
    return number


class Counted(TimeWorld):
    """Has a quota that nothing reaches, so that what is charged is added up from the beginning."""

    def _open(self) -> Engine:
        engine = super()._open()
        engine.configure(replace(engine.settings, quota_bytes=1 << 60, refquota_bytes=1 << 60))
        return engine


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_what_is_added_up_is_what_a_recount_gives_after_any_history(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 2)
    monkeypatch.setattr(limits, "RECLAIM_BATCH_CHUNKS", 3)
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 3)
    monkeypatch.setattr(histories, "World", Counted)
    for seed in range(first, first + 20):
        world = histories.run(histories.generate(seed, WEIGHTS), MemoryStores(), every=1000)
        found = accounts(world.engine).charged
        told = {usage.name: usage.used for usage in world.engine.usages()}
        assert told == {"quota": found.used, "refquota": found.referenced}, seed


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_done_the_quota_holds_and_a_refusal_changes_nothing(ws: Workspace, seed: int) -> None:
    r = random.Random(seed)
    engine = ws.engine
    quota, refquota = r.choice([(600_000, 0), (0, 300_000), (500_000, 250_000)])
    limit(engine, quota_bytes=quota, refquota_bytes=refquota)
    refused = taken = 0
    files: list[int] = []
    removed = 0  # rows that removals have left behind: what they may add
    for number in range(300):
        size = r.choice((10, 3000, 5000, 40_000))
        try:
            what = r.random()
            if what < 0.4:
                files.append(ws.file(b"f%d" % number))
                engine.write(files[-1], 0, b"x" * size)
            elif what < 0.7 and files:
                engine.write(r.choice(files), r.choice((0, 100, 50_000)), b"y" * size)
            elif what < 0.8 and files:
                engine.setxattr(r.choice(files), b"user.x", b"v" * size)
            elif what < 0.85:
                engine.snapshot(f"s{number}")
            elif what < 0.9:
                engine.commit()
            elif files:
                engine.unlink(1, engine.inode(files.pop(r.randrange(len(files)))).name)
                removed += 4 * ROW_BYTES
            taken += 1
        except QuotaExceeded:
            refused += 1
            before = used(ws), len(engine.readdir(1, b"", 1000))
            with pytest.raises(QuotaExceeded):
                engine.symlink(1, b"link", b"t" * 4095, uid=0, gid=0) if not files else engine.write(
                    files[0], 0, b"z" * MIB
                )
            assert (used(ws), len(engine.readdir(1, b"", 1000))) == before
        engine.background_step()
        if number % 10 == 0:
            engine.commit()
            now = accounts(engine).charged
            assert not quota or now.used <= quota + removed
            assert not refquota or now.referenced <= refquota + removed
    assert refused > 5
    assert taken > 50


def test_dirty_payload_counts_before_anything_is_written(ws: Workspace) -> None:
    limit(ws.engine, quota_bytes=MIB)
    ino = ws.file(b"f")
    ws.engine.write(ino, 0, b"x" * (900 * 1024))
    commits = ws.engine.commits
    with pytest.raises(QuotaExceeded, match="quota of 1048576 bytes is used up"):
        ws.engine.write(ino, 900 * 1024, b"x" * (200 * 1024))
    assert ws.engine.commits == commits + 1  # to know what it really costs
    with pytest.raises(QuotaExceeded):
        ws.engine.write(ino, 900 * 1024, b"x" * (200 * 1024))
    assert ws.engine.commits == commits + 1  # nothing was dirty
    assert ws.engine.inode(ino).size == 900 * 1024
    ws.engine.write(ino, 900 * 1024, b"x" * (100 * 1024))


def test_payload_that_is_flushed_and_not_committed_counts(ws: Workspace) -> None:
    limit(ws.engine, refquota_bytes=MIB)
    ino = ws.file(b"f", b"x" * (700 * 1024))
    job = ws.engine.begin_flush()
    assert job is not None
    job.run()
    ws.engine.end_flush()
    free = ws.engine.statfs().blocks_available
    assert free <= (MIB - 700 * 1024) // PAGE
    with pytest.raises(QuotaExceeded, match="refquota"):
        ws.engine.write(ino, 700 * 1024, b"x" * (400 * 1024))


def test_an_overwrite_fits_where_there_is_room_for_the_new_bytes(ws: Workspace) -> None:
    limit(ws.engine, quota_bytes=MIB)
    ino = ws.file(b"f", b"x" * (800 * 1024))
    for number in range(20):  # 1.2 MiB in all, of which the quota lets 64 KiB wait
        ws.engine.write(ino, number % 12 * 65536, b"y" * 65536)
    assert used(ws) < MIB
    ws.engine.snapshot("a")  # from now on the old bytes stay
    assert until_refused(lambda number: ws.engine.write(ino, number * 65536, b"z" * 65536)) == 3


def test_a_quota_counts_snapshots_and_a_refquota_does_not(ws: Workspace) -> None:
    limit(ws.engine, quota_bytes=MIB, refquota_bytes=MIB // 2)
    ws.file(b"f", b"x" * (400 * 1024))
    with pytest.raises(QuotaExceeded, match="refquota"):
        ws.file(b"g", b"x" * (200 * 1024))
    ws.engine.unlink(1, b"g")
    ws.engine.snapshot("a")
    ws.engine.unlink(1, b"f")
    ws.file(b"g", b"x" * (400 * 1024))
    ws.engine.unlink(1, b"g")
    ws.engine.snapshot("b")
    ws.file(b"h", b"x" * (400 * 1024))
    ws.engine.snapshot("c")
    ws.engine.unlink(1, b"h")
    with pytest.raises(QuotaExceeded, match="quota of 1048576 bytes is used up"):
        ws.file(b"i", b"x" * (400 * 1024))
    stat = ws.engine.statfs()
    assert stat.blocks_available * PAGE <= MIB - used(ws)


def test_what_is_restored_by_reference_is_charged_once(ws: Workspace) -> None:
    ino = ws.file(b"f", b"x" * (400 * 1024))
    ws.engine.snapshot("a")
    limit(ws.engine, quota_bytes=MIB, refquota_bytes=MIB)
    for number in range(5):
        restore = ws.engine.restore("a", [Wanted(ino, 1, b"copy %d" % number)])
        while restore.step():
            pass
        ws.engine.commit()
        found = accounts(ws.engine).charged
        assert {u.name: u.used for u in ws.engine.usages()} == {"quota": found.used, "refquota": found.referenced}
    assert used(ws) < 420 * 1024
    stat = ws.engine.statfs()
    assert (stat.blocks - stat.blocks_free) * PAGE < 420 * 1024
    limit(ws.engine)
    limit(ws.engine, refquota_bytes=MIB)
    assert ws.engine.usages()[0].used == accounts(ws.engine).charged.referenced
    ws.engine.write(ino, 0, b"y" * (400 * 1024))


def test_a_full_filesystem_can_be_emptied_and_looked_at(ws: Workspace) -> None:
    limit(ws.engine, quota_bytes=MIB)
    names = [b"f0"]
    ino = ws.file(names[0])
    names += [b"f%d" % n for n in range(1, until_refused(lambda n: ws.file(b"f%d" % (n + 1), b"x" * 100)) + 1)]
    assert MIB - 8 * PAGE < used(ws) <= MIB
    ws.engine.unlink(1, b"f%d" % len(names))  # which was made, and could not be written
    ws.engine.setattr(ino, mode=0o600)
    ws.engine.rename(1, names[0], 1, b"renamed")
    ws.engine.snapshot("kept")
    for name in names[1:]:
        ws.engine.unlink(1, name)
    ws.engine.setattr(ino, size=0)
    ws.settle()
    assert accounts(ws.engine).charged.referenced < 2000


def test_what_was_cut_off_a_large_file_can_be_written_again_at_once(ws: Workspace) -> None:
    limit(ws.engine, quota_bytes=20 * MIB)
    ino = ws.file(b"f", b"x" * (18 * MIB))  # 144 chunks: too many to be removed at once
    ws.engine.commit()
    ws.engine.setattr(ino, size=0)
    assert ws.engine.reclaiming == 0
    ws.engine.commit()
    assert ws.engine.reclaiming == 1
    ws.engine.write(ino, 0, b"y" * (18 * MIB))
    assert ws.engine.reclaiming == 0


def test_inodes_and_snapshots_have_quotas_of_their_own(ws: Workspace) -> None:
    limit(ws.engine, inodes_max=3, snapshots_max=2)
    ws.file(b"a")
    ws.engine.mkdir(1, b"b", 0o755, uid=0, gid=0)
    assert ws.engine.statfs().files_free == 0
    with pytest.raises(QuotaExceeded, match="inode_quota is 3"):
        ws.file(b"c")
    with pytest.raises(QuotaExceeded):
        ws.engine.symlink(1, b"c", b"t", uid=0, gid=0)
    ws.engine.link(ws.engine.lookup(1, b"a").ino, 1, b"another name")
    ws.engine.rmdir(1, b"b")
    assert ws.engine.statfs().files_free == 1
    ws.file(b"c")
    ws.engine.snapshot("a")
    ws.engine.snapshot("b")
    with pytest.raises(QuotaExceeded, match="snapshot_limit is 2"):
        ws.engine.snapshot("c")
    assert [(u.name, u.used, u.limit, u.percent) for u in ws.engine.usages()] == [
        ("inode_quota", 3, 3, 100),
        ("snapshot_limit", 2, 2, 100),
    ]
    assert crossed(ws.engine.usages(), (80, 100)) == {u.name: (100, u) for u in ws.engine.usages()}
    limit(ws.engine, inodes_max=4, snapshots_max=3)
    inodes, snapshots = ws.engine.usages()
    assert (inodes.percent, snapshots.percent) == (75, 66)
    assert crossed([inodes, snapshots], (50, 70, 90)) == {
        "inode_quota": (70, inodes),
        "snapshot_limit": (50, snapshots),
    }
    assert crossed([inodes, snapshots], (80,)) == {}
    limit(ws.engine)
    ws.file(b"d")
    ws.engine.snapshot("c")
    assert ws.engine.usages() == []


def test_a_quota_is_the_size_that_statfs_tells(ws: Workspace) -> None:
    ws.file(b"f", b"x" * (100 * 1024))
    limit(ws.engine, quota_bytes=MIB)
    for _ in range(2):
        stat = ws.engine.statfs()
        assert stat.blocks in (MIB // PAGE, MIB // PAGE - 1)
        assert stat.blocks_free == stat.blocks_available
        ws.engine.commit()
    ws.restart()
    assert ws.engine.statfs().blocks > 2 * MIB // PAGE  # the settings went with the engine


def test_what_the_redo_log_has_is_done_again_whatever_the_quotas_have_become() -> None:
    stores = MemoryStores()
    meta, payload, redo = stores.stores()
    engine = Engine(meta, payload, redo=redo)
    for number in range(5):
        engine.mknod(1, b"f%d" % number, 0o100644, uid=0, gid=0)
    engine.harden()
    engine.abandon()
    stores.crash()
    meta, payload, redo = stores.stores()
    engine = Engine(meta, payload, redo=redo, settings=Settings(quota_bytes=1, refquota_bytes=1, inodes_max=2))
    assert engine.redone == 5
    assert engine.counters.inodes == 6
    with pytest.raises(QuotaExceeded):
        engine.mknod(1, b"more", 0o100644, uid=0, gid=0)
    engine.close()
