"""Mounts of a fresh workspace, and the check that a test leaves nothing of them behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A fresh, empty filesystem, not mounted; whatever the test has mounted goes at the end."""
    made = Workspace(tmp_path)
    try:
        yield made
    finally:
        made.close()
    assert made.leftovers() == []


@pytest.fixture
def mounted(workspace: Workspace) -> Workspace:
    """The workspace, mounted at its `mnt`."""
    workspace.mount()
    return workspace
