"""check: whether everything in a filesystem is as it must be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.engine.check.problems import Progress
from tzfs.errors import CorruptionError, exit_code_of
from tzfs.units import human_size


@click.command()
@click.option("--payload", is_flag=True, help="Read all contents too, and compare them with their sums.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: each problem, then what was read.")
@click.argument("name", type=FILESYSTEM)
@click.pass_context
def check_command(ctx: click.Context, payload: bool, as_json: bool, name: str) -> int:
    """Test everything that must hold in a filesystem, mounted or not.  Nothing is repaired.

    The exit code is 0 where all is well and 65 where something is damaged.

    \b
    tzfs check ws               names, records, snapshots, space
    tzfs check ws --payload     and every byte of contents
    """
    with _bar(f"checking {name}") as hear:
        found = store_of(ctx).check(name, payload=payload, progress=hear)
    for problem in found.problems:
        if as_json:
            row = {"rule": problem.rule, "table": problem.table, "key": problem.key.hex(), "words": problem.words}
            click.echo(json.dumps(row, ensure_ascii=False))
        else:
            click.echo(str(problem))
    if as_json:
        whole = {"problems": found.found, "rows": found.rows, "payload_bytes": found.payload_bytes}
        click.echo(json.dumps(whole))
    else:
        unlisted = found.found - len(found.problems)
        if unlisted:
            click.echo(f"and {unlisted} more")
        read = f" and {human_size(found.payload_bytes)} of contents" if payload else ""
        words = "1 problem" if found.found == 1 else f"{found.found or 'no'} problems"
        click.echo(f"{name}: {words}; {found.rows} rows{read} read")
    return exit_code_of(CorruptionError("")) if found.found else 0


@contextmanager
def _bar(what: str) -> Iterator[Callable[[Progress], None] | None]:
    """A progress bar on a terminal; what is read longest is what it shows."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # 40 ms that only a terminal waits for
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def hear(progress: Progress) -> None:
            done, total = progress.rows, progress.total
            if progress.payload_total:
                done, total = progress.payload_bytes, progress.payload_total
            bar.update(task, completed=done, total=total, description=f"{what}: {progress.stage}")

        yield hear
