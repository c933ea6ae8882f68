"""Destroying snapshots, and filesystems with all they have, by name: which are meant, who is in the way, what it frees.

    FS@A            one snapshot            FS@A,B%C        several: A, and B to C
    FS@A%B          from A to B             FS@%            all of them
    FS#A            a bookmark
    NAMESPACE/@A    with `recursive`: of each filesystem there, one after the other; /@A: of each in the store

Of one filesystem all go in one commit, or none.  Names are gone when this returns.  A mounted filesystem frees what
only they saw in the background (`tzfs get freeing`); of one that nobody has it is done here, and where that is
interrupted whoever opens it next goes on.

A snapshot that a clone has come from stays as long as the clone, unless `clones` says that it goes as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tzfs.catalog import FilesystemInfo, describe_holder
from tzfs.dependants import UNREADABLE, check_empty, check_free, mountable, naming, snapshots_of
from tzfs.engine.committed import read_counters
from tzfs.engine.destroy import check_unused, foreseen
from tzfs.engine.snapshots import read_snapshots
from tzfs.errors import (
    Busy,
    CorruptionError,
    InvalidArgument,
    MountFailed,
    NotFound,
    StoreError,
    TzfsError,
    about,
    no_snapshot,
)
from tzfs.format.records import Snapshot
from tzfs.lifecycle import Command, State, check
from tzfs.management import Store
from tzfs.marking import drop_bookmark, meant
from tzfs.names import (
    BookmarkName,
    FilesystemName,
    Scope,
    SnapshotName,
    SnapshotRange,
    parse_bookmark,
    parse_filesystem,
    parse_snapshots,
)
from tzfs.opening import Committed, committed_points, committed_state
from tzfs.store.lease import Info, live_views


@dataclass(frozen=True, slots=True)
class Destruction:
    """What has been destroyed, or would be, in the order in which it goes, and the bytes that frees; the archived
    filesystems that have been passed over, whose snapshots were meant too.
    """

    names: tuple[SnapshotName | FilesystemName | BookmarkName, ...]
    bytes: int
    archived: tuple[FilesystemName, ...] = ()


def destroy(
    store: Store,
    text: str,
    *,
    dry_run: bool = False,
    recursive: bool = False,
    clones: bool = False,
    damaged: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Destruction:
    """Destroys snapshots, a bookmark, or a filesystem; `dry_run` only looks, and raises whatever it would raise.

    `recursive`: a filesystem with its snapshots; snapshots in all filesystems of a namespace, those without them passed
    over.  `clones`: and whatever has come from them.  `damaged`: also a filesystem that cannot be read, with whatever
    snapshots and holds it has; and in spite of holds one that cannot be opened to release them; else nothing more than
    without it, whatever else is damaged.  `progress` hears how many bytes are still to be freed, where that is done
    here.  `NotFound`, `NotEmpty`, `Busy` naming who is in the way, `WrongState`; `dependants.UNREADABLE` where
    `damaged` would be needed.
    """
    if damaged and ("@" in text or "#" in text):
        raise InvalidArgument(f"{text} is not a filesystem", hint="a damaged one goes whole: destroy --damaged")
    if "#" in text:
        drop_bookmark(store, text, dry_run=dry_run)
        return Destruction((parse_bookmark(text),), 0)
    plan = _Plan(store, recursive=recursive, clones=clones, damaged=damaged)
    if "@" in text:
        plan.snapshots(*parse_snapshots(text))
    else:
        plan.filesystem(store.get(parse_filesystem(text), Command.DESTROY))
    return plan.do(dry_run=dry_run, progress=progress)


@dataclass(frozen=True, slots=True)
class _Step:
    """Snapshots of a filesystem, oldest first.

    `whole`: and the filesystem, whose snapshots these all are.  `unread`: the filesystem cannot be read: its snapshots
    and their holds are not known, `snapshots` is empty, and its size is that of its files.
    """

    info: FilesystemInfo
    snapshots: tuple[str, ...]
    whole: bool = False
    unread: bool = False

    @property
    def names(self) -> list[SnapshotName | FilesystemName]:
        found: list[SnapshotName | FilesystemName] = [SnapshotName(self.info.name, name) for name in self.snapshots]
        return [*found, self.info.name] if self.whole else found


class _Plan:
    """What goes, in order: clones before the snapshots that they come from.

    What a plan rests on may have changed by the time it is done.  Of a whole filesystem it is asked again under the
    lease (`_agree`); of snapshots their engine asks.
    """

    def __init__(self, store: Store, *, recursive: bool, clones: bool, damaged: bool) -> None:
        self._store, self._recursive, self._clones, self._damaged = store, recursive or clones, clones, damaged
        self._steps: list[_Step] = []
        self._archived: list[FilesystemInfo] = []  # whose snapshots stay
        self._unread: set[str] = set()  # filesystems
        self._unheld: set[str] = set()  # filesystems of which holds are passed over

    # -- which -------------------------------------------------------------------------------------------------------

    def filesystem(self, info: FilesystemInfo) -> None:
        """A filesystem with all its snapshots."""
        if any(step.whole and step.info.guid == info.guid for step in self._steps):
            return
        holder = None
        with suppress(StoreError):  # its lock cannot be looked at: taking the lease says why
            holder = self._store.catalog.holder(info)
        check(Command.DESTROY, info.name, info.state, None if holder is None else describe_holder(holder))
        try:
            there = check_empty(info, recursive=self._recursive)
        except UNREADABLE as error:
            self._store.get(info.name)  # unless somebody has just destroyed it
            if not self._damaged:
                give_up = f"to give up all that is in it: tzfs destroy --damaged {info.name}"
                error.hint = "; ".join(filter(None, (error.hint, mountable(info), give_up)))
                raise
            self._unread.add(info.guid)
            self._clones_of(info, None)
            self._steps.append(_Step(info, (), whole=True, unread=True))
            return
        self._clones_of(info, there)
        self._steps.append(_Step(info, tuple(there), whole=True))

    def snapshots(self, where: FilesystemName | Scope, ranges: Sequence[SnapshotRange]) -> None:
        """The snapshots of one filesystem, or of all that `where` means."""
        for info in self._meant(where):
            try:
                names = _select(info.name, snapshots_of(info), ranges)
            except NotFound:
                if not self._recursive:
                    raise
                continue
            except TzfsError:
                if not (self._recursive and self._store.is_gone(info)):
                    raise
                continue
            if info.state is State.ARCHIVED:
                self._archived.append(info)
                continue
            self._clones_of(info, names)
            self._steps.append(_Step(info, tuple(names)))
        if not self._steps:
            for info in self._archived:
                check(Command.DESTROY_SNAPSHOT, info.name, info.state)
            raise NotFound(f"{where} has no such snapshot", hint="tzfs list -t snapshot shows what there is")

    def _meant(self, where: FilesystemName | Scope) -> list[FilesystemInfo]:
        if self._recursive:
            return meant(self._store, where)
        if isinstance(where, Scope):
            raise InvalidArgument(f"{where} is not a filesystem", hint="-r means all filesystems in a namespace")
        return [self._store.get(where, Command.DESTROY_SNAPSHOT)]

    def _clones_of(self, info: FilesystemInfo, names: Iterable[str] | None) -> None:
        """The clones of these snapshots go first, or nothing goes; None: of all, whatever they are called."""
        clones = [(str(info.name), name) for _, name in self._store.catalog.clones(info)]
        if names is not None:
            there = snapshots_of(info)
            origins = {there[name].guid.hex(): f"{info.name}@{name}" for name in names if name in there}
            clones = [(origins[guid], name) for guid, name in self._store.catalog.clones(info) if guid in origins]
        if not clones:
            return
        found = [self._store.get(name) for _, name in clones]
        if not self._clones:
            who = [str(other.name) for other in found]
            what = ", ".join(sorted({origin for origin, _ in clones}))
            raise Busy(
                f"cannot destroy {what}: there are clones of it: {', '.join(who)}",
                holders=who,
                hint="-R destroys them too",
            )
        for other in found:
            self.filesystem(other)

    # -- and how -----------------------------------------------------------------------------------------------------

    def do(self, *, dry_run: bool, progress: Callable[[int], None] | None) -> Destruction:
        """All of it; of several filesystems each is looked at before the first is changed."""
        sizes: list[int] = []
        if dry_run or len(self._steps) > 1:
            sizes = self._each(lambda step: self._one(step, dry_run=True))
        if not dry_run:
            sizes = self._each(lambda step: self._one(step, dry_run=False, progress=progress))
        names = tuple(name for step in self._steps for name in step.names)
        return Destruction(names, sum(sizes), tuple(info.name for info in self._archived))

    def _each(self, do: Callable[[_Step], int]) -> list[int]:
        """What comes of each; with several filesystems meant, one of which snapshots were to go is none any more where
        it has just gone itself."""
        sizes, left = [], []
        for step in self._steps:
            try:
                sizes.append(do(step))
            except TzfsError:
                if step.whole or not self._recursive or not self._store.is_gone(step.info):
                    raise
                continue
            left.append(step)
        self._steps = left
        return sizes

    def _one(self, step: _Step, *, dry_run: bool, progress: Callable[[int], None] | None = None) -> int:
        """One filesystem, or snapshots of one; the bytes."""
        store, info = self._store, step.info
        if step.whole:
            try:
                return self._whole(step, dry_run=dry_run)
            except TzfsError:
                store.catalog.refresh(info)  # unless somebody has just destroyed it
                raise
        mount = store.mounted(info)
        if mount is not None:
            with mount, naming(info, step.snapshots):
                answer = mount.ask("snapshot.destroy", {"names": [*step.snapshots], "dry_run": dry_run}, timeout_s=None)
            if not isinstance(answer, dict):
                raise MountFailed("the mount did not say what it destroyed")
            return int(str(answer["bytes"]))
        if dry_run:
            return self._foresee(info, step.snapshots)
        with store.writer(info.name, {"kind": "destroy"}, Command.DESTROY_SNAPSHOT) as writer:
            engine = writer.engine
            with naming(info, step.snapshots):
                size = engine.destroy(step.snapshots).bytes
            engine.collect(None if progress is None else lambda: progress(engine.freeing()))
        return size

    def _whole(self, step: _Step, *, dry_run: bool) -> int:
        """A filesystem with all that it has; the bytes."""
        info, size = step.info, 0
        if step.unread:
            size = _on_disk(info.folder)
        elif info.state in (State.ACTIVE, State.ARCHIVED):
            self._check_free(info)
            size = _charged(info.folder)
        self._store.catalog.destroy(
            info.name,
            dry_run=dry_run,
            clones_first=True,
            damaged=self._damaged,
            agreed=lambda now: self._agree(step, now),
        )
        return size

    def _check_free(self, info: FilesystemInfo) -> None:
        """`Busy` where one of the filesystem's snapshots is held, unless damage keeps that from being ended."""
        try:
            check_free(info)
        except Busy:
            if not self._damaged or self._can_be_released(info):
                raise
            self._unheld.add(info.guid)

    def _agree(self, step: _Step, now: FilesystemInfo) -> None:
        """Refuses what has become of a filesystem since it was planned to go, now that nobody else can have it."""
        if now.guid != step.info.guid:
            raise Busy(f"cannot destroy {now.name}: another filesystem has just got this name", hint="try again")
        if step.unread:
            _check_damaged(now)
            return
        check_empty(now, recursive=self._recursive)
        if now.guid not in self._unheld:
            check_free(now)

    def _can_be_released(self, info: FilesystemInfo) -> bool:
        """Whether nothing that is damaged keeps its holds, unless that is an origin that does not go."""
        try:
            committed_points(info.folder)
            with self._store.writer(info.name, {"kind": "destroy"}, Command.RELEASE):
                return True
        except UNREADABLE:
            return self._origin_stays(info)

    def _origin_stays(self, info: FilesystemInfo) -> bool:
        """Whether an origin of it cannot be read, and is not given up here as well."""
        found = self._store.catalog.origin(info)
        if found is None:
            return False
        origin, _ = found
        try:
            snapshots_of(origin)
        except UNREADABLE:
            return origin.guid not in self._unread
        return self._origin_stays(origin)

    def _foresee(self, info: FilesystemInfo, names: Iterable[str]) -> int:
        with ExitStack() as stack:
            stack.enter_context(about(info.name))
            told: Info = {"kind": "destroy"}
            found, lease = self._store.catalog.acquire(info.name, info=told, command=Command.DESTROY_SNAPSHOT)
            stack.enter_context(lease)
            committed = stack.enter_context(Committed(found.folder, bytes.fromhex(found.guid)))
            txn = committed.meta.begin_read()
            try:
                there = read_snapshots(txn)
                with naming(found, names):
                    check_unused({name: there[name] for name in names if name in there}, live_views(found.folder))
                return foreseen(txn, names, read_counters(txn).epoch).bytes
            finally:
                txn.close()


