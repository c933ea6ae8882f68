"""Going to the background: what the terminal hears, what becomes of the daemon, and signals at the wrong time."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from tzfs.errors import StoreError
from tzfs.mount import background

ROOT = Path(__file__).parents[2]
END_S = 20.0  # far beyond any end of a live process; what is late is hung

Said = dict[str, object]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def command(log: Path, what: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.mount.background_program", str(log), what, *map(str, arguments)]


def start(log: Path, what: str, *arguments: object, pass_fds: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(log, what, *arguments),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
        pass_fds=pass_fds,
    )


def said(done: subprocess.CompletedProcess[str]) -> Said:
    return cast(Said, json.loads(done.stdout.splitlines()[0]))


def open_daemon(done: subprocess.CompletedProcess[str]) -> int:
    """A descriptor of the daemon that has been started."""
    assert done.returncode == 0, done
    return os.pidfd_open(cast(int, said(done)["pid"]))


def assert_ends(pidfd: int) -> None:
    assert background.has_ended(pidfd, END_S)
    os.close(pidfd)


def read_line(fifo: Path) -> str:
    with open(fifo) as pipe:
        return pipe.readline().strip()


# -- ready -------------------------------------------------------------------------------------------------------------


def test_the_starter_returns_when_the_daemon_is_ready_and_it_goes_on(log: Path, fifo: Path) -> None:
    daemon = open_daemon(start(log, "until_told", fifo))
    assert not background.has_ended(daemon, 0)
    fifo.write_text("go\n")
    assert_ends(daemon)


def test_the_daemon_has_no_terminal_no_directory_and_no_descriptor_of_the_shells(tmp_path: Path, log: Path) -> None:
    from_shell = os.open(tmp_path, os.O_RDONLY)
    file = tmp_path / "state"
    done = start(log, "tell_state", file, pass_fds=[from_shell])
    assert_ends(open_daemon(done))
    os.close(from_shell)
    state = json.loads(file.read_text())
    assert state["pid"] == said(done)["pid"]
    assert state["session"] == state["group"]
    assert state["session"] not in (state["pid"], os.getsid(0))  # a leader could get a terminal again
    assert state["parent"] != said(done)["self"]
    assert state["directory"] == "/"
    assert state["blocked"] == []
    descriptors = state["descriptors"]
    assert descriptors["0"] == "/dev/null"
    assert descriptors["1"] == descriptors["2"] == str(log)
    assert str(tmp_path) not in descriptors.values()
    assert not [target for target in descriptors.values() if target.startswith("pipe:")]
    assert "/dev/null" in [target for number, target in descriptors.items() if int(number) > 2]  # Python's own


def test_what_the_daemon_prints_is_in_its_log(tmp_path: Path, log: Path) -> None:
    done = start(log, "tell_state", tmp_path / "state")
    assert_ends(open_daemon(done))
    assert "to standard output\n" in log.read_text()
    assert "to standard error\n" in log.read_text()
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_whoever_reads_the_starters_output_reaches_its_end_while_the_daemon_lives(log: Path, fifo: Path) -> None:
    with subprocess.Popen(command(log, "until_told", fifo), cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        line, rest = starter.stdout.readline(), starter.stdout.read()  # as in $(tzfs mount ...)
        assert rest == ""
    daemon = os.pidfd_open(json.loads(line)["pid"])
    assert not background.has_ended(daemon, 0)
    fifo.write_text("go\n")
    assert_ends(daemon)


def test_an_error_after_ready_is_in_the_log_with_its_origin(log: Path, fifo: Path) -> None:
    daemon = open_daemon(start(log, "fail_later", fifo))
    fifo.write_text("go\n")
    assert_ends(daemon)
    assert "ZeroDivisionError: later" in log.read_text()
    assert "Traceback" in log.read_text()


# -- not ready ---------------------------------------------------------------------------------------------------------


def test_an_error_of_ours_before_ready_comes_out_as_itself(log: Path) -> None:
    done = start(log, "fail_busy")
    assert said(done) == {"type": "Busy", "message": "ws is mounted", "hint": "unmount it"}
    assert done.returncode == 75
    assert "mount: ws is mounted" in log.read_text()


def test_what_libraries_print_before_ready_reaches_the_terminal(log: Path) -> None:
    assert start(log, "fail_busy").stderr == "fusermount3: said something\n"


def test_a_bug_before_ready_names_itself_and_the_log(log: Path) -> None:
    done = start(log, "fail_oddly")
    assert said(done) == {
        "type": "InternalError",
        "message": "ZeroDivisionError: odd",
        "hint": f"its log is {log}",
    }
    assert done.returncode == 70
    assert "Traceback" in log.read_text()


def test_a_crash_before_ready_is_told_with_the_log(log: Path) -> None:
    done = start(log, "crash")
    assert said(done) == {
        "type": "MountFailed",
        "message": "the mount's process ended before it was ready",
        "hint": f"its log is {log}",
    }
    assert done.returncode == 74


@pytest.mark.parametrize("what", ["fail_holding", "crash_holding"])
def test_what_a_failed_daemon_held_is_free_when_its_error_is_told(tmp_path: Path, log: Path, what: str) -> None:
    for _ in range(5):
        assert start(log, what, tmp_path / "lock").returncode
        fd = os.open(tmp_path / "lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_a_log_that_cannot_be_written_is_the_error(tmp_path: Path) -> None:
    done = start(tmp_path / "absent" / "log", "until_told")
    assert said(done)["type"] == "StoreError"
    assert str(said(done)["message"]).endswith("log: No such file or directory")
    assert done.stderr == ""


def test_a_program_with_threads_does_not_fork(log: Path) -> None:
    done = start(log, "with_a_thread")
    assert said(done)["type"] == "InternalError"
    assert "threads are running" in str(said(done)["message"])


# -- signals -----------------------------------------------------------------------------------------------------------


def test_signals_that_come_too_early_wait_until_the_daemon_can_handle_them(tmp_path: Path, log: Path) -> None:
    file = tmp_path / "seen"
    assert_ends(open_daemon(start(log, "signalled_early", file)))
    early, later = json.loads(file.read_text())
    assert early == []
    assert later == [signal.SIGINT, signal.SIGTERM]


def interrupt_while_starting(log: Path, what: str, fifo: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command(log, what, fifo), cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        yield starter
        starter.kill()


def test_an_interrupt_of_the_starter_stops_the_daemon_and_waits_for_it(log: Path, fifo: Path) -> None:
    for starter in interrupt_while_starting(log, "start_slowly", fifo):
        daemon = os.pidfd_open(int(read_line(fifo)))
        starter.send_signal(signal.SIGINT)
        assert starter.wait(END_S) == 130
        assert background.has_ended(daemon, 0)
        assert Path(f"{fifo}.undone").exists()
        os.close(daemon)


def test_a_second_interrupt_kills_a_daemon_that_does_not_stop(log: Path, fifo: Path) -> None:
    for starter in interrupt_while_starting(log, "start_never", fifo):
        pid = int(read_line(fifo))
        daemon = os.pidfd_open(pid)
        starter.send_signal(signal.SIGINT)
        until_pending(pid, signal.SIGTERM)
        assert not background.has_ended(daemon, 0)
        starter.send_signal(signal.SIGINT)
        assert starter.wait(END_S) == 130
        assert background.has_ended(daemon, 0)
        os.close(daemon)


def until_pending(pid: int, number: int) -> None:
    """Until the signal waits at the process, which blocks it."""
    for _ in range(1_000_000):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("ShdPnd:") and int(line.split()[1], 16) & (1 << (number - 1)):
                return
        os.sched_yield()
    raise AssertionError("the signal was not passed on")


def test_a_starter_that_is_killed_leaves_the_mount_that_was_asked_for(tmp_path: Path, log: Path, fifo: Path) -> None:
    """The daemon finds nobody who hears that it is ready, and serves all the same."""
    state, end = tmp_path / "state", tmp_path / "end"
    os.mkfifo(end)
    code = (
        "import os, signal, sys; from pathlib import Path; from tzfs.mount import background\n"
        "def serve(ready):\n"
        f"    open({str(fifo)!r}).readline()\n"
        "    ready()\n"
        f"    Path({str(state)!r}).touch()\n"
        f"    open({str(end)!r}).readline()\n"
        f"background.run(serve, foreground=False, log_path=Path({str(log)!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as starter:
        writing = os.open(fifo, os.O_WRONLY)  # the daemon is there
        starter.kill()
    os.write(writing, b"go\n")
    os.close(writing)
    end.write_text("end\n")  # somebody reads it: the daemon has become ready
    assert state.exists()


# -- the foreground ----------------------------------------------------------------------------------------------------


def test_in_the_foreground_it_is_the_same_process_and_errors_come_out(log: Path) -> None:
    done = start(log, "fail_busy", "", "foreground")
    assert said(done)["type"] == "Busy"
    assert not log.exists()


def test_in_the_foreground_the_log_is_standard_error(tmp_path: Path, log: Path) -> None:
    done = start(log, "tell_state", tmp_path / "state", "foreground")
    state = json.loads((tmp_path / "state").read_text())
    assert done.stdout.startswith("to standard output\n")
    assert "to standard error\n" in done.stderr
    assert state["directory"] == str(ROOT)
    assert state["blocked"] == []
    assert not log.exists()


def test_an_early_interrupt_in_the_foreground_undoes_and_ends_it(log: Path, fifo: Path) -> None:
    with subprocess.Popen(
        command(log, "start_never", fifo, "foreground"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as program:
        assert int(read_line(fifo)) == program.pid
        program.send_signal(signal.SIGINT)
        assert program.wait(END_S) == 130


# -- the log -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    logger.handlers[:] = []
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_the_log_is_for_its_owner_alone_and_continued(log: Path, root_logger: logging.Logger) -> None:
    log.write_text("before\n")
    log.unlink()
    background.log_to(log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    root_logger.info("one")
    background.log_to(log)
    root_logger.info("two")
    assert [line.rsplit(": ", 1)[1] for line in log.read_text().splitlines()] == ["one", "two"]


def test_the_log_does_not_grow_without_bound(
    log: Path, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "LOG_BYTES_MAX", 10_000)
    background.log_to(log)
    for number in range(1000):
        root_logger.info("line %d, %s", number, "x" * 100)
    assert sorted(p.name for p in log.parent.iterdir()) == ["log", "log.1"]
    assert all(p.stat().st_size <= 10_000 for p in log.parent.iterdir())
    assert "line 999" in log.read_text()


def test_a_link_in_the_logs_place_is_refused_and_not_followed(log: Path, root_logger: logging.Logger) -> None:
    log.symlink_to(log.with_name("other"))
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        background.log_to(log)
    assert not log.with_name("other").exists()


def test_a_process_is_known_to_have_ended_also_while_nobody_has_reaped_it() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    pidfd = os.pidfd_open(child)
    assert not background.has_ended(pidfd, 0)
    os.write(writing, b"x")
    assert background.has_ended(pidfd, END_S)
    os.kill(child, 0)  # still there, as a zombie
    os.waitpid(child, 0)
    for fd in (pidfd, reading, writing):
        os.close(fd)
