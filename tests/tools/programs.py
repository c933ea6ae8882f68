"""Running real programs in a scenario: their surroundings are its own, their failures say what they printed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

TIMEOUT_S: Final = 300
KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR")


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What programs see: no user's configuration, no proxy, no registry but those of the scenario."""
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Author",
        "GIT_AUTHOR_EMAIL": "author@example.org",
        "GIT_COMMITTER_NAME": "Author",
        "GIT_COMMITTER_EMAIL": "author@example.org",
        "GIT_TERMINAL_PROMPT": "0",
        **(extra or {}),
    }


def run(*command: str | Path, cwd: Path, extra: Mapping[str, str] | None = None) -> str:
    """What the program printed to standard output; it must exit with 0 within `TIMEOUT_S`."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(cwd, extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