def _check_damaged(info: FilesystemInfo) -> None:
    """`Busy` where it can be read after all; whatever else keeps it from being read is raised."""
    try:
        snapshots_of(info)
    except UNREADABLE:
        return
    raise Busy(f"cannot destroy {info.name}: it has become readable just now", hint="try again without --damaged")


def _charged(folder: Path) -> int:
    """What a filesystem is charged, in bytes; where damage keeps that from being summed, what its files take."""
    try:
        charged = committed_state(folder).accounts.charged
    except CorruptionError:
        return _on_disk(folder)
    return charged.used + charged.freeing


def _on_disk(folder: Path) -> int:
    """What the files in a folder take, in bytes."""
    found = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # somebody else may be faster
                found += os.lstat(os.path.join(at, name)).st_blocks * 512
    return found


def _select(name: FilesystemName, there: Mapping[str, Snapshot], ranges: Iterable[SnapshotRange]) -> list[str]:
    """The snapshots that the ranges mean, oldest first; `NotFound` where an end of one is not there."""
    ordered = [*there]
    chosen: set[str] = set()
    for part in ranges:
        for end in (part.first, part.last):
            if end is not None and end not in there:
                raise no_snapshot(name, end)
        first = 0 if part.first is None else ordered.index(part.first)
        last = len(ordered) - 1 if part.last is None else ordered.index(part.last)
        if part.first is not None and part.last is not None and first > last:
            raise InvalidArgument(f"{name}@{part.first}%{part.last}: the first is newer than the last")
        chosen.update(ordered[first : last + 1])
    if not chosen:
        raise NotFound(f"{name} has no snapshots")
    return [each for each in ordered if each in chosen]
