"""What happens in a store, as it happens: entries of the logs, and what mounts say beside them.

    for event in events.follow(store): ...

Each mount is listened to by a thread of its own, which says what it has seen of the filesystem's log, so that nothing
is told twice or left out between the log and the mount.  New mounts, the store's own log, and a filesystem that nobody
has mounted are looked at every `LOOK_S`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from tzfs import journal
from tzfs.access import Name
from tzfs.catalog import FilesystemInfo
from tzfs.control import ControlClient
from tzfs.errors import NotFound, OnFailure, TzfsError
from tzfs.format.log import Field
from tzfs.jsonrpc import Json
from tzfs.management import Store

LOOK_S: Final = 0.5

Event = dict[str, Field]


def follow(store: Store, name: Name | None = None, *, on_failure: OnFailure = lambda error: None) -> Iterator[Event]:
    """What the logs have of a filesystem, or of all, and then whatever happens, until the caller stops asking.

    Events are JSON objects with `filesystem`, `time_ns`, `kind` and fields of its kind; `entry` where it is one of the
    filesystem's log.  An entry that says later how it ended comes again.  `NotFound`.

    `on_failure`: as for `journal.log`.
    """
    told = journal.log(store, name, on_failure=on_failure)
    follower = _Follower(store, name, told)
    for logged in told:
        yield logged.to_json()
    try:
        yield from follower.run()
    finally:
        follower.end()


class _Follower:
    def __init__(self, store: Store, name: Name | None, told: list[journal.Logged]) -> None:
        self._store = store
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._mounts: dict[str, ControlClient] = {}  # by guid
        self._info = None if name is None else store.get(name)
        by_name = {str(info.name): info.guid for info in self._infos()}
        self._seen: dict[str, int] = dict.fromkeys(by_name.values(), 0)  # the last entry, by guid
        for logged in told:
            if logged.number is not None:
                self._seen[by_name.get(logged.filesystem, "")] = logged.number
        self._seen_of_store = max((entry.number for entry in store.catalog.log()), default=0)

    def run(self) -> Iterator[Event]:
        gone: NotFound | None = None
        while True:
            try:
                self._look()
            except NotFound as error:  # the last that is told is how it went
                gone = error
            with suppress(queue.Empty):
                yield self._events.get(timeout=0 if gone else LOOK_S)
                while True:
                    yield self._events.get_nowait()
            if gone:
                raise gone

    def end(self) -> None:
        for mount in list(self._mounts.values()):
            mount.hang_up()

    def _infos(self) -> list[FilesystemInfo]:
        if self._info is None:
            return self._store.filesystems(on_damage=lambda error: None)
        return [self._store.catalog.refresh(self._info)]

    def _look(self) -> None:
        for entry in self._store.catalog.log():
            if entry.number > self._seen_of_store:
                self._seen_of_store = entry.number
                if self._info is None or entry.fields.get("guid") == self._info.guid:
                    self._events.put(journal.from_store(entry).to_json())
        for info in self._infos():
            if info.guid not in self._mounts:
                with suppress(TzfsError):  # a program has it, or another user, or it is just ending
                    mount = self._store.mounted(info)
                    if mount is not None:
                        self._listen(info, mount)
                    elif self._info is not None:
                        for logged in journal.of_filesystem(self._store, info):
                            self._tell(info.guid, logged.to_json())

    def _listen(self, info: FilesystemInfo, mount: ControlClient) -> None:
        self._mounts[info.guid] = mount

        def hear(value: Json) -> None:
            if isinstance(value, dict):
                self._tell(info.guid, {**value}, again=True)

        def listen() -> None:
            with suppress(TzfsError), mount:  # it has ended
                mount.ask("events", {"after": self._seen.get(info.guid, 0)}, progress=hear, timeout_s=None)
            del self._mounts[info.guid]

        threading.Thread(target=listen, daemon=True).start()

    def _tell(self, guid: str, event: Event, *, again: bool = False) -> None:
        """`again`: an entry that has been told of is told of again, since it has changed."""
        number = event.get("entry")
        if isinstance(number, int):
            if number <= self._seen.get(guid, 0) and not again:
                return
            self._seen[guid] = max(number, self._seen.get(guid, 0))
        self._events.put(event)
