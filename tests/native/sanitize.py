"""Builds `native/src` with the driver under the address and undefined-behaviour sanitizers, strictly, and runs it.

    python -m tests.native.sanitize

prints the driver's answer and exits with its code.  `CC` names the compiler (default: cc).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parents[2] / "native" / "src"
DRIVERS: Final = sorted(Path(__file__).resolve().parent.glob("driver*.c"))
RECEIVER: Final = Path(__file__).resolve().with_name("receiver.c")
WARNINGS: Final = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror")
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
OPTIONS: Final = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
TIMEOUT_S: Final = 120


def build(target: Path) -> None:
    """Compiles every C file of `native/src` and the driver into `target`, and beside it the receiver it loads."""
    compiler = [os.environ.get("CC", "cc"), "-std=gnu11", "-g", "-O1", *WARNINGS, *SANITIZERS]
    sources = [*map(str, sorted(SOURCES.glob("*.c"))), *map(str, DRIVERS)]
    for command in (
        [*compiler, f"-I{SOURCES}", *sources, "-o", str(target), "-ldl", "-llz4", "-lzstd"],
        [*compiler, "-shared", "-fPIC", str(RECEIVER), "-o", f"{target}.receiver.so"],
    ):
        subprocess.run(command, check=True, timeout=TIMEOUT_S)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs what `build` has made.  With an argument it reads one byte too far: is the sanitizer at work?"""
    return subprocess.run(
        [str(program), *arguments],
        env={**os.environ, **OPTIONS},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tzfs-sanitize-") as folder:
        program = Path(folder) / "driver"
        build(program)
        done = run(program)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
