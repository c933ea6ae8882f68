"""mount, umount, status: what is where."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tzfs.cli.output import document, table
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.control import connect
from tzfs.errors import Busy, InvalidArgument, NotFound, TzfsError
from tzfs.management import MountStatus, Store
from tzfs.names import SnapshotName, parse
from tzfs.runtime import log_path

if TYPE_CHECKING:
    from tzfs.mount.daemon import MountOptions

FLAGS = {
    "ro": "readonly",
    "allow_other": "allow_other",
    "xattr": "xattr",
    "writeback": "writeback",
    "nonempty": "nonempty",
}
GONE_S = 60.0  # how long umount waits for the daemon's last commit


def parse_options(texts: tuple[str, ...]) -> MountOptions:
    """Mount options, comma-separated; `InvalidArgument` names one that is not known."""
    from tzfs.mount.daemon import MountOptions  # pyfuse3 and trio: 60 ms that other commands do not pay

    flags: dict[str, bool] = {}
    spin_us: int | None = None
    for text in ",".join(texts).split(","):
        name, _, value = text.strip().partition("=")
        if name in FLAGS and not value:
            flags[FLAGS[name]] = True
        elif name == "nopump" and not value:
            flags["use_pump"] = False
        elif name == "noanswers" and not value:
            flags["use_answers"] = False
        elif name == "spin" and value.isdigit() and int(value) <= 10_000:
            spin_us = int(value)
        elif text.strip():
            raise InvalidArgument(
                f"mount option {text!r} is not known",
                hint="there are ro, allow_other, xattr, writeback, nonempty, noanswers, nopump "
                "and spin=MICROSECONDS (0 to 10000)",
            )
    options = MountOptions(**flags)
    return options if spin_us is None else MountOptions(**flags, spin_us=spin_us)


def mount(store: Store, name: str, where: Path, options: MountOptions, *, foreground: bool = False) -> None:
    """Mounts in a process of its own, and returns when it serves."""
    from tzfs.mount import background, daemon, mountpoint

    parsed = parse(name)
    info = store.get(parsed.filesystem if isinstance(parsed, SnapshotName) else parsed)
    where = mountpoint.prepare(where, store=store.path, nonempty=options.nonempty)
    log, path = log_path(str(parsed), info.guid), store.path
    store.close()  # tables do not survive a fork
    background.run(
        lambda ready: daemon.serve(path, str(parsed), where, options, ready), foreground=foreground, log_path=log
    )


@click.command()
@click.option("-f", "foreground", is_flag=True, help="Stay in the foreground, log to standard error.")
@click.option(
    "-o",
    "options",
    metavar="OPTION,...",
    multiple=True,
    help="ro: read-only, as an archived filesystem is anyway.  allow_other: other users may enter.  xattr: extended "
    "attributes.  writeback: the kernel keeps written pages.  nonempty: hide what is in the directory.  noanswers: "
    "nothing is answered in C.  nopump: pyfuse3's own request loop.  spin=MICROSECONDS: how long to poll for a next "
    "request.",
)
@click.argument("name", type=FILESYSTEM)
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_context
def mount_command(ctx: click.Context, foreground: bool, options: tuple[str, ...], name: str, directory: Path) -> None:
    """Mount a filesystem, or a snapshot of it read-only, at a directory.  An archived one is mounted read-only.

    Goes to the background when the mount is ready.  A mountpoint left by a crash is taken over.

    \b
    tzfs mount ws ~/ws
    tzfs mount ws@before /tmp/before
    """
    mount(store_of(ctx), name, directory, parse_options(options), foreground=foreground)


@click.command()
@click.option("-l", "--lazy", is_flag=True, help="Also while programs use it: it goes when they have left.")
@click.argument("target", metavar="FILESYSTEM|SNAPSHOT|DIRECTORY", type=FILESYSTEM)
@click.pass_context
def umount_command(ctx: click.Context, lazy: bool, target: str) -> None:
    """Unmount, by name or by directory; returns when everything is durable and the mount's process has ended."""
    from tzfs.mount import mountpoint

    store = store_of(ctx)
    found = _find(store, target)
    if found is None:
        where = Path(os.path.abspath(target))
        there = mountpoint.mount_at(where)
        if there is None or there.fstype != mountpoint.FSTYPE:
            raise NotFound(f"{target}: nothing of tzfs is mounted there", hint="tzfs status shows what is mounted")
        mountpoint.unmount(where, lazy=lazy)  # a mount of another store, or one whose process is gone
        return
    mountpoint.unmount(Path(found.mountpoint), lazy=lazy)
    _wait(lambda: not any(s.pid == found.pid for s in store.status(ask=False)), found)


def _find(store: Store, target: str) -> MountStatus | None:
    where = os.path.abspath(target)
    by_path = [s for s in store.status(ask=False) if s.mountpoint == where or s.mountpoint == os.path.realpath(target)]
    if by_path:
        return by_path[-1]
    try:
        name = str(parse(target))
    except TzfsError:
        return None
    by_name = [s for s in store.status(ask=False) if s.what == name and s.mountpoint != "-"]
    if len(by_name) > 1:
        places = [s.mountpoint for s in by_name]
        raise Busy(f"{name} is mounted at {', '.join(places)}", holders=places, hint="give the directory")
    if not by_name:
        if os.path.sep in target and not name.count("/"):
            return None
        try:
            store.get(parse(target).filesystem if "@" in target else target)  # type: ignore[union-attr]  # it has an @
        except NotFound:
            return None
        raise NotFound(f"{name} is not mounted", hint="tzfs status shows what is mounted")
    return by_name[0]


def _wait(gone: Callable[[], bool], found: MountStatus) -> None:
    until = time.monotonic() + GONE_S
    pause = 0.002
    while not gone():
        if time.monotonic() > until:
            raise Busy(f"process {found.pid} of {found.what} is still at work", hint="its log says at what")
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


@click.command()
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--statistics", metavar="FILESYSTEM", help="What its mount has done, as JSON.")
@click.pass_context
def status_command(ctx: click.Context, scripted: bool, as_json: bool, statistics: str | None) -> None:
    """Show what is mounted or open where, by which process, and what has failed."""
    store = store_of(ctx)
    if statistics is not None:
        holder = store.catalog.holder(store.get(statistics))
        if holder is None or not isinstance(holder.get("socket"), str):
            raise NotFound(f"{statistics} is not mounted")
        with connect(Path(str(holder["socket"]))) as client:
            document(client.call("stats"))
        return
    found = store.status()
    if as_json:
        document(
            [
                {"name": s.what, "mountpoint": s.mountpoint, "pid": s.pid, "kind": s.kind, "failed": s.failed}
                for s in found
            ]
        )
        return
    rows = [[s.what, s.mountpoint, str(s.pid), s.kind, s.failed or "ok"] for s in found]
    table(["name", "mountpoint", "pid", "kind", "state"], rows, scripted=scripted)
