"""log: what was done to a filesystem."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

import click

from tzfs import journal
from tzfs.cli.output import document, printable, table
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.format.log import Field
from tzfs.journal import Logged


@click.command()
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=0), help="Only the last N entries.")
@click.option("-H", "scripted", is_flag=True, help="For scripts: no headers, one tab between columns.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with all that is known of each entry.")
@click.argument("name", metavar="[FILESYSTEM]", required=False, type=FILESYSTEM)
@click.pass_context
def log_command(ctx: click.Context, limit: int | None, scripted: bool, as_json: bool, name: str | None) -> None:
    """Show what was done to a filesystem, or to all of the store, the newest last.

    That is commands run in it, snapshots, holds, rollbacks, properties, names.  As many entries are kept as the
    property log_max says.

    \b
    tzfs log ws
    tzfs log -n 20 --json ws
    tzfs log
    """
    found = journal.log(store_of(ctx), name, limit=limit)
    if as_json:
        document([logged.to_json() for logged in found])
        return
    columns = ["entry", "time", "kind", "what"]
    rows = [_row(logged) for logged in found]
    if name is None:
        columns.insert(0, "filesystem")
        rows = [[logged.filesystem, *row] for logged, row in zip(found, rows, strict=True)]
    table(columns, rows, scripted=scripted, right=("entry",))


def _row(logged: Logged) -> list[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(logged.time_ns / 1e9))
    return ["-" if logged.number is None else str(logged.number), when, logged.kind, what(logged)]


def what(logged: Logged) -> str:
    """The fields of an entry on a line."""
    return " ".join(f"{name}={_words(value)}" for name, value in logged.fields.items() if value is not None)


def _words(value: Field) -> str:
    """A value as a shell would have it."""
    if isinstance(value, str):
        return printable(shlex.quote(value) if value else "''")
    if isinstance(value, Sequence):
        return ",".join(map(_words, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={_words(each)}" for key, each in value.items())
    return str(value)
