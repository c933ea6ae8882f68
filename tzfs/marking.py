"""What is said about snapshots after they were taken: holds, labels, names, bookmarks; of one, or of many filesystems.

One function a verb, with the same answer whether or not the filesystem is mounted, as the verbs of `Store`.  Names are
texts or parsed; several of one filesystem are changed in one commit, all or none.  Of several filesystems all are
looked at before the first is changed, and what fails after that all the same leaves the earlier ones changed.

`across` says what `-r` means: a filesystem and those in the namespace of its name, since namespaces are not filesystems
here; or a namespace, or the store.  There is no moment that several filesystems share: each is its own writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tzfs import properties as props
from tzfs.catalog import FilesystemInfo
from tzfs.engine.engine import Engine
from tzfs.engine.marks import check_tag
from tzfs.errors import CorruptionError, Exists, InvalidArgument, NotFound, OnFailure, TzfsError, no_snapshot
from tzfs.format.records import Bookmark, Snapshot
from tzfs.inheritance import Value, resolve
from tzfs.jsonrpc import Json, Params
from tzfs.lifecycle import Command, State
from tzfs.management import SnapshotInfo, Store
from tzfs.names import (
    BookmarkName,
    FilesystemName,
    Scope,
    SnapshotName,
    check_snapshot_component,
    parse_bookmark,
    parse_filesystem,
    parse_scope,
    parse_snapshot,
    show,
)

Name = str | SnapshotName
Names = Iterable[Name] | Mapping[SnapshotName, FilesystemInfo]  # with what they were of when they were found


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold of one snapshot, and when it was set, in nanoseconds."""

    snapshot: SnapshotName
    tag: str
    created_ns: int


@dataclass(frozen=True, slots=True)
class BookmarkInfo:
    """A bookmark: its whole name, its record, and its properties."""

    name: BookmarkName
    record: Bookmark
    properties: Mapping[str, Value]


# -- which -----------------------------------------------------------------------------------------------------------


def across(store: Store, text: str, on_failure: OnFailure | None = None) -> tuple[list[FilesystemInfo], str]:
    """The filesystems that `-r` means by `FILESYSTEM@SNAPSHOT`, `NAMESPACE/@SNAPSHOT` or `/@SNAPSHOT`; the snapshot.

    Those being created or destroyed are left out.  `NotFound` where there is none.  What is damaged in the catalog is
    told to `on_failure`, or raised.
    """
    where, at, snapshot = text.partition("@")
    if not at or not where:
        raise InvalidArgument(f"{show(text)} is not FILESYSTEM@SNAPSHOT, NAMESPACE/@SNAPSHOT or /@SNAPSHOT")
    snapshot = check_snapshot_component(snapshot)
    return meant(store, parse_scope(where) if where.endswith("/") else parse_filesystem(where), on_failure), snapshot


def meant(store: Store, where: FilesystemName | Scope, on_failure: OnFailure | None = None) -> list[FilesystemInfo]:
    """The filesystems that `-r` means by the one, the namespace of that name, or both; see `across`."""
    found: list[FilesystemInfo] = []
    scope = where
    if isinstance(where, FilesystemName):
        try:
            found.append(store.get(where))
        except NotFound:
            pass
        except CorruptionError as error:
            if on_failure is None:
                raise
            on_failure(error)
        scope = where if where.namespace else Scope(where.name)
    if isinstance(scope, Scope):
        found += store.filesystems(scope, on_damage=on_failure)
    found = [info for info in found if info.state in (State.ACTIVE, State.ARCHIVED)]
    if not found:
        nothing = f"in {where}" if isinstance(where, Scope) else f"{where}, and none in it"
        raise NotFound(f"there is no filesystem {nothing}", hint="tzfs list shows what there is")
    return found


def existing(store: Store, text: str, on_failure: OnFailure | None = None) -> dict[SnapshotName, FilesystemInfo]:
    """The snapshots of that name in the filesystems that `-r` means, and what each is of; `NotFound` where none has it.

    `on_failure` is told of those that cannot be read; without it that is raised.
    """
    infos, snapshot = across(store, text, on_failure)
    found: dict[SnapshotName, FilesystemInfo] = {}
    failures: list[TzfsError] = []
    for info in infos:
        with store.passing_over(info, failures.append if on_failure else None):
            if snapshot in store.points(info)[0]:
                found[SnapshotName(info.name, snapshot)] = info
    if on_failure:
        for error in failures:
            on_failure(error)
    if not found and not failures:
        raise NotFound(f"no snapshot {text}", hint="tzfs list -t snapshot")
    return found


