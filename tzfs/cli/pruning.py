"""prune: destroys the snapshots that no policy keeps."""

from __future__ import annotations

import click

from tzfs import policies
from tzfs.cli.output import document
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.names import parse_filesystem
from tzfs.units import human_size


@click.command()
@click.option("-n", "dry_run", is_flag=True, help="Destroy nothing; with -v, say what would be.")
@click.option("-v", "verbose", is_flag=True, help="Say of each snapshot what keeps it, or that it is destroyed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array: name, and kept_by, null for what is destroyed.")
@click.argument("names", metavar="FILESYSTEM...", nargs=-1, required=True, type=FILESYSTEM)
@click.pass_context
def prune_command(ctx: click.Context, dry_run: bool, verbose: bool, as_json: bool, names: tuple[str, ...]) -> None:
    """Destroy the snapshots that the policy does not keep: tzfs policy --help.

    Only automatic snapshots (auto-*), unless the policy names others; never what is held, bookmarked or the origin of a
    clone.  Without a policy nothing is destroyed.

    \b
    tzfs prune -nv ws       what would be destroyed, and what keeps the others
    tzfs prune ws
    """
    store = store_of(ctx)
    would = "would " if dry_run else ""
    told = []
    for filesystem in map(parse_filesystem, names):
        found, freed = policies.prune(store, filesystem, dry_run=dry_run)
        told += [{"name": f"{filesystem}@{v.name}", "kept_by": v.kept_by} for v in found]
        if verbose and not as_json:
            for v in found:
                what = f"{would}destroy" if v.kept_by is None else "keep"
                click.echo(f"{what} {filesystem}@{v.name}" + (f" ({v.kept_by})" if v.kept_by else ""))
            click.echo(f"{would}reclaim {human_size(freed)}")
    if as_json:
        document(told)
