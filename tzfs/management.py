"""A store and its verbs: one function each, with the same answer whether or not the filesystem is mounted.

    with tzfs.open_store() as store:
        store.create("agent-1")
        with store.open("agent-1") as fs: ...
        store.snapshot("agent-1@before")

A verb on a mounted filesystem goes to its mount over the control socket; on another one the store does it itself.  The
command line and the mount's own control methods are faces of these functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tzfs import collecting, flattening
from tzfs import properties as props
from tzfs.access import Access, Name
from tzfs.catalog import Catalog, FilesystemInfo
from tzfs.catalog_rows import origin_text
from tzfs.checking import Checked, Collector, Hear, check_committed, from_json
from tzfs.collecting import Collected
from tzfs.dependants import check_empty, check_free
from tzfs.errors import (
    DAMAGE,
    Busy,
    CorruptionError,
    Exists,
    InvalidArgument,
    NotFound,
    OnFailure,
    StoreError,
    TzfsError,
    WrongState,
    about,
)
from tzfs.facts import SnapshotInfo, clones_of, facts_of, snapshot_info
from tzfs.filesystem import FileSystem
from tzfs.flattening import Flattened
from tzfs.inheritance import COMPUTED, Value, resolve
from tzfs.layout import translating
from tzfs.lifecycle import Command, State, allowed
from tzfs.names import STORE_SCOPE, FilesystemName, Scope, SnapshotName, parse_property_target, parse_snapshot
from tzfs.opening import Writer, committed_state, format_clone_of, format_filesystem
from tzfs.runtime import default_store
from tzfs.settings import check_changeable
from tzfs.space import check_quota
from tzfs.status import MountStatus, statuses
from tzfs.tasks import COLLECTING, Tasks
from tzfs.tree import SnapshotView, Tree


def open_store(path: str | os.PathLike[str] | None = None, *, create: bool = True) -> Store:
    """Opens a store: `path`, else `TZFS_STORE`, else the data directory's; `create` makes one where there is none.

    Raises `NotFound`, `ForeignStore` (the folder holds something else, or a newer format), `PermissionDenied`, and
    `InvalidArgument` for an empty path.
    """
    if path is not None and not os.fspath(path):
        raise InvalidArgument(
            "the path of the store is empty", hint="name a folder, or none: then it is the user's own"
        )
    where = Path(path) if path is not None else default_store()
    if create:
        with translating(f"store {where}"), suppress(FileExistsError):
            where.mkdir(mode=0o700, parents=True)
    return Store(Catalog.open(where, create=create))


class Store(Access):
    """An open store; a context manager.  Names may be given as text."""

    # -- filesystems -------------------------------------------------------------------------------------------------

    def create(self, name: Name, properties: Mapping[str, str] | None = None) -> FilesystemInfo:
        """A new, empty filesystem.  `Exists`, `InvalidArgument`, `NoSpace`."""
        return self.catalog.create(name, formatter=format_filesystem, properties=properties)

    def get(self, name: Name, command: Command = Command.GET) -> FilesystemInfo:
        """The filesystem, if its state allows `command`: GET in whatever state.  `NotFound`, `WrongState`."""
        return self.catalog.get(name, command)

    def filesystems(
        self, scope: Scope = STORE_SCOPE, *, on_damage: Callable[[CorruptionError], None] | None = None
    ) -> list[FilesystemInfo]:
        """All filesystems, or those of a namespace, by name; a damaged record is raised, or given to `on_damage`."""
        return self.catalog.list(scope, on_damage=on_damage)

    def clone(
        self, snapshot: str | SnapshotName, name: Name, properties: Mapping[str, str] | None = None
    ) -> FilesystemInfo:
        """A new filesystem that begins as the snapshot is, at a cost that does not depend on its size.

        What nobody has changed in it is read from the snapshot, which is kept as long as it is a clone.
        `LimitReached` where the snapshot is a clone of clones, and more than look-ups can go through.
        """
        parsed = parse_snapshot(snapshot) if isinstance(snapshot, str) else snapshot
        with self.reader(parsed, {"kind": "clone"}, Command.CLONE) as reader:
            partition = self.catalog.get(parsed.filesystem).partition
            formatter = partial(format_clone_of, reader, partition=partition)
            origin = origin_text(partition, reader.view.snapshot.guid)
            return self.catalog.create(name, formatter=formatter, properties=properties, origin=origin)

    def flatten(self, name: Name, *, progress: Callable[[Flattened], None] | None = None) -> Flattened:
        """Copies what a clone inherits into it, so that its origin may go; it may be used meanwhile.

        Broken off, it goes on in the background of whoever writes the filesystem next.
        """
        info = self.catalog.get(name, Command.FLATTEN)
        if info.origin is None:
            raise WrongState(f"cannot flatten {name}: it is not a clone")
        mount = self.mounted(info)
        if mount is not None:
            with mount:
                done = flattening.ask(mount, progress)
        else:
            with self.writer(info.name, {"kind": "flatten"}, Command.FLATTEN) as writer:
                done = flattening.flatten_now(writer.engine, progress)
        self.catalog.release_origin(info)
        return done

    def rename(self, old: Name, new: Name) -> FilesystemInfo:
        """Gives a filesystem another name, mounted or not."""
        return self.catalog.rename(old, new)

    def archive(self, name: Name) -> FilesystemInfo:
        """Makes a filesystem read-only for good, until `activate`.  `Busy` while it is mounted."""
        return self.catalog.archive(name)

    def activate(self, name: Name) -> FilesystemInfo:
        """Makes an archived filesystem writable again."""
        return self.catalog.activate(name)

    def destroy(self, name: Name, *, recursive: bool = False, dry_run: bool = False) -> FilesystemInfo:
        """Removes a filesystem; `NotEmpty` where it has snapshots, unless they are to go too (`recursive`).

        `Busy` while it, or a snapshot of it, is mounted, open, held or cloned.  Snapshots alone, or whatever was cloned
        from them as well: `tzfs.destroy`.
        """

        def agreed(info: FilesystemInfo) -> None:
            check_empty(info, recursive=recursive)
            check_free(info)

        self.catalog.destroy(name, dry_run=True)
        return self.catalog.destroy(name, dry_run=dry_run, agreed=agreed)

    def open(self, name: Name) -> FileSystem:
        """Opens a filesystem for reading and writing.

        `Busy` names the mount or process that has it; `ReadOnly` where its property `readonly` is on.
        """
        writer = self.writer(name, {"kind": "program"}, Command.OPEN)
        info = self.catalog.get(name)
        return FileSystem(
            writer.engine,
            writer.close,
            name=str(name),
            run_tasks=self._tasks(name, writer).run_due,
            flattened=lambda: self.catalog.release_origin(info),
        )

    def _tasks(self, name: Name, writer: Writer) -> Tasks:
        """The background tasks of a filesystem that this process has open for writing."""
        info = self.catalog.get(name)
        return Tasks(writer.engine, lambda prop: info.property(prop).parsable, info.state)

    @contextmanager
    def open_readonly(self, name: Name) -> Iterator[Tree]:
        """The tree of a filesystem that nobody writes, archived or not.  `Busy` where somebody does."""
        with self.head_reader(name, {"kind": "program"}) as reader:
            tree = Tree(reader.tree, f"filesystem {name}")
            try:
                yield tree
            finally:
                tree.end()

    @contextmanager
    def open_snapshot(self, name: str | SnapshotName) -> Iterator[SnapshotView]:
        """A snapshot's tree, read-only, also while its filesystem is mounted or open elsewhere."""
        with self.reader(name) as reader:
            view = SnapshotView(reader.view)
            try:
                yield view
            finally:
                view.end()

    # -- verbs that a mount answers, if there is one ---------------------------------------------------------------

    def snapshot(self, name: str | SnapshotName, properties: Mapping[str, str] | None = None) -> SnapshotInfo:
        """A snapshot of everything answered so far, durable when it returns.  `Exists`, `NoSpace`, `WrongState`."""
        parsed = parse_snapshot(name) if isinstance(name, str) else name
        checked = props.parse_labels(properties or {})
        info = self.catalog.get(parsed.filesystem, Command.SNAPSHOT)
        mount = self.mounted(info)
        try:
            if mount is not None:
                with mount:
                    mount.call("snapshot.create", name=parsed.snapshot, properties=dict(checked))
            else:
                with self.writer(info.name, {"kind": "snapshot"}, Command.SNAPSHOT) as writer:
                    writer.engine.snapshot(parsed.snapshot, checked)
        except Exists:
            raise Exists(f"snapshot {parsed} exists") from None
        with about(info.name):
            return snapshot_info(info, parsed.snapshot, committed_state(info.folder), {}, damaged_too=True)

    def snapshots(
        self, name: Name | FilesystemInfo, *, also: Sequence[str] = (), settle: bool = True
    ) -> list[SnapshotInfo]:
        """The snapshots of a filesystem, oldest first.

        `also` are further properties, `written@SNAPSHOT`.  A mount commits first, so that all figures are those of now;
        without `settle` they are as last committed.
        """
        info = name if isinstance(name, FilesystemInfo) else self.catalog.get(name)
        if info.state in (State.CREATING, State.DELETING):
            return []
        if settle:
            self.settle(info)
        clones = clones_of(self.catalog, info)
        with about(info.name):
            state = committed_state(info.folder)
            return [snapshot_info(info, key, state, clones, also) for key in state.snapshots]

    def sync(self, name: Name) -> None:
        """Everything done so far in the filesystem is durable when it returns."""
        info = self.catalog.get(name, Command.SYNC)
        mount = self.mounted(info)
        if mount is not None:
            with mount:
                mount.call("sync")

    def collect(self, name: Name, *, progress: Callable[[Collected], None] | None = None) -> Collected:
        """Does all background work now: removed files, orphans of a crash, space to be given back, sparse segments,
        tables with free pages.

        `progress` hears from time to time what has been collected so far.
        """
        info = self.catalog.get(name, Command.GC)
        mount = self.mounted(info)
        if mount is not None:
            with mount:
                told = None if progress is None else lambda value: progress(collecting.from_json(value))
                answer = mount.ask("gc", {}, progress=told, timeout_s=None)  # for as long as there is something
            return collecting.from_json(answer)
        with self.writer(info.name, {"kind": "gc"}, Command.GC) as writer:
            tasks = self._tasks(info.name, writer)
            collection = collecting.Collection(tasks)
            for task in COLLECTING:
                run = tasks.begin(task, demanded=True)
                collection.begun(run)
                tasks.finish(run, None if progress is None else lambda: progress(collection.so_far()))
            return collection.so_far()

    def collect_unused(self, on_failure: OnFailure) -> Iterator[tuple[FilesystemName, Collected]]:
        """`collect` of every filesystem that nobody has open, one after the other; their other tasks that are due, too.

        Yields what came of each; one that fails is told to `on_failure`, and keeps none from its turn.
        """
        for info in self.catalog.list(on_damage=on_failure):
            if not allowed(Command.GC, info.state):
                continue
            with self.passing_over(info, on_failure), translating("collect"), suppress(Busy):  # who has it, does it
                if self.catalog.holder(info) is not None:
                    continue
                name = self.catalog.refresh(info).name
                yield name, self.collect(name)
                name = self.catalog.refresh(info).name
                with self.writer(name, {"kind": "gc"}, Command.GC) as writer:
                    self._tasks(name, writer).run_due()

    def check(self, name: Name, *, payload: bool = False, progress: Hear | None = None) -> Checked:
        """Tests everything that must hold in a filesystem; nothing is repaired.  `progress` hears how far it is.

        With `payload` all contents are read too, and compared with their sums (a scrub).  While it is mounted, its
        mount checks it as it stood when the check began.
        """
        info = self.catalog.get(name, Command.CHECK)
        mount = self.mounted(info)
        if mount is None:
            with about(info.name):
                _, lease = self.catalog.acquire(name, info={"kind": "check", "name": str(name)}, command=Command.CHECK)
                return check_committed(
                    info.folder, bytes.fromhex(info.guid), lease=lease, read_payload=payload, hear=progress
                )
        collector = Collector(progress)
        with mount:
            mount.ask("check", {"payload": payload}, progress=lambda value: collector.take(from_json(value)))
        return collector.answer()

    # -- properties ----------------------------------------------------------------------------------------------

    def properties(
        self, name: Name | FilesystemInfo, *, also: Sequence[str] = (), settle: bool = True
    ) -> dict[str, Value]:
        """All properties of a filesystem, and those of `also` (`written@SNAPSHOT`).  `settle`: as for `snapshots`."""
        info = name if isinstance(name, FilesystemInfo) else self.catalog.get(name)
        if settle and info.state not in (State.CREATING, State.DELETING):
            self.settle(info)
        with about(info.name):
            facts = facts_of(self.catalog, self.ledger(), info, also)
        found = info.properties(facts)
        return found | {name: info.property(name, facts) for name in also}

    def used(self) -> int:
        """What all filesystems are charged together; one that cannot be read counts for nothing, as in the quota."""
        total = 0
        for info in self.filesystems(on_damage=lambda error: None):
            if info.state not in (State.CREATING, State.DELETING):
                self.settle(info)
                with suppress(*DAMAGE):
                    total += committed_state(info.folder).accounts.charged.used
        return total

    def scope_properties(self, scope: Scope) -> dict[str, Value]:
        """What is set on a namespace or on the store, or has its default there; and what the whole store uses."""
        found = {k: v for k, v in resolve(self.catalog.scope_layers(scope), {}).items() if v.source != "-"}
        if scope != STORE_SCOPE:
            return found
        used, disk = self.used(), os.statvfs(self.path)
        left, quota = disk.f_bavail * disk.f_frsize, int(found["quota"].parsable)
        facts = {"used": used, "available": min(left, max(0, quota - used)) if quota else left}
        return {name: Value(name, str(value), COMPUTED) for name, value in facts.items()} | found

    def set_property(self, target: str | FilesystemName | Scope, name: str, text: str) -> None:
        """Sets one property of one target: see `set_properties`."""
        self.set_properties([target], {name: text})

    def set_properties(
        self, targets: Sequence[str | FilesystemName | Scope], changes: Mapping[str, str | None]
    ) -> None:
        """Sets properties, or takes away those given as None, and tells the mounts.  A scope is `/` or `NAMESPACE/`.

        All values and targets are looked at before the first is changed, and all are changed before the first mount is
        told.  What keeps one from being told keeps no other; it is raised in the end, of all in one error.
        """
        wheres = list(dict.fromkeys(map(props_target, targets)))
        known = self.check_changes(wheres, changes)
        reached: list[FilesystemName | Scope] = []
        failures: list[TzfsError] = []
        try:
            for where in wheres:
                reached.append(where)
                for name, text in changes.items():
                    self.change_property(where, name, text, settle=False)
                if isinstance(where, FilesystemName):
                    with suppress(NotFound):  # whose name it was when it was changed; it may have lost it again
                        known[where] = self.catalog.get(where)
        except TzfsError as error:
            failures.append(error)  # the mounts hear of what is changed already
        untold = self._tell_mounts(reached, known)
        if untold and not failures:
            untold[0].hint = (
                "it is changed all the same; the same command once more tells a mount that has not heard of it; "
                "tzfs status shows which do not answer"
            )
        failures += untold
        if failures:
            failures[0].args = ("; ".join(dict.fromkeys(map(str, failures))),)
            raise failures[0]

    def check_changes(
        self, targets: Sequence[str | FilesystemName | Scope], changes: Mapping[str, str | None]
    ) -> dict[FilesystemName, FilesystemInfo]:
        """Raises what `set_properties` would refuse the changes for; the filesystems among the targets."""
        command = Command.INHERIT if None in changes.values() else Command.SET
        for name, text in changes.items():
            if text is None:
                props.check_settable(name)
            else:
                props.parse(name, text)
        known: dict[FilesystemName, FilesystemInfo] = {}
        for where in map(props_target, targets):
            if isinstance(where, FilesystemName):
                known[where] = self.catalog.get(where, command)
            for name, text in changes.items():
                self._check_change(where, name, text)
        return known

    def change_property(
        self, target: str | FilesystemName | Scope, name: str, text: str | None, *, settle: bool = True
    ) -> Value:
        """Sets a property, or with None takes it away, and tells nobody.  `settle`: as for `snapshots`.

        `readonly` is what a filesystem is opened by: where it may change for one that is in use, `Busy` names by whom.
        """
        self._check_change(props_target(target), name, text, settle=settle)
        if text is None:
            return self.catalog.inherit_property(target, name)
        return self.catalog.set_property(target, name, text)

    def _check_change(self, where: FilesystemName | Scope, name: str, text: str | None, *, settle: bool = True) -> None:
        """Whether what is there now allows the change."""
        if name == "readonly":
            check_changeable(self.catalog, where, None if text is None else props.parse(name, text))
        if name in ("quota", "refquota") and text is not None:
            self._check_quota(where, name, props.parse(name, text), settle=settle)

    def _check_quota(self, where: FilesystemName | Scope, name: str, exact: str, *, settle: bool = True) -> None:
        if isinstance(where, Scope):
            if name == "quota" and where != STORE_SCOPE:
                raise InvalidArgument(f"quota of {where}: a namespace has none", hint="set it on filesystems, or on /")
            if name == "quota" and exact != "0":
                check_quota("the store", name, exact, self.used())
            return  # a default for those that have none of their own, whatever they use
        info = self.catalog.get(where, Command.SET)
        if settle:
            self.settle(info)
        with about(info.name):
            sums = committed_state(info.folder).accounts.charged
        check_quota(where, name, exact, sums.used if name == "quota" else sums.referenced)

    def _tell_mounts(
        self, wheres: Sequence[FilesystemName | Scope], known: Mapping[FilesystemName, FilesystemInfo]
    ) -> list[TzfsError]:
        """Each of them once, whatever keeps another from being told; what did."""
        failures: list[TzfsError] = []
        concerned: dict[str, FilesystemInfo] = {}
        for where in wheres:
            infos = self.catalog.list(where, on_damage=failures.append) if isinstance(where, Scope) else [known[where]]
            concerned |= {info.guid: info for info in infos}
        for info in concerned.values():
            # A program has read its properties when it opened; a mount that has just gone needs none.
            with self.passing_over(info, failures.append):
                mount = None
                with suppress(Busy, NotFound):
                    mount = self.mounted(info)
                if mount is None:
                    continue
                try:
                    with mount:
                        mount.call("property.changed")
                except StoreError:
                    if self.catalog.holder(info) is not None:  # else it went meanwhile
                        raise
        return failures

    # -- what there is -------------------------------------------------------------------------------------------

    def status(self, *, ask: bool = True) -> list[MountStatus]:
        """Every mount and every other process that has a filesystem of the store open.

        With `ask` each mount is asked whether it has failed; without, nobody is waited for.
        """
        return statuses(self.catalog, ask=ask)


def props_target(target: str | FilesystemName | Scope) -> FilesystemName | Scope:
    """A target as `set` takes it, parsed."""
    return parse_property_target(target) if isinstance(target, str) else target


__all__ = ["Checked", "Collected", "MountStatus", "SnapshotInfo", "Store", "open_store"]
