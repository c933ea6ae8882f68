"""The entries of a log: what was done, when, and how it went; canonical JSON within a page.

    {"time_ns": ..., "kind": "snapshot", ...}      and fields of the kind's own

A filesystem has a log in its table `log`, the store one in the catalog, under the same bounds.  Numbers ascend by one;
the newest entry stays as long as there is one, so none is given twice.  Fields that a reader does not know are shown
as they are.  What is too long for a page is cut, and `cut` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tzfs import limits
from tzfs.format.records import damaged, pack_json, unpack_json

Field = str | int | float | bool | None | Sequence["Field"] | Mapping[str, "Field"]
Fields = Mapping[str, Field]

BODY_BYTES_MAX: Final = limits.INLINE_BYTES_MAX
_CUTS: Final = ((1024, 64), (256, 32), (64, 16), (24, 4))  # bytes a text, items a list: until it fits
_TIME: Final = "time_ns"
_KIND: Final = "kind"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.  `number` is its key; 0 where it is not told."""

    number: int
    time_ns: int
    kind: str
    fields: Fields


def pack_entry(time_ns: int, kind: str, fields: Fields) -> bytes:
    """The body of an entry, cut where it would not fit a page.  Text is kept as UTF-8, what is none of it escaped."""
    whole = {readable(name): _text(value) for name, value in fields.items()} | {_TIME: time_ns, _KIND: kind}
    body = pack_json(whole)
    for text, items in _CUTS:
        if len(body) <= BODY_BYTES_MAX:
            break
        body = pack_json({name: _cut(value, text, items) for name, value in whole.items()} | {"cut": True})
    return body if len(body) <= BODY_BYTES_MAX else pack_json({_TIME: time_ns, _KIND: kind, "cut": True})


def unpack_entry(table: int, key: bytes, body: bytes, number: int) -> Entry:
    """An entry from its body; `CorruptionError` for what is none."""
    fields = unpack_json(table, key, body)
    if not isinstance(fields, dict):
        raise damaged(table, key, "not a JSON object")
    time_ns, kind = fields.pop(_TIME, None), fields.pop(_KIND, None)
    if not isinstance(time_ns, int) or isinstance(time_ns, bool) or not isinstance(kind, str):
        raise damaged(table, key, "an entry without its time or its kind")
    return Entry(number, time_ns, kind, fields)


def readable(text: str) -> str:
    """The text with what is no UTF-8 (the bytes that os.fsdecode escaped) written as backslash, x and digits.

    Any text will do: an entry that could not be packed would be met half-way through what it tells of.
    """
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair that no bytes are
        raw = text.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "backslashreplace")


def _text(value: Field) -> Field:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, Mapping):
        return {str(_text(name)): _text(each) for name, each in value.items()}
    if isinstance(value, Sequence):
        return [_text(each) for each in value]
    return value


def _cut(value: Field, text: int, items: int) -> Field:
    if isinstance(value, str):
        raw = value.encode()
        return value if len(raw) <= text else raw[:text].decode(errors="ignore") + "..."
    if isinstance(value, Mapping):
        return {str(_cut(name, text, items)): _cut(each, text, items) for name, each in [*value.items()][:items]}
    if isinstance(value, Sequence):
        return [_cut(each, text, items) for each in value[:items]] + (["..."] if len(value) > items else [])
    return value
