"""Receiving a stream of snapshots: as a new filesystem, or into one that has the snapshot that it starts from.

    with open("ws.tzs", "rb") as f:
        receiving.receive(store, "copy", f.read)

Each snapshot comes whole or not at all.  A filesystem that a stream makes is there when all of the stream is, or, where
the receive may go on after a cut, at once and empty.  It must not be mounted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tzfs import limits, rolling_back
from tzfs.catalog import FilesystemInfo
from tzfs.engine.engine import Engine
from tzfs.engine.partial import Partial, pack_token
from tzfs.engine.receive import Receiver
from tzfs.errors import (
    BadStream,
    Busy,
    Diverged,
    Exists,
    InvalidArgument,
    NotEmpty,
    NotFound,
    TzfsError,
    UsageError,
    about,
)
from tzfs.format import stream
from tzfs.format.keys import ROOT, Epoch
from tzfs.format.records import Snapshot
from tzfs.format.stream import Kind
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import FilesystemName, check_snapshot_component, parse_filesystem, parse_snapshot
from tzfs.opening import Committed, Writer, committed_state, format_filesystem
from tzfs.properties import parse as parse_property
from tzfs.settings import settings_of_new
from tzfs.store.lease import Lease

Read = Callable[[int], bytes]
Progress = Callable[[str, int, int], None]  # a snapshot, frames and bytes read so far


@dataclass(frozen=True, slots=True)
class Received:
    """What came: into which filesystem, which snapshots, oldest first, and how many bytes the stream had."""

    filesystem: FilesystemName
    snapshots: tuple[str, ...]
    bytes: int
    created: bool


@dataclass(frozen=True, slots=True)
class Header:
    """What a stream says of itself first; `base` is a guid, empty for a stream that starts from nothing."""

    filesystem: str
    base: str
    base_name: str
    snapshots: int
    last: str
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Coming:
    """A snapshot as a stream announces it: where the receive begins, whether the stream goes on with it, its record as
    far as it is known, and the inode number that the sender gives next."""

    name: str
    at: Partial
    resumed: bool
    record: Snapshot
    next_ino: int


class Cut(TzfsError):
    """The receive broke off, and can go on: `token` says where."""

    def __init__(self, error: BaseException, token: str) -> None:
        super().__init__(
            f"{error}; what has come is kept",
            hint=f"go on with: tzfs send -t {token} | tzfs receive -s FILESYSTEM; or give it up: tzfs receive -A",
        )
        self.token = token


def receive(
    store: Store,
    target: str,
    read: Read,
    *,
    force: bool = False,
    resumable: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Received:
    """Receives a stream into `FILESYSTEM`, or as `FILESYSTEM@SNAPSHOT`.

    `force` rolls the filesystem back to the snapshot that the stream starts from, and destroys newer ones.
    `BadStream`, `Diverged`, `Exists`, `NotFound`, `Busy`, `Cut` (only `resumable`).  With `dry_run` the stream is read
    to its end, and nothing is done.
    """
    name, called = _target(target)
    frames = stream.Reader(read)
    header = read_header(frames)
    if called is not None and header.snapshots > 1:
        raise InvalidArgument("the stream has several snapshots, which keep their names", hint=f"tzfs receive {name}")
    there = any(info.name == name for info in store.filesystems())
    if not there and header.base:
        raise NotFound(f"there is no filesystem {name}, and the stream starts from {header.base_name or header.base}")
    if there and not header.base and not (_is_empty(store, name) or _resumes(store, name)):
        raise Exists(
            f"filesystem {name} exists, and the stream is of a whole one", hint="receive it under another name"
        )
    if dry_run:
        return _read_only(frames, header, name, called, created=not there)
    if there or resumable:
        if not there:
            store.create(name, dict(header.properties))
        try:
            with store.writer(name, {"kind": "receive"}, Command.RECEIVE) as writer:
                names = receive_stream(writer.engine, frames, header, called, force, resumable, progress)
        except BaseException:
            if not there:
                with suppress(TzfsError):  # then it stays; why the receive failed matters more
                    _remove_empty(store, name)
            raise
        return Received(name, names, frames.bytes, created=not there)
    received: list[tuple[str, ...]] = []
    settings = settings_of_new(store.catalog, name, header.properties)

    def fill(directory: Path, guid: bytes) -> None:
        format_filesystem(directory, guid)
        lease = Lease.acquire(directory, info={"kind": "receive"})
        with Writer(directory, guid, lease=lease, settings=settings, receiving=True) as writer:
            received.append(receive_stream(writer.engine, frames, header, called, force, False, progress))

    store.catalog.create(name, formatter=fill, properties=dict(header.properties))
    return Received(name, received[0], frames.bytes, created=True)


def abandon(store: Store, name: str) -> None:
    """Gives up a receive that was cut; a filesystem that it has made and that has nothing goes with it.  `NotFound`."""
    parsed = parse_filesystem(name)
    with store.writer(parsed, {"kind": "receive"}, Command.RECEIVE) as writer:
        receiver = writer.engine.receiver()
        if receiver.partial is None:
            raise NotFound(f"no receive into {parsed} was cut")
        receiver.cancel()
    _remove_empty(store, parsed)


def _target(text: str) -> tuple[FilesystemName, str | None]:
    if "@" in text:
        parsed = parse_snapshot(text)
        return parsed.filesystem, parsed.snapshot
    return parse_filesystem(text), None


def _resumes(store: Store, name: FilesystemName) -> bool:
    return committed_state(store.get(name, Command.RECEIVE).folder).partial is not None


def _is_empty(store: Store, name: FilesystemName) -> bool:
    """Whether nothing has ever been made in it, or nothing of that is left."""
    state = committed_state(store.get(name, Command.RECEIVE).folder)
    return not state.snapshots and state.counters.inodes <= 1


def _remove_empty(store: Store, name: FilesystemName) -> None:
    """Destroys it, unless there is something in it, a receive may go on in it, or somebody has it."""

    def agreed(info: FilesystemInfo) -> None:
        with about(name):
            Committed(info.folder, bytes.fromhex(info.guid)).close()  # with what a crash has left in the redo log
        if _resumes(store, name) or not _is_empty(store, name):
            raise NotEmpty(f"cannot destroy {info.name}: it has something")

    with suppress(Busy, NotEmpty, NotFound):
        store.catalog.destroy(name, agreed=agreed)


# -- headers -----------------------------------------------------------------------------------------------------------


def read_header(frames: stream.Reader) -> Header:
    kind, body = frames.get()
    if kind is not Kind.BEGIN:
        raise BadStream("the stream does not begin with what it is")
    said = stream.unpack_object(body)
    properties = said.get("properties")
    number = said.get("snapshots")
    if not isinstance(properties, dict) or type(number) is not int or number < 0:
        raise BadStream("the stream does not say what it is")
    return Header(
        _short_text(said, "filesystem"),
        _guid(said, "base"),
        _short_text(said, "base_name"),
        number,
        _guid(said, "last"),
        _settable(properties),
    )


def _settable(properties: Mapping[str, object]) -> dict[str, str]:
    """Those of the sender's properties that can be set here; the others are a newer tzfs', and let be."""
    out = {}
    for name, text in properties.items():
        try:
            parse_property(name, str(text))
        except TzfsError:
            continue
        out[name] = str(text)
    return out


def _text(said: Mapping[str, object], name: str) -> str:
    text = said.get(name)
    if not isinstance(text, str):
        raise BadStream(f"the stream does not say its {name}")
    return text


def _short_text(said: Mapping[str, object], name: str) -> str:
    """A text that is kept, or shown: no longer than names are."""
    text = _text(said, name)
    if len(text.encode()) > limits.FILESYSTEM_NAME_BYTES_MAX + 1:  # of a bookmark, with its mark
        raise BadStream(f"the stream's {name} is not a name")
    return text


def _guid(said: Mapping[str, object], name: str) -> str:
    text = _text(said, name)
    if text and (len(text) != 32 or set(text) - set("0123456789abcdef")):
        raise BadStream(f"the stream's {name} is no guid")
    return text


def _snapshot(body: bytes, header: Header, called: str | None) -> Coming:
    said = stream.unpack_object(body)
    created, properties = said.get("created_ns"), said.get("properties")
    if type(created) is not int or not -(1 << 63) <= created < 1 << 63 or not isinstance(properties, dict):
        raise BadStream("the stream does not say what snapshot comes")
    if not all(isinstance(v, str) for v in properties.values()):
        raise BadStream("the properties of a snapshot of the stream are not texts")
    try:
        name = check_snapshot_component(called or _text(said, "name"))
    except UsageError as error:
        raise BadStream(f"the stream's snapshot has a name that cannot be: {error}") from None
    guid = _guid(said, "guid")
    if not guid:
        raise BadStream("the stream's snapshot has no guid")
    record = Snapshot(Epoch(0), bytes.fromhex(guid), created, 0, 0, 0, properties)
    next_ino = said.get("next_ino")
    if type(next_ino) is not int or not 1 <= next_ino <= limits.INO_MAX + 1:
        raise BadStream("the stream's snapshot does not say which inode numbers are given")
    ino, chunk = said.get("ino", 0), said.get("chunk", 0)
    if type(ino) is not int or type(chunk) is not int:
        raise BadStream("the stream does not say where its snapshot goes on")
    at = Partial(header.filesystem, _guid(said, "base"), guid, header.last, ino, chunk, anew=False)
    return Coming(name, at, said.get("resumed") is True, record, next_ino)


# -- the stream --------------------------------------------------------------------------------------------------------


def receive_stream(
    engine: Engine,
    frames: stream.Reader,
    header: Header,
    called: str | None,
    force: bool,
    resumable: bool,
    progress: Progress | None,
) -> tuple[str, ...]:
    """The names of the snapshots received, to the end of the stream."""
    receiver, first = engine.receiver(), True
    names: list[str] = []
    partial = receiver.partial
    if partial is not None:
        if (partial.base, partial.last) != (header.base, header.last):
            raise Busy("a receive into the filesystem was cut, and this stream does not go on with it")
        resumable = True
    elif header.snapshots:
        _start(engine, header, force=force)
    under_way: Coming | None = None  # the one that comes, or has come and is not yet there
    try:
        while True:
            kind, body = frames.get()  # only then has all come of the snapshot before
            if kind is Kind.END:
                _end(frames, body, header, len(names) + (under_way is not None))
            elif kind is not Kind.SNAPSHOT:
                raise BadStream(f"the stream has {kind.name} where a snapshot should begin")
            if under_way is not None:
                receiver.finish(under_way.record, under_way.next_ino)
                names.append(under_way.name)
                under_way = None
            if kind is Kind.END:
                return tuple(names)
            coming = _snapshot(body, header, called)
            _follows(engine, header, partial, coming.at, resumed=coming.resumed, first=first)
            receiver.begin(coming.name, coming.at, resumable=resumable)
            under_way, first, partial = coming, False, None
            count = 0
            while (frame := frames.get()).kind is not Kind.DONE:
                receiver.feed(frame)
                count += 1
                if progress is not None and count % 128 == 0:
                    progress(coming.name, frames.frames, frames.bytes)
            stream.unpack_totals(frame.body)
    except BaseException as error:
        if engine.failed is None and (under_way is not None or receiver.partial is not None):
            _broken(engine, receiver, error, keep=resumable)
        raise


def _broken(engine: Engine, receiver: Receiver, error: BaseException, *, keep: bool) -> None:
    """What was staged stays, where it may; else nothing has happened."""
    left = receiver.suspend() if keep else None
    if left is None:
        receiver.cancel()
    elif isinstance(error, Exception):
        raise Cut(error, pack_token(left)) from error


def _follows(
    engine: Engine, header: Header, partial: Partial | None, at: Partial, *, resumed: bool, first: bool
) -> None:
    """The snapshot that comes goes on where the one before it ended."""
    if first and (at.base != header.base or resumed is not (partial is not None)):
        raise BadStream("the stream goes on with what was not begun here, or begins what was")
    if partial is not None and partial.to and partial.to != at.to:
        raise BadStream("the stream goes on with another snapshot than was cut")
    if (at.ino, at.chunk) > ((partial.ino, partial.chunk) if partial is not None else (0, 0)):
        raise BadStream(
            "the stream goes on beyond what has come: what is between would be missing",
            hint="send it with the token of this filesystem: tzfs get receive_resume_token",
        )
    newest = list(engine.snapshots().values())[-1:]
    if at.base != (newest[0].guid.hex() if newest else ""):
        raise BadStream("a snapshot of the stream does not follow the one before it")
    if any(s.guid.hex() == at.to for s in engine.snapshots().values()):
        raise Exists("the filesystem has the stream's snapshot already")


def _end(frames: stream.Reader, body: bytes, header: Header, snapshots: int) -> None:
    if stream.unpack_totals(body)[0] != frames.frames - 1 or snapshots != header.snapshots:
        raise BadStream("the stream ends, and has not all that it said")


def _start(engine: Engine, header: Header, *, force: bool) -> None:
    """The head is what the stream starts from; with `force` it is made so.  `Diverged`."""
    engine.commit()
    snapshots = engine.snapshots()
    if not header.base:
        if snapshots or engine.counters.inodes > 1 or engine.counters.epoch > 1 or engine.listxattr(ROOT):
            raise Exists("the stream is of a whole filesystem, and this one is not empty")
        return
    name = next((name for name, s in snapshots.items() if s.guid.hex() == header.base), None)
    start = header.base_name or header.base
    if name is None:
        raise Diverged(
            f"the stream starts from {start}, which the filesystem does not have",
            hint="send from a snapshot that both have, or all of it into a new filesystem",
        )
    newer = rolling_back.newer_than(snapshots, name)
    if not force and (newer or engine.changed_since(snapshots[name].epoch)):
        since = f"has newer snapshots: {', '.join(newer)}" if newer else f"has changed since @{name}"
        raise Diverged(
            f"the stream starts from @{name}, and the filesystem {since}", hint="-F rolls it back, and loses that"
        )
    if newer:
        engine.destroy(newer)
    if engine.changed_since(snapshots[name].epoch):
        rolling_back.roll_back(engine, name, safety=False)


def _read_only(
    frames: stream.Reader, header: Header, name: FilesystemName, called: str | None, *, created: bool
) -> Received:
    """Reads a stream to its end."""
    names = []
    while (frame := frames.get()).kind is not Kind.END:
        if frame.kind is Kind.SNAPSHOT:
            names.append(_snapshot(frame.body, header, called).name)
    _end(frames, frame.body, header, len(names))
    return Received(name, tuple(names), frames.bytes, created=created)
