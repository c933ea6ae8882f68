"""An agent's hour on this project's own sources: `hour.py` says what is done, and what is compared after each step.

The slow tier, `TZFS_SLOW=1 pytest tests/scenarios`, runs `TZFS_HOUR_COMMANDS` commands (500) from `TZFS_HOUR_SEED` (1).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.workspace import NAME, Workspace
from tests.scenarios.hour import ENVIRONMENT, Hour
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.lifecycle import Command

SLACK_BYTES = 64 * 1024  # README: beside what is referred to
ROWS = 5  # README: what the tables take for a byte that `used` counts of them


def disk_bytes(path: Path) -> int:
    """What it takes, as `du -B1` says."""
    return int(subprocess.run(["du", "-sB1", path], capture_output=True, text=True, check=True).stdout.split()[0])


def check_size(ws: Workspace) -> None:
    """It takes what its snapshots and the present state refer to, and no more than README allows beside that."""
    with ws.store() as store:
        folder = store.get(NAME).folder
        with store.writer(NAME, {"kind": "test"}, Command.OPEN) as writer:
            uses = [body for key, value in writer.meta.begin_read().range(Table.SEGMENT, b"")
                    if (body := records.unseal(Table.SEGMENT, key, value)) is not None]  # fmt: skip
        used = int(str(store.properties(store.get(NAME))["used"].exact))
    payload = sum(records.unpack_plain(Table.SEGMENT, b"", body)[1] for body in uses)
    tables, segments = disk_bytes(folder / "meta"), disk_bytes(folder / "segments")
    said = f"used {used}, of it payload {payload}; on disk tables {tables}, {len(uses)} segments {segments}"
    print(said)
    assert segments <= payload + SLACK_BYTES, said
    assert tables <= ROWS * (used - payload) + SLACK_BYTES, said


def live(
    ws: Workspace, plain: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int, count: int, parts: tuple[str, ...]
) -> None:
    """An hour, and what must hold at its end."""
    for name, value in {**ws.environment, **ENVIRONMENT, "HOME": str(ws.base)}.items():
        monkeypatch.setenv(name, value)
    hour = Hour(ws, plain, seed, parts)
    hour.begin()
    while hour.commands < count:
        hour.step()
    assert "no problems" in ws.tzfs("check", "--payload", NAME)
    (pid,) = ws.daemons()
    ws.unmount(pid)
    print(ws.tzfs("gc", NAME))
    assert ws.problems() == []
    assert "no problems" in ws.tzfs("check", "--payload", NAME)
    check_size(ws)
    ws.mount("xattr")
    for name in hour.snapshots:
        hour.look_at(name)
    hour.look(again=True)


def test_a_short_hour(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(
        workspace, tmp_path / "plain", monkeypatch, seed=7, count=25, parts=("tzfs/format", "tzfs/store", "tzfs/native")
    )


@pytest.mark.slow
@pytest.mark.skipif("TZFS_SLOW" not in os.environ, reason="the slow tier: TZFS_SLOW=1")
@pytest.mark.timeout(7200)
def test_an_hour(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, count = int(os.environ.get("TZFS_HOUR_SEED", "1")), int(os.environ.get("TZFS_HOUR_COMMANDS", "500"))
    live(
        workspace,
        tmp_path / "plain",
        monkeypatch,
        seed=seed,
        count=count,
        parts=("tzfs", "tests", "native", "mount", "benchmarks"),
    )
