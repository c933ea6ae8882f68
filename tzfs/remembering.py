"""Running a command so that it is remembered, and taking back what one has done.

    remembered = Remembered.begin(store, info, ["make"], "/mnt/ws", os.getpid())
    remembered.end(store, code=0, duration_ns=5)

    remembering.undo(store, "ws")

A command runs in a mount, which takes the snapshots (`tzfs.runs`); what differs between them is counted here, beside
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from tzfs import comparing, runs, time_travel
from tzfs.access import Name
from tzfs.catalog import FilesystemInfo
from tzfs.control import connect
from tzfs.errors import MountFailed, NotFound, WrongState, about
from tzfs.format.log import Entry, readable
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import SnapshotName
from tzfs.opening import committed_log
from tzfs.rolling_back import Progress

WORDS_MAX: Final = 1000  # of a command, and characters of each: the log cuts more anyway, and a message has a limit
WORD_MAX: Final = 1000
SHOWN_MAX: Final = 3  # paths in a refusal


# -- commands ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a command: the snapshots around what it changed, None where it changed nothing, and the counts.

    `said` is why a snapshot could not be taken.
    """

    entry: int
    before: str | None
    after: str | None
    counts: Mapping[str, int]
    said: str | None


class Remembered:
    """A command that is remembered, from before it runs: `begin`; to be told how it ended: `end`."""

    def __init__(self, info: FilesystemInfo, socket: Path, entry: int, said: str | None) -> None:
        self._info, self._socket = info, socket
        self.entry, self.said = entry, said

    @classmethod
    def begin(cls, store: Store, info: FilesystemInfo, argv: Sequence[str], cwd: str, pid: int) -> Remembered:
        """A command of the process `pid` is about to run in the filesystem, which is mounted.

        `said` is why there is no snapshot before it.  `WrongState` where it is not mounted, or for reading only.
        """
        holder = store.catalog.holder(info)
        socket = None if holder is None else holder.get("socket")
        if not isinstance(socket, str):
            raise WrongState(f"{info.name} is not mounted")
        words: list[Json] = [readable(word[:WORD_MAX]) for word in argv[:WORDS_MAX]]
        if len(argv) > WORDS_MAX:
            words.append("...")
        answer = _ask(Path(socket), "run.begin", {"argv": words, "cwd": readable(cwd), "pid": pid})
        return cls(info, Path(socket), int(str(answer["entry"])), _text(answer.get("said")))

    def end(self, store: Store, *, code: int, duration_ns: int, signal: str | None = None) -> Ended:
        """It has ended; `signal` is the name of the one that ended it.  What differs is counted, and remembered."""
        params: dict[str, Json] = {"entry": self.entry, "code": code, "duration_ns": duration_ns}
        if signal is not None:
            params["signal"] = signal
        answer = _ask(self._socket, "run.end", params)
        before, after, counts = _text(answer.get("before")), _text(answer.get("after")), dict[str, int]()
        if before is not None and after is not None:
            name = store.catalog.refresh(self._info).name
            counts = count(store, SnapshotName(name, before), SnapshotName(name, after))
            _ask(self._socket, "run.count", {"entry": self.entry, "counts": dict(counts)})
        return Ended(self.entry, before, after, counts, _text(answer.get("said")))


def count(store: Store, older: SnapshotName, newer: SnapshotName | None = None) -> dict[str, int]:
    """How many paths were added, removed, modified and renamed from a snapshot to another, or to now."""
    found = Counter(difference.kind for difference in comparing.diff(store, older, newer))
    return {word: found[kind] for kind, word in runs.COUNTED.items()}


def _ask(socket: Path, method: str, params: dict[str, Json]) -> dict[str, Json]:
    with connect(socket) as mount:
        answer = mount.ask(method, params)
    if answer is not None and not isinstance(answer, dict):
        raise MountFailed(f"the mount did not say what came of {method}")
    return answer or {}


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


