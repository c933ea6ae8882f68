"""list: filesystems, snapshots and bookmarks.

What cannot be read does not keep the rest from being listed: a filesystem whose folder is damaged is a line without
figures, and what is wrong with it goes to standard error and into the exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import click

from tzfs import marking
from tzfs.catalog import FilesystemInfo
from tzfs.cli.output import document, say, table
from tzfs.cli.parameters import COLUMN, CONDITION, TARGET, assignments, store_of
from tzfs.errors import InvalidArgument, NotFound, TzfsError, exit_code_of, no_snapshot, text_about
from tzfs.inheritance import Value
from tzfs.management import SnapshotInfo, Store
from tzfs.names import SnapshotName, parse, parse_bookmark, parse_scope, show
from tzfs.properties import SHORT, WRITTEN_SINCE, Kind, check_name, native_of
from tzfs.properties import parse as parse_value
from tzfs.units import parse_size

COLUMNS = ("name", "used", "available", "referenced", "mountpoint")
SPACE = ("name", "available", "used", "usedbysnapshots", "usedbydataset")  # -o space, as zfs has it
HEADS = {name: short for short, name in SHORT.items()}
NUMBERS = frozenset((Kind.SIZE, Kind.INTEGER, Kind.RATIO))
RANKED = NUMBERS | {Kind.TIME, Kind.SECONDS}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One filesystem or snapshot."""

    name: str
    properties: Mapping[str, Value]

    def text(self, column: str, *, parsable: bool) -> str:
        if column == "name":
            return self.name
        value = self.properties.get(column)
        if value is None:
            return "-"
        return value.parsable if parsable else value.human

    def exact(self, column: str) -> str | None:
        """The value that `--json` has."""
        if column == "name":
            return self.name
        value = self.properties.get(column)
        return None if value is None else value.exact


class _Gone(NotFound):
    """Destroyed, or renamed, while it was looked at."""


