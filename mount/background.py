"""Going to the background: the terminal waits until the daemon is ready, or hears why it is not.

`run` forks twice before anything is open (no thread, no table of LMDB, no trio), so that the daemon is the child of
init and leader of nothing.  States of the daemon:

    starting --`ready` called--> serving --`serve` returns--> ended, exit code 0
       |                            |
       raises: its error goes       raises: its error goes
       to the waiting process       to the log, exit code 1

* Until it is ready its errors go to the waiting process over a pipe, and are raised there as the same exception, when
  the daemon has ended: whatever it held is free again.  Its standard error is the terminal's, for what libfuse and
  fusermount3 have to say.
* While it starts, SIGTERM and SIGINT wait: `serve` has its own handlers in place when it calls `ready`, so a mount is
  never left behind by a signal that came too early.  An interrupt of the waiting process is passed on, and a second one
  kills the daemon.
* Once ready it has no terminal, no working directory but `/`, and no descriptor of the shell's; what is written to
  standard output and error ends up in the log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import logging.handlers
import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from tzfs import jsonrpc
from tzfs.errors import InternalError, MountFailed, TzfsError, from_os_error
from tzfs.jsonrpc import Json

LOG_BYTES_MAX: Final = 4 * 1024 * 1024  # 40,000 lines; one older log is kept beside it
_READY: Final[Json] = "ready"
_TO_WAIT: Final = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)
Serve = Callable[[Callable[[], None]], None]
_Mask = set[int | signal.Signals]


def log_to(path: Path | None) -> None:
    """Sends the program's log to a file of mode 0600, kept below twice `LOG_BYTES_MAX`, or to standard error."""
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler()
    else:
        try:
            os.close(_open_log(path))
            handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=LOG_BYTES_MAX, backupCount=1, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise from_os_error(error, f"log {path}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def _open_log(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def run(serve: Serve, *, foreground: bool, log_path: Path) -> int:
    """Runs `serve(ready)` and returns, in the caller's process, once it is ready, or raises what kept it from it.

    Answers the daemon's pid.  In the foreground it returns when `serve` does, and raises what that raises.
    """
    if foreground:
        return _in_foreground(serve)
    if threading.active_count() > 1:
        raise InternalError("threads are running: a mount goes to the background before there are any")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_WAIT)  # the daemon inherits it
    try:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as pipe:
            try:
                child = os.fork()
                if child == 0:
                    pipe.close()
                    _fork_again(serve, writing, log_path, before)
            finally:
                os.close(writing)
            os.waitpid(child, 0)
            return _Start(pipe, log_path, before).wait()
    except OSError as error:
        raise from_os_error(error, "going to the background") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_foreground(serve: Serve) -> int:
    """SIGTERM waits for `serve` to handle it; SIGINT is a KeyboardInterrupt until then, which undoes what was done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        log_to(None)
        serve(lambda: _set_mask(before))
    finally:
        _set_mask(before)
    return os.getpid()


def _set_mask(mask: _Mask) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def has_ended(pidfd: int, timeout_s: float | None = None) -> bool:
    """Whether the process, ours or not, ends within that time; None waits for as long as it takes."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(None if timeout_s is None else timeout_s * 1000))


class _Start:
    """The waiting side: the daemon says its pid on one line, and on a second that it is ready or what is wrong."""

    def __init__(self, pipe: BinaryIO, log_path: Path, mask: _Mask) -> None:
        self._pipe, self._log_path, self._mask = pipe, log_path, mask

    def wait(self) -> int:
        pid = self._line()
        if not isinstance(pid, int):
            raise self._reason(pid)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # ended already, but may have said why
            raise self._reason(self._line()) from None
        try:
            return self._outcome(pid, pidfd)
        finally:
            os.close(pidfd)

    def _outcome(self, pid: int, pidfd: int) -> int:
        numbers = iter((signal.SIGTERM, signal.SIGKILL))
        interrupted = False
        while True:
            try:
                _set_mask(self._mask)
                said = None if interrupted else self._line()
                if said == _READY:
                    return pid
                has_ended(pidfd)
                break
            except KeyboardInterrupt:
                interrupted = True
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, next(numbers, signal.SIGKILL))
        if interrupted:
            raise KeyboardInterrupt
        raise self._reason(said)

    def _line(self) -> Json:
        """What the daemon says next; None where it has ended without a word."""
        line = self._pipe.readline()
        return jsonrpc.decode(line) if line.endswith(b"\n") else None

    def _reason(self, said: Json) -> TzfsError:
        if isinstance(said, dict):
            return jsonrpc.revive(said.get("error"))
        return MountFailed("the mount's process ended before it was ready", hint=f"its log is {self._log_path}")


# -- the daemon ----------------------------------------------------------------------------------------------------


def _fork_again(serve: Serve, writing: int, log_path: Path, mask: _Mask) -> NoReturn:
    """The first child: has the daemon in a session of its own, and ends, so that init inherits it."""
    status = 1
    try:
        os.setsid()
        status = _Daemon(writing, log_path, mask).run(serve) if os.fork() == 0 else 0
    except OSError as error:
        os.write(writing, jsonrpc.encode(jsonrpc.failure(from_os_error(error, "going to the background"), None)))
    finally:
        os._exit(status)


class _Daemon:
    def __init__(self, writing: int, log_path: Path, mask: _Mask) -> None:
        self._writing, self._log_path, self._mask = writing, log_path, mask

    def run(self, serve: Serve) -> int:
        """The exit code, when `serve` has returned or raised."""
        self._say(os.getpid())
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            _let_go_of_inherited_descriptors()
            with open(os.devnull, "rb", buffering=0) as null:
                os.dup2(null.fileno(), 0)
            log_to(self._log_path)
            serve(self._ready)
        except BaseException as error:
            ours = isinstance(error, TzfsError)
            if logging.getLogger().handlers:  # else the log itself is what failed
                log.error("mount: %s", error, exc_info=not ours)
            if self._writing >= 0:
                hint = f"its log is {self._log_path}"
                told = error if ours else InternalError(f"{type(error).__name__}: {error}", hint=hint)
                self._say(jsonrpc.failure(told, None))
            return 1
        return 0

    def _ready(self) -> None:
        os.chdir("/")
        written = _open_log(self._log_path)
        os.dup2(written, 1)
        os.dup2(written, 2)
        os.close(written)
        faulthandler.enable(2)
        self._say(_READY)
        os.close(self._writing)
        self._writing = -1
        _set_mask(self._mask)

    def _say(self, message: Json) -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever waited was killed: the mount was asked for all the same
            os.write(self._writing, jsonrpc.encode(message))


def _let_go_of_inherited_descriptors() -> None:
    """Closes what came from the shell: a lock or a pipe that somebody waits for.  Python's own are not inheritable."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        with contextlib.suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                os.close(fd)
