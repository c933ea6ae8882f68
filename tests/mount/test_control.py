"""Calls and messages over the control socket: server in a thread, clients as programs are.

The socket itself, and peers that are not what they should be: test_control_socket.py.  What is about time runs in one
loop with a clock that jumps: test_control_patience.py.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import trio

from tests.mount.controlled import ANSWER_S, METHODS, Raw, anything, error_code, failing, request, serving
from tzfs import limits
from tzfs.control import ControlClient, connect
from tzfs.errors import Busy, InternalError, InvalidArgument, LimitReached, NoSpace, TzfsError
from tzfs.jsonrpc import Json, Params
from tzfs.mount.control import BATCH_MAX, ControlServer
from tzfs.mount.method import Nothing, Report, method, reporting


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


@pytest.fixture
def raw(server: ControlServer, path: Path) -> Iterator[Raw]:
    raw = Raw(path)
    yield raw
    raw.close()


# -- calls -------------------------------------------------------------------------------------------------------------


def test_a_call_answers_what_the_handler_answers(client: ControlClient) -> None:
    assert client.call("ping") == "pong"
    assert client.call("greet", name="ws", times=2) == "hello ws hello ws"
    assert client.call("echo", a=[1, 2.5, None, True, {"b": "é\udc80"}]) == {
        "a": [1, 2.5, None, True, {"b": "é\udc80"}]
    }


def test_an_error_comes_out_as_the_class_it_was_with_hint_and_holders(client: ControlClient) -> None:
    with pytest.raises(Busy, match=r"^in use$") as caught:
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
    assert client.ask("count", {"to": 3}, progress=heard.append) == 3
    assert heard == [{"done": 0}, {"done": 1}, {"done": 2}]
    assert client.call("count", to=2) == 2  # nobody listens


def test_reports_from_several_threads_do_not_mix(client: ControlClient) -> None:
    heard: list[Json] = []
    assert client.ask("count.in.threads", {"to": 40}, progress=heard.append) == 40
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
        b'{"jsonrpc": "2.0", "method": "ping", "id": 1e400}\n',
        b'[{"jsonrpc": "2.0", "method": "ping", "id": -1e400}]\n',
        b'{"jsonrpc": "2.0", "method": "ping", "id": ' + b"9" * 5000 + b"}\n",
    ],
    ids=["empty", "cut off", "no json", "NaN", "no utf-8", "utf-16", "deep", "large", "small", "long number"],
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

    with serving(path, {**METHODS, "note": anything(note)}):
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


def test_what_is_queued_is_caught_up_with_once_a_message_and_not_for_what_is_answered_at_once(path: Path) -> None:
    caught: list[str] = []

    async def catch_up() -> None:
        await trio.lowlevel.checkpoint()
        caught.append("up")

    methods = {**METHODS, "at once": replace(METHODS["ping"], at_once=True)}
    with serving(path, methods, catch_up), connect(path) as client:
        assert client.call("at once") == "pong"
        assert caught == []
        assert client.call("ping") == "pong"
        assert caught == ["up"]
    with serving(path, methods, catch_up):
        raw = Raw(path)
        assert len(raw.ask([request("ping", number=n) for n in range(20)])) == 20
        raw.close()
    assert caught == ["up", "up"]


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
    with suppress(BrokenPipeError, ConnectionResetError):  # it may be ended before all of it is sent
        raw.send(b"x" * (limits.RPC_MESSAGE_BYTES_MAX + 1_000_000))
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

    async def wait(params: Nothing) -> Json:
        await trio.to_thread.run_sync(go.wait, ANSWER_S)
        return "waited"

    with serving(path, {**METHODS, "wait": method(Nothing, wait)}):
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

    async def work(params: Nothing, report: Report) -> Json:
        begun.set()
        await trio.to_thread.run_sync(go.wait, ANSWER_S)
        for _ in range(100):
            await report("x" * 10_000)
        done.set()
        return None

    with serving(path, {**METHODS, "work": reporting(Nothing, work)}):
        raw = Raw(path)
        raw.send(request("work"))
        assert begun.wait(ANSWER_S)
        raw.close()
        go.set()
        assert done.wait(ANSWER_S)
        with connect(path) as client:
            assert client.call("ping") == "pong"


def test_every_class_of_error_crosses_the_socket_as_itself(path: Path) -> None:
    def classes(cls: type[TzfsError]) -> Iterator[type[TzfsError]]:
        yield cls
        for below in cls.__subclasses__():
            yield from classes(below)

    known = [cls for cls in classes(TzfsError) if cls.__module__ == "tzfs.errors"]
    table = {cls.__name__: failing(cls("message", hint="hint")) for cls in known}
    with serving(path, table), connect(path) as client:
        for cls in known:
            with pytest.raises(TzfsError, match=r"^message$") as caught:
                client.call(cls.__name__)
            assert type(caught.value) is cls
            assert caught.value.hint == "hint"
