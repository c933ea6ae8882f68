"""create, rename, archive, activate, destroy: the life of a filesystem."""

from __future__ import annotations

import click

from tzfs.cli.parameters import FILESYSTEM, assignments, store_of


@click.command()
@click.option("-o", "options", metavar="PROPERTY=VALUE", multiple=True, help="Set a property; may be repeated.")
@click.argument("name")
@click.pass_context
def create_command(ctx: click.Context, options: tuple[str, ...], name: str) -> None:
    """Create a filesystem: [NAMESPACE/]NAME.

    \b
    tzfs create agents/researcher -o agent:model=small
    """
    store_of(ctx).create(name, assignments(options))


@click.command()
@click.argument("old", type=FILESYSTEM)
@click.argument("new")
@click.pass_context
def rename_command(ctx: click.Context, old: str, new: str) -> None:
    """Give a filesystem another name, mounted or not."""
    store_of(ctx).rename(old, new)


@click.command()
@click.argument("name", type=FILESYSTEM)
@click.pass_context
def archive_command(ctx: click.Context, name: str) -> None:
    """Make a filesystem read-only until it is activated.  It must not be mounted."""
    store_of(ctx).archive(name)


@click.command()
@click.argument("name", type=FILESYSTEM)
@click.pass_context
def activate_command(ctx: click.Context, name: str) -> None:
    """Make an archived filesystem writable again."""
    store_of(ctx).activate(name)


@click.command()
@click.option("-n", "dry_run", is_flag=True, help="Only say whether it could be done; with -v, what would go.")
@click.option("-v", "verbose", is_flag=True, help="Say what is destroyed and what it frees.")
@click.argument("name", type=FILESYSTEM)
@click.pass_context
def destroy_command(ctx: click.Context, dry_run: bool, verbose: bool, name: str) -> None:
    """Destroy a filesystem with all its snapshots.  It must not be mounted, nor a snapshot of it.

    \b
    tzfs destroy -nv ws         what would be destroyed
    tzfs destroy ws             gone for good
    """
    store = store_of(ctx)
    lines = []
    if verbose:
        would = "would " if dry_run else ""
        info = store.get(name)
        used = store.properties(info)["used"].human
        lines = [f"{would}destroy {s.name}" for s in store.snapshots(info)]
        lines += [f"{would}destroy {info.name}", f"{would}reclaim {used}"]
    store.destroy(name, dry_run=dry_run)
    for line in lines:
        click.echo(line)
