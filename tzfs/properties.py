"""The properties of filesystems: which there are, and what they may be.

Three sorts.  *Settable* native properties steer how a filesystem works; each has a type, a default, bounds, and a
moment from which a change counts.  *Computed* ones are facts, and cannot be set.  *User* properties, `module:name`,
mean nothing to tzfs: labels to list and filter by; any text of up to 8,191 bytes without NUL, under a name by ZFS's
rules.

Values are kept, compared and passed on in one *exact* spelling (sizes in bytes, seconds as the shortest decimal);
`parse` makes it from what people write (`64M`, `500ms`), `human` makes the readable form from it.  Where a filesystem
has a value from is `tzfs.inheritance`.  Pure: no I/O.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Final

from tzfs import retention, units
from tzfs.errors import InvalidArgument, LimitReached, NotFound, ReadOnly, UsageError
from tzfs.limits import (
    CHUNK_SHIFT_DEFAULT,
    CHUNK_SHIFT_MAX,
    CHUNK_SHIFT_MIN,
    DIRTY_BYTES_MAX_DEFAULT,
    GIB,
    KIB,
    LOG_ENTRIES_DEFAULT,
    MIB,
    TXG_INTERVAL_S_DEFAULT,
)
from tzfs.names import show

USER_NAME_BYTES_MAX: Final = 256  # ZFS's bounds, so that labels can be carried over from there
USER_VALUE_BYTES_MAX: Final = 8191
WEEK_S: Final = 7 * 86400  # the longest interval of a background task
COMPRESSIONS: Final = ("off", "on", "lz4", "zstd", *(f"zstd-{level}" for level in range(1, 20)))


class Kind(StrEnum):
    """The type of a property's value."""

    SIZE = "size"
    SECONDS = "seconds"
    INTEGER = "integer"
    CHOICE = "choice"
    TEXT = "text"
    TIME = "time"  # exact: seconds since 1970 in UTC
    RATIO = "ratio"  # exact: two decimals


class Effect(StrEnum):
    """From when on a changed value counts."""

    AT_ONCE = "at once"
    NEW_FILES = "for files written first from then on"
    NEW_WRITES = "for what is written from then on"
    NEXT_MOUNT = "at the next mount"
    NEVER = "-"  # computed


@dataclass(frozen=True, slots=True)
class Property:
    """One native property.  `low` and `high` are inclusive, in the exact unit; `choices` are all the values there are.

    `default` is None for a computed property.  `snapshots`: snapshots have it too.
    """

    name: str
    kind: Kind
    help: str
    default: str | None = None
    low: Decimal | None = None
    high: Decimal | None = None
    power_of_two: bool = False
    choices: tuple[str, ...] = ()
    effect: Effect = Effect.NEVER
    snapshots: bool = False
    limit: bool = False  # it may be `none`, exactly 0
    own: bool = False  # what is set above does not hold for it

    @property
    def settable(self) -> bool:
        return self.default is not None

    @property
    def inheritable(self) -> bool:
        """Whether what is set on the namespace or the store holds for it."""
        return self.settable and not self.own

    @property
    def values(self) -> str:
        """What may be given, in a few characters: `on | off`, `4K - 1M, a power of two`."""
        if self.choices:
            return " | ".join(self.choices)
        if self.low is None or self.high is None:
            return self.kind.value
        if self.limit:
            return f"none | {self.kind.value}"
        bounds = f"{human(self, units.exact(self.low))} - {human(self, units.exact(self.high))}"
        return f"{bounds}, a power of two" if self.power_of_two else bounds


def _setting(
    name: str,
    kind: Kind,
    default: str,
    effect: Effect,
    help: str,
    *,
    low: int | str | None = None,
    high: int | str | None = None,
    power_of_two: bool = False,
    choices: Sequence[str] = (),
) -> Property:
    least, most = (None if bound is None else Decimal(bound) for bound in (low, high))
    return Property(name, kind, help, default, least, most, power_of_two, tuple(choices), effect)


def _interval(name: str, default: str, help: str) -> Property:
    """How often a background task runs."""
    return _setting(name, Kind.SECONDS, default, Effect.AT_ONCE, help, low=0, high=WEEK_S)


