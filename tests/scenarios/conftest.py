"""A workspace whose mounts go with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mount.workspace import Workspace


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A store with the filesystem `ws`, not mounted; whatever the test has mounted goes at the end."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    try:
        yield made
    finally:
        made.close()
    assert made.leftovers() == []
