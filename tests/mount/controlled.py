"""A control server in a thread, with methods of the tests' own, and a client that sends whatever bytes it likes."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import trio

from tzfs import limits
from tzfs.errors import Busy, NoSpace
from tzfs.jsonrpc import Json, Params
from tzfs.mount.control import ControlServer, nothing_queued
from tzfs.mount.method import Answer, Declared, Nothing, Report, method, reporting

ANSWER_S = 20.0  # far beyond any answer of a live server; what is late is hung


class Greeting(TypedDict):
    name: str
    times: NotRequired[int]


class Count(TypedDict):
    to: int


async def ping(params: Nothing) -> Json:
    return "pong"


def anything(handler: Callable[[Params], Answer]) -> Declared:
    """A method that takes whatever parameters come."""
    return Declared(lambda params, report: handler(params))


def greet(params: Greeting) -> Json:
    return " ".join([f"hello {params['name']}"] * params.get("times", 1))


async def count(params: Count, report: Report) -> Json:
    for number in range(params["to"]):
        await report({"done": number})
    return params["to"]


async def count_in_threads(params: Count, report: Report) -> Json:
    async def one(number: int) -> None:
        await trio.to_thread.run_sync(lambda: trio.from_thread.run(report, "x" * 9000 + str(number)))

    async with trio.open_nursery() as nursery:
        for number in range(params["to"]):
            nursery.start_soon(one, number)
    return params["to"]


def failing(error: BaseException) -> Declared:
    def fail(params: Nothing) -> Json:
        raise error

    return method(Nothing, fail)


METHODS: dict[str, Declared] = {
    "ping": method(Nothing, ping),
    "greet": method(Greeting, greet),
    "count": reporting(Count, count),
    "count.in.threads": reporting(Count, count_in_threads),
    "echo": anything(dict),
    "busy": failing(Busy("in use", holders=["pid 1", "pid 2"], hint="wait")),
    "space": failing(NoSpace("the disk is full")),
    "os": failing(OSError(28, "No space left on device")),
    "bug": failing(ZeroDivisionError("secret detail")),
    "no json": method(Nothing, lambda params: cast(Json, b"bytes")),
    "not a number": method(Nothing, lambda params: float("nan")),
    "much": method(Nothing, lambda params: "x" * limits.RPC_MESSAGE_BYTES_MAX),
}


@contextmanager
def serving(
    path: Path, methods: dict[str, Declared] = METHODS, catch_up: Callable[[], Awaitable[None]] = nothing_queued
) -> Iterator[ControlServer]:
    """A server in a thread of its own; it is cancelled at the end, whoever is connected."""
    server = ControlServer(path, methods, catch_up)
    server.bind()
    up = threading.Event()
    handed: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
    raised: list[BaseException] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve)
            handed.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            up.set()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            raised.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(ANSWER_S)
    try:
        yield server
    finally:
        if handed:
            token, scope = handed[0]
            token.run_sync_soon(scope.cancel)
        thread.join(ANSWER_S)
        assert not thread.is_alive()
        assert not raised, raised


class Raw:
    """A client that sends whatever bytes it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(ANSWER_S)
        self.socket.connect(os.fspath(path))
        self._lines = self.socket.makefile("rb")

    def send(self, message: object) -> None:
        self.socket.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Json]:
        line = self._lines.readline()
        assert line.endswith(b"\n"), f"the connection ended after {line!r}"
        return cast("dict[str, Json]", json.loads(line))

    def ask(self, message: object) -> dict[str, Json]:
        self.send(message)
        return self.receive()

    def at_end(self) -> bool:
        try:
            return self._lines.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


def request(name: str, number: object = 1, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "method": name, "params": params, "id": number}


def error_code(answer: dict[str, Json]) -> Json:
    error = answer["error"]
    assert isinstance(error, dict)
    return error["code"]
