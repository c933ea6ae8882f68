"""The lock that a reader of a snapshot and its destroyer take on the folder of views."""

from __future__ import annotations

from pathlib import Path

import pytest

from tzfs.errors import Busy, NotFound
from tzfs.store import lease
from tzfs.store.lease import VIEWS_FOLDER, ViewHold, beginning_to_read, no_new_readers


def test_readers_begin_together_and_a_destroyer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "READER_TRIES_MAX", 3)
    monkeypatch.setattr(lease, "TESTED_TRIES_MAX", 3)
    (tmp_path / VIEWS_FOLDER).mkdir()
    refused = pytest.raises(Busy, match="does not get on with it")
    with beginning_to_read(tmp_path), beginning_to_read(tmp_path), refused, no_new_readers(tmp_path):
        pass
    with no_new_readers(tmp_path) as readers:
        assert readers == []
        for other in (beginning_to_read, no_new_readers):
            with pytest.raises(Busy, match="does not get on with it"), other(tmp_path):
                pass
    with beginning_to_read(tmp_path):
        pass


def test_a_destroyer_sees_who_holds(tmp_path: Path) -> None:
    with ViewHold.acquire(tmp_path, name="s", epoch=3), no_new_readers(tmp_path) as readers:
        assert [(reader["name"], reader["epoch"]) for reader in readers] == [("s", 3)]
    with no_new_readers(tmp_path) as readers:
        assert readers == []


def test_where_there_is_no_filesystem_there_are_no_readers(tmp_path: Path) -> None:
    for use in (beginning_to_read, no_new_readers):
        with pytest.raises(NotFound), use(tmp_path / "none"):
            pass