def snapshot_across(
    store: Store, text: str, properties: Mapping[str, str] | None = None, on_failure: OnFailure | None = None
) -> tuple[list[SnapshotInfo], list[FilesystemName]]:
    """A snapshot of each filesystem that `-r` means, one after the other; those made, and the archived, passed over.

    `Exists` where one has such a snapshot: none is made then.  `on_failure` is told why one could not be made, and the
    others are; without it that is raised.
    """
    props.parse_labels(properties or {})
    infos, snapshot = across(store, text, on_failure)
    active = [info for info in infos if info.state is State.ACTIVE]
    without: list[FilesystemInfo] = []
    having: list[FilesystemInfo] = []
    for info in active:
        with store.passing_over(info, on_failure):
            (having if snapshot in store.points(info)[0] else without).append(info)
    if having:
        raise Exists(f"snapshot {having[0].name}@{snapshot} exists")
    made = []
    for info in without:
        with store.passing_over(info, on_failure):
            made.append(store.snapshot(SnapshotName(info.name, snapshot), properties))
    return made, [info.name for info in infos if info not in active]


def _parsed(name: Name) -> SnapshotName:
    return parse_snapshot(name) if isinstance(name, str) else name


def _grouped(
    store: Store,
    names: Names,
    command: Command,
    check: Callable[[SnapshotName, Snapshot], None],
    on_failure: OnFailure | None = None,
) -> list[tuple[FilesystemInfo, list[str]]]:
    """The filesystems of the snapshots, each with its snapshots; after all of them have been found, and checked.

    What one is refused for is told to `on_failure`, and it is left out; without, that is raised.
    """
    known = names if isinstance(names, Mapping) else {}
    out: dict[str, tuple[FilesystemInfo, list[str]]] = {}  # by guid
    for name in dict.fromkeys(map(_parsed, names)):
        info = known.get(name) or store.get(name.filesystem, command)
        with store.passing_over(info, on_failure):
            if name in known and store.get(name.filesystem, command).guid != info.guid:
                raise NotFound(f"filesystem {name.filesystem} is another now")
            record = store.points(info)[0].get(name.snapshot)
            if record is None:
                raise no_snapshot(name.filesystem, name.snapshot)
            check(name, record)
            out.setdefault(info.guid, (info, []))[1].append(name.snapshot)
    return list(out.values())


def _change(
    store: Store,
    info: FilesystemInfo,
    command: Command,
    method: str,
    params: Params,
    act: Callable[[Engine], object],
    on_failure: OnFailure | None = None,
) -> None:
    """Through the mount, where there is one, else with a writer of our own."""
    with store.passing_over(info, on_failure):
        mount = store.mounted(info)
        if mount is not None:
            with mount:
                mount.ask(method, params)
            return
        with store.writer(info.name, {"kind": method}, command) as writer:
            act(writer.engine)


# -- holds -----------------------------------------------------------------------------------------------------------


def hold(store: Store, tag: str, names: Names, on_failure: OnFailure | None = None) -> None:
    """Keeps snapshots from being destroyed until `release` of the tag.  `NotFound`, `Exists`, `InvalidArgument`.

    Of several filesystems those that cannot be changed are told to `on_failure`, here as in what follows.
    """
    check_tag(tag)

    def check(name: SnapshotName, record: Snapshot) -> None:
        if tag in record.holds:
            raise Exists(f"cannot hold {name}: it has a hold {tag!r} already", hint=f"tzfs holds {name}")

    for info, snapshots in _grouped(store, names, Command.HOLD, check, on_failure):
        hold_these = partial(_hold, tag=tag, names=snapshots)
        params: dict[str, Json] = {"tag": tag, "names": list(snapshots)}
        _change(store, info, Command.HOLD, "snapshot.hold", params, hold_these, on_failure)


def _hold(engine: Engine, *, tag: str, names: list[str]) -> None:
    engine.marks.hold(tag, names)


def release(store: Store, tag: str, names: Names, on_failure: OnFailure | None = None) -> None:
    """Takes a hold away from each of the snapshots; `NotFound` where one has none of that tag."""
    check_tag(tag)

    def check(name: SnapshotName, record: Snapshot) -> None:
        if tag not in record.holds:
            raise NotFound(f"cannot release {name}: it has no hold {tag!r}", hint=f"tzfs holds {name}")

    for info, snapshots in _grouped(store, names, Command.RELEASE, check, on_failure):
        release_these = partial(_release, tag=tag, names=snapshots)
        params: dict[str, Json] = {"tag": tag, "names": list(snapshots)}
        _change(store, info, Command.RELEASE, "snapshot.release", params, release_these, on_failure)


def _release(engine: Engine, *, tag: str, names: list[str]) -> None:
    engine.marks.release(tag, names)


def holds(store: Store, names: Names, on_failure: OnFailure | None = None) -> list[Hold]:
    """All holds of the snapshots, by snapshot as given, then by tag."""
    found: dict[SnapshotName, Snapshot] = {}
    _grouped(store, names, Command.OPEN_SNAPSHOT, found.__setitem__, on_failure)
    return [Hold(name, tag, record.holds[tag]) for name, record in found.items() for tag in sorted(record.holds)]


# -- labels and names ------------------------------------------------------------------------------------------------


