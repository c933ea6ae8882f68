"""Properties: what may be set, how it is spelled, and where a value comes from."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tzfs import limits, properties, units
from tzfs.engine.head import Settings
from tzfs.errors import InvalidArgument, LimitReached, NotFound, ReadOnly
from tzfs.inheritance import COMPUTED, LOCAL, Layer, Value, lookup, resolve
from tzfs.properties import NATIVE, Effect, Kind

SETTABLE = [p for p in NATIVE.values() if p.settable]


def test_defaults_are_those_of_the_engine_and_may_be_set() -> None:
    for native in SETTABLE:
        assert native.default is not None
        assert properties.parse(native.name, native.default) == native.default
    settings = Settings()
    assert float(NATIVE["txg_interval"].default or "") == settings.txg_interval_s
    assert int(NATIVE["dirty_max"].default or "") == settings.dirty_bytes_max
    assert int(NATIVE["recordsize"].default or "") == 1 << settings.chunk_shift == 128 * limits.KIB


def test_every_property_says_what_it_is_and_when_a_change_counts() -> None:
    for native in NATIVE.values():
        assert native.help
        assert native.help == native.help.strip()
        assert native.settable == (native.effect is not Effect.NEVER) == (native.inheritable or native.own)
        if native.settable:
            assert native.values
            assert native.choices or native.kind is Kind.TEXT or (native.low is not None and native.high is not None)


@pytest.mark.parametrize(
    ("name", "text", "exact", "human"),
    [
        ("recordsize", "64K", "65536", "64K"),
        ("recordsize", "64k", "65536", "64K"),
        ("recordsize", "64KiB", "65536", "64K"),
        ("recordsize", "64KB", "65536", "64K"),
        ("recordsize", "0.5M", "524288", "512K"),
        ("recordsize", "4096", "4096", "4K"),
        ("recordsize", "4096B", "4096", "4K"),
        ("recordsize", "1M", "1048576", "1M"),
        ("dirty_max", "64M", "67108864", "64M"),
        ("dirty_max", "1.5M", "1572864", "1.50M"),
        ("dirty_max", "128M", "134217728", "128M"),
        ("txg_interval", "1", "1", "1s"),
        ("txg_interval", "1.50", "1.5", "1.5s"),
        ("txg_interval", "0.05", "0.05", "50ms"),
        ("txg_interval", "500ms", "0.5", "500ms"),
        ("txg_interval", "1m", "60", "60s"),
        ("txg_interval", "10s", "10", "10s"),
        ("snapdir", "visible", "visible", "visible"),
        ("readonly", "on", "on", "on"),
        ("quota", "none", "0", "none"),
        ("quota", "0", "0", "none"),
        ("quota", "1.5G", "1610612736", "1.50G"),
        ("inode_quota", "100000", "100000", "100000"),
        ("snapshot_limit", "none", "0", "none"),
        ("atime", "off", "off", "off"),
    ],
)
def test_a_value_has_one_exact_spelling_and_a_human_one(name: str, text: str, exact: str, human: str) -> None:
    assert properties.parse(name, text) == exact
    assert properties.parse(name, exact) == exact
    value = Value(name, exact, LOCAL)
    assert (value.parsable, value.human) == (exact, human)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recordsize", "2K"),
        ("recordsize", "2M"),
        ("recordsize", "96K"),
        ("recordsize", "4096.5"),
        ("recordsize", "-64K"),
        ("recordsize", "64 K"),
        ("recordsize", ""),
        ("recordsize", "1e5"),
        ("recordsize", "nan"),
        ("recordsize", "64K\n"),
        ("recordsize", "٤٠٩٦"),
        ("recordsize", "9" * 400),
        ("dirty_max", "1023K"),
        ("dirty_max", "129M"),
        ("dirty_max", "16E"),
        ("txg_interval", "0"),
        ("txg_interval", "0.049999"),
        ("txg_interval", "60.000001"),
        ("txg_interval", "0.5000001"),
        ("txg_interval", "inf"),
        ("txg_interval", "1h"),
        ("snapdir", "Visible"),
        ("quota", "8E"),
        ("quota", "off"),
        ("inode_quota", "1K"),
        ("snapshot_limit", "-1"),
        ("readonly", "yes"),
        ("atime", "on"),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_told_what_may_be_given(name: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        properties.parse(name, text)
    assert name in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.hint == f"give {NATIVE[name].values}"


@pytest.mark.parametrize(
    ("name", "text"), [("quota_warnings", "900"), ("retention", "1h(keep"), ("retention_names", "a/b")]
)
def test_a_text_that_is_refused_is_refused_as_the_value_of_its_property(name: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^property {name}: ") as caught:
        properties.parse(name, text)
    assert caught.value.hint


def test_bounds_are_inclusive() -> None:
    assert properties.parse("txg_interval", "0.05") == "0.05"
    assert properties.parse("txg_interval", "60") == "60"
    assert properties.parse("dirty_max", "1M") == str(limits.MIB)
    assert NATIVE["recordsize"].values == "4K - 1M, a power of two"
    assert NATIVE["txg_interval"].values == "50ms - 60s"


@pytest.mark.parametrize("name", [p.name for p in NATIVE.values() if not p.settable])
def test_a_computed_property_cannot_be_set(name: str) -> None:
    with pytest.raises(ReadOnly, match=f"property {name} is computed"):
        properties.parse(name, "x")


def test_a_native_property_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="'record_size'") as caught:
        properties.parse("record_size", "64K")
    assert caught.value.hint is not None
    assert "recordsize" in caught.value.hint


@pytest.mark.parametrize("name", ["a:b", "com.example:task", ":x", "x:", "a:b:c", "1:2", "a_b+c:d-e", "a:" + "b" * 254])
def test_user_properties_are_named_by_the_rules_of_zfs(name: str) -> None:
    assert properties.parse(name, "any ✓ text\nof two lines") == "any ✓ text\nof two lines"


@pytest.mark.parametrize("name", ["A:b", "a:B", "-a:b", "a b:c", "ä:b", "a:b\n", "a:/", "a:b" + "c" * 254])
def test_other_names_of_user_properties_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        properties.parse(name, "x")
    assert str(caught.value).isprintable()


def test_a_user_value_has_8191_bytes_at_most_and_no_nul() -> None:
    assert properties.parse("a:b", "") == ""
    assert properties.parse("a:b", "x" * 8191) == "x" * 8191
    with pytest.raises(LimitReached, match="at most 8191"):
        properties.parse("a:b", "é" * 4096)
    for text in ("a\0b", "\udcff"):
        with pytest.raises(InvalidArgument):
            properties.parse("a:b", text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (1023, "1023B"),
        (1024, "1K"),
        (1025, "1.00K"),
        (1536, "1.50K"),
        (10_400, "10.2K"),
        (104_858, "102K"),
        (1 << 20, "1M"),
        ((1 << 30) - 1, "1024M"),
        (1 << 40, "1T"),
        ((1 << 64) - 1, "16.0E"),
    ],
)
def test_sizes_are_printed_in_five_characters(nbytes: int, text: str) -> None:
    assert units.human_size(nbytes) == text


@given(st.integers(0, (1 << 64) - 1))
def test_every_size_is_read_back_from_its_exact_spelling_and_printed_shortly(nbytes: int) -> None:
    assert units.parse_size(str(nbytes)) == nbytes
    text = units.human_size(nbytes)
    assert len(text) <= 5
    read = units.parse_size(text)
    if nbytes < 15 << 60:  # above, the text may be rounded up to 16E, one too many
        assert read is not None
        assert abs(read - nbytes) <= nbytes // 100 + 1


@given(st.text())
def test_any_text_is_a_size_and_a_time_or_is_not(text: str) -> None:
    for parse in (units.parse_size, units.parse_seconds):
        number = parse(text)
        assert number is None or (number >= 0 and number.is_finite())


def test_a_time_is_printed_in_the_zone_asked_for() -> None:
    assert properties.human(NATIVE["creation"], "86399", zone=datetime.UTC) == "1970-01-01 23:59:59"


def test_a_value_that_does_not_fit_its_type_is_shown_as_it_is() -> None:
    assert Value("recordsize", "huge", LOCAL).human == "huge"
    assert Value("creation", "9" * 30, COMPUTED).human == "9" * 30


LAYERS: list[Layer] = [
    (LOCAL, {"recordsize": "65536", "a:near": "1"}),
    ("inherited from team/", {"snapdir": "visible", "a:both": "team", "recordsize": "4096"}),
    ("inherited from /", {"readonly": "on", "a:both": "store", "a:far": "2"}),
]


def test_the_nearest_value_counts_and_source_says_where_it_is() -> None:
    found = resolve(LAYERS, {"type": "filesystem", "used": "1536"})
    shown = {name: (value.human, value.source) for name, value in found.items()}
    assert shown["recordsize"] == ("64K", "local")
    assert shown["snapdir"] == ("visible", "inherited from team/")
    assert shown["readonly"] == ("on", "inherited from /")
    assert shown["dirty_max"] == ("64M", "default")
    assert shown["used"] == ("1.50K", "-")
    assert shown["mountpoint"] == ("-", "-")
    assert shown["a:both"] == ("team", "inherited from team/")
    assert list(found) == [*NATIVE, "a:both", "a:far", "a:near"]
    for name, value in found.items():
        assert lookup(name, LAYERS, {"type": "filesystem", "used": "1536"}) == value


def test_a_quota_is_not_inherited_and_the_other_limits_are() -> None:
    layers: list[Layer] = [(LOCAL, {}), ("inherited from /", {"quota": "5", "refquota": "6"})]
    found = resolve(layers, {})
    assert (found["quota"].exact, found["quota"].source) == ("0", "default")
    assert (found["refquota"].exact, found["refquota"].source) == ("6", "inherited from /")
    assert lookup("quota", [(LOCAL, {"quota": "5"})], {}).exact == "5"


def test_a_user_property_that_is_set_nowhere_has_no_value() -> None:
    value = lookup("a:none", LAYERS, {})
    assert (value.exact, value.human, value.parsable, value.source) == (None, "-", "-", "-")


def test_a_snapshot_has_the_properties_that_make_sense_for_it() -> None:
    found = resolve([], {"type": "snapshot"}, snapshot=True)
    assert list(found) == [p.name for p in NATIVE.values() if p.snapshots]
    assert {"type", "creation", "used", "referenced", "written", "guid"} <= set(found)
    assert not {"available", "mounted", "usedbysnapshots", "recordsize"} & set(found)


def test_written_since_a_snapshot_is_a_property_of_its_own() -> None:
    for name in ("written@a", "written@a:b"):
        native = properties.check_name(name)
        assert native is not None
        assert (native.name, native.kind, native.settable) == (name, Kind.SIZE, False)
        assert lookup(name, [], {name: "1536"}).human == "1.50K"
        assert lookup(name, [], {}).parsable == "-"
    with pytest.raises(NotFound):
        properties.check_name("written@")
    with pytest.raises(ReadOnly):
        properties.parse("written@a", "1")


def test_kinds_are_those_that_can_be_printed() -> None:
    assert {p.kind for p in NATIVE.values()} == set(Kind)
