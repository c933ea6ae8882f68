"""The control socket from both ends, with methods of the test's own: server in a thread, clients as programs are.

What is about time runs in one loop with a clock that jumps (test_control_patience.py); parameters and messages without
a socket are in test_method.py and tests/test_jsonrpc.py.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import pytest
import trio

from tzfs import limits
from tzfs.control import ControlClient, connect
from tzfs.errors import (
    Busy,
    Exists,
    InternalError,
    InvalidArgument,
    LimitReached,
    NoSpace,
    NotFound,
    StoreError,
    TzfsError,
)
from tzfs.jsonrpc import Json, Params
from tzfs.mount.control import BATCH_MAX, ControlServer
from tzfs.mount.method import Declared, Handler, Report, method, reporting

ANSWER_S = 20.0  # far beyond any answer of a live server; what is late is hung


class Nothing(TypedDict):
    """No parameters."""


class Greeting(TypedDict):
    name: str
    times: NotRequired[int]


class Count(TypedDict):
    to: int


async def ping(params: Params) -> Json:
    return "pong"


def greet(params: Greeting) -> Json:
    return " ".join([f"hello {params['name']}"] * params.get("times", 1))


async def count(params: Count, report: Report) -> Json:
    for number in range(params["to"]):
        await report({"done": number})
    return params["to"]


async def count_in_threads(params: Count, report: Report) -> Json:
    async with trio.open_nursery() as nursery:
        for number in range(params["to"]):
            nursery.start_soon(
                trio.to_thread.run_sync, lambda n=number: trio.from_thread.run(report, "x" * 9000 + str(n))
            )
    return params["to"]


def failing(error: BaseException) -> Handler:
    def fail(params: Params) -> Json:
        raise error

    return fail


METHODS: dict[str, Handler | Declared] = {
    "ping": ping,
    "greet": method(Greeting, greet),
    "count": reporting(Count, count),
    "count.in.threads": reporting(Count, count_in_threads),
    "echo": lambda params: dict(params),
    "busy": failing(Busy("in use", holders=["pid 1", "pid 2"], hint="wait")),
    "space": failing(NoSpace("the disk is full")),
    "os": failing(OSError(28, "No space left on device")),
    "bug": failing(ZeroDivisionError("secret detail")),
    "no json": lambda params: cast(Json, b"bytes"),
    "not a number": lambda params: float("nan"),
    "much": lambda params: "x" * limits.RPC_MESSAGE_BYTES_MAX,
}


@contextmanager
def serving(path: Path, methods: dict[str, Handler | Declared] = METHODS) -> Iterator[ControlServer]:
    """A server in a thread of its own; it is cancelled at the end, whoever is connected."""
    server = ControlServer(path, methods)
    server.bind()
    up = threading.Event()
    handed: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []
    raised: list[BaseException] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve)
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    with serving(path) as server:
        yield server


@pytest.fixture
def client(server: ControlServer, path: Path) -> Iterator[ControlClient]:
    with connect(path, timeout_s=ANSWER_S) as client:
        yield client


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


@pytest.fixture
def raw(server: ControlServer, path: Path) -> Iterator[Raw]:
    raw = Raw(path)
    yield raw
    raw.close()


def request(name: str, number: object = 1, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "method": name, "params": params, "id": number}


def error_code(answer: dict[str, Json]) -> Json:
    error = answer["error"]
    assert isinstance(error, dict)
    return error["code"]


# -- calls -------------------------------------------------------------------------------------------------------------


def test_a_call_answers_what_the_handler_answers(client: ControlClient) -> None:
    assert client.call("ping") == "pong"
    assert client.call("greet", name="ws", times=2) == "hello ws hello ws"
    assert client.call("echo", a=[1, 2.5, None, True, {"b": "é\udc80"}]) == {
        "a": [1, 2.5, None, True, {"b": "é\udc80"}]
    }


def test_an_error_comes_out_as_the_class_it_was_with_hint_and_holders(client: ControlClient) -> None:
    with pytest.raises(Busy, match="^in use$") as caught:
        client.call("busy")
    assert caught.value.hint == "wait"
    assert caught.value.holders == ("pid 1", "pid 2")
    with pytest.raises(NoSpace, match="the disk is full"):
        client.call("space")
    with pytest.raises(NoSpace, match="os: No space left on device"):
        client.call("os")


def test_a_bug_says_only_that_it_is_one_and_the_log_has_it(
    client: ControlClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InternalError) as caught:
        client.call("bug")
    assert "secret" not in str(caught.value)
    assert "secret detail" in caplog.text
    assert client.call("ping") == "pong"


@pytest.mark.parametrize("name", ["no json", "not a number"])
def test_an_answer_that_is_no_json_ends_its_request_alone(client: ControlClient, name: str) -> None:
    with pytest.raises(InternalError):
        client.call(name)
    assert client.call("ping") == "pong"


def test_an_answer_beyond_the_limit_is_an_error_that_says_so(client: ControlClient) -> None:
    with pytest.raises(LimitReached, match="a message at most"):
        client.call("much")
    assert client.call("ping") == "pong"


def test_a_request_beyond_the_limit_is_not_sent(client: ControlClient) -> None:
    with pytest.raises(LimitReached):
        client.call("echo", text="x" * limits.RPC_MESSAGE_BYTES_MAX)
    assert client.call("ping") == "pong"


def test_the_largest_message_passes_both_ways(client: ControlClient) -> None:
    text = "x" * (limits.RPC_MESSAGE_BYTES_MAX - 100)
    assert client.call("echo", text=text) == {"text": text}


def test_an_unknown_method_and_wrong_parameters_are_the_callers_fault(client: ControlClient) -> None:
    with pytest.raises(InvalidArgument, match="no method 'nothing'"):
        client.call("nothing")
    with pytest.raises(InvalidArgument, match="parameter 'name' is missing"):
        client.call("greet")


def test_progress_comes_before_the_answer_and_belongs_to_its_request(client: ControlClient) -> None:
    heard: list[Json] = []
    assert client.call("count", to=3, progress=heard.append) == 3
    assert heard == [{"done": 0}, {"done": 1}, {"done": 2}]
    assert client.call("count", to=2) == 2  # nobody listens


def test_reports_from_several_threads_do_not_mix(client: ControlClient) -> None:
    heard: list[Json] = []
    assert client.call("count.in.threads", to=40, progress=heard.append) == 40
    assert sorted(str(text) for text in heard) == sorted("x" * 9000 + str(n) for n in range(40))


def test_a_client_reconnects(server: ControlServer, path: Path) -> None:
    for _ in range(3):
        with connect(path) as client:
            assert client.call("ping") == "pong"


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{\n",
        b"ping\n",
        b'{"jsonrpc": "2.0", "method": "ping", "id": NaN}\n',
        b"\xff\xfe\n",
        '{"jsonrpc": "2.0", "method": "ping", "id": 1}'.encode("utf-16-be") + b"\n",
        b"[" * 500_000 + b"\n",
        b'{"jsonrpc": "2.0", "method": "ping", "id": ' + b"9" * 5000 + b"}\n",
    ],
    ids=["empty", "cut off", "no json", "NaN", "no utf-8", "utf-16", "deep", "long number"],
)
def test_a_line_that_is_no_json_is_answered_so_and_the_connection_lives(raw: Raw, line: bytes) -> None:
    answer = raw.ask(line)
    assert error_code(answer) == -32700
    assert answer["id"] is None
    assert raw.ask(request("ping"))["result"] == "pong"


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (1, None),
        ("ping", None),
        (None, None),
        ({}, None),
        ({"jsonrpc": "1.0", "method": "ping", "id": 7}, 7),
        ({"jsonrpc": "2.0", "method": 1, "id": "x"}, "x"),
        ({"jsonrpc": "2.0", "id": 7}, 7),
        ({"jsonrpc": "2.0", "method": "ping", "id": True}, None),
        ({"jsonrpc": "2.0", "method": "ping", "id": [1]}, None),
        ({"jsonrpc": "2.0", "method": "ping", "params": "bar", "id": 7}, 7),
        ({"jsonrpc": "2.0", "method": "ping", "params": None, "id": 7}, 7),
        ([], None),
        ([{}] * (BATCH_MAX + 1), None),
    ],
)
def test_json_that_is_no_request_is_an_invalid_request(raw: Raw, message: object, number: object) -> None:
    answer = raw.ask(message)
    assert error_code(answer) == -32600
    assert answer["id"] == number
    assert raw.ask(request("ping"))["result"] == "pong"


def test_parameters_by_position_are_invalid(raw: Raw) -> None:
    assert error_code(raw.ask({"jsonrpc": "2.0", "method": "ping", "params": [1], "id": 1})) == -32602


def test_a_method_that_is_not_there_has_its_code(raw: Raw) -> None:
    assert error_code(raw.ask(request("nothing"))) == -32601


def test_an_error_of_ours_carries_its_code_class_errno_hint_and_holders(raw: Raw) -> None:
    assert raw.ask(request("busy"))["error"] == {
        "code": 3,
        "message": "in use",
        "data": {"type": "Busy", "errno": 16, "hint": "wait", "holders": ["pid 1", "pid 2"]},
    }


@pytest.mark.parametrize("number", [0, -1, 1.5, "a", "", None])
def test_the_answer_has_the_requests_id(raw: Raw, number: object) -> None:
    assert raw.ask(request("ping", number)) == {"jsonrpc": "2.0", "result": "pong", "id": number}


def test_notifications_are_carried_out_and_never_answered(path: Path) -> None:
    seen: list[Json] = []

    def note(params: Params) -> Json:
        seen.append(params["n"])
        return None

    with serving(path, {**METHODS, "note": note}):
        raw = Raw(path)
        raw.send({"jsonrpc": "2.0", "method": "note", "params": {"n": 1}})
        raw.send({"jsonrpc": "2.0", "method": "busy"})
        raw.send({"jsonrpc": "2.0", "method": "nothing"})
        raw.send({"jsonrpc": "2.0", "method": "ping", "params": [1]})
        raw.send({"jsonrpc": "2.0", "method": "count", "params": {"to": 3}})
        raw.send({"jsonrpc": "2.0", "method": "greet", "params": {}})
        assert raw.ask(request("ping", "only"))["id"] == "only"
        raw.close()
    assert seen == [1]


def test_a_batch_is_answered_as_one_and_leaves_notifications_out(raw: Raw) -> None:
    raw.send([request("ping", 1), {"jsonrpc": "2.0", "method": "ping"}, 1, request("nothing", 2), request("ping", 3)])
    answers = cast("list[dict[str, Json]]", raw.receive())
    assert [a["id"] for a in answers] == [1, None, 2, 3]
    assert [error_code(a) if "error" in a else a["result"] for a in answers] == ["pong", -32600, -32601, "pong"]


def test_a_batch_of_notifications_is_not_answered(raw: Raw) -> None:
    raw.send([{"jsonrpc": "2.0", "method": "ping"}] * 3)
    assert raw.ask(request("ping", "next"))["id"] == "next"


def test_a_batch_whose_answers_are_beyond_the_limit_is_answered_with_an_error(raw: Raw) -> None:
    half = "x" * (limits.RPC_MESSAGE_BYTES_MAX // 2)
    answer = raw.ask(
        [{"jsonrpc": "2.0", "method": "greet", "params": {"name": half[:200_000], "times": 3}, "id": 1}] * 2
    )
    assert error_code(answer) == 7


def test_many_messages_in_one_piece_are_answered_in_order(raw: Raw) -> None:
    raw.send(b"".join(json.dumps(request("ping", n)).encode() + b"\n" for n in range(1000)))
    assert [raw.receive()["id"] for n in range(1000)] == list(range(1000))


def test_a_message_in_many_pieces_is_one(raw: Raw) -> None:
    for byte in json.dumps(request("ping")).encode():
        raw.send(bytes((byte,)))
    assert raw.ask(b"\n")["result"] == "pong"


def test_a_client_that_has_said_all_is_still_answered(raw: Raw) -> None:
    raw.send(request("ping"))
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.receive()["result"] == "pong"
    assert raw.at_end()


def test_half_a_message_at_the_end_is_nothing(raw: Raw) -> None:
    raw.send(b'{"jsonrpc": "2.0"')
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.at_end()


def test_a_message_without_end_is_refused_and_ends_its_connection_alone(raw: Raw, path: Path) -> None:
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            raw.send(b"x" * 65536)
    assert error_code(raw.receive()) == -32600
    assert raw.at_end()
    with connect(path) as client:
        assert client.call("ping") == "pong"


# -- clients -----------------------------------------------------------------------------------------------------------


def test_as_many_clients_as_are_allowed_are_served_at_once_and_no_more(server: ControlServer, path: Path) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(path)) for _ in range(limits.RPC_CLIENTS_MAX)]
        assert [c.call("ping") for c in clients] == ["pong"] * limits.RPC_CLIENTS_MAX
        with connect(path) as late, pytest.raises(Busy, match=f"has {limits.RPC_CLIENTS_MAX} clients already"):
            late.call("ping")
        clients[0].close()
        assert clients[1].call("ping") == "pong"
        until_let_in(path)


def until_let_in(path: Path) -> None:
    """The server notices in its own time that a client has left."""
    for _ in range(10_000):
        with connect(path) as client:
            try:
                assert client.call("ping") == "pong"
                return
            except Busy:
                continue
    raise AssertionError("nobody is let in any more")


def test_concurrent_clients_get_each_their_own_answers(server: ControlServer, path: Path) -> None:
    wrong: list[object] = []
    together = threading.Barrier(limits.RPC_CLIENTS_MAX)

    def work(number: int) -> None:
        try:
            with connect(path, timeout_s=ANSWER_S) as client:
                together.wait(ANSWER_S)
                for n in range(20):
                    answer = client.call("echo", who=number, n=n, padding="x" * (97 * number))
                    if not isinstance(answer, dict) or (answer["who"], answer["n"]) != (number, n):
                        wrong.append(answer)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(limits.RPC_CLIENTS_MAX)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANSWER_S)
    assert not wrong


def test_a_handler_that_waits_holds_up_its_own_connection_alone(path: Path) -> None:
    go = threading.Event()

    async def wait(params: Params) -> Json:
        await trio.to_thread.run_sync(go.wait, ANSWER_S)
        return "waited"

    with serving(path, {**METHODS, "wait": wait}):
        first, second = Raw(path), Raw(path)
        first.send(request("wait", "a"))
        first.send(request("ping", "b"))
        assert second.ask(request("ping"))["result"] == "pong"
        go.set()
        assert [first.receive()["id"], first.receive()["id"]] == ["a", "b"]
        first.close()
        second.close()


def test_a_request_is_carried_out_though_its_client_has_gone(path: Path) -> None:
    go, done, begun = threading.Event(), threading.Event(), threading.Event()

    async def work(params: Params, report: Report) -> Json:
        begun.set()
        await trio.to_thread.run_sync(go.wait, ANSWER_S)
        for _ in range(100):
            await report("x" * 10_000)
        done.set()
        return None

    async def run(params: Nothing, report: Report) -> Json:
        return await work(cast(Params, params), report)

    with serving(path, {**METHODS, "work": reporting(Nothing, run)}):
        raw = Raw(path)
        raw.send(request("work"))
        assert begun.wait(ANSWER_S)
        raw.close()
        go.set()
        assert done.wait(ANSWER_S)
        with connect(path) as client:
            assert client.call("ping") == "pong"


# -- the socket's file -------------------------------------------------------------------------------------------------


def test_only_the_owner_may_connect(server: ControlServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == os.getuid()


def test_the_end_of_a_server_takes_its_file_away_and_ends_its_clients(path: Path) -> None:
    with serving(path):
        clients = [connect(path), connect(path)]
        half = Raw(path)
        half.send(b'{"half')
        assert clients[0].call("ping") == "pong"
    assert not path.exists()
    for client in clients:
        with pytest.raises(StoreError, match="ended the connection"):
            client.call("ping")
    assert half.at_end()
    half.close()
    with pytest.raises(NotFound, match="no mount listens"):
        connect(path)


def test_a_server_that_has_bound_and_never_served_takes_its_file_away(path: Path) -> None:
    server = ControlServer(path, METHODS)
    server.bind()
    assert path.exists()
    server.close()
    server.close()
    assert not path.exists()


def test_a_socket_left_by_a_crash_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(os.fspath(path))
        crashed.listen()
    with pytest.raises(NotFound):
        connect(path)
    with serving(path), connect(path) as client:
        assert client.call("ping") == "pong"


def test_a_second_server_is_refused_and_the_first_goes_on(server: ControlServer, path: Path) -> None:
    with pytest.raises(Exists, match="another process listens"):
        ControlServer(path, METHODS).bind()
    with connect(path) as client:
        assert client.call("ping") == "pong"


def test_a_server_that_is_too_busy_to_accept_counts_as_one(path: Path) -> None:
    with ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(os.fspath(path))
        busy.listen(0)
        for _ in range(2):  # its queue is full
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(os.fspath(path))
            except BlockingIOError:
                break
        with pytest.raises(Exists, match="another process listens"):
            ControlServer(path, METHODS).bind()
        with pytest.raises(StoreError, match=r"takes no connection within 0\.05 s"):
            connect(path, timeout_s=0.05)


def test_a_file_at_the_path_is_refused_and_kept(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(Exists, match="not a socket of ours"):
        ControlServer(path, METHODS).bind()
    assert path.read_text() == "precious"


@pytest.mark.parametrize("target", ["a file", "a socket", "nothing"])
def test_a_symbolic_link_at_the_path_is_refused_and_not_followed(path: Path, target: str) -> None:
    other = path.with_name("other")
    with socket.socket(socket.AF_UNIX) as listener:
        if target == "a file":
            other.write_text("precious")
        elif target == "a socket":
            listener.bind(os.fspath(other))
        path.symlink_to(other)
        with pytest.raises(Exists, match="not a socket of ours"):
            ControlServer(path, METHODS).bind()
        assert path.is_symlink()
        assert other.exists() == (target != "nothing")


@pytest.mark.needs("root")
def test_another_users_socket_at_the_path_is_refused_and_kept(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(os.fspath(path))
    os.chown(path, 12345, 12345)
    with pytest.raises(Exists, match="not a socket of ours"):
        ControlServer(path, METHODS).bind()
    assert path.exists()


def test_another_socket_that_has_taken_the_path_is_left_alone_at_the_end(path: Path) -> None:
    first = ControlServer(path, METHODS)
    first.bind()
    path.unlink()
    second = ControlServer(path, METHODS)
    second.bind()
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_a_directory_that_is_not_there_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StoreError, match="control socket"):
        ControlServer(tmp_path / "absent" / "control.sock", METHODS).bind()
    assert os.listdir("/proc/self/fd") == before


def test_a_path_beyond_an_addresss_length_serves_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    path = folder / "control.sock"
    with serving(path), connect(path) as client:
        assert client.call("ping") == "pong"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(Exists):
            ControlServer(path, METHODS).bind()
    assert not path.exists()


# -- the other end is not what it should be ------------------------------------------------------------------------------


@contextmanager
def answering(path: Path, conversation: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server that takes one client and does as it is told."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()

    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            conversation(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(ANSWER_S)
        listener.close()
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "ended the connection"),
        (b'{"jsonrpc": "2.0", "id": 1', "ended the connection"),
        (b"hello\n", "something else than JSON-RPC"),
        (b"[1]\n", "something else than JSON-RPC"),
        (b"x" * (limits.RPC_MESSAGE_BYTES_MAX + 65536), "more than a message may have"),
    ],
    ids=["nothing", "half", "no json", "no object", "too much"],
)
def test_what_is_no_answer_is_the_mounts_fault(path: Path, answer: bytes, message: str) -> None:
    def conversation(connection: socket.socket) -> None:
        connection.recv(65536)
        try:
            connection.sendall(answer)
        except (BrokenPipeError, ConnectionResetError):
            return

    with answering(path, conversation), connect(path) as client, pytest.raises(StoreError, match=message):
        client.call("ping")


def test_answers_to_other_requests_are_passed_over(path: Path) -> None:
    def conversation(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b'{"jsonrpc": "2.0", "result": "old", "id": 0}\n')
        connection.sendall(b'{"jsonrpc": "2.0", "method": "progress", "params": {"id": 0, "value": 1}}\n')
        connection.sendall(b'{"jsonrpc": "2.0", "result": "new", "id": 1}\n')

    heard: list[Json] = []
    with answering(path, conversation), connect(path) as client:
        assert client.call("ping", progress=heard.append) == "new"
    assert heard == []


def test_a_silent_mount_is_given_up_after_the_time_that_was_said(path: Path) -> None:
    go = threading.Event()
    with answering(path, lambda connection: cast(None, go.wait(ANSWER_S))), connect(path) as client:
        with pytest.raises(StoreError, match=r"no answer within 0\.05 s") as caught:
            client.call("ping", timeout_s=0.05)
        go.set()
    assert caught.value.hint == "tzfs status shows whether the mount is alive"


def test_where_nobody_listens_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        connect(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(NotFound):
        connect(tmp_path / "file")
    with pytest.raises(NotFound):
        connect(tmp_path / "absent" / ("long" * 40) / "socket")


def test_every_class_of_error_crosses_the_socket_as_itself(path: Path) -> None:
    def classes(cls: type[TzfsError]) -> Iterator[type[TzfsError]]:
        yield cls
        for below in cls.__subclasses__():
            yield from classes(below)

    known = [cls for cls in classes(TzfsError) if cls.__module__ == "tzfs.errors"]
    table: dict[str, Handler | Declared] = {cls.__name__: failing(cls("message", hint="hint")) for cls in known}
    with serving(path, table), connect(path) as client:
        for cls in known:
            with pytest.raises(TzfsError, match="^message$") as caught:
                client.call(cls.__name__)
            assert type(caught.value) is cls
            assert caught.value.hint == "hint"
