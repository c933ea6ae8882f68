"""What nobody should type, and stores that are none: one line of words, an exit code, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.catalog.stores import tree
from tests.cli.command_line import Answer, CommandLine, check_words
from tests.mount.workspace import Workspace
from tests.store.stores import python
from tzfs import catalog_rows as rows
from tzfs.cli import COMMANDS, run
from tzfs.errors import InvalidArgument, PermissionDenied, exit_code_of
from tzfs.management import open_store

NAMES = {
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
    "a newline": "a\nb",
    "an escape sequence": "a\x1b[31mb",
    "a C1 control": "a\x9b31mb",
    "right to left": "a\u202eb",
    "an option": "-rf",
    "empty": "",
    "very long": "x" * 300,
    "too long for a path": "x" * 5000,
    "dots": "..",
    "a blank": "a b",
    "quotes": "'\"`$(true)",
    "NUL": "a\0b",
}
LINES = {
    "create": ("create", "--", "NAME"),
    "list": ("list", "--", "NAME"),
    "get": ("get", "--", "all", "NAME"),
    "get property": ("get", "--", "NAME", "ws"),
    "set": ("set", "--", "a:b=c", "NAME"),
    "set property": ("set", "--", "NAME=c", "ws"),
    "set value": ("set", "--", "recordsize=NAME", "ws"),
    "inherit": ("inherit", "--", "NAME", "ws"),
    "rename": ("rename", "--", "ws", "NAME"),
    "archive": ("archive", "--", "NAME"),
    "activate": ("activate", "--", "NAME"),
    "destroy": ("destroy", "--", "NAME"),
    "snapshot": ("snapshot", "--", "ws@NAME"),
    "snapshot of all": ("snapshot", "-r", "--", "NAME@s"),
    "rename snapshot": ("rename", "--", "ws@NAME", "@s"),
    "rename snapshot to": ("rename", "--", "ws@s", "ws@NAME"),
    "clone": ("clone", "--", "NAME@s", "new"),
    "clone to": ("clone", "--", "ws@s", "NAME"),
    "flatten": ("flatten", "--", "NAME"),
    "apply": ("apply", "--", "NAME"),
    "apply onto": ("apply", "--onto", "NAME", "--", "ws"),
    "hold": ("hold", "--", "keep", "ws@NAME"),
    "tag": ("hold", "--", "NAME", "ws@s"),
    "release": ("release", "--", "NAME", "ws@s"),
    "holds": ("holds", "-r", "--", "NAME@s"),
    "bookmark": ("bookmark", "--", "ws@s", "NAME"),
    "send": ("send", "-n", "--", "ws@NAME"),
    "send from": ("send", "-n", "-i", "NAME", "ws@s"),
    "token": ("send", "-t", "NAME"),
    "receive": ("receive", "-A", "--", "NAME"),
    "bookmark as": ("bookmark", "--", "ws@s", "#NAME"),
    "policy": ("policy", "set", "--", "ws", "NAME"),
    "policy names": ("policy", "set", "--names", "NAME", "--", "ws", "1h"),
    "policy of": ("policy", "show", "--", "NAME"),
    "prune": ("prune", "--", "NAME"),
    "rollback": ("rollback", "--", "ws@NAME"),
    "restore": ("restore", "--", "ws@NAME", "x"),
    "diff": ("diff", "--", "NAME"),
    "diff to": ("diff", "--", "ws@s", "NAME"),
    "versions": ("versions", "--", "NAME", "/x"),
    "log": ("log", "--", "NAME"),
    "events": ("events", "--", "NAME"),
    "show": ("show", "--", "NAME"),
    "show PATH": ("show", "--", "ws", "1", "NAME"),
    "undo": ("undo", "--", "NAME"),
    "sync": ("sync", "--", "NAME"),
    "gc": ("gc", "--", "NAME"),
    "check": ("check", "--", "NAME"),
    "mount": ("mount", "--", "NAME", "MNT"),
    "mount at": ("mount", "--", "ws", "MNT/NAME"),
    "mount option": ("mount", "-o", "NAME", "--", "ws", "MNT"),
    "umount": ("umount", "--", "NAME"),
    "status": ("status", "--statistics", "NAME"),
    "run": ("run", "NAME", "--", "true"),
    "sort": ("list", "-s", "NAME"),
    "where": ("list", "--where", "NAME=x"),
    "completion": ("completion", "--", "NAME"),
}


def test_every_command_is_among_the_lines() -> None:
    assert {line[0] for line in LINES.values()} == set(COMMANDS)


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_hostile_word_is_refused_in_one_printable_line(
    tzfs: CommandLine, tmp_path: Path, line: tuple[str, ...]
) -> None:
    tzfs.ok("create", "ws")
    before = tree(tzfs.store / "fs")
    for kind, name in NAMES.items():
        if line[:3] == ("mount", "-o", "NAME") and kind == "empty":
            continue  # no option at all
        where = str(tmp_path / "none")
        answer = tzfs(*(part.replace("NAME", name).replace("MNT", where) for part in line))
        assert (answer.code in (1, 2), answer.out) == (True, ""), f"{kind}: {answer}"
        check_words(answer.err)
    assert tree(tzfs.store / "fs") == before


def test_what_a_terminal_would_obey_is_shown_escaped_and_kept_exactly(tzfs: CommandLine) -> None:
    value = "one\ntwo\tthree\x1b[2J\x9b\u202e"
    tzfs.ok("create", "ws", "-o", f"agent:note={value}")
    shown = "one\\ntwo\\tthree\\x1b[2J\\x9b\\u202e"
    assert tzfs.ok("get", "-H", "-o", "value", "agent:note", "ws") == f"{shown}\n"
    assert tzfs.ok("list", "-H", "-o", "name,agent:note") == f"ws\t{shown}\n"
    document = tzfs.ok("get", "--json", "agent:note", "ws")
    assert document.strip().isprintable()
    assert json.loads(document)["ws"]["agent:note"]["value"] == value


def test_a_mountpoint_of_any_bytes_is_shown_and_unmounted(workspace: Workspace) -> None:
    where = workspace.base / os.fsdecode(b"caf\xe9 \n\x1b[31m")
    pid = workspace.mount(where=where)
    shown = f"{workspace.base}/caf\\udce9 \\n\\x1b[31m"
    assert workspace.tzfs("status", "-H") == f"ws\t{shown}\t{pid}\tmount\tok\n"
    assert json.loads(workspace.tzfs("status", "--json"))[0]["mountpoint"] == os.fspath(where)
    refused = workspace.run("mount", "ws", workspace.mnt)
    check_words(refused.stderr)
    assert shown in refused.stderr
    workspace.tzfs("umount", where)
    workspace.ended(pid)


def test_words_that_the_terminals_encoding_does_not_have_are_escaped(tzfs: CommandLine) -> None:
    tzfs.ok("create", "λόγος")
    done = python(
        "import sys; from tzfs.cli import run; sys.exit(run(sys.argv[1:]))",
        "--store",
        str(tzfs.store),
        "list",
        "-H",
        "-o",
        "name",
        environment={"PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u03bb\\u03cc\\u03b3\\u03bf\\u03c2\n", "")


# -- stores --------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_store_is_left_alone(tzfs: CommandLine) -> None:
    tzfs.store.mkdir()
    (tzfs.store / "thesis.tex").write_text("irreplaceable")
    for line in (["list"], ["create", "ws"], ["destroy", "ws"], ["umount", "ws"], ["status"]):
        told = tzfs.refused(*line, code=78)
        assert str(tzfs.store) in told
        assert "not a tzfs store\nhint: give an empty or a new folder\n" in told
    assert tree(tzfs.store) == ["thesis.tex"]


def test_an_empty_path_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (["list"], ["create", "ws"]):
        assert run(["--store", "", *line]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        check_words(said.err)
        assert "the path of the store is empty\n" in said.err
    with pytest.raises(InvalidArgument):
        open_store("")
    assert os.listdir(tmp_path) == []


def test_a_file_where_the_store_should_be(tzfs: CommandLine) -> None:
    tzfs.store.write_text("x")
    assert str(tzfs.store) in tzfs.refused("list", code=2)
    below = CommandLine(tzfs.store / "deeper")
    check_words(below("list").err)
    assert tzfs.store.read_text() == "x"


def test_a_store_of_a_newer_version_says_so(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    with open_store(tzfs.store) as store, store.catalog._session.write() as txn:
        record = rows.get_store(txn)
        assert record is not None
        rows.put_store(txn, replace(record, format=record.format + 1))
        txn.commit()
    for line in (["list"], ["create", "xs"], ["get", "all", "ws"]):
        told = tzfs.refused(*line, code=78)
        assert str(tzfs.store) in told
        assert "newer" in told


@pytest.mark.needs("root")
def test_a_read_only_disk_can_be_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tzfs-test", root], check=True)
    try:
        tzfs = CommandLine(root)
        tzfs.ok("create", "ws")
        tzfs.ok("snapshot", "ws@s")
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        assert tzfs.ok("list", "-H", "-o", "name", "-t", "all") == "ws\nws@s\n"
        assert tzfs.ok("get", "-H", "-o", "value", "state", "ws") == "active\n"
        for line in (
            ["create", "xs"],
            ["set", "a:b=c", "ws"],
            ["rename", "ws", "xs"],
            ["archive", "ws"],
            ["destroy", "-r", "ws"],
            ["snapshot", "ws@t"],
            ["gc", "ws"],
        ):
            answer = tzfs(*line)
            assert answer.code != 0, line
            assert answer.out == ""
            check_words(answer.err)
            assert "read-only" in answer.err, answer
    finally:
        subprocess.run(["umount", root], check=True)


@pytest.mark.needs("root")
def test_root_leaves_the_store_of_another_user_alone(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    tzfs.ok("snapshot", "ws@s")

    def entries() -> dict[Path, tuple[int, int, int]]:
        stats = [(path, path.lstat()) for path in tzfs.store.rglob("*")]
        return {path: (stat.st_uid, stat.st_ino, stat.st_mtime_ns) for path, stat in stats}

    for path in [tzfs.store, *entries()]:
        os.chown(path, 61002, 61002, follow_symlinks=False)
    before = entries()
    for line in (
        ["list"],
        ["status"],
        ["log"],
        ["create", "xs"],
        ["set", "a:b=c", "ws"],
        ["snapshot", "ws@t"],
        ["gc", "--all"],
        ["run", "ws", "--", "true"],
        ["mount", "ws@s", str(tzfs.store.parent)],
        ["destroy", "-r", "ws"],
    ):
        told = tzfs.refused(*line, code=exit_code_of(PermissionDenied("")))
        assert f"store {tzfs.store}: it belongs to user #61002, and is for that user alone" in told, line
        assert "sudo -u '#61002' tzfs" in told, line
    for create in (False, True):
        with pytest.raises(PermissionDenied, match="belongs to user #61002"):
            open_store(tzfs.store, create=create)
    assert entries() == before


OTHER_USER = """
import os, sys
os.setgid(61002); os.setgroups([]); os.setuid(61002)
from tzfs.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "line", [["list"], ["create", "xs"], ["destroy", "ws"], ["snapshot", "ws@s"]], ids=lambda x: x[0]
)
def test_another_users_store_is_refused_in_clear_words(tzfs: CommandLine, tmp_path: Path, line: list[str]) -> None:
    tzfs.ok("create", "ws")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o005)
    done = python(
        "import tzfs.cli, tzfs.management, tzfs.cli.listing\n" + OTHER_USER, "--store", str(tzfs.store), *line
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert (answer.code, answer.out) == (77, ""), answer
    check_words(answer.err)
    assert str(tzfs.store) in answer.err
    assert "permission denied\nhint: the store belongs to another user" in answer.err
