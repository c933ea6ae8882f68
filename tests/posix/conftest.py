"""Who acts in the suite: `alice`, who is not root and owns `home`, and for root also `bob`, a stranger."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import Person

_ALICE = Person(61_001, 61_001, (61_100,))
_BOB = Person(61_002, 61_002)


@pytest.fixture
def alice(place: Place) -> Person:
    """Somebody who is not root: oneself, or for root a child process.  Root needs a place that others may enter."""
    if os.geteuid():
        return Person(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    assert place.mode.others_may_enter, 'say needs("others"), or needs("ordinary")'
    return _ALICE


@pytest.fixture
def bob(alice: Person) -> Person:
    """Somebody else who is not root, and in no group of hers; say needs("root", "others")."""
    assert alice.uid == _ALICE.uid
    return _BOB


@pytest.fixture
def home(root: Path, alice: Person) -> Path:
    """A directory of hers, 0755, below one that she can pass through."""
    directory = root / "home"
    directory.mkdir(0o755)
    if os.geteuid() == 0:
        os.chown(directory, alice.uid, alice.gid)
    return directory
