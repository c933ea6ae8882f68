"""The client of a mount's control socket: synchronous, without trio.

    with connect(socket_path) as mount:
        mount.call("snapshot.create", name="before")

The other end is the user's own daemon (or root's): its credentials are checked before anything is sent.  Root may talk
to anybody's.  A connection on which the protocol was broken, or an answer waited for in vain, is of no more use.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from tzfs import jsonrpc, limits
from tzfs.errors import LimitReached, NotFound, NotPermitted, PermissionDenied, StoreError
from tzfs.jsonrpc import Json, Params
from tzfs.runtime import socket_address

TIMEOUT_S: Final = 60.0
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_TIMEVAL: Final = struct.Struct("ll")


class ControlClient:
    """A connection to one mount.  Not to be shared between threads."""

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self._socket, self._path = connection, path
        self._received = bytearray()
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def hang_up(self) -> None:
        """Ends a call that another thread waits in: it raises `StoreError` there."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def call(self, method: str, /, **params: Json) -> Json:
        """The method's result, within `TIMEOUT_S`; otherwise as `ask`."""
        return self.ask(method, params)

    def ask(
        self,
        method: str,
        params: Params,
        *,
        progress: Callable[[Json], None] | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> Json:
        """The method's result; `progress` hears how far it has come, where the method tells.

        `timeout_s` bounds the silence between two messages of the mount, not the whole; None waits for ever, as it
        should for what may rightly take long.  Raises what the mount raised; `StoreError` where it does not answer,
        `LimitReached` for a request that is too long to be sent.
        """
        self._number += 1
        line = jsonrpc.encode(jsonrpc.request(method, params, self._number))
        if len(line) > limits.RPC_MESSAGE_BYTES_MAX:
            raise LimitReached(f"a message has at most {limits.RPC_MESSAGE_BYTES_MAX} bytes, this one {len(line)}")
        try:
            self._socket.settimeout(timeout_s)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # turned away: what was said is there
                self._socket.sendall(line)
            while True:
                message = self._message()
                if message.get("method") == jsonrpc.PROGRESS:
                    self._tell(message.get("params"), progress)
                elif message.get("id") == self._number or (message.get("id") is None and "error" in message):
                    if "error" in message:
                        raise jsonrpc.revive(message["error"])
                    return message.get("result")
        except TimeoutError:
            self.close()
            raise StoreError(
                f"{self._path}: no answer within {timeout_s or 0:g} s",
                hint="tzfs status shows whether the mount is alive",
            ) from None
        except OSError as error:
            self.close()
            raise StoreError(f"{self._path}: {os.strerror(error.errno or 0)}") from error

    def _tell(self, params: Json, progress: Callable[[Json], None] | None) -> None:
        if progress is not None and isinstance(params, dict) and params.get("id") == self._number:
            progress(params.get("value"))

    def _message(self) -> dict[str, Json]:
        line = self._line()
        try:
            message = jsonrpc.decode(line)
        except jsonrpc.ProtocolError:
            message = None
        if not isinstance(message, dict):
            self.close()
            raise StoreError(f"{self._path}: the mount answered something else than JSON-RPC")
        return message

    def _line(self) -> bytes:
        scanned = 0
        while (end := self._received.find(b"\n", scanned)) < 0:
            scanned = len(self._received)
            if scanned > limits.RPC_MESSAGE_BYTES_MAX:
                self.close()
                raise StoreError(f"{self._path}: the mount sent more than a message may have")
            try:
                part = self._socket.recv(65536)
            except ConnectionResetError:
                part = b""
            if not part:
                self.close()
                raise StoreError(f"{self._path}: the mount ended the connection", hint="its log says why")
            self._received += part
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


def connect(path: Path, *, timeout_s: float = TIMEOUT_S) -> ControlClient:
    """Connects to the mount that listens at `path`; `NotFound` where nobody does.

    `NotPermitted` where another user listens, `PermissionDenied` where only another user may connect, `StoreError`
    where nobody takes the connection within `timeout_s`.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # A connection waits while the mount's queue is full: for as long as this says, and with the kernel's wait,
        # since a non-blocking one would be refused at once.
        whole = math.floor(timeout_s)
        wait = _TIMEVAL.pack(whole, max(1, int((timeout_s - whole) * 1e6)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        with socket_address(path) as address:
            connection.connect(address)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(0, 0))
        connection.settimeout(timeout_s)
        _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if os.getuid() not in (0, uid) and uid != 0:
            raise NotPermitted(f"{path}: user {uid} listens there")
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        raise NotFound(f"no mount listens at {path}", hint="it is just beginning or ending: try again") from None
    except PermissionError:
        connection.close()
        raise PermissionDenied(f"{path}: the mount is another user's") from None
    except OSError as error:
        connection.close()
        late = error.errno == errno.EAGAIN
        reason = f"the mount takes no connection within {timeout_s:g} s" if late else os.strerror(error.errno or 0)
        raise StoreError(f"{path}: {reason}") from error
    except BaseException:
        connection.close()
        raise
    return ControlClient(connection, path)


def heard(progress: Callable[[int, int], None] | None) -> Callable[[Json], None] | None:
    """What takes a mount's reports of how much is done, and of how much in all, where it says so."""
    if progress is None:
        return None

    def hear(value: Json) -> None:
        if isinstance(value, dict) and isinstance(done := value.get("done"), int):
            total = value.get("total")
            progress(done, total if isinstance(total, int) else done)

    return hear
