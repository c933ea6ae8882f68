"""Streams between engines in memory, and what a tree is, whole."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from tests.engine.conftest import Workspace
from tzfs.engine.engine import Engine
from tzfs.engine.partial import Partial
from tzfs.engine.view import View
from tzfs.format import stream
from tzfs.format.keys import DataId
from tzfs.receiving import read_header, receive_stream
from tzfs.streams import Own, plan, resume, write_stream

__all__ = ["frames_of", "into", "sent", "sent_on", "tree"]


def sent(engine: Engine, snapshot: str, base: str | None = None, *, recursive: bool = False) -> bytes:
    out = io.BytesIO()
    source = Own(engine, "source")
    write_stream(source, plan(source.name, source.points(), snapshot, base=base, recursive=recursive), out.write)
    return out.getvalue()


def sent_on(engine: Engine, partial: Partial) -> bytes:
    out = io.BytesIO()
    source = Own(engine, "source")
    write_stream(source, resume(source.points(), partial), out.write)
    return out.getvalue()


def into(
    engine: Engine, data: bytes, *, force: bool = False, resumable: bool = False, called: str | None = None
) -> tuple[str, ...]:
    """Receives a stream; the names of the snapshots that came."""
    frames = stream.Reader(io.BytesIO(data).read)
    return receive_stream(engine, frames, read_header(frames), called, force, resumable, None)


def frames_of(data: bytes) -> list[tuple[int, stream.Frame]]:
    """Where each frame of a stream ends, and the frame."""
    file = io.BytesIO(data)
    reader, out = stream.Reader(file.read), []
    while True:
        frame = reader.get()
        out.append((file.tell(), frame))
        if frame.kind is stream.Kind.END:
            return out


def tree(view: View) -> dict[int, object]:
    """All that there is to see of a snapshot: attributes, entries, names, contents, holes, extended attributes."""
    found: dict[int, object] = {}
    todo = [1]
    while todo:
        ino = todo.pop()
        if ino in found:
            continue
        inode = view.inode(ino)
        entries: dict[bytes, int] = {}
        contents = holes = None
        if inode.mode & 0o170000 == 0o040000:
            entries = {name: child for name, child, _ in view.readdir(ino, b"", 10_000)}
            todo += entries.values()
        elif inode.data:
            contents = view.read(ino, 0, inode.size)
            size = 1 << inode.chunk_shift
            holes = [view.plan_read(ino, at, size).hole for at in range(0, inode.size, size)]
        attributes = {name: view.getxattr(ino, name) for name in view.listxattr(ino)}
        names = view.names_of(inode)
        found[ino] = replace(inode, data=DataId(0)), entries, contents, holes, attributes, names
    return found


def pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    return pairwise(names)


Make = Callable[[], Workspace]
