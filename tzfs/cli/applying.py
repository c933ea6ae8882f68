"""apply: what a clone has changed, brought back onto its origin."""

from __future__ import annotations

import click

from tzfs import applying
from tzfs.cli.output import document, printable, progress_bar
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.engine.merge import Side
from tzfs.errors import UsageError


@click.command()
@click.option("-n", "dry_run", is_flag=True, help="Say what would be done, with all conflicts, and do nothing.")
@click.option(
    "--onto", metavar="FILESYSTEM", type=FILESYSTEM, help="Another clone of the same snapshot to apply it to."
)
@click.option("--ours", is_flag=True, help="Where both have changed the same, the target keeps what it has.")
@click.option("--theirs", is_flag=True, help="Where both have changed the same, it gets what the clone has.")
@click.option("--no-safety-snapshot", "unsafe", is_flag=True, help="Take no snapshot of the state before.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("clone", metavar="CLONE", type=FILESYSTEM)
@click.pass_context
def apply_command(
    ctx: click.Context,
    dry_run: bool,
    onto: str | None,
    ours: bool,
    theirs: bool,
    unsafe: bool,
    as_json: bool,
    clone: str,
) -> None:
    """Bring a clone's changes back onto the filesystem that it was cloned from, mounted or not.

    Where that has not changed since, it becomes what the clone is.  Otherwise the changes of both are merged, by file:
    a file that both have changed, or that one has changed and the other removed, is a conflict, and nothing is done
    unless --ours or --theirs says whose it is to be.  It takes time for what the clone has changed, whatever the size.
    All of it comes in one step; if it is interrupted, nothing has happened.

    A snapshot of the state before is taken first: rolling back to that one undoes it.  The clone stays as it is, and
    must not be mounted meanwhile.  It may go on and be applied again: what both have alike is no conflict.

    \b
    tzfs apply -n attempt-1
    tzfs apply attempt-1
    tzfs apply --theirs attempt-1
    """
    if ours and theirs:
        raise UsageError("--ours and --theirs exclude each other")
    prefer = Side.OURS if ours else Side.THEIRS if theirs else None
    with progress_bar(f"applying {clone}") as hear:
        done = applying.apply(
            store_of(ctx), clone, onto=onto, prefer=prefer, safety=not unsafe, dry_run=dry_run, progress=hear
        )
    if as_json:
        document({"clone": clone, **applying.to_json(done)})
        return
    would = "would apply" if dry_run else "applied"
    what = {0: "nothing", 1: "1 file or directory"}.get(done.inodes, f"{done.inodes} files and directories")
    click.echo(f"{would} {clone} to {done.target}: {what} changed")
    if dry_run:
        for path in done.paths:
            click.echo(f"  {printable(path)}")
    for path, reason in done.conflicts:
        click.echo(f"conflict: {printable(path)}: {reason}")
    if done.safety is not None:
        click.echo(f"the state before {'would be' if dry_run else 'is'} {done.target}@{done.safety}")
