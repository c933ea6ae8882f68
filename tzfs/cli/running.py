"""run: a command in a workspace, wherever that is mounted."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from tzfs.cli import mounting
from tzfs.cli.parameters import FILESYSTEM, store_of
from tzfs.errors import TzfsError
from tzfs.lifecycle import Command, check
from tzfs.management import Store, open_store
from tzfs.runtime import runtime_directory

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "options", metavar="OPTION,...", multiple=True, help="Mount options, where it has to be mounted.")
@click.argument("name", type=FILESYSTEM)
@click.argument("command", metavar="-- COMMAND [ARGUMENT...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run_command(ctx: click.Context, options: tuple[str, ...], name: str, command: tuple[str, ...]) -> int:
    """Run a command with its working directory in a filesystem.

    The mount there is is used; else the filesystem is mounted for as long as the command runs.  Signals and the exit
    code are passed through.

    \b
    tzfs run ws -- make test
    """
    with _mounted(store_of(ctx), name, options) as where:
        return _execute(command, where)


@contextmanager
def _mounted(store: Store, name: str, options: tuple[str, ...]) -> Iterator[Path]:
    info = store.get(name)
    check(Command.RUN, info.name, info.state)
    for status in store.status(ask=False):
        if status.what == str(info.name) and status.mountpoint != "-":
            yield Path(status.mountpoint)
            return
    from tzfs.mount import mountpoint

    where = runtime_directory() / f"run-{os.getpid()}"
    where.mkdir(mode=0o700)
    path = store.path
    try:
        mounting.mount(store, name, where, mounting.parse_options(options))
        try:
            yield where
        finally:
            _leave(path, where)
    finally:
        if mountpoint.mount_at(where) is None:
            where.rmdir()


def _leave(store_path: Path, where: Path) -> None:
    from tzfs.mount import mountpoint

    with open_store(store_path) as store:
        found = next((s for s in store.status(ask=False) if s.mountpoint == os.fspath(where)), None)
        try:
            mountpoint.unmount(where)
        except TzfsError:
            mountpoint.unmount(where, lazy=True)  # the command has left something running in it
        if found is not None:
            mounting._wait(lambda: not any(s.pid == found.pid for s in store.status(ask=False)), found)


def _execute(command: tuple[str, ...], where: Path) -> int:
    """Runs it; its exit code, or 128 and the number of the signal that ended it, as a shell has it."""
    try:
        child = subprocess.Popen(command, cwd=where)
    except FileNotFoundError:
        click.echo(f"tzfs: {command[0]}: command not found", err=True)
        return 127
    except PermissionError:
        click.echo(f"tzfs: {command[0]}: permission denied", err=True)
        return 126

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
