"""Opening a folder writes nothing before it is known that this tzfs may write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tzfs.engine.committed import read_superblock
from tzfs.engine.engine import Settings
from tzfs.errors import ForeignStore
from tzfs.format.keys import Table
from tzfs.format.operations import Op, pack_operations
from tzfs.format.superblock import SUPERBLOCK_KEY, Feature, Kind, pack_superblock
from tzfs.layout import META
from tzfs.opening import HeadReader, Writer, format_filesystem
from tzfs.store.lease import Lease
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.redo import REDO_FILE, RedoLog

GUID = bytes(range(16))


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A filesystem with a feature that this tzfs may only read, which a newer one left with a group in the redo log."""
    folder = tmp_path / "fs"
    folder.mkdir()
    format_filesystem(folder, GUID)
    unknown = Feature(Kind.RO_COMPAT, 40, "of a later version", "")
    meta = LmdbMeta(folder / META)
    txn = meta.begin_write()
    superblock = read_superblock(txn).with_features([unknown])
    txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(superblock))
    txn.commit()
    log = RedoLog(folder / REDO_FILE, GUID)
    assert log.append(meta.commit_number, pack_operations([(Op.UNLINK, 1, 1, b"newer")]))
    log.close()
    meta.close()
    return folder


@pytest.mark.parametrize("way", ["writing", "reading"])
def test_the_log_of_a_newer_writer_is_left_to_it(newer: Path, way: str) -> None:
    log = (newer / REDO_FILE).read_bytes()
    lease = Lease.acquire(newer, info={})
    opening: dict[str, Callable[[], object]] = {
        "writing": lambda: Writer(newer, GUID, lease=lease, settings=Settings()),
        "reading": lambda: HeadReader(newer, GUID, lease=lease),
    }
    with pytest.raises(ForeignStore, match="can read but not write") as refused:
        opening[way]()
    assert refused.value.hint
    assert not lease.held
    assert (newer / REDO_FILE).read_bytes() == log
    meta = LmdbMeta(newer / META, readonly=True)
    txn = meta.begin_read()
    assert read_superblock(txn).generation == 0
    txn.close()
    meta.close()
