"""run: where the command runs, what becomes of signals and exit codes, and what is left afterwards: nothing."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mount.workspace import PROJECT, Workspace, eventually
from tzfs.cli import running
from tzfs.mount import mountpoint


@pytest.fixture(params=["mounted", "not mounted"])
def either(request: pytest.FixtureRequest, workspace: Workspace) -> Iterator[Workspace]:
    """A workspace whose mount is there already, and one that `run` has to mount."""
    if request.param == "mounted":
        workspace.mount()
    yield workspace
    left = [m.path for m in mountpoint.tzfs_mounts() if m.path.is_relative_to(workspace.runtime)]
    assert left == []
    assert [p.name for p in (workspace.runtime / "tzfs").glob("run-*")] == []


def test_the_command_runs_in_the_workspace_with_our_streams(either: Workspace) -> None:
    done = either.run("run", "ws", "--", "sh", "-c", 'pwd; echo "$PWD"; echo words >&2; echo kept > f; cat f')
    first, second, third = done.stdout.splitlines()
    assert (done.returncode, done.stderr, third) == (0, "words\n", "kept")
    assert first == second
    where = Path(first)
    if mountpoint.mount_at(either.mnt):
        assert where == either.mnt
    else:
        assert where.parent == either.runtime / "tzfs"
        assert where.parent.stat().st_mode & 0o777 == 0o700
    assert either.tzfs("run", "ws", "cat", "f") == "kept\n"  # the dashes may be left out


def test_options_after_the_name_are_the_commands(either: Workspace) -> None:
    assert either.tzfs("run", "ws", "--", "echo", "--help", "-o", "--", "x") == "--help -o -- x\n"


@pytest.mark.parametrize(
    ("command", "code", "err"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -KILL $$"], 128 + 9, ""),
        (["no-such-command"], 127, "tzfs: no-such-command: command not found\n"),
        ([""], 127, "tzfs: : command not found\n"),
        (["/etc/passwd"], 126, "tzfs: /etc/passwd: permission denied\n"),
        (["/"], 126, "tzfs: /: permission denied\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_codes_are_those_of_a_shell(either: Workspace, command: list[str], code: int, err: str) -> None:
    done = either.run("run", "ws", "--", *command)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", err)


def test_a_command_with_a_slash_is_looked_for_where_it_runs(either: Workspace) -> None:
    for name, text in (("own-program", "#!/bin/sh\necho here\n"), ("shebangless", "echo here\n")):
        either.tzfs("run", "ws", "--", "sh", "-c", f'printf "{text}" > {name}; chmod +x {name}')
    assert either.tzfs("run", "ws", "--", "./own-program") == "here\n"
    done = either.run("run", "ws", "--", "./shebangless")
    assert (done.returncode, done.stdout, done.stderr) == (126, "", "tzfs: ./shebangless: exec format error\n")
    done = either.run("run", "ws", "--", "own-program")
    assert (done.returncode, done.stdout, done.stderr) == (127, "", "tzfs: own-program: command not found\n")


def test_the_command_gets_our_streams_alone(workspace: Workspace) -> None:
    reading, writing = os.pipe()
    try:
        assert (
            from_within(workspace, "ls", "/proc/self/fd", pass_fds=[reading, writing]) == "0\n1\n2\n3\n"
        )  # 3: ls's own
    finally:
        os.close(reading)
        os.close(writing)


def test_signals_are_blocked_and_ignored_for_the_command_as_they_were_for_us(workspace: Workspace) -> None:
    looks = ["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]

    def masks(out: str) -> list[int]:
        return [int(line.split()[1], 16) & 0x7FFFFFFF for line in out.splitlines()]  # 32 and on are libc's own

    direct = subprocess.run(looks, capture_output=True, text=True, check=True)
    assert masks(from_within(workspace, *looks)) == masks(direct.stdout)


def test_a_command_ends_where_its_end_is_ignored_by_who_started_us(workspace: Workspace) -> None:
    program = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "-m", "tzfs.cli", "--store", str(workspace.store_path), "run", "ws"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--", "sh", "-c", "exit 3"],
        cwd=PROJECT,
        env=workspace.environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3


def from_within(workspace: Workspace, *command: str, pass_fds: Sequence[int] = ()) -> str:
    """What a command prints that is run by a tzfs that has these descriptors too."""
    return subprocess.run(
        [sys.executable, "-m", "tzfs.cli", "--store", str(workspace.store_path), "run", "ws", "--", *command],
        cwd=PROJECT,
        env=workspace.environment,
        pass_fds=pass_fds,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_directory_that_is_gone_is_not_taken_for_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        running._execute(["true"], tmp_path / "absent")
    assert capsys.readouterr() == ("", "")
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_reaches_the_command(either: Workspace, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name} > f; exit 5' {name}; echo ready; while :; do sleep 0.01; done"
    process = either.start("run", "ws", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (5, "")
    assert either.tzfs("run", "ws", "--", "cat", "f") == f"got {name}\n"


def test_a_command_that_a_signal_ends_answers_as_in_a_shell(either: Workspace) -> None:
    process = either.start("run", "ws", "--", "sh", "-c", "echo ready; exec sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_ctrl_c_at_a_terminal_is_heard_once(workspace: Workspace) -> None:
    workspace.mount()
    script = "trap 'echo hit' INT; echo ready; for i in 1 2 3; do read line; done; echo over"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(PROJECT)
        arguments = ["--store", str(workspace.store_path), "run", "ws", "--", "bash", "-c", script]
        os.execve(sys.executable, [sys.executable, "-m", "tzfs.cli", *arguments], workspace.environment)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    while b"hit" not in seen:
        seen += os.read(terminal, 1024)
    os.write(terminal, b"1\n2\n3\n4\n")
    while b"over" not in seen:
        seen += os.read(terminal, 1024)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert seen.count(b"hit") == 1, seen


def test_commands_at_once_share_a_mount_and_the_last_takes_it_away(workspace: Workspace) -> None:
    script = "pwd; read line; cat > $0; cat *"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tzfs.cli",
                "--store",
                workspace.store_path,
                "run",
                "ws",
                "--",
                "sh",
                "-c",
                script,
                n,
            ],
            cwd=PROJECT,
            env=workspace.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in ("a", "b", "c")
    ]
    places = set()
    for process in processes:
        assert process.stdout is not None
        places.add(process.stdout.readline())
    assert len(places) == 1
    [where] = [Path(place.strip()) for place in places]
    said = []
    for number, process in enumerate(processes):
        assert mountpoint.mount_at(where) is not None
        out, _ = process.communicate(f"go\n{number}\n", timeout=60)
        assert process.returncode == 0
        said.append(out)
    assert said == ["0\n", "0\n1\n", "0\n1\n2\n"]
    assert mountpoint.mount_at(where) is None
    assert not where.exists()


def test_what_a_killed_run_has_left_is_used_and_taken_away_by_the_next(workspace: Workspace) -> None:
    process = workspace.start("run", "ws", "--", "sh", "-c", "echo kept > f; pwd; exec sleep 60")
    assert process.stdout is not None
    where = Path(process.stdout.readline().strip())
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait(60)
    os.kill(int(child), signal.SIGKILL)
    process.communicate(timeout=60)
    assert mountpoint.mount_at(where) is not None
    assert workspace.tzfs("run", "ws", "--", "sh", "-c", "pwd; cat f") == f"{where}\nkept\n"
    assert mountpoint.mount_at(where) is None


def test_programs_left_running_keep_what_they_have(workspace: Workspace) -> None:
    out = workspace.base / "out"
    os.mkfifo(out)
    script = f"(read line < {out}; echo late > f) >/dev/null 2>&1 & echo started"
    done = workspace.run("run", "ws", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert done.stderr == "tzfs: the command has left programs running in the mount; it goes when they have ended\n"
    refused = workspace.run("run", "ws", "--", "true")
    assert refused.returncode == 75
    assert "programs still use it" in refused.stderr
    out.write_text("go\n")

    def free() -> bool:
        with workspace.store() as store:
            return store.catalog.holder(store.get("ws")) is None

    assert eventually(free)
    assert workspace.tzfs("run", "ws", "--", "cat", "f") == "late\n"


def test_interrupted_while_it_mounts_it_leaves_nothing(workspace: Workspace) -> None:
    process = workspace.start("run", "ws", "--", "touch", "ran", failpoints="mount.before=delay:5")
    place = workspace.runtime / "tzfs"

    def held() -> bool:
        with workspace.store() as store:
            return (store.catalog.holder(store.get("ws")) or {}).get("socket") is not None

    assert eventually(held)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, ""), err
    assert list(place.glob("run-*")) == []
    assert workspace.tzfs("run", "ws", "--", "ls") == ""


def test_an_archived_filesystem_is_not_run_in(workspace: Workspace) -> None:
    workspace.tzfs("archive", "ws")
    done = workspace.run("run", "ws", "--", "true")
    assert (done.returncode, done.stderr) == (
        75,
        "tzfs: cannot run in ws: it is ARCHIVED\nhint: make it writable: tzfs activate ws\n",
    )
