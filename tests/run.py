"""The gate: `python3 -m tests.run [STEP...]` makes the machine ready and runs every step, or those named.

It needs nothing but Python: system packages that are missing are installed by name (by root; anybody else is told the
command), everything else goes into `.venv`.  It ends with the first step that fails, and that step's exit code.  Root
runs the suites that work on a mount twice: as root, and as an ordinary user.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.machine import PROJECT, VENV, prepare, say

AS_USER: Final = ("tests/posix", "tests/tools")  # what the ordinary user runs once more
# A process for each processor; the tests of a file, which stand on the same mounts, stay together.
AT_ONCE: Final = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
PLACES_AS_USER: Final = "tzfs,xattr,shared"  # one of each: no cache mode depends on who mounts


def _program(name: str) -> str:
    return str(VENV / "bin" / name)


def _call(*command: str) -> int:
    say(" ".join(command).replace(f"{PROJECT}/", ""))
    return subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, check=False).returncode


def _format() -> int:
    return _call(_program("ruff"), "format", "--check", ".")


def _lint() -> int:
    return _call(_program("ruff"), "check", ".")


def _types() -> int:
    return _call(_program("mypy"))


def _sanitize() -> int:
    return _call(_program("python"), "-m", "tests.native.sanitize")


def _tests() -> int:
    return _call(_program("python"), "-m", "pytest", "-q", *AT_ONCE)


def _ordinary() -> int:
    if os.geteuid():
        say("not root: the tests have run as an ordinary user already")
        return 0
    pytest = ("python", "-m", "pytest", "-q", *AT_ONCE, "--places", PLACES_AS_USER, *AS_USER)
    return _call(sys.executable, "-m", "tests.user", *pytest)


STEPS: Final[Mapping[str, Callable[[], int]]] = {
    "format": _format,
    "lint": _lint,
    "types": _types,
    "sanitize": _sanitize,
    "ordinary": _ordinary,
    "tests": _tests,
}


def main(names: list[str]) -> int:
    """Runs the steps; 0 when all of them passed."""
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        sys.exit(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    prepare()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # thousands of commands start: each would compile tzfs anew
    for name in names or STEPS:
        started = time.monotonic()
        code = STEPS[name]()
        outcome = f"failed with exit code {code}" if code else "passed"
        say(f"{name}: {outcome} in {time.monotonic() - started:.0f} s")
        if code:
            return code
    return 0


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    sys.exit(main(sys.argv[1:]))