def _limit(name: str, kind: Kind, help: str, *, own: bool = False) -> Property:
    most = Decimal((1 << 63) - 1)
    return Property(name, kind, help, "0", Decimal(1), most, effect=Effect.AT_ONCE, limit=True, own=own)


def _fact(name: str, kind: Kind, help: str, *, snapshots: bool = False) -> Property:
    return Property(name, kind, help, snapshots=snapshots)


_ALL: Final = (
    _fact("type", Kind.TEXT, "filesystem, snapshot or bookmark", snapshots=True),
    _fact("creation", Kind.TIME, "when it was created", snapshots=True),
    _fact(
        "used", Kind.SIZE, "what it is charged, with its snapshots; of a snapshot: what it alone holds", snapshots=True
    ),
    _fact("freeing", Kind.SIZE, "bytes of destroyed snapshots, still to be given back"),
    _fact("available", Kind.SIZE, "what can still be written"),
    _fact("referenced", Kind.SIZE, "what it refers to without its snapshots, or as a snapshot", snapshots=True),
    _fact("usedbysnapshots", Kind.SIZE, "what destroying all its snapshots would free"),
    _fact("usedbydataset", Kind.SIZE, "what destroying it would free if it had no snapshots"),
    _fact(
        "written",
        Kind.SIZE,
        "what of referenced is newer than the snapshot before; written@SNAPSHOT: than that one",
        snapshots=True,
    ),
    _fact("logicalused", Kind.SIZE, "used, were nothing compressed"),
    _fact("logicalreferenced", Kind.SIZE, "referenced, were nothing compressed", snapshots=True),
    _fact("compressratio", Kind.RATIO, "how many times larger used would be without compression", snapshots=True),
    _fact("refcompressratio", Kind.RATIO, "the same for referenced", snapshots=True),
    _fact("state", Kind.TEXT, "creating, active, archived or deleting"),
    _fact("mounted", Kind.TEXT, "yes or no"),
    _fact("mountpoint", Kind.TEXT, "where it is mounted"),
    _fact("origin", Kind.TEXT, "the snapshot it is a clone of"),
    _fact("clones", Kind.TEXT, "the filesystems that are clones of the snapshot", snapshots=True),
    _fact("snapshot_count", Kind.INTEGER, "how many snapshots it has"),
    _fact("receive_resume_token", Kind.TEXT, "where a receive that was cut goes on: tzfs send -t"),
    _fact("guid", Kind.TEXT, "what tells it from every other, for good", snapshots=True),
    _setting(
        "txg_interval",
        Kind.SECONDS,
        format(Decimal(str(TXG_INTERVAL_S_DEFAULT)).normalize(), "f"),
        Effect.AT_ONCE,
        "the longest that a change waits to be durable, unless fsynced",
        low="0.05",  # a commit takes up to 20 ms: more often, and it would do nothing else
        high=60,
    ),
    _setting(
        "dirty_max",
        Kind.SIZE,
        str(DIRTY_BYTES_MAX_DEFAULT),
        Effect.AT_ONCE,
        "written bytes that may wait in memory before a commit begins",
        low=1 * MIB,  # the largest chunk
        high=128 * MIB,  # twice as much while it is written, and again behind it, is half a segment's reserve
    ),
    _setting(
        "recordsize",
        Kind.SIZE,
        str(1 << CHUNK_SHIFT_DEFAULT),
        Effect.NEW_FILES,
        "size of the chunks that large files are kept in",
        low=1 << CHUNK_SHIFT_MIN,
        high=1 << CHUNK_SHIFT_MAX,
        power_of_two=True,
    ),
    _setting(
        "compression",
        Kind.CHOICE,
        "lz4",
        Effect.NEW_WRITES,
        "what contents are compressed with, where it saves a page; on is lz4, zstd is zstd-3",
        choices=COMPRESSIONS,
    ),
    _setting(
        "snapdir",
        Kind.CHOICE,
        "hidden",
        Effect.AT_ONCE,
        "whether listings of the root show .zfs",
        choices=("hidden", "visible"),
    ),
    _limit(
        "quota", Kind.SIZE, "what it may be charged, its snapshots included; of /: all filesystems together", own=True
    ),
    _limit("refquota", Kind.SIZE, "what it may be charged without its snapshots"),
    _limit("inode_quota", Kind.INTEGER, "how many files, directories and other inodes it may have"),
    _limit("snapshot_limit", Kind.INTEGER, "how many snapshots it may have"),
    _interval("quota_interval", "60", "how often it is looked how far the quotas are used, to warn of it; 0: never"),
    _setting("quota_warnings", Kind.TEXT, "80,90,95,100", Effect.AT_ONCE, "at which percents of a quota; or none"),
    _interval(
        "snapshot_interval",
        "0",
        "how often a snapshot auto-TIME is taken while it is open for writing, if something has changed; 0: never",
    ),
    _setting("retention", Kind.TEXT, retention.NONE, Effect.AT_ONCE, "which snapshots are kept: tzfs policy --help"),
    _setting(
        "retention_names",
        Kind.TEXT,
        retention.AUTOMATIC,
        Effect.AT_ONCE,
        "the snapshots that retention is about; all others are kept",
    ),
    _interval(
        "prune_interval",
        "3600",
        "how often snapshots that retention does not keep are destroyed; 0: only by tzfs prune",
    ),
    _setting("readonly", Kind.CHOICE, "off", Effect.NEXT_MOUNT, "refuse every change", choices=("off", "on")),
    _interval(
        "gc_interval",
        "300",
        "how often what was removed is looked for and given back, and after each commit; 0: only by tzfs gc",
    ),
    _setting("gc_budget", Kind.SECONDS, "1", Effect.AT_ONCE, "how long one such run may take", low="0.01", high=3600),
    _interval(
        "compact_interval",
        "3600",
        "how often it is looked whether the tables have become half empty, to be made smaller; 0: only by tzfs gc",
    ),
    _setting(
        "compact_budget",
        Kind.SECONDS,
        "0.5",
        Effect.AT_ONCE,
        "how long that may keep fsyncs waiting; larger tables are left to tzfs gc",
        low="0.01",
        high=3600,
    ),
    _setting(
        "compact_free",
        Kind.SIZE,
        str(16 * MIB),
        Effect.AT_ONCE,
        "free bytes in the tables below which they stay as they are",
        low=256 * KIB,
        high=1024 * GIB,
    ),
    _setting(
        "log_max",
        Kind.INTEGER,
        str(LOG_ENTRIES_DEFAULT),
        Effect.AT_ONCE,
        "how many entries of its log are kept (tzfs log)",
        low=16,
        high=1_000_000,
    ),
    _setting("atime", Kind.CHOICE, "off", Effect.AT_ONCE, "access times are not kept", choices=("off",)),
)

