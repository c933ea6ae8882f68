"""How tables, documents and messages are printed: aligned for people, tab-separated for scripts, JSON for programs.

Colour and progress appear on a terminal only.  A line that is printed is one line, and text: what a name, a path or a
value has of control characters, or of bytes that are no UTF-8, is shown escaped; `--json` has it exactly.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click

from tzfs.errors import TzfsError, exit_code_of

# What json.dumps leaves as it is and a terminal would obey, or UTF-8 cannot say (the bytes that os.fsdecode escaped).
_NOT_TEXT: Final = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with what cannot be printed written as in a string of Python's: a newline as backslash and `n`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(word: str, text: str) -> None:
    """A line of words, to standard error: `tzfs: ...`, `hint: ...`."""
    click.echo(f"{word}: {printable(text)}", err=True)


def complain(error: TzfsError) -> None:
    """What has gone wrong, and what to try."""
    say("tzfs", str(error))
    if error.hint:
        say("hint", error.hint)


class Failures:
    """What keeps one of several from being done: told at once, and once; `code` is the exit code of the first."""

    def __init__(self) -> None:
        self.code = 0
        self._told: set[str] = set()

    def __call__(self, error: TzfsError) -> None:
        text = str(error)
        if text not in self._told:
            self._told.add(text)
            complain(error)
        self.code = self.code or exit_code_of(error)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, scripted: bool, right: Sequence[str] = ()) -> None:
    """Rows under upper-case headers, columns two spaces apart; `scripted`: no headers, one tab between.

    Columns named in `right` are set to the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
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
    click.echo(_json(value, indent=2 if sys.stdout.isatty() else None))


def _json(value: object, *, indent: int | None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _NOT_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def json_line(value: object) -> None:
    """One JSON document on one line, of several."""
    click.echo(_json(value, indent=None))


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


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Shows on a terminal how much is done, of about how much; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
