"""A command line on a store of its own, and a workspace whose mounts go with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace


@pytest.fixture
def tzfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A store that is made by the first command."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("TZFS_STORE", raising=False)
    monkeypatch.delenv("TZFS_DEBUG", raising=False)
    return CommandLine(tmp_path / "store")


@pytest.fixture
def three(tzfs: CommandLine) -> CommandLine:
    """`a`, `b` and `c`, each with a snapshot s."""
    for name in "abc":
        tzfs.ok("create", name)
        tzfs.ok("snapshot", f"{name}@s")
    return tzfs


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A store with the filesystem `ws`, not mounted; whatever the test has mounted goes at the end."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    try:
        yield made
    finally:
        made.close()
    assert made.leftovers() == []
