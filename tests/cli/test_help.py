"""--help teaches: every command has an example, every option a word, every property its default and bounds."""

from __future__ import annotations

import importlib.metadata
import re

import click
import pytest

from tests.cli.command_line import CommandLine
from tzfs.cli import COMMANDS, cli
from tzfs.inheritance import Value
from tzfs.properties import NATIVE


def test_the_program_lists_its_commands_and_says_what_they_do(tzfs: CommandLine) -> None:
    told = tzfs.ok("--help")
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", told, re.MULTILINE), name
    assert not tzfs.store.exists()  # nothing is made by asking


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_explains_its_options(tzfs: CommandLine, name: str) -> None:
    told = tzfs.ok(name, "--help")
    if name not in ("diff", "show"):  # whose -h is that of `zfs diff`
        assert told == tzfs.ok(name, "-h")
    assert re.search(rf"^ +.*\btzfs {name} ", told.partition("\n")[2], re.MULTILINE), told
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"
    assert not tzfs.store.exists()


@pytest.mark.parametrize("native", NATIVE.values(), ids=lambda p: p.name)
def test_the_help_of_get_has_every_property(tzfs: CommandLine, native: object) -> None:
    p = NATIVE[getattr(native, "name", "")]
    [line] = [line for line in tzfs.ok("get", "--help").splitlines() if line.split()[:1] == [p.name]]
    assert p.help in line
    if p.settable:
        assert p.values in line
        assert Value(p.name, p.default, "default").human in line.partition(p.values)[2]
        assert p.effect.value in line
    else:
        assert "(read-only)" in line


def test_the_version_is_the_distributions(tzfs: CommandLine) -> None:
    assert tzfs.ok("--version") == f"tzfs {importlib.metadata.version('tzfs')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "tzfs: no such command 'bogus'\nhint: tzfs --help\n"),
        (["--bogus"], "tzfs: no such option '--bogus'\nhint: tzfs --help\n"),
        (["list", "--bogus"], "tzfs: no such option '--bogus'\nhint: tzfs list --help\n"),
        (["run", "ws"], "tzfs: missing argument '-- COMMAND [ARGUMENT...]'\nhint: tzfs run --help\n"),
        (["completion", "tcsh"], "hint: tzfs completion --help\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misspelt_line_is_answered_with_where_to_look(tzfs: CommandLine, arguments: list[str], message: str) -> None:
    assert message in tzfs.refused(*arguments, code=2)
