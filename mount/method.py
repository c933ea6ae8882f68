"""A method of the control socket: a handler, and the shape of its parameters as one TypedDict.

    class Create(TypedDict):
        name: Annotated[str, Within(1, 255)]
        properties: NotRequired[dict[str, str]]

    async def create(params: Create) -> Json: ...

    table = {"snapshot.create": method(Create, create)}

The TypedDict is what the type checker holds the handler to, and what a request is checked against before the handler
sees it: a parameter that is unknown, missing, of another kind or out of bounds is `InvalidArgument`.  A shape may use
`str`, `int`, `float`, `bool`, `None`, `Literal`, `list[...]`, `dict[str, ...]`, unions of those, `NotRequired`, and
`Annotated[..., Within(low, high)]` around any of them; another is a `TypeError` when the method is declared.

A handler runs on the trio thread, and what blocks belongs in a worker thread.  One that need not wait for anything may
be an ordinary function.  A `reporting` handler is also given a function that tells the client how far it has come.
"""

from __future__ import annotations

import os
import types
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import (
    Annotated,
    Literal,
    NotRequired,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from tzfs.errors import InvalidArgument
from tzfs.jsonrpc import Json, Params

Report = Callable[[Json], Awaitable[None]]
Answer = Json | Awaitable[Json]

Shape = TypeVar("Shape", bound=Mapping[str, object])


class Nothing(TypedDict):
    """The shape of a method without parameters."""


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of a parameter, both inclusive: of a number's value, a string's bytes, the items of a list or object."""

    low: int
    high: int

    def holds(self, value: object) -> bool:
        """Whether a value that is of the right kind lies within."""
        return self.low <= _measure(value) <= self.high


def _measure(value: object) -> float:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list | dict):
        return len(value)
    return value if isinstance(value, int | float) else 0


@dataclass(frozen=True, slots=True)
class Declared:
    """A method as the server calls it, its parameters still unchecked."""

    call: Callable[[Params, Report], Answer]
    endless: bool = False  # ends when its client leaves, or says something else
    at_once: bool = False  # answered before what the kernel had queued is served


def method(shape: type[Shape], handler: Callable[[Shape], Answer]) -> Declared:
    """A method whose parameters are a `shape`."""
    return reporting(shape, lambda params, _report: handler(params))


def reporting(shape: type[Shape], handler: Callable[[Shape, Report], Answer]) -> Declared:
    """A method that tells of its progress: `await report(value)`, from a thread through `trio.from_thread.run`.

    A report never fails: the client of a notification, and one that has gone, hears nothing.
    """
    check = _checker(shape)

    def call(params: Params, report: Report) -> Answer:
        check(params)
        return handler(cast(Shape, params), report)

    return Declared(call)


def streaming(shape: type[Shape], handler: Callable[[Shape, Report], Awaitable[Json]]) -> Declared:
    """A method that reports until its client leaves or sends another request: it is cancelled then, answering null."""
    return Declared(reporting(shape, handler).call, endless=True)


@dataclass(frozen=True, slots=True)
class _Kind:
    words: str
    fits: Callable[[object], bool]


def _checker(shape: type[Shape]) -> Callable[[Params], None]:
    required: dict[str, bool] = {}
    kinds: dict[str, _Kind] = {}
    for name, hint in get_type_hints(shape, include_extras=True).items():
        required[name] = get_origin(hint) is not NotRequired
        kinds[name] = _kind(hint if required[name] else get_args(hint)[0])

    def check(params: Params) -> None:
        for name, value in params.items():
            kind = kinds.get(name)
            if kind is None:
                raise InvalidArgument(f"unknown parameter {name!r}")
            if not kind.fits(value):
                raise InvalidArgument(f"parameter {name!r} must be {kind.words}")
            if not _is_text(value):
                raise InvalidArgument(f"parameter {name!r} has half of a surrogate pair, which no text and no path has")
        missing = [name for name in kinds if required[name] and name not in params]
        if missing:
            raise InvalidArgument(f"parameter {missing[0]!r} is missing")

    return check


_SIMPLE: Mapping[object, _Kind] = {
    str: _Kind("a string", lambda v: isinstance(v, str)),
    int: _Kind("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    float: _Kind("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    bool: _Kind("true or false", lambda v: isinstance(v, bool)),
    types.NoneType: _Kind("null", lambda v: v is None),
}


def _kind(hint: object) -> _Kind:
    simple = _SIMPLE.get(hint)
    if simple is not None:
        return simple
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(_kind(arguments[0]), arguments[0], arguments[1:])
    if origin is Literal:
        among = frozenset((type(value), value) for value in arguments)
        return _Kind(f"one of {', '.join(map(repr, arguments))}", lambda v: _hashable(v) and (type(v), v) in among)
    if origin in (types.UnionType, Union):
        choices = [_kind(argument) for argument in arguments]
        return _Kind(" or ".join(c.words for c in choices), lambda v: any(c.fits(v) for c in choices))
    if origin is list:
        item = _kind(arguments[0])
        return _Kind(f"a list, each item {item.words}", lambda v: isinstance(v, list) and all(map(item.fits, v)))
    if origin is dict and arguments[0] is str:
        entry = _kind(arguments[1])
        return _Kind(
            f"an object, each value {entry.words}", lambda v: isinstance(v, dict) and all(map(entry.fits, v.values()))
        )
    raise TypeError(f"a parameter cannot be {hint!r}")


def _bounded(kind: _Kind, hint: object, bounds: tuple[object, ...]) -> _Kind:
    if len(bounds) != 1 or not isinstance(within := bounds[0], Within):
        raise TypeError(f"a parameter cannot be bounded by {bounds!r}")
    unit = " bytes" if hint is str else "" if hint in (int, float) else " items"
    words = f"{kind.words} of {within.low} to {within.high}{unit}"
    return _Kind(words, lambda v: kind.fits(v) and within.holds(v))


def _is_text(value: object) -> bool:
    """Whether all strings in it can be encoded; bytes that are no UTF-8 are as os.fsdecode has them."""
    if isinstance(value, str):
        try:
            os.fsencode(value)
        except UnicodeEncodeError:
            return False
    elif isinstance(value, dict):
        return all(_is_text(name) and _is_text(each) for name, each in value.items())
    elif isinstance(value, list):
        return all(map(_is_text, value))
    return True


def _hashable(value: object) -> bool:
    return not isinstance(value, list | dict)
