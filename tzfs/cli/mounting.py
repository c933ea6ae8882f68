"""mount, umount, status: what is where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tzfs.cli.output import document, say, table
from tzfs.cli.parameters import DIRECTORY, FILESYSTEM, MOUNT, store_of
from tzfs.control import connect
from tzfs.errors import Busy, InvalidArgument, NameTooLong, NotFound, NotSupported, TzfsError, UsageError, WrongState
from tzfs.lifecycle import Command, check
from tzfs.limits import PATH_BYTES_MAX
from tzfs.management import MountStatus, Store
from tzfs.names import SnapshotName, parse, show
from tzfs.runtime import log_path, place_of, runtime_directory
from tzfs.units import human_size

if TYPE_CHECKING:
    from tzfs.mount.daemon import MountOptions

FLAGS = {
    "ro": "readonly",
    "allow_other": "allow_other",
    "xattr": "xattr",
    "writeback": "writeback",
    "nonempty": "nonempty",
}
ASK_S = 2.0  # how long another mount may take to say where it is


def parse_options(texts: tuple[str, ...]) -> MountOptions:
    """Mount options, comma-separated; `InvalidArgument` names one that is not known."""
    try:
        from tzfs.mount.daemon import MountOptions  # pyfuse3 and trio: 60 ms that other commands do not pay
    except ModuleNotFoundError as error:
        raise NotSupported(f"mounting needs {error.name}", hint="pip install 'tzfs[mount]'") from None

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
                f"mount option {show(text.strip())} is not known",
                hint="there are ro, allow_other, xattr, writeback, nonempty, noanswers, nopump "
                "and spin=MICROSECONDS (0 to 10000)",
            )
    options = MountOptions(**flags)
    return options if spin_us is None else MountOptions(**flags, spin_us=spin_us)


def mount(store: Store, name: str, where: Path, options: MountOptions, *, foreground: bool = False) -> None:
    """Mounts in a process of its own, and returns when it serves; closes the store."""
    from tzfs.mount import background, daemon, mountpoint

    parsed = parse(name)
    if isinstance(parsed, SnapshotName):
        info = store.get(parsed.filesystem, Command.MOUNT_SNAPSHOT)
    else:
        try:
            info = store.get(parsed)
        except NotFound:
            check(Command.MOUNT, parsed, None)  # the same, in the words of this command
            raise
    if len(os.fsencode(where)) > PATH_BYTES_MAX:
        raise NameTooLong(f"mountpoint {show(os.fspath(where))}: a path has at most {PATH_BYTES_MAX} bytes")
    where = mountpoint.prepare(where, store=store.path, nonempty=options.nonempty)
    log = log_path(str(parsed), place_of(info.guid, info.folder))
    path = store.path
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
@click.argument("name", metavar="FILESYSTEM|SNAPSHOT", type=FILESYSTEM)
@click.argument("directory", type=DIRECTORY)
@click.pass_context
def mount_command(ctx: click.Context, foreground: bool, options: tuple[str, ...], name: str, directory: str) -> None:
    """Mount a filesystem, or a snapshot of it read-only, at a directory.  An archived one is mounted read-only.

    Goes to the background when the mount is ready, and logs to $XDG_STATE_HOME/tzfs.  A mountpoint left by a crash is
    taken over.

    \b
    tzfs mount ws ~/ws
    tzfs mount ws@before /tmp/before
    """
    if not directory:
        raise InvalidArgument("mountpoint is empty", hint="give a directory; . is the one you are in")
    mount(store_of(ctx), name, Path(directory), parse_options(options), foreground=foreground)


@click.command()
@click.option("-l", "--lazy", is_flag=True, help="Also while programs use it: it goes when they have left.")
@click.argument("target", metavar="FILESYSTEM|SNAPSHOT|DIRECTORY", type=MOUNT)
@click.pass_context
def umount_command(ctx: click.Context, lazy: bool, target: str) -> None:
    """Unmount, by name or by directory; returns when everything is durable and the mount's process has ended.

    A directory may be a mount of any store, and one whose process has died.

    \b
    tzfs umount ws
    tzfs umount ~/ws
    """
    from tzfs.mount import mountpoint

    where, daemon = _find(store_of(ctx), target)
    mountpoint.unmount(where, lazy=lazy, daemon=daemon)


def _find(store: Store, target: str) -> tuple[Path, int | None]:
    """The mount that is meant, and its process where that is known."""
    from tzfs.mount import mountpoint

    if not target:
        raise InvalidArgument("the name of what to unmount is empty", hint="tzfs status shows what is mounted")
    live = [s for s in store.status(ask=False) if s.mountpoint != "-"]
    where = mountpoint.locate(target)
    here = mountpoint.mount_at(where)
    if here is not None and here.fstype == mountpoint.FSTYPE:
        return where, next((s.pid for s in reversed(live) if s.mountpoint == os.fspath(where)), _asked(where))
    try:
        parsed = parse(target)
    except UsageError:
        parsed = None
    named = [s for s in live if s.what == str(parsed)]
    if len(named) > 1:
        places = [s.mountpoint for s in named]
        raise Busy(f"{target} is mounted at {', '.join(places)}", holders=places, hint="give the directory")
    if named:
        return Path(named[0].mountpoint), named[0].pid
    if parsed is not None:
        dead = [s.mountpoint for s in _dead(store, live) if s.what == str(parsed)]
        if len(dead) > 1:
            raise Busy(f"{target} was mounted at {', '.join(dead)}", holders=dead, hint="give the directory")
        if dead:
            return Path(dead[0]), None
        if not os.path.isdir(where):
            filesystem = parsed.filesystem if isinstance(parsed, SnapshotName) else parsed
            known = {info.name: info.state for info in store.filesystems(on_damage=lambda error: None)}
            check(Command.UMOUNT, target, known.get(filesystem))
    raise NotFound(f"{target}: nothing of tzfs is mounted there", hint="tzfs status shows what is mounted")


def _asked(where: Path) -> int | None:
    """The process of a mount that is not this store's, from the one of the user's mounts that says it is there."""
    for path in sorted(runtime_directory().glob("*.sock")):
        try:
            with connect(path, timeout_s=ASK_S) as mount:
                told = mount.call("info")
        except TzfsError:
            continue
        if isinstance(told, dict) and told.get("mountpoint") == os.fspath(where):
            return int(str(told["pid"]))
    return None


def _dead(store: Store, live: list[MountStatus]) -> list[MountStatus]:
    """The mounts of the store's filesystems and snapshots whose process has died."""
    from tzfs.mount import mountpoint

    served = {s.mountpoint for s in live}
    topmost = {m.path: m for m in mountpoint.tzfs_mounts()}  # it hides the others
    unserved = [m for m in topmost.values() if os.fspath(m.path) not in served]
    if not unserved:
        return []
    names = {place_of(info.guid, info.folder): info.name for info in store.filesystems(on_damage=lambda error: None)}
    found = []
    for mounted in unserved:
        where, (place, at) = os.fspath(mounted.path), mounted.what
        if place in names and mountpoint.is_dead(mounted.path):
            found.append(
                MountStatus(f"{names[place]}{at}", where, 0, "dead", f"its process has died: tzfs umount {where}")
            )
    return found


