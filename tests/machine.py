"""Makes a machine ready for the project, with the standard library alone: system packages, then a virtual environment.

What is missing is installed by name and said so; nothing else of the machine is changed.  The environment stands in
`.venv` of the checkout, holds the project in editable form, and is made again when what it was made from has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parent.parent
VENV: Final = PROJECT / ".venv"
EXTRAS: Final = "[mount,test]"
PYTHON_LEAST: Final = (3, 11)

PACKAGES: Final[Mapping[str, str]] = {  # Debian's name, and what it is for
    "fuse3": "mounting as an ordinary user: fusermount3",
    "libfuse3-dev": "to build pyfuse3",
    "pkg-config": "to build pyfuse3",
    "gcc": "to build pyfuse3 and tzfs' native part",
    "libxxhash-dev": "to build tzfs' native part",
    "liblz4-dev": "to build tzfs' native part",
    "libzstd-dev": "to build tzfs' native part",
    "libc6-dev": "to build pyfuse3 and tzfs' native part",
    "make": "a test builds a C project",
    "git": "a test clones a repository",
    "rsync": "a test compares trees",
    "zsh": "a test completes in it",
    "fish": "a test completes in it",
    "python3-venv": "the ordinary user's environment",
    "python3-dev": "to build pyfuse3 in it",
    "ca-certificates": "pip",
}
PROGRAMS: Final[Mapping[str, Sequence[str]]] = {  # installed only where the program is in no package of Debian's either
    "node": ("nodejs",),
    "npm": ("npm",),
}


def say(text: str) -> None:
    """One line about what is being done, before the output of whatever does it."""
    print(f"== {text}", flush=True)


def must(*command: str | Path, environment: Mapping[str, str] | None = None) -> None:
    """Runs the command in the checkout, with its output shown; a failure ends the program."""
    done = subprocess.run(command, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}")


def missing_packages() -> list[str]:
    """The Debian packages that are wanted and not installed."""
    known = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    installed = {line.split()[0] for line in known.splitlines() if line.endswith(" installed")}
    missing = [name for name in PACKAGES if name not in installed]
    for program, packages in PROGRAMS.items():
        if shutil.which(program) is None:
            missing.extend(packages)
    return missing


def prepare_system() -> None:
    """Installs the system packages that are missing, saying which; ends the program where it may not."""
    if shutil.which("dpkg-query") is None:
        say(f"not a Debian system: make sure that these are here: {', '.join([*PACKAGES, *PROGRAMS])}")
        return
    missing = missing_packages()
    if not missing:
        return
    for name in missing:
        say(f"the system package {name} is missing ({PACKAGES.get(name, 'tests run it')})")
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    if os.geteuid():
        sys.exit(f"to install them, run: sudo apt-get update && sudo {' '.join(install)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], install):
        say(" ".join(command))
        must(*command, environment=environment)


def fingerprint(*names: str, root: Path = PROJECT) -> str:
    """A digest of the contents of these files and folders of the checkout, of what git would ignore nothing."""
    digest = hashlib.sha256()
    for name in names:
        top = root / name
        paths = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]
        for path in paths:
            if "__pycache__" not in path.parts and path.suffix not in (".so", ".o") and path.name != "_native.c":
                digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def prepare_environment() -> Path:
    """The interpreter of `.venv`, with the project and all it needs installed in it."""
    python = VENV / "bin" / "python"
    stamp = VENV / "made-from"
    state = f"{sys.version} {fingerprint('pyproject.toml', 'setup.py', 'native')}"
    if stamp.exists() and stamp.read_text() == state:
        return python
    say(f"making {VENV.relative_to(PROJECT)} with Python {sys.version.split()[0]}, and installing .{EXTRAS} in it")
    if not python.exists():
        must(sys.executable, "-m", "venv", VENV)
    must(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", f".{EXTRAS}")
    stamp.write_text(state)
    return python


def prepare() -> Path:
    """All of it; answers the interpreter to work with."""
    if sys.version_info < PYTHON_LEAST:  # this may be run by whatever Python the machine has
        sys.exit(f"tzfs needs Python {'.'.join(map(str, PYTHON_LEAST))} or later; this is {sys.version.split()[0]}")
    prepare_system()
    return prepare_environment()
