"""rollback: the filesystem as it was at a snapshot."""

from __future__ import annotations

import click

from tzfs import time_travel
from tzfs.cli.output import document, progress_bar
from tzfs.cli.parameters import SNAPSHOT, store_of
from tzfs.names import SnapshotName, parse_snapshot


@click.command()
@click.option("-n", "dry_run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("-r", "destroy_newer", is_flag=True, help="Destroy the newer snapshots, if all of them can be.")
@click.option("--no-safety-snapshot", "unsafe", is_flag=True, help="Take no snapshot of the state before.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("name", metavar="FILESYSTEM@SNAPSHOT", type=SNAPSHOT)
@click.pass_context
def rollback_command(
    ctx: click.Context, dry_run: bool, destroy_newer: bool, unsafe: bool, as_json: bool, name: str
) -> None:
    """Make a filesystem what it was at a snapshot, mounted or not.

    Newer snapshots stay unless -r is given, unlike in ZFS, and a snapshot of the state before is taken first: rolling
    back to that one undoes it.  With -r nothing is done where a newer snapshot is held, read or cloned; that of the
    state before stays.  It takes time for what has changed since, whatever the size, and copies no contents.  If it is
    interrupted, nothing has happened.

    In a mount, programs wait that write meanwhile.  Open files and working directories go on where the snapshot has
    them; what was made since the snapshot is gone (ESTALE).

    \b
    tzfs rollback ws@before
    tzfs rollback -n ws@before       what that would change
    tzfs rollback -r ws@before       and without the snapshots since
    """
    parsed = parse_snapshot(name)
    with progress_bar(f"rolling back {parsed.filesystem}") as hear:
        done = time_travel.rollback(
            store_of(ctx),
            parsed,
            safety=not unsafe,
            destroy_newer=destroy_newer,
            dry_run=dry_run,
            progress=hear,
        )
    if as_json:
        document(
            {
                "name": str(parsed),
                "inodes": done.inodes,
                "safety": done.safety,
                "newer": list(done.newer),
                "destroyed": list(done.destroyed),
            }
        )
        return
    would = "would roll back" if dry_run else "rolled back"
    what = {0: "nothing", 1: "1 file or directory"}.get(done.inodes, f"{done.inodes} files and directories")
    click.echo(f"{would} {parsed.filesystem} to @{parsed.snapshot}: {what} changed")
    if done.safety is not None:
        before = SnapshotName(parsed.filesystem, done.safety)
        click.echo(f"the state before {'would be' if dry_run else 'is'} {before}")
    for gone in done.destroyed:
        click.echo(f"{'would destroy' if dry_run else 'destroyed'} {SnapshotName(parsed.filesystem, gone)}")
