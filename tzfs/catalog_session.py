"""An open store: its tables, the transactions on them, and its filesystems as the rest of the catalog sees them.

`open_session` finds a store or makes one, and refuses what is not one of ours.  Making is folder, fs/, catalog/, the
catalog's tables, the store's record, in this order and under a lock on the folder; interrupted anywhere, it goes on the
next time.  A store without a record has never held a filesystem.

One write transaction at a time in this process, whichever thread or object asks; LMDB sees to other processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tzfs import catalog_rows as rows
from tzfs.catalog_rows import FilesystemRecord, StoreRecord
from tzfs.errors import ForeignStore, InvalidArgument, NotFound, ReadOnly, StoreError
from tzfs.failpoints import declare, hit
from tzfs.format.keys import CATALOG_TABLES
from tzfs.inheritance import LOCAL, Layer, Value, inherited_from, lookup, resolve
from tzfs.layout import META, Layout, translating
from tzfs.lifecycle import Command, State, check
from tzfs.names import STORE_SCOPE, FilesystemName, Scope
from tzfs.store.interface import MetaStore, ReadTransaction, WriteTransaction
from tzfs.store.lmdb_store import LmdbMeta

RESERVE_BYTES: Final = 1 << 20  # the largest transaction: two records of 64 pieces, and the tree above them

_INIT_TABLES: Final = declare("catalog.init.tables", "the catalog's tables are there, without the store's record")


class _Process:
    """What this process must not do twice at once."""

    def __init__(self) -> None:
        self.writing = threading.Lock()


_process: Final = _Process()


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """A store.  `readonly` says why it cannot be written, or is None."""

    path: Path
    guid: str
    created_ns: int
    format: int
    readonly: str | None


@dataclass(frozen=True, slots=True)
class FilesystemInfo:
    """A filesystem as the catalog had it at one moment.

    `guid` is what identifies it.  `folder` is where it lies; `layers` are the values set on it and above it, nearest
    first, for `tzfs.inheritance`.
    """

    name: FilesystemName
    guid: str
    partition: int
    state: State
    created_ns: int
    changed_ns: int
    origin: str | None
    folder: Path
    layers: tuple[Layer, ...]

    @property
    def meta(self) -> Path:
        """The folder of its tables."""
        return self.folder / META

    @property
    def local(self) -> Mapping[str, str]:
        """The properties set on the filesystem itself."""
        return self.layers[0][1]

    def facts(self) -> dict[str, str]:
        """The computed properties that the catalog knows; the filesystem and its mount know others."""
        return {
            "type": "filesystem",
            "creation": str(self.created_ns // 1_000_000_000),
            "guid": self.guid,
            "state": self.state.value,
        }

    def properties(self, facts: Mapping[str, str] | None = None) -> dict[str, Value]:
        """All properties; `facts` are computed ones beyond those of the catalog."""
        return resolve(self.layers, {**self.facts(), **(facts or {})})

    def property(self, name: str, facts: Mapping[str, str] | None = None) -> Value:
        """One property; `NotFound` or `InvalidArgument` for a name that is none."""
        return lookup(name, self.layers, {**self.facts(), **(facts or {})})


class Layers:
    """Where properties are set, read once in a transaction."""

    def __init__(self, txn: ReadTransaction) -> None:
        self._txn = txn
        self._scopes: dict[Scope, Layer] = {}

    def of(self, record: FilesystemRecord) -> tuple[Layer, ...]:
        scope = record.name.scope
        above = (self._scope(STORE_SCOPE),) if scope is None else (self._scope(scope), self._scope(STORE_SCOPE))
        return ((LOCAL, record.properties), *above)

    def of_scope(self, scope: Scope) -> tuple[Layer, ...]:
        here: Layer = (LOCAL, self._scope(scope)[1])
        return (here, self._scope(STORE_SCOPE)) if scope.namespace else (here,)

    def _scope(self, scope: Scope) -> Layer:
        if scope not in self._scopes:
            self._scopes[scope] = (inherited_from(scope), rows.get_scope(self._txn, scope))
        return self._scopes[scope]


class Session:
    """One open store.  `readonly` says why it cannot be written, or is None."""

    def __init__(
        self, layout: Layout, meta: MetaStore, *, clock: Callable[[], int], readonly: str | None = None
    ) -> None:
        self.layout: Final = layout
        self.meta: Final = meta
        self.clock: Final = clock
        self.readonly = readonly
        self._closed = False

    def close(self) -> None:
        """Lets go of the store, but for the space that the next process needs to destroy something on a full disk."""
        if self._closed:
            return
        self._closed = True
        self.meta.close()
        if self.readonly is None:
            self.layout.keep_reserve(RESERVE_BYTES)

    @contextmanager
    def read(self) -> Iterator[ReadTransaction]:
        self._check_open()
        txn = self.meta.begin_read()
        try:
            yield txn
        finally:
            txn.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgument(f"store {self.layout.root} is closed", hint="open it again: use it in a with block")

    def check_writable(self) -> None:
        """`ReadOnly` where nothing can be written: to be asked before anything is locked or made."""
        self._check_open()
        if self.readonly is not None:
            raise ReadOnly(f"store {self.layout.root} is read-only: {self.readonly}")

    @contextmanager
    def write(self, *, frees: bool = False) -> Iterator[WriteTransaction]:
        """A write transaction, with space for its commit; what `frees` space is tried without, if need be."""
        self.check_writable()
        with _process.writing:
            with suppress(*((StoreError,) if frees else ())):
                self.meta.reserve(RESERVE_BYTES)
            txn = self.meta.begin_write()
            try:
                yield txn
            finally:
                txn.close()

    def known(self, txn: ReadTransaction, name: FilesystemName, command: Command) -> FilesystemRecord:
        """The record of `name`, if its state allows `command`."""
        record = rows.get_filesystem(txn, name)
        check(command, name, None if record is None else record.state)
        assert record is not None
        return record

    def same(self, txn: ReadTransaction, info: FilesystemInfo, command: Command) -> FilesystemRecord:
        """The filesystem of `info` as it is in `txn`, if it still has the name it was asked for by."""
        record = self.known(txn, info.name, command)
        if record.guid != info.guid:
            raise NotFound(f"cannot {command} {info.name}: it was renamed or destroyed meanwhile", hint="try again")
        return record

    def info(self, txn: ReadTransaction, record: FilesystemRecord, layers: Layers | None = None) -> FilesystemInfo:
        return FilesystemInfo(
            name=record.name,
            guid=record.guid,
            partition=record.partition,
            state=record.state,
            created_ns=record.created_ns,
            changed_ns=record.changed_ns,
            origin=record.origin,
            folder=self.layout.folder(record.partition),
            layers=(layers or Layers(txn)).of(record),
        )

    def get(self, name: FilesystemName, command: Command) -> FilesystemInfo:
        """The filesystem of that name, if its state allows `command`."""
        with self.read() as txn:
            return self.info(txn, self.known(txn, name, command))


# -- opening -----------------------------------------------------------------------------------------------------------


def open_session(
    layout: Layout, *, create: bool, readonly: bool, clock: Callable[[], int]
) -> tuple[Session, StoreRecord]:
    """The store in `layout`; see `Catalog.open`."""
    meta, why = _open_meta(layout, create=create and not readonly, readonly=readonly, clock=clock)
    try:
        record = _read_store(layout, meta)
    except BaseException:
        meta.close()
        raise
    if record.ro_compat and why is None:
        why = f"it uses features {record.ro_compat:#x} that this tzfs can only read"
    return Session(layout, meta, clock=clock, readonly=why), record


def _open_meta(
    layout: Layout, *, create: bool, readonly: bool, clock: Callable[[], int]
) -> tuple[MetaStore, str | None]:
    """The catalog's tables, with the store's record in them, and why they cannot be written, if so."""
    try:
        there = layout.is_store()
    except NotFound:
        if not create:
            raise NotFound(f"store {layout.root}: there is none", hint="tzfs create makes one") from None
        there = False
    if there:
        layout.check_owner()
        try:
            meta: MetaStore = LmdbMeta(layout.catalog, tables=CATALOG_TABLES, readonly=readonly)
        except ReadOnly as error:
            return LmdbMeta(layout.catalog, tables=CATALOG_TABLES, readonly=True), str(error)
        if not create or _has_record(meta):
            return meta, "it was opened for reading" if readonly else None
        meta.close()
    if not create:
        raise ForeignStore(f"store {layout.root}: an empty folder, not a store", hint="tzfs create makes one in it")
    layout.make()
    with layout.making():
        # Another process may have been first meanwhile.  Tables are made only where there are none at all.
        meta = LmdbMeta(layout.catalog, tables=CATALOG_TABLES, create=not layout.is_store())
        try:
            with translating(f"make the store {layout.root}"):
                hit(_INIT_TABLES)
                _put_record(meta, clock)
        except BaseException:
            meta.close()
            raise
    return meta, None


def _has_record(meta: MetaStore) -> bool:
    txn = meta.begin_read()
    try:
        return rows.get_store(txn) is not None
    finally:
        txn.close()


def _put_record(meta: MetaStore, clock: Callable[[], int]) -> None:
    with _process.writing:
        txn = meta.begin_write()
        try:
            if rows.get_store(txn) is None:
                rows.put_store(txn, StoreRecord(os.urandom(16).hex(), clock()))
                txn.commit()
        finally:
            txn.close()


def _read_store(layout: Layout, meta: MetaStore) -> StoreRecord:
    txn = meta.begin_read()
    try:
        record = rows.get_store(txn)
    finally:
        txn.close()
    if record is None:
        raise ForeignStore(f"store {layout.root}: its making was interrupted", hint="tzfs create makes it anew")
    if record.format > rows.STORE_FORMAT:
        raise ForeignStore(
            f"store {layout.root} has format {record.format}, this tzfs knows {rows.STORE_FORMAT}",
            hint="a newer tzfs made it; use that one",
        )
    if record.incompat:
        raise ForeignStore(
            f"store {layout.root} uses features {record.incompat:#x} that this tzfs does not know",
            hint="a newer tzfs made it; use that one",
        )
    return record


def _after_fork() -> None:
    """In the child: a thread that the child does not have may hold the lock."""
    _process.writing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
