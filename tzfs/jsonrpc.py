"""JSON-RPC 2.0, one message a line: what server and client both must know.  No sockets here.

A message is one UTF-8 line of at most `limits.RPC_MESSAGE_BYTES_MAX` bytes.  Parameters are given by name.  An error
that is a `TzfsError` crosses with its class name, errno, hint and holders in `data`, and comes out on the other side as
the same class.  Progress of a request is a notification `progress` with the request's id and a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tzfs import errors, limits
from tzfs.errors import Busy, InternalError, TzfsError, UsageError, errno_of, rpc_code_of

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Params = Mapping[str, Json]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

PROGRESS: Final = "progress"


class ProtocolError(UsageError):
    """A message that is not one of the protocol; `code` is the JSON-RPC code for it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request; a notification has no number and is never answered, not even with an error."""

    method: str
    params: Params | None  # None where they were given by position, which no method takes
    number: Json
    answered: bool


def encode(message: Json) -> bytes:
    """One line, its end included.  `ValueError`, `TypeError`, `RecursionError` for what is no JSON (NaN is none)."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Json:
    """The message in a line; `ProtocolError`."""
    if len(line) > limits.RPC_MESSAGE_BYTES_MAX:
        raise too_long()
    try:
        message: Json = json.loads(line.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ProtocolError(PARSE_ERROR, "the line is not JSON") from None
    return message


def _refuse(constant: str) -> Json:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is larger than a number can be")  # and could not be sent back
    return value


def too_long() -> ProtocolError:
    """The error for a message beyond the limit."""
    return ProtocolError(INVALID_REQUEST, f"a message has at most {limits.RPC_MESSAGE_BYTES_MAX} bytes")


def request(method: str, params: Params, number: int) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": dict(params), "id": number}


def result(value: Json, number: Json) -> Json:
    return {"jsonrpc": "2.0", "result": value, "id": number}


def progress(value: Json, number: Json) -> Json:
    """How far the request `number` has come."""
    return {"jsonrpc": "2.0", "method": PROGRESS, "params": {"id": number, "value": value}}


def failure(error: BaseException, number: Json) -> Json:
    """The error message for an exception; what is not ours says only that it is internal."""
    if isinstance(error, ProtocolError):
        return {"jsonrpc": "2.0", "error": {"code": error.code, "message": str(error)}, "id": number}
    if not isinstance(error, TzfsError):
        body: dict[str, Json] = {"code": INTERNAL_ERROR, "message": "internal error; the mount's log has more"}
        return {"jsonrpc": "2.0", "error": body, "id": number}
    data: dict[str, Json] = {"type": _public_class(error).__name__, "errno": errno_of(error)}
    if error.hint:
        data["hint"] = error.hint
    if isinstance(error, Busy) and error.holders:
        data["holders"] = list(error.holders)
    answer: dict[str, Json] = {"code": rpc_code_of(error), "message": str(error), "data": data}
    return {"jsonrpc": "2.0", "error": answer, "id": number}


def _public_class(error: TzfsError) -> type:
    """The nearest class of the error that the other side can know: one of `tzfs.errors`."""
    return next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)


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
    if error.get("code") in (PARSE_ERROR, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND):
        return errors.InvalidArgument(message)
    return InternalError(message)


def parse_request(message: Json) -> Request:
    """The request in a message; `ProtocolError` for what is none."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise ProtocolError(INVALID_REQUEST, "a request is an object with jsonrpc 2.0")
    method, params = message.get("method"), message.get("params", {})
    if not isinstance(method, str):
        raise ProtocolError(INVALID_REQUEST, "a request names a method")
    if not isinstance(params, dict | list):
        raise ProtocolError(INVALID_REQUEST, "parameters are an object")
    if "id" in message and message["id"] is not None and id_of(message) is None:
        raise ProtocolError(INVALID_REQUEST, "an id is a number or a string")
    return Request(method, params if isinstance(params, dict) else None, message.get("id"), "id" in message)


def id_of(message: Json) -> int | float | str | None:
    """The id by which an answer to the message can be known, however malformed it is."""
    number = message.get("id") if isinstance(message, dict) else None
    return number if isinstance(number, int | float | str) and not isinstance(number, bool) else None
