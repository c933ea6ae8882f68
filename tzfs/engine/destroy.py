"""Destroying snapshots: their names go at once, what only they saw is freed in the background.

A destroyed snapshot S leaves a row (P, S, N) of `destroy`: P is the next older surviving snapshot, N the next newer or
else the head's epoch at that moment.  What was born in (P, S] and died in (S, N] was seen by S alone: a *rectangle* of
rows of the deadlist, and of cells.  A rectangle only shrinks and needs no cursor: after a crash it begins again with
what is left.

Invariants:
- Rectangles are disjoint, also those of snapshots destroyed together: they are destroyed one after the other.
- Nothing comes into a rectangle once it is queued: no snapshot sees it, so what dies there is freed at once.
- A row of the deadlist that is damaged still says in its key which version it is about: where that died when it says,
  it goes as well.  Of an extent only the row says how large it is, so that one stays, charged as before.
- A row of `destroy` goes when nothing is left in its rectangle, no cell either.  Where something cannot be freed it
  stays, and is tried again by the next writer.
- A version may lie below one that is put or removed, and wait here: `versions.oldest_destroy` says so, or a removal
  would take it for what is newest.

What is freed is known beforehand: the sum of the same cells (`freed_by`), and of extents that have had several
lifetimes, all of which end with it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Final

from tzfs import failpoints, limits
from tzfs.engine.head import Head
from tzfs.engine.snapshots import Snapshots, read_snapshots
from tzfs.engine.versions import version_costs
from tzfs.errors import Busy, CorruptionError, ForeignStore, NotFound
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, ExtentId, Table
from tzfs.format.records import Destroy, Shared, Snapshot
from tzfs.store.interface import ReadTransaction

failpoints.declare("destroy.rows", "the names of destroyed snapshots are removed, not yet committed")
failpoints.declare("destroy.batch", "a batch of what a destroyed snapshot saw is about to be freed")
failpoints.declare("destroy.end", "all that a destroyed snapshot saw is freed, its row still there")

CELL_KEY_BYTES: Final = 16  # death and birth; a key of the deadlist begins with one

Reader = dict[str, str | int | float | None]  # what one says of itself: see `store.lease`
Readers = AbstractContextManager[list[Reader]]


@dataclass(frozen=True, slots=True)
class Destroyed:
    """What destroying snapshots frees: `names`, oldest first, and the bytes charged to them alone."""

    names: tuple[str, ...]
    bytes: int


# -- which rows, and how many bytes ------------------------------------------------------------------------------------


def read_destroys(txn: ReadTransaction) -> dict[int, Destroy]:
    """The destroys under way, by their numbers."""
    found = {}
    for key, value in txn.range(Table.DESTROY, b""):
        body = records.unseal(Table.DESTROY, key, value)
        if body is not None:
            found[int.from_bytes(key, "big")] = Destroy(*records.unpack_plain(Table.DESTROY, key, body))
    return found


def _within(
    txn: ReadTransaction, table: Table, births: tuple[int, int], deaths: tuple[int, int], after: bytes = b""
) -> Iterator[tuple[bytes, bytes]]:
    """The rows of `cell` or `dead` within both, bounds inclusive, that do not come before the key `after`.

    Those that lie between, born too early or too late, are skipped by seeking.
    """
    (lo, hi), (first, last) = births, deaths
    start, stop = max(keys.cell(first, lo), after), keys.after(keys.cell(last, hi))
    while True:
        for key, value in txn.range(table, start, stop):
            if len(key) < CELL_KEY_BYTES:
                continue  # a check will say so
            death, birth = keys.cell_parts(key[:CELL_KEY_BYTES])
            if birth < lo:
                start = keys.cell(death, lo)
            elif birth > hi:
                start = keys.cell(death + 1, lo)
            else:
                yield key, value
                continue
            break
        else:
            return


def _rectangle(d: Destroy) -> tuple[tuple[int, int], tuple[int, int]]:
    """Births and deaths of what was seen by a destroyed snapshot alone, bounds inclusive."""
    return (d.older + 1, d.snapshot), (d.snapshot + 1, d.newer)


def _bytes(key: bytes, value: bytes) -> int:
    """What a cell says."""
    return records.unpack_charged(Table.CELL, key, records.unseal(Table.CELL, key, value) or b"")[0][1]


def freeing(txn: ReadTransaction) -> int:
    """The bytes that destroyed snapshots still hold."""
    destroys = read_destroys(txn).values()
    if not destroys:
        return 0
    total = sum(_bytes(*cell) for d in destroys for cell in _within(txn, Table.CELL, *_rectangle(d)))
    left = sorted(s.epoch for s in read_snapshots(txn).values())
    return total + sum(s.charge for s in _all_shared(txn) if not _kept(s, left))


def _all_shared(txn: ReadTransaction) -> Iterator[Shared]:
    """The extents of several lifetimes, whose cells have nothing of them once none is live."""
    for key, value in txn.range(Table.SHARED, b""):
        body = records.unseal(Table.SHARED, key, value)
        if body is not None:
            yield records.unpack_shared(key, body)


def _sees(epochs: Sequence[int], birth: int, death: int) -> bool:
    """Whether one of the snapshots at `epochs`, which ascend, sees what was there from `birth` to `death`."""
    at = bisect_left(epochs, birth)
    return at < len(epochs) and epochs[at] < death


def _kept(shared: Shared, epochs: Sequence[int]) -> bool:
    """Whether the head or one of the snapshots at `epochs` has the extent."""
    return any(death == LIVE or _sees(epochs, birth, death) for birth, death in shared.lifetimes.items())


def freed_by(txn: ReadTransaction, snapshots: Iterable[Snapshot], names: Iterable[Snapshot], epoch: int) -> int:
    """The bytes that destroying `names` of all `snapshots` would free, to the last; `epoch` is the head's."""
    gone = sorted(s.epoch for s in names)
    left = sorted({s.epoch for s in snapshots} - set(gone))

    total, i = 0, 0
    while i < len(gone):
        at = bisect_left(left, gone[i])
        older, newer = left[at - 1] if at else -1, left[at] if at < len(left) else epoch
        run = gone[i : bisect_right(gone, newer)]
        i += len(run)
        for key, value in _within(txn, Table.CELL, (older + 1, run[-1]), (run[0] + 1, newer)):
            death, birth = keys.cell_parts(key)
            total += _bytes(key, value) if _sees(run, birth, death) else 0
    for shared in _all_shared(txn):
        if any(_sees(gone, b, d) for b, d in shared.lifetimes.items()) and not _kept(shared, left):
            total += shared.charge
    return total


