"""list: its columns, its order, its filters, its three forms; what cannot be read does not keep the rest away."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.cli.command_line import CommandLine
from tests.noise import noise
from tzfs.management import open_store
from tzfs.properties import NATIVE


@pytest.fixture
def listed(tzfs: CommandLine) -> CommandLine:
    """Three filesystems of different sizes, one archived, one with two snapshots."""
    tzfs.ok("create", "team/small", "-o", "agent:model=small")
    tzfs.ok("create", "team/large", "-o", "agent:model=large", "-o", "recordsize=64K")
    tzfs.ok("create", "alone")
    with open_store(tzfs.store) as store:
        for name, size in (("team/small", 5_000), ("team/large", 200_000)):
            with store.open(name) as fs:
                fs.write_bytes("f", noise(size, "x"))
    tzfs.ok("snapshot", "team/small@one", "team/small@two")
    tzfs.ok("archive", "alone")
    return tzfs


def test_the_table_is_aligned_under_upper_case_heads(listed: CommandLine) -> None:
    lines = listed.ok("list").splitlines()
    assert lines[0].split() == ["NAME", "USED", "AVAIL", "REFER", "MOUNTPOINT"]
    assert [line.split()[0] for line in lines[1:]] == ["alone", "team/large", "team/small"]
    end = lines[0].index("USED") + 4
    assert all(line[end - 1] != " " and line[end] == " " for line in lines)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "alone team/large team/small"),
        (["-t", "filesystem"], "alone team/large team/small"),
        (["-t", "snapshot"], "team/small@one team/small@two"),
        (["-t", "all"], "alone team/large team/small team/small@one team/small@two"),
        (["-t", "all", "team/small"], "team/small team/small@one team/small@two"),
        (["team/"], "team/large team/small"),
        (["team/small@two", "alone"], "team/small@two alone"),
        (["--state", "archived"], "alone"),
        (["--state", "active"], "team/large team/small"),
        (["--where", "agent:model=small"], "team/small"),
        (["--where", "recordsize=64KiB"], "team/large"),
        (["--where", "recordsize=131072", "--state", "active"], "team/small"),
        (["--where", "snapshot_count=2"], "team/small"),
        (["--where", "agent:none=x"], ""),
        (["-s", "used"], "alone team/small team/large"),
        (["-S", "refer"], "team/large team/small alone"),
        (["-s", "agent:model"], "team/large team/small alone"),
        (["-S", "agent:model"], "team/small team/large alone"),
        (["-S", "snapshot_count", "-s", "name"], "team/small alone team/large"),
        (["-s", "recordsize", "-s", "used"], "team/large alone team/small"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_listed_and_in_which_order(listed: CommandLine, arguments: list[str], names: str) -> None:
    assert listed.ok("list", "-H", "-o", "name", *arguments).split() == names.split()


def test_scripts_get_tabs_and_exact_numbers(listed: CommandLine) -> None:
    line = listed.ok("list", "-H", "-p", "-o", "name,refer,recordsize,txg_interval,agent:model,origin", "team/large")
    assert re.fullmatch(r"team/large\t20\d{4}\t65536\t1\tlarge\t-\n", line)
    human = listed.ok("list", "-H", "-o", "refer,recordsize,txg_interval", "team/large")
    assert re.fullmatch(r"19\d(\.\d)?K\t64K\t1s\n", human)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", listed.ok("list", "-H", "-o", "creation", "alone"))
    assert re.fullmatch(r"\d{10}\n", listed.ok("list", "-H", "-p", "-o", "creation", "alone"))


def test_json_has_every_property_exactly_or_the_columns_asked_for(listed: CommandLine) -> None:
    found = listed.json("list", "--json", "-t", "all", "team/small")
    assert isinstance(found, list)
    filesystem, one, _ = found
    assert list(filesystem) == ["name", *NATIVE, "agent:model"]
    assert (filesystem["name"], filesystem["mounted"], filesystem["mountpoint"]) == ("team/small", "no", None)
    assert list(one) == ["name", *(p.name for p in NATIVE.values() if p.snapshots)]
    assert one["name"] == "team/small@one"
    assert listed.json("list", "--json", "-o", "name,agent:model") == [
        {"name": "alone", "agent:model": None},
        {"name": "team/large", "agent:model": "large"},
        {"name": "team/small", "agent:model": "small"},
    ]
    assert listed.json("list", "--json", "--where", "agent:none=x") == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none"], 1, "none: there is no such filesystem"),
        (["alone@none"], 1, "no snapshot alone@none\nhint: tzfs list -t snapshot alone"),
        (["-o", "colour"], 1, "there is no property 'colour'"),
        (["-s", "colour"], 1, "there is no property 'colour'"),
        (["-t", "volume"], 2, "'volume' is not one of 'filesystem', 'snapshot', 'bookmark', 'all'"),
        (["--where", "recordsize"], 2, "'recordsize' is not PROPERTY=VALUE"),
        (["--where", "recordsize="], 2, "--where recordsize= needs a value"),
        (["--where", "recordsize=5"], 2, "property recordsize: '5' is not allowed"),
        (["--where", "used=much"], 2, "--where used: 'much' is not a size"),
        (["--state", "gone"], 2, "'gone' is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_list_refuses(listed: CommandLine, arguments: list[str], code: int, message: str) -> None:
    assert message in listed.refused("list", *arguments, code=code)


def test_a_filesystem_whose_folder_is_lost_is_named_and_the_rest_is_listed(listed: CommandLine) -> None:
    with open_store(listed.store) as store:
        shutil.rmtree(store.get("team/large").folder / "meta")
    answer = listed("list", "-H", "-o", "name,used,recordsize")
    assert answer.code != 0
    assert [line.split("\t")[0] for line in answer.out.splitlines()] == ["alone", "team/large", "team/small"]
    assert "team/large\t-\t64K\n" in answer.out
    assert answer.err.startswith("tzfs: ")
    assert len(answer.err.splitlines()) == 1
