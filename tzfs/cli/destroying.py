"""destroy: snapshots, bookmarks, and filesystems with all they have."""

from __future__ import annotations

import click

from tzfs.cli.output import document, say, working
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.destroying import destroy
from tzfs.units import human_size


@click.command()
@click.option("-n", "dry_run", is_flag=True, help="Only see whether it could be done; with -v, say what would go.")
@click.option("-v", "verbose", is_flag=True, help="Say what is destroyed and what it frees.")
@click.option("-p", "parsable", is_flag=True, help="As -v, for scripts: `destroy<tab>NAME`, `reclaim<tab>BYTES`.")
@click.option("-r", "recursive", is_flag=True, help="A filesystem's snapshots too; snapshots in all of a namespace.")
@click.option("-R", "clones", is_flag=True, help="As -r, and whatever was cloned from them.")
@click.option(
    "--damaged",
    is_flag=True,
    help="Also a filesystem that cannot even be mounted read-only, or whose holds damage keeps from being released.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("name", metavar="FILESYSTEM[@SNAPSHOT[%SNAPSHOT][,...]]", type=FILESYSTEM)
@click.pass_context
def destroy_command(
    ctx: click.Context,
    dry_run: bool,
    verbose: bool,
    parsable: bool,
    recursive: bool,
    clones: bool,
    damaged: bool,
    as_json: bool,
    name: str,
) -> None:
    """Destroy snapshots, mounted or not; or a filesystem that is not mounted, with -r also its snapshots.

    A snapshot's name is gone at once.  What only it had is freed in the background of a mount (tzfs get freeing), and
    by this command where there is none; interrupted, it goes on when the filesystem is next opened, or with tzfs gc.
    What is held, read, or the origin of a clone is refused, and who is in the way is named.

    \b
    tzfs destroy ws@before          a snapshot
    tzfs destroy ws@a,c%e           several: a, and from c to e
    tzfs destroy ws@%               all of them
    tzfs destroy -nv ws@%before     what would be freed: all up to `before`
    tzfs destroy -r agents/@step-1  of each filesystem in the namespace
    tzfs destroy ws#before          a bookmark
    tzfs destroy -r ws              the filesystem and its snapshots, gone for good
    tzfs destroy --damaged ws       one that cannot be read, with whatever snapshots and holds it has
    tzfs destroy --damaged -r ws    one with snapshots whose holds cannot be released any more
    """
    store = store_of(ctx)
    with working(f"destroying {name}") as tell:
        done = destroy(
            store,
            name,
            dry_run=dry_run,
            recursive=recursive,
            clones=clones,
            damaged=damaged,
            progress=lambda left: tell(f"destroying {name}: {human_size(left)} to be freed"),
        )
    for filesystem in done.archived:
        say("tzfs", f"{filesystem} is archived, and passed over")
    if as_json:
        document({"destroyed": [str(each) for each in done.names], "bytes": done.bytes, "dry_run": dry_run})
    elif parsable:
        for each in done.names:
            click.echo(f"destroy\t{each}")
        click.echo(f"reclaim\t{done.bytes}")
    elif verbose:
        would = "would " if dry_run else ""
        for each in done.names:
            click.echo(f"{would}destroy {each}")
        click.echo(f"{would}reclaim {human_size(done.bytes)}")
