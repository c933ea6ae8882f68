"""show, undo: what an entry of the log changed, and taking it back."""

from __future__ import annotations

import click

from tzfs import remembering
from tzfs.cli.comparing import diff_command
from tzfs.cli.output import progress_bar, say
from tzfs.cli.parameters import FILESYSTEM, store_of

ENTRY = click.IntRange(min=1)


@click.command(context_settings={"help_option_names": ["--help"]})
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.argument("entry", metavar="[ENTRY]", required=False, type=ENTRY)
@click.argument("path", metavar="[PATH]", default="/")
def show_command(name: str, entry: int | None, path: str, **options: bool) -> None:
    """Show what a command changed, or an undo: the diff from the snapshot before it to the one after.

    ENTRY is its number in `tzfs log`; without it, the last that changed something.  Options, and what is printed, are
    those of `tzfs diff`.

    \b
    tzfs show ws
    tzfs show --patch ws 12 /src
    """
    ctx = click.get_current_context()
    _, before, after = remembering.ends(store_of(ctx), name, entry)
    ctx.invoke(diff_command, snapshot=str(before), more=(f"@{after.snapshot}", path), **options)


show_command.params += [parameter for parameter in diff_command.params if isinstance(parameter, click.Option)]


@click.command()
@click.option("-v", "verbose", is_flag=True, help="Say what was done.")
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.argument("entry", metavar="[ENTRY]", required=False, type=ENTRY)
@click.pass_context
def undo_command(ctx: click.Context, verbose: bool, name: str, entry: int | None) -> None:
    """Take back what the last command changed, mounted or not; an undo can be undone.

    ENTRY is a number in `tzfs log`; without it, it is the last entry that changed something, so that doing it twice
    does it again.  It is refused where something has been changed since: that would be taken back with it.  What was
    there before is kept in a snapshot.

    \b
    tzfs run ws -- make clean
    tzfs undo ws
    tzfs undo -v ws 12
    """
    with progress_bar(f"undoing in {name}") as progress:
        done = remembering.undo(store_of(ctx), name, entry, progress=progress)
    if verbose:
        say("tzfs", f"{name} is what it was at {done.restored}, before entry {done.undone}; entry {done.entry} says so")
