"""Going to the background: the terminal waits until the daemon is ready, or hears why it is not.

`run` forks before anything is open; the child becomes a session of its own, does its work and calls `ready` when it
serves.  Until then its errors go back to the parent over a pipe, as the same exception; from then on to its log.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tzfs import jsonrpc
from tzfs.errors import InternalError, MountFailed, TzfsError

LOG_BYTES_MAX = 4 * 1024 * 1024


def log_to(path: Path | None) -> None:
    """Sends the program's log to a file, kept below twice 4 MiB, or to standard error."""
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler()
    else:
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=1, encoding="utf-8")
        os.chmod(path, 0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def run(serve: Callable[[Callable[[], None]], None], *, foreground: bool, log_path: Path) -> None:
    """Runs `serve(ready)` and returns, in the caller's process, once it is ready, or raises what kept it from it.

    In the foreground it returns when `serve` does.
    """
    if foreground:
        log_to(None)
        serve(lambda: None)
        return
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        _wait(reading, child, log_path)
        return
    os.close(reading)
    status = 1
    try:
        status = _become(serve, writing, log_path)
    finally:
        os._exit(status)


def _wait(reading: int, child: int, log_path: Path) -> None:
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    if said == b"ready":
        return
    os.waitpid(child, 0)
    try:
        message = jsonrpc.decode(said)
    except TzfsError:
        raise MountFailed("the mount's process ended before it was ready", hint=f"its log is {log_path}") from None
    raise jsonrpc.revive(message["error"] if isinstance(message, dict) else None)


def _become(serve: Callable[[Callable[[], None]], None], writing: int, log_path: Path) -> int:
    """The child: a daemon until `serve` returns."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    said = [False]

    def ready() -> None:
        os.chdir("/")
        with open(os.devnull, "r+b", buffering=0) as null:
            for fd in (0, 1, 2):
                os.dup2(null.fileno(), fd)
        os.write(writing, b"ready")
        os.close(writing)
        said[0] = True

    try:
        log_to(log_path)
        serve(ready)
    except BaseException as error:
        logging.getLogger(__name__).error("mount: %s", error, exc_info=not isinstance(error, TzfsError))
        if not said[0]:
            known = error if isinstance(error, TzfsError) else InternalError(f"{type(error).__name__}: {error}")
            os.write(writing, json.dumps(jsonrpc.failure(known, None)).encode())
        return 1
    return 0
