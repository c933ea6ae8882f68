"""send, receive: snapshots as a stream, to a pipe or a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from tzfs import receiving, sending, units
from tzfs.cli.output import document, working
from tzfs.cli.parameters import FILESYSTEM, SNAPSHOT, store_of
from tzfs.errors import InvalidArgument
from tzfs.names import parse_snapshot

SHOWN_EVERY_S = 0.2


@contextmanager
def _progress(what: str, *, shown: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Says on a terminal how far it is."""
    if not shown:
        yield None
        return
    with working(what) as tell:
        last = 0.0

        def hear(snapshot: str, count: int, size: int) -> None:
            nonlocal last
            if time.monotonic() - last >= SHOWN_EVERY_S:
                last = time.monotonic()
                tell(f"{what}: @{snapshot}, {units.human_size(size)}")

        yield hear


@click.command()
@click.option("-i", "base", metavar="FROM", help="Only what has changed since: @SNAPSHOT or #BOOKMARK, an older one.")
@click.option("-R", "recursive", is_flag=True, help="All snapshots up to it (after FROM, with -i), and the properties.")
@click.option("-t", "token", metavar="TOKEN", help="Go on with a stream that was cut: receive_resume_token has it.")
@click.option("-n", "dry_run", is_flag=True, help="Say what would be sent, and about how much; send nothing.")
@click.option("-v", "verbose", is_flag=True, help="Say what is sent, and on a terminal how far it is.")
@click.option("--json", "as_json", is_flag=True, help="With -n: one JSON object.")
@click.argument("name", metavar="FILESYSTEM@SNAPSHOT", type=SNAPSHOT, required=False)
@click.pass_context
def send_command(
    ctx: click.Context,
    base: str | None,
    recursive: bool,
    token: str | None,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    name: str | None,
) -> None:
    """Write a snapshot to standard output, for `tzfs receive`, mounted or not.

    The stream has everything: names, times, owners, modes, links, extended attributes, contents, and where files have
    holes.  It is checksummed, and bytes are sent uncompressed: compress it on the way if you like.  The filesystem may
    be written meanwhile.

    \b
    tzfs send ws@monday > ws.tzs                 all of it
    tzfs send -i @monday ws@friday | ...         what has changed since
    tzfs send -R ws@friday | ssh host tzfs receive ws
    tzfs send -n -v -i '#monday' ws@friday       how much that would be
    tzfs send -t TOKEN                           go on where it was cut
    """
    if (name is None) == (token is None) or (token is not None and (base or recursive or dry_run)):
        raise InvalidArgument("give FILESYSTEM@SNAPSHOT, or a TOKEN alone", hint="tzfs send --help")
    store = store_of(ctx)
    if dry_run and name is not None:
        _estimate(sending.estimate(store, name, base=base, recursive=recursive), name, as_json=as_json)
        return
    if sys.stdout.isatty():
        raise InvalidArgument(
            "a stream is not written to a terminal", hint="write it to a file or a pipe: tzfs send ... > FILE"
        )
    out = sys.stdout.buffer
    with _progress("sending", shown=verbose) as hear:
        if token is not None:
            sent = sending.send_on(store, token, out.write, progress=hear)
        else:
            assert name is not None
            sent = sending.send(store, name, out.write, base=base, recursive=recursive, progress=hear)
        out.flush()
    if verbose:
        for snapshot in sent.snapshots:
            click.echo(f"sent @{snapshot}", err=True)
        click.echo(f"{sent.inodes} files and directories, {units.human_size(sent.bytes)}", err=True)


def _estimate(pieces: list[sending.Piece], name: str, *, as_json: bool) -> None:
    filesystem = parse_snapshot(name).filesystem
    total = sum(piece.bytes for piece in pieces)
    if as_json:
        rows = [{"name": f"{filesystem}@{p.name}", "base": p.base, "bytes": p.bytes} for p in pieces]
        document({"snapshots": rows, "bytes": total})
        return
    for piece in pieces:
        since = "" if piece.base is None else f" from {piece.base if piece.base[:1] == '#' else '@' + piece.base}"
        click.echo(f"would send {filesystem}@{piece.name}{since}: about {units.human_size(piece.bytes)}")
    click.echo(f"about {units.human_size(total)} in all")


@click.command()
@click.option("-F", "force", is_flag=True, help="First roll back to the snapshot that the stream starts from.")
@click.option("-s", "resumable", is_flag=True, help="If it is cut, keep what has come, to go on later.")
@click.option("-A", "abandon", is_flag=True, help="Give up a receive that was cut, and what it has kept.")
@click.option("-n", "dry_run", is_flag=True, help="Read the stream to its end, check it, and do nothing.")
@click.option("-v", "verbose", is_flag=True, help="On a terminal, show how far it is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("name", metavar="FILESYSTEM[@SNAPSHOT]", type=FILESYSTEM)
@click.pass_context
def receive_command(
    ctx: click.Context,
    force: bool,
    resumable: bool,
    abandon: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    name: str,
) -> None:
    """Read a stream of `tzfs send` from standard input, into a filesystem that is not mounted.

    A stream of a whole snapshot makes a new filesystem.  One that starts from a snapshot goes into a filesystem whose
    newest snapshot that is, and that has not changed since; -F makes it so, and loses what is newer.  The snapshot is
    there when all of it has come and been checked; until then nothing has changed.  With @SNAPSHOT it gets that name.
    Contents are compressed as the property `compression` of the filesystem here says, whatever it was where they were.

    A receive with -s that is cut keeps what has come, and does nothing else until it goes on or is given up; `tzfs get
    receive_resume_token` says where it goes on.

    \b
    tzfs receive copy < ws.tzs
    tzfs send -i @monday ws@friday | tzfs receive -F copy
    tzfs send -t "$(tzfs get -H -o value receive_resume_token copy)" | tzfs receive -s copy
    """
    store = store_of(ctx)
    if abandon:
        receiving.abandon(store, name)
        return
    if sys.stdin.isatty():
        raise InvalidArgument("a stream is not read from a terminal", hint="tzfs receive FILESYSTEM < FILE")
    with _progress("receiving", shown=verbose) as hear:
        done = receiving.receive(
            store,
            name,
            sys.stdin.buffer.read,
            force=force,
            resumable=resumable,
            dry_run=dry_run,
            progress=hear,
        )
    if as_json:
        names = [f"{done.filesystem}@{snapshot}" for snapshot in done.snapshots]
        document({"name": str(done.filesystem), "snapshots": names, "bytes": done.bytes, "created": done.created})
        return
    for snapshot in done.snapshots:
        click.echo(f"{'would receive' if dry_run else 'received'} {done.filesystem}@{snapshot}")
