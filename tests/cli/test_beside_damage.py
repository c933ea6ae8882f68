"""One filesystem whose folder is not what it should be, and commands that are about others or about all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tzfs.management import open_store


def spoil(folder: Path, what: str) -> None:
    if what.startswith("the folder"):
        shutil.rmtree(folder)
        folder.touch() if what.endswith("a file") else folder.symlink_to(folder)
    elif what == "views is a file":
        (folder / "views").rmdir()
        (folder / "views").touch()
    elif what == "a view is a fifo":
        os.mkfifo(folder / "views" / "1-0")
    else:
        (folder / "lock").unlink(missing_ok=True)
        os.mkfifo(folder / "lock") if what.endswith("a fifo") else (folder / "lock").symlink_to(folder / "nowhere")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("the folder is a file", True),
        ("the folder is a loop", True),
        ("views is a file", True),
        ("the lock is a link", True),
        ("the lock is a fifo", False),
        ("a view is a fifo", False),
    ],
)
def test_who_has_another_is_told_and_another_is_collected(tzfs: CommandLine, what: str, told: bool) -> None:
    for name in ("bad", "open", "unused"):
        tzfs.ok("create", name)
    with open_store(tzfs.store) as store:
        spoil(store.get("bad").folder, what)
        with store.open("open"):
            lines = [line.split("\t") for line in tzfs.ok("status", "-H").splitlines()]
            assert [line[0] for line in lines] == (["bad", "open"] if told else ["open"])
            assert lines[-1][2:] == [str(os.getpid()), "program", "ok"]
            assert not told or str(store.get("bad").folder) in lines[0][4]
            collected = tzfs("gc", "--all")
            assert "unused: " in collected.out
            assert collected.err.startswith("tzfs: bad: ") == (what != "a view is a fifo")
