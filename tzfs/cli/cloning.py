"""clone, flatten: a filesystem that begins as a snapshot, and one that needs its origin no more."""

from __future__ import annotations

import click

from tzfs.cli.output import document, working
from tzfs.cli.parameters import ASSIGNMENT, FILESYSTEM, SNAPSHOT, assignments, store_of
from tzfs.flattening import Flattened, to_json
from tzfs.units import human_size


@click.command()
@click.option("-p", "parents", is_flag=True, help="As in zfs; a namespace need not be made, so it changes nothing.")
@click.option(
    "-o", "options", metavar="PROPERTY=VALUE", multiple=True, type=ASSIGNMENT, help="Set a property; may be repeated."
)
@click.argument("snapshot", metavar="FILESYSTEM@SNAPSHOT", type=SNAPSHOT)
@click.argument("name", metavar="[NAMESPACE/]NAME")
@click.pass_context
def clone_command(ctx: click.Context, parents: bool, options: tuple[str, ...], snapshot: str, name: str) -> None:
    """Make a filesystem that begins as a snapshot is.  It takes no time and no space, whatever the size.

    It can be mounted and written at once; its origin stays as it is, and can be used, renamed, archived.  The snapshot
    cannot be destroyed while it has clones, until they have been flattened.  There may be as many clones of a snapshot
    as you like, and clones of clones, each level of which makes looking up what was never changed a little slower.
    There is no promote: flatten the clone, and destroy its origin.

    \b
    tzfs clone ws@before attempt-1
    tzfs clone -o agent:model=small ws@before agents/attempt-2
    tzfs get origin attempt-1
    """
    store_of(ctx).clone(snapshot, name, assignments(options))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.pass_context
def flatten_command(ctx: click.Context, as_json: bool, name: str) -> None:
    """Copy into a clone what it inherits, so that its origin is not needed any more.

    It may be used meanwhile, mounted or not.  Broken off, it goes on in the background of the next mount, or where it
    was when the command is given again.  Afterwards its origin is `-`, and the snapshot it came from may be destroyed.

    \b
    tzfs flatten attempt-1
    """
    with working(f"flattening {name}") as tell:
        done = store_of(ctx).flatten(name, progress=lambda so_far: tell(f"flattening {name}: {_words(so_far)}"))
    if as_json:
        document(to_json(done))
    else:
        click.echo(f"{name}: {_words(done)}")


def _words(done: Flattened) -> str:
    return f"{done.keys} rows, {human_size(done.bytes)} copied"
