"""completion: scripts for bash, zsh and fish; and how bash is answered.

Bash takes a line apart at `:`, `=` and `@` too, so that `ws@before` or `agent:model=small` would reach us in pieces.
The script hands over the line as it stands, and takes from each answer what bash has already.  Click's own script for
fish cuts an answer at its first comma, as `used,referenced` has one.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    BashComplete,
    FishComplete,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

_BASH = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} breaks= c have= type value
    local word=${line##*[[:space:]]}
    for c in @ : =; do
        [[ $COMP_WORDBREAKS == *"$c"* ]] && breaks+=$c
    done
    [[ -n $breaks ]] && have=${word%%"${word##*[$breaks]}"}
    have=${have%%@}  # a word may begin with this one
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o plusdirs ;;
            file) compopt -o default ;;
            plain)
                [[ $value == *[@=,/] ]] && compopt -o nospace
                COMPREPLY+=("${value#"$have"}")
                ;;
        esac
    done < <(COMP_WORDS=$line %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(BashComplete):
    """Bash, asked with the whole line up to the cursor."""

    name = "bash"
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        incomplete = "" if line[-1:].isspace() or len(words) < 2 else words.pop()
        return words[1:], incomplete


@add_completion_class
class Fish(FishComplete):
    """Fish, with commas in what it is told."""

    name = "fish"
    source_template = FishComplete.source_template.replace('string split ","', 'string split -m 1 ","')


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell: commands, options, names of filesystems, snapshots and properties.

    \b
    eval "$(tzfs completion bash)"              # in ~/.bashrc
    eval "$(tzfs completion zsh)"               # in ~/.zshrc, after compinit
    tzfs completion fish > ~/.config/fish/completions/tzfs.fish
    """
    found: type[ShellComplete] | None = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "tzfs", "_TZFS_COMPLETE").source(), nl=False)
