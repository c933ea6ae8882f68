"""create, rename, archive, activate: the life of a filesystem."""

from __future__ import annotations

import click

from tzfs import marking
from tzfs.cli.output import Failures
from tzfs.cli.parameters import ASSIGNMENT, FILESYSTEM, SNAPSHOT, assignments, store_of
from tzfs.names import check_snapshot_component


@click.command()
@click.option(
    "-o", "options", metavar="PROPERTY=VALUE", multiple=True, type=ASSIGNMENT, help="Set a property; may be repeated."
)
@click.argument("name", metavar="[NAMESPACE/]NAME")
@click.pass_context
def create_command(ctx: click.Context, options: tuple[str, ...], name: str) -> None:
    """Create an empty filesystem.  It can be mounted, or opened from a program, at once.

    \b
    tzfs create ws
    tzfs create -o recordsize=64K -o agent:model=small agents/researcher
    """
    store_of(ctx).create(name, assignments(options))


@click.command()
@click.option(
    "-r",
    "recursive",
    is_flag=True,
    help="Snapshots alone: of every filesystem in the namespace of that name too (tzfs snapshot -r).",
)
@click.argument("old", metavar="FILESYSTEM[@SNAPSHOT]", type=SNAPSHOT)
@click.argument("new", metavar="[NAMESPACE/]NAME|[FILESYSTEM]@SNAPSHOT")
@click.pass_context
def rename_command(ctx: click.Context, recursive: bool, old: str, new: str) -> int:
    """Give a filesystem or a snapshot another name, mounted or not.  Its contents stay as they are.

    \b
    tzfs rename ws agents/researcher
    tzfs rename ws@monday ws@before-refactoring
    tzfs rename -r agents@nightly @sunday
    """
    store = store_of(ctx)
    if recursive:
        where, _, snapshot = new.rpartition("@")
        if "@" not in old or "@" not in new or where not in ("", old.partition("@")[0]):
            raise click.UsageError("with -r snapshots are renamed: give FILESYSTEM@SNAPSHOT and @SNAPSHOT")
        failures = Failures()
        marking.rename_all(store, marking.existing(store, old, failures), check_snapshot_component(snapshot), failures)
        return failures.code
    if "@" in old:
        marking.rename(store, old, new)
    else:
        store.rename(old, new)
    return 0


@click.command()
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.pass_context
def archive_command(ctx: click.Context, name: str) -> None:
    """Make a filesystem read-only until it is activated.  It must not be mounted.

    It can still be mounted, read-only, and so can its snapshots.

    \b
    tzfs archive ws
    """
    store_of(ctx).archive(name)


@click.command()
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.pass_context
def activate_command(ctx: click.Context, name: str) -> None:
    """Make an archived filesystem writable again.  It must not be mounted.

    \b
    tzfs activate ws
    """
    store_of(ctx).activate(name)
