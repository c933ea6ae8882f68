"""gc: space given back, now or by a timer."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Final

import click

from tzfs.cli.output import Failures, document, working
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.collecting import Collected, to_json
from tzfs.errors import InvalidArgument
from tzfs.units import human_size

UNITS: Final = {
    "service": """\
[Unit]
Description=Give back what was removed from tzfs filesystems that nobody has mounted

[Service]
Type=oneshot
ExecStart={command} gc --all
Nice=10
IOSchedulingClass=idle
""",
    "timer": """\
[Unit]
Description=Collect garbage in tzfs filesystems every hour

[Timer]
OnBootSec=10min
OnUnitActiveSec=1h
RandomizedDelaySec=5min
Persistent=true

[Install]
WantedBy=timers.target
""",
}


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every filesystem of the store that nobody has open.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --all an array, with names.")
@click.option(
    "--print-unit",
    "unit",
    type=click.Choice(list(UNITS)),
    help="Print a unit of systemd for this program and store, and do nothing else.",
)
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM, required=False)
@click.pass_context
def gc_command(ctx: click.Context, everything: bool, as_json: bool, unit: str | None, name: str | None) -> int:
    """Do all background work now: removed files and snapshots, orphans of a crash, space to be given back.

    Payload that is alone in a large segment moves to another; tables with free pages are made smaller, unless another
    process reads them.  A mount does most of this by itself (see gc_interval and compact_interval in tzfs get --help).

    \b
    tzfs gc ws
    tzfs gc --all               what is not mounted: for a timer
    \b
    cd ~/.config/systemd/user   such a timer, once an hour
    tzfs gc --print-unit service > tzfs-gc.service
    tzfs gc --print-unit timer > tzfs-gc.timer
    systemctl --user enable --now tzfs-gc.timer
    """
    if (name is not None) + everything + (unit is not None) != 1:
        raise InvalidArgument("give a filesystem, or --all, or --print-unit", hint="tzfs gc --help")
    if unit is not None:
        click.echo(_unit(ctx, unit), nl=False)
        return 0
    return _all(ctx, as_json=as_json) if name is None else _one(ctx, name, as_json=as_json)


def _one(ctx: click.Context, name: str, *, as_json: bool) -> int:
    store = store_of(ctx)
    with working(f"collecting {name}") as tell:
        done = store.collect(name, progress=lambda c: tell(f"collecting {name}: {_words(c)}"))
    if as_json:
        document(to_json(done))
    else:
        click.echo(f"{name}: {_words(done)}")
    return 0


def _all(ctx: click.Context, *, as_json: bool) -> int:
    failures, found = Failures(), []
    with working("collecting") as tell:
        for name, done in store_of(ctx).collect_unused(failures):
            tell(f"collecting: {name}")
            if as_json:
                found.append({"name": str(name), **to_json(done)})
            else:
                click.echo(f"{name}: {_words(done)}")
    if as_json:
        document(found)
    return failures.code


def _words(done: Collected) -> str:
    parts = [
        f"{human_size(done.bytes)} given back, {done.chunks} chunks and {done.orphans} orphans removed, "
        f"{done.segments} segments unlinked"
    ]
    if done.moved:
        parts.append(f"{human_size(done.moved)} brought together")
    if done.tables > 0:
        parts.append(f"tables smaller by {human_size(done.tables)}")
    if done.in_use:
        parts.append("tables not made smaller: in use by another process")
    return "; ".join(parts)


def _unit(ctx: click.Context, unit: str) -> str:
    store = store_of(ctx).path
    program = Path(sys.argv[0]).resolve()
    words = [os.fspath(program)] if os.access(program, os.X_OK) else [sys.executable, "-m", "tzfs.cli"]
    command = shlex.join([*words, "--store", os.fspath(store)]).replace("%", "%%").replace("$", "$$")
    return UNITS[unit].replace("{command}", command)
