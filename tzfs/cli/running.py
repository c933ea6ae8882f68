"""run: a command in a workspace, wherever that is mounted.

Where it is mounted already, the command runs there.  Else it is mounted in the user's runtime directory for as long as
commands run in it: several at once share that mount, and the last to end takes it away, also the one of a `run` that
was killed.  Two record locks there, which die with their process and are not inherited by the mount's, keep this right:

    GUID.gate     exclusive, for a moment: whoever looks whether it is mounted, mounts it, or takes the mount away
    GUID.users    shared: whoever's command runs there
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import click

from tzfs.cli import mounting
from tzfs.cli.forking import FORKS_MAX, run_forks
from tzfs.cli.output import say
from tzfs.cli.parameters import COMMAND, FILESYSTEM, store_of
from tzfs.errors import Busy, MountFailed, NotFound, ReadOnly, TzfsError
from tzfs.lifecycle import Command
from tzfs.management import Store, open_store
from tzfs.remembering import Remembered
from tzfs.runtime import place_of, runtime_directory

PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
_FROM_KERNEL: Final = 0x80  # si_code of what the terminal sends, to the whole group of processes


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "options", metavar="OPTION,...", multiple=True, help="Mount options, where it has to be mounted.")
@click.option(
    "--fork",
    "forks",
    metavar="N",
    type=click.IntRange(1, FORKS_MAX),
    help="In N fresh clones at once, each with its number in TZFS_FORK; then a table of what came of each.",
)
@click.option("--json", "as_json", is_flag=True, help="With --fork: the outcomes as JSON.")
@click.option("--no-journal", is_flag=True, help="Remember nothing: no entry, no snapshots.")
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.argument("command", metavar="-- COMMAND [ARGUMENT...]", nargs=-1, required=True, type=COMMAND)
@click.pass_context
def run_command(
    ctx: click.Context,
    options: tuple[str, ...],
    forks: int | None,
    as_json: bool,
    no_journal: bool,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Run a command with its working directory in a filesystem.

    The mount there is is used; else the filesystem is mounted for as long as commands run in it.  Signals and the exit
    code are passed through; 128 and a signal's number is the answer for a command that a signal ended.

    \b
    tzfs run ws -- make test
    tzfs run ws -- sh -c 'git add -A && git commit -qm wip'

    What it changes is remembered: a snapshot before, one after, and an entry in `tzfs log ws` with its arguments, exit
    code, duration, and how many paths were added, removed, modified and renamed.  `tzfs show` shows the diff, `tzfs
    undo` takes it back.  A command that changes nothing leaves an entry, and no snapshots.  The snapshots are called
    run-N-before and run-N-after, which a policy can be told of: tzfs policy --help.

    \b
    tzfs run --fork 4 ws -- ./attempt.sh

    With --fork the filesystem itself stays as it is: the command runs in clones of it (ws-fork1-0 and so on), with
    TZFS_FORK from 0 to N-1 in its environment, and prints to standard error, the number of the clone before each line.
    The clones stay, to be looked at, and are destroyed like any filesystem.
    """
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("missing argument 'COMMAND'")
    if (forks is None and as_json) or (forks is not None and no_journal):
        raise click.UsageError("--json is for --fork, and --no-journal is not")
    with _interruptible() as interrupted:
        try:
            store = store_of(ctx)
            if forks is not None:
                return run_forks(store, name, forks, options, command, as_json=as_json)
            guid = store.get(name, Command.RUN).guid
            with _mounted(store, name, options) as where:
                code = _execute(command, where) if no_journal else _remembered(store.path, guid, command, where)
                return 128 - code if code < 0 else code
        except KeyboardInterrupt:
            return 128 + (interrupted[0] if interrupted else signal.SIGINT)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """What ends a process interrupts the body as Ctrl-C does; the list has the number of the signal."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]  # nohup's stays ignored
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- where ---------------------------------------------------------------------------------------------------------


@contextmanager
def _mounted(store: Store, name: str, options: tuple[str, ...]) -> Iterator[Path]:
    """The directory that the filesystem is mounted at, for the body."""
    info = store.get(name, Command.RUN)
    runtime, users = runtime_directory(), None
    place = place_of(info.guid, info.folder)
    own = runtime / f"run-{place}"
    gate = runtime / f"{place}.gate"
    with _locked(gate):
        where = _ready_mount(store, str(info.name))
        if where is None:
            where = own
            _mount_at(own, store, name, options)
        store.close()
        if where == own:
            users = _lock(runtime / f"{place}.users", fcntl.LOCK_SH)
    try:
        yield where
    finally:
        if users is not None:
            with _locked(gate):
                try:
                    fcntl.lockf(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # another command runs there, and takes it away
                else:
                    _take_away(store.path, own)
                finally:
                    os.close(users)


def _mount_at(own: Path, store: Store, name: str, options: tuple[str, ...]) -> None:
    """Mounts it in the runtime directory."""
    parsed = mounting.parse_options(options)
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
    try:
        mounting.mount(store, name, own, parsed)
    except BaseException:
        with suppress(OSError):
            own.rmdir()
        raise


def _ready_mount(store: Store, name: str) -> Path | None:
    """Where it is mounted, and answers; None where nobody has it.  `Busy` where it is in use in another way."""
    from tzfs.mount import mountpoint

    mount = store.mounted(store.get(name))
    if mount is None:
        return None
    with mount:
        told = mount.call("info")
    if not isinstance(told, dict):
        raise MountFailed(f"{name}: its mount does not say where it is")
    where, failed = str(told.get("mountpoint")), told.get("failed")
    if failed is not None:
        raise MountFailed(f"{name}: its mount has failed: {failed}", hint=f"tzfs umount {name}, and try again")
    there = mountpoint.mount_at(Path(where))
    if there is None or there.fstype != mountpoint.FSTYPE:
        who = f"pid {told.get('pid')}"
        raise Busy(
            f"{name} is no longer mounted at {where}, but programs still use it",
            holders=(who,),
            hint="it is free when they have ended",
        )
    return Path(where)


def _take_away(store_path: Path, own: Path) -> None:
    """Unmounts what nobody's command runs in any more; what one has left running keeps what it has."""
    from tzfs.mount import mountpoint

    with open_store(store_path, create=False) as store:
        found = next((s for s in store.status(ask=False) if s.mountpoint == os.fspath(own)), None)
        try:
            mountpoint.unmount(own, daemon=None if found is None else found.pid)
        except NotFound:
            pass  # somebody has unmounted it
        except Busy:
            if mountpoint.mount_at(own) is None:
                raise
            if found is not None:
                store.sync(found.what)
            mountpoint.unmount(own, lazy=True)
            say("tzfs", "the command has left programs running in the mount; it goes when they have ended")
    with suppress(OSError):
        own.rmdir()