NATIVE: Final[Mapping[str, Property]] = {p.name: p for p in _ALL}  # in the order they are listed
SHORT: Final[Mapping[str, str]] = {  # what ZFS calls them as columns
    "avail": "available",
    "refer": "referenced",
    "usedsnap": "usedbysnapshots",
    "usedds": "usedbydataset",
    "lused": "logicalused",
    "lrefer": "logicalreferenced",
    "ratio": "compressratio",
    "refratio": "refcompressratio",
}
WRITTEN_SINCE: Final = "written@"  # and a snapshot's name: a property of its own for each

_USER_NAME: Final = re.compile(r"[a-z0-9_.+:][a-z0-9_.+:-]*\Z")


def is_user(name: str) -> bool:
    """Whether `name` is spelled as a user property's: it has a colon."""
    return ":" in name


def native_of(name: str) -> Property | None:
    """The native property of that name; for `written@SNAPSHOT` one of that name."""
    since = name.removeprefix(WRITTEN_SINCE)
    if since != name:
        return replace(NATIVE["written"], name=name) if since else None
    return NATIVE.get(name)


def check_name(name: str) -> Property | None:
    """The native property of that name, or None for a valid user property's name.

    `NotFound` for a native one there is not, `InvalidArgument` for a malformed user property's name.
    """
    if not is_user(name) or name.startswith(WRITTEN_SINCE):
        native = native_of(name)
        if native is None:
            raise NotFound(
                f"there is no property {show(name)}",
                hint=f"native ones are {', '.join(NATIVE)}; your own are named MODULE:NAME",
            )
        return native
    if not _USER_NAME.match(name):
        raise InvalidArgument(
            f"user property {show(name)}: only lower-case letters, digits and _-.+: may be in its name, '-' not first"
        )
    if len(name) > USER_NAME_BYTES_MAX:
        raise InvalidArgument(f"user property {show(name)}: its name is longer than {USER_NAME_BYTES_MAX} bytes")
    return None


