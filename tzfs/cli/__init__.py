"""The command line: `tzfs [--store DIR] COMMAND ...`.

A family of commands a module; each is loaded when it is called, so that `tzfs list` does not wait for what `tzfs mount`
needs.  Commands parse, call one function of `tzfs.management` or `tzfs.mount`, and print; data goes to standard output,
words to standard error.  `main` turns every error into one line, a hint and an exit code.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback

import click

from tzfs.errors import TzfsError, exit_code_of

COMMANDS = {
    "create": "filesystems",
    "list": "listing",
    "get": "property",
    "set": "property",
    "inherit": "property",
    "rename": "filesystems",
    "archive": "filesystems",
    "activate": "filesystems",
    "destroy": "filesystems",
    "mount": "mounting",
    "umount": "mounting",
    "snapshot": "snapshots",
    "sync": "snapshots",
    "gc": "snapshots",
    "status": "mounting",
    "run": "running",
    "completion": "completion",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

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
    type=click.Path(file_okay=False),
    help="The store to work on.  [default: $TZFS_STORE, else tzfs in the user's data directory]",
)
@click.version_option(package_name="tzfs", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, store: str | None) -> None:
    """TemporalZFS: filesystems for agent workspaces, with snapshots at any moment.

    \b
    tzfs create ws                  a new workspace
    tzfs mount ws DIR               mounted at a directory
    tzfs snapshot ws@before         a snapshot, of any size in the same time
    ls DIR/.zfs/snapshot/before     browsed, read-only
    tzfs umount ws                  unmounted again
    """
    ctx.obj = store


def main() -> None:
    """The program: exits with the command's status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command line; its exit code.  Never raises."""
    try:
        answer = cli.main(arguments, prog_name="tzfs", standalone_mode=False)
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        click.echo("tzfs: interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left in the buffer
        return 141
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    if os.environ.get("TZFS_DEBUG"):
        traceback.print_exc()
    if isinstance(error, TzfsError):
        click.echo(f"tzfs: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
    elif isinstance(error, OSError):
        click.echo(f"tzfs: {error}", err=True)
    else:
        click.echo(f"tzfs: internal error: {type(error).__name__}: {error}", err=True)
        click.echo("hint: this is a bug of tzfs; TZFS_DEBUG=1 shows where", err=True)
    return exit_code_of(error)
