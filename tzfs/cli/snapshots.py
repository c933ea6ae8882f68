"""snapshot, sync: points in time, durability."""

from __future__ import annotations

import click

from tzfs import marking
from tzfs.cli.output import Failures, say
from tzfs.cli.parameters import ASSIGNMENT, FILESYSTEM, SNAPSHOT, assignments, store_of
from tzfs.names import parse_snapshot


@click.command()
@click.option(
    "-o",
    "options",
    metavar="MODULE:NAME=VALUE",
    multiple=True,
    type=ASSIGNMENT,
    help="A property of your own; may be repeated.",
)
@click.option(
    "-r",
    "recursive",
    is_flag=True,
    help="Of every filesystem in the namespace of that name too; NAMESPACE/@SNAPSHOT: only those; /@SNAPSHOT: of all.",
)
@click.argument("names", metavar="FILESYSTEM@SNAPSHOT...", nargs=-1, required=True, type=SNAPSHOT)
@click.pass_context
def snapshot_command(ctx: click.Context, options: tuple[str, ...], recursive: bool, names: tuple[str, ...]) -> int:
    """Take a snapshot, mounted or not; its time does not depend on the size.

    It has everything that was written before the command began, and is durable when the command returns.

    \b
    tzfs snapshot ws@before-refactoring
    tzfs snapshot -o agent:step=3 ws@step-3
    tzfs snapshot -r agents@nightly

    With -r the snapshots are taken one after the other: one instant for each filesystem, not one for all of them.  What
    is archived is passed over, and what is damaged, which is an error in the end.
    """
    store = store_of(ctx)
    properties = assignments(options)
    failures = Failures()
    if recursive:
        for name in names:
            _, passed_over = marking.snapshot_across(store, name, properties, failures)
            for filesystem in passed_over:
                say("tzfs", f"{filesystem} is archived, and passed over")
        return failures.code
    for parsed in [parse_snapshot(name) for name in names]:
        store.snapshot(parsed, properties)
    return 0


@click.command()
@click.argument("names", metavar="FILESYSTEM...", nargs=-1, required=True, type=FILESYSTEM)
@click.pass_context
def sync_command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Make everything written so far durable.  What is not mounted is durable already.

    \b
    tzfs sync ws
    """
    store = store_of(ctx)
    for name in names:
        store.sync(name)
