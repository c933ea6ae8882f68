"""Background work after a commit: reclaiming removed chunks, ending orphans of a crash, giving extents back.

Each step is a bounded batch and leaves the filesystem consistent; all of it starts again from the tables after a crash.

- *Reclaim*: chunks in a range of `reclaim` are removed at the range's epoch, a batch at a time.
- *Orphans left by a crash*: nobody refers to them any more; they are buried.
- *More*: whatever else of the engine has such batches to do (`more`: destroyed snapshots, bookmarks).
- *Punch*: extents freed in a group are given back to the disk once that group is durable and no planned read of this
  process may still want them; their rows go with the next commit.  A segment without live extents is unlinked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from tzfs import failpoints, limits
from tzfs.engine import reads
from tzfs.engine.committed import readable_segments
from tzfs.engine.content_rows import ContentRows
from tzfs.engine.head import Head
from tzfs.engine.namespace import Namespace
from tzfs.engine.settling import extent_charge
from tzfs.errors import CorruptionError, TzfsError
from tzfs.format import keys, records
from tzfs.format.keys import ExtentId, Table
from tzfs.store.interface import PayloadStore

failpoints.declare("reclaim.batch", "a batch of removed chunks is about to be freed")
failpoints.declare("punch.extent", "an extent is about to be given back")
failpoints.declare("punch.segment", "a segment without live extents is about to be unlinked")
failpoints.declare("punch.rows", "extents are given back, their rows still there")

PUNCH_BATCH = 4096  # rows of one job


@dataclass(slots=True)
class PunchJob:
    """Holes to be punched, on any thread; `rows` are the keys of `punch` that go when it is done."""

    payload: PayloadStore
    rows: list[bytes]
    holes: list[tuple[int, int]]
    error: Exception | None = None

    @property
    def bytes(self) -> int:
        """What the job gives back."""
        return sum(size for _, size in self.holes)

    def run(self) -> None:
        """Punches; an error is kept for `end_punch`."""
        try:
            for extent, size in self.holes:
                failpoints.hit("punch.extent")
                self.payload.punch(ExtentId(extent), size)
        except (OSError, TzfsError) as error:
            self.error = error


def _merged(holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The holes with neighbours joined: an extent's id is its segment and block, so that ids of neighbours follow."""
    out: list[tuple[int, int]] = []
    for extent, size in sorted(holes):
        if out:
            last, last_size = out[-1]
            if last + last_size // limits.PAGE_BYTES == extent and last >> 32 == extent >> 32:
                out[-1] = (last, last_size + size)
                continue
        out.append((extent, size))
    return out


class Backlog(NamedTuple):
    """What there was to do at some time: to remove, what has an id below `number`; to give back, what was freed in
    transaction groups before `txg`."""

    number: int
    txg: int


EVERYTHING: Final = Backlog(1 << 64, 1 << 64)
ORPHANS: Final = Backlog(0, 0)  # left by a crash: they come before what has an id, and become such


class Work(Protocol):
    """A part of the engine that has something to do in the background, a bounded batch a `step`."""

    @property
    def pending(self) -> bool: ...

    @property
    def oldest(self) -> int:
        """Where something is pending, the id of what `step` is at; 0 where there are none, and nobody adds to it."""
        ...

    def step(self) -> None: ...


