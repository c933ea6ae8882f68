"""log, events: what was done to a filesystem, and what happens."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Sequence

import click

from tzfs import events, journal
from tzfs.cli.output import Failures, document, json_line, printable, table
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.format.log import Field, Fields
from tzfs.journal import Logged
from tzfs.runs import KIND


@click.command()
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=0), help="Only the last N entries.")
@click.option("-H", "scripted", is_flag=True, help="For scripts: no headers, one tab between columns.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with all that is known of each entry.")
@click.argument("name", metavar="[FILESYSTEM]", required=False, type=FILESYSTEM)
@click.pass_context
def log_command(ctx: click.Context, limit: int | None, scripted: bool, as_json: bool, name: str | None) -> int:
    """Show what was done to a filesystem, or to all of the store, the newest last.

    That is commands run in it, snapshots, holds, rollbacks, properties, names.  As many entries are kept as the
    property log_max says.

    \b
    tzfs log ws
    tzfs log -n 20 --json ws
    tzfs log
    """
    failures = Failures()
    found = journal.log(store_of(ctx), name, limit=limit, on_failure=failures)
    if as_json:
        document([logged.to_json() for logged in found])
        return failures.code
    columns = ["entry", "time", "kind", "what"]
    rows = [_row(logged) for logged in found]
    if name is None:
        columns.insert(0, "filesystem")
        rows = [[logged.filesystem, *row] for logged, row in zip(found, rows, strict=True)]
    table(columns, rows, scripted=scripted, right=("entry",))
    return failures.code


@click.command()
@click.option("-f", "following", is_flag=True, help="Go on with what happens, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, with all that is known of each event.")
@click.argument("name", metavar="[FILESYSTEM]", required=False, type=FILESYSTEM)
@click.pass_context
def events_command(ctx: click.Context, following: bool, as_json: bool, name: str | None) -> int:
    """Show what happened in a filesystem, or in all of the store, a line an event; with -f also what happens.

    Events are the entries of the log (tzfs log), and with -f what mounts say beside them: quotas that fill up
    (warning), background tasks that fail (task failed), a mount that has (failed).  New mounts are picked up.

    \b
    tzfs events ws
    tzfs events -f --json
    """
    store, failures = store_of(ctx), Failures()
    found: Iterable[events.Event] = (
        events.follow(store, name, on_failure=failures)
        if following
        else (logged.to_json() for logged in journal.log(store, name, on_failure=failures))
    )
    for event in found:
        if as_json:
            json_line(event)
        else:
            click.echo(_line(event))
    return failures.code


def _line(event: events.Event) -> str:
    """An event on a line: when, where, what, and its fields."""
    told = {key: value for key, value in event.items() if key not in ("filesystem", "time_ns", "kind", "entry")}
    words = [_when(int(str(event["time_ns"]))), str(event["filesystem"]), str(event["kind"]), _fields(told)]
    return "  ".join(word for word in words if word)


def _when(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns / 1e9))


def _row(logged: Logged) -> list[str]:
    number = "-" if logged.number is None else str(logged.number)
    return [number, _when(logged.time_ns), logged.kind, _what(logged)]


def _what(logged: Logged) -> str:
    """What an entry says, on a line: of a command its words first, and how it ended; else its fields."""
    fields, words = dict(logged.fields), ""
    if logged.kind == KIND:
        argv = fields.pop("argv", ())
        words = " ".join(map(_words, argv if isinstance(argv, list | tuple) else ())) + "  "
        for field in ("cwd", "pid", "started", "cut"):
            fields.pop(field, None)
        duration = fields.pop("duration_ns", None)
        fields = {"state": fields.pop("state", None), "code": fields.pop("code", None), **fields}
        if isinstance(duration, int):
            fields["took"] = f"{duration / 1e9:.2f}s"
    return words + _fields({name: value for name, value in fields.items() if value is not None})


def _fields(fields: Fields) -> str:
    return " ".join(f"{name}={_words(value)}" for name, value in fields.items() if value is not None)


def _words(value: Field) -> str:
    """A value as a shell would have it."""
    if isinstance(value, str):
        return printable(shlex.quote(value) if value else "''")
    if isinstance(value, Sequence):
        return ",".join(map(_words, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={_words(each)}" for key, each in value.items())
    return str(value)
