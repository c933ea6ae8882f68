"""Pipes that close, terminals, and Ctrl-C in the middle: exit codes as of a shell, no traceback, a consistent store."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.mount.workspace import PROJECT, eventually
from tzfs.lifecycle import State


def command(store: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tzfs.cli", "--store", str(store), *arguments]


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--json"],
        ["get", "all", "ws"],
        ["versions", "ws", "/"],
        ["status"],
        ["--help"],
        ["list", "--help"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_it_quietly(tzfs: CommandLine, arguments: Sequence[str]) -> None:
    tzfs.ok("create", "ws")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(tzfs.store, *arguments), cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in ((1, 141) if "--help" in arguments else (141,))


def on_a_terminal(store: Path, *arguments: str, environment: dict[str, str] | None = None, code: int = 0) -> str:
    """What a command writes to a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(PROJECT)
        line = command(store, *arguments)
        os.execve(line[0], line, {**os.environ, "TERM": "xterm", **(environment or {})})
    seen = b""
    try:
        while part := os.read(terminal, 4096):
            seen += part
    except OSError:  # the terminal has gone with the command
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    return seen.decode()


def test_colour_and_progress_appear_on_a_terminal_only(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    shown = on_a_terminal(tzfs.store, "list")
    assert shown.startswith("\x1b[1mNAME")
    assert "\x1b" not in tzfs.ok("list")
    assert on_a_terminal(tzfs.store, "list", "--json").startswith("[\r\n  {")
    assert tzfs.ok("list", "--json").startswith('[{"name"')
    delayed = {"TZFS_FAILPOINTS": "lease.info=delay:0.3"}  # something to wait for
    assert "collecting ws" in on_a_terminal(tzfs.store, "gc", "ws", environment=delayed)
    done = subprocess.run(
        command(tzfs.store, "gc", "ws"),
        cwd=PROJECT,
        env={**os.environ, **delayed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ws: 0B given back")


INTERRUPTED = {
    "create": (["create", "new"], "catalog.create.formatted"),
    "destroy": (["destroy", "ws"], "catalog.remove.entry"),
    "archive": (["archive", "ws"], "catalog.archive.begin"),
    "snapshot": (["snapshot", "ws@s"], "commit.rows"),
    "gc": (["gc", "ws"], "writer.payload"),
    "rename": (["rename", "ws", "xs"], "catalog.rename.begin"),
    "set": (["set", "a:b=c", "ws"], "catalog.set.begin"),
}


@pytest.mark.parametrize(("arguments", "point"), INTERRUPTED.values(), ids=INTERRUPTED)
def test_ctrl_c_in_the_middle_ends_with_130_and_the_command_can_be_given_again(
    tzfs: CommandLine, tmp_path: Path, arguments: list[str], point: str
) -> None:
    tzfs.ok("create", "ws")
    process = subprocess.Popen(
        command(tzfs.store, *arguments),
        cwd=PROJECT,
        env={**os.environ, "TZFS_FAILPOINTS": f"{point}=delay:30"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    asleep = Path(f"/proc/{process.pid}/wchan")

    def in_the_delay() -> bool:
        return "nanosleep" in asleep.read_text()

    assert eventually(in_the_delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "tzfs: interrupted")
    states = tzfs.ok("list", "-H", "-o", "name,state", "-t", "all")
    assert set(states.split()) <= {"ws", State.ACTIVE.value}, states
    if "ws" in states or arguments[0] == "create":
        tzfs.ok(*arguments)
