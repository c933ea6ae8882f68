"""Two or more moments of one filesystem, as one commit has them: its snapshots and its head, side by side.

A view of the head is only good within one transaction, since its rows are replaced in place; so is that of a snapshot
which may be destroyed meanwhile.  Whoever opens `Moments` sees to it that payload which the commit refers to is not
given back before `close`, and closes soon: pages that are freed meanwhile are not used again.
"""

from __future__ import annotations

from typing import Self

from tzfs.engine.committed import read_counters
from tzfs.engine.snapshots import read_snapshots
from tzfs.engine.view import Tables, View
from tzfs.errors import InvalidArgument, NotFound
from tzfs.format.records import Snapshot
from tzfs.store.interface import PayloadReader, ReadTransaction


class Moments:
    """The views of one commit.  A context manager; to be used by one thread at a time."""

    def __init__(self, meta: Tables, payload: PayloadReader) -> None:
        self._txn = meta.begin_read()
        try:
            self.snapshots: dict[str, Snapshot] = read_snapshots(self._txn)
            counters = read_counters(self._txn)
        except BaseException:
            self._txn.close()
            raise
        self.tables: Tables = _OneTransaction(self._txn)
        self._payload = payload
        self._head = Snapshot(counters.epoch, bytes(16), 0, counters.txg, counters.inodes, counters.bytes)

    def view(self, name: str | None) -> View:
        """A snapshot's tree, or the head's; `NotFound`."""
        if name is None:
            return View(self.tables, self._payload, "", self._head)
        if name not in self.snapshots:
            raise NotFound(f"no snapshot {name!r}")
        return View(self.tables, self._payload, name, self.snapshots[name])

    def ordered(self, older: str, newer: str | None) -> tuple[View, View]:
        """The views of two moments; `InvalidArgument` where the first is not older, `NotFound`."""
        views = self.view(older), self.view(newer)
        check_order(*views)
        return views

    def close(self) -> None:
        self._txn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_order(older: View, newer: View) -> None:
    """`InvalidArgument` where the first snapshot is not older than the second."""
    if older.snapshot.epoch >= newer.snapshot.epoch:
        what = "the same as" if older.name == newer.name else "newer than"
        raise InvalidArgument(
            f"snapshot {older.name!r} is {what} {newer.name!r}", hint="give the older one first: what came after it"
        )


class _OneTransaction:
    """Tables whose transactions are all the same one, which somebody else ends."""

    def __init__(self, txn: ReadTransaction) -> None:
        self._borrowed = _Borrowed(txn)

    def begin_read(self) -> ReadTransaction:
        return self._borrowed


class _Borrowed:
    def __init__(self, txn: ReadTransaction) -> None:
        self.get, self.get_many, self.range = txn.get, txn.get_many, txn.range
        self.seek, self.seek_many = txn.seek, txn.seek_many

    def close(self) -> None:
        pass
