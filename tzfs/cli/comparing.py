"""diff, versions: what has changed, and when."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Final

import click

from tzfs import comparing
from tzfs.cli.output import document, json_line, printable, table, working
from tzfs.cli.parameters import FILESYSTEM, SNAPSHOT, store_of
from tzfs.engine.diff import Difference, Kind
from tzfs.engine.history import FileVersion
from tzfs.errors import InvalidArgument
from tzfs.names import parse_snapshot
from tzfs.units import human_size

# As zfs-diff(8) has them.
TYPES: Final = {
    stat.S_IFBLK: "B",
    stat.S_IFCHR: "C",
    stat.S_IFDIR: "/",
    stat.S_IFIFO: "|",
    stat.S_IFLNK: "@",
    stat.S_IFSOCK: "=",
    stat.S_IFREG: "F",
}
WORDS: Final = {
    "B": "block device", "C": "character device", "/": "directory", "|": "fifo", "@": "symlink", "=": "socket",
    "F": "file",
}  # fmt: skip


@click.command(context_settings={"help_option_names": ["--help"]})
@click.option("-F", "classify", is_flag=True, help="Show each file's type: / directory, F file, @ symlink, | = B C.")
@click.option("-H", "scripted", is_flag=True, help="One tab between columns, and no arrow.")
@click.option("-t", "timestamps", is_flag=True, help="Show first when the inode changed: SECONDS.NANOSECONDS.")
@click.option(
    "-h", "unescaped", is_flag=True, help="Show paths as text, not bytes beyond ASCII, and blanks, as \\0ooo."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, with inode, times, and what is changed.")
@click.option("--patch", "as_patch", is_flag=True, help="The changed contents, as `git diff` shows them.")
@click.argument("snapshot", metavar="FILESYSTEM@SNAPSHOT", type=SNAPSHOT)
@click.argument("more", metavar="[FILESYSTEM[@SNAPSHOT]] [PATH]", nargs=-1, type=SNAPSHOT)
@click.pass_context
def diff_command(
    ctx: click.Context,
    classify: bool,
    scripted: bool,
    timestamps: bool,
    unescaped: bool,
    as_json: bool,
    as_patch: bool,
    snapshot: str,
    more: tuple[str, ...],
) -> None:
    """Show what differs from a snapshot to a newer one, to the filesystem as it is now, or to a clone.

    A line for each path that was made (+), removed (-), modified (M) or renamed (R); the number behind a modified file
    says how many names it has gained or lost.  What was changed and changed back is not shown.  It takes as long as
    there are changes, whatever the size of the filesystem.  PATH, which begins with a slash, shows only what is there
    or below.

    \b
    tzfs diff ws@before
    tzfs diff -F ws@before @after /src
    tzfs diff --patch ws@before
    tzfs diff ws@before attempt        what a clone has changed since it was made
    """
    if as_json and as_patch:
        raise InvalidArgument("--json and --patch exclude each other")
    newer, path = _ends(snapshot, more)
    store = store_of(ctx)

    def line(found: Difference) -> str:
        return _line(found, classify=classify, scripted=scripted, timestamps=timestamps, unescaped=unescaped)

    with working(f"comparing with {snapshot}") as tell:

        def progress(done: int, total: int) -> None:
            tell(f"comparing with {snapshot}: {done:,} of {total:,}")

        ends = (store, snapshot, newer, path)
        output: Iterator[Callable[[], None]]
        if as_patch:
            output = (partial(_write, each) for each in comparing.patch(*ends, progress=progress))
        elif as_json:
            output = (partial(_write_json, each) for each in comparing.diff(*ends, progress=progress))
        else:
            output = (partial(click.echo, line(each)) for each in comparing.diff(*ends, progress=progress))
        first = next(output, None)  # from here on lines say how far it is
    if first is not None:
        first()
    for show in output:
        show()


def _write_json(found: Difference) -> None:
    json_line({**comparing.to_json(found), "type": WORDS.get(TYPES.get(stat.S_IFMT(found.mode), ""), "unknown")})


def _ends(snapshot: str, more: tuple[str, ...]) -> tuple[str | None, str]:
    """(the newer end, the path) of what was given after the older one."""
    if len(more) > 2:
        raise InvalidArgument("too many names: FILESYSTEM@SNAPSHOT [FILESYSTEM[@SNAPSHOT]] [PATH]")
    if len(more) == 2:
        return more[0], more[1]
    if len(more) == 1 and not more[0].startswith("/"):
        return more[0], "/"
    parse_snapshot(snapshot)
    return None, more[0] if more else "/"


def _line(found: Difference, *, classify: bool, scripted: bool, timestamps: bool, unescaped: bool) -> str:
    """As `zfs diff` prints it."""
    show = printable if unescaped else _escaped
    columns = [found.kind.value]
    if timestamps:
        seconds, nanoseconds = divmod(found.ctime_ns, 1_000_000_000)
        columns.insert(0, f"{seconds:10}.{nanoseconds:09}")
    if classify:
        columns.append(TYPES.get(stat.S_IFMT(found.mode), "?"))
    path = show(found.path)
    if found.kind is Kind.RENAMED and found.new_path is not None:
        path += ("\t" if scripted else " -> ") + show(found.new_path)
    columns.append(path)
    if found.links:
        columns.append(f"({found.links:+})")
    return "\t".join(columns)


def _escaped(path: str) -> str:
    """What is not printable ASCII, blanks and backslashes too, as `\\0ooo`, as zfs does."""
    return "".join(chr(b) if 0x20 < b < 0x7F and b != 0x5C else f"\\{b:04o}" for b in os.fsencode(path))


def _write(line: bytes) -> None:
    """A line of a patch: exactly, but on a terminal without what that would obey."""
    if sys.stdout.isatty():
        text = os.fsdecode(line).removesuffix("\n")
        click.echo("\t".join(map(printable, text.split("\t"))))
    else:
        click.echo(line, nl=False)


@click.command()
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("-p", "parsable", is_flag=True, help="Exact numbers; times in nanoseconds since 1970.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.argument("filesystem", metavar="FILESYSTEM", type=FILESYSTEM)
@click.argument("path")
@click.pass_context
def versions_command(
    ctx: click.Context, scripted: bool, parsable: bool, as_json: bool, filesystem: str, path: str
) -> None:
    """List each version of a file that the snapshots and the filesystem have, also after it was removed.

    FIRST and LAST are the oldest and the newest snapshot with that version; a dash is the filesystem as it is now.
    PATH is taken from the filesystem's root.  Each snapshot is looked at: some ten microseconds for each.

    \b
    tzfs versions ws /src/main.c
    """
    found = comparing.versions(store_of(ctx), filesystem, path)
    if as_json:
        document([comparing.version_to_json(version) for version in found])
        return
    rows = [_version(version, parsable=parsable) for version in found]
    table(("first", "last", "modified", "size", "inode"), rows, scripted=scripted, right=("size", "inode"))


def _version(found: FileVersion, *, parsable: bool) -> list[str]:
    modified = str(found.mtime_ns) if parsable else _moment(found.mtime_ns)
    size = str(found.size) if parsable else human_size(found.size)
    return [found.first or "-", found.last or "-", modified, size, str(found.ino)]


def _moment(nanoseconds: int) -> str:
    try:
        return datetime.fromtimestamp(nanoseconds // 1_000_000_000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # no year of four digits
        return str(nanoseconds // 1_000_000_000)
