"""JSON-RPC 2.0, one message a line: what server and client both must know.  No sockets here.

A message is one UTF-8 line of at most `limits.RPC_MESSAGE_BYTES_MAX` bytes.  An error that is a `TzfsError` crosses
with its class name, errno, hint and holders in `data`, and comes out on the other side as the same class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from tzfs import errors, limits
from tzfs.errors import Busy, InternalError, TzfsError, errno_of, rpc_code_of

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Params = Mapping[str, Json]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603


class ProtocolError(TzfsError):
    """A message that is not one of the protocol; `code` is the JSON-RPC code for it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode(message: Json) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Json:
    """The message in a line; `ProtocolError`."""
    if len(line) > limits.RPC_MESSAGE_BYTES_MAX:
        raise ProtocolError(INVALID_REQUEST, f"a message has at most {limits.RPC_MESSAGE_BYTES_MAX} bytes")
    try:
        message: Json = json.loads(line)
    except (ValueError, RecursionError):
        raise ProtocolError(PARSE_ERROR, "the line is not JSON") from None
    return message


def request(method: str, params: Params, number: int) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": dict(params), "id": number}


def result(value: Json, number: Json) -> Json:
    return {"jsonrpc": "2.0", "result": value, "id": number}


def failure(error: BaseException, number: Json) -> Json:
    """The error message for an exception; what is not ours says only that it is internal."""
    if isinstance(error, ProtocolError):
        return {"jsonrpc": "2.0", "error": {"code": error.code, "message": str(error)}, "id": number}
    if not isinstance(error, TzfsError):
        body: dict[str, Json] = {"code": INTERNAL_ERROR, "message": "internal error; the mount's log has more"}
        return {"jsonrpc": "2.0", "error": body, "id": number}
    data: dict[str, Json] = {"type": type(error).__name__, "errno": errno_of(error)}
    if error.hint:
        data["hint"] = error.hint
    if isinstance(error, Busy) and error.holders:
        data["holders"] = list(error.holders)
    answer: dict[str, Json] = {"code": rpc_code_of(error), "message": str(error), "data": data}
    return {"jsonrpc": "2.0", "error": answer, "id": number}


def revive(error: Json) -> TzfsError:
    """The exception that a peer's error message stands for."""
    if not isinstance(error, dict):
        return InternalError("the mount answered an error without a message")
    message, data = str(error.get("message", "unknown error")), error.get("data")
    if isinstance(data, dict):
        cls = getattr(errors, str(data.get("type")), None)
        hint = data.get("hint")
        text = hint if isinstance(hint, str) else None
        if isinstance(cls, type) and issubclass(cls, Busy):
            holders = data.get("holders")
            return cls(message, holders=[str(h) for h in holders] if isinstance(holders, list) else (), hint=text)
        if isinstance(cls, type) and issubclass(cls, TzfsError):
            return cls(message, hint=text)
    if error.get("code") in (INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND):
        return errors.InvalidArgument(message)
    return InternalError(message)


def parse_request(message: Json) -> tuple[str, Params, Json, bool]:
    """(method, params, id, whether it wants an answer) of a request; `ProtocolError`."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise ProtocolError(INVALID_REQUEST, "a request is an object with jsonrpc 2.0")
    method, params, number = message.get("method"), message.get("params", {}), message.get("id")
    if not isinstance(method, str):
        raise ProtocolError(INVALID_REQUEST, "a request names a method")
    if not isinstance(params, dict):
        raise ProtocolError(INVALID_PARAMS, "parameters are given by name")
    if isinstance(number, bool) or not isinstance(number, int | float | str | None):
        raise ProtocolError(INVALID_REQUEST, "an id is a number or a string")
    return method, params, number, "id" in message
