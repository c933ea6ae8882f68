"""The main job, before your eyes: `python3 -m tests.tour` runs these commands on real mounts and shows their output.

It makes the machine ready as the gate does, works in a new folder with a store of its own, and removes both at the end.
A command that fails, or prints what it should not, ends the tour with an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.machine import VENV, prepare

TIMEOUT_S: Final = 120


@dataclass(frozen=True, slots=True)
class Step:
    """A command, what it is for, and what must be in its output."""

    command: str
    why: str = ""
    expects: str = ""
    fails: bool = False


STEPS: Final = (
    Step("tzfs create demo", "A workspace is a filesystem in a store; it costs nothing until it is used."),
    Step("tzfs mount demo work", "It is mounted anywhere, and any program works in it."),
    Step("git -C work init -q -b main report && mkdir work/report/notes"),
    Step("echo 'first draft' > work/report/report.md"),
    Step('for n in 1 2 3; do echo "source $n" > work/report/notes/source-$n.txt; done'),
    Step(
        "git -C work/report add -A && git -C work/report commit -qm 'first draft' && git -C work/report log --oneline"
    ),
    Step(
        "printf 'int main(void) { return 42; }\\n' > work/answer.c && make -s -C work answer; work/answer; echo $?",
        expects="42",
    ),
    Step(
        "python3 -c \"import sqlite3; c = sqlite3.connect('work/facts.db'); c.execute('PRAGMA journal_mode=WAL'); "
        "c.execute('CREATE TABLE fact (t)'); c.execute('INSERT INTO fact VALUES (1)'); c.commit(); "
        "print(c.execute('PRAGMA integrity_check').fetchone()[0])\"",
        expects="ok",
    ),
    Step("tzfs snapshot demo@before", "A snapshot takes the same time whatever the size."),
    Step(
        "echo 'second draft' > work/report/report.md && rm work/report/notes/source-2.txt && touch work/report/new.txt",
        "Then the work goes on, not always well.",
    ),
    Step(
        "diff -r --exclude=.zfs --exclude=.git work/.zfs/snapshot/before/report work/report",
        "Each snapshot is a folder of the same mount.",
        expects="source-2.txt",
        fails=True,
    ),
    Step("cat work/.zfs/snapshot/before/report/report.md", expects="first draft"),
    Step(
        "cp -a work/.zfs/snapshot/before/report/notes/source-2.txt work/report/notes/", "What was lost is copied back."
    ),
    Step("tzfs list -t all"),
    Step(
        "mkdir past && tzfs mount demo@before past && ls past/report",
        "Or it is mounted by itself, read-only.",
        expects="notes",
    ),
    Step("touch past/new", expects="Read-only file system", fails=True),
    Step("git -C past/report -c safe.directory='*' fsck --full && tzfs umount past"),
    Step("tzfs status"),
    Step(
        'sync work/report/report.md && kill -9 "$(tzfs status --json | python3 -c '
        '\'import json, sys; print(json.load(sys.stdin)[0]["pid"])\')"',
        "The daemon is killed.",
    ),
    Step(
        "tzfs mount demo work && cat work/report/report.md && ls work/.zfs/snapshot",
        "The next mount needs no repair.",
        expects="second draft",
    ),
    Step(
        "tzfs destroy -v demo@%", "All its snapshots; what only they had is freed in the background.", expects="reclaim"
    ),
    Step("tzfs umount demo && tzfs destroy -v demo"),
)


def _run(step: Step, *, folder: Path) -> None:
    if step.why:
        print(f"\n# {step.why}")
    print(f"$ {step.command}", flush=True)
    done = subprocess.run(
        ["sh", "-c", step.command],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
            "TZFS_STORE": str(folder / "store"),
            "GIT_AUTHOR_NAME": "You",
            "GIT_AUTHOR_EMAIL": "you@example.org",
            "GIT_COMMITTER_NAME": "You",
            "GIT_COMMITTER_EMAIL": "you@example.org",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    if bool(done.returncode) != step.fails:
        sys.exit(f"the command ended with {done.returncode}")
    if step.expects not in done.stdout:
        sys.exit(f"its output lacks {step.expects!r}")


def main() -> None:
    """The whole tour; nothing is left behind, whatever happens."""
    prepare()
    folder = Path(tempfile.mkdtemp(prefix="tzfs-tour-"))
    try:
        (folder / "work").mkdir()
        for step in STEPS:
            _run(step, folder=folder)
    finally:
        for mountpoint in ("work", "past"):
            if os.path.ismount(folder / mountpoint):
                subprocess.run(["fusermount3", "-u", "-z", folder / mountpoint], check=False)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
