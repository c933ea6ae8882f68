"""An agent's hour on this project's own sources: `hour.py` says what is done, and what is compared after each step.

`TZFS_HOUR_COMMANDS` commands, from `TZFS_HOUR_SEED`; of a few packages in the gate, of all in the long form.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import tiers
from tests.mount.workspace import NAME, Workspace
from tests.scenarios.hour import ENVIRONMENT, Hour
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.lifecycle import Command

SLACK_BYTES = 64 * 1024  # README: beside what is referred to
SMALL_TREE = ("tzfs/format", "tzfs/store", "tzfs/native")
WHOLE_TREE = ("tzfs", "tests", "native", "mount", "benchmarks")
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


@tiers.patient
def test_an_hour(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**workspace.environment, **ENVIRONMENT, "HOME": str(workspace.base)}.items():
        monkeypatch.setenv(name, value)
    seed = tiers.number("HOUR_SEED", short=7, long=1)
    hour = Hour(workspace, tmp_path / "plain", seed, WHOLE_TREE if tiers.SLOW else SMALL_TREE)
    hour.begin()
    while hour.commands < tiers.number("HOUR_COMMANDS", short=25, long=500):
        hour.step()
    assert "no problems" in workspace.tzfs("check", "--payload", NAME)
    (pid,) = workspace.daemons()
    workspace.unmount(pid)
    print(workspace.tzfs("gc", NAME))
    assert workspace.problems() == []
    assert "no problems" in workspace.tzfs("check", "--payload", NAME)
    check_size(workspace)
    workspace.mount("xattr")
    for name in hour.snapshots:
        hour.look_at(name)
    hour.look(again=True)
