"""Getting dirty payload to the disk before anything refers to it.

`begin` freezes what is dirty; the job compresses it, gives it extents, writes and syncs it on any thread, while the
head goes on; `end` turns what is still wanted of it into slices.  A chunk whose extents hold much that is not read any
more is rewritten on the way, where there is room.

Invariants: an extent that a job has taken ends in a slice or in `head.unused_extents`; no more is written than was
accepted, or is reserved beside that.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tzfs import failpoints
from tzfs.engine import slices
from tzfs.engine.buffers import Buffer
from tzfs.engine.chunks import Chunk, Contents, read_into_buffer
from tzfs.engine.compression import OFF, Compression
from tzfs.engine.head import Head
from tzfs.errors import CorruptionError, InternalError, StoreError
from tzfs.format.keys import ExtentId
from tzfs.format.slices import CODEC_RAW, NOWHERE, Slice
from tzfs.limits import KIB, PAGE_BYTES
from tzfs.native import page_sums
from tzfs.native.codecs import Compressor
from tzfs.store.interface import Buffer as Payload
from tzfs.store.interface import PayloadStore

failpoints.declare("flush.write", "a job is about to write payload to its extents")
failpoints.declare("flush.sync", "payload is written and about to be synced")
failpoints.declare("flush.synced", "payload is durable, nothing refers to it yet")

LARGE_BYTES = 64 * KIB  # a piece whose compressing is worth being spared
GIVEN_UP_MAX = 8  # pieces of a file in a row that are not tried: a megabyte at most


@dataclass(slots=True)
class _Entry:
    """A span of a buffer, and what becomes of it: as `encode` leaves it, and `extent` as it is allocated."""

    contents: Contents
    index: int
    chunk: Chunk
    buffer: Buffer
    lo: int
    hi: int
    alone: bool  # it will be all there is of its chunk
    extent: ExtentId | None = field(init=False)  # None where it lies in the chunk's record, as `embedded`
    stored_bytes: int = field(init=False)
    codec: int = field(init=False)
    sums: bytes = field(init=False)
    embedded: bytes = field(init=False)

    def encode(self, compression: Compression, compressor: Compressor) -> Payload:
        """What is to be stored in an extent; nothing where it goes into the chunk's record."""
        raw: Payload = self.buffer.data
        if self.hi - self.lo != len(raw):
            raw = memoryview(raw)[self.lo : self.hi]
        self.extent = None
        self.codec, stored, self.sums, self.embedded = compression.encode(compressor, raw, alone=self.alone)
        self.stored_bytes = len(stored) or len(self.embedded)
        return stored


class _Tried:
    """What has been tried in vain to compress: after each large piece of a file that did not become smaller, twice as
    many as before are stored as they are, up to `GIVEN_UP_MAX`; the next that does ends that."""

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self._contents: Contents | None = None
        self._skip = self._failed = 0  # pieces that are not to be tried; as many after the last failure

    def compression_of(self, e: _Entry) -> Compression:
        if e.contents is not self._contents:
            self._contents, self._skip, self._failed = e.contents, 0, 0
        return OFF if self._skip else self._compression

    def became(self, e: _Entry) -> None:
        if self._skip:
            self._skip -= 1
        elif e.codec == CODEC_RAW and e.stored_bytes >= LARGE_BYTES:
            self._skip = self._failed = min(2 * self._failed or 1, GIVEN_UP_MAX)
        else:
            self._failed = 0


