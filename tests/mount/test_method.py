"""Shapes of parameters: what fits, what does not, and what it is told."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict, cast

import pytest
import trio

from tests.mount.spellings import Optional, Union
from tzfs.errors import InvalidArgument
from tzfs.jsonrpc import Json, Params
from tzfs.mount.method import Nothing, Report, Within, method, reporting


class Everything(TypedDict):
    text: NotRequired[str]
    whole: NotRequired[int]
    number: NotRequired[float]
    flag: NotRequired[bool]
    nothing: NotRequired[None]
    choice: NotRequired[Literal["a", 1]]
    maybe: NotRequired[str | None]
    old: NotRequired[Optional[int]]
    either: NotRequired[Union[int, str]]
    many: NotRequired[list[str]]
    table: NotRequired[dict[str, str]]
    nested: NotRequired[dict[str, list[int] | None]]


class Needed(TypedDict):
    name: str
    force: NotRequired[bool]


async def silent(value: Json) -> None:
    raise AssertionError("nothing is to be reported")


def everything(params: Everything) -> Json:
    return cast(Json, dict(params))


def call(params: Params) -> Json:
    return cast(Json, method(Everything, everything).call(params, silent))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", ""),
        ("text", "\udcff"),  # a byte, as os.fsdecode has it
        ("whole", -1),
        ("whole", 1 << 80),
        ("number", 1),
        ("number", 1.5),
        ("flag", False),
        ("nothing", None),
        ("choice", "a"),
        ("choice", 1),
        ("maybe", None),
        ("maybe", "x"),
        ("old", None),
        ("old", 3),
        ("either", 3),
        ("either", "x"),
        ("many", []),
        ("many", ["a", "b"]),
        ("table", {}),
        ("table", {"a": "b"}),
        ("nested", {"a": [1], "b": None}),
    ],
)
def test_what_fits_reaches_the_handler_as_it_is(name: str, value: Json) -> None:
    assert call({name: value}) == {name: value}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("text", 1, "a string"),
        ("text", None, "a string"),
        ("whole", True, "a whole number"),
        ("whole", 1.0, "a whole number"),
        ("number", True, "a number"),
        ("number", "1", "a number"),
        ("flag", 1, "true or false"),
        ("nothing", 0, "null"),
        ("choice", "b", "one of 'a', 1"),
        ("choice", True, "one of 'a', 1"),
        ("choice", ["a"], "one of 'a', 1"),
        ("maybe", 1, "a string or null"),
        ("either", 1.5, "a whole number or a string"),
        ("many", "ab", "a list, each item a string"),
        ("many", ["a", 1], "a list, each item a string"),
        ("table", ["a"], "an object, each value a string"),
        ("table", {"a": 1}, "an object, each value a string"),
        ("nested", {"a": ["1"]}, "an object, each value a list, each item a whole number or null"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(name: str, value: Json, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call({name: value})
    assert str(caught.value) == f"parameter {name!r} must be {words}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("text", "\ud800"), ("many", ["a", "\udc00"]), ("table", {"\ud800": "b"}), ("table", {"a": "\udfff"})],
)
def test_text_that_no_bytes_are_is_refused_wherever_it_is(name: str, value: Json) -> None:
    with pytest.raises(InvalidArgument, match=f"parameter {name!r} has half of a surrogate pair"):
        call({name: value})


def test_unknown_and_missing_parameters_are_refused_by_name() -> None:
    needed = method(Needed, lambda params: params["name"])
    assert needed.call({"name": "ws", "force": True}, silent) == "ws"
    with pytest.raises(InvalidArgument, match="parameter 'name' is missing"):
        needed.call({"force": True}, silent)
    with pytest.raises(InvalidArgument, match="unknown parameter 'nmae'"):
        needed.call({"name": "ws", "nmae": "ws"}, silent)


def test_a_shape_that_no_json_has_is_refused_when_it_is_declared() -> None:
    class Wrong(TypedDict):
        raw: bytes

    class Keyed(TypedDict):
        table: dict[int, str]

    class Unbounded(TypedDict):
        text: Annotated[str, "short"]

    for shape in (Wrong, Keyed, Unbounded):
        with pytest.raises(TypeError, match="a parameter cannot be"):
            method(shape, lambda params: None)


class Bounded(TypedDict):
    text: NotRequired[Annotated[str, Within(1, 4)]]
    whole: NotRequired[Annotated[int, Within(-1, 1)]]
    number: NotRequired[Annotated[float, Within(0, 1)]]
    many: NotRequired[Annotated[list[Annotated[str, Within(0, 1)]], Within(0, 2)]]
    table: NotRequired[Annotated[dict[str, int], Within(1, 1)]]


@pytest.mark.parametrize(
    ("name", "fitting", "others", "words"),
    [
        ("text", ["a", "abcd", "éé", "\udc80"], ["", "abcde", "ééé", 3], "a string of 1 to 4 bytes"),
        ("whole", [-1, 0, 1], [-2, 2, 1 << 80, "0", True], "a whole number of -1 to 1"),
        ("number", [0, 0.5, 1], [-0.001, 1.001], "a number of 0 to 1"),
        (
            "many",
            [[], ["a", ""]],
            [["a", "b", "c"], ["ab"], [1]],
            "a list, each item a string of 0 to 1 bytes of 0 to 2 items",
        ),
        ("table", [{"a": 1}], [{}, {"a": 1, "b": 2}], "an object, each value a whole number of 1 to 1 items"),
    ],
)
def test_bounds_are_inclusive_and_told(name: str, fitting: list[Json], others: list[Json], words: str) -> None:
    bounded = method(Bounded, lambda params: cast(Json, dict(params)))
    for value in fitting:
        assert bounded.call({name: value}, silent) == {name: value}
    for value in others:
        with pytest.raises(InvalidArgument) as caught:
            bounded.call({name: value}, silent)
        assert str(caught.value) == f"parameter {name!r} must be {words}"


def test_a_method_without_parameters_takes_none() -> None:
    assert method(Nothing, lambda params: "done").call({}, silent) == "done"
    with pytest.raises(InvalidArgument, match="unknown parameter 'any'"):
        method(Nothing, lambda params: "done").call({"any": 1}, silent)


def test_a_reporting_handler_is_checked_too_and_reports_where_it_is_told() -> None:
    heard: list[Json] = []

    async def hear(value: Json) -> None:
        heard.append(value)

    async def handler(params: Needed, report: Report) -> Json:
        await report(params["name"])
        return "done"

    async def main() -> None:
        answer = reporting(Needed, handler).call({"name": "ws"}, hear)
        assert not isinstance(answer, str | dict | list | int | float | None)
        assert await answer == "done"

    trio.run(main)
    assert heard == ["ws"]
    with pytest.raises(InvalidArgument):
        reporting(Needed, handler).call({}, hear)
