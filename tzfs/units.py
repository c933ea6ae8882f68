"""Sizes and times as people write and read them, and the one exact spelling in which they are kept.

Exact is the shortest decimal: bytes, or seconds.  Pure.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from tzfs.errors import InvalidArgument

_UNITS: Final = "KMGTPE"
_SIZE: Final = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)([KMGTPE]?)(?:i?B)?\Z", re.IGNORECASE | re.ASCII)
_SECONDS: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)?\Z", re.ASCII)
_PER_SECOND: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}


def parse_percents(text: str) -> tuple[int, ...]:
    """From 1 to 100, ascending, from `80,90,100`; empty from `none`.  `InvalidArgument`."""
    if text == "none":
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d?|100", part, re.ASCII) for part in parts):
        raise InvalidArgument(f"{text!r} are no percents", hint="give 80,90,100, for example, from 1 to 100; or none")
    return tuple(sorted({int(part) for part in parts}))


def parse_size(text: str) -> Decimal | None:
    """Bytes from `65536`, `64K`, `64KiB`, `1.5M` (units of 1,024, in either case); None if it is no size.

    A fraction of a unit is cut to whole bytes, as ZFS does, so that what is printed can be given back.
    """
    match = _SIZE.match(text)
    if match is None or ("." in match[1] and not match[2]):
        return None
    number = Decimal(int(Decimal(match[1]) * (1 << 10 * (" " + _UNITS).index(match[2].upper() or " "))))
    return number if number < 1 << 64 else None


def parse_seconds(text: str) -> Decimal | None:
    """Seconds from `1`, `0.5`, `500ms`, `1s`, `2m`, `3h`, `1d`, no finer than a microsecond; None if it is no time."""
    match = _SECONDS.match(text)
    if match is None:
        return None
    number = Decimal(match[1]) * _PER_SECOND[match[2] or "s"]
    return number if number == number.quantize(Decimal("0.000001")) else None


def parse_integer(text: str) -> Decimal | None:
    """A number of things, in digits alone; None if it is none."""
    return Decimal(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def exact(number: Decimal) -> str:
    """The shortest decimal without an exponent."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def human_size(nbytes: int) -> str:
    """At most five characters, as `zfs` prints sizes: `0B`, `512B`, `64K`, `1.50M`, `12.3G`, `123G`."""
    unit = 0
    while unit < len(_UNITS) and nbytes >> 10 * (unit + 1):
        unit += 1
    if unit == 0:
        return f"{nbytes}B"
    letter, size = _UNITS[unit - 1], 1 << 10 * unit
    if nbytes % size == 0:
        return f"{nbytes // size}{letter}"
    for places in (2, 1):
        text = f"{nbytes / size:.{places}f}{letter}"
        if len(text) <= 5:
            return text
    return f"{nbytes / size:.0f}{letter}"