def _state(status: MountStatus) -> str:
    if status.failed:
        return status.failed
    freeing = [f"freeing {human_size(status.freeing)}"] if status.freeing else []
    return "; ".join([*status.warnings, *freeing]) or "ok"


@click.command()
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--statistics", metavar="FILESYSTEM", type=FILESYSTEM, help="What its mount has done, as JSON.")
@click.pass_context
def status_command(ctx: click.Context, scripted: bool, as_json: bool, statistics: str | None) -> None:
    """Show what is mounted or open where, by which process, and what has failed.

    KIND is mount, snapshot, or what else has a filesystem open: a program, a command.  STATE is ok, or what is wrong:
    what has failed, background tasks that failed and will be tried again (tzfs status --statistics has more of them),
    quotas that are nearly used up (quota_warnings), what destroyed snapshots still hold, and, for a mount whose process
    has died, what to do.

    \b
    tzfs status
    tzfs status --statistics ws | jq .requests
    """
    store = store_of(ctx)
    if statistics is not None:
        info = store.get(statistics)
        mount = store.mounted(info)
        if mount is None:
            raise WrongState(f"{statistics} is not mounted", hint="tzfs status shows what is mounted")
        with mount:
            document(mount.call("stats"))
        return
    found = store.status()
    found += _dead(store, found)
    for problem in store.catalog.unsettled:
        say("tzfs", f"an interrupted command could not be finished: {problem}")
    if as_json:
        document(
            [
                {
                    "name": s.what,
                    "mountpoint": s.mountpoint,
                    "pid": s.pid or None,
                    "kind": s.kind,
                    "failed": s.failed,
                    "warnings": [*s.warnings],
                    "freeing": s.freeing,
                }
                for s in found
            ]
        )
        return
    rows = [[s.what, s.mountpoint, str(s.pid or "-"), s.kind, _state(s)] for s in found]
    table(["name", "mountpoint", "pid", "kind", "state"], rows, scripted=scripted)
