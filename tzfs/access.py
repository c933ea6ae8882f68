"""How the filesystems of a store are reached: here by their lease where nobody has them, else through who has.

A filesystem has one writer.  `Access.writer` is that, in this process; `Access.mounted` is the connection to the mount
that is.  Readers of a snapshot need neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from tzfs.catalog import Catalog, FilesystemInfo, describe_holder
from tzfs.control import TIMEOUT_S, ControlClient, connect
from tzfs.dependants import with_clones
from tzfs.errors import Busy, CorruptionError, NotFound, OnFailure, ReadOnly, TzfsError, about, text_about
from tzfs.format.records import Bookmark, Snapshot
from tzfs.layout import Layout
from tzfs.ledger import Ledger
from tzfs.lifecycle import Command, State
from tzfs.names import FilesystemName, SnapshotName, parse_snapshot
from tzfs.opening import HeadReader, Reader, Writer, committed_points
from tzfs.settings import settings_of

Name = str | FilesystemName

SETTLE_S: Final = 2.0  # how long figures wait for a mount to commit: a commit takes 20 ms


class Access:
    """A store that is open; a context manager.  Names may be given as text."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the store; doing it twice is harmless.  What has been opened from it stays open."""
        self.catalog.close()

    @property
    def path(self) -> Path:
        """The store's folder, without symbolic links."""
        return self.catalog.info.path

    def writer(self, name: Name, told: Mapping[str, str], command: Command) -> Writer:
        """The lease, the tables and the engine of a filesystem; `told` says to others who has it."""
        with about(name):
            info, lease = self.catalog.acquire(name, info={**told, "name": str(name)}, command=command)
        if command is Command.OPEN and info.property("readonly").exact == "on":
            lease.release()
            raise ReadOnly(f"filesystem {name} is read-only", hint=f"tzfs set readonly=off {name}")
        settings, receiving = settings_of(info), command is Command.RECEIVE
        with about(info.name):
            writer = Writer(info.folder, bytes.fromhex(info.guid), lease=lease, settings=settings, receiving=receiving)
        ledger, partition = self.ledger(), info.partition
        try:
            writer.share(
                lambda used, need, quota: ledger.claim(partition, used=used, need=need, quota=quota),
                lambda: ledger.release(partition),
            )
            destroyer = writer.engine.destroyer
            destroyer.readers = with_clones(destroyer.readers, writer.engine, self.catalog, info)
            if info.origin is not None and not writer.engine.cloned:  # flattened, and then something came between
                self.catalog.release_origin(info)
        except BaseException:
            writer.close()
            raise
        return writer

    def ledger(self) -> Ledger:
        """Who has how much of the store's quota."""
        return Ledger(Layout(self.path))

    def head_reader(self, name: Name, told: Mapping[str, str]) -> HeadReader:
        """A filesystem that nobody writes, archived or not, for reading; nobody can write it meanwhile."""
        with about(name):
            info, lease = self.catalog.acquire(name, info={**told, "name": str(name)}, command=Command.MOUNT_READONLY)
            return HeadReader(info.folder, bytes.fromhex(info.guid), lease=lease)

    def reader(
        self,
        name: str | SnapshotName,
        told: Mapping[str, str] | None = None,
        command: Command = Command.OPEN_SNAPSHOT,
    ) -> Reader:
        """A snapshot, held against its destruction; `reader.view` has the calls by inode number."""
        parsed = parse_snapshot(name) if isinstance(name, str) else name
        info = self.catalog.get(parsed.filesystem, command)
        with about(info.name):
            reader = Reader(info.folder, bytes.fromhex(info.guid), parsed.snapshot, told, of=str(info.name))
        try:
            self.catalog.confirm(info, command)
        except BaseException:
            reader.close()
            raise
        return reader

    def points(self, info: FilesystemInfo) -> tuple[dict[str, Snapshot], dict[str, Bookmark]]:
        """The snapshots and the bookmarks of a filesystem, by name, as last committed."""
        with about(info.name):
            return committed_points(info.folder)

    def is_gone(self, info: FilesystemInfo) -> bool:
        """Whether it has been destroyed since, or somebody is making or destroying it."""
        try:
            return self.catalog.refresh(info).state in (State.CREATING, State.DELETING)
        except NotFound:
            return True
        except CorruptionError:
            return False  # as far as anybody can say

    @contextmanager
    def passing_over(self, info: FilesystemInfo, on_failure: OnFailure | None) -> Iterator[None]:
        """For one filesystem of several: what fails within is told to `on_failure`, and nothing is where it has just
        gone; without, it is raised."""
        try:
            with about(info.name):
                yield
        except TzfsError as error:
            if on_failure is None:
                raise
            if not self.is_gone(info):
                error.args = (text_about(info.name, error),)
                on_failure(self._renamed(info) or error)

    def _renamed(self, info: FilesystemInfo) -> NotFound | None:
        with suppress(TzfsError):
            now = self.catalog.refresh(info)
            if now.name != info.name:
                return NotFound(f"{info.name}: it has just been renamed to {now.name}", hint="do the same for that one")
        return None

    def mounted(self, info: FilesystemInfo, *, timeout_s: float = TIMEOUT_S) -> ControlClient | None:
        """A connection to the filesystem's mount; None where nobody holds it.  `Busy` where a program has it open."""
        with about(info.name):
            holder = self.catalog.holder(info)
        if holder is None:
            return None
        where = holder.get("socket")
        if not isinstance(where, str):
            text = describe_holder(holder)
            raise Busy(
                f"filesystem {info.name} is in use by {text}", holders=(text,), hint="try again when it has ended"
            )
        return connect(Path(where), timeout_s=timeout_s)

    def settle(self, info: FilesystemInfo) -> None:
        """Has the mount, if there is one, commit what it has in memory.  One that cannot changes nothing."""
        with suppress(TzfsError):
            mount = self.mounted(info, timeout_s=SETTLE_S)
            if mount is not None:
                with mount:
                    mount.ask("settle", {}, timeout_s=SETTLE_S)