def check_settable(name: str) -> Property | None:
    """As `check_name`; `ReadOnly` for a computed property."""
    native = check_name(name)
    if native is not None and not native.settable:
        raise ReadOnly(f"property {name} is computed and cannot be set")
    return native


def check_labels(names: Iterable[str]) -> None:
    """`InvalidArgument` unless all of them are what a snapshot may have: user properties."""
    for name in names:
        check_name(name)
        if not is_user(name):
            raise InvalidArgument(f"{name}: a snapshot takes user properties only (MODULE:NAME)")


def parse_labels(changes: Mapping[str, str]) -> dict[str, str]:
    """`parse` of what a snapshot is to have."""
    exact = {name: parse(name, text) for name, text in changes.items()}
    check_labels(changes)
    return exact


def parse(name: str, text: str) -> str:
    """The exact spelling of `text`, given as a new value for the settable property `name`.

    `InvalidArgument` says what is wrong and what may be given; `LimitReached` for a user property's value too long.
    """
    native = check_settable(name)
    if native is None:
        return _parse_user(name, text)
    if native.choices:
        if text not in native.choices:
            raise _refused(native, text)
        return text
    if native.limit and text in ("none", "0"):
        return "0"
    if native.kind is Kind.TEXT:
        try:
            return _TEXTS[native.name](text)
        except UsageError as error:
            raise InvalidArgument(f"property {name}: {error}", hint=error.hint) from error
    number = _PARSERS[native.kind](text)
    if number is None:
        raise _refused(native, text)
    assert native.low is not None
    assert native.high is not None
    if not native.low <= number <= native.high:
        raise _refused(native, text)
    if native.power_of_two and int(number) & (int(number) - 1):
        raise _refused(native, text)
    return units.exact(number)


_TEXTS: Final[Mapping[str, Callable[[str], str]]] = {
    "quota_warnings": lambda text: ",".join(map(str, units.parse_percents(text))) or "none",
    "retention": lambda text: str(retention.parse_grid(text) or retention.NONE),
    "retention_names": lambda text: ",".join(retention.parse_names(text)),
}
_PARSERS: Final = {
    Kind.SIZE: units.parse_size,
    Kind.SECONDS: units.parse_seconds,
    Kind.INTEGER: units.parse_integer,
}


def _parse_user(name: str, text: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"property {name}: the value is not valid UTF-8") from None
    if "\0" in text:
        raise InvalidArgument(f"property {name}: the value has a NUL in it")
    if length > USER_VALUE_BYTES_MAX:
        raise LimitReached(f"property {name}: a value of {length} bytes; at most {USER_VALUE_BYTES_MAX} are allowed")
    return text


def _refused(native: Property, text: str) -> InvalidArgument:
    return InvalidArgument(f"property {native.name}: {show(text)} is not allowed", hint=f"give {native.values}")


def human(native: Property, exact: str, *, zone: datetime.tzinfo | None = None) -> str:
    """An exact value as people read it; one that does not fit its type as it is.

    Times are in `zone`, by default the local one.
    """
    if native.limit and exact == "0":
        return "none"
    try:
        if native.kind is Kind.SIZE:
            return units.human_size(int(exact))
        if native.kind is Kind.SECONDS:
            return f"{exact}s" if Decimal(exact) >= 1 else f"{units.exact(Decimal(exact) * 1000)}ms"
        if native.kind is Kind.RATIO:
            return f"{exact}x"
        if native.kind is Kind.TIME:
            at = datetime.datetime.fromtimestamp(int(exact), datetime.UTC).astimezone(zone)
            return at.strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, InvalidOperation):
        pass
    return exact
