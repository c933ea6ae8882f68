"""The client of a mount's control socket: synchronous, without trio.

    with connect(socket_path) as mount:
        mount.call("snapshot.create", name="before")

The other end is the user's own daemon (or root's): its credentials are checked before anything is sent.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tzfs import jsonrpc, limits
from tzfs.errors import NotFound, NotPermitted, StoreError
from tzfs.jsonrpc import Json

TIMEOUT_S = 60.0
_CREDENTIALS = struct.Struct("3i")


class ControlClient:
    """A connection to one mount."""

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self._socket, self._path = connection, path
        self._received = b""
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, *, progress: Callable[[Json], None] | None = None, **params: Json) -> Json:
        """The method's result.  Raises what the mount raised; `StoreError` where it does not answer."""
        self._number += 1
        try:
            self._socket.sendall(jsonrpc.encode(jsonrpc.request(method, params, self._number)))
            while True:
                message = jsonrpc.decode(self._line())
                if not isinstance(message, dict):
                    raise StoreError(f"{self._path}: the mount answered something else than JSON-RPC")
                if "method" in message:
                    if progress is not None:
                        progress(message.get("params"))
                    continue
                if message.get("id") not in (self._number, None):
                    continue
                if "error" in message:
                    raise jsonrpc.revive(message["error"])
                return message.get("result")
        except TimeoutError:
            raise StoreError(
                f"{self._path}: no answer within {TIMEOUT_S:.0f} s", hint="tzfs status shows whether the mount is alive"
            ) from None
        except OSError as error:
            raise StoreError(f"{self._path}: {os.strerror(error.errno or 0)}") from error

    def _line(self) -> bytes:
        while b"\n" not in self._received:
            part = self._socket.recv(65536)
            if not part:
                raise StoreError(f"{self._path}: the mount ended the connection", hint="its log says why")
            self._received += part
            if len(self._received) > limits.RPC_MESSAGE_BYTES_MAX:
                raise StoreError(f"{self._path}: the mount sent more than a message may have")
        line, _, self._received = self._received.partition(b"\n")
        return line


def connect(path: Path, *, timeout_s: float = TIMEOUT_S) -> ControlClient:
    """Connects to the mount that listens at `path`; `NotFound` where nobody does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        connection.connect(os.fspath(path))
        _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (os.getuid(), 0):
            raise NotPermitted(f"{path}: user {uid} listens there")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise NotFound(f"no mount listens at {path}") from None
    except OSError as error:
        connection.close()
        raise StoreError(f"{path}: {os.strerror(error.errno or 0)}") from error
    except BaseException:
        connection.close()
        raise
    return ControlClient(connection, path)
