"""Every test that asks for `store` runs over both implementations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.stores import KINDS, InMemory, Made, OnDisk
from tzfs import failpoints


@pytest.fixture(params=KINDS, ids=[kind.name for kind in KINDS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    kind: type[OnDisk] | type[InMemory] = request.param
    return kind(tmp_path)


@pytest.fixture(autouse=True)
def no_failpoint_stays_armed() -> Iterator[None]:
    yield
    failpoints.disarm_all()
