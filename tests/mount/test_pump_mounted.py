"""The request pump under a real mount of the empty filesystem, beside pyfuse3 without it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import pytest

ROOT: Final = Path(__file__).parents[2]
ANSWER_S: Final = 20.0  # far beyond any answer of a live daemon; what is late is hung


class Daemon:
    """A mount of the empty filesystem, and the conversation with its process."""

    def __init__(self, mountpoint: Path, pump_mode: str) -> None:
        self.mountpoint = mountpoint
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.pump_daemon", str(mountpoint), "--pump", pump_mode],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.answer() == "ready"

    def answer(self) -> object:
        stdout = self.process.stdout
        assert stdout is not None
        waiting = select.poll()
        waiting.register(stdout, select.POLLIN)
        assert waiting.poll(ANSWER_S * 1000), "the daemon does not answer"
        line = stdout.readline()
        assert line, f"the daemon ended: {self.process.wait(ANSWER_S)}"
        return cast(object, json.loads(line))

    def ask(self, command: str) -> object:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def statistics(self) -> dict[str, int]:
        answer = self.ask("statistics")
        assert isinstance(answer, dict)
        return cast(dict[str, int], answer)

    def assert_ended(self) -> None:
        assert self.answer() == "ended"
        assert self.process.wait(ANSWER_S) == 0
        assert str(self.mountpoint) not in Path("/proc/self/mountinfo").read_text()


@contextmanager
def mounted(mountpoint: Path, pump_mode: str) -> Iterator[Daemon]:
    mountpoint.mkdir(exist_ok=True)
    daemon = Daemon(mountpoint, pump_mode)
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()
        for stream in (daemon.process.stdin, daemon.process.stdout):
            if stream is not None:
                stream.close()
        if str(mountpoint) in Path("/proc/self/mountinfo").read_text():
            subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=True)


@pytest.fixture(params=["on", "nospin", "off"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    with mounted(tmp_path / "mnt", str(request.param)) as daemon:
        yield daemon


@pytest.fixture
def pumped(tmp_path: Path) -> Iterator[Daemon]:
    with mounted(tmp_path / "mnt", "on") as daemon:
        yield daemon


@contextmanager
def flood(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that makes requests without a pause, until it gets an error."""
    script = (
        "import contextlib, os, sys\n"
        "name = os.path.join(sys.argv[1], 'flood')\n"
        "print('begun', flush=True)\n"
        "with contextlib.suppress(OSError):\n"
        "    while True:\n"
        "        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))\n"
        "        os.unlink(name)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, directory], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _try_everything(root: Path) -> list[object]:
    """A walk over what the empty filesystem can do, with all that a client sees of it."""
    seen: list[object] = []

    def note(*what: object) -> None:
        seen.append(what)

    (root / "d").mkdir()
    for number in range(300):
        path = root / "d" / f"{number:03}"
        path.write_bytes(b"%d" % number * (number % 7) * 1000)
    for name in sorted(os.listdir(root / "d")):
        status = os.stat(root / "d" / name)
        note(name, status.st_size, oct(status.st_mode), (root / "d" / name).read_bytes())
    for number in range(0, 300, 3):
        (root / "d" / f"{number:03}").rename(root / "d" / f"renamed {number:03}")
    for number in range(1, 300, 3):
        (root / "d" / f"{number:03}").unlink()
    note(sorted(os.listdir(root / "d")))
    for wrong in ("mkdir", "rmdir", "unlink", "stat"):
        with pytest.raises(OSError, match="Errno") as caught:
            getattr(os, wrong)(root / ("d" if wrong in ("mkdir", "rmdir") else "none"))
        note(wrong, caught.value.errno)
    os.symlink("d/002", root / "l")
    note(os.readlink(root / "l"), (root / "l").read_bytes())
    with open(root / "d" / "002", "r+b") as file:
        file.seek(1 << 17)
        file.write(b"end")
        file.truncate(1 << 16)
        os.fsync(file.fileno())
        note(os.fstat(file.fileno()).st_size)
    return seen


def test_a_client_sees_the_same_with_the_pump_and_without(tmp_path: Path) -> None:
    seen = []
    for mode in ("off", "on", "nospin"):
        with mounted(tmp_path / "mnt", mode) as daemon:
            seen.append(_try_everything(tmp_path / "mnt"))
            assert (daemon.ask("statistics") is None) == (mode == "off")
    assert len(seen[0]) > 300
    assert seen[0] == seen[1] == seen[2]


def test_requests_are_served_through_the_pump_and_its_guard(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "patient") as daemon:  # its spins outlast the pauses of a client on a busy machine
        _try_everything(daemon.mountpoint)
        statistics = daemon.statistics()
        assert statistics["guarded"]
        assert statistics["ready"] + statistics["spun"] > statistics["waited"]
        assert int(cast(int, daemon.ask("flags"))) & os.O_NONBLOCK


def test_a_ping_and_a_thread_job_are_answered_under_full_load(daemon: Daemon) -> None:
    with flood(daemon.mountpoint) as process:
        for _ in range(20):
            assert daemon.ask("ping") == "pong"
            assert daemon.ask("thread") == "done"
        assert process.poll() is None


def test_an_idle_mount_does_nothing(pumped: Daemon) -> None:
    assert not (pumped.mountpoint / "none").exists()
    assert pumped.ask("settle") == "settled"
    before = pumped.statistics()
    for _ in range(50):
        assert pumped.ask("ping") == "pong"
    assert pumped.statistics() == before


def test_a_withdrawn_request_does_not_hang_the_loop(pumped: Daemon) -> None:
    for number in range(3):
        script = "import os, sys; sys.stdin.readline(); os.stat(sys.argv[1])"
        path = pumped.mountpoint / f"name {number}"
        unseen = pumped.mountpoint / f"unseen {number}"
        assert not path.exists()
        # Nothing else may be under way, such as the RELEASE of the round before: the trap takes whatever comes first.
        assert pumped.ask("settle") == "settled"
        client = subprocess.Popen([sys.executable, "-c", script, unseen], stdin=subprocess.PIPE)
        assert client.stdin is not None
        try:
            assert pumped.ask(f"trap {client.pid}") == "armed"
            client.stdin.write(b"\n")
            client.stdin.flush()
            assert client.wait(ANSWER_S) == -9
        finally:
            client.kill()
            client.wait()
            client.stdin.close()
        assert pumped.ask("ping") == "pong"
        assert pumped.ask("thread") == "done"
        assert pumped.statistics()["withdrawn"] == number + 1
        path.write_bytes(b"alive")
        assert path.read_bytes() == b"alive"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "under full load"])
@pytest.mark.parametrize(("command", "answer"), [("cancel", "cancelled"), ("terminate", "terminated")])
def test_the_loop_can_be_ended_from_another_task(daemon: Daemon, command: str, answer: str, busy: bool) -> None:
    os.listdir(daemon.mountpoint)
    if not busy:
        assert daemon.ask(command) == answer
        daemon.assert_ended()
        return
    with flood(daemon.mountpoint):
        assert daemon.ask("ping") == "pong"
        assert daemon.ask(command) == answer
        daemon.assert_ended()


def test_umount_ends_the_loop(daemon: Daemon) -> None:
    os.listdir(daemon.mountpoint)
    subprocess.run(["fusermount3", "-u", daemon.mountpoint], check=True)
    daemon.assert_ended()
