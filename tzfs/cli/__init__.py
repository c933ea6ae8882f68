"""The command line: `tzfs [--store DIR] COMMAND ...`.

A family of commands a module; each is loaded when it is called, so that `tzfs list` does not wait for what `tzfs mount`
needs.  Commands parse, call one function of `tzfs.management` or `tzfs.mount`, and print; data goes to standard output,
words to standard error.  `main` turns every error into one line, a hint and an exit code.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import traceback

import click

from tzfs.cli.output import complain, say
from tzfs.errors import InvalidArgument, TzfsError, exit_code_of

COMMANDS = {
    "create": "filesystems",
    "list": "listing",
    "get": "property",
    "set": "property",
    "inherit": "property",
    "rename": "filesystems",
    "archive": "filesystems",
    "activate": "filesystems",
    "destroy": "destroying",
    "mount": "mounting",
    "umount": "mounting",
    "snapshot": "snapshots",
    "clone": "cloning",
    "flatten": "cloning",
    "apply": "applying",
    "hold": "marking",
    "holds": "marking",
    "release": "marking",
    "bookmark": "marking",
    "policy": "policy",
    "prune": "pruning",
    "rollback": "rolling_back",
    "restore": "restoring",
    "diff": "comparing",
    "versions": "comparing",
    "send": "streaming",
    "receive": "streaming",
    "sync": "snapshots",
    "gc": "collecting",
    "check": "checking",
    "status": "mounting",
    "log": "journal",
    "events": "journal",
    "show": "undoing",
    "undo": "undoing",
    "run": "running",
    "completion": "completion",
}


COMPLETE = "_TZFS_COMPLETE"  # set by a shell that asks how a line may go on: see `tzfs completion`


class PipeClosed(Exception):
    """Whoever read standard output reads no more; not the `OSError`, of which click makes an exit code of its own."""


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(importlib.import_module(f"tzfs.cli.{module}"), f"{cmd_name}_command")
        assert isinstance(found, click.Command)
        return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store",
    metavar="DIR",
    type=click.Path(file_okay=False, readable=False),  # who may not read it hears so from the store
    help="The store to work on.  [default: $TZFS_STORE, else tzfs in the user's data directory]",
)
@click.version_option(package_name="tzfs", message="%(prog)s %(version)s")
def cli(store: str | None) -> None:
    """TemporalZFS: filesystems for agent workspaces, with snapshots at any moment.

    \b
    tzfs create ws                  a new workspace
    tzfs mount ws DIR               mounted at a directory
    tzfs snapshot ws@before         a snapshot, of any size in the same time
    ls DIR/.zfs/snapshot/before     browsed, read-only
    tzfs umount ws                  unmounted again
    tzfs COMMAND --help             what a command does, with an example
    """


def main() -> None:
    """The program: exits with the command's status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by who started us, it hides how children end
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command line; its exit code.  Never raises."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding does not have
    try:
        if COMPLETE in os.environ:
            importlib.import_module("tzfs.cli.completion")
        if any("\0" in argument for argument in arguments):
            raise InvalidArgument("an argument has a NUL in it")
        answer = cli.main(arguments, prog_name="tzfs", complete_var=COMPLETE, standalone_mode=False)
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("tzfs", "interrupted")
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _report_usage(error)
    except (PipeClosed, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left in the buffer
        return 141
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        return _report(error)


def _report_usage(error: click.ClickException) -> int:
    text = error.format_message().rstrip(".")
    say("tzfs", text[:1].lower() + text[1:])
    if isinstance(error, click.UsageError):
        say("hint", f"{error.ctx.command_path if error.ctx else 'tzfs'} --help")
    return error.exit_code


def _report(error: Exception) -> int:
    if os.environ.get("TZFS_DEBUG"):
        traceback.print_exc()
    if isinstance(error, TzfsError):
        complain(error)
    elif isinstance(error, OSError):
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        say("tzfs", ": ".join([*names, reason]))
    else:
        say("tzfs", f"internal error: {type(error).__name__}: {error}")
        say("hint", "this is a bug of tzfs; TZFS_DEBUG=1 shows where")
    return exit_code_of(error)
