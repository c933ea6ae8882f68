"""get, set, inherit: values, bounds, sources, scopes; a value that is refused changes nothing."""

from __future__ import annotations

import pytest

from tests.cli.command_line import CommandLine
from tzfs.properties import NATIVE, Kind


@pytest.fixture
def ws(tzfs: CommandLine) -> CommandLine:
    tzfs.ok("create", "team/ws")
    tzfs.ok("create", "other")
    return tzfs


def test_get_all_has_every_native_property(ws: CommandLine) -> None:
    lines = [line.split("\t") for line in ws.ok("get", "-H", "all", "other").splitlines()]
    assert [line[1] for line in lines] == list(NATIVE)
    assert {line[1]: line[3] for line in lines} == {p.name: "default" if p.settable else "-" for p in NATIVE.values()}
    assert ws.ok("get", "recordsize", "other").splitlines() == [
        "NAME   PROPERTY    VALUE  SOURCE",
        "other  recordsize  128K   default",
    ]


@pytest.mark.parametrize("native", [p for p in NATIVE.values() if p.settable], ids=lambda p: p.name)
def test_every_property_takes_its_bounds_and_nothing_beyond(ws: CommandLine, native: object) -> None:
    p = NATIVE[getattr(native, "name", "")]
    if p.limit:
        good, bad = ["0", str(p.high), "4503599627370496"], [str((p.high or 0) + 1), "", "-1", "x", "1e3", "off"]
    elif p.kind is Kind.TEXT:
        assert p.default is not None
        good, bad = [p.default], ["", "a b", ","]
    elif p.choices:
        good, bad = list(p.choices), ["", "no such choice"]
    else:
        assert p.low is not None
        assert p.high is not None
        step = 2 if p.power_of_two else 1
        good = [str(p.low), str(p.high)]
        bad = [
            "-0.5" if p.low == 0 else str(p.low / 2),
            str(p.high * 2 if p.power_of_two else p.high + step),
            "",
            "-1",
            "x",
            "1e3",
        ]
    for value in good:
        assert ws.ok("set", f"{p.name}={value}", "other") == ""
        assert ws.ok("get", "-H", "-p", "-o", "value,source", p.name, "other") == f"{value}\tlocal\n"
    for value in bad:
        said = ws.refused("set", f"{p.name}={value}", "other", code=2)
        assert p.kind is Kind.TEXT or said == (  # a text has a grammar of its own, which says what is wrong
            f"tzfs: property {p.name}: {value!r} is not allowed\nhint: give {p.values}\n"
        )
    assert ws.ok("get", "-H", "-p", "-o", "value", p.name, "other") == f"{good[-1]}\n"


def test_the_nearest_value_holds_and_source_says_where_it_is_set(ws: CommandLine) -> None:
    def seen(name: str) -> str:
        return ws.ok("get", "-H", "-o", "value,source", "txg_interval", name).strip()

    ws.ok("set", "txg_interval=5s", "/")
    assert seen("team/ws") == seen("other") == "5s\tinherited from /"
    ws.ok("set", "txg_interval=4s", "team/")
    ws.ok("set", "txg_interval=3s", "team/ws")
    assert (seen("team/ws"), seen("other")) == ("3s\tlocal", "5s\tinherited from /")
    assert ws.ok("inherit", "txg_interval", "team/ws") == ""
    assert seen("team/ws") == "4s\tinherited from team/"
    assert ws.ok("get", "-H", "txg_interval", "team/", "/") == (
        "team/\ttxg_interval\t4s\tlocal\n/\ttxg_interval\t5s\tlocal\n"
    )
    ws.ok("inherit", "txg_interval", "team/", "/")
    assert seen("team/ws") == "1s\tdefault"
    ws.ok("inherit", "txg_interval", "team/ws")  # once more is harmless


def test_a_new_filesystem_inherits_the_stores_defaults(ws: CommandLine) -> None:
    ws.ok("set", "recordsize=64K", "agent:owner=ada", "/")
    ws.ok("create", "new")
    assert ws.ok("get", "-H", "-o", "value,source", "recordsize,agent:owner", "new") == (
        "64K\tinherited from /\nada\tinherited from /\n"
    )


def test_get_chooses_columns_sources_and_forms(ws: CommandLine) -> None:
    ws.ok("set", "agent:a=1", "dirty_max=8M", "other")
    ws.ok("set", "agent:b=2", "/")
    assert ws.ok("get", "-H", "-o", "property", "-s", "local", "all", "other") == "dirty_max\nagent:a\n"
    assert ws.ok("get", "-H", "-o", "property", "-s", "inherited", "all", "other") == "agent:b\n"
    assert ws.json("get", "--json", "dirty_max,agent:b,agent:none", "other") == {
        "other": {
            "dirty_max": {"value": "8388608", "source": "local"},
            "agent:b": {"value": "2", "source": "inherited from /"},
            "agent:none": {"value": None, "source": "-"},
        }
    }
    assert ws.ok("get", "-H", "-o", "value", "agent:none", "other") == "-\n"


def test_set_takes_several_targets_and_looks_at_all_values_first(ws: CommandLine) -> None:
    ws.ok("set", "agent:a=1", "agent:b=x=y", "other", "team/ws")
    assert ws.ok("get", "-H", "-o", "name,value", "agent:a,agent:b", "other", "team/ws") == (
        "other\t1\nother\tx=y\nteam/ws\t1\nteam/ws\tx=y\n"
    )
    ws.refused("set", "agent:a=2", "recordsize=1", "other", code=2)
    ws.refused("set", "agent:a=2", "other", "none", code=1)
    assert ws.ok("get", "-H", "-o", "value", "agent:a", "other") == "1\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["set", "used=1", "other"], 1, "property used is computed and cannot be set"),
        (["set", "colour=red", "other"], 1, "there is no property 'colour'"),
        (["set", "recordsize=64K"], 2, "give PROPERTY=VALUE, and then what to set it on"),
        (["set", "other"], 2, "give PROPERTY=VALUE, and then what to set it on"),
        (["set", "other", "recordsize=64K"], 2, "give every PROPERTY=VALUE first"),
        (["set", "a:b=1", "other@s"], 1, "no snapshot other@s"),
        (["set", f"a:b={'x' * 8192}", "other"], 1, "8192 bytes; at most 8191"),
        (["set", f"a:{'b' * 255}=x", "other"], 2, "longer than 256 bytes"),
        (["inherit", "used", "other"], 1, "property used is computed"),
        (["inherit", "recordsize", "none"], 1, "there is no such filesystem"),
        (["get", "colour", "other"], 1, "there is no property 'colour'"),
        (["get", "all", "none"], 1, "there is no such filesystem"),
        (["get", "all", "other@none"], 1, "no snapshot other@none"),
        (["get", "-o", "colour", "all", "other"], 2, "no column 'colour': there are name, property, value, source"),
        (["get", "-s", "elsewhere", "all", "other"], 2, "'elsewhere' is not one of"),
        (["get", "all"], 2, "missing argument"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_refusals(ws: CommandLine, arguments: list[str], code: int, message: str) -> None:
    assert message in ws.refused(*arguments, code=code)
