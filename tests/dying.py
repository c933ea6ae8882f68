"""Processes that die at a failpoint, and copies of what they die in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tzfs import failpoints


def died(act: Callable[[], object], point: str, after: int = 0) -> bool:
    """Whether a child that does it dies at that hit of the point."""
    child = os.fork()
    if child == 0:
        try:
            failpoints.arm(point, "crash", after=after)
            act()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == failpoints.CRASH_STATUS


def copied(folder: Path, to: Path) -> Path:
    """A copy of a store, or of a filesystem's folder, that is not suspected to be one."""
    subprocess.run(["cp", "-a", folder, to], check=True)
    for mark in to.rglob("place"):
        mark.unlink()
    return to
