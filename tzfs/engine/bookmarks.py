"""Bookmarks: what is left of a snapshot so that later ones can be compared with it after it is gone.

A bookmark is a name for a snapshot's epoch B.  What has changed since B is in `change`, but for what was removed and is
seen by no snapshot: of that the tombstone alone tells, and it is kept while a bookmark is older than it is
(`Versions.oldest_bookmark`).  Making a bookmark changes nothing else.

Dropping the oldest bookmark lets go of the tombstones between it and the next one, or all after it: the commit that
drops it leaves a mark, the row `lone tombstones` of `sys`, that says from which key of `change` on they are to be
looked for; `step` goes on from there, a bounded batch at a time, and after a crash from the last batch committed.  A
bookmark dropped meanwhile takes the mark back to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby, islice
from typing import Final

from tzfs import failpoints, limits
from tzfs.engine.head import Head
from tzfs.engine.snapshots import Snapshots
from tzfs.errors import Exists, NotFound
from tzfs.format import keys, records
from tzfs.format.keys import Table
from tzfs.format.records import Bookmark
from tzfs.store.interface import ReadTransaction

failpoints.declare("bookmark.row", "a bookmark's row is written, not yet committed")
failpoints.declare("bookmark.dropped", "bookmarks' rows are deleted, not yet committed")
failpoints.declare("bookmark.collect", "a batch of tombstones that no bookmark needs is about to be freed")

MARK: Final = b"lone tombstones"  # in `sys`


def read_bookmarks(txn: ReadTransaction) -> dict[str, Bookmark]:
    """All bookmarks by name, that of the oldest snapshot first."""
    found = []
    for key, value in txn.range(Table.BOOKMARK, b""):
        body = records.unseal(Table.BOOKMARK, key, value)
        if body is not None:
            found.append((key.decode(), records.unpack_bookmark(key, body)))
    found.sort(key=lambda pair: pair[1].epoch)
    return dict(found)


def read_mark(txn: ReadTransaction) -> bytes | None:
    """The key of `change` at which lone tombstones are next looked for; None where nobody has to look."""
    value = txn.get(Table.SYS, MARK)
    return None if value is None else records.unseal(Table.SYS, MARK, value)


class Bookmarks:
    """Those of a head.  `commit` as for `Snapshots`; `announce` says in the superblock that there are bookmarks."""

    def __init__(
        self,
        head: Head,
        snapshots: Snapshots,
        commit: Callable[[Callable[[], None]], None],
        announce: Callable[[], None],
    ) -> None:
        self._head, self._snapshots, self._commit, self._announce = head, snapshots, commit, announce
        self._by_name = read_bookmarks(head.txn)
        self._next = read_mark(head.txn)
        self._count()

    def all(self) -> dict[str, Bookmark]:
        """All by name, that of the oldest snapshot first."""
        return dict(sorted(self._by_name.items(), key=lambda pair: pair[1].epoch))

    def create(self, snapshot: str, name: str) -> Bookmark:
        """A bookmark of a snapshot, durable when it returns, under a name that the caller has validated.

        `NotFound`, `Exists`, `NoSpace`.
        """
        head = self._head
        head.check()
        s = self._snapshots.get(snapshot)
        if name in self._by_name:
            raise Exists(f"bookmark {name!r} exists")
        head.admit(limits.PAGE_BYTES)
        made = Bookmark(s.epoch, s.guid, s.created_ns, s.txg)
        key = name.encode()

        def finish() -> None:
            self._announce()
            head.txn.put(Table.BOOKMARK, key, records.seal(Table.BOOKMARK, key, records.pack_bookmark(made)))
            head.note("bookmark", snapshot=snapshot, bookmark=name)
            failpoints.hit("bookmark.row")

        # What the commit itself removes must already know of it.
        self._by_name[name] = made
        self._count()
        self._commit(finish)
        return made

    def destroy(self, names: Iterable[str]) -> None:
        """Drops bookmarks, all or none of them; `NotFound`.  What they kept goes in the background."""
        head, gone = self._head, list(dict.fromkeys(names))
        head.check()
        for name in gone:
            if name not in self._by_name:
                raise NotFound(f"no bookmark {name!r}")
        first = min((self._by_name[name].epoch for name in gone), default=None)
        if first is None:
            return
        begin = keys.u64(first + 1)
        mark = begin if self._next is None else min(begin, self._next)

        def finish() -> None:
            for name in gone:
                head.txn.delete(Table.BOOKMARK, name.encode())
            self._put_mark(mark)
            head.note("destroy", bookmarks=gone)
            failpoints.hit("bookmark.dropped")

        self._commit(finish)
        for name in gone:
            del self._by_name[name]
        self._count()
        self._next = mark

    def _count(self) -> None:
        self._head.versions.oldest_bookmark = min((b.epoch for b in self._by_name.values()), default=None)

    def _put_mark(self, mark: bytes | None) -> None:
        txn = self._head.txn
        if mark is None:
            txn.delete(Table.SYS, MARK)
        else:
            txn.put(Table.SYS, MARK, records.seal(Table.SYS, MARK, mark))

    # -- what dropped bookmarks leave behind -------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether `step` has something to do."""
        return self._next is not None

    @property
    def oldest(self) -> int:
        return 0

    def step(self) -> None:
        """Looks at a batch of `change`, and frees the tombstones in it that are all there is of their key."""
        head = self._head
        head.check()
        if self._next is None:
            return
        failpoints.hit("bookmark.collect")
        versions, oldest = head.versions, head.versions.oldest_bookmark
        end = keys.u64(1 + (head.epoch if oldest is None else min(oldest, head.epoch)))
        batch = [key for key, _ in islice(head.txn.range(Table.CHANGE, self._next, end), limits.TOMBSTONE_BATCH)]
        head.begin_change()
        for (_, table), changed in groupby(map(keys.change_parts, batch), key=lambda parts: parts[:2]):
            versions.collect(table, [prefix for _, _, prefix in changed])
            versions.settle()
        self._next = batch[-1] + b"\0" if len(batch) == limits.TOMBSTONE_BATCH else None
        self._put_mark(self._next)
        head.dirty_rows += 1 + len(batch) // 2  # at most: two rows each of those that go
        head.end_invisible_change()
