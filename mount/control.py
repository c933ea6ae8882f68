"""The control socket's server: JSON-RPC 2.0 over a Unix socket, on the mount's trio loop.

States of a server: made -> bound (`bind`) -> serving (`serve`) -> closed (`close`, or the end of `serve`).

The socket is mode 0600 in the user's runtime directory, and each peer's credentials are checked besides: the same user
or root.  Each connection's requests are answered in order; connections do not wait for each other.  Invariants:

* Whatever a client sends or leaves undone ends at most its own connection.  A message must be whole within
  `HALF_MESSAGE_S` of its first byte, an answer taken within `STALLED_S`; who is turned away or ended is told why where
  that needs no waiting.
* Nothing a handler raises or answers ends more than its request, cancellation apart.  A request once begun is carried
  to its end, also when its client has gone.
* A request costs trio two rounds of its loop from the first byte to the last: sockets are tried before they are waited
  for, since under load a round comes once in 2 ms (`pump.TURN_MAX_NS`).
"""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from tzfs import jsonrpc, limits
from tzfs.errors import Busy, Exists, LimitReached, NotPermitted, TzfsError, from_os_error
from tzfs.jsonrpc import Json, ProtocolError, Request
from tzfs.mount.method import Declared, Report
from tzfs.runtime import socket_address

log = logging.getLogger(__name__)

HALF_MESSAGE_S: Final = 10.0  # how long a message may take to arrive once it has begun
STALLED_S: Final = 10.0  # how long a client may leave its answer unread
IDLE_S: Final = 3600.0  # how long a client may say nothing; it holds one of limits.RPC_CLIENTS_MAX places
BATCH_MAX: Final = 100
ACCEPT_PAUSE_S: Final = 0.1  # until the next try when the process has no descriptor left
_RECEIVE_BYTES: Final = 65536
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


async def nothing_queued() -> None:
    """There is nothing to catch up with."""


class ControlServer:
    """Serves `methods` at `path` until cancelled.  Those that are not `at_once` begin when `catch_up` has returned,
    which is called once a message."""

    def __init__(
        self, path: Path, methods: Mapping[str, Declared], catch_up: Callable[[], Awaitable[None]] = nothing_queued
    ) -> None:
        self._path, self._methods, self._catch_up = path, methods, catch_up
        self._clients = 0
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None  # of the socket's file: another's at our path is left alone

    def bind(self) -> None:
        """Takes the path and listens; a socket left by a process that is gone is replaced.

        So are those beside it that begin with the same word, up to the first dot: of mounts of the same filesystem.
        `Exists` where somebody listens, and for anything that is not a socket of ours.
        """
        assert self._listener is None
        with _alone_in(self._path):
            self._clear_the_way()
            for sibling in self._path.parent.glob(f"{glob.escape(self._path.name.partition('.')[0])}.*.sock"):
                _remove_stale(sibling)
            self._listen()

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with socket_address(self._path) as address:
                listener.bind(address)
            made = os.lstat(self._path)
            self._identity = (made.st_dev, made.st_ino)
            self._listener = listener
            os.chmod(self._path, 0o600)  # before `listen`: until then nobody can connect
            listener.listen(limits.RPC_CLIENTS_MAX)
        except OSError as error:
            listener.close()
            self.close()
            raise from_os_error(error, f"control socket {self._path}") from error

    def _clear_the_way(self) -> None:
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise from_os_error(error, f"control socket {self._path}") from error
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
            raise Exists(f"{self._path} exists and is not a socket of ours", hint="remove it")
        if not _remove_stale(self._path):
            raise Exists(f"another process listens at {self._path}")

    def close(self) -> None:
        """Takes the path away and stops listening.  Not while `serve` runs: that is cancelled, and closes itself."""
        if self._identity is not None:
            with suppress(OSError):
                found = os.lstat(self._path)
                if (found.st_dev, found.st_ino) == self._identity:
                    os.unlink(self._path)
            self._identity = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def serve(self) -> None:
        """Serves until cancelled, then closes; binds first if that has not been done.

        When it is cancelled nobody is let in any more, and it returns when the handlers that are under way have.
        """
        if self._listener is None:
            self.bind()
        listener = self._listener
        assert listener is not None
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    await trio.lowlevel.wait_readable(listener.fileno())
                    if not self._accept(listener, nursery):
                        await trio.sleep(ACCEPT_PAUSE_S)
            finally:
                self.close()

    def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> bool:
        """Lets in who waits; False where that cannot be done at the moment."""
        for _ in range(limits.RPC_CLIENTS_MAX):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                log.warning("control: no client can be let in: %s", error)
                return error.errno == errno.ECONNABORTED
            client.setblocking(False)
            refusal = self._refusal(client)
            if refusal is None:
                self._clients += 1
                nursery.start_soon(self._client, client)
                continue
            log.warning("control: a client was turned away: %s", refusal)
            with client, suppress(OSError):
                client.send(jsonrpc.encode(jsonrpc.failure(refusal, None)))
        return True

    def _refusal(self, client: socket.socket) -> TzfsError | None:
        try:
            _, uid, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        except OSError as error:
            return from_os_error(error, "peer credentials")
        if uid not in (os.getuid(), 0):
            return NotPermitted(f"the mount is user {os.getuid()}'s, not user {uid}'s")
        if self._clients >= limits.RPC_CLIENTS_MAX:
            return Busy(f"the mount has {limits.RPC_CLIENTS_MAX} clients already", hint="try again when one has left")
        return None

    async def _client(self, client: socket.socket) -> None:
        try:
            with client:
                await _Conversation(client, self._methods, self._catch_up).run()
        except (OSError, trio.TooSlowError) as error:
            log.info("control: a client was lost: %s", error or "it was silent, or did not read its answers")
        except Exception:
            log.exception("control: a conversation failed")
        finally:
            self._clients -= 1


