"""restore: files and trees as they were in a snapshot."""

from __future__ import annotations

import click

from tzfs import time_travel
from tzfs.cli.output import document, printable, progress_bar
from tzfs.cli.parameters import SNAPSHOT, store_of
from tzfs.names import parse_snapshot


@click.command()
@click.option("--to", metavar="DIR", help="A directory of the filesystem to restore into.  [default: where it was]")
@click.option("-f", "--force", is_flag=True, help="Replace what is there; a directory with all that is in it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("name", metavar="FILESYSTEM@SNAPSHOT", type=SNAPSHOT)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.pass_context
def restore_command(
    ctx: click.Context, to: str | None, force: bool, as_json: bool, name: str, paths: tuple[str, ...]
) -> None:
    """Bring back files and trees as they were in a snapshot, mounted or not.

    Paths are those in the filesystem.  No contents are copied: what comes back shares them with the snapshot.  It has
    the modes, owners, times, attributes and hard links that it had.  All of it comes back in one step; if it is
    interrupted, nothing has happened.

    \b
    tzfs restore ws@before src/main.c docs
    tzfs restore --to /old ws@before src    it is then in old/src
    """
    parsed = parse_snapshot(name)
    with progress_bar(f"restoring from {parsed}") as hear:
        done = time_travel.restore(store_of(ctx), parsed, paths, to=to, force=force, progress=hear)
    if as_json:
        document({"name": str(parsed), "inodes": done.inodes, "paths": list(done.paths)})
        return
    for path in done.paths:
        click.echo(f"restored {printable(path)}")
