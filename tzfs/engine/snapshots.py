"""The snapshots of one filesystem: their table, and the epochs of those that survive.

`Snapshots` owns the surviving snapshots by name, and with them `versions.snapshots`, by which every version's fate is
decided: whoever makes or removes a snapshot does it here, so that the two agree.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from tzfs import failpoints, limits
from tzfs.engine.head import Head
from tzfs.engine.view import View
from tzfs.errors import Exists, InvalidArgument, NotFound
from tzfs.format import keys, records
from tzfs.format.keys import Epoch, Table
from tzfs.format.log import Field
from tzfs.format.records import Snapshot
from tzfs.store.interface import ReadTransaction

KINDS: Final = "kinds"  # in a snapshot's record: how many files, directories, symlinks and others it has

failpoints.declare("snapshot.row", "a snapshot's row is written, not yet committed")
failpoints.declare("snapshot.rewrite", "the rows of snapshots are written anew, not yet committed")


def read_snapshots(txn: ReadTransaction) -> dict[str, Snapshot]:
    """All snapshots by name, oldest first."""
    found = []
    for key, value in txn.range(Table.SNAPSHOT, b""):
        body = records.unseal(Table.SNAPSHOT, key, value)
        if body is not None:
            found.append((key.decode(), records.unpack_snapshot(key, body)))
    found.sort(key=lambda pair: pair[1].epoch)
    return dict(found)


class Snapshots:
    """Those of a head.  `commit` commits it, calling what it is given when all rows of the group are written."""

    def __init__(self, head: Head, commit: Callable[[Callable[[], None]], None]) -> None:
        self._head, self._commit = head, commit
        self.admit: Callable[[int], None] = lambda number: None  # whether there may be one more: the quotas' say
        self._by_name = read_snapshots(head.txn)
        self._views: dict[int, weakref.WeakSet[View]] = {}  # by epoch: a name may change
        head.versions.snapshots = sorted(s.epoch for s in self._by_name.values())

    def all(self) -> dict[str, Snapshot]:
        """All by name, oldest first."""
        return dict(self._by_name)

    def get(self, name: str) -> Snapshot:
        """The snapshot's record; `NotFound`."""
        found = self._by_name.get(name)
        if found is None:
            raise NotFound(f"no snapshot {name!r}")
        return found

    def view(self, name: str) -> View:
        """The snapshot's tree, read-only, until the snapshot is destroyed; `NotFound`."""
        view = View(self._head.readable, self._head.payload, name, self.get(name))
        self._views.setdefault(view.snapshot.epoch, weakref.WeakSet()).add(view)
        return view

    def create(self, name: str, properties: dict[str, str] | None = None, *, log: bool = True) -> Snapshot:
        """A snapshot of everything answered so far, durable when it returns; its cost does not depend on the size.

        `name` is what follows the `@`; the caller has validated it.  `log`: with an entry in the log.  Raises `Exists`,
        `NoSpace`.
        """
        head = self._head
        head.check()
        key = name.encode()
        if not key or len(key) > limits.SNAPSHOT_NAME_BYTES_MAX:
            raise InvalidArgument(f"a snapshot's name has 1 to {limits.SNAPSHOT_NAME_BYTES_MAX} bytes")
        self.check_new(name)
        head.pace()
        head.reserve(limits.PAGE_BYTES)
        guid, given = os.urandom(16), dict(properties or {})
        records.pack_snapshot(
            Snapshot(head.epoch, guid, 0, 0, 0, 0, given, extra={KINDS: [limits.INO_MAX] * 4})
        )  # too long properties are refused now
        made: list[Snapshot] = []

        def finish() -> None:
            counters = head.counters
            made.append(
                Snapshot(
                    counters.epoch,
                    guid,
                    head.clock(),
                    counters.txg,
                    counters.inodes,
                    counters.bytes,
                    given,
                    extra={KINDS: [counters.files, counters.directories, counters.symlinks, counters.others]},
                )
            )
            head.txn.put(Table.SNAPSHOT, key, records.seal(Table.SNAPSHOT, key, records.pack_snapshot(made[0])))
            counters.epoch = Epoch(counters.epoch + 1)
            if log:
                head.note("snapshot", snapshot=name)
            failpoints.hit("snapshot.row")

        self._commit(finish)
        self._by_name[name] = made[0]
        head.versions.snapshots.append(made[0].epoch)
        return made[0]

    def check_new(self, name: str) -> None:
        """Whether a snapshot may get the name; `Exists`, `QuotaExceeded`."""
        if name in self._by_name:
            raise Exists(f"snapshot {name!r} exists")
        self.admit(len(self._by_name))

    def put(self, name: str, record: Snapshot) -> None:
        """Within a commit in which the head's epoch is the snapshot's: it is over with it."""
        key = name.encode()
        self._head.txn.put(Table.SNAPSHOT, key, records.seal(Table.SNAPSHOT, key, records.pack_snapshot(record)))
        self._head.counters.epoch = Epoch(record.epoch + 1)

    def put_committed(self, name: str, record: Snapshot) -> None:
        """The commit with `put` has happened."""
        self._by_name[name] = record
        self._head.versions.snapshots.append(record.epoch)

    def unchanged(self) -> str | None:
        """The newest snapshot, if nothing has been committed that it does not see; None if something has.

        What was made and removed since then counts for nothing.
        """
        newest = max(self._by_name.items(), key=lambda pair: pair[1].epoch, default=None)
        if newest is None:
            return None
        after = self._head.txn.range(Table.CHANGE, keys.u64(newest[1].epoch + 1), keys.u64(self._head.epoch + 1))
        return newest[0] if next(iter(after), None) is None else None

    def rewrite(self, changes: Mapping[str, tuple[str, Snapshot]], kind: str, /, **fields: Field) -> None:
        """Gives snapshots another record, another name or both, in one commit; epoch and guid stay.

        The new names are free; `kind` and `fields` are what the log says of it.  `LimitReached` where a record does
        not fit into a row: nothing is changed then.
        """
        head = self._head
        head.check()
        rows = {new.encode(): records.pack_snapshot(record) for new, record in changes.values()}
        if not rows:
            return

        def finish() -> None:
            for old in changes:
                head.txn.delete(Table.SNAPSHOT, old.encode())
            for key, body in rows.items():
                head.txn.put(Table.SNAPSHOT, key, records.seal(Table.SNAPSHOT, key, body))
            head.note(kind, **fields)
            failpoints.hit("snapshot.rewrite")

        self._commit(finish)
        renamed = {old: (old, record) for old, record in self._by_name.items()} | dict(changes)
        self._by_name = dict(renamed.values())

    def forget(self, names: Iterable[str]) -> None:
        """These are gone from the tables: they are not seen any more, and their views end."""
        for name in names:
            for view in self._views.pop(self._by_name.pop(name).epoch, ()):
                view.end()
        self._head.versions.snapshots = sorted(s.epoch for s in self._by_name.values())
