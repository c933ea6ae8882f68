"""create, rename, archive, activate, destroy: the life of a filesystem."""

from __future__ import annotations

import click

from tzfs.cli.parameters import ASSIGNMENT, FILESYSTEM, assignments, store_of


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
@click.argument("old", metavar="FILESYSTEM", type=FILESYSTEM)
@click.argument("new", metavar="[NAMESPACE/]NAME")
@click.pass_context
def rename_command(ctx: click.Context, old: str, new: str) -> None:
    """Give a filesystem another name, mounted or not.  Its contents and snapshots stay as they are.

    \b
    tzfs rename ws agents/researcher
    """
    store_of(ctx).rename(old, new)


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


@click.command()
@click.option("-n", "dry_run", is_flag=True, help="Only see whether it could be done; with -v, say what would go.")
@click.option("-v", "verbose", is_flag=True, help="Say what is destroyed and what it frees.")
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.pass_context
def destroy_command(ctx: click.Context, dry_run: bool, verbose: bool, name: str) -> None:
    """Destroy a filesystem with all its snapshots.  Neither it nor a snapshot of it may be mounted.

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
