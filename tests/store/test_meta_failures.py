"""A failure at each step of opening, creating and committing tables: nothing leaks, and the next attempt works."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.store.stores import fds_below
from tzfs import failpoints
from tzfs.errors import NoSpace, StoreError
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta

STEPS = (
    "meta.open.check",
    "meta.create.folder",
    "meta.open.lock",
    "meta.open.map",
    "meta.open.tables",
    "meta.open.readers",
    "meta.create.sync",
    "meta.reserve",
    "meta.begin",
    "meta.commit",
    "meta.committed",
    "meta.close",
)


def life(folder: Path, *, create: bool, readonly: bool = False) -> None:
    """Everything a process does with tables, passing every step."""
    meta = LmdbMeta(folder, create=create, readonly=readonly)
    try:
        reading = meta.begin_read()
        try:
            if not readonly:
                meta.reserve(1 << 20)
                txn = meta.begin_write()
                txn.put(Table.SYS, b"key", b"value")
                txn.commit()
            reading.get(Table.SYS, b"key")
        finally:
            reading.close()
            assert meta.readers() == 0
    finally:
        meta.close()


def failure_of(folder: Path, *, create: bool, readonly: bool) -> StoreError | None:
    try:
        life(folder, create=create, readonly=readonly)
    except StoreError as error:
        return error
    return None


def test_the_steps_are_those_that_are_declared(tmp_path: Path) -> None:
    with failpoints.counting() as counts:
        life(tmp_path / "meta", create=True)
    assert set(counts) == set(STEPS) == {name for name in failpoints.KNOWN if name.startswith("meta.")}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("how", ["create", "open", "read"])
def test_after_a_failure_at_any_step_all_is_as_before(tmp_path: Path, step: str, error: str, how: str) -> None:
    folder = tmp_path / "meta"
    if how != "create":
        life(folder, create=True)
    threads = threading.active_count()
    failpoints.arm(step, f"error:{error}")
    with failpoints.counting() as counts:
        caught = failure_of(folder, create=how == "create", readonly=how == "read")
    assert (caught is not None) == (step in counts)
    assert isinstance(caught, NoSpace) == (step in counts and error == "ENOSPC")
    assert fds_below(tmp_path) == []
    assert threading.active_count() == threads
    failpoints.disarm_all()
    life(folder, create=how == "create", readonly=how == "read")
    assert fds_below(tmp_path) == []


@pytest.mark.parametrize("step", ["meta.open.map", "meta.open.tables", "meta.open.readers"])
def test_a_reader_goes_on_when_a_writer_beside_it_fails_to_open(tmp_path: Path, step: str) -> None:
    life(tmp_path / "meta", create=True)
    reader = LmdbMeta(tmp_path / "meta", readonly=True)
    failpoints.arm(step, "error:EIO")
    with pytest.raises(StoreError):
        LmdbMeta(tmp_path / "meta")
    reading = reader.begin_read()
    assert reading.get(Table.SYS, b"key") == b"value"
    reading.close()
    reader.close()
    assert fds_below(tmp_path) == []
    life(tmp_path / "meta", create=False)
