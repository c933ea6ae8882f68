"""The control socket's file, who may connect, and peers that are not what they should be."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest

from tests.mount.controlled import ANSWER_S, METHODS, Raw, serving
from tzfs import limits
from tzfs.control import connect
from tzfs.errors import Exists, NotFound, StoreError
from tzfs.jsonrpc import Json
from tzfs.mount.control import ControlServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    with serving(path) as server:
        yield server


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


def test_of_many_servers_that_race_for_a_stale_socket_one_wins_and_can_be_reached(path: Path) -> None:
    racers = 8
    together = threading.Barrier(racers)
    bound: list[ControlServer] = []
    refused: list[Exception] = []

    def race() -> None:
        server = ControlServer(path, METHODS)
        together.wait(ANSWER_S)
        try:
            server.bind()
            bound.append(server)
        except Exists as error:
            refused.append(error)

    for _ in range(40):
        with socket.socket(socket.AF_UNIX) as crashed:
            crashed.bind(os.fspath(path))
        threads = [threading.Thread(target=race) for _ in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ANSWER_S)
        assert (len(bound), len(refused)) == (1, racers - 1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
        bound.pop().close()
        refused.clear()


def test_sockets_that_crashed_mounts_of_the_same_filesystem_have_left_go_with_the_next_one(tmp_path: Path) -> None:
    left, lives, others, file = (tmp_path / name for name in ("ws.1.sock", "ws.2.sock", "wsx.1.sock", "ws.3.sock"))
    for path in (left, others):
        with socket.socket(socket.AF_UNIX) as crashed:
            crashed.bind(os.fspath(path))
    file.touch()
    with serving(lives), serving(tmp_path / "ws.rw.sock"), connect(lives) as client:
        assert client.call("ping") == "pong"
        assert (left.exists(), others.exists(), file.exists()) == (False, True, True)


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


# -- the other end is not what it should be ----------------------------------------------------------------------------


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
        assert client.ask("ping", {}, progress=heard.append) == "new"
    assert heard == []


def test_a_silent_mount_is_given_up_after_the_time_that_was_said(path: Path) -> None:
    go = threading.Event()
    with answering(path, lambda connection: cast(None, go.wait(ANSWER_S))), connect(path) as client:
        with pytest.raises(StoreError, match=r"no answer within 0\.05 s") as caught:
            client.ask("ping", {}, timeout_s=0.05)
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


# -- other users -------------------------------------------------------------------------------------------------------

OTHER = 12345


@contextmanager
def as_another_user(work: Callable[[], str]) -> Iterator[Callable[[], str]]:
    """`work` in a process of another user's, forked before the body (and its threads) and run when it is called."""
    go_read, go_write = os.pipe()
    told_read, told_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go_write)
            os.read(go_read, 1)
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            try:
                told = work()
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
            os.write(told_write, told.encode())
        finally:
            os._exit(0)
    os.close(told_write)
    os.close(go_read)

    def run() -> str:
        os.write(go_write, b"x")
        with os.fdopen(os.dup(told_read), "r") as pipe:
            return pipe.read()

    try:
        yield run
    finally:
        os.close(go_write)
        os.close(told_read)
        os.waitpid(child, 0)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A path in a folder that everybody may enter, and where everybody may make files."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder, "control.sock")


@pytest.mark.needs("root")
def test_another_user_cannot_connect(open_to_all: Path) -> None:
    with as_another_user(lambda: str(connect(open_to_all).call("ping"))) as run, serving(open_to_all):
        assert run() == f"PermissionDenied: {open_to_all}: the mount is another user's"


@pytest.mark.needs("root")
def test_another_user_that_gets_past_the_sockets_mode_is_turned_away_by_its_credentials(open_to_all: Path) -> None:
    def ask() -> str:
        raw = Raw(open_to_all)
        answer = raw.receive()
        assert raw.at_end()
        return json.dumps(answer["error"])

    with as_another_user(ask) as run, serving(open_to_all):
        open_to_all.chmod(0o666)
        error = json.loads(run())
        assert error["data"]["type"] == "NotPermitted"
        assert error["message"] == f"the mount is user 0's, not user {OTHER}'s"
        with connect(open_to_all) as client:
            assert client.call("ping") == "pong"


@pytest.mark.needs("root")
def test_root_may_talk_to_another_users_mount(open_to_all: Path) -> None:
    def serve() -> str:
        with serving(open_to_all):
            os.write(ready_write, b"x")
            os.read(done_read, 1)
        return "served"

    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    with as_another_user(serve) as run:
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(run()))
        waiting.start()
        os.read(ready_read, 1)
        with connect(open_to_all) as client:
            assert client.call("ping") == "pong"
        os.write(done_write, b"x")
        waiting.join(ANSWER_S)
        assert answers == ["served"]
    for fd in (ready_read, ready_write, done_read, done_write):
        os.close(fd)


@pytest.mark.needs("root")
def test_a_client_tells_nothing_to_a_stranger_who_listens_in_its_mounts_place(open_to_all: Path) -> None:
    """A user's client finds a third user's socket: the roles of as_another_user are those of client and stranger."""
    stranger = OTHER + 1
    with socket.socket(socket.AF_UNIX) as listener, as_another_user(lambda: str(connect(open_to_all))) as run:
        os.seteuid(stranger)  # the kernel hands out the effective user who called listen
        try:
            listener.bind(os.fspath(open_to_all))
            listener.listen()
        finally:
            os.seteuid(0)
        open_to_all.chmod(0o666)
        assert run() == f"NotPermitted: {open_to_all}: user {stranger} listens there"