def label(store: Store, names: Sequence[Name], changes: Mapping[str, str | None]) -> None:
    """Sets user properties of snapshots, or takes away those given as None.  `NotFound`, `InvalidArgument`."""
    exact: dict[str, str | None] = dict.fromkeys(changes)
    exact |= props.parse_labels({key: text for key, text in changes.items() if text is not None})
    props.check_labels(changes)
    for info, snapshots in _grouped(store, names, Command.SET, lambda name, record: None):
        params: dict[str, Json] = {"names": list(snapshots), "properties": dict(exact)}
        _change(store, info, Command.SET, "snapshot.label", params, partial(_label, names=snapshots, changes=exact))


def _label(engine: Engine, *, names: list[str], changes: Mapping[str, str | None]) -> None:
    engine.marks.label(names, changes)


def rename(store: Store, old: Name, new: Name) -> None:
    """Gives a snapshot another name in its filesystem; `new` may be `@SNAPSHOT` alone.  `NotFound`, `Exists`."""
    before = _parsed(old)
    if isinstance(new, str):
        new = SnapshotName(before.filesystem, check_snapshot_component(new[1:])) if new[:1] == "@" else _parsed(new)
    if new.filesystem != before.filesystem:
        raise InvalidArgument(
            f"cannot rename {before} to {new}: a snapshot stays in its filesystem",
            hint=f"tzfs rename {before} @{new.snapshot}",
        )
    rename_all(store, [before], new.snapshot)


def rename_all(store: Store, olds: Names, new: str, on_failure: OnFailure | None = None) -> None:
    """Gives snapshots, one of each of several filesystems, another name, the same."""

    def check(name: SnapshotName, record: Snapshot) -> None:
        if new in store.points(store.get(name.filesystem))[0]:
            raise Exists(f"cannot rename {name}: snapshot {name.filesystem}@{new} exists")

    for info, (old, *_) in _grouped(store, olds, Command.RENAME, check, on_failure):
        renames = partial(_rename, old=old, new=new)
        _change(store, info, Command.RENAME, "snapshot.rename", {"old": old, "new": new}, renames, on_failure)


def _rename(engine: Engine, *, old: str, new: str) -> None:
    engine.marks.rename(old, new)


# -- bookmarks -------------------------------------------------------------------------------------------------------


def bookmark(store: Store, snapshot: Name, name: str | BookmarkName) -> BookmarkInfo:
    """What is left of a snapshot, to send later ones from it after it is gone; `name` may be `#BOOKMARK` alone.

    `NotFound`, `Exists`, `InvalidArgument`.
    """
    of = _parsed(snapshot)
    if isinstance(name, str):
        name = parse_bookmark(f"{of.filesystem}{name}" if name[:1] == "#" else name)
    if name.filesystem != of.filesystem:
        raise InvalidArgument(
            f"cannot bookmark {of} as {name}: a bookmark is in its snapshot's filesystem",
            hint=f"tzfs bookmark {of} #{name.bookmark}",
        )
    ((info, _),) = _grouped(store, [of], Command.BOOKMARK, lambda name, record: None)
    made, text = name.bookmark, of.snapshot
    if made in store.points(info)[1]:
        raise Exists(f"bookmark {name} exists")
    params: dict[str, Json] = {"snapshot": text, "name": made}
    _change(store, info, Command.BOOKMARK, "bookmark.create", params, lambda e: e.bookmarks.create(text, made))
    there = store.points(info)[1]
    if made not in there:
        raise _no_bookmark(name)
    return _bookmark_info(name, there[made])


def bookmarks(store: Store, name: str | FilesystemName | FilesystemInfo) -> list[BookmarkInfo]:
    """The bookmarks of a filesystem, that of the oldest snapshot first."""
    info = name if isinstance(name, FilesystemInfo) else store.get(name)
    if info.state in (State.CREATING, State.DELETING):
        return []
    _, found = store.points(info)
    return [_bookmark_info(BookmarkName(info.name, key), record) for key, record in found.items()]


def _no_bookmark(name: BookmarkName) -> NotFound:
    return NotFound(f"no bookmark {name}", hint=f"tzfs list -t bookmark {name.filesystem}")


def drop_bookmark(store: Store, name: str | BookmarkName, *, dry_run: bool = False) -> None:
    """Destroys a bookmark, or with `dry_run` only looks whether it is there; `NotFound`."""
    parsed = parse_bookmark(name) if isinstance(name, str) else name
    info = store.get(parsed.filesystem, Command.BOOKMARK)
    if parsed.bookmark not in store.points(info)[1]:
        raise _no_bookmark(parsed)
    if dry_run:
        return
    params: dict[str, Json] = {"names": [parsed.bookmark]}
    _change(store, info, Command.BOOKMARK, "bookmark.destroy", params, lambda e: e.bookmarks.destroy([parsed.bookmark]))


def _bookmark_info(name: BookmarkName, record: Bookmark) -> BookmarkInfo:
    facts = {
        "type": "bookmark",
        "creation": str(record.created_ns // 1_000_000_000),
        "guid": record.guid.hex(),
    }
    return BookmarkInfo(name, record, resolve([], facts, snapshot=True))