def foreseen(txn: ReadTransaction, names: Iterable[str], epoch: int) -> Destroyed:
    """What destroying these snapshots would free, as the tables stand.  `NotFound`."""
    snapshots = read_snapshots(txn)
    chosen = _chosen(snapshots, names)
    return Destroyed(tuple(chosen), freed_by(txn, snapshots.values(), chosen.values(), epoch))


def _chosen(snapshots: dict[str, Snapshot], names: Iterable[str]) -> dict[str, Snapshot]:
    """Those that are named, oldest first; `NotFound`."""
    wanted = set(names)
    for name in sorted(wanted - snapshots.keys()):
        raise NotFound(f"no snapshot {name!r}")
    return {name: record for name, record in snapshots.items() if name in wanted}


def _words(reader: Reader, snapshot: str) -> str:
    if reader.get("clone"):
        return f"clone {reader['clone']} of @{snapshot}"
    where = f", mounted at {reader['mountpoint']}" if reader.get("mountpoint") else ""
    return f"pid {reader.get('pid', '?')}, reading @{snapshot}{where}"


def check_unused(snapshots: dict[str, Snapshot], readers: Iterable[Reader]) -> None:
    """`Busy` where one of the snapshots is held, or somebody reads it; all that are in the way are named.

    A reader is known by the snapshot's epoch: the name that it gives may be one from before.
    """
    who: list[str] = []
    for name, record in snapshots.items():
        who += [f"hold {tag} on @{name}" for tag in record.holds]
    for reader in readers:
        there = [name for name, record in snapshots.items() if reader.get("epoch") == record.epoch]
        if there or "epoch" not in reader:
            who.append(_words(reader, there[0] if there else "?"))
    if who:
        held = any(record.holds for record in snapshots.values())
        names = ", ".join(f"@{name}" for name in snapshots)
        hint = "release the holds first" if held else "unmount it, or wait for that process to end"
        raise Busy(f"cannot destroy {names}: in use by {'; '.join(who)}", holders=who, hint=hint)