@dataclass(slots=True)
class FlushJob:
    """Frozen buffers on their way to the disk.  The first to call `run` or `wait`, on any thread, does the work."""

    payload: PayloadStore
    compression: Compression
    compressor: Compressor
    entries: list[_Entry]
    bytes: int
    unplaced: int  # bytes on the disk, at most, for which no place has been taken yet
    error: BaseException | None = None
    _running: threading.Lock = field(default_factory=threading.Lock)  # a tenth of an Event, which each fsync would pay
    _begun: threading.Lock = field(default_factory=threading.Lock)  # held from then on

    def __post_init__(self) -> None:
        self._running.acquire()

    @property
    def finished(self) -> bool:
        """Whether `run` is over."""
        return not self._running.locked()

    def wait(self) -> None:
        """Until the work is done, which nobody may have begun: the thread it is for has not started, or never will."""
        self.run()
        with self._running:
            pass

    def run(self, *, sync: bool = True) -> None:
        """Encodes, writes and syncs, unless that has begun; an error is kept for `end`, which fails the head with it.

        Without `sync`, that is left to the commit."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            parts: list[tuple[ExtentId, Payload]] = []
            tried = _Tried(self.compression)
            for e in self.entries:
                stored = e.encode(tried.compression_of(e), self.compressor)
                tried.became(e)
                if stored:
                    e.extent = extent = self.payload.allocate(len(stored))
                    parts.append((extent, stored))
                self.unplaced -= (e.hi - e.lo + PAGE_BYTES - 1) & -PAGE_BYTES
            failpoints.hit("flush.write")
            self.payload.write(parts)
            if sync:
                failpoints.hit("flush.sync")
                self.payload.sync()
                failpoints.hit("flush.synced")
        except BaseException as error:  # whatever it is, the engine's thread must hear of it
            self.error = error
        finally:
            self._running.release()


class Flusher:
    """The flushing of a head, one job at a time: `running` is the one that has begun and not ended."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._compressor = Compressor()
        self.running: FlushJob | None = None

    def begin(self) -> FlushJob | None:
        """Freezes what is dirty, for a job to give it extents; None when nothing is.  One job at a time."""
        if self.running is not None:
            raise InternalError("a flush is running already")
        head, entries, total, on_disk = self._head, [], 0, 0
        room = head.payload.reserved - head.dirty_bytes
        for contents in head.contents.values():
            for index, chunk in contents.chunks.items():
                buffer = chunk.dirty
                if buffer is None:
                    continue
                chunk.dirty = None
                chunk.accepted = 0
                if not buffer.spans:
                    continue
                kept: slices.Slices = ()
                if chunk.slices:
                    kept, taken = self._absorb(contents, chunk, buffer, room)
                    room -= taken
                alone = not kept and len(buffer.spans) == 1
                for lo, hi in buffer.spans:
                    entries.append(_Entry(contents, index, chunk, buffer, lo, hi, alone))
                    total += hi - lo
                on_disk += buffer.disk_bytes
                chunk.flushing = buffer
        head.dirty_bytes = 0
        head.flushed_bytes += on_disk
        if not entries:
            return None
        self.running = FlushJob(head.payload, head.settings.compression, self._compressor, entries, total, on_disk)
        return self.running

    def _absorb(self, contents: Contents, chunk: Chunk, buffer: Buffer, room: int) -> tuple[slices.Slices, int]:
        """What the chunk keeps beside the buffer, if anything.

        Where keeping it is dear and there is `room`, the buffer takes it in, to be written as one extent; then also how
        many more bytes that takes.
        """
        kept = slices.without(chunk.slices, buffer.spans)
        if not kept or not (kept[0].embedded or slices.wasteful(kept)):
            return kept, 0
        if sum((s.length + PAGE_BYTES - 1) & -PAGE_BYTES for s in kept) > room:
            self._move_out(contents, chunk)
            return kept, 0
        try:
            below = read_into_buffer(self._head.payload, kept)
        except (CorruptionError, StoreError):
            self._move_out(contents, chunk)
            return kept, 0  # what cannot be read stays where it is, for whoever reads it to hear of
        before, merged = buffer.disk_bytes, buffer.over(below)
        buffer.data, buffer.spans = merged.data, merged.spans
        return (), buffer.disk_bytes - before

    def _move_out(self, contents: Contents, chunk: Chunk) -> None:
        """What lies in the chunk's record gets an extent, as it is: a record that has it has no room for slices."""
        if not chunk.slices or not chunk.slices[0].embedded:
            return
        head, (s,) = self._head, chunk.slices
        extent = head.payload.allocate(s.stored_bytes)
        head.payload.write([(extent, s.embedded)])
        at, sum_ = head.epoch_of(contents.ino), page_sums(s.embedded)
        chunk.slices = (s._replace(extent=extent, birth=at, sums=sum_, embedded=b""),)
        chunk.fresh[extent] = s.stored_bytes
        chunk.changed = True

    def end(self) -> None:
        """Turns what the job wrote into slices.  A job that failed fails the head: a sync is never tried again."""
        job, self.running = self.running, None
        head = self._head
        if job is None:
            return
        job.wait()
        if job.error is not None:
            head.fail(f"payload could not be made durable: {job.error}")
            raise StoreError(f"payload could not be made durable: {job.error}") from job.error
        for e in job.entries:
            chunk, length = e.chunk, e.hi - e.lo
            hi = min(e.hi, e.buffer.spans[-1][1]) if e.buffer.spans else 0  # less where the file was cut meanwhile
            wanted = (
                hi > e.lo
                and chunk.flushing is e.buffer
                and head.contents.get(e.contents.data) is e.contents
                and e.contents.chunks.get(e.index) is chunk
            )
            if not wanted:
                if e.extent is not None:
                    head.unused_extents.append((e.extent, e.stored_bytes))
                continue
            extent, at = NOWHERE
            if e.extent is not None:
                extent, at = e.extent, head.epoch_of(e.contents.ino)
                chunk.fresh[extent] = e.stored_bytes
            new = Slice(e.lo, length, extent, at, 0, length, e.stored_bytes, e.codec, e.sums, e.embedded)
            chunk.slices = slices.insert(chunk.slices, new if hi == e.hi else slices.narrow(new, e.lo, hi))
            head.compressed |= e.codec != CODEC_RAW
            chunk.changed = True
        for e in job.entries:
            if e.chunk.flushing is e.buffer:
                e.chunk.flushing = None
