"""The control socket's server: JSON-RPC 2.0 over a Unix socket, on the mount's trio loop.

The socket is mode 0600 in the user's runtime directory, and each peer's credentials are checked besides.  A client that
is slow, silent half-way through a message, or does not read its answers is ended after a time and holds nobody up; one
that sends too long a message is told so and ended.  Each connection's requests are answered in order.

A method is an async function from its parameters to a JSON value; it runs on the trio thread, and what blocks belongs
in a worker thread.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio

from tzfs import jsonrpc, limits
from tzfs.errors import Exists, TzfsError, from_os_error
from tzfs.jsonrpc import Json, Params, ProtocolError

log = logging.getLogger(__name__)

HALF_MESSAGE_S = 10.0  # how long a message may take to arrive once it has begun
STALLED_S = 10.0  # how long a client may leave its answer unread
IDLE_S = 3600.0
BATCH_MAX = 100
_CREDENTIALS = struct.Struct("3i")

Method = Callable[[Params], Awaitable[Json]]


class ControlServer:
    """Serves `methods` at `path` until cancelled."""

    def __init__(self, path: Path, methods: Mapping[str, Method]) -> None:
        self._path, self._methods = path, methods
        self._clients = 0
        self._socket: socket.socket | None = None

    def bind(self) -> None:
        """Takes the path; one left by a process that is gone is replaced.  `Exists` where somebody listens, or for
        anything that is not a socket of ours."""
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
                raise Exists(f"{self._path} exists and is not a socket of ours", hint="remove it")
            if _somebody_listens(self._path):
                raise Exists(f"another process listens at {self._path}")
            self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(self._path))
            listener.listen(limits.RPC_CLIENTS_MAX)
        except OSError as error:
            listener.close()
            raise from_os_error(error, f"control socket {self._path}") from error
        finally:
            os.umask(before)
        self._socket = listener

    def close(self) -> None:
        """Stops listening and takes the path away."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    async def serve(self) -> None:
        """Accepts clients until cancelled; `bind` comes before."""
        assert self._socket is not None
        listener = trio.socket.from_stdlib_socket(self._socket)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    client, _ = await listener.accept()
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                        raise
                    await trio.sleep(0.1)
                    continue
                if self._clients >= limits.RPC_CLIENTS_MAX or not _welcome(client):
                    client.close()
                    continue
                self._clients += 1
                nursery.start_soon(self._client, trio.SocketStream(client))

    async def _client(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            self._clients -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        received = bytearray()
        while True:
            while b"\n" not in received:
                if len(received) > limits.RPC_MESSAGE_BYTES_MAX:
                    error = ProtocolError(
                        jsonrpc.INVALID_REQUEST, f"a message has at most {limits.RPC_MESSAGE_BYTES_MAX} bytes"
                    )
                    await self._send(stream, jsonrpc.failure(error, None))
                    return
                with trio.fail_after(HALF_MESSAGE_S if received else IDLE_S):
                    part = await stream.receive_some(65536)
                if not part:
                    return
                received += part
            line, _, rest = bytes(received).partition(b"\n")
            received = bytearray(rest)
            answer = await self._answer(line)
            if answer is not None:
                await self._send(stream, answer)

    @staticmethod
    async def _send(stream: trio.SocketStream, message: Json) -> None:
        with trio.fail_after(STALLED_S):
            await stream.send_all(jsonrpc.encode(message))

    async def _answer(self, line: bytes) -> Json:
        """The answer to a line; None where there is none to give."""
        try:
            message = jsonrpc.decode(line)
            if isinstance(message, list) and not 0 < len(message) <= BATCH_MAX:
                raise ProtocolError(jsonrpc.INVALID_REQUEST, f"a batch has 1 to {BATCH_MAX} requests")
        except ProtocolError as error:
            return jsonrpc.failure(error, None)
        if not isinstance(message, list):
            return await self._one(message)
        answers: list[Json] = [answer for one in message if (answer := await self._one(one)) is not None]
        return answers or None

    async def _one(self, message: Json) -> Json:
        number = message.get("id") if isinstance(message, dict) else None
        try:
            name, params, number, answered = jsonrpc.parse_request(message)
            method = self._methods.get(name)
            if method is None:
                raise ProtocolError(jsonrpc.METHOD_NOT_FOUND, f"no method {name!r}")
            value = await method(params)
        except (TzfsError, OSError) as error:
            known = error if isinstance(error, TzfsError) else from_os_error(error, "request")
            return jsonrpc.failure(known, number if isinstance(number, int | float | str) else None)
        except Exception as error:
            log.exception("control: request failed")
            return jsonrpc.failure(error, number)
        return jsonrpc.result(value, number) if answered else None


def _welcome(client: trio.socket.SocketType) -> bool:
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    if uid in (os.getuid(), 0):
        return True
    log.warning("control: user %d was turned away", uid)
    return False


def _somebody_listens(path: Path) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        probe.connect(os.fspath(path))
    except OSError:
        return False
    finally:
        probe.close()
    return True