def _lock(path: Path, kind: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, kind)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


# -- what is remembered of it ------------------------------------------------------------------------------------------


def _remembered(store_path: Path, guid: str, command: Sequence[str], where: Path) -> int:
    """`_execute`, remembered where that can be done; it is run in any case."""
    remembered = _begin(store_path, guid, command, where)
    began_ns = time.monotonic_ns()
    code = _execute(command, where)
    duration_ns = time.monotonic_ns() - began_ns
    if remembered is not None:
        ended_by = signal.Signals(-code).name if code < 0 else None
        try:
            with open_store(store_path, create=False) as store:
                ended = remembered.end(
                    store, code=128 - code if code < 0 else code, duration_ns=duration_ns, signal=ended_by
                )
            if ended.said is not None:
                say("tzfs", f"no snapshot after the command: {ended.said}")
        except TzfsError as error:
            say("tzfs", f"how the command ended is not in the log: {error}")
    return code


def _begin(store_path: Path, guid: str, command: Sequence[str], where: Path) -> Remembered | None:
    try:
        with open_store(store_path, create=False) as store:
            info = next(info for info in store.filesystems() if info.guid == guid)
            remembered = Remembered.begin(store, info, command, os.fspath(where), os.getpid())
    except ReadOnly:
        return None  # nothing can be changed
    except TzfsError as error:
        say("tzfs", f"the command is not in the log: {error}")
        return None
    if remembered.said is not None:
        say("tzfs", f"no snapshot before the command: {remembered.said}")
    return remembered


# -- the command ---------------------------------------------------------------------------------------------------


def _execute(command: Sequence[str], where: Path) -> int:
    """Runs it; its exit code as a shell has it, or the number of the signal that ended it, negative.

    Signals are waited for, not handled, so that none is lost between its start and its end.  What the terminal sends,
    the command has got itself.
    """
    waited_for = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    try:
        with _working_in(where):
            try:
                child = _start(command, {**os.environ, "PWD": os.fspath(where)}, blocked=before)
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                reason = "command not found" if missing else os.strerror(error.errno or 0).lower()
                say("tzfs", f"{command[0]}: {reason}")
                return 127 if missing else 126
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            told = signal.sigwaitinfo(waited_for)
            if told.si_signo != signal.SIGCHLD and told.si_code != _FROM_KERNEL:
                os.kill(child, told.si_signo)
        return os.waitstatus_to_exitcode(ended[1])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _working_in(where: Path) -> Iterator[None]:
    """`where` is the working directory for the body; then the one before, or / where that cannot be entered again."""
    before = None
    with suppress(OSError):
        before = os.open(".", os.O_PATH)
    try:
        os.chdir(where)
        yield
    finally:
        os.chdir("/")  # in any case not in the mount, which could not be taken away
        if before is not None:
            with suppress(OSError):
                os.fchdir(before)
            os.close(before)


def _start(command: Sequence[str], environment: Mapping[str, str], *, blocked: Iterable[int]) -> int:
    """Starts it in the working directory, with our three streams alone and these signals blocked; its pid.

    What it raises is about the command: `FileNotFoundError` where there is none.
    """
    if not command[0]:
        raise FileNotFoundError("no command has an empty name")
    return os.posix_spawnp(
        command[0],
        list(command),
        environment,
        file_actions=[(os.POSIX_SPAWN_CLOSE, int(fd)) for fd in os.listdir("/proc/self/fd") if int(fd) > 2],
        setsigmask=blocked,
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
    )
