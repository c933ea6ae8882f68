"""The superblock: who may open a filesystem, and what is kept of what is not understood."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.format.samples import CLONE, GUID, SUPERBLOCK
from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format.keys import Table
from tzfs.format.records import ENVELOPE_BYTES, seal
from tzfs.format.superblock import (
    FEATURES,
    FORMAT_VERSION,
    SUPERBLOCK_KEY,
    SUPPORTED,
    Feature,
    Kind,
    Superblock,
    feature_names,
    pack_superblock,
    unpack_superblock,
)

bits = st.integers(0, (1 << 64) - 1)


def _fields(superblock: Superblock) -> dict[str, object]:
    fields: dict[str, object] = json.loads(pack_superblock(superblock)[ENVELOPE_BYTES:])
    return fields


def _stored(fields: object) -> bytes:
    return seal(Table.SYS, SUPERBLOCK_KEY, json.dumps(fields).encode())


def test_a_new_filesystem_may_be_opened_for_writing() -> None:
    superblock = Superblock.new(guid=GUID, created_ns=1, created_by="0.1.0")
    superblock.check(for_writing=True)
    assert (superblock.compat, superblock.ro_compat, superblock.incompat) == (0, 0, 0)
    assert superblock.guid == GUID.hex()


@given(st.integers(0, 1 << 62), bits, bits, bits, st.text(max_size=10))
def test_a_superblock_comes_back(generation: int, compat: int, ro_compat: int, incompat: int, text: str) -> None:
    made = replace(
        SUPERBLOCK,
        generation=generation,
        compat=compat,
        ro_compat=ro_compat,
        incompat=incompat,
        created_by=text.encode(errors="replace").decode(),
    )
    assert unpack_superblock(pack_superblock(made)) == made


def test_a_clone_names_its_origin_and_has_the_bit_that_keeps_out_who_does_not_know_origins() -> None:
    back = unpack_superblock(pack_superblock(CLONE))
    assert back == CLONE
    assert back.origin is not None
    assert back.origin.partition == 0x0123456789ABCDEF
    assert back.incompat == 1
    back.check(for_writing=True)


def test_the_next_generation_differs_in_nothing_else() -> None:
    following = SUPERBLOCK.next_generation()
    assert following.generation == SUPERBLOCK.generation + 1
    assert replace(following, generation=SUPERBLOCK.generation) == SUPERBLOCK
    assert pack_superblock(following) != pack_superblock(SUPERBLOCK)


def test_a_newer_format_is_refused_before_anything_else_is_read() -> None:
    with pytest.raises(ForeignStore, match=f"version {FORMAT_VERSION + 1}") as caught:
        unpack_superblock(_stored({"format_version": FORMAT_VERSION + 1, "everything": "else"}))
    assert caught.value.hint
    with pytest.raises(ForeignStore):
        replace(SUPERBLOCK, format_version=FORMAT_VERSION + 1).check(for_writing=False)


@pytest.mark.parametrize("bit", [0, 5, 63])
def test_an_unknown_compatible_feature_is_no_matter(bit: int) -> None:
    replace(SUPERBLOCK, compat=1 << bit).check(for_writing=True)


@pytest.mark.parametrize("bit", [40, 63])
def test_an_unknown_read_only_compatible_feature_keeps_writers_out(bit: int) -> None:
    superblock = replace(SUPERBLOCK, ro_compat=1 << bit)
    superblock.check(for_writing=False)
    with pytest.raises(ForeignStore, match=f"bit {bit}") as caught:
        superblock.check(for_writing=True)
    assert caught.value.hint


@pytest.mark.parametrize("bit", [40, 63])
@pytest.mark.parametrize("for_writing", [False, True])
def test_an_unknown_incompatible_feature_keeps_everybody_out(bit: int, for_writing: bool) -> None:
    with pytest.raises(ForeignStore, match=f"bit {bit}") as caught:
        replace(SUPERBLOCK, incompat=1 << bit).check(for_writing=for_writing)
    assert caught.value.hint


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.name)
def test_a_feature_is_refused_by_name_unless_this_tzfs_has_it(feature: Feature) -> None:
    superblock = SUPERBLOCK.with_features([feature])
    assert superblock.has(feature)
    assert not SUPERBLOCK.has(feature)
    if feature in SUPPORTED or feature.kind is Kind.COMPAT:
        superblock.check(for_writing=True)
        return
    with pytest.raises(ForeignStore, match=feature.name):
        superblock.check(for_writing=True)
    if feature.kind is Kind.RO_COMPAT:
        superblock.check(for_writing=False)


def test_no_two_features_share_a_bit_or_a_name() -> None:
    assert len({(f.kind, f.bit) for f in FEATURES}) == len({f.name for f in FEATURES}) == len(FEATURES)
    assert set(FEATURES) >= SUPPORTED


def test_features_are_named_from_the_lowest_bit() -> None:
    assert feature_names(Kind.INCOMPAT, 0b1001) == ["origin", "bit 3"]
    assert feature_names(Kind.COMPAT, 0) == []


@pytest.mark.parametrize("field", ["checksum", "payload_checksum", "names"])
def test_another_way_of_summing_or_naming_is_refused(field: str) -> None:
    other = unpack_superblock(_stored({**_fields(SUPERBLOCK), field: "blake3"}))
    with pytest.raises(ForeignStore, match="blake3"):
        other.check(for_writing=False)


def test_fields_of_a_later_tzfs_are_kept() -> None:
    later = unpack_superblock(_stored({**_fields(SUPERBLOCK), "colour": {"of": ["the", 1]}}))
    assert later.extra == {"colour": {"of": ["the", 1]}}
    assert _fields(later.next_generation())["colour"] == {"of": ["the", 1]}


WRONG: dict[str, Callable[[dict[str, object]], object]] = {
    "not an object": lambda f: [f],
    "no version": lambda f: {k: v for k, v in f.items() if k != "format_version"},
    "version 0": lambda f: {**f, "format_version": 0},
    "version is true": lambda f: {**f, "format_version": True},
    "version is a fraction": lambda f: {**f, "format_version": 1.5},
    "generation below 0": lambda f: {**f, "generation": -1},
    "generation beyond 64 bits": lambda f: {**f, "generation": 1 << 64},
    "flags are a list": lambda f: {**f, "incompat": []},
    "guid too short": lambda f: {**f, "guid": "00"},
    "guid in capitals": lambda f: {**f, "guid": "AB" * 16},
    "guid is a number": lambda f: {**f, "guid": 1},
    "origin is a text": lambda f: {**f, "origin": "ws@a"},
    "origin is empty": lambda f: {**f, "origin": {}},
    "checksum is null": lambda f: {**f, "checksum": None},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_superblock_that_makes_no_sense_is_damage(what: str) -> None:
    with pytest.raises(CorruptionError):
        unpack_superblock(_stored(WRONG[what](_fields(SUPERBLOCK))))


@pytest.mark.parametrize("partition", ["", "1", "0x00000000000001", "g" * 16, 5])
def test_a_partition_that_makes_no_sense_is_damage(partition: object) -> None:
    fields = _fields(CLONE)
    origin = fields["origin"]
    assert isinstance(origin, dict)
    with pytest.raises(CorruptionError):
        unpack_superblock(_stored({**fields, "origin": {**origin, "partition": partition}}))