# -- what one has done -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Undone:
    """Entry `undone` was taken back: now everything is what it was at the snapshot `restored`.

    `entry` is the entry of that, which can be taken back as well; `safety` is the snapshot of the state before.
    """

    entry: int
    undone: int
    restored: str
    safety: str


def ends(store: Store, name: Name, number: int | None = None) -> tuple[Entry, SnapshotName, SnapshotName]:
    """An entry that changed something, and the snapshots around that; without a number the last such entry.

    `NotFound` where there is none, or a snapshot is gone; `WrongState` for an entry that did not change anything.
    """
    info = store.get(name, Command.OPEN_SNAPSHOT)
    store.settle(info)
    with about(info.name):
        entries = committed_log(info.folder)
    if number is not None:
        entries = [entry for entry in entries if entry.number == number]
        if not entries:
            raise NotFound(f"the log of {info.name} has no entry {number}", hint=f"tzfs log {info.name}")
    for entry in entries:
        before, after = (entry.fields.get(field) for field in ("before", "after"))
        if isinstance(before, str) and isinstance(after, str):
            there, _ = store.points(info)
            for snapshot in (before, after):
                if snapshot not in there:
                    raise NotFound(
                        f"entry {entry.number} of {info.name} is no longer kept: snapshot {snapshot} is gone",
                        hint=f"tzfs log {info.name}",
                    )
            return entry, SnapshotName(info.name, before), SnapshotName(info.name, after)
        if number is not None:
            raise _without_ends(info, entry)
    raise NotFound(f"{info.name} has no entry that changed anything", hint=f"tzfs run {info.name} -- COMMAND makes one")


def _without_ends(info: FilesystemInfo, entry: Entry) -> WrongState:
    words, before = "changed nothing", entry.fields.get("before")
    hint = f"tzfs log {info.name}"
    if entry.kind != runs.KIND:
        words = f"is a {entry.kind}, not a command"
    elif "code" not in entry.fields:
        words = "is still running" if runs.running(entry.fields) else "was interrupted"
        if before:
            hint = f"what it did so far: tzfs diff {info.name}@{before}"
    return WrongState(f"entry {entry.number} of {info.name} {words}", hint=hint)


def undo(store: Store, name: Name, number: int | None = None, *, progress: Progress | None = None) -> Undone:
    """Takes back what the last entry that changed something did, or entry `number`; that is an entry itself.

    A snapshot of the state before is taken first.  `WrongState` where something has been changed since that entry: all
    of that would be taken back with it; but where everything is as it was before the entry, that is noted.  `NotFound`,
    `NoSpace`.
    """
    entry, before, after = ends(store, name, number)
    info = store.get(before.filesystem, Command.ROLLBACK)
    since = [*islice(comparing.diff(store, after), SHOWN_MAX + 1)]
    rolled_back = bool(since) and next(iter(comparing.diff(store, before)), None) is None
    if since and not rolled_back:
        paths = [path.path for path in since[:SHOWN_MAX]]
        more = " and more" if len(since) > SHOWN_MAX else ""
        raise WrongState(
            f"cannot undo entry {entry.number} of {info.name}: {', '.join(paths)}{more} changed after it",
            hint=f"tzfs restore {before} PATH brings single files back, tzfs rollback {before} everything",
        )
    safety = after.snapshot
    if not rolled_back:  # else it was, by hand or by an undo that was killed, and is yet to be noted
        safety = time_travel.rollback(store, before, progress=progress).safety or safety
    with store.mounted(info) or nullcontext() as mount:
        if mount is not None:
            answer = mount.call("run.undone", entry=entry.number, before=safety)
            if not isinstance(answer, dict):
                raise MountFailed("the mount did not say what it noted")
            made = int(str(answer["entry"]))
        else:
            with store.writer(info.name, {"kind": "undo"}, Command.ROLLBACK) as writer:
                made, _ = runs.undone(writer.engine, entry.number, safety)
    return Undone(made, entry.number, before.snapshot, safety)


__all__ = ["Ended", "Remembered", "Undone", "count", "ends", "undo"]
