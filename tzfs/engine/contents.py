"""File contents: inline bytes, chunks of slices, and what was written to them since the last commit.

A regular file or symlink hangs its contents on a data id.  While it has never been larger than `INLINE_BYTES_MAX` they
are one row of `inline`, and the inode says so (`FLAG_INLINE`); after that they are chunks, until truncation to nothing
gives the file a new data id.  A written chunk passes through three layers, each read above the one before it:

    slices (in extents)  <-  flushing (frozen, being written by a job)  <-  dirty (written since)

`begin_flush` freezes what is dirty and gives it extents; the job writes, sums and syncs them on any thread; `end_flush`
turns what is still wanted of it into slices.  Nothing refers to an extent before the job has synced it.

Invariants: slices and buffers never reach beyond the file's size; a `Contents` is in `head.contents` exactly while it
may differ from its rows; an extent given to a job ends in a slice or in `head.unused_extents`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tzfs import failpoints, limits
from tzfs.engine import reads, slices
from tzfs.engine.buffers import Buffer
from tzfs.engine.head import S_IFDIR, S_IFMT, S_IFREG, Drop, Head
from tzfs.engine.reads import ReadPlan
from tzfs.errors import CorruptionError, FileTooBig, InternalError, InvalidArgument, IsADirectory, StoreError
from tzfs.format import keys, records
from tzfs.format.keys import DataId, Epoch, ExtentId, Ino, Table
from tzfs.format.records import CODEC_RAW, FLAG_INLINE, Inode, Reclaim, Slice
from tzfs.native import page_sums
from tzfs.store.interface import PayloadStore

failpoints.declare("flush.write", "a job is about to write payload to its extents")
failpoints.declare("flush.sync", "payload is written and about to be synced")
failpoints.declare("flush.synced", "payload is durable, nothing refers to it yet")

CHUNK_INDEX_MAX = 1 << 52  # above every chunk of the largest file


class Chunk:
    """One chunk with its layers.  `base` is what its newest row says, `fresh` the extents written since."""

    __slots__ = ("base", "changed", "dirty", "flushing", "fresh", "slices")

    def __init__(self, base: slices.Slices) -> None:
        self.base = base
        self.slices = base
        self.changed = False
        self.dirty: Buffer | None = None
        self.flushing: Buffer | None = None
        self.fresh: dict[ExtentId, int] = {}


class Contents:
    """The changed contents of one data id.  `inline` is None where they are not, or not yet, held as inline bytes."""

    __slots__ = ("chunks", "data", "inline", "inline_changed", "ino")

    def __init__(self, ino: Ino, data: DataId) -> None:
        self.ino, self.data = ino, data
        self.inline: bytearray | None = None
        self.inline_changed = False
        self.chunks: dict[int, Chunk] = {}


@dataclass(slots=True)
class _Entry:
    contents: Contents
    index: int
    chunk: Chunk
    buffer: Buffer
    lo: int
    hi: int
    extent: ExtentId
    sums: bytes = b""


@dataclass(slots=True)
class FlushJob:
    """Frozen buffers on their way to the disk.  `run` may be called on any thread, once; `done` is set when it ends."""

    payload: PayloadStore
    entries: list[_Entry]
    bytes: int
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def run(self) -> None:
        """Sums, writes and syncs; an error is kept for `end_flush`, which fails the head with it."""
        try:
            parts: list[tuple[ExtentId, memoryview]] = []
            for e in self.entries:
                view = memoryview(e.buffer.data)[e.lo : e.hi]
                e.sums = page_sums(view)
                parts.append((e.extent, view))
            failpoints.hit("flush.write")
            self.payload.write(parts)
            failpoints.hit("flush.sync")
            self.payload.sync()
            failpoints.hit("flush.synced")
        except BaseException as error:  # whatever it is, the engine's thread must hear of it
            self.error = error
        finally:
            self.done.set()


class ContentsTable:
    """All contents of a head."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self.running: FlushJob | None = None

    # -- reading ---------------------------------------------------------------------------------------------------

    def plan_read(self, ino: int, offset: int, size: int) -> ReadPlan:
        """A plan for at most `size` bytes from `offset`; less at the end of the file.  Changes nothing."""
        head = self._head
        head.check()
        inode = head.inode(ino)
        if inode.mode & S_IFMT == S_IFDIR:
            raise IsADirectory(f"inode {ino} is a directory")
        if offset < 0 or size < 0:
            raise InvalidArgument("offset and size must not be negative")
        return self.plan(inode, offset, size)

    def plan(self, inode: Inode, offset: int, size: int) -> ReadPlan:
        """`plan_read` of an inode at hand."""
        head = self._head
        size = max(0, min(size, inode.size - offset))
        plan = ReadPlan(head.payload, size)
        if size == 0:
            return plan
        contents = head.contents.get(inode.data)
        if inode.flags & FLAG_INLINE:
            raw = self._inline(inode, contents)
            plan.add_bytes(0, bytes(raw[offset : offset + size]))
            return plan
        at, shift = head.epoch_of(inode.ino), inode.chunk_shift
        for index in range(offset >> shift, (offset + size - 1 >> shift) + 1):
            start = index << shift
            lo, hi = max(offset - start, 0), min(offset + size - start, 1 << shift)
            chunk = contents.chunks.get(index) if contents else None
            if chunk is None:
                if inode.data < head.first_data:
                    found = reads.slices_at(head.txn, inode.data, index, at, head.reclaims.values())
                    plan.add_slices(start - offset, found, lo, hi)
                continue
            plan.add_slices(start - offset, chunk.slices, lo, hi)
            for buffer in (chunk.flushing, chunk.dirty):
                if buffer is not None:
                    for o, data in buffer.within(lo, hi):
                        plan.add_bytes(start - offset + o, data)
        return plan

    def _inline(self, inode: Inode, contents: Contents | None) -> bytes | bytearray:
        if contents is not None and contents.inline is not None:
            return contents.inline
        if inode.data >= self._head.first_data or inode.size == 0:
            return b""
        prefix = keys.inline(inode.data)
        return reads.body_at(self._head.txn, Table.INLINE, prefix, self._head.epoch_of(inode.ino)) or b""

    # -- writing ---------------------------------------------------------------------------------------------------

    def _open(self, inode: Inode) -> Contents:
        contents = self._head.contents.get(inode.data)
        if contents is None:
            contents = self._head.contents[inode.data] = Contents(inode.ino, inode.data)
        return contents

    def _chunk(self, inode: Inode, contents: Contents, index: int) -> Chunk:
        chunk = contents.chunks.get(index)
        if chunk is None:
            base: slices.Slices = ()
            head = self._head
            if inode.data < head.first_data:
                at = head.epoch_of(inode.ino)
                base = reads.slices_at(head.txn, inode.data, index, at, head.reclaims.values())
            chunk = contents.chunks[index] = Chunk(base)
        return chunk

    def write(self, ino: int, offset: int, payload: bytes | bytearray | memoryview) -> int:
        """Writes all of `payload` at `offset`; the number of bytes.

        Raises `IsADirectory`, `InvalidArgument` (not a regular file), `FileTooBig`, `NoSpace`, `Stale`.
        """
        head = self._head
        head.check()
        inode = head.inode(ino)
        kind = inode.mode & S_IFMT
        if kind != S_IFREG:
            if kind == S_IFDIR:
                raise IsADirectory(f"inode {ino} is a directory")
            raise InvalidArgument(f"inode {ino} is not a regular file")
        size = len(payload)
        if offset < 0 or offset + size > limits.FILE_BYTES_MAX:
            raise FileTooBig(f"a file may have {limits.FILE_BYTES_MAX} bytes, this write ends at {offset + size}")
        if size == 0:
            return 0
        head.admit(size + limits.PAGE_BYTES)
        prepared = self._prepare(inode, offset, size)
        head.begin_change()
        self._apply(inode, prepared, offset, payload)
        now = head.clock()
        inode.mtime_ns = inode.ctime_ns = now
        if offset + size > inode.size:
            inode.size = offset + size
        head.touch(inode)
        head.end_change()
        return size

    def write_new(self, inode: Inode, payload: bytes) -> None:
        """The contents of an inode that has just been made; within the caller's frame."""
        contents = self._open(inode)
        contents.inline = bytearray()
        self._apply(inode, contents, 0, payload)
        inode.size = len(payload)

    def _prepare(self, inode: Inode, offset: int, size: int) -> Contents:
        """Loads all that writing [offset, offset + size) will change, so that `_apply` cannot fail."""
        contents = self._open(inode)
        if inode.flags & FLAG_INLINE:
            if contents.inline is None:
                contents.inline = bytearray(self._inline(inode, None))
        else:
            shift = inode.chunk_shift
            for index in range(offset >> shift, (offset + size - 1 >> shift) + 1):
                self._chunk(inode, contents, index)
        return contents

    def _apply(self, inode: Inode, contents: Contents, offset: int, payload: bytes | bytearray | memoryview) -> None:
        end = offset + len(payload)
        if inode.flags & FLAG_INLINE:
            if max(end, inode.size) <= limits.INLINE_BYTES_MAX:
                inline = contents.inline
                assert inline is not None
                if end > len(inline):
                    inline.extend(bytes(end - len(inline)))
                inline[offset:end] = payload
                self._inline_changed(contents)
                return
            self._to_chunks(inode, contents)
        shift, view, done = inode.chunk_shift, memoryview(payload), 0
        while offset < end:
            index = offset >> shift
            begin = offset - (index << shift)
            n = min(end - offset, (1 << shift) - begin)
            self._write_chunk(self._chunk_for_new(contents, index), begin, view[done : done + n])
            offset, done = offset + n, done + n

    def _inline_changed(self, contents: Contents) -> None:
        if not contents.inline_changed:
            contents.inline_changed = True
            self._head.dirty_rows += 4  # the row takes a page of its own

    @staticmethod
    def _chunk_for_new(contents: Contents, index: int) -> Chunk:
        """The chunk, which `_prepare` has loaded unless the file was inline, and so has no rows of chunks."""
        chunk = contents.chunks.get(index)
        if chunk is None:
            chunk = contents.chunks[index] = Chunk(())
        return chunk

    def _write_chunk(self, chunk: Chunk, begin: int, payload: memoryview) -> None:
        buffer = chunk.dirty
        if buffer is None:
            buffer = chunk.dirty = Buffer()
            self._head.dirty_rows += 2
            before = 0
        else:
            before = buffer.disk_bytes
        buffer.write(begin, payload)
        self._head.dirty_bytes += buffer.disk_bytes - before

    def _to_chunks(self, inode: Inode, contents: Contents) -> None:
        """An inline file has outgrown its row: its bytes become the beginning of chunk 0 and on."""
        inline = contents.inline
        assert inline is not None
        contents.inline = None
        contents.inline_changed = True
        inode.flags &= ~FLAG_INLINE
        shift = inode.chunk_shift
        for start in range(0, len(inline), 1 << shift):
            part = memoryview(inline)[start : start + (1 << shift)]
            self._write_chunk(self._chunk_for_new(contents, start >> shift), 0, part)

    # -- truncation --------------------------------------------------------------------------------------------------

    def truncate(self, inode: Inode, size: int) -> None:
        """Sets the size of a regular file; the caller frames the change and sets the times.

        Loads before it changes: call `prepare_truncate` first, outside the frame.
        """
        head = self._head
        if inode.flags & FLAG_INLINE:
            contents = head.contents[inode.data]
            inline = contents.inline
            assert inline is not None
            if size <= limits.INLINE_BYTES_MAX:
                del inline[size:]
                self._inline_changed(contents)
            else:
                self._to_chunks(inode, contents)
        elif size == 0 and inode.size:
            self.drop(inode, head.epoch_of(inode.ino))
            inode.data = head.new_data()
            inode.flags |= FLAG_INLINE
        elif size < inode.size:
            self._shrink(inode, size)
        inode.size = size
        head.touch(inode)

    def prepare_truncate(self, inode: Inode, size: int) -> None:
        """Loads all that `truncate` will change."""
        head = self._head
        if inode.flags & FLAG_INLINE:
            self._prepare(inode, 0, 0)
        elif 0 < size < inode.size:
            contents, shift = self._open(inode), inode.chunk_shift
            if size & ((1 << shift) - 1):
                self._chunk(inode, contents, size >> shift)
            lo = (size + (1 << shift) - 1) >> shift
            for index in self._stored(inode.data, lo) or ():
                self._chunk(inode, contents, index)
                head.dirty_rows += 2

    def _stored(self, data: DataId, lo: int) -> list[int] | None:
        """Chunk indexes from `lo` on that have rows and are not being reclaimed; None for too many to remove at
        once."""
        head = self._head
        if data >= head.first_data:
            return []
        found = reads.chunk_indexes(head.txn, data, lo, CHUNK_INDEX_MAX, limits.RECLAIM_AT_ONCE_CHUNKS + 1)
        if len(found) > limits.RECLAIM_AT_ONCE_CHUNKS:
            return None
        reclaims = head.reclaims.values()
        return [i for i in found if not reads.masked(reclaims, data, i, keys.EPOCH_MAX)]

    def _shrink(self, inode: Inode, size: int) -> None:
        head, shift = self._head, inode.chunk_shift
        contents = head.contents[inode.data]
        lo = (size + (1 << shift) - 1) >> shift
        many = self._stored(inode.data, lo) is None
        for index in [i for i in contents.chunks if i >= lo]:
            chunk = contents.chunks[index]
            self._discard_buffers(chunk)
            if many:
                self._discard_extents(chunk)
                del contents.chunks[index]
            else:
                chunk.slices, chunk.changed = (), True
        if many:
            self.add_reclaim(inode.data, lo, CHUNK_INDEX_MAX, head.epoch_of(inode.ino))
        begin = size & ((1 << shift) - 1)
        if begin:
            chunk = contents.chunks[size >> shift]
            kept = tuple(slices.cut(chunk.slices, begin, 1 << shift))
            if kept != chunk.slices:
                chunk.slices, chunk.changed = kept, True
            before = chunk.dirty.disk_bytes if chunk.dirty is not None else 0
            if chunk.flushing is not None:  # its job goes on; what it writes will not be wanted
                chunk.dirty = (chunk.dirty or Buffer()).over(chunk.flushing)
                chunk.flushing = None
            if chunk.dirty is not None:
                chunk.dirty.truncate(begin)
                head.dirty_bytes += chunk.dirty.disk_bytes - before

    def add_reclaim(self, data: DataId, lo: int, hi: int, at: Epoch) -> None:
        """Chunks [lo, hi) are gone from `at` on and will be removed in the background; ranges never overlap."""
        for r in sorted(r for r in self._head.reclaims.values() if r.data == data and r.hi > lo):
            if lo < r.lo:
                self._add_range(Reclaim(data, lo, min(r.lo, hi), at))
            lo = r.hi
        if lo < hi:
            self._add_range(Reclaim(data, lo, hi, at))

    def _add_range(self, r: Reclaim) -> None:
        head = self._head
        number = head.counters.next_id
        head.counters.next_id += 1
        head.reclaims[number] = r
        head.reclaims_changed.add(number)

    def drop(self, inode: Inode, at: Epoch) -> None:
        """All contents of the inode's data id are gone from `at` on."""
        head = self._head
        contents = head.contents.pop(inode.data, None)
        if contents is not None:
            for chunk in contents.chunks.values():
                self._discard_buffers(chunk)
                self._discard_extents(chunk)
        if inode.data >= head.first_data:
            return
        inline, hi = True, CHUNK_INDEX_MAX
        if contents is None:  # its rows are as the inode says
            inline = bool(inode.flags & FLAG_INLINE)
            hi = 0 if inline else (inode.size + (1 << inode.chunk_shift) - 1) >> inode.chunk_shift
        if inode.size or contents is not None:
            head.drops.append(Drop(inode.data, at, hi=hi, inline=inline))
            head.dirty_rows += 2

    def _discard_buffers(self, chunk: Chunk) -> None:
        if chunk.dirty is not None:
            self._head.dirty_bytes -= chunk.dirty.disk_bytes
        chunk.dirty = chunk.flushing = None

    def _discard_extents(self, chunk: Chunk) -> None:
        self._head.unused_extents.extend(chunk.fresh.items())
        chunk.fresh.clear()

    # -- flushing ----------------------------------------------------------------------------------------------------

    def begin_flush(self) -> FlushJob | None:
        """Freezes what is dirty and gives it extents; None when nothing is.  One job at a time."""
        if self.running is not None:
            raise InternalError("a flush is running already")
        head, entries, total = self._head, [], 0
        for contents in head.contents.values():
            for index, chunk in contents.chunks.items():
                buffer = chunk.dirty
                if buffer is None:
                    continue
                chunk.dirty = None
                if not buffer.spans:
                    continue
                self._absorb(chunk, buffer)
                for lo, hi in buffer.spans:
                    extent = head.payload.allocate(hi - lo)
                    entries.append(_Entry(contents, index, chunk, buffer, lo, hi, extent))
                    total += hi - lo
                chunk.flushing = buffer
        head.dirty_bytes = 0
        if not entries:
            return None
        self.running = FlushJob(head.payload, entries, total)
        return self.running

    def _absorb(self, chunk: Chunk, buffer: Buffer) -> None:
        """Where the chunk has become fragmented, takes what it keeps into the buffer, to be written as one extent."""
        kept: list[Slice] = list(chunk.slices)
        for lo, hi in buffer.spans:
            kept = slices.cut(tuple(kept), lo, hi)
        if not kept or not slices.fragmented(tuple(kept), len(buffer.spans)):
            return
        plan = ReadPlan(self._head.payload, max(s.offset + s.length for s in kept))
        plan.add_slices(0, kept, 0, plan.size)
        try:
            old = plan.execute()
        except (CorruptionError, StoreError):
            return  # what cannot be read stays where it is, for whoever reads it to hear of
        below = Buffer()
        for s in kept:
            below.write(s.offset, old[s.offset : s.offset + s.length])
        merged = buffer.over(below)
        buffer.data, buffer.spans = merged.data, merged.spans

    def end_flush(self) -> None:
        """Turns what the job wrote into slices.  A job that failed fails the head: a sync is never tried again."""
        job, self.running = self.running, None
        head = self._head
        if job is None:
            return
        job.done.wait()
        if job.error is not None:
            head.fail(f"payload could not be made durable: {job.error}")
            raise StoreError(f"payload could not be made durable: {job.error}") from job.error
        for e in job.entries:
            chunk, length = e.chunk, e.hi - e.lo
            wanted = (
                chunk.flushing is e.buffer
                and head.contents.get(e.contents.data) is e.contents
                and e.contents.chunks.get(e.index) is chunk
            )
            if not wanted:
                head.unused_extents.append((e.extent, length))
                continue
            at = head.epoch_of(e.contents.ino)
            new = Slice(e.lo, length, e.extent, at, 0, length, length, CODEC_RAW, e.sums)
            chunk.slices = slices.insert(chunk.slices, new)
            chunk.fresh[e.extent] = length
            chunk.changed = True
        for e in job.entries:
            if e.chunk.flushing is e.buffer:
                e.chunk.flushing = None

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Turns all changed contents into rows of the transaction.  Every buffer must have been flushed."""
        head = self._head
        versions, txg = head.versions, head.counters.txg
        for drop in head.drops:
            self._publish_drop(drop)
        for data in sorted(head.contents):
            contents = head.contents[data]
            at, fresh = head.epoch_of(contents.ino), data >= head.first_data
            if contents.inline_changed:
                if contents.inline:
                    versions.put(Table.INLINE, keys.inline(data), bytes(contents.inline), at, fresh=fresh)
                elif not fresh:
                    versions.remove(Table.INLINE, keys.inline(data), at)
            for index in sorted(contents.chunks):
                chunk = contents.chunks[index]
                if chunk.dirty is not None or chunk.flushing is not None:
                    raise InternalError(f"chunk {index} of data {data} was not flushed before publishing")
                if chunk.changed:
                    self._publish_chunk(contents.data, index, chunk, at, fresh=fresh)
        for extent, stored in head.unused_extents:
            versions.punch(ExtentId(extent), stored, txg)
        for number in head.reclaims_changed:
            key = keys.reclaim(number)
            r = head.reclaims.get(number)
            if r is None:
                head.txn.delete(Table.RECLAIM, key)
            else:
                body = records.pack_plain(Table.RECLAIM, *r)
                head.txn.put(Table.RECLAIM, key, records.seal(Table.RECLAIM, key, body))
        head.contents.clear()
        head.drops.clear()
        head.unused_extents.clear()
        head.reclaims_changed.clear()

    def _publish_chunk(self, data: DataId, index: int, chunk: Chunk, at: Epoch, *, fresh: bool) -> None:
        head = self._head
        versions, txg = head.versions, head.counters.txg
        if not fresh:
            self._finish(data, index)
        old, new = slices.extents(chunk.base), slices.extents(chunk.slices)
        prefix = keys.chunk(data, index)
        if chunk.slices:
            versions.put(Table.CHUNK, prefix, records.pack_slices(chunk.slices), at, fresh=fresh)
        elif not fresh:
            versions.remove(Table.CHUNK, prefix, at)
        for (extent, birth), stored in new.items():
            if (extent, birth) not in old:
                versions.extent_born(extent, birth, stored)
        for (extent, birth), stored in old.items():
            if (extent, birth) not in new:
                versions.extent_died(extent, birth, stored, at, txg)
        kept = {extent for extent, _ in new}
        for extent, stored in chunk.fresh.items():
            if extent not in kept:
                versions.punch(extent, stored, txg)

    def _finish(self, data: DataId, index: int) -> None:
        """A write into a range being reclaimed: this chunk first, and the range splits around it."""
        head = self._head
        for number, r in list(head.reclaims.items()):
            if r.data == data and r.lo <= index < r.hi:
                self.remove_chunk(data, index, r.at)
                head.versions.settle()  # the same key is about to be put
                del head.reclaims[number]
                head.reclaims_changed.add(number)
                if r.lo < index:
                    self._add_range(r._replace(hi=index))
                if index + 1 < r.hi:
                    self._add_range(r._replace(lo=index + 1))

    def remove_chunk(self, data: DataId, index: int, at: Epoch) -> None:
        """The chunk is absent from `at` on, and its extents die with it."""
        head = self._head
        prefix = keys.chunk(data, index)
        body = reads.body_at(head.txn, Table.CHUNK, prefix, at)
        if body is None:
            return
        named = slices.extents(records.unpack_slices(Table.CHUNK, prefix, body))
        head.versions.remove(Table.CHUNK, prefix, at)
        for (extent, birth), stored in named.items():
            head.versions.extent_died(extent, birth, stored, at, head.counters.txg)

    def _publish_drop(self, drop: Drop) -> None:
        head = self._head
        if drop.inline:
            head.versions.remove(Table.INLINE, keys.inline(drop.data), drop.at)
        if drop.hi == 1:
            stored: list[int] | None = [0]  # most files have one chunk, and need no search
        else:
            stored = self._stored(drop.data, 0) if drop.hi else []
        if stored is None:
            self.add_reclaim(drop.data, 0, CHUNK_INDEX_MAX, drop.at)
            return
        for index in stored:
            self.remove_chunk(drop.data, index, drop.at)