@dataclass(slots=True)
class Listing:
    """What was found, and what could not be read."""

    store: Store
    also: tuple[str, ...] = ()  # properties beyond those that every filesystem has
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, TzfsError] = field(default_factory=dict)  # by what is said of them

    def collect(self, kind: str, names: tuple[str, ...]) -> None:
        if not names:
            self._add_each(self.store.filesystems(on_damage=self._failed), kind)
        for name in names:
            if name.endswith("/"):
                self._add_each(self.store.filesystems(parse_scope(name), on_damage=self._failed), kind)
                continue
            if "#" in name:
                bookmark = parse_bookmark(name)
                marks = [m for m in marking.bookmarks(self.store, bookmark.filesystem) if m.name == bookmark]
                if not marks:
                    raise NotFound(f"no bookmark {name}", hint=f"tzfs list -t bookmark {bookmark.filesystem}")
                self.rows += [Row(str(m.name), m.properties) for m in marks]
                continue
            parsed = parse(name)
            if not isinstance(parsed, SnapshotName):
                self._add(self.store.get(parsed), kind)
                continue
            found = [s for s in self.store.snapshots(parsed.filesystem, also=self.also) if s.name == parsed]
            if not found:
                raise no_snapshot(parsed.filesystem, parsed.snapshot)
            self.rows += [Row(str(s.name), s.properties) for s in found]

    def _failed(self, error: TzfsError) -> None:
        self.failures.setdefault(str(error), error)

    def _add_each(self, infos: Iterable[FilesystemInfo], kind: str) -> None:
        for info in infos:
            with suppress(_Gone):
                self._add(info, kind)

    def _add(self, info: FilesystemInfo, kind: str) -> None:
        if kind in ("filesystem", "all"):
            self.rows.append(
                Row(
                    str(info.name),
                    self._readable(info, lambda: self.store.properties(info, also=self.also), info.properties()),
                )
            )
        if kind in ("snapshot", "all"):
            none: list[SnapshotInfo] = []
            found = self._readable(info, lambda: self.store.snapshots(info, also=self.also), none)
            self.rows += [Row(str(s.name), s.properties) for s in found]
        if kind in ("bookmark", "all"):
            no_marks: list[marking.BookmarkInfo] = []
            marks = self._readable(info, lambda: marking.bookmarks(self.store, info), no_marks)
            self.rows += [Row(str(m.name), m.properties) for m in marks]

    def _readable(self, info: FilesystemInfo, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except TzfsError as error:
            if self.store.is_gone(info):
                raise _Gone(f"filesystem {info.name} has just gone") from error
            self.failures.setdefault(text_about(info.name, error), error)
            return otherwise

    def sort(self, column: str, *, descending: bool) -> None:
        """By one column, those of equal rank left as they are; what has no value comes last either way."""

        def rank(row: Row) -> float | str:
            text = row.text(column, parsable=True)
            return float(text) if _kind(column) in RANKED else text

        empty = [row for row in self.rows if row.text(column, parsable=True) == "-"]
        valued = [row for row in self.rows if row.text(column, parsable=True) != "-"]
        valued.sort(key=rank, reverse=descending)
        self.rows = valued + empty


@click.command()
@click.option(
    "-t",
    "kind",
    type=click.Choice(["filesystem", "snapshot", "bookmark", "all"]),
    default="filesystem",
    show_default=True,
    help="What to list.",
)
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("-p", "parsable", is_flag=True, help="Exact numbers.")
@click.option(
    "-o",
    "columns",
    metavar="COLUMN,...",
    type=COLUMN,
    help=f"What to show: name or any property, space for where it went.  [default: {','.join(COLUMNS)}]",
)
@click.option(
    "-s", "ascending", metavar="COLUMN", multiple=True, type=COLUMN, help="Sort by a column; may be repeated."
)
@click.option(
    "-S", "descending", metavar="COLUMN", multiple=True, type=COLUMN, help="Sort by a column, the largest first."
)
@click.option("--state", type=click.Choice(["creating", "active", "archived", "deleting"]), help="Only in this state.")
@click.option(
    "--where",
    metavar="PROPERTY=VALUE",
    multiple=True,
    type=CONDITION,
    help="Only with this value of a property; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array; every property, or the columns of -o.")
@click.argument("names", metavar="[FILESYSTEM|SNAPSHOT|BOOKMARK|NAMESPACE/]...", nargs=-1, type=TARGET)
@click.pass_context
def list_command(
    ctx: click.Context,
    kind: str,
    scripted: bool,
    parsable: bool,
    columns: str | None,
    ascending: tuple[str, ...],
    descending: tuple[str, ...],
    state: str | None,
    where: tuple[str, ...],
    as_json: bool,
    names: tuple[str, ...],
) -> int:
    """List filesystems, snapshots, bookmarks or all three: all there are, or those named.

    Figures are those of now, also of what is mounted.  With -S and -s together, -S goes first.

    \b
    tzfs list -t all
    tzfs list -o space
    tzfs list --where agent:model=small -o name,used,snapshot_count -S used
    tzfs list --json agents/ | jq '.[].name'
    """
    shown = _columns(columns) if columns is not None else list(COLUMNS)
    keys = [(_column(c), False) for c in reversed(ascending)] + [(_column(c), True) for c in reversed(descending)]
    wanted = _conditions(where)
    if state is not None:
        wanted["state"] = state
    used = {*shown, *(name for name, _ in keys), *wanted}
    listing = Listing(store_of(ctx), tuple(sorted(name for name in used if name.startswith(WRITTEN_SINCE))))
    listing.collect(kind, names)
    listing.rows = [row for row in listing.rows if all(row.exact(name) == text for name, text in wanted.items())]
    for column, reverse in keys:
        listing.sort(column, descending=reverse)
    if as_json:
        document([_object(row, None if columns is None else shown) for row in listing.rows])
    else:
        table(
            [HEADS.get(c, c) for c in shown],
            [[row.text(c, parsable=parsable) for c in shown] for row in listing.rows],
            scripted=scripted,
            right=[HEADS.get(c, c) for c in shown if _kind(c) in NUMBERS],
        )
    for text in listing.failures:
        say("tzfs", text)
    return next(map(exit_code_of, listing.failures.values()), 0)


def _columns(text: str) -> list[str]:
    """What -o says, with `space` as what it stands for."""
    return [name for part in text.split(",") for name in (SPACE if part == "space" else (_column(part),))]


def _kind(column: str) -> Kind | None:
    native = native_of(column)
    return None if native is None else native.kind


def _column(text: str) -> str:
    """A column by its name or its alias; `NotFound` for one that there is not."""
    name = SHORT.get(text, text)
    if name != "name":
        check_name(name)
    return name


def _conditions(where: tuple[str, ...]) -> dict[str, str]:
    """Exact values by property; a value may be given as `set` takes it."""
    wanted = {}
    for given, text in assignments(where).items():
        name = SHORT.get(given, given)
        native = check_name(name)
        if text == "":
            raise InvalidArgument(f"--where {given}= needs a value")
        if native is None or native.settable:
            text = parse_value(name, text)
        elif native.kind is Kind.SIZE:
            size = parse_size(text)
            if size is None:
                raise InvalidArgument(f"--where {given}: {show(text)} is not a size", hint="64K, for example")
            text = str(size)
        wanted[name] = text
    return wanted


def _object(row: Row, columns: list[str] | None) -> dict[str, str | None]:
    names = ["name", *row.properties] if columns is None else columns
    return {name: row.exact(name) for name in names}
