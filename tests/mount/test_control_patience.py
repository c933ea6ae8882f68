"""How long the control server waits for whom, and how often it must be let run: one loop, and a clock that jumps."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.mount.controlled import METHODS, error_code, request
from tzfs import limits
from tzfs.jsonrpc import Json
from tzfs.mount import control
from tzfs.mount.control import ControlServer
from tzfs.mount.method import Declared, Nothing, Report, method, reporting

PING = json.dumps(request("ping")).encode() + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@asynccontextmanager
async def serving(path: Path, methods: dict[str, Declared] = METHODS) -> AsyncIterator[ControlServer]:
    server = ControlServer(path, methods)
    server.bind()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        yield server
        nursery.cancel_scope.cancel()


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs it with a clock that jumps to whatever is next when nothing can go on."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def until_ended(stream: trio.SocketStream) -> bytes:
    """All that the server still says before it ends the connection."""
    heard = b""
    try:
        async for part in stream:
            heard += part
    except trio.BrokenResourceError:
        pass
    return heard


# -- time --------------------------------------------------------------------------------------------------------------


def test_half_a_message_is_waited_for_and_then_refused(path: Path) -> None:
    async def main() -> None:
        async with serving(path), await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(PING[:10])
            began = trio.current_time()
            heard = await until_ended(stream)
            assert trio.current_time() - began == pytest.approx(control.HALF_MESSAGE_S)
            assert error_code(json.loads(heard)) == -32600
            assert "was not whole within 10 s" in json.loads(heard)["error"]["message"]

    run(main)


def test_a_message_that_comes_byte_by_byte_has_no_more_time_than_another(path: Path) -> None:
    async def main() -> None:
        async with serving(path), await trio.open_unix_socket(str(path)) as stream:
            began = trio.current_time()
            sent = 0
            with suppress(trio.BrokenResourceError):
                while sent < 100:
                    await stream.send_all(b" ")
                    sent += 1
                    await trio.sleep(control.HALF_MESSAGE_S / 4)
            assert sent <= 5
            assert trio.current_time() - began <= control.HALF_MESSAGE_S * 1.5

    run(main)


def test_the_time_of_a_message_begins_with_its_first_byte(path: Path) -> None:
    async def main() -> None:
        async with serving(path), await trio.open_unix_socket(str(path)) as stream:
            for _ in range(3):
                await trio.sleep(control.HALF_MESSAGE_S * 3)
                await stream.send_all(PING[:10])
                await trio.sleep(control.HALF_MESSAGE_S * 0.9)
                await stream.send_all(PING[10:])
                assert json.loads(await stream.receive_some())["result"] == "pong"

    run(main)


def test_half_a_message_behind_a_whole_one_has_its_own_time(path: Path) -> None:
    async def main() -> None:
        async with serving(path), await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(PING + PING[:10])
            assert json.loads(await stream.receive_some())["result"] == "pong"
            began = trio.current_time()
            await until_ended(stream)
            assert trio.current_time() - began == pytest.approx(control.HALF_MESSAGE_S)

    run(main)


def test_a_client_that_says_nothing_is_ended_after_an_hour(path: Path) -> None:
    async def main() -> None:
        async with serving(path), await trio.open_unix_socket(str(path)) as stream:
            assert await until_ended(stream) == b""
            assert trio.current_time() == pytest.approx(control.IDLE_S, rel=0.01)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_client_that_does_not_read_its_answers_is_ended_and_holds_nobody_up(path: Path) -> None:
    async def main() -> None:
        async with serving(path) as server:
            stalled = await trio.open_unix_socket(str(path))
            big = json.dumps(request("echo", text="x" * 500_000)).encode() + b"\n"
            await stalled.send_all(big)
            await trio.testing.wait_all_tasks_blocked()
            async with await trio.open_unix_socket(str(path)) as other:
                await other.send_all(PING)
                assert json.loads(await other.receive_some())["result"] == "pong"
                assert server._clients == 2
                await trio.sleep(control.STALLED_S * 1.1)
                assert server._clients == 1
            await stalled.aclose()

    run(main)


def test_a_report_that_is_not_read_does_not_fail_its_handler_and_waits_once(path: Path) -> None:
    async def main() -> None:
        done = trio.Event()

        async def work(params: Nothing, report: Report) -> Json:
            for _ in range(10):
                await report("x" * 500_000)
            done.set()
            return None

        async with serving(path, {"work": reporting(Nothing, work)}) as server:
            stalled = await trio.open_unix_socket(str(path))
            await stalled.send_all(json.dumps(request("work")).encode() + b"\n")
            began = trio.current_time()
            await done.wait()
            assert trio.current_time() - began == pytest.approx(control.STALLED_S)
            await trio.testing.wait_all_tasks_blocked()
            assert server._clients == 0
            await stalled.aclose()

    run(main)


def test_many_clients_that_all_fall_silent_leave_nothing_behind(path: Path) -> None:
    async def main() -> None:
        async with serving(path) as server:
            before = len(os.listdir("/proc/self/fd"))
            clients = [await trio.open_unix_socket(str(path)) for _ in range(limits.RPC_CLIENTS_MAX)]
            for client in clients:
                await client.send_all(b"{")
            await trio.sleep(control.HALF_MESSAGE_S * 1.1)
            assert server._clients == 0
            for client in clients:
                await client.aclose()
            assert len(os.listdir("/proc/self/fd")) == before

    run(main)


def test_a_process_without_descriptors_to_spare_lets_clients_in_when_it_has_some_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, object]:
            Exhausted.tries += 1
            if Exhausted.tries <= 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Exhausted)
            server = ControlServer(path, METHODS)
            server.bind()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve)
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(PING)
                assert json.loads(await stream.receive_some())["result"] == "pong"
                assert trio.current_time() == pytest.approx(3 * control.ACCEPT_PAUSE_S, rel=0.1)
            nursery.cancel_scope.cancel()

    run(main)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_cancelled_server_lets_nobody_in_while_it_waits_for_a_handler(path: Path) -> None:
    async def main() -> None:
        begun, go = trio.Event(), trio.Event()

        async def work(params: Nothing) -> Json:
            begun.set()
            with trio.CancelScope(shield=True):
                await go.wait()
            return None

        async with trio.open_nursery() as nursery:
            server = ControlServer(path, {"work": method(Nothing, work)})
            server.bind()
            nursery.start_soon(server.serve)
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(json.dumps(request("work")).encode() + b"\n")
                await begun.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                    assert not path.exists()
                    assert server._clients == 1
                    go.set()

    run(main)


# -- rounds of the loop ------------------------------------------------------------------------------------------------


async def rounds_until(done: Callable[[], bool]) -> int:
    for rounds in range(1000):
        if done():
            return rounds
        await trio.lowlevel.checkpoint()
    raise AssertionError("it does not come")


@pytest.mark.parametrize(("connected", "most"), [(True, 2), (False, 4)], ids=["connected", "new"])
def test_a_ping_takes_few_rounds_of_the_loop(path: Path, connected: bool, most: int) -> None:
    """Under full load a round comes every 2 ms; 50 ms is what a ping may take."""

    async def main() -> None:
        async with serving(path):
            with socket.socket(socket.AF_UNIX) as client:
                if connected:
                    client.connect(os.fspath(path))
                    client.sendall(PING)
                    client.setblocking(False)
                    await rounds_until(lambda: readable(client))
                    client.recv(1000)
                    await trio.testing.wait_all_tasks_blocked()
                else:
                    client.connect(os.fspath(path))
                client.setblocking(False)
                client.sendall(PING)
                assert await rounds_until(lambda: readable(client)) <= most
                assert json.loads(client.recv(1000))["result"] == "pong"

    trio.run(main)


def readable(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return False


def test_a_client_that_always_has_more_to_say_leaves_the_loop_to_others(path: Path) -> None:
    async def main() -> None:
        answered = 0

        def tick(params: Nothing) -> Json:
            nonlocal answered
            answered += 1
            return None

        async with serving(path, {"tick": method(Nothing, tick)}):
            notification = json.dumps({"jsonrpc": "2.0", "method": "tick"}).encode() + b"\n"
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(notification * 1000)
                await rounds_until(lambda: answered > 0)
                before = answered
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                assert answered - before <= 20

    trio.run(main)
