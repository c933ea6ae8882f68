"""list: filesystems and snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import click

from tzfs.cli.output import document, table
from tzfs.cli.parameters import FILESYSTEM, assignments, store_of
from tzfs.errors import InvalidArgument, NotFound
from tzfs.management import Store
from tzfs.names import SnapshotName, parse
from tzfs.properties import NATIVE, Kind, Value, check_name

COLUMNS = ("name", "used", "available", "referenced", "mountpoint")
HEADS = {"available": "avail", "referenced": "refer"}
ALIASES = {"avail": "available", "refer": "referenced"}
NUMBERS = frozenset(p.name for p in NATIVE.values() if p.kind in (Kind.SIZE, Kind.INTEGER))


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

    def rank(self, column: str) -> tuple[bool, float, str]:
        """Where it stands when sorted by the column: numbers by size, what has no value last."""
        text = self.text(column, parsable=True)
        if column in NUMBERS or column == "creation":
            return (text == "-", float(text) if text != "-" else 0.0, self.name)
        return (text == "-", 0.0, text)


@click.command()
@click.option(
    "-t", "kind", type=click.Choice(["filesystem", "snapshot", "all"]), default="filesystem", show_default=True
)
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("-p", "parsable", is_flag=True, help="Exact numbers.")
@click.option("-o", "columns", metavar="COLUMN,...", help=f"What to show: name or any property.  [{','.join(COLUMNS)}]")
@click.option("-s", "ascending", metavar="COLUMN", multiple=True, help="Sort by a column, ascending.")
@click.option("-S", "descending", metavar="COLUMN", multiple=True, help="Sort by a column, descending.")
@click.option("--state", type=click.Choice(["creating", "active", "archived", "deleting"]), help="Only in this state.")
@click.option(
    "--where", metavar="PROPERTY=VALUE", multiple=True, help="Only with this value of a property; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.argument("names", nargs=-1, type=FILESYSTEM)
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
) -> None:
    """List filesystems, snapshots or both.

    \b
    tzfs list -t all
    tzfs list --where agent:model=small -o name,used,snapshot_count -S used
    """
    shown = [ALIASES.get(c, c) for c in columns.split(",")] if columns else list(COLUMNS)
    for column in [*shown, *ascending, *descending]:
        if ALIASES.get(column, column) != "name":
            check_name(ALIASES.get(column, column))
    wanted = assignments(where)
    if state is not None:
        wanted["state"] = state
    rows = [row for row in _rows(store_of(ctx), kind, names) if _fits(row, wanted)]
    for column in reversed(ascending):
        rows.sort(key=lambda row: row.rank(ALIASES.get(column, column)))
    for column in reversed(descending):
        rows.sort(key=lambda row: row.rank(ALIASES.get(column, column)), reverse=True)
    if as_json:
        document([{"name": r.name, **{k: v.exact for k, v in r.properties.items()}} for r in rows])
        return
    heads = [HEADS.get(c, c) for c in shown]
    table(
        heads,
        [[row.text(c, parsable=parsable) for c in shown] for row in rows],
        scripted=scripted,
        right=[HEADS.get(c, c) for c in shown if c in NUMBERS],
    )


def _rows(store: Store, kind: str, names: tuple[str, ...]) -> list[Row]:
    rows: list[Row] = []
    if names:
        infos = []
        for name in names:
            parsed = parse(name)
            if isinstance(parsed, SnapshotName):
                found = [s for s in store.snapshots(parsed.filesystem) if s.name == parsed]
                if not found:
                    raise NotFound(f"no snapshot {name}", hint=f"tzfs list -t snapshot {parsed.filesystem}")
                rows += [Row(str(s.name), s.properties) for s in found]
            else:
                infos.append(store.get(parsed))
    else:
        infos = store.filesystems()
    for info in infos:
        if kind != "snapshot":
            rows.append(Row(str(info.name), store.properties(info)))
        if kind != "filesystem":
            rows += [Row(str(s.name), s.properties) for s in store.snapshots(info)]
    return rows


def _fits(row: Row, wanted: Mapping[str, str]) -> bool:
    for name, text in wanted.items():
        check_name(name)
        if text == "":
            raise InvalidArgument(f"--where {name}= needs a value")
        value = row.properties.get(name)
        if value is None or text not in (value.parsable, value.human):
            return False
    return True