# -- destroying --------------------------------------------------------------------------------------------------------


class Destroyer:
    """The destroys of a head: `destroy` queues them, `step` frees a batch.

    `readers` says who reads snapshots, and sees to it that nobody begins to while its context lasts.
    """

    def __init__(self, head: Head, snapshots: Snapshots, commit: Callable[[Callable[[], None]], None]) -> None:
        self._head, self._snapshots, self._commit = head, snapshots, commit
        self._queue = read_destroys(head.txn)
        self._left: list[Destroy] = []  # those of which something cannot be freed
        self._reached = b""  # of the oldest in the queue: nothing can be freed before this key of the deadlist
        self.readers: Callable[[], Readers] = lambda: nullcontext([])
        self.freed_rows = 0
        self._tell_versions()

    @property
    def pending(self) -> bool:
        """Whether `step` has something to free."""
        return bool(self._queue)

    @property
    def oldest(self) -> int:
        """The id of the destroy that `step` is at."""
        return min(self._queue, default=0)

    def freeing(self) -> int:
        """The bytes that are still to be freed; 0 where that cannot be summed."""
        try:
            return freeing(self._head.txn) if self._queue else 0
        except CorruptionError:
            return 0

    def users(self) -> dict[str, list[str]]:
        """Who reads which snapshots just now, in words, by the snapshots' names; who does not say which reads all."""
        found: dict[str, list[str]] = {}
        with self.readers() as readers:
            for reader in readers:
                for name, record in self._snapshots.all().items():
                    if reader.get("epoch", record.epoch) == record.epoch:
                        found.setdefault(name, []).append(_words(reader, name))
        return found

    def foresee(self, names: Iterable[str]) -> Destroyed:
        """What `destroy` would free, and whatever it would raise; what was answered is committed, or is not counted."""
        head = self._head
        head.check()
        chosen = _chosen(self._snapshots.all(), names)
        with self.readers() as readers:
            check_unused(chosen, [reader for reader in readers if not reader.get("clone")])  # which may go first
        return foreseen(head.txn, chosen, head.epoch)

    def destroy(self, names: Iterable[str], *, log: bool = True) -> Destroyed:
        """Destroys snapshots of the filesystem, all of them or none; durable when it returns.  `log`: with an entry.

        `NotFound`, `Busy` naming who holds or reads one, or during a rollback.
        """
        self._head.check()
        self._head.pace()
        answer: list[Destroyed] = []
        with self.unused(names) as chosen:
            if not chosen:
                return Destroyed((), 0)
            self._commit(lambda: answer.append(self.put(chosen, log=log)))
        self.gone(chosen)
        return answer[0]

    @contextmanager
    def unused(self, names: Iterable[str]) -> Iterator[dict[str, Snapshot]]:
        """These snapshots, while nobody can begin to use one of them; `NotFound`, `Busy`."""
        chosen = _chosen(self._snapshots.all(), names)
        if not chosen:
            yield chosen
            return
        with self.readers() as readers:
            check_unused(chosen, readers)
            yield chosen

    def put(self, chosen: dict[str, Snapshot], *, log: bool = True) -> Destroyed:
        """Within a commit: their names go, and what they alone see is queued."""
        head, snapshots = self._head, self._snapshots.all()
        try:
            size = freed_by(head.txn, snapshots.values(), chosen.values(), head.epoch)
        except CorruptionError as error:  # only the figure is lost
            head.report(f"{error}; how much is freed is not known")
            size = 0
        left = sorted(s.epoch for s in snapshots.values())
        for name, record in chosen.items():
            at = left.index(record.epoch)
            older = left[at - 1] if at else -1
            newer = left[at + 1] if at + 1 < len(left) else head.epoch
            del left[at]
            head.txn.delete(Table.SNAPSHOT, name.encode())
            self.queue(Destroy(older, record.epoch, newer))
        if log:
            head.note("destroy", snapshots=[*chosen], bytes=size)
        failpoints.hit("destroy.rows")
        return Destroyed(tuple(chosen), size)

    def gone(self, chosen: Iterable[str]) -> None:
        """The commit with `put` has happened."""
        self._snapshots.forget(chosen)
        self._tell_versions()

    def queue(self, destroy: Destroy) -> None:
        """A rectangle more; within a commit, whose caller has taken the snapshot out of the way."""
        head = self._head
        number = head.counters.next_id
        head.counters.next_id += 1
        key = keys.destroy(number)
        head.txn.put(Table.DESTROY, key, records.seal(Table.DESTROY, key, records.pack_plain(Table.DESTROY, *destroy)))
        self._queue[number] = destroy
        self._tell_versions()

    def _tell_versions(self) -> None:
        under_way = [d.snapshot for d in (*self._queue.values(), *self._left)]
        self._head.versions.oldest_destroy = min(under_way, default=None)

    def step(self) -> None:
        """Frees a batch of the oldest destroy."""
        head = self._head
        head.pace()
        number = min(self._queue)
        failpoints.hit("destroy.batch")
        batch = self._batch(number)
        found = [dead for key, value in batch if (dead := self._read(key, value)) is not None]
        head.begin_change()
        versions, txg = head.versions, head.counters.txg
        rows: dict[Table, list[bytes]] = {}
        for death, birth, table, prefix, charge, saved in found:
            if table is Table.EXTENT:
                extent = ExtentId(int.from_bytes(prefix, "big"))
                versions.dead_extent_freed(extent, birth, death, txg, charge=charge, saved=saved)
            else:
                versions.dead_version_freed(table, prefix, birth, death, charge=charge, saved=saved)
                rows.setdefault(table, []).append(prefix)
        versions.settle()
        for table, prefixes in rows.items():
            versions.collect(table, sorted(set(prefixes)))
        versions.settle()
        self.freed_rows += len(found)
        head.dirty_rows += 3 * len(found)
        if len(batch) < limits.DESTROY_BATCH_ROWS:
            failpoints.hit("destroy.end")
            self._end(number)
        head.end_invisible_change()

    def _end(self, number: int) -> None:
        """Nothing more can be freed of a destroy."""
        destroy, txn = self._queue.pop(number), self._head.txn
        rectangle = _rectangle(destroy)
        if any(True for table in (Table.DEAD, Table.CELL) for _ in _within(txn, table, *rectangle)):
            self._left.append(destroy)
        else:
            txn.delete(Table.DESTROY, keys.destroy(number))
        self._reached = b""
        self._tell_versions()

    def _read(self, key: bytes, value: bytes) -> tuple[int, int, Table, bytes, int, int] | None:
        """What a row of the deadlist says: death, birth, table, prefix, charge and saved.

        None of one that is damaged and stays, which is reported; see the module's text.
        """
        head = self._head
        try:
            death, birth, table, prefix = keys.dead_parts(key)
            try:
                body = records.unseal(Table.DEAD, key, value) or b""
                (charge,), saved = records.unpack_charged(Table.DEAD, key, body)
            except CorruptionError:
                if table not in keys.VERSIONED:
                    raise
                version, newer = head.txn.seek(table, prefix, death - 1), head.txn.seek(table, prefix, death)
                if version is None or version[0] != birth or newer is None or newer[0] != death:
                    raise  # for all we know it is the key that is damaged
                charge, saved = version_costs(table, prefix, version[1])
        except (CorruptionError, ForeignStore) as error:
            head.report(f"{error}; what it is about is not given back")
            return None
        return death, birth, table, prefix, charge, saved

    def _batch(self, number: int) -> list[tuple[bytes, bytes]]:
        """Rows of the deadlist that are in the rectangle; fewer than a batch are the last."""
        rows = _within(self._head.txn, Table.DEAD, *_rectangle(self._queue[number]), self._reached)
        found = list(islice(rows, limits.DESTROY_BATCH_ROWS))
        if found:
            self._reached = found[-1][0] + b"\0"
        return found
