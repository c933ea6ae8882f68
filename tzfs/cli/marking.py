"""hold, holds, release, bookmark: what is said about snapshots."""

from __future__ import annotations

import time

import click

from tzfs import marking
from tzfs.cli.output import Failures, document, table
from tzfs.cli.parameters import SNAPSHOT, store_of
from tzfs.management import Store
from tzfs.names import parse_snapshot

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
RECURSIVE = click.option(
    "-r",
    "recursive",
    is_flag=True,
    help="Of every filesystem in the namespace of that name too; NAMESPACE/@SNAPSHOT: only those; /@SNAPSHOT: of all.",
)
SNAPSHOTS = click.argument("names", metavar="FILESYSTEM@SNAPSHOT...", nargs=-1, required=True, type=SNAPSHOT)


def snapshots_of(store: Store, names: tuple[str, ...], *, recursive: bool, failures: Failures) -> marking.Names:
    """What the names mean, with or without `-r`."""
    if recursive:
        return {name: of for text in names for name, of in marking.existing(store, text, failures).items()}
    return [parse_snapshot(name) for name in names]


@click.command()
@RECURSIVE
@click.argument("tag")
@SNAPSHOTS
@click.pass_context
def hold_command(ctx: click.Context, recursive: bool, tag: str, names: tuple[str, ...]) -> int:
    """Keep snapshots from being destroyed, until TAG is released.  One may have several holds; no two of one tag.

    With -r, snapshots are passed over where a filesystem has none of the name.

    \b
    tzfs hold keep ws@before-refactoring
    tzfs hold -r backup agents@nightly
    """
    store, failures = store_of(ctx), Failures()
    found = snapshots_of(store, names, recursive=recursive, failures=failures)
    marking.hold(store, tag, found, failures if recursive else None)
    return failures.code


@click.command()
@RECURSIVE
@click.argument("tag")
@SNAPSHOTS
@click.pass_context
def release_command(ctx: click.Context, recursive: bool, tag: str, names: tuple[str, ...]) -> int:
    """Take a hold away.  A snapshot without holds can be destroyed again.

    \b
    tzfs release keep ws@before-refactoring
    """
    store, failures = store_of(ctx), Failures()
    found = snapshots_of(store, names, recursive=recursive, failures=failures)
    marking.release(store, tag, found, failures if recursive else None)
    return failures.code


@click.command()
@RECURSIVE
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("-p", "parsable", is_flag=True, help="Times in seconds since 1970.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array: name, tag and timestamp.")
@SNAPSHOTS
@click.pass_context
def holds_command(
    ctx: click.Context, recursive: bool, scripted: bool, parsable: bool, as_json: bool, names: tuple[str, ...]
) -> int:
    """List the holds of snapshots: what keeps them from being destroyed, and since when.

    \b
    tzfs holds ws@before-refactoring
    tzfs holds -rH agents@nightly
    """
    store, failures = store_of(ctx), Failures()
    snapshots = snapshots_of(store, names, recursive=recursive, failures=failures)
    found = marking.holds(store, snapshots, failures if recursive else None)
    if as_json:
        document([{"name": str(h.snapshot), "tag": h.tag, "timestamp": h.created_ns // 1_000_000_000} for h in found])
        return failures.code
    rows = [[str(h.snapshot), h.tag, _when(h.created_ns // 1_000_000_000, parsable=parsable)] for h in found]
    if rows or not scripted:
        table(("name", "tag", "timestamp"), rows, scripted=scripted)
    return failures.code


def _when(seconds: int, *, parsable: bool) -> str:
    """As `zfs holds` has it, in no language but one: `Thu Nov 26 10:00 2026`."""
    if parsable:
        return str(seconds)
    t = time.localtime(seconds)
    return f"{DAYS[t.tm_wday]} {MONTHS[t.tm_mon - 1]} {t.tm_mday:2} {t.tm_hour:02}:{t.tm_min:02} {t.tm_year}"


@click.command()
@click.argument("snapshot", metavar="FILESYSTEM@SNAPSHOT", type=SNAPSHOT)
@click.argument("bookmark", metavar="[FILESYSTEM]#BOOKMARK")
@click.pass_context
def bookmark_command(ctx: click.Context, snapshot: str, bookmark: str) -> None:
    """Remember a snapshot after it is destroyed: what has changed since can still be told, and sent to a copy of it.

    A bookmark keeps no contents.  While there is one, what is removed leaves a few bytes behind, until the bookmark is
    destroyed: tzfs destroy FILESYSTEM#BOOKMARK.

    \b
    tzfs bookmark ws@sent '#sent'
    tzfs list -t bookmark ws
    """
    marking.bookmark(store_of(ctx), snapshot, bookmark)
