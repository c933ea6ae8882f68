"""A program that goes to the background as a mount does, for test_background.py: `python -m ... LOG WHAT [ARGUMENT]`.

It prints the daemon's pid when that is ready, or the error that kept it from it, as JSON with its exit code.  What the
daemon does is one of the functions below; ARGUMENT is a FIFO or file through which a test talks to it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tzfs.errors import Busy, TzfsError, exit_code_of
from tzfs.mount import background

Ready = Callable[[], None]


def _wait_for_line(fifo: str) -> str:
    with open(fifo) as pipe:
        return pipe.readline().strip()


def until_told(ready: Ready, fifo: str) -> None:
    """Serves until the test writes to the FIFO."""
    ready()
    _wait_for_line(fifo)


def tell_state(ready: Ready, file: str) -> None:
    """Writes what the daemon looks like once it is ready."""
    os.set_inheritable(os.open(os.devnull, os.O_RDONLY), False)
    ready()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    state = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "parent": os.getppid(),
        "directory": os.getcwd(),
        "blocked": sorted(int(number) for number in blocked),
        "descriptors": {name: _target(name) for name in os.listdir("/proc/self/fd")},
    }
    print("to standard output", flush=True)
    os.write(2, b"to standard error\n")
    Path(file + ".part").write_text(json.dumps(state))
    os.rename(file + ".part", file)


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


def fail_busy(ready: Ready, _: str) -> None:
    os.write(2, b"fusermount3: said something\n")
    raise Busy("ws is mounted", holders=["pid 7"], hint="unmount it")


def fail_oddly(ready: Ready, _: str) -> None:
    raise ZeroDivisionError("odd")


def fail_holding(ready: Ready, file: str) -> None:
    """Fails with a lock taken, which only its end gives back."""
    import fcntl

    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    raise Busy("it holds a lock")


def crash(ready: Ready, _: str) -> None:
    os._exit(86)


def crash_holding(ready: Ready, file: str) -> None:
    import fcntl

    fcntl.flock(os.open(file, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
    os._exit(86)


def fail_later(ready: Ready, fifo: str) -> None:
    ready()
    _wait_for_line(fifo)
    raise ZeroDivisionError("later")


def signalled_early(ready: Ready, fifo: str) -> None:
    """Is sent SIGTERM and SIGINT before it is ready; they come when its handlers are in place."""
    seen: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        seen.append(number)

    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    early = list(seen)
    ready()
    Path(fifo).write_text(json.dumps([early, sorted(seen)]))


def start_slowly(ready: Ready, fifo: str) -> None:
    """Tells that it has begun, and never becomes ready by itself; SIGTERM ends it once it looks for signals."""
    with open(fifo, "w") as pipe:
        pipe.write(f"{os.getpid()}\n")
    signal.sigwait({signal.SIGTERM})
    Path(fifo + ".undone").touch()
    raise Busy("stopped")


def start_never(ready: Ready, fifo: str) -> None:
    """As slowly, but does not look for signals at all."""
    with open(fifo, "w") as pipe:
        pipe.write(f"{os.getpid()}\n")
    while True:
        signal.pause()


def with_a_thread(ready: Ready, _: str) -> None:
    raise AssertionError("it must not come to this")


WHAT = {
    name: function
    for name, function in list(globals().items())
    if callable(function) and getattr(function, "__module__", "") == __name__ and not name.startswith("_")
}


def main(log: str, what: str, argument: str = "", *flags: str) -> int:
    serve = WHAT[what]
    if what == "with_a_thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    try:
        pid = background.run(lambda ready: serve(ready, argument), foreground="foreground" in flags, log_path=Path(log))
    except TzfsError as error:
        print(json.dumps({"type": type(error).__name__, "message": str(error), "hint": error.hint}), flush=True)
        return exit_code_of(error)
    except KeyboardInterrupt:
        print(json.dumps({"type": "KeyboardInterrupt"}), flush=True)
        return 130
    print(json.dumps({"pid": pid, "self": os.getpid()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
