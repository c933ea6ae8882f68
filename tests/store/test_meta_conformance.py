"""What `MetaStore` promises, held against every implementation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.stores import Made
from tzfs.errors import InternalError, NoSpace, ReadOnly, StoreError
from tzfs.format.keys import EPOCH_MAX, FILESYSTEM_TABLES, Table, dirent, inode, suffix
from tzfs.store.interface import (
    KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
    MetaStore,
    ReadTransaction,
    Row,
    WriteTransaction,
)

EDGE_EPOCHS = (0, 1, 2, EPOCH_MAX // 2, EPOCH_MAX - 1, EPOCH_MAX)


def filled(meta: MetaStore, table: Table, rows: list[Row]) -> None:
    txn = meta.begin_write()
    txn.put_many(table, rows)
    txn.commit()


def rows_of(meta: MetaStore, table: Table) -> list[Row]:
    txn = meta.begin_read()
    try:
        return list(txn.range(table, b""))
    finally:
        txn.close()


# -- rows ----------------------------------------------------------------------------------------------------------


def test_every_table_is_there_and_separate(store: Made) -> None:
    meta = store.meta()
    txn = meta.begin_write()
    for table in FILESYSTEM_TABLES:
        txn.put(table, b"key", table.name.encode())
    for table in FILESYSTEM_TABLES:
        assert txn.get(table, b"key") == table.name.encode()
    assert txn.delete(Table.INODE, b"key")
    txn.commit()
    assert [bool(rows_of(meta, table)) for table in FILESYSTEM_TABLES] == [t != Table.INODE for t in FILESYSTEM_TABLES]
    meta.close()


def test_a_write_transaction_reads_its_own_writes(store: Made) -> None:
    meta = store.meta()
    txn = meta.begin_write()
    key = inode(7) + suffix(3)
    assert txn.get(Table.INODE, key) is None
    txn.put(Table.INODE, key, b"one")
    assert txn.get(Table.INODE, key) == b"one"
    txn.put(Table.INODE, key, b"two")
    assert txn.seek(Table.INODE, inode(7), 3) == (3, b"two")
    assert txn.get_many(Table.INODE, [key, b"absent"]) == [b"two", None]
    assert txn.delete(Table.INODE, key) is True
    assert txn.delete(Table.INODE, key) is False
    assert txn.seek(Table.INODE, inode(7), 3) is None
    assert list(txn.range(Table.INODE, b"")) == []
    txn.close()
    meta.close()


def test_values_and_keys_may_have_every_length_within_bounds(store: Made) -> None:
    meta = store.meta()
    rows = [(b"k" * n, b"v" * m) for n, m in ((1, 0), (2, 1), (KEY_BYTES_MAX, VALUE_BYTES_MAX), (8, 4000))]
    filled(meta, Table.INLINE, rows)
    assert rows_of(meta, Table.INLINE) == sorted(rows)
    meta.close()


@pytest.mark.parametrize(
    ("key", "value"), [(b"", b"v"), (b"k" * (KEY_BYTES_MAX + 1), b"v"), (b"k", b"v" * (VALUE_BYTES_MAX + 1))]
)
@pytest.mark.parametrize("many", [False, True])
def test_a_row_out_of_bounds_is_our_bug(store: Made, key: bytes, value: bytes, many: bool) -> None:
    meta = store.meta()
    txn = meta.begin_write()
    with pytest.raises(InternalError, match="out of bounds"):
        txn.put_many(Table.INLINE, [(key, value)]) if many else txn.put(Table.INLINE, key, value)
    txn.close()
    meta.close()


# -- versions ------------------------------------------------------------------------------------------------------


def test_seek_finds_the_newest_version_born_at_or_before_the_epoch(store: Made) -> None:
    meta = store.meta()
    rows = [(inode(5) + suffix(birth), b"born %d" % birth) for birth in EDGE_EPOCHS]
    filled(meta, Table.INODE, sorted([*rows, (inode(4) + suffix(1), b"before"), (inode(6) + suffix(1), b"after")]))
    txn = meta.begin_read()
    for epoch in sorted({e + d for e in EDGE_EPOCHS for d in (-1, 0, 1) if 0 <= e + d <= EPOCH_MAX}):
        birth = max(b for b in EDGE_EPOCHS if b <= epoch)
        assert txn.seek(Table.INODE, inode(5), epoch) == (birth, b"born %d" % birth)
    assert txn.seek(Table.INODE, inode(4), 0) is None
    assert txn.seek(Table.INODE, inode(3), EPOCH_MAX) is None
    assert txn.seek(Table.INODE, inode(7), EPOCH_MAX) is None
    txn.close()
    meta.close()


@pytest.mark.parametrize("odd", [b"", b"\xff", suffix(9)[:7], suffix(9) + b"\0", b"\x7f" + suffix(9), suffix(5)[:7]])
def test_a_key_of_another_length_hides_no_version(store: Made, odd: bytes) -> None:
    """Such a key is damaged, and may come right before the version that is sought."""
    meta = store.meta()
    rows = [(inode(n) + suffix(birth), b"%d born %d" % (n, birth)) for n in (5, 6, 8) for birth in (3, 7)]
    filled(meta, Table.INODE, sorted([*rows, (inode(5) + odd, b"odd"), (inode(8) + odd, b"odd")]))
    txn = meta.begin_read()
    for epoch in range(12):
        birth = 7 if epoch >= 7 else 3 if epoch >= 3 else None
        wanted = [None if birth is None or n == 7 else (birth, b"%d born %d" % (n, birth)) for n in (5, 6, 7, 8)]
        assert [txn.seek(Table.INODE, inode(n), epoch) for n in (5, 6, 7, 8)] == wanted
        assert txn.seek_many(Table.INODE, [inode(n) for n in (5, 6, 7, 8)], epoch) == wanted
        assert txn.seek_many(Table.INODE, [inode(n) for n in (8, 6, 5, 7)], epoch) == [wanted[i] for i in (3, 1, 0, 2)]
    txn.close()
    meta.close()


def test_seek_never_answers_with_a_longer_or_shorter_name(store: Made) -> None:
    meta = store.meta()
    names = [b"a", b"a\x01", b"aa", b"a\xff", b"b", b"\xff", b"\xff" * 255]
    filled(meta, Table.DIRENT, sorted((dirent(1, n) + suffix(9), n) for n in names))
    txn = meta.begin_read()
    for name in names:
        assert txn.seek(Table.DIRENT, dirent(1, name), 9) == (9, name)
        assert txn.seek(Table.DIRENT, dirent(1, name), 8) is None
        assert txn.seek(Table.DIRENT, dirent(1, name + b"x"), 9) is None
    txn.close()
    meta.close()


VERSIONS = st.dictionaries(
    st.tuples(st.integers(0, 12), st.sampled_from((0, 1, 2, 3, 5, EPOCH_MAX - 1, EPOCH_MAX))),
    st.binary(max_size=20),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    versions=VERSIONS,
    asked=st.lists(st.integers(0, 14), max_size=30),
    ascending=st.booleans(),
    epoch=st.sampled_from((0, 1, 4, EPOCH_MAX - 1, EPOCH_MAX)),
)
def test_batches_answer_as_single_calls_do(
    store: Made, versions: dict[tuple[int, int], bytes], asked: list[int], ascending: bool, epoch: int
) -> None:
    meta = store.meta()
    filled(meta, Table.INODE, sorted((inode(i) + suffix(b), v) for (i, b), v in versions.items()))
    prefixes = [inode(i) for i in (sorted(asked) if ascending else asked)]
    keys = [p + suffix(epoch) for p in prefixes]
    for txn in (meta.begin_read(), meta.begin_write()):
        assert txn.seek_many(Table.INODE, prefixes, epoch) == [txn.seek(Table.INODE, p, epoch) for p in prefixes]
        assert txn.get_many(Table.INODE, keys) == [txn.get(Table.INODE, k) for k in keys]
        for i, prefix in zip(asked, [inode(i) for i in asked], strict=True):
            births = [b for j, b in versions if j == i and b <= epoch]
            expected = (max(births), versions[i, max(births)]) if births else None
            assert txn.seek(Table.INODE, prefix, epoch) == expected
        txn.close()
    clear = meta.begin_write()
    for key, _ in list(clear.range(Table.INODE, b"")):
        clear.delete(Table.INODE, key)
    clear.commit()
    meta.close()


# -- ranges --------------------------------------------------------------------------------------------------------

KEYS = st.binary(min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(present=st.sets(KEYS, max_size=25), start=st.binary(max_size=3), stop=st.none() | st.binary(max_size=3))
def test_ranges_are_the_sorted_rows_between_their_bounds_both_ways(
    store: Made, present: set[bytes], start: bytes, stop: bytes | None
) -> None:
    meta = store.meta()
    txn = meta.begin_write()
    for key in present:
        txn.put(Table.SYS, key, key[::-1])
    expected = [(k, k[::-1]) for k in sorted(present) if k >= start and (stop is None or k < stop)]
    assert list(txn.range(Table.SYS, start, stop)) == expected
    assert list(txn.range(Table.SYS, start, stop, reverse=True)) == expected[::-1]
    txn.close()
    meta.close()


def test_a_range_is_not_disturbed_by_look_ups_nor_by_writes_to_other_tables(store: Made) -> None:
    meta = store.meta()
    filled(meta, Table.INODE, [(inode(i) + suffix(1), b"%d" % i) for i in range(500)])
    txn = meta.begin_write()
    seen = []
    for key, value in txn.range(Table.INODE, b""):
        seen.append(value)
        assert txn.seek(Table.INODE, inode(250), 1) == (1, b"250")
        txn.put(Table.CHANGE, key, value * 50)
        txn.delete(Table.CHANGE, inode(int(value) - 1 if value != b"0" else 0) + suffix(1))
    assert seen == [b"%d" % i for i in range(500)]
    txn.close()
    meta.close()


def test_two_ranges_run_side_by_side(store: Made) -> None:
    meta = store.meta()
    filled(meta, Table.SYS, [(b"%03d" % i, b"") for i in range(100)])
    txn = meta.begin_read()
    both = zip(txn.range(Table.SYS, b""), txn.range(Table.SYS, b"", reverse=True), strict=True)
    assert [(a, b) for (a, _), (b, _) in both] == [(b"%03d" % i, b"%03d" % (99 - i)) for i in range(100)]
    txn.close()
    meta.close()


# -- transactions ----------------------------------------------------------------------------------------------------


def test_a_reader_sees_one_commit_throughout(store: Made) -> None:
    meta = store.meta()
    filled(meta, Table.SYS, [(b"key", b"old"), (b"other", b"old")])
    before = meta.begin_read()
    filled(meta, Table.SYS, [(b"key", b"new"), (b"third", b"new")])
    after = meta.begin_read()
    during = meta.begin_write()
    during.put(Table.SYS, b"key", b"not yet")
    assert before.get(Table.SYS, b"key") == b"old"
    assert [k for k, _ in before.range(Table.SYS, b"")] == [b"key", b"other"]
    assert after.get(Table.SYS, b"key") == b"new"
    assert [k for k, _ in after.range(Table.SYS, b"")] == [b"key", b"other", b"third"]
    for txn in (before, after, during):
        txn.close()
    meta.close()


def test_what_was_committed_is_there_in_the_next_process(store: Made) -> None:
    meta = store.meta()
    filled(meta, Table.SYS, [(b"key", b"value")])
    again = store.meta_again(meta)
    assert rows_of(again, Table.SYS) == [(b"key", b"value")]
    again.close()


def test_an_aborted_transaction_leaves_nothing(store: Made) -> None:
    meta = store.meta()
    filled(meta, Table.SYS, [(b"key", b"value")])
    txn = meta.begin_write()
    txn.put(Table.SYS, b"key", b"changed")
    txn.put(Table.INODE, b"more", b"row")
    txn.close()
    txn.close()
    assert rows_of(meta, Table.SYS) == [(b"key", b"value")]
    assert rows_of(meta, Table.INODE) == []
    meta.close()


USES: list[Callable[[ReadTransaction], object]] = [
    lambda txn: txn.get(Table.SYS, b"key"),
    lambda txn: txn.get_many(Table.SYS, [b"key"]),
    lambda txn: txn.seek(Table.SYS, b"key", 1),
    lambda txn: txn.seek_many(Table.SYS, [b"key"], 1),
    lambda txn: list(txn.range(Table.SYS, b"")),
]
CHANGES: list[Callable[[WriteTransaction], object]] = [
    lambda txn: txn.put(Table.SYS, b"key", b"value"),
    lambda txn: txn.put_many(Table.SYS, [(b"key", b"value")]),
    lambda txn: txn.delete(Table.SYS, b"key"),
    lambda txn: txn.delete_many(Table.SYS, [b"key"]),
    lambda txn: txn.commit(),
]


@pytest.mark.parametrize("end", ["commit", "close", "store"])
def test_a_transaction_that_is_over_does_nothing_any_more(store: Made, end: str) -> None:
    meta = store.meta()
    filled(meta, Table.SYS, [(b"key", b"value")])
    reading, txn = meta.begin_read(), meta.begin_write()
    running = reading.range(Table.SYS, b"")
    assert txn.get(Table.SYS, b"key") == reading.get(Table.SYS, b"key") == b"value"
    if end == "store":
        meta.close()
    else:
        reading.close()
        txn.commit() if end == "commit" else txn.close()
    for use in USES:
        for over in (reading, txn):
            with pytest.raises(InternalError):
                use(over)
    for change in CHANGES:
        with pytest.raises(InternalError):
            change(txn)
    with pytest.raises(InternalError):
        next(running)
    meta.close()


def test_there_is_one_write_transaction_at_a_time(store: Made) -> None:
    meta = store.meta()
    txn = meta.begin_write()
    with pytest.raises(InternalError, match="already open"):
        meta.begin_write()
    txn.close()
    meta.begin_write().close()
    meta.close()


def test_a_write_transaction_stays_on_its_thread(store: Made) -> None:
    meta = store.meta()
    txn = meta.begin_write()
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            txn.commit()
        except InternalError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "thread" in str(caught[0])
    txn.put(Table.SYS, b"key", b"value")
    txn.commit()
    meta.close()


def test_readers_are_counted_until_closed(store: Made) -> None:
    meta = store.meta()
    assert meta.readers() == 0
    first, second = meta.begin_read(), meta.begin_read()
    writing = meta.begin_write()
    assert meta.readers() == 2
    first.close()
    first.close()
    assert meta.readers() == 1
    second.close()
    writing.close()
    assert meta.readers() == 0
    meta.close()


def test_a_store_open_for_reading_refuses_to_write(store: Made) -> None:
    meta = store.meta(readonly=True)
    with pytest.raises(ReadOnly):
        meta.begin_write()
    meta.begin_read().close()
    meta.close()


def test_a_closed_store_says_so(store: Made) -> None:
    meta = store.meta()
    meta.close()
    meta.close()
    for begin in (meta.begin_read, meta.begin_write):
        with pytest.raises(InternalError, match="closed"):
            begin()


def test_a_reserve_can_be_renewed_and_survives_commits(store: Made) -> None:
    meta = store.meta()
    for i in range(3):
        meta.reserve(1 << 20)
        filled(meta, Table.INLINE, [(b"%d-%d" % (i, j), bytes(4000)) for j in range(100)])
    assert len(rows_of(meta, Table.INLINE)) == 300
    meta.close()


def test_bytes_on_disk_grow_with_the_rows_and_not_with_the_reserve(store: Made) -> None:
    meta = store.meta()
    sizes = [meta.bytes_on_disk]
    meta.reserve(8 << 20)
    sizes.append(meta.bytes_on_disk)
    filled(meta, Table.INLINE, [(b"%d" % j, bytes(4000)) for j in range(100, 600)])
    sizes.append(meta.bytes_on_disk)
    assert sizes[0] == sizes[1] <= sizes[2] - 500 * 4000
    assert sizes[2] < 8 << 20
    meta.close()


# -- histories -------------------------------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(FILESYSTEM_TABLES[:3]), KEYS, st.binary(max_size=30)),
    st.tuples(st.just("delete"), st.sampled_from(FILESYSTEM_TABLES[:3]), KEYS, st.just(b"")),
    st.tuples(st.sampled_from(("commit", "abort")), st.just(Table.INODE), st.just(b"k"), st.just(b"")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=40))
def test_any_history_ends_as_a_dict_would(store: Made, steps: list[tuple[str, Table, bytes, bytes]]) -> None:
    meta = store.meta()
    clear = meta.begin_write()
    for table in FILESYSTEM_TABLES[:3]:
        for key, _ in list(clear.range(table, b"")):
            clear.delete(table, key)
    clear.commit()
    committed: dict[tuple[Table, bytes], bytes] = {}
    present = dict(committed)
    txn = meta.begin_write()
    for step, table, key, value in steps:
        if step == "put":
            txn.put(table, key, value)
            present[table, key] = value
        elif step == "delete":
            assert txn.delete(table, key) == (present.pop((table, key), None) is not None)
        else:
            if step == "commit":
                txn.commit()
                committed = dict(present)
            else:
                txn.close()
                present = dict(committed)
            txn = meta.begin_write()
    for table in FILESYSTEM_TABLES[:3]:
        rows = list(txn.range(table, b""))
        assert dict(rows) == {k: v for (t, k), v in present.items() if t == table}
        assert all(a < b for (a, _), (b, _) in pairwise(rows))
        assert rows_of(meta, table) == sorted((k, v) for (t, k), v in committed.items() if t == table)
    txn.close()
    meta.close()


def test_a_failing_commit_leaves_the_store_as_it_was(store: Made) -> None:
    meta = store.meta()
    filled(meta, Table.SYS, [(b"key", b"value")])
    failing: list[tuple[Callable[[], None], type[StoreError]]] = _commit_failures(meta)
    for arrange, expected in failing:
        txn = meta.begin_write()
        txn.put(Table.SYS, b"key", b"changed")
        arrange()
        with pytest.raises(expected):
            txn.commit()
        with pytest.raises(InternalError):
            txn.get(Table.SYS, b"key")
        assert rows_of(meta, Table.SYS) == [(b"key", b"value")]
        assert meta.readers() == 0
    filled(meta, Table.SYS, [(b"key", b"at last")])
    assert rows_of(meta, Table.SYS) == [(b"key", b"at last")]
    meta.close()


def _commit_failures(meta: MetaStore) -> list[tuple[Callable[[], None], type[StoreError]]]:
    from tzfs import failpoints
    from tzfs.store.memory import MemoryMeta

    if isinstance(meta, MemoryMeta):
        return [
            (lambda: setattr(meta, "fail_next_commit", NoSpace("full")), NoSpace),
            (lambda: setattr(meta, "fail_next_commit", StoreError("broken")), StoreError),
        ]
    return [
        (lambda: failpoints.arm("meta.commit", "error:ENOSPC"), NoSpace),
        (lambda: failpoints.arm("meta.commit", "error:EIO"), StoreError),
    ]


def test_each_commit_has_a_higher_number_and_a_restart_keeps_it(store: Made) -> None:
    meta = store.meta()
    numbers = [meta.commit_number]
    for value in (b"1", b"2"):
        txn = meta.begin_write()
        txn.put(Table.SYS, b"key", value)
        assert meta.commit_number == numbers[-1], "not while the transaction is open"
        txn.commit()
        numbers.append(meta.commit_number)
    assert numbers[0] < numbers[1] < numbers[2]
    txn = meta.begin_write()
    txn.put(Table.SYS, b"key", b"3")
    txn.close()
    assert meta.commit_number == numbers[2], "what was aborted has none"
    again = store.meta_again(meta)
    assert again.commit_number == numbers[2]
    again.close()
