"""Sending snapshots as a stream: one whole, or what it has that an older one has not, or all of them up to it.

    with open("ws.tzs", "wb") as f:
        sending.send(store, "ws@after", f.write, base="before")

A snapshot is read by itself, so its filesystem may be mounted and written meanwhile.  What is read, and the snapshot
that it starts from, is kept from destruction for as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tzfs.catalog import FilesystemInfo
from tzfs.engine.partial import unpack_token
from tzfs.engine.view import Tables, View
from tzfs.errors import InvalidArgument
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import FilesystemName, SnapshotName, parse_snapshot
from tzfs.opening import committed_state
from tzfs.streams import Points, Progress, Sent, Write, plan, resume, write_stream


@dataclass(frozen=True, slots=True)
class Piece:
    """One snapshot of a stream: what it starts from (None: nothing), and about how many bytes it takes."""

    name: str
    base: str | None
    bytes: int


class Stored:
    """A filesystem of a store, whoever has it open."""

    def __init__(self, store: Store, info: FilesystemInfo) -> None:
        self._store, self._info = store, info
        self.name, self.guid = str(info.name), info.guid
        self.properties: Mapping[str, str] = dict(info.local)

    def points(self) -> Points:
        return self._store.points(self._info)

    @contextmanager
    def opened(self, snapshot: str) -> Iterator[tuple[Tables, View]]:
        with self._store.reader(SnapshotName(self._info.name, snapshot), {"kind": "send"}) as reader:
            yield reader.meta, reader.view


def _base(filesystem: FilesystemName, base: str | None) -> str | None:
    """The older end without its filesystem, which must be the same."""
    if base is None:
        return None
    for mark in "@#":
        where, found, name = base.partition(mark)
        if found:
            if where and where != str(filesystem):
                raise InvalidArgument(
                    f"{base} is not of {filesystem}: a stream starts from a snapshot of the same filesystem"
                )
            return mark + name
    return "@" + base


# -- sending -----------------------------------------------------------------------------------------------------------


def send(
    store: Store,
    name: str | SnapshotName,
    write: Write,
    *,
    base: str | None = None,
    recursive: bool = False,
    progress: Progress | None = None,
) -> Sent:
    """Writes a snapshot as a stream; with `base` what has changed since; `recursive` sends those between as well."""
    parsed = parse_snapshot(name) if isinstance(name, str) else name
    source = Stored(store, store.get(parsed.filesystem, Command.SEND))
    made = plan(source.name, source.points(), parsed.snapshot, base=_base(parsed.filesystem, base), recursive=recursive)
    return write_stream(source, made, write, progress)


def send_on(
    store: Store, token: str, write: Write, *, name: str | None = None, progress: Progress | None = None
) -> Sent:
    """Goes on with a stream that was cut; `name` is what the filesystem is called now."""
    partial = unpack_token(token)
    source = Stored(store, store.get(name or partial.source, Command.SEND))
    return write_stream(source, resume(source.points(), partial), write, progress)


def estimate(
    store: Store, name: str | SnapshotName, *, base: str | None = None, recursive: bool = False
) -> list[Piece]:
    """What would be sent, and about how many bytes each takes."""
    parsed = parse_snapshot(name) if isinstance(name, str) else name
    info = store.get(parsed.filesystem, Command.SEND)
    made = plan(str(info.name), store.points(info), parsed.snapshot, base=_base(info.name, base), recursive=recursive)
    state = committed_state(info.folder)
    pieces = []
    for start, step in made.steps:
        if start is None:
            size = state.accounts.of(step, logical=True).referenced
        else:
            size = state.accounts.logical.written_since(start[1].epoch, state.snapshots[step].epoch)
        pieces.append(Piece(step, None if start is None else start[0], size))
    return pieces