class _Conversation:
    """One connection, from the first message to the last."""

    def __init__(
        self,
        client: socket.socket,
        methods: Mapping[str, Declared],
        catch_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._socket, self._methods, self._catch_up = client, methods, catch_up
        self._caught_up = False  # since the message came
        self._received = bytearray()
        self._reporting = trio.Lock()  # two tasks of one handler may report at a time
        self._lost = False  # a report could not be sent whole: nothing sensible can follow it
        self._stream: trio.CancelScope | None = None  # of the method that reports until it is spoken to

    async def run(self) -> None:
        """Answers until the client leaves.  `OSError` and `trio.TooSlowError` where it is lost."""
        try:
            while not self._lost and (line := await self._line()) is not None:
                answer = await self._answer(line)
                if answer is not None and not self._lost:
                    await self._send(answer + b"\n")
                await trio.lowlevel.checkpoint()  # one that always has more to say must not keep the loop to itself
        except ProtocolError as error:
            with suppress(BlockingIOError):
                self._socket.send(jsonrpc.encode(jsonrpc.failure(error, None)))

    # -- bytes -------------------------------------------------------------------------------------------------------

    async def _line(self) -> bytes | None:
        """The next line without its end; None where there is none.  `ProtocolError` for one that cannot be taken."""
        scanned = 0
        late = ProtocolError(jsonrpc.INVALID_REQUEST, f"the message was not whole within {HALF_MESSAGE_S:g} s")
        with trio.move_on_after(HALF_MESSAGE_S if self._received else IDLE_S) as patience:
            while (end := self._received.find(b"\n", scanned)) < 0:
                scanned = len(self._received)
                if scanned > limits.RPC_MESSAGE_BYTES_MAX:
                    raise jsonrpc.too_long()
                part = await self._receive()
                if not part:
                    return None
                if not scanned:
                    patience.deadline = trio.current_time() + HALF_MESSAGE_S
                self._received += part
        if patience.cancelled_caught:
            if self._received:
                raise late
            raise trio.TooSlowError
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    async def _receive(self) -> bytes:
        while True:
            try:
                return self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket.fileno())

    async def _send(self, message: bytes) -> None:
        rest = memoryview(message)
        with trio.fail_after(STALLED_S):
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket.fileno())

    # -- messages ----------------------------------------------------------------------------------------------------

    async def _answer(self, line: bytes) -> bytes | None:
        """The answer to a line, without its end; None where there is none to give."""
        self._caught_up = False
        try:
            message = jsonrpc.decode(line)
            if isinstance(message, list) and not 0 < len(message) <= BATCH_MAX:
                raise ProtocolError(jsonrpc.INVALID_REQUEST, f"a batch has 1 to {BATCH_MAX} requests")
        except ProtocolError as error:
            return _failure(error, None)
        if not isinstance(message, list):
            return await self._one(message)
        answers = [answer for one in message if (answer := await self._one(one)) is not None]
        return _bounded(b"[" + b",".join(answers) + b"]", None) if answers else None

    async def _one(self, message: Json) -> bytes | None:
        try:
            request = jsonrpc.parse_request(message)
        except ProtocolError as error:
            return _failure(error, jsonrpc.id_of(message))
        try:
            value = await self._call(request)
            answer = jsonrpc.encode(jsonrpc.result(value, request.number))[:-1]
        except TzfsError as error:
            answer = _failure(error, request.number)
        except OSError as error:
            log.warning("control: %s: %s", request.method, error)
            answer = _failure(from_os_error(error, request.method), request.number)
        except Exception as error:
            log.exception("control: %s failed", request.method)
            answer = _failure(error, request.number)
        return _bounded(answer, request.number) if request.answered else None

    async def _call(self, request: Request) -> Json:
        run = self._methods.get(request.method)
        if run is None:
            raise ProtocolError(jsonrpc.METHOD_NOT_FOUND, f"no method {request.method!r}")
        if request.params is None:
            raise ProtocolError(jsonrpc.INVALID_PARAMS, "parameters are given by name")
        if not run.at_once and not self._caught_up:
            await self._catch_up()
            self._caught_up = True
        value = run.call(request.params, self._report(request))
        if not isinstance(value, Awaitable):
            return value
        return await (self._until_spoken_to(value) if run.endless else value)

    async def _until_spoken_to(self, stream: Awaitable[Json]) -> Json:
        """Runs what reports without an end, until the client leaves, is lost, or sends something."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._stream = nursery.cancel_scope
            nursery.start_soon(self._end_stream_when_spoken_to)
            try:
                await stream
            except Exception as error:  # raised below, outside of the nursery, as itself
                failure = error
            nursery.cancel_scope.cancel()
        self._stream = None
        if failure is not None:
            raise failure
        return None

    async def _end_stream_when_spoken_to(self) -> None:
        if not self._received:
            await trio.lowlevel.wait_readable(self._socket.fileno())
        assert self._stream is not None
        self._stream.cancel()

    def _report(self, request: Request) -> Report:
        async def report(value: Json) -> None:
            if not request.answered:
                return
            message = jsonrpc.encode(jsonrpc.progress(value, request.number))
            async with self._reporting:
                if self._lost:
                    return
                try:
                    await self._send(message)
                except (OSError, trio.TooSlowError):
                    self._lost = True
                    if self._stream is not None:
                        self._stream.cancel()
                except trio.Cancelled:
                    self._lost = True
                    raise

        return report


def _failure(error: BaseException, number: Json) -> bytes:
    return jsonrpc.encode(jsonrpc.failure(error, number))[:-1]


def _bounded(answer: bytes, number: Json) -> bytes:
    if len(answer) < limits.RPC_MESSAGE_BYTES_MAX:
        return answer
    most = limits.RPC_MESSAGE_BYTES_MAX
    return _failure(LimitReached(f"the answer has {len(answer)} bytes, a message at most {most}"), number)


@contextmanager
def _alone_in(path: Path) -> Iterator[None]:
    """Within the body nobody else takes a path in the same folder: from a look at it until somebody listens there."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"control socket {path}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _remove_stale(path: Path) -> bool:
    """Removes a socket of ours at which nobody listens; False if somebody does."""
    try:
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid():
            if _somebody_listens(path):
                return False
            path.unlink()
    except FileNotFoundError:
        pass
    return True


def _somebody_listens(path: Path) -> bool:
    """Whether a process has the socket; one that is too busy to take the call counts."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with socket_address(path) as address:
            probe.connect(address)
    except OSError as error:
        return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    finally:
        probe.close()
    return True
