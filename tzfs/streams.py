"""What a stream of snapshots is to have, and writing it: from whatever filesystem is open.

A bookmark cannot be kept while it is sent from, so it is looked for again at the end: a stream that may lack something
does not come to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from tzfs.engine.committed import read_counters
from tzfs.engine.engine import Engine
from tzfs.engine.partial import Partial
from tzfs.engine.send import Sender
from tzfs.engine.view import Tables, View
from tzfs.errors import InvalidArgument, NotFound, no_snapshot
from tzfs.format import stream
from tzfs.format.records import Bookmark, Snapshot
from tzfs.format.stream import Kind

Write = Callable[[bytes], object]
Progress = Callable[[str, int, int], None]  # a snapshot, its inodes and all bytes sent so far
Points = tuple[Mapping[str, Snapshot], Mapping[str, Bookmark]]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a stream has: its snapshots, oldest first, how many inodes, and how many bytes it is."""

    snapshots: tuple[str, ...]
    inodes: int
    bytes: int


class Source(Protocol):
    """A filesystem that is sent from."""

    name: str
    guid: str
    properties: Mapping[str, str]

    def points(self) -> Points: ...
    def opened(self, snapshot: str) -> AbstractContextManager[tuple[Tables, View]]: ...


class Own:
    """A filesystem that this program has open for writing."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name
        self.guid = engine.superblock.guid
        self.properties: Mapping[str, str] = {}

    def points(self) -> Points:
        return self._engine.snapshots(), self._engine.bookmarks.all()

    @contextmanager
    def opened(self, snapshot: str) -> Iterator[tuple[Tables, View]]:
        yield self._engine.readable, self._engine.view(snapshot)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be sent: `steps` are (older end or None, snapshot), oldest first; `resumed` where the first begins."""

    base: tuple[str, Snapshot | Bookmark] | None
    steps: tuple[tuple[tuple[str, Snapshot | Bookmark] | None, str], ...]
    recursive: bool
    resumed: Partial | None = None


# -- what is to be sent ------------------------------------------------------------------------------------------------


def plan(of: str, points: Points, snapshot: str, *, base: str | None = None, recursive: bool = False) -> Plan:
    """`base`: the older end, `SNAPSHOT`, `@SNAPSHOT` or `#BOOKMARK`.  `NotFound`, `InvalidArgument`."""
    snapshots, bookmarks = points
    if snapshot not in snapshots:
        raise no_snapshot(of, snapshot)
    start: tuple[str, Snapshot | Bookmark] | None = None
    if base is not None:
        where: Mapping[str, Snapshot | Bookmark] = bookmarks if base.startswith("#") else snapshots
        name = base.lstrip("@#")
        if name not in where:
            raise NotFound(f"no {'bookmark' if where is bookmarks else 'snapshot'} {name!r} of {of} to start from")
        start = base if base.startswith("#") else name, where[name]
        if start[1].epoch >= snapshots[snapshot].epoch:
            raise InvalidArgument(
                f"{base} is not older than @{snapshot}", hint="give an older snapshot, or a bookmark of one, after -i"
            )
    return _planned(snapshots, snapshot, start, recursive=recursive)


def resume(points: Points, token: Partial) -> Plan:
    """What a token asks for.  `NotFound` where it was of another filesystem, or that has gone."""
    snapshots, bookmarks = points
    by_guid = {s.guid.hex(): name for name, s in snapshots.items()}
    start: tuple[str, Snapshot | Bookmark] | None = None
    if token.base in by_guid:
        start = by_guid[token.base], snapshots[by_guid[token.base]]
    elif token.base:
        found = [("#" + name, b) for name, b in bookmarks.items() if b.guid.hex() == token.base]
        if not found:
            raise NotFound(f"the snapshot that the stream started from ({token.base}) is not there any more")
        start = found[0]
    if token.last not in by_guid or (token.to and token.to not in by_guid):
        raise NotFound("the snapshot that was being sent is not there any more")
    recursive = token.to != token.last
    made = _planned(snapshots, by_guid[token.last], start, recursive=recursive)
    if token.to and made.steps[0][1] != by_guid[token.to]:
        raise NotFound("the snapshots of the filesystem are not what they were when the stream was cut")
    return Plan(made.base, made.steps, recursive, token)


def _planned(
    snapshots: Mapping[str, Snapshot], last: str, start: tuple[str, Snapshot | Bookmark] | None, *, recursive: bool
) -> Plan:
    after = -1 if start is None else start[1].epoch
    chosen = [n for n, s in snapshots.items() if after < s.epoch <= snapshots[last].epoch] if recursive else [last]
    steps, before = [], start
    for name in chosen:
        steps.append((before, name))
        before = name, snapshots[name]
    return Plan(start, tuple(steps), recursive)


# -- writing it --------------------------------------------------------------------------------------------------------


def write_stream(source: Source, made: Plan, write: Write, progress: Progress | None = None) -> Sent:
    """Writes what is planned."""
    out, inodes, resumed = stream.Writer(write), 0, made.resumed
    snapshots = source.points()[0]
    last = snapshots[made.steps[-1][1]].guid.hex() if made.steps else ""
    out.put(
        Kind.BEGIN,
        stream.pack_object(
            {
                "filesystem": source.name,
                "guid": source.guid,
                "base": "" if made.base is None else made.base[1].guid.hex(),
                "base_name": "" if made.base is None else made.base[0],
                "snapshots": len(made.steps),
                "last": last,
                "properties": dict(source.properties) if made.recursive else {},
            }
        ),
    )
    with ExitStack() as kept:
        if made.base is not None and not made.base[0].startswith("#"):
            kept.enter_context(source.opened(made.base[0]))
        for start, name in made.steps:
            stack = ExitStack()
            meta, view = stack.enter_context(source.opened(name))
            sender = Sender(meta, view, None if start is None else start[1].epoch)
            begin = (resumed.ino, resumed.chunk, resumed.anew) if resumed is not None and resumed.to else (0, 0, False)
            out.put(
                Kind.SNAPSHOT,
                stream.pack_object(
                    {
                        "name": name,
                        "guid": view.snapshot.guid.hex(),
                        "created_ns": view.snapshot.created_ns,
                        "properties": dict(view.snapshot.properties),
                        "base": "" if start is None else start[1].guid.hex(),
                        "next_ino": _next_ino(meta),
                        "resumed": resumed is not None,
                        "ino": begin[0],
                        "chunk": begin[1],
                    }
                ),
            )
            resumed = None
            for frame in sender.run(begin[0], begin[1], anew=begin[2]):
                if frame is not None:
                    out.put(*frame)
                elif progress is not None:
                    progress(name, sender.inodes, out.bytes)
            _still_there(source, start)
            out.put(Kind.DONE, stream.pack_totals(sender.inodes, sender.payload))
            inodes += sender.inodes
            kept.close()  # the one before
            kept.push(stack.pop_all())
    out.put(Kind.END, stream.pack_totals(out.frames, out.bytes))
    return Sent(tuple(name for _, name in made.steps), inodes, out.bytes)


def _next_ino(meta: Tables) -> int:
    txn = meta.begin_read()
    try:
        return read_counters(txn).next_ino
    finally:
        txn.close()


def _still_there(source: Source, start: tuple[str, Snapshot | Bookmark] | None) -> None:
    """What is looked at from a bookmark on may have been collected when it was dropped."""
    if start is not None and start[0].startswith("#"):
        found = source.points()[1].get(start[0][1:])
        if found is None or found.guid != start[1].guid:
            raise NotFound(f"bookmark {start[0]} was dropped while the stream was made from it", hint="send it anew")
