"""The catalog of a store: which filesystems there are, where they lie, and every command on their names.

`Catalog.open` finds a store or makes one.  The catalog decides; the folders follow: `tzfs.transitions` has the order of
events, `tzfs.lifecycle` what is allowed when, `tzfs.catalog_rows` what is recorded.  Opening a store for writing ends
what was interrupted, and so does a command that meets such a record.  What cannot be ended is told in `unsettled`.

Two processes: every command reads what it decides on in the transaction that changes it, and LMDB lets one write at a
time.  Archive, activate and destroy take the filesystem's lease before they change its state; who opens it for writing
takes the lease and then looks at the state (`acquire`, or `confirm` with a lease of one's own).  Who reads a snapshot
locks a file in views/ and then looks (`confirm`); destroy records DELETING after it has looked there.  So neither side
can slip between the other's steps.

A filesystem's number, its partition, is FNV-1a-64 of namespace ‖ NUL ‖ name when it is created.  Where that is taken,
in the catalog or by a folder, it is the next that is free.  It never changes, whatever the name becomes.

Nothing here prints, reads the environment, or knows what is in a filesystem: the caller formats it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from tzfs import catalog_log, inheritance
from tzfs import catalog_rows as rows
from tzfs import properties as props
from tzfs.catalog_rows import FilesystemRecord, StoreRecord
from tzfs.catalog_session import FilesystemInfo, Layers, Session, StoreInfo, open_session
from tzfs.errors import CorruptionError, NotFound
from tzfs.failpoints import declare, hit
from tzfs.format.log import Entry
from tzfs.layout import Layout, translating
from tzfs.lifecycle import Command, check
from tzfs.names import STORE_SCOPE, FilesystemName, Scope, parse_filesystem, parse_property_target
from tzfs.store.lease import Info, Lease, Value
from tzfs.transitions import Formatter, Transitions, describe_holder, partition_of

__all__ = ["Catalog", "FilesystemInfo", "Formatter", "StoreInfo", "describe_holder", "partition_of"]

_RENAME: Final = declare("catalog.rename.begin", "before the new name is committed")
_RELEASE: Final = declare("clone.release", "before it is committed that a clone is none any more")
_SET: Final = declare("catalog.set.begin", "before a property is committed")


class Catalog:
    """An open store.  Close it.  Any thread may call.

    Names are given as text or parsed.  Every command raises `InvalidArgument` or `NameTooLong` for a malformed name,
    `NotFound`, `Exists`, `WrongState`, `Busy` as `tzfs.lifecycle` has it, `ReadOnly` where the store cannot be written,
    and `StoreError`, `NoSpace` or `PermissionDenied` where the disk refuses; then nothing has changed, but for an
    interrupted `destroy`, which goes on when it is called again or the store is opened next.
    """

    def __init__(self, session: Session, record: StoreRecord) -> None:
        """Use `open`."""
        self._session = session
        self._transitions = Transitions(session)
        self.info: Final = StoreInfo(
            session.layout.root, record.guid, record.created_ns, record.format, session.readonly
        )
        self.unsettled: list[str] = []  # what could not be ended when the store was opened, and why

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        readonly: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> Catalog:
        """Opens the store in the folder `path`; `create` makes one where there is nothing, or an empty folder.

        Where the files can only be read, or `readonly` is asked for, nothing is changed and every command that would
        change something raises `ReadOnly`.  Raises `NotFound` for a folder that is not there, `ForeignStore` for one
        that holds something else or a format of a newer version, `PermissionDenied`.
        """
        with translating(f"store {os.fspath(path)}"):
            layout = Layout(Path(path).resolve())
            session, record = open_session(layout, create=create, readonly=readonly, clock=clock)
        try:
            catalog = cls(session, record)
            if session.readonly is None:
                catalog.unsettled = catalog._transitions.settle()
        except BaseException:
            session.close()
            raise
        return catalog

    def close(self) -> None:
        """Lets go of the store; idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    def get(self, name: str | FilesystemName, command: Command = Command.GET) -> FilesystemInfo:
        """The filesystem of that name, if its state allows `command`: GET in whatever state."""
        return self._session.get(_parsed(name), command)

    def refresh(self, info: FilesystemInfo) -> FilesystemInfo:
        """The same filesystem as it is now, under whatever name; `NotFound` if it is gone."""
        with self._session.read() as txn:
            record = rows.find_partition(txn, info.partition)
            if record is None or record.guid != info.guid:
                raise NotFound(f"filesystem {info.name} is gone: it was destroyed")
            return self._session.info(txn, record)

    def confirm(self, info: FilesystemInfo, command: Command) -> FilesystemInfo:
        """`refresh`, if the state allows `command`: to be asked once the lease, or a file in views/, is held."""
        fresh = self.refresh(info)
        check(command, fresh.name, fresh.state)
        return fresh

    def list(
        self, scope: Scope = STORE_SCOPE, *, on_damage: Callable[[CorruptionError], None] | None = None
    ) -> list[FilesystemInfo]:
        """The filesystems in `scope`, by name, in every state.

        A damaged record is given to `on_damage` and left out; without it, it is raised.
        """
        found = []
        with self._session.read() as txn:
            layers = Layers(txn)
            for record in rows.filesystems(txn, scope):
                if isinstance(record, FilesystemRecord):
                    found.append(self._session.info(txn, record, layers))
                elif on_damage is None:
                    raise record
                else:
                    on_damage(record)
        return found

    def log(self, info: FilesystemInfo | None = None) -> tuple[Entry, ...]:
        """The store's log, oldest first: all of it, or what was done to a filesystem under whatever name."""
        with self._session.read() as txn:
            entries = [e for e in catalog_log.read(txn) if info is None or e.fields.get("guid") == info.guid]
        return tuple(reversed(entries))

    def holder(self, info: FilesystemInfo) -> Info | None:
        """What the holder of the filesystem's lease says of itself (pid, mountpoint, socket), or None."""
        return Lease.holder(info.folder)

    # -- life ----------------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str | FilesystemName,
        *,
        formatter: Formatter,
        properties: Mapping[str, str] | None = None,
        origin: str | None = None,
    ) -> FilesystemInfo:
        """Creates a filesystem, ACTIVE and durable when this returns, with `properties` set on it.

        `formatter` is called with its new folder (in which meta/, segments/ and views/ are empty) and its guid.
        Whatever is raised on the way, also by the formatter, undoes the creation.  `origin` says that it is a clone,
        as `catalog_rows.origin_text` has it.
        """
        parsed = _parsed(name)
        local = {key: props.parse(key, text) for key, text in (properties or {}).items()}
        with translating(f"create {parsed}"):
            return self._transitions.create(parsed, local, formatter, origin)

    def rename(self, old: str | FilesystemName, new: str | FilesystemName) -> FilesystemInfo:
        """Gives a filesystem another name, also while it is mounted; its folder and number stay."""
        source, target = _parsed(old), _parsed(new)
        with translating(f"rename {source} to {target}"):
            self._transitions.settle_name(source)
            self._transitions.settle_name(target)
            with self._session.write() as txn:
                record = self._session.known(txn, source, Command.RENAME)
                there = rows.get_filesystem(txn, target)
                check(Command.CREATE, target, None if there is None else there.state)
                info = self._session.info(txn, rows.rename_filesystem(txn, record, target))
                now_ns = self._session.clock()
                catalog_log.note(txn, now_ns, "rename", filesystem=str(source), guid=record.guid, to=str(target))
                hit(_RENAME)
                txn.commit()
            return info

    def clones(self, info: FilesystemInfo) -> tuple[tuple[str, FilesystemName], ...]:
        """(guid of the snapshot, in hex, clone) for each clone of a snapshot of the filesystem, by name.

        Who is about to destroy a snapshot asks while nobody can begin to read it: whoever clones it reads it until its
        clone is recorded.
        """
        with self._session.read() as txn:
            return tuple((guid, record.name) for guid, record in rows.clones_of(txn, info.partition))

    def origin(self, info: FilesystemInfo) -> tuple[FilesystemInfo, str] | None:
        """The filesystem that it is a clone of, and the guid of the snapshot, in hex; None for what is no clone."""
        if info.origin is None:
            return None
        partition, guid = rows.origin_parts(info.origin)
        with self._session.read() as txn:
            record = rows.find_partition(txn, partition)
            return None if record is None else (self._session.info(txn, record), guid)

    def release_origin(self, info: FilesystemInfo) -> None:
        """The filesystem needs its origin no more, as its own tables say durably: the hold goes."""
        with translating(f"release the origin of {info.name}"), self._session.write(frees=True) as txn:
            record = rows.find_partition(txn, info.partition)
            if record is not None and record.guid == info.guid and record.origin is not None:
                rows.release_origin(txn, record)
                hit(_RELEASE)
                txn.commit()

    def archive(self, name: str | FilesystemName) -> FilesystemInfo:
        """ACTIVE -> ARCHIVED: nobody can write it until it is activated.  `Busy` while it is mounted."""
        parsed = _parsed(name)
        with translating(f"archive {parsed}"):
            return self._transitions.archive(parsed)

    def activate(self, name: str | FilesystemName) -> FilesystemInfo:
        """ARCHIVED -> ACTIVE.  `Busy` while it is mounted."""
        parsed = _parsed(name)
        with translating(f"activate {parsed}"):
            return self._transitions.activate(parsed)

    def destroy(
        self,
        name: str | FilesystemName,
        *,
        dry_run: bool = False,
        clones_first: bool = False,
        damaged: bool = False,
        agreed: Callable[[FilesystemInfo], None] = lambda info: None,
    ) -> FilesystemInfo:
        """Removes a filesystem, its snapshots and its folder; the answer is what it was.

        `Busy` while it is mounted, or a process reads one of its snapshots.  `dry_run` only looks whether it could be
        done; with `clones_first`, once its clones are gone.  `damaged`: also where something else is in the place of
        its folders or its lock, else `Displaced`.  `agreed` is asked when nobody else can have it any more: what that
        raises, refuses.
        """
        parsed = _parsed(name)
        with translating(f"destroy {parsed}"):
            return self._transitions.destroy(
                parsed, dry_run=dry_run, clones_first=clones_first, damaged=damaged, agreed=agreed
            )

    def acquire(
        self, name: str | FilesystemName, *, info: Mapping[str, Value], command: Command = Command.OPEN
    ) -> tuple[FilesystemInfo, Lease]:
        """The lease of a filesystem, for `command`, and the filesystem as it is now that nobody else can change it.

        `info` is what `Busy` shall say of this process to others.  The caller releases the lease.
        """
        parsed = _parsed(name)
        with translating(f"{command} {parsed}"):
            self._session.check_writable()
            self._transitions.settle_name(parsed)
            found = self._transitions.ready(parsed, command)
            self._session.layout.check(found.partition)
            lease = self._transitions.lease(found, command, info)
            try:
                return self.confirm(found, command), lease
            except BaseException:
                lease.release()
                raise

    # -- properties ----------------------------------------------------------------------------------------------------

    def set_property(self, target: str | FilesystemName | Scope, name: str, text: str) -> inheritance.Value:
        """Sets a property on a filesystem, or on `NAMESPACE/` or `/` for what inherits there.  The value as it is now.

        Whoever has the filesystem mounted is not told; the caller does that.
        """
        return self._change(target, Command.SET, name, props.parse(name, text))

    def inherit_property(self, target: str | FilesystemName | Scope, name: str) -> inheritance.Value:
        """Takes away the value set on `target`, if there is one.  The value that holds there now."""
        props.check_settable(name)
        return self._change(target, Command.INHERIT, name, None)

    def scope_layers(self, scope: Scope) -> tuple[inheritance.Layer, ...]:
        """What is set on a scope, and above it: for `tzfs.inheritance`, as `FilesystemInfo.layers`."""
        with self._session.read() as txn:
            return Layers(txn).of_scope(scope)

    def _change(
        self, target: str | FilesystemName | Scope, command: Command, name: str, exact: str | None
    ) -> inheritance.Value:
        where = parse_property_target(target) if isinstance(target, str) else target
        with translating(f"{command} {where}"):
            if isinstance(where, FilesystemName):
                self._transitions.settle_name(where)
            with self._session.write() as txn:
                if isinstance(where, Scope):
                    rows.put_scope(txn, where, _with(rows.get_scope(txn, where), name, exact))
                    layers, guid = Layers(txn).of_scope(where), None
                else:
                    record = self._session.known(txn, where, command)
                    record = replace(record, properties=_with(record.properties, name, exact))
                    rows.put_filesystem(txn, record)
                    layers, guid = Layers(txn).of(record), record.guid
                catalog_log.note(
                    txn, self._session.clock(), "set" if exact is not None else "inherit",
                    filesystem=str(where), guid=guid, property=name, value=exact,
                )  # fmt: skip
                hit(_SET)
                txn.commit()
        return inheritance.lookup(name, layers, {})


def _parsed(name: str | FilesystemName) -> FilesystemName:
    return parse_filesystem(name) if isinstance(name, str) else name


def _with(values: Mapping[str, str], name: str, exact: str | None) -> dict[str, str]:
    changed = {key: value for key, value in values.items() if key != name}
    if exact is not None:
        changed[name] = exact
    return changed
