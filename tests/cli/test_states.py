"""Every command in every state, mounted or not: allowed, or refused with the state or the holder in the words.

One store has a filesystem in each state.  Those in CREATING and DELETING are as another process has them that is just
at work on them: recorded, and their transition locked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from tests.cli.command_line import Answer, CommandLine, check_words
from tests.mount.workspace import Workspace
from tzfs import catalog_rows as rows
from tzfs.cli import COMMANDS
from tzfs.lifecycle import State
from tzfs.management import open_store

# Columns: absent, CREATING, DELETING, ACTIVE, ARCHIVED; then ACTIVE and ARCHIVED mounted (the latter read-only).
# +: done.  N: not there.  S: the state is named.  M: not mounted.  B: whoever has it is named.  T: the name is taken.
# C: it is not a clone.  R: the read-only mount is named.  a: there is no such snapshot.
# e: no entry of its log changed anything.
COLUMNS: Final = ("absent", "making", "going", "active", "archived", "mounted", "readonly")
TABLE: Final = {
    "create FS": " SSTTTT",
    "list FS": "N++++++",
    "get all FS": "N++++++",
    "set agent:x=1 FS": "NSS++++",
    "inherit agent:x FS": "NSS++++",
    "rename FS renamed": "NSS++++",
    "archive FS": "NSS+SBS",
    "activate FS": "NSSS+SB",
    "destroy -n FS": "NSB++BB",
    "destroy -nv FS": "NSB++BB",
    "mount FS MNT": "NSS++BB",
    "umount FS": "NSSMM++",
    "snapshot FS@s": "NSS+S+S",
    "hold keep FS@s": "NSS+a+a",
    "holds FS@s": "NSS+a+a",
    "clone -o agent:x=1 FS@s cloned": "NSS+a+a",
    "bookmark FS@s #s": "NSS+a+a",
    "release keep FS@s": "NSS+a+a",
    "policy set FS 24x1h": "NSS++++",
    "policy get FS": "N++++++",
    "policy show FS": "NSS++++",
    "prune -nv FS": "NSS++++",
    "policy inherit FS": "NSS++++",
    "rollback -n FS@s": "NSS+S+S",
    "rollback FS@s": "NSS+S+S",
    "restore FS@s FILE": "NSS S S",
    "diff FS@s": "NSS+a+a",
    "versions FS /": "NSS++++",
    "send -n FS@s": "NSS+a+a",
    "destroy -nv FS@s": "NSS+S+S",
    "destroy FS@s": "NSS+S+S",
    "receive -A FS": "NSS SBS",
    "sync FS": "NSS++++",
    "gc FS": "NSS+++R",
    "flatten FS": "NSSCCCC",
    "apply FS": "NSSCCCC",
    "check FS": "NSS++++",
    "status": "+++++++",
    "log FS": "N++++++",
    "show FS": "NSSeeee",
    "undo FS": "NSSeeee",
    "events FS": "N++++++",
    "status --statistics FS": "NMMMM++",
    "run FS -- true": "NSS+S+S",
    "destroy -r FS": "NSB++BB",
    "create -o agent:x=1 FS": "+SS++TT",  # what was there has just been destroyed
}
HELD: Final = {"making": State.CREATING, "going": State.DELETING}


@dataclass(frozen=True, slots=True)
class Stage:
    workspace: Workspace
    tzfs: CommandLine


@pytest.fixture
def stage(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A store with a filesystem in every state that is not mounted."""
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, workspace.environment[variable])
    tzfs = CommandLine(workspace.store_path)
    for name in ("active", "archived", *HELD):
        tzfs.ok("create", name)
    tzfs.ok("archive", "archived")
    with ExitStack() as locks:
        with open_store(workspace.store_path) as store:
            session = store.catalog._session
            for name, state in HELD.items():
                info = store.get(name)
                with session.write() as txn:
                    record = rows.get_filesystem(txn, info.name)
                    assert record is not None
                    rows.put_filesystem(txn, replace(record, state=state))
                    txn.commit()
                lock = session.layout.lock_transition(info.partition)
                assert lock is not None
                locks.enter_context(lock)
        yield Stage(workspace, tzfs)


def words(line: str, name: str, mnt: Path) -> list[str]:
    return [part.replace("FS", name).replace("MNT", os.fspath(mnt)) for part in line.split()]


def test_every_command_is_in_the_table() -> None:
    assert {line.split()[0] for line in TABLE} == set(COMMANDS) - {"completion"}


@pytest.mark.parametrize("name", COLUMNS)
def test_commands_in_this_state(stage: Stage, name: str) -> None:
    tzfs, w = stage.tzfs, stage.workspace
    mnt = w.base / "other"  # where `mount` is asked to mount it
    mnt.mkdir()
    state = {"making": "CREATING", "going": "DELETING", "mounted": "ACTIVE", "readonly": "ARCHIVED"}.get(
        name, name.upper()
    )
    if name in ("mounted", "readonly"):
        tzfs.ok("create", name)
        if name == "readonly":
            tzfs.ok("archive", name)
        w.mount(name=name)
    for line, letters in TABLE.items():
        letter = letters[COLUMNS.index(name)]
        if letter == " ":
            continue
        arguments = words(line, name, mnt)
        if arguments[0] in ("mount", "run"):  # they leave a process behind, or handle signals
            done = w.run(*arguments)
            answer = Answer(done.returncode, done.stdout, done.stderr)
        else:
            answer = tzfs(*arguments)
        _check(line, letter, answer, name, state)
        if letter == "+":
            _undo(stage, arguments[0], name)


def _undo(stage: Stage, command: str, name: str) -> None:
    """The stage as it was."""
    tzfs = stage.tzfs
    match command:
        case "rename":
            tzfs.ok("rename", "renamed", name)
        case "clone":
            tzfs.ok("destroy", "cloned")
        case "archive":
            tzfs.ok("activate", name)
        case "activate":
            tzfs.ok("archive", name)
        case "mount":
            tzfs.ok("umount", name)
        case "umount":
            [pid] = stage.workspace.daemons()
            stage.workspace.ended(pid)
            stage.workspace.mount(name=name)


def _check(line: str, letter: str, answer: Answer, name: str, state: str) -> None:
    told = f"{line}: {answer}"
    if letter == "+":
        assert (answer.code, answer.err) == (0, ""), told
        return
    check_words(answer.err)
    assert answer.out == "", told
    assert name in answer.err, told
    code, text = {
        "N": (1, "there is no such filesystem"),
        "a": (1, "no snapshot"),
        "e": (1, "has no entry that changed anything"),
        "T": (1, f"there is one already, and it is {state}"),
        "S": (75, f"it is {state}"),
        "C": (75, "it is not a clone"),
        "M": (75, "is not mounted"),
        "B": (75, r"in use by pid \d+, mounted at /|another process is changing it"),
        "R": (1, "is mounted read-only at /"),
    }[letter]
    assert answer.code == code, told
    assert re.search(text, answer.err), told
