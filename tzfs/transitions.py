"""How a filesystem comes to be, changes its state, and goes: the transitions of `tzfs.lifecycle`, step by step.

    create    CREATING committed -> folder made, formatted, synced -> ACTIVE committed
    destroy   DELETING committed -> folder removed, fs/ synced     -> record removed
    archive, activate    one commit, under the lease

so a crash leaves a record that says what was going on, never a folder that nothing names or a name that has half a
folder.  Whoever takes a filesystem through CREATING or DELETING holds its transition lock from before the first commit
until after the last.  A record in such a state whose lock is free was interrupted; `settle` ends it, by removing it.

No lock is waited for while a transaction is open: its holder may need one to finish.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from tzfs import catalog_log
from tzfs import catalog_rows as rows
from tzfs.catalog_rows import FilesystemRecord
from tzfs.catalog_session import FilesystemInfo, Session
from tzfs.errors import Busy, Displaced, StoreError, TzfsError, about
from tzfs.failpoints import declare, hit
from tzfs.format.log import Field
from tzfs.layout import META, TransitionLock, check_file, check_folder, translating
from tzfs.lifecycle import Command, State, check
from tzfs.names import FilesystemName
from tzfs.native import fnv1a64
from tzfs.store.interface import ReadTransaction, WriteTransaction
from tzfs.store.lease import LOCK_FILE, TESTED_TRIES_MAX, VIEWS_FOLDER, Info, Lease, Value, live_views
from tzfs.store.lmdb_environment import in_use

Formatter = Callable[[Path, bytes], None]  # (the filesystem's folder, its guid): makes it an empty filesystem, durably

LOCK_TRIES_MAX: Final = 100  # times in a row that another process is first at a number that has just become free

_CREATE: Final = declare("catalog.create.begin", "before CREATING is committed")
_CREATE_RECORDED: Final = declare("catalog.create.recorded", "CREATING is committed; there is no folder yet")
_CREATE_FOLDER: Final = declare("catalog.create.folder", "the folder is made; nothing is in it")
_CREATE_FORMATTED: Final = declare("catalog.create.formatted", "the folder is formatted, not synced")
_CREATE_SYNCED: Final = declare("catalog.create.synced", "the folder is durable; before ACTIVE is committed")
_ARCHIVE: Final = declare("catalog.archive.begin", "the lease is held; before ARCHIVED is committed")
_ACTIVATE: Final = declare("catalog.activate.begin", "the lease is held; before ACTIVE is committed")
_DESTROY: Final = declare("catalog.destroy.begin", "the lease is held; before DELETING is committed")
_DESTROY_RECORDED: Final = declare("catalog.destroy.recorded", "DELETING is committed; the folder is untouched")
_REMOVED: Final = declare("catalog.destroy.removed", "the folder is gone; the record is still there")

_PASSING: Final = (State.CREATING, State.DELETING)


def partition_of(name: FilesystemName) -> int:
    """The number that a filesystem created under this name gets, if it is free."""
    return fnv1a64(f"{name.namespace}\0{name.name}".encode())


class Transitions:
    """The transitions in one open store."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._layout = session.layout

    # -- what was interrupted ------------------------------------------------------------------------------------------

    def settle(self) -> list[str]:
        """Ends what was interrupted.  What somebody is still doing stays; what fails stays too, and is the answer."""
        failed = []
        with self._session.read() as txn:
            numbers = rows.pending(txn)
        for number in numbers:
            try:
                with translating(f"settle {number:016x}"):
                    self._settle(number)
            except TzfsError as error:
                failed.append(str(error))
        return failed

    def settle_name(self, name: FilesystemName) -> None:
        """Ends a transition of `name` that was interrupted, if there is one."""
        with self._session.read() as txn:
            record = rows.get_filesystem(txn, name)
        if record is not None and record.state in _PASSING:
            self._settle(record.partition)

    def _settle(self, partition: int) -> None:
        lock = self._layout.lock_transition(partition)
        if lock is not None:
            with lock:
                self._end(partition)

    def _end(self, partition: int) -> None:
        """Removes a filesystem that is in CREATING or DELETING, folder first; the transition lock is held."""
        with self._session.read() as txn:
            record = rows.find_partition(txn, partition)
        if record is None or record.state not in _PASSING:
            return
        self._layout.remove_folder(partition)
        hit(_REMOVED)
        self._forget(record)

    def _forget(self, record: FilesystemRecord) -> None:
        with self._session.write(frees=True) as txn:
            rows.delete_filesystem(txn, record)
            txn.commit()

    # -- create --------------------------------------------------------------------------------------------------------

    def create(
        self, name: FilesystemName, local: Mapping[str, str], formatter: Formatter, origin: str | None = None
    ) -> FilesystemInfo:
        """A new filesystem, ACTIVE.  Whatever is raised on the way undoes it.

        `origin`: it is a clone.  Its origin is held from the first commit on, and until its folder is gone.
        """
        self.settle_name(name)
        record, lock = self._record_creation(name, local, origin)
        with lock:
            try:
                self._fill(record, formatter)
                with self._session.write() as txn:
                    record = record.moved(State.ACTIVE, self._session.clock())
                    rows.put_filesystem(txn, record)
                    self._note(txn, record, Command.CREATE if origin is None else Command.CLONE, properties=local)
                    info = self._session.info(txn, record)
                    txn.commit()
            except BaseException:
                with suppress(TzfsError, OSError):  # what cannot be undone now is undone by the next command
                    self._end(record.partition)
                raise
        return info

    def _record_creation(
        self, name: FilesystemName, local: Mapping[str, str], origin: str | None
    ) -> tuple[FilesystemRecord, TransitionLock]:
        """Commits CREATING under the first free number, and holds its transition lock from before that on."""
        for _ in range(LOCK_TRIES_MAX):
            with self._session.write() as txn:
                there = rows.get_filesystem(txn, name)
                check(Command.CREATE, name, None if there is None else there.state)
                partition = partition_of(name)
                while rows.find_partition(txn, partition) is not None or self._layout.is_taken(partition):
                    partition = (partition + 1) % (1 << 64)
                lock = self._layout.lock_transition(partition)
                if lock is not None:
                    try:
                        now, guid = self._session.clock(), os.urandom(16).hex()
                        record = FilesystemRecord(
                            name, guid, partition, State.CREATING, now, str(name), now, origin, local
                        )
                        rows.put_filesystem(txn, record)
                        hit(_CREATE)
                        txn.commit()
                    except BaseException:
                        lock.release()
                        raise
                    return record, lock
            # Whoever has it is about to let go of the number, or of its neighbour.
            waited = self._layout.lock_transition(partition, wait=True)
            if waited is not None:
                waited.release()
        raise Busy(f"cannot create {name}: others are creating and destroying it all the time", hint="try again")

    def _fill(self, record: FilesystemRecord, formatter: Formatter) -> None:
        """Makes the folder of a filesystem in CREATING, complete and durable."""
        hit(_CREATE_RECORDED)
        try:
            folder = self._layout.make_folder(record.partition)
        except FileExistsError:
            self._forget(record)  # the folder is not ours, and must not be removed with the record
            raise StoreError(f"{self._layout.folder(record.partition)}: made by somebody else just now") from None
        hit(_CREATE_FOLDER)
        formatter(folder, bytes.fromhex(record.guid))
        hit(_CREATE_FORMATTED)
        self._layout.sync(record.partition)
        hit(_CREATE_SYNCED)

    # -- archive, activate ---------------------------------------------------------------------------------------------

    def archive(self, name: FilesystemName) -> FilesystemInfo:
        return self._turn(name, Command.ARCHIVE, State.ARCHIVED, _ARCHIVE)

    def activate(self, name: FilesystemName) -> FilesystemInfo:
        return self._turn(name, Command.ACTIVATE, State.ACTIVE, _ACTIVATE)

    def _turn(self, name: FilesystemName, command: Command, state: State, point: str) -> FilesystemInfo:
        self._session.check_writable()
        self.settle_name(name)
        info = self.ready(name, command)
        with about(name):
            self._layout.check(info.partition)
        with self.lease(info, command, {"doing": str(command)}), self._session.write() as txn:
            record = self._session.same(txn, info, command).moved(state, self._session.clock())
            rows.put_filesystem(txn, record)
            self._note(txn, record, command)
            turned = self._session.info(txn, record)
            hit(point)
            txn.commit()
        return turned

    # -- destroy -------------------------------------------------------------------------------------------------------

    def destroy(
        self,
        name: FilesystemName,
        *,
        dry_run: bool,
        clones_first: bool,
        damaged: bool,
        agreed: Callable[[FilesystemInfo], None],
    ) -> FilesystemInfo:
        """Removes a filesystem, or goes on removing it; the answer is what it was."""
        self._session.check_writable()
        with self._session.read() as txn:
            there = rows.get_filesystem(txn, name)
        if there is not None and there.state is State.CREATING:
            self.settle_name(name)
        info = self.ready(name, Command.DESTROY)
        lock = self._layout.lock_transition(info.partition)
        if lock is None:
            raise Busy(f"cannot destroy {name}: another process is changing it", hint="try again")
        with lock:
            if info.state is not State.DELETING:
                with self._unused(info, damaged=damaged):
                    agreed(info)
                    with self._session.write(frees=True) as txn:
                        record = self._session.same(txn, info, Command.DESTROY)
                        if not (dry_run and clones_first):
                            self._check_clones(txn, record)
                        if dry_run:
                            return info
                        rows.put_filesystem(txn, record.moved(State.DELETING, self._session.clock()))
                        self._note(txn, record, Command.DESTROY)
                        hit(_DESTROY)
                        txn.commit()
                        hit(_DESTROY_RECORDED)
            if not dry_run:
                self._end(info.partition)
        return info

    @staticmethod
    def _check_clones(txn: ReadTransaction, record: FilesystemRecord) -> None:
        clones = [str(clone.name) for _, clone in rows.clones_of(txn, record.partition)]
        if clones:
            raise Busy(
                f"cannot destroy {record.name}: it has clones: {', '.join(clones)}",
                holders=clones,
                hint=f"destroy them first, or make them independent: tzfs flatten {clones[0]}",
            )

    @contextmanager
    def _unused(self, info: FilesystemInfo, *, damaged: bool) -> Iterator[None]:
        """While the context lasts nobody writes the filesystem, and nobody was reading it when it began.

        Where the folder is lost nobody can be in it.  What has to be locked may be lost too, or, if it is `damaged`,
        something else may be in its place: then nobody may have the tables open.
        """
        whole = True

        def stands(check: Callable[[Path], None], path: Path) -> bool:
            nonlocal whole
            try:
                check(path)
            except Displaced:
                whole = False
                if not damaged:
                    raise
            except FileNotFoundError:
                whole = False
            else:
                return True
            return False

        folder, lock = info.folder, info.folder / LOCK_FILE
        if not os.path.lexists(folder):
            yield
            return
        sound = stands(check_folder, folder)
        lockable = sound and (stands(check_file, lock) or not os.path.lexists(lock))
        with self.lease(info, Command.DESTROY, {"doing": str(Command.DESTROY)}) if lockable else nullcontext():
            readers = live_views(folder) if sound and stands(check_folder, folder / VIEWS_FOLDER) else []
            if readers:
                who = [f"pid {reader.get('pid', '?')}, reading @{reader.get('name', '?')}" for reader in readers]
                raise Busy(f"cannot destroy {info.name}: in use by {'; '.join(who)}", holders=who)
            if not whole and _in_use(info):
                raise _open_somewhere(f"cannot destroy {info.name}")
            yield

    def _note(self, txn: WriteTransaction, record: FilesystemRecord, command: Command, **fields: Field) -> None:
        """The entry of the store's log for what `txn` does to a filesystem."""
        catalog_log.note(
            txn, self._session.clock(), command.name.lower(), filesystem=str(record.name), guid=record.guid, **fields
        )

    # -- holders -------------------------------------------------------------------------------------------------------

    def ready(self, name: FilesystemName, command: Command) -> FilesystemInfo:
        """The filesystem, if its state and its holder allow `command` now; under the lease it must be asked again."""
        info = self._session.get(name, command)
        try:
            told = Lease.holder(info.folder)
        except StoreError:  # its lock file cannot be read; taking the lease will say why
            told = None
        check(command, name, info.state, None if told is None else describe_holder(told))
        return info

    def lease(self, info: FilesystemInfo, command: Command, told: Mapping[str, Value]) -> Lease:
        """The lease, or `Busy` in the words of `command`.

        A lock file that was removed says nothing: whoever has the tables open may still hold it.
        """
        if not os.path.lexists(info.folder / LOCK_FILE) and _in_use(info):
            raise _open_somewhere(f"filesystem {info.name}: its lock file is gone")
        try:
            return Lease.acquire(info.folder, info=told)
        except Busy as error:
            check(command, info.name, info.state, error.holders[0] if error.holders else "another process")
            raise Busy(f"filesystem {info.name} is {error}", holders=error.holders, hint=error.hint) from error


def _in_use(info: FilesystemInfo) -> bool:
    """Whether a process has the tables open, and not only to look at them for a moment."""
    for _ in range(TESTED_TRIES_MAX):
        if not in_use(info.folder / META):
            return False
        time.sleep(0.001)
    return True


def _open_somewhere(what: str) -> Busy:
    return Busy(f"{what}: a process has its tables open", hint="try again when it ends")


def describe_holder(told: Info) -> str:
    """One who holds a lease, in words: `pid 12, mounted at /mnt`."""
    who = f"pid {told['pid']}" if "pid" in told else "another process"
    where = told.get("mountpoint")
    return f"{who}, mounted at {where}" if where else who
