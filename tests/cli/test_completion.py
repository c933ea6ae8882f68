"""Completion in the shells themselves: commands, options, names of filesystems, snapshots, properties, values.

Bash is driven at a terminal, because how it takes a line apart is the difficulty; fish answers a program; zsh's own
side is click's, and is asked through the script that it loads.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.catalog.stores import tree
from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace

Answers = Callable[..., list[str]]
PROGRAMS = Path(sys.executable).parent

# a line -> what it is after the key
CASES = {
    "tzfs snap": "tzfs snapshot ",
    "tzfs arch": "tzfs archive ",
    "tzfs get recordsize al": "tzfs get recordsize alone ",
    "tzfs get recordsize team/o": "tzfs get recordsize team/one ",
    "tzfs get recordsize team/one@bef": "tzfs get recordsize team/one@before ",
    "tzfs list -t snapshot team/one@a": "tzfs list -t snapshot team/one@after ",
    "tzfs mount alone@": "tzfs mount alone@only ",
    "tzfs get record": "tzfs get recordsize ",
    "tzfs get used,record": "tzfs get used,recordsize ",
    "tzfs get agent:m": "tzfs get agent:model ",
    "tzfs list -o name,agent:m": "tzfs list -o name,agent:model ",
    "tzfs list -s snapshot_c": "tzfs list -s snapshot_count ",
    "tzfs list --where snapdir=v": "tzfs list --where snapdir=visible ",
    "tzfs set snapd": "tzfs set snapdir=",
    "tzfs set snapdir=h": "tzfs set snapdir=hidden ",
    "tzfs set snapdir=hidden te": "tzfs set snapdir=hidden team/",
    "tzfs create -o agent:m": "tzfs create -o agent:model=",
    "tzfs inherit agent:m": "tzfs inherit agent:model ",
    "tzfs inherit txg": "tzfs inherit txg_interval ",
    "tzfs list --state arch": "tzfs list --state archived ",
    "tzfs destroy alo": "tzfs destroy alone ",
    "tzfs run alo": "tzfs run alone ",
    "tzfs completion ba": "tzfs completion bash ",
}


@pytest.fixture
def named(tzfs: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A store with names to complete, which the shells find through the environment."""
    tzfs.ok("create", "team/one", "-o", "agent:model=small")
    tzfs.ok("create", "alone")
    tzfs.ok("snapshot", "team/one@before", "team/one@after", "alone@only")
    monkeypatch.setenv("TZFS_STORE", str(tzfs.store))
    monkeypatch.setenv("PATH", f"{PROGRAMS}:{os.environ['PATH']}")
    return tzfs


class Bash:
    """An interactive bash that has loaded the script."""

    def __init__(self) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environment = {**os.environ, "PS1": "$ ", "TERM": "dumb", "HISTFILE": "", "COLUMNS": "200"}
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        os.write(self.terminal, b"bind 'set enable-bracketed-paste off'; bind 'set bell-style none'\n")
        os.write(self.terminal, b'bind -x \'"\\C-g": printf "<%s>\\n" "$READLINE_LINE"\'\n')
        os.write(self.terminal, b"eval \"$(tzfs completion bash)\"; echo 'lo'aded\n")
        self.until(rb"\nloaded\r\n")

    def until(self, pattern: bytes) -> bytes:
        """What is shown from here to the end of `pattern`; the first group of it."""
        seen = b""
        while not (found := re.search(pattern, seen)):
            seen += os.read(self.terminal, 4096)
        return found[found.re.groups]

    def complete(self, line: str) -> str:
        """The line as it is after one press of the key."""
        os.write(self.terminal, b"\x15" + line.encode() + b"\t\x07")
        return self.until(rb"<([^\n]*)>\r\n").decode()

    def close(self) -> None:
        os.write(self.terminal, b"\x15exit\n")
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.fixture
def bash(named: CommandLine) -> Iterator[Bash]:
    shell = Bash()
    try:
        yield shell
    finally:
        shell.close()


def test_in_bash(bash: Bash) -> None:
    assert {line: bash.complete(line) for line in CASES} == CASES


def test_in_fish(named: CommandLine) -> None:
    lines = [line for line in CASES if re.search("[@:,=]|team/o|snap$", line)]  # what shells take apart, and two others
    program = 'tzfs completion fish | source; for line in $argv; complete -C "$line"; echo; end'
    done = subprocess.run(["fish", "--no-config", "-c", program, *lines], capture_output=True, text=True, check=True)
    for line, answer in zip(lines, done.stdout.split("\n\n"), strict=False):
        found = [choice.partition("\t")[0] for choice in answer.splitlines()]
        wanted = CASES[line].split()[-1]  # of a word with `=` in it fish may show what comes after that
        assert wanted in found or wanted.rpartition("=")[2] in found, (line, found)
    assert done.stderr == ""


def test_zsh_loads_the_script(named: CommandLine) -> None:
    program = 'autoload -Uz compinit && compinit -u -D && eval "$(tzfs completion zsh)" && print -r -- $_comps[tzfs]'
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_tzfs_completion\n", "")


def test_for_zsh(named: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TZFS_COMPLETE", "zsh_complete")
    for line, wanted in CASES.items():
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        assert wanted.split()[-1] in named().out.splitlines(), line


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """How the words go on, as bash is told."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("_TZFS_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("tzfs", *words, "")))
        answer = CommandLine(Path("unused"))()
        monkeypatch.delenv("_TZFS_COMPLETE")
        assert (answer.code, answer.err) == (0, "")
        return [line for line in answer.out.splitlines() if line]

    return ask


def test_asking_makes_no_store_and_changes_none(named: CommandLine, tmp_path: Path, answers: Answers) -> None:
    none = tmp_path / "none"
    assert answers("--store", str(none), "destroy") == []
    assert not none.exists()
    before = [path for path in tree(named.store) if not path.endswith("lock.mdb")]
    assert answers("--store", str(named.store), "destroy") == ["plain,alone", "plain,team/one"]
    assert [path for path in tree(named.store) if not path.endswith("lock.mdb")] == before
    shutil.rmtree(named.store / "catalog")
    assert answers("destroy") == []


def test_umount_offers_what_is_mounted_and_directories(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, answers: Answers
) -> None:
    workspace.tzfs("create", "idle")
    monkeypatch.setenv("TZFS_STORE", str(workspace.store_path))
    with workspace.mounted():
        assert answers("umount") == ["plain,ws", "dir,"]
