"""The process that test_pump_mounted.py mounts: the empty filesystem, and a conversation on stdin and stdout.

One word a line comes in, one line of JSON goes out:

    ping             "pong"
    settle           "settled", when every task waits in trio
    statistics       the pump's, or null without one
    flags            the FUSE descriptor's file status flags
    thread           "done", from a worker thread
    trap PID         "armed": when the next request is there, PID is killed and its request is gone before it is read
    cancel           cancels pyfuse3.main, answers "cancelled" when it has ended
    terminate        calls pyfuse3.terminate, answers "terminated" when pyfuse3.main has returned

The end of pyfuse3.main ends the process; the last line is "ended".
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pyfuse3
import trio
import trio.testing

from benchmarks.emptyfs import EmptyFs
from tzfs.mount import pump

SPIN_NS = {"nospin": 0, "patient": 1_000_000_000}

Wait = Callable[[int], Awaitable[None]]


class Trap:
    """Stands between the pump and pyfuse3, and makes a withdrawn request when armed."""

    def __init__(self) -> None:
        self.fd = -1
        self.victim: int | None = None
        lowlevel = cast(Any, pyfuse3).trio.lowlevel
        self._wait = cast(Wait, lowlevel.wait_readable)
        if lowlevel is not trio.lowlevel:
            lowlevel.wait_readable = self.wait_readable

    async def wait_readable(self, fd: int) -> None:
        await self._wait(fd)
        self.fd = fd
        if self.victim is None:
            return
        os.kill(self.victim, signal.SIGKILL)
        self.victim = None
        readable = select.poll()
        readable.register(fd, select.POLLIN)
        while readable.poll(0):
            os.sched_yield()


async def converse(installed: pump.Pump | None, trap: Trap, serving: trio.CancelScope, ended: trio.Event) -> None:
    stream = trio.lowlevel.FdStream(os.dup(0))
    pending = b""
    async for piece in stream:
        pending += piece
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            answer: object
            match line.decode().split():
                case ["ping"]:
                    answer = "pong"
                case ["settle"]:
                    await trio.testing.wait_all_tasks_blocked()
                    answer = "settled"
                case ["statistics"]:
                    answer = dataclasses.asdict(installed.statistics) if installed is not None else None
                case ["flags"]:
                    answer = fcntl.fcntl(trap.fd, fcntl.F_GETFL)
                case ["thread"]:
                    answer = await trio.to_thread.run_sync(lambda: "done")
                case ["trap", pid]:
                    trap.victim = int(pid)
                    answer = "armed"
                case ["cancel"]:
                    serving.cancel()
                    await ended.wait()
                    answer = "cancelled"
                case ["terminate"]:
                    pyfuse3.terminate()
                    await ended.wait()
                    answer = "terminated"
                case words:
                    raise SystemExit(f"not a command: {words}")
            print(json.dumps(answer), flush=True)


async def serve(installed: pump.Pump | None, trap: Trap) -> None:
    ended = trio.Event()
    serving = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(converse, installed, trap, serving, ended)
        print(json.dumps("ready"), flush=True)
        with serving:
            await pyfuse3.main()
        ended.set()
        # One answer may still be owed to whoever asked for the end.
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("--pump", choices=["on", "off", *SPIN_NS], default="on")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        installed = None
        if options.pump != "off":
            installed = pump.install(spin_ns=SPIN_NS.get(options.pump, pump.SPIN_NS_DEFAULT))
            assert installed is not None, "the pump does not fit this pyfuse3"
            stack.enter_context(installed)
        trap = Trap()
        pyfuse3.init(EmptyFs(), options.mountpoint, set(pyfuse3.default_options) | {"fsname=pump-test"})
        try:
            trio.run(serve, installed, trap)
        finally:
            pyfuse3.close(unmount=True)
    print(json.dumps("ended"), flush=True)


if __name__ == "__main__":
    main()
