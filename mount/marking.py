"""The control methods that change what is said about snapshots: holds, labels, names, bookmarks.

Each is one call of the engine, which commits.  A snapshot's new name is also its folder's under `.zfs/snapshot`: the
kernel is told to forget the old one, from a thread, before the answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Annotated, TypedDict

import pyfuse3
import trio

from tzfs import limits
from tzfs import properties as props
from tzfs.engine.engine import Engine
from tzfs.errors import InvalidArgument
from tzfs.jsonrpc import Json
from tzfs.mount.committing import Committer
from tzfs.mount.method import Declared, Within, method
from tzfs.mount.nodes import SNAPSHOTS_NODE
from tzfs.mount.operations import Operations
from tzfs.names import check_snapshot_component

ComponentText = Annotated[str, Within(1, limits.SNAPSHOT_NAME_BYTES_MAX)]


class Hold(TypedDict):
    tag: ComponentText
    names: list[ComponentText]


class Label(TypedDict):
    names: list[ComponentText]
    properties: dict[str, str | None]  # None: taken away


class Rename(TypedDict):
    old: ComponentText
    new: ComponentText


class Bookmark(TypedDict):
    snapshot: ComponentText
    name: ComponentText


class Unbookmark(TypedDict):
    names: list[ComponentText]


def marking_methods(
    operations: Operations, writing: Callable[[str], tuple[Engine, Committer]]
) -> Mapping[str, Declared]:
    """The methods, by name.  `writing` answers the engine and the committer of a mount that writes, or raises."""
    m = _Marking(operations, writing)
    return {
        "snapshot.hold": method(Hold, m.hold),
        "snapshot.release": method(Hold, m.release),
        "snapshot.label": method(Label, m.label),
        "snapshot.rename": method(Rename, m.rename),
        "bookmark.create": method(Bookmark, m.bookmark),
        "bookmark.destroy": method(Unbookmark, m.unbookmark),
    }


class _Marking:
    def __init__(self, operations: Operations, writing: Callable[[str], tuple[Engine, Committer]]) -> None:
        self._operations, self._writing = operations, writing

    async def hold(self, params: Hold) -> Json:
        engine, committer = self._writing("hold a snapshot of")
        await committer.change(lambda: engine.marks.hold(params["tag"], params["names"]))
        return None

    async def release(self, params: Hold) -> Json:
        engine, committer = self._writing("release a snapshot of")
        await committer.change(lambda: engine.marks.release(params["tag"], params["names"]))
        return None

    async def label(self, params: Label) -> Json:
        changes = {key: None if text is None else props.parse(key, text) for key, text in params["properties"].items()}
        for key in changes:
            props.check_name(key)
            if not props.is_user(key):
                raise InvalidArgument(f"{key}: a snapshot takes user properties only (MODULE:NAME)")
        engine, committer = self._writing("set a property of a snapshot of")
        await committer.change(lambda: engine.marks.label(params["names"], changes))
        return None

    async def rename(self, params: Rename) -> Json:
        old, new = params["old"], check_snapshot_component(params["new"])
        engine, committer = self._writing("rename a snapshot of")

        def rename() -> None:
            engine.marks.rename(old, new)
            self._operations.snapshot_renamed(old.encode(), new.encode())

        await committer.change(rename)
        await trio.to_thread.run_sync(_forget_name, old.encode())
        return None

    async def bookmark(self, params: Bookmark) -> Json:
        name = check_snapshot_component(params["name"])
        engine, committer = self._writing("bookmark a snapshot of")
        await committer.change(lambda: engine.bookmarks.create(params["snapshot"], name))
        return None

    async def unbookmark(self, params: Unbookmark) -> Json:
        engine, committer = self._writing("destroy a bookmark of")
        await committer.change(lambda: engine.bookmarks.destroy(params["names"]))
        return None


def _forget_name(name: bytes) -> None:
    """In a thread: whoever looks in the folder has its lock in the kernel, and waits for this mount's loop."""
    with contextlib.suppress(OSError):  # the kernel does not know it
        pyfuse3.invalidate_entry(SNAPSHOTS_NODE, name)
