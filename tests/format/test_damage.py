"""Damage: whatever happened to a stored record, reading it says so, and says nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.format.samples import FIXED_KEY, SAMPLES, Sample
from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.native import record_sum, verify_many

NAMES = list(SAMPLES)
ANSWERS = (CorruptionError, ForeignStore)
ANY_KEY = [name for name in NAMES if name not in FIXED_KEY]


def _refused(sample: Sample, value: bytes) -> None:
    with pytest.raises(ANSWERS):
        sample.read(sample.key, value)
    assert verify_many(sample.table, [sample.key], [value]) == 0
    records.is_tombstone(value)  # whatever it says, it says it


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_is_noticed(name: str) -> None:
    sample = SAMPLES[name]
    for bit in range(8 * len(sample.value)):
        damaged = bytearray(sample.value)
        damaged[bit // 8] ^= 1 << bit % 8
        _refused(sample, bytes(damaged))


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_noticed(name: str) -> None:
    sample = SAMPLES[name]
    for length in range(len(sample.value)):
        _refused(sample, sample.value[:length])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", [b"\0", b"\xff", b"\0" * 4096])
def test_bytes_that_follow_a_record_are_noticed(name: str, tail: bytes) -> None:
    _refused(SAMPLES[name], SAMPLES[name].value + tail)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [b"", b"\0", b"\0" * 5, b"\0" * 64, b"\xff" * 64, b"\x01" * 5])
def test_garbage_is_noticed(name: str, value: bytes) -> None:
    _refused(SAMPLES[name], value)


@given(st.sampled_from(NAMES), st.binary(max_size=200))
def test_any_bytes_are_refused_without_another_exception(name: str, value: bytes) -> None:
    if value != SAMPLES[name].value:
        with pytest.raises(ANSWERS):
            SAMPLES[name].read(SAMPLES[name].key, value)


@given(st.sampled_from(NAMES), st.data())
def test_a_body_that_is_damaged_and_sealed_anew_raises_nothing_else(name: str, data: st.DataObject) -> None:
    """What a bug could write, or a later tzfs: intact as a record, and anything within."""
    sample = SAMPLES[name]
    body = sample.value[records.ENVELOPE_BYTES :]
    at = data.draw(st.integers(0, len(body)))
    changed = data.draw(
        st.one_of(st.binary(max_size=120), st.just(body[:at]), st.just(body[:at] + b"\xff" + body[at:]))
    )
    with suppress(*ANSWERS):
        sample.read(sample.key, records.seal(sample.table, sample.key, changed))


@pytest.mark.parametrize("name", ANY_KEY)
def test_a_record_under_another_key_is_refused(name: str) -> None:
    sample = SAMPLES[name]
    others = [sample.key[:-1] + bytes((sample.key[-1] ^ 1,)), sample.key + b"\0", sample.key[:-1], b""]
    others += [s.key for s in SAMPLES.values() if s.key != sample.key]
    for key in others:
        with pytest.raises(CorruptionError):
            sample.read(key, sample.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_in_another_table_is_refused(name: str) -> None:
    sample = SAMPLES[name]
    for table in Table:
        if table is not sample.table:
            with pytest.raises(CorruptionError):
                records.unseal(table, sample.key, sample.value)


def test_two_records_exchanged_are_both_refused() -> None:
    one, other = SAMPLES["superblock"], SAMPLES["counters"]
    with pytest.raises(CorruptionError):
        one.read(one.key, other.value)
    with pytest.raises(CorruptionError):
        other.read(other.key, one.value)


def test_a_damaged_record_is_named_by_table_and_key() -> None:
    sample = SAMPLES["dirent"]
    with pytest.raises(CorruptionError, match=f"dirent/{sample.key.hex()}"):
        records.unseal(sample.table, sample.key, b"\x01")


@given(st.data())
def test_many_are_unsealed_as_one_by_one(data: st.DataObject) -> None:
    rows: list[tuple[bytes, bytes]] = []
    for number in range(data.draw(st.integers(0, 9))):
        key = b"%d" % number
        value = data.draw(
            st.one_of(
                st.binary(max_size=20).map(partial(records.seal, Table.CHUNK, key)),
                st.just(records.tombstone(Table.CHUNK, key)),
                st.binary(max_size=8),
                st.just(b"\2" + record_sum(Table.CHUNK, key, 2, b"later").to_bytes(4, "big") + b"later"),
            )
        )
        rows.append((key, value))
    stored, values = [key for key, _ in rows], [value for _, value in rows]

    def outcome(unsealed: Callable[[], list[bytes | None]]) -> object:
        try:
            return unsealed()
        except (CorruptionError, ForeignStore) as error:
            return type(error), str(error)

    one_by_one = outcome(lambda: [records.unseal(Table.CHUNK, key, value) for key, value in rows])
    assert outcome(lambda: records.unseal_many(Table.CHUNK, stored, values)) == one_by_one
