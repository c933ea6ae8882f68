"""get, set, inherit: properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from tzfs import marking
from tzfs.cli.output import document, table
from tzfs.cli.parameters import CHANGE, PROPERTIES, PROPERTY, TARGET, assignments, store_of
from tzfs.errors import NotFound, no_snapshot
from tzfs.inheritance import Value
from tzfs.management import Store
from tzfs.names import Scope, SnapshotName, parse, parse_bookmark, parse_property_target
from tzfs.properties import NATIVE, SHORT, WRITTEN_SINCE, check_name

COLUMNS = ("name", "property", "value", "source")
SOURCES = ("local", "inherited", "default", "-")


def _catalogue() -> str:
    """Every native property, for the help."""
    lines = ["\b", "PROPERTY        VALUES                      DEFAULT   EFFECT"]
    for p in NATIVE.values():
        if p.settable:
            default = Value(p.name, p.default, "default").human
            lines.append(f"{p.name:14}  {p.values:26}  {default:8}  {p.effect.value}: {p.help}")
        else:
            lines.append(f"{p.name:14}  (read-only)  {p.help}")
    return "\n".join(lines)


@click.command(
    help="Show properties: `all`, or names with commas between, of filesystems, snapshots, NAMESPACE/ or /.\n\n"
    "SOURCE says where a value is set: local, inherited from NAMESPACE/ or from /, default; - for what is computed.\n\n"
    "\b\ntzfs get all ws\ntzfs get -H -p -o value used ws\ntzfs get -s local all agents/\n"
    "tzfs get written@before ws\n\n" + _catalogue()
)
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("-p", "parsable", is_flag=True, help="Exact numbers.")
@click.option("-o", "columns", metavar="COLUMN,...", help=f"Which of {','.join(COLUMNS)}.")
@click.option("-s", "source", type=click.Choice(SOURCES), help="Only values from here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name, property, value and source.")
@click.argument("properties", metavar="all|PROPERTY,...", type=PROPERTIES)
@click.argument("names", metavar="FILESYSTEM|SNAPSHOT|NAMESPACE/...", nargs=-1, required=True, type=TARGET)
@click.pass_context
def get_command(
    ctx: click.Context,
    scripted: bool,
    parsable: bool,
    columns: str | None,
    source: str | None,
    as_json: bool,
    properties: str,
    names: tuple[str, ...],
) -> None:
    store = store_of(ctx)
    shown = columns.split(",") if columns else list(COLUMNS)
    for column in shown:
        if column not in COLUMNS:
            raise click.UsageError(f"no column {column!r}: there are {', '.join(COLUMNS)}")
    rows: list[tuple[str, Value]] = []
    for name in names:
        asked = [] if properties == "all" else [SHORT.get(key, key) for key in properties.split(",")]
        for key in asked:
            check_name(key)
        found = _of(store, name, [key for key in asked if key.startswith(WRITTEN_SINCE)])
        for key in asked or found:
            value = found.get(key, Value(key, None, "-"))
            if source is None or value.source == source or value.source.startswith(f"{source} from"):
                rows.append((name, value))
    if as_json:
        document(
            {
                n: {v.name: {"value": v.exact, "source": v.source} for m, v in rows if m == n}
                for n in dict.fromkeys(names)
            }
        )
        return
    cells = [
        {"name": n, "property": v.name, "value": v.parsable if parsable else v.human, "source": v.source}
        for n, v in rows
    ]
    table(shown, [[cell[c] for c in shown] for cell in cells], scripted=scripted)


def _of(store: Store, name: str, also: Sequence[str]) -> dict[str, Value]:
    if name.endswith("/"):
        where = parse_property_target(name)
        assert isinstance(where, Scope)
        return store.scope_properties(where)
    if "#" in name:
        bookmark = parse_bookmark(name)
        for info in marking.bookmarks(store, bookmark.filesystem):
            if info.name == bookmark:
                return dict(info.properties)
        raise NotFound(f"no bookmark {name}", hint=f"tzfs list -t bookmark {bookmark.filesystem}")
    parsed = parse(name)
    if not isinstance(parsed, SnapshotName):
        return store.properties(parsed, also=also)
    for snapshot in store.snapshots(parsed.filesystem, also=also):
        if snapshot.name == parsed:
            return dict(snapshot.properties)
    raise no_snapshot(parsed.filesystem, parsed.snapshot)


@click.command()
@click.argument("changes", metavar="PROPERTY=VALUE... TARGET...", nargs=-1, required=True, type=CHANGE)
@click.pass_context
def set_command(ctx: click.Context, changes: tuple[str, ...]) -> None:
    """Set properties of filesystems, of NAMESPACE/, or of / for the whole store.  A mount learns of it at once.

    A snapshot has properties of your own alone (MODULE:NAME=VALUE), 4,000 bytes of them.

    All values are looked at before the first is set.  `tzfs get --help` has what there is to set.

    \b
    tzfs set txg_interval=250ms snapdir=visible ws
    tzfs set agent:owner=ada agents/
    """
    texts = [text for text in changes if "=" in text]
    targets = changes[len(texts) :]
    if any("=" in text for text in targets):
        raise click.UsageError("give every PROPERTY=VALUE first, and then what to set them on")
    if not texts or not targets:
        raise click.UsageError("give PROPERTY=VALUE, and then what to set it on: a filesystem, NAMESPACE/ or /")
    _change(store_of(ctx), targets, assignments(texts))


@click.command()
@click.argument("name", metavar="PROPERTY", type=PROPERTY)
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True, type=TARGET)
@click.pass_context
def inherit_command(ctx: click.Context, name: str, targets: tuple[str, ...]) -> None:
    """Take a set property away, so that the namespace's, the store's or the default value holds; a snapshot has none
    of those.

    \b
    tzfs inherit txg_interval ws
    """
    _change(store_of(ctx), targets, {name: None})


def _change(store: Store, targets: Sequence[str], values: Mapping[str, str | None]) -> None:
    snapshots = [target for target in targets if "@" in target]
    others = [target for target in targets if target not in snapshots]
    if snapshots:
        if others:
            store.check_changes(others, values)  # before a snapshot is changed
        marking.label(store, snapshots, values)
    store.set_properties(others, values)
