"""How tables and documents are printed: aligned for people, tab-separated for scripts, JSON for programs.

Colour and progress appear on a terminal only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, scripted: bool, right: Sequence[str] = ()) -> None:
    """Rows under upper-case headers, columns two spaces apart; `scripted`: no headers, one tab between.

    Columns named in `right` are set to the right.
    """
    if scripted:
        for row in rows:
            click.echo("\t".join(row))
        return
    heads = [name.upper() for name in columns]
    widths = [max([len(head), *(len(row[i]) for row in rows)]) for i, head in enumerate(heads)]
    for number, row in enumerate([heads, *rows]):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 and sys.stdout.isatty() else line)


def document(value: object) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal that something is going on; the body may say how far it has come."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console  # 40 ms that only a terminal waits for
    from rich.markup import escape

    with Console(stderr=True).status(escape(what)) as status:
        yield lambda text: status.update(escape(text))
