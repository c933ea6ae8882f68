"""The quota of a whole store: its writers stay within it together, whoever comes, goes or dies."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace
from tests.noise import noise
from tzfs.errors import QuotaExceeded
from tzfs.filesystem import FileSystem
from tzfs.layout import USAGE
from tzfs.management import Store, open_store

MIB = 1024 * 1024
QUOTA = 8 * MIB
STEP = QUOTA // 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as store:
        for name in ("a", "b", "c"):
            store.create(name)
        store.set_property("/", "quota", str(QUOTA))
        yield store


def fill(fs: FileSystem, piece: int = 256 * 1024) -> int:
    """Adds files until one is refused; how many bytes they have."""
    for number in itertools.count():
        name = f"{fs.stat('/').size} {number}"
        try:
            fs.write_bytes(name, noise(piece, "x"))
        except QuotaExceeded:
            if fs.exists(name):
                fs.unlink(name)
            break
    return number * piece


def test_writers_of_two_filesystems_stay_within_it_together(store: Store) -> None:
    with store.open("a") as a, store.open("b") as b:
        a.write_bytes("f", noise(3 * MIB, "x"))
        one = fill(b)
        assert 4 * MIB < one < 5 * MIB
        with pytest.raises(QuotaExceeded, match="quota of the store, 8388608 bytes"):
            b.write_bytes("g", noise(MIB, "x"))
        more = fill(a)
        assert more <= 2 * STEP + 256 * 1024  # what it held ahead
        a.unlink("f")
        a.sync()
        a.collect()
        assert store.used() <= QUOTA
    assert store.used() < QUOTA - 2 * MIB
    with store.open("c") as c:
        assert 2 * MIB < fill(c) < 4 * MIB
        assert c.statfs().blocks_available * 4096 < MIB
    assert QUOTA - MIB < store.used() <= QUOTA


@pytest.mark.parametrize("seed", range(6))
def test_whoever_writes_what_the_sum_stays_below(store: Store, seed: int) -> None:
    r = random.Random(seed)
    opened: dict[str, FileSystem] = {}
    refused = 0
    for number in range(150):
        name = r.choice("abc")
        if name not in opened:
            opened[name] = store.open(name)
        fs = opened[name]
        what = r.random()
        try:
            if what < 0.6:
                fs.write_bytes(f"f{number}", noise(r.choice((100, 300_000, 900_000)), "x"))
            elif what < 0.7:
                fs.snapshot(f"s{number}")
            elif what < 0.85:
                for entry in fs.listdir("/")[:1]:
                    fs.unlink(entry)
            else:
                opened.pop(name).close()
        except QuotaExceeded:
            refused += 1
        if number % 10 == 0:
            for each in opened.values():
                each.collect()
            assert store.used() <= QUOTA + 40_000  # removing adds rows, while snapshots keep the old ones
    assert refused
    for each in opened.values():
        each.close()


def test_who_is_gone_without_a_word_holds_nothing_ahead(store: Store) -> None:
    gone = store.get("a").partition
    ledger = store.ledger()
    assert ledger.claim(gone, used=0, need=7 * MIB, quota=QUOTA)[0] == 7 * MIB + STEP
    with store.open("b") as b:
        assert fill(b) > 7 * MIB
    usage = json.loads((store.path / "catalog" / USAGE).read_text())
    assert usage["rows"][f"{gone:016x}"][0] < 1000


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"boot": 1}', b'{"boot": "another", "rows": {}}', None], ids=repr
)
def test_a_damaged_or_old_file_is_begun_anew(store: Store, damage: bytes | None) -> None:
    with store.open("a") as a:
        a.write_bytes("f", noise(6 * MIB, "x"))
    with store.open("b") as b:
        path = store.path / "catalog" / USAGE
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        assert fill(b) < 2 * MIB
    assert store.used() <= QUOTA


def test_a_destroyed_filesystem_counts_no_more(store: Store) -> None:
    with store.open("a") as a:
        a.write_bytes("f", noise(6 * MIB, "x"))
    with store.open("b") as b:
        assert fill(b) < 2 * MIB
        store.destroy("a")
        assert fill(b) > 5 * MIB  # more


def test_it_is_set_asked_and_taken_away_like_any_other(tzfs: CommandLine) -> None:
    tzfs.ok("create", "a")
    tzfs.ok("create", "team/b", "-o", "quota=3M")
    with open_store(tzfs.store) as store, store.open("a") as a:
        a.write_bytes("f", noise(2 * MIB, "x"))
    assert "cannot set quota of the store to 2M: 2.00M are used" in tzfs.refused("set", "quota=2M", "/", code=1)
    tzfs.ok("set", "quota=4M", "/")
    used, available = map(int, tzfs.ok("get", "-H", "-p", "-o", "value", "used,available", "/").split())
    assert used + available == 4 * MIB
    assert tzfs.ok("list", "-H", "-p", "-o", "name,available") == f"a\t{available}\nteam/b\t{available}\n"
    assert tzfs.ok("get", "-H", "-o", "value,source", "quota", "a", "/") == "none\tdefault\n4M\tlocal\n"
    with open_store(tzfs.store) as store, store.open("team/b") as b, pytest.raises(QuotaExceeded):
        b.write_bytes("f", noise(5 * MIB // 2, "x"))
    tzfs.ok("set", "quota=none", "/")
    with open_store(tzfs.store) as store, store.open("team/b") as b:
        b.write_bytes("f", noise(5 * MIB // 2, "x"))


def test_mounts_feel_it_at_once(workspace: Workspace) -> None:
    with workspace.mounted() as mnt:
        (mnt / "f").write_bytes(noise(MIB, "x"))
        workspace.tzfs("set", "quota=2M", "/")
        found = os.statvfs(mnt)
        assert found.f_blocks * found.f_frsize in (2 * MIB, 2 * MIB - 4096)
        with pytest.raises(OSError, match="quota") as caught:
            (mnt / "g").write_bytes(noise(2 * MIB, "x"))
        assert caught.value.errno == errno.EDQUOT
        done = workspace.run("set", "quota=1M", "/")
        assert (done.returncode, "cannot set quota of the store" in done.stderr) == (1, True)
        workspace.tzfs("set", "quota=none", "/")
        (mnt / "g").write_bytes(noise(2 * MIB, "x"))


@pytest.mark.parametrize("what", ["lock", "."])
def test_one_that_is_displaced_keeps_no_other_from_being_opened(tzfs: CommandLine, tmp_path: Path, what: str) -> None:
    for name in "ab":
        tzfs.ok("create", name)
    tzfs.ok("set", "quota=1G", "/")
    with open_store(tzfs.store) as store:
        folder = store.get("a").folder
    place = folder / what
    place.rename(tmp_path / "away")
    place.symlink_to(tmp_path / "away")
    tzfs.ok("gc", "b")
    tzfs.ok("snapshot", "b@s")
    tzfs.ok("get", "available", "b")
