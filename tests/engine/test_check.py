"""A check says nothing of a sound filesystem, and of a damaged one what is wrong: for each rule a damage that breaks
it, and nothing else; and whatever single row is lost or changed, it is noticed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.engine.conftest import Workspace
from tests.engine.damages import DAMAGES
from tests.engine.histories import PAGE, Damaged, History, everything
from tzfs import limits
from tzfs.engine.check.problems import Problem, Progress, Rule
from tzfs.engine.check.run import check
from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import FILESYSTEM_TABLES, Table
from tzfs.store.interface import Row
from tzfs.store.memory import MemoryRead


@pytest.fixture(scope="module")
def made() -> Iterator[History]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield everything(monkeypatch)


@pytest.fixture
def history(made: History) -> History:
    return History(made.fs.copy(), made.ino, made.data)


def test_nothing_is_wrong_with_a_sound_filesystem(history: History) -> None:
    assert history.fs.problems(read_payload=True) == []
    empty = {table for table in FILESYSTEM_TABLES if not history.fs.rows(table)}
    assert empty == {Table.DESTROY, Table.SHARED, Table.BOOKMARK}


@pytest.mark.parametrize(("rule", "damage"), DAMAGES, ids=[f"{rule}-{d.__name__[1:]}" for rule, d in DAMAGES])
def test_a_damage_makes_its_rule_speak_and_no_other(
    history: History, rule: Rule, damage: Callable[[History], None]
) -> None:
    damage(history)
    found = history.fs.problems()
    assert {problem.rule for problem in found} == {rule}, "\n".join(map(str, found))


def test_directories_in_a_circle_are_found(make: Callable[[], Workspace]) -> None:
    workspace = make()
    engine = workspace.engine
    upper = engine.mkdir(1, b"a", 0o755, uid=1, gid=1).ino
    lower = engine.mkdir(upper, b"b", 0o755, uid=1, gid=1).ino
    engine.close()
    fs = Damaged(workspace.meta, workspace.payload)
    old, new = keys.dirent(1, b"a"), keys.dirent(lower, b"a")
    fs.delete(Table.DIRENT, old + keys.suffix(1))
    fs.delete(Table.CHANGE, keys.change(1, Table.DIRENT, old))
    fs.put(Table.DIRENT, new + keys.suffix(1), records.pack_dirent(upper, 4))
    fs.put(Table.CHANGE, keys.change(1, Table.DIRENT, new), b"")
    fs.inode(1, size=0, nlink=2)
    fs.inode(lower, size=1, nlink=3)
    fs.inode(upper, parent=lower)
    assert [problem.rule for problem in fs.problems()] == [Rule.CYCLE]


def test_payload_is_compared_with_its_sums_when_asked_to(history: History) -> None:
    s = history.fs.slices(history.data["two"])
    history.fs.payload._live[s.extent >> 32][keys.extent_offset(s.extent) + 7] ^= 1
    assert history.fs.problems() == []
    assert history.fs.rules(read_payload=True) == {Rule.PAYLOAD}


def test_payload_that_only_a_snapshot_sees_is_read_too(history: History) -> None:
    dead = [keys.dead_parts(key) for key, _ in history.fs.rows(Table.DEAD)]
    for extent in [int.from_bytes(prefix, "big") for _, _, table, prefix in dead if table is Table.EXTENT]:
        history.fs.payload._live[extent >> 32][keys.extent_offset(extent)] ^= 1
    assert history.fs.rules(read_payload=True) == {Rule.PAYLOAD}


def test_tables_that_cannot_be_read_are_a_problem_and_no_exception(history: History) -> None:
    class Unreadable(MemoryRead):
        """A page of LMDB that is no page: `lmdb_store` raises this."""

        def range(
            self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False
        ) -> Iterator[Row]:
            yield from super().range(table, start, stop, reverse=reverse)
            if table is Table.CHUNK and not reverse:
                raise CorruptionError("page 7 is no page")

    txn = Unreadable(history.fs.meta)
    found = [each for each in check(txn, history.fs.payload) if isinstance(each, Problem)]
    assert {problem.rule for problem in found} == {Rule.TABLES}


def test_every_row_that_is_lost_is_noticed(made: History) -> None:
    tolerated = {  # a waiting punch of what is a hole already: the segment's end is the only trace, and covers it
        (Table.SEGMENT, key) for key, _ in made.fs.rows(Table.SEGMENT) if made.fs.numbers(Table.SEGMENT, key)[0] == 0
    }
    log = [key for key, _ in made.fs.rows(Table.LOG)]
    tolerated |= {(Table.LOG, log[0]), (Table.LOG, log[-1])}  # the oldest go, and the newest may not have come yet
    unnoticed = []
    for table in FILESYSTEM_TABLES:
        for key, _ in made.fs.rows(table):
            fs = made.fs.copy()
            fs.delete(table, key)
            if not fs.problems() and (table, key) not in tolerated:
                unnoticed.append((table.name, key.hex()))
    assert unnoticed == []


def test_every_value_that_is_changed_is_noticed(made: History) -> None:
    r = random.Random(3)
    for table in FILESYSTEM_TABLES:
        for key, value in made.fs.rows(table):
            fs = made.fs.copy()
            at = r.randrange(len(value))
            fs.put_value(table, key, value[:at] + bytes([value[at] ^ 1 << r.randrange(8)]) + value[at + 1 :])
            assert Rule.RECORD in fs.rules(), f"{table.name} {key.hex()}: byte {at}"


@pytest.mark.parametrize("seed", range(150))
def test_no_damage_makes_a_check_raise(made: History, seed: int) -> None:
    """Bodies and keys of any bytes, in envelopes that match: what a bug might write, not a disk."""
    r = random.Random(seed)
    fs = made.fs.copy()
    for _ in range(r.randint(1, 6)):
        table = r.choice([t for t in FILESYSTEM_TABLES if fs.rows(t)])
        key, _ = r.choice(fs.rows(table))
        body = bytearray(_body_or_empty(fs, table, key))
        for _ in range(r.randint(1, 4)):
            if body:
                body[r.randrange(len(body))] = r.choice((0, 1, 127, 128, 255, r.randrange(256)))
        if r.random() < 0.3:
            del body[r.randrange(len(body) + 1) :]
        if r.random() < 0.3:
            changed = bytearray(key)
            changed[r.randrange(len(key))] = r.choice((0, 1, 255, r.randrange(256)))
            key = bytes(changed)
        fs.put(table, key, bytes(body))
    fs.problems(read_payload=True)


def _body_or_empty(fs: Damaged, table: Table, key: bytes) -> bytes:
    ((_, value),) = fs.rows(table, key) or [(key, b"")]
    return value[records.ENVELOPE_BYTES :]


def test_progress_only_grows_and_ends_at_what_was_read(history: History) -> None:
    txn = history.fs.meta.begin_read()
    told = [p for p in check(txn, history.fs.payload, read_payload=True) if isinstance(p, Progress)]
    txn.close()
    assert [p.rows for p in told] == sorted(p.rows for p in told)
    last = told[-1]
    assert (last.stage, last.rows, last.payload_bytes) == ("done", last.total, last.payload_total)
    assert last.payload_bytes > 50_000
    assert last.rows >= sum(len(history.fs.rows(table)) for table in FILESYSTEM_TABLES)


def test_a_reclaim_that_ends_with_a_full_batch_leaves_no_row(
    make: Callable[[], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 1)
    monkeypatch.setattr(limits, "RECLAIM_BATCH_CHUNKS", 2)
    workspace = make()
    workspace.engine.settings.chunk_shift = 12
    ino = workspace.file(b"f", b"x" * 4 * PAGE)
    workspace.engine.commit()
    workspace.engine.setattr(ino, size=2 * PAGE)
    workspace.engine.setattr(ino, size=8 * PAGE)
    workspace.engine.commit()
    workspace.engine.write(ino, 4 * PAGE, b"y")  # the range splits around it: [2, 4) is left below
    workspace.engine.commit()
    assert workspace.engine.background_step()
    workspace.engine.commit()
    fs = Damaged(workspace.meta, workspace.payload)
    ranges = [fs.numbers(Table.RECLAIM, key)[1:3] for key, _ in fs.rows(Table.RECLAIM)]
    assert all(lo < hi for lo, hi in ranges)
    assert fs.problems() == []
