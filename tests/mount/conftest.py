"""Mounts of a fresh workspace, and the check that a test leaves nothing of them behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.answering import DIRECTORY, FILE, inode, made
from tests.mount.wire import Kernel
from tests.mount.workspace import Workspace
from tzfs.mount.answers import Answers


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A fresh, empty filesystem, not mounted; whatever the test has mounted goes at the end."""
    fresh = Workspace(tmp_path)
    try:
        yield fresh
    finally:
        fresh.close()
    assert fresh.leftovers() == []


@pytest.fixture
def mounted(workspace: Workspace) -> Workspace:
    """The workspace, mounted at its `mnt`."""
    workspace.mount()
    return workspace


@pytest.fixture
def answers() -> Answers:
    """One that knows a directory, in full, with a file in it."""
    out = made()
    out.start(unchecked=True)
    out.put(inode(DIRECTORY, mode=0o40755, size=1))
    out.put(inode(FILE, size=4097))
    out.name(DIRECTORY, b"there", FILE)
    out.complete(DIRECTORY)
    return out


@pytest.fixture
def kernel(answers: Answers) -> Iterator[Kernel]:
    """Asks them as the pump does."""
    with Kernel(answers) as asking:
        yield asking
