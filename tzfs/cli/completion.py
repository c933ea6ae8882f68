"""completion: scripts for bash, zsh and fish."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    eval "$(tzfs completion bash)"              # in ~/.bashrc
    tzfs completion fish > ~/.config/fish/completions/tzfs.fish
    """
    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(ctx.find_root().command, {}, "tzfs", "_TZFS_COMPLETE").source())
