"""Stores of clones, whose origins are worlds that go on: they are written, crash, and are opened again meanwhile."""

from __future__ import annotations

from pathlib import Path

from tests.engine.world import GUID, DiskStores, MemoryStores, World
from tzfs.engine.beginning import format_clone
from tzfs.engine.cloning import kinds_of
from tzfs.engine.committed import read_superblock
from tzfs.engine.inherited import Above, Ancestry
from tzfs.format.keys import ExtentId
from tzfs.format.superblock import Origin
from tzfs.store.interface import MetaStore, Readable, ReadTransaction
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.memory import MemoryMeta, MemoryPayload, MemoryRedo
from tzfs.store.redo import RedoLog
from tzfs.store.segments import Segments

Stores = MemoryStores | DiskStores


class _Meta:
    """The tables of stores as they are open now."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def begin_read(self) -> ReadTransaction:
        return self._stores.meta.begin_read()


class _Payload:
    """The payload of stores as it is open now."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def read(self, extent: ExtentId, offset: int, length: int) -> bytes:
        return self._stores.payload.read(extent, offset, length)

    def read_into(self, extent: ExtentId, offset: int, target: memoryview, *, wait: bool = True) -> bool:
        return self._stores.payload.read_into(extent, offset, target, wait=wait)

    def data_ranges(self, number: int) -> list[tuple[int, int]] | None:
        return self._stores.payload.data_ranges(number)

    def close(self) -> None:
        pass


def linked(origin: World, name: str, meta: MetaStore) -> Origin:
    """Makes `meta` a clone of the snapshot `name` of `origin`, and answers what it says of it."""
    origin.engine.commit()
    record, counters = origin.engine.snapshots()[name], origin.engine.counters
    link = Origin(GUID.hex(), 1, record.guid.hex(), record.epoch, counters.next_ino, counters.next_data)
    format_clone(meta, guid=GUID, now_ns=1, origin=link, kinds=kinds_of(record))
    return link


def cloned(meta: Readable) -> bool:
    """Whether what is committed names an origin."""
    txn = meta.begin_read()
    try:
        return read_superblock(txn).origin is not None
    finally:
        txn.close()


def ancestry_of(stores: Stores, origin: Stores, link: Origin) -> Ancestry | None:
    """What a clone reads through to; None once it has been flattened."""
    if not cloned(stores.meta):
        return None
    return Ancestry(Above(_Meta(origin), _Payload(origin), link, origin.ancestry()))


class ClonedInMemory(MemoryStores):
    """A clone's stores in memory."""

    def __init__(self, origin: World, name: str) -> None:
        self.meta, self.payload, self.redo = MemoryMeta(), MemoryPayload(), MemoryRedo(room=4)
        self._origin, self._link = origin.stores, linked(origin, name, self.meta)

    def ancestry(self) -> Ancestry | None:
        return ancestry_of(self, self._origin, self._link)


class ClonedOnDisk(DiskStores):
    """A clone's stores on disk."""

    def __init__(self, folder: Path, origin: World, name: str) -> None:
        self._folder = folder
        self.meta = LmdbMeta(folder / "meta", create=True)
        self._origin, self._link = origin.stores, linked(origin, name, self.meta)
        self.payload = Segments(folder / "segments", guid=GUID, create=True)
        self.redo = RedoLog(folder / "redo", GUID)

    def ancestry(self) -> Ancestry | None:
        return ancestry_of(self, self._origin, self._link)
