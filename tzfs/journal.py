"""What was done to a filesystem, mounted or not: the entries of its own log and the store's of it, by time.

    for entry in journal.log(store, "ws"): ...

The filesystem's log (`engine/journal.py`) has commands that were run in it, snapshots, holds, rollbacks; the store's
(`catalog_log`) its creation, names, properties and destruction.  Both are bounded: the oldest entries go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tzfs import runs
from tzfs.access import Name
from tzfs.catalog import FilesystemInfo
from tzfs.errors import OnFailure, about
from tzfs.format.log import Entry, Field, Fields
from tzfs.lifecycle import State
from tzfs.management import Store
from tzfs.opening import committed_log


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry: what was done to `filesystem`, a name, or a scope such as `/`; `number` in its own log, else None."""

    filesystem: str
    number: int | None
    time_ns: int
    kind: str
    fields: Fields

    def to_json(self) -> dict[str, Field]:
        """One JSON object, as `tzfs log --json` and `tzfs events --json` have it."""
        own: dict[str, Field] = {
            "filesystem": self.filesystem, "entry": self.number, "time_ns": self.time_ns, "kind": self.kind
        }  # fmt: skip
        return own | dict(self.fields)


def log(
    store: Store,
    name: Name | None = None,
    *,
    limit: int | None = None,
    on_failure: OnFailure = lambda error: None,
) -> list[Logged]:
    """What was done to a filesystem, or without a name to all there are, and were; oldest first, at most the last
    `limit` entries.

    Of a mounted one with what the mount has in memory.  `NotFound`.  Of all, one that cannot be read is left out, and
    why is given to `on_failure`.
    """
    infos = store.filesystems(on_damage=on_failure) if name is None else [store.get(name)]
    found: list[Logged] = []
    for info in infos:
        with store.passing_over(info, on_failure if name is None else None):
            found += of_filesystem(store, info, limit=limit)
    of_store = store.catalog.log() if name is None else store.catalog.log(infos[0])
    found += [from_store(entry) for entry in of_store]
    found.sort(key=lambda logged: logged.time_ns)
    return found if limit is None else found[len(found) - min(limit, len(found)) :]


def of_filesystem(store: Store, info: FilesystemInfo, *, limit: int | None = None) -> Iterator[Logged]:
    """The entries of the filesystem's own log, oldest first."""
    if info.state in (State.CREATING, State.DELETING):
        return
    store.settle(info)
    with about(info.name):
        entries = committed_log(info.folder, limit)
    for entry in reversed(entries):
        if entry.kind == runs.KIND and "code" not in entry.fields:
            state = "running" if runs.running(entry.fields) else "interrupted"
            entry = replace(entry, fields={**entry.fields, "state": state})
        yield logged(str(info.name), entry)


def logged(filesystem: str, entry: Entry) -> Logged:
    """An entry of a filesystem's log."""
    return Logged(filesystem, entry.number, entry.time_ns, entry.kind, entry.fields)


def from_store(entry: Entry) -> Logged:
    """An entry of the store's log."""
    fields = {k: v for k, v in entry.fields.items() if k not in ("filesystem", "guid") and v not in (None, {})}
    return Logged(str(entry.fields.get("filesystem")), None, entry.time_ns, entry.kind, fields)
