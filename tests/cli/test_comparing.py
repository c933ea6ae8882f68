"""`tzfs diff` in zfs's format, as JSON and as a patch; `tzfs versions`."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.command_line import CommandLine
from tzfs.management import open_store


@pytest.fixture
def compared(tzfs: CommandLine) -> CommandLine:
    """A filesystem with a snapshot and something of every change since; the clock of its inodes is not set."""
    tzfs.ok("create", "ws")
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        fs.mkdir("/d")
        fs.write_text("/linked", "l")
        fs.write_text("/gone", "g")
        fs.write_text("/oldname", "o")
        fs.write_text("/modified", "1\n")
        fs.snapshot("before")
        fs.link("/linked", "/d/link")
        fs.unlink("/gone")
        fs.rename("/oldname", "/new name")
        fs.write_text("/modified", "2\n")
        fs.symlink("t", "/ünïx\n")
        fs.snapshot("after")
    return tzfs


def test_lines_are_those_of_zfs_diff(compared: CommandLine) -> None:
    assert compared.ok("diff", "-F", "ws@before").splitlines() == [
        "M\t/\t/",
        "M\t/\t/d",
        "+\tF\t/d/link",
        "M\tF\t/linked\t(+1)",
        "-\tF\t/gone",
        "R\tF\t/oldname -> /new\\0040name",
        "M\tF\t/modified",
        "+\t@\t/\\0303\\0274n\\0303\\0257x\\0012",
    ]
    plain = compared.ok("diff", "ws@before", "ws@after")
    assert plain == compared.ok("diff", "ws@before", "@after") == compared.ok("diff", "ws@before", "ws")
    assert plain.splitlines()[5] == "R\t/oldname -> /new\\0040name"
    assert compared.ok("diff", "-h", "ws@before").splitlines()[5:] == [
        "R\t/oldname -> /new name",
        "M\t/modified",
        "+\t/ünïx\\n",
    ]
    assert compared.ok("diff", "-Hh", "ws@before").splitlines()[5] == "R\t/oldname\t/new name"
    assert compared.ok("diff", "ws@before", "/d") == "M\t/d\n+\t/d/link\n"
    assert compared.ok("diff", "ws@before", "@after", "d/link") == "+\t/d/link\n"
    assert compared.ok("diff", "ws@after") == ""


def test_the_time_of_change_stands_first(compared: CommandLine) -> None:
    with open_store(compared.store) as store, store.open_snapshot("ws@after") as then:
        ctime_ns = then.stat("/modified").ctime_ns
    line = compared.ok("diff", "-t", "ws@before", "/modified")
    assert line == f"{ctime_ns // 10**9:10}.{ctime_ns % 10**9:09}\tM\t/modified\n"


def test_json_has_a_line_for_each_with_everything_there_is_to_know(compared: CommandLine) -> None:
    found = [json.loads(line) for line in compared.ok("diff", "--json", "ws@before").splitlines()]
    assert [(f["change"], f["path"], f["type"]) for f in found][5:] == [
        ("R", "/oldname", "file"),
        ("M", "/modified", "file"),
        ("+", "/ünïx\n", "symlink"),
    ]
    assert found[3]["links"] == 1
    assert found[5]["new_path"] == "/new name"
    assert found[6]["changed"] == ["contents", "mtime"]
    assert {"inode", "mode", "size", "mtime_ns", "ctime_ns"} < found[6].keys()


def test_a_patch_is_of_contents(compared: CommandLine) -> None:
    assert compared.ok("diff", "--patch", "ws@before", "/modified") == (
        "diff --git a/modified b/modified\n--- a/modified\n+++ b/modified\n@@ -1 +1 @@\n-1\n+2\n"
    )


def test_names_that_are_no_text_come_through(compared: CommandLine) -> None:
    with open_store(compared.store) as store, store.open("ws") as fs:
        fs.write_bytes(b"/\xff", b"\xfe\n")
    assert compared.ok("diff", "ws@after").splitlines()[-1] == "+\t/\\0377"
    assert json.loads(compared.ok("diff", "--json", "ws@after").splitlines()[-1])["path"] == os.fsdecode(b"/\xff")
    assert '"b/\\377"' in compared.ok("diff", "--patch", "ws@after", "/\udcff")[:60].replace("\n", " ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["ws"],
        ["ws@after", "ws@before"],
        ["ws@before", "ws@before"],
        ["ws@before", "none@x"],
        ["ws@before", "ws", "/none"],
        ["ws@before", "ws", "/", "more"],
        ["ws@none"],
        ["--json", "--patch", "ws@before"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_compared_is_refused_in_words(compared: CommandLine, arguments: list[str]) -> None:
    compared.refused("diff", *arguments, code=1 if "none" in " ".join(arguments) else 2)


def test_the_versions_of_a_file(compared: CommandLine) -> None:
    rows = compared.ok("versions", "-H", "ws", "/modified").splitlines()
    assert [row.split("\t")[:2] for row in rows] == [["before", "before"], ["after", "-"]]
    gone = json.loads(compared.ok("versions", "--json", "ws", "gone"))
    assert [(v["first"], v["last"], v["size"]) for v in gone] == [("before", "before", 1)]
    assert compared.ok("versions", "ws", "/gone").split()[:5] == ["FIRST", "LAST", "MODIFIED", "SIZE", "INODE"]
    assert compared.ok("versions", "-Hp", "ws", "/gone").split("\t")[3] == "1"
    compared.refused("versions", "ws", "/none", code=1)


def test_a_clone_is_compared_with_the_snapshot_that_it_came_from(compared: CommandLine) -> None:
    compared.ok("clone", "ws@before", "attempt")
    assert compared.ok("diff", "ws@before", "attempt") == ""
    with open_store(compared.store) as store, store.open("attempt") as fs:
        fs.write_text("/modified", "3\n")
        fs.unlink("/gone")
    compared.ok("snapshot", "attempt@mine")
    lines = ["M\t/\t/", "-\tF\t/gone", "M\tF\t/modified"]
    for newer in ("attempt", "attempt@mine"):
        assert compared.ok("diff", "-F", "ws@before", newer).splitlines() == lines
    assert compared.ok("diff", "ws@before", "attempt", "/gone") == "-\t/gone\n"
    assert "-1\n+3\n" in compared.ok("diff", "--patch", "ws@before", "attempt")
    said = compared.refused("diff", "ws@after", "attempt", code=2)
    assert "that was cloned before it, from @before" in said
    assert "tzfs diff ws@before attempt" in said
