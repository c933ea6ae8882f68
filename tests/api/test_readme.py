"""The README's program is run as it stands there, and does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tzfs

PROJECT = Path(__file__).parents[2]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(program: str, store: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=store.parent,
        env={**os.environ, "TZFS_STORE": str(store)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_programs_of_the_readme_run(tmp_path: Path) -> None:
    [program] = blocks((PROJECT / "README.md").read_text())
    assert run(program, tmp_path / "store") == (
        "first\n\n['/notes/1.md']\n1 first\n\n('/notes', '/notes/2.md')\n/ ['notes'] []\n/notes [] ['1.md']\n"
    )
    with tzfs.open_store(tmp_path / "store") as store:
        assert store.get("agents/researcher").state == "archived"
        with store.open_readonly("agents/researcher") as tree:
            assert tree.read_text("notes/1.md") == "first\n"


def test_the_program_in_the_packages_own_text_runs(tmp_path: Path) -> None:
    assert tzfs.__doc__ is not None
    program = "".join(line[4:] + "\n" for line in tzfs.__doc__.splitlines() if line.startswith("    ") or not line)
    assert "with tzfs.open_store()" in program
    assert run(program, tmp_path / "store") == "draft\n\n"


@pytest.mark.parametrize("name", [name for name in tzfs.__all__ if name != "errors"])
def test_every_public_name_and_method_says_what_it_does(name: str) -> None:
    thing = getattr(tzfs, name)
    assert thing.__doc__, name
    if isinstance(thing, type):
        for method, value in vars(thing).items():
            if not method.startswith("_") and (callable(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{method}"


def test_what_is_loaded_when_it_is_asked_for_is_all_there_is() -> None:
    assert set(tzfs._HOMES) | {"errors"} == set(tzfs.__all__) <= set(dir(tzfs))
    assert not hasattr(tzfs, "nothing_of_the_kind")