class Reclaimer:
    """The background work of a head."""

    def __init__(self, head: Head, rows: ContentRows, namespace: Namespace) -> None:
        self._head, self._rows, self._namespace = head, rows, namespace
        self._crashed_orphans = sorted(head.orphans)
        self.pins: dict[int, int] = {}  # transaction group -> planned reads under way that rely on it
        self._punchable = True
        self.more: list[Work] = []
        self.punched_bytes = 0
        self.reclaimed_chunks = 0
        self.unlinked_segments = 0

    def pin(self) -> int:
        """A planned read begins elsewhere: what is freed from now on stays readable until `unpin` of the answer."""
        txg = self._head.counters.txg
        self.pins[txg] = self.pins.get(txg, 0) + 1
        return txg

    def unpin(self, txg: int) -> None:
        """The planned read is done."""
        self.pins[txg] -= 1
        if not self.pins[txg]:
            del self.pins[txg]

    def committed(self) -> None:
        """A commit has made more extents free to give back."""
        self._punchable = True

    @property
    def pending(self) -> bool:
        """Whether `step` has work it could do now."""
        return self.removing or self._punchable

    @property
    def removing(self) -> bool:
        """Whether `step` has something to remove, which comes before giving extents back."""
        return self._head.staging is None and bool(
            self._crashed_orphans or self._head.reclaims or any(work.pending for work in self.more)
        )

    def backlog(self) -> Backlog:
        """What there is to do now."""
        return Backlog(self._head.counters.next_id, self._head.counters.txg)

    def removes(self, backlog: Backlog) -> bool:
        """Whether `step` has something of the backlog to remove."""
        return self._next(backlog) is not None

    def step(self, backlog: Backlog = EVERYTHING) -> bool:
        """One batch, of that backlog; whether there may be more to do."""
        self._head.check()
        batch = self._next(backlog)
        if batch is None:
            self._give_back(backlog)
        else:
            batch()
        return self.pending

    def _next(self, backlog: Backlog) -> Callable[[], None] | None:
        """What removes a batch; None where nothing of the backlog is left to remove."""
        if self._head.staging is not None:
            return None
        if self._crashed_orphans:
            return self._bury
        if self._head.reclaims and min(self._head.reclaims) < backlog.number:
            return self._reclaim
        return next((work.step for work in self.more if work.pending and work.oldest < backlog.number), None)

    def _bury(self) -> None:
        for ino in self._crashed_orphans[: limits.RECLAIM_BATCH_CHUNKS]:
            self._namespace.forget(ino)
        del self._crashed_orphans[: limits.RECLAIM_BATCH_CHUNKS]

    def _give_back(self, backlog: Backlog) -> None:
        if self._punchable:
            job = self.begin_punch(backlog)
            if job is None:
                self.unlink_dead_segments()
            else:
                job.run()
                self.end_punch(job)

    def _reclaim(self) -> None:
        head = self._head
        number = min(head.reclaims)
        r = head.reclaims[number]
        failpoints.hit("reclaim.batch")
        found = reads.chunk_indexes(head.look, r.data, r.lo, r.hi, limits.RECLAIM_BATCH_CHUNKS)
        head.begin_change()
        self._rows.remove_chunks([keys.chunk(r.data, index) for index in found], r.at)
        head.versions.settle()
        head.reclaims_changed.add(number)
        if len(found) < limits.RECLAIM_BATCH_CHUNKS or found[-1] + 1 == r.hi:
            del head.reclaims[number]
        else:
            head.reclaims[number] = r._replace(lo=found[-1] + 1)
        head.dirty_rows += 4 * len(found)
        self.reclaimed_chunks += len(found)
        head.end_invisible_change()

    # -- giving extents back -----------------------------------------------------------------------------------------

    def begin_punch(self, backlog: Backlog = EVERYTHING) -> PunchJob | None:
        """A batch of what earlier groups freed, adjacent extents as one hole; None where there is nothing of it.

        A hole costs the disk's file system 100 us and more, whatever its size: hence the merging, and the job.
        """
        head = self._head
        head.check()
        free = min(self.pins, default=head.counters.txg)
        horizon = min(free, backlog.txg)
        rows: list[bytes] = []
        holes: list[tuple[int, int]] = []  # (extent, bytes)
        for key, value in head.txn.range(Table.PUNCH, b"", keys.punch(horizon, 0)):
            try:
                (stored,) = records.unpack_plain(Table.PUNCH, key, records.unseal(Table.PUNCH, key, value) or b"")
                holes.append((keys.punch_parts(key)[1], extent_charge(stored)))
            except CorruptionError as error:  # its space comes back with that of its segment
                head.report(f"{error}; no hole is punched for it")
            rows.append(key)
            if len(rows) == PUNCH_BATCH:
                break
        if not rows:
            self._punchable &= horizon < free
            return None
        return PunchJob(head.payload, rows, _merged(holes))

    def end_punch(self, job: PunchJob) -> None:
        """Takes the rows of a finished job out; its error, if it had one, is raised and the rows stay."""
        head = self._head
        head.check()
        if job.error is not None:
            self._punchable = False  # until the next commit: then it is tried again
            raise job.error
        failpoints.hit("punch.rows")
        head.begin_change()
        for key in job.rows:
            head.txn.delete(Table.PUNCH, key)
        head.dirty_rows += len(job.rows) // 8  # neighbours share their pages
        self.punched_bytes += job.bytes
        head.end_invisible_change()

    def unlink_dead_segments(self) -> None:
        """Unlinks segments whose counters are at zero and that nothing waits to be punched in."""
        head = self._head
        if self.pins:
            return
        dead = []
        for key, (extents, size, _) in readable_segments(head.txn):
            number = int.from_bytes(key, "big")
            if extents == size == 0 and number != head.payload.filling:
                dead.append((key, number))
        waiting = head.txn.range(Table.PUNCH, b"", keys.punch(head.counters.txg + 1, 0))  # any other has a damaged key
        if not dead or head.dirty or next(iter(waiting), None) is not None:
            return
        head.begin_change()
        for key, number in dead:
            failpoints.hit("punch.segment")
            head.payload.remove_segment(number)
            head.txn.delete(Table.SEGMENT, key)
            self.unlinked_segments += 1
        head.end_invisible_change()
