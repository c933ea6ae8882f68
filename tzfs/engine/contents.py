"""File contents: reading, writing, truncating and dropping them, in memory.

A regular file or symlink hangs its contents on a data id.  While it has never been larger than `INLINE_BYTES_MAX` they
are one row of `inline`, and the inode says so (`FLAG_INLINE`); after that they are chunks, until truncation to nothing
gives the file a new data id.  `chunks` has what is changed, `flushing` takes it to the disk, `content_rows` into the
tables.

Invariant: slices and buffers never reach beyond the file's size.
"""

from __future__ import annotations

from tzfs import limits
from tzfs.engine import reads, slices
from tzfs.engine.buffers import Buffer
from tzfs.engine.chunks import CHUNK_INDEX_MAX, Chunk, Contents, read_into_buffer
from tzfs.engine.content_rows import ContentRows
from tzfs.engine.foreign import foreign
from tzfs.engine.head import S_IFDIR, S_IFMT, S_IFREG, Drop, Head
from tzfs.engine.reads import ReadPlan
from tzfs.errors import CorruptionError, FileTooBig, InvalidArgument, IsADirectory, StoreError
from tzfs.format import keys
from tzfs.format.keys import Epoch, Table
from tzfs.format.operations import Op
from tzfs.format.records import FLAG_INLINE, Inode


class ContentsTable:
    """All contents of a head."""

    def __init__(self, head: Head, rows: ContentRows) -> None:
        self._head = head
        self._rows = rows

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
        plan = ReadPlan(head.payload, size, ino=inode.ino)
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
                    found = reads.slices_at(head.look, inode.data, index, at, head.reclaims.values())
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
        return reads.body_at(self._head.look, Table.INLINE, prefix, self._head.epoch_of(inode.ino)) or b""

    # -- writing ---------------------------------------------------------------------------------------------------

    def _open(self, inode: Inode) -> Contents:
        contents = self._head.contents.get(inode.data)
        if contents is None:
            contents = self._head.contents[inode.data] = Contents(inode.ino, inode.data)
        return contents

    def _loaded(self, inode: Inode, index: int, lo: int, hi: int) -> Chunk:
        """A chunk that is not in memory yet, where [lo, hi) of it is about to be overwritten, or to go."""
        base = self._stored(inode, index)
        if not base or not foreign(base[0].extent):
            return Chunk(base)
        try:
            return self._copied_up(base, lo, hi)
        except (CorruptionError, StoreError):  # moved meanwhile, perhaps, by whoever writes the origin: look again
            return self._copied_up(self._stored(inode, index), lo, hi)

    def _install(self, contents: Contents, ready: dict[int, Chunk]) -> None:
        """Chunks as they are before a change, when nothing that it needs can fail any more: of some, what the change is
        about to overwrite, or to cut off, is not there."""
        head = self._head
        for index, chunk in ready.items():
            replaced = contents.chunks.get(index)
            if replaced is not None:
                head.dirty_bytes -= replaced.accepted
            contents.chunks[index] = chunk
            if chunk.dirty is not None:
                head.dirty_bytes += chunk.count()
                head.dirty_rows += 2

    def _stored(self, inode: Inode, index: int) -> slices.Slices:
        head = self._head
        if inode.data >= head.first_data:
            return ()
        return reads.slices_at(head.look, inode.data, index, head.epoch_of(inode.ino), head.reclaims.values())

    def _copied_up(self, base: slices.Slices, lo: int, hi: int) -> Chunk:
        """An inherited chunk as a clone's own: what is kept of it becomes dirty, as if it had just been written."""
        chunk = Chunk(())
        chunk.changed = True  # also where nothing is kept: then a tombstone hides the origin's
        kept = slices.without(base, [(lo, hi)])
        if kept:
            chunk.dirty = read_into_buffer(self._head.payload, kept)
        return chunk

    def _gathered(self, chunk: Chunk, lo: int, hi: int) -> Chunk:
        """A chunk of many pieces as one, all of it dirty but what [lo, hi) is about to overwrite."""
        gathered = Chunk(chunk.base)
        gathered.slices, gathered.changed, gathered.fresh = (), True, chunk.fresh
        layers = [buffer for buffer in (chunk.flushing, chunk.dirty) if buffer is not None]
        kept = slices.without(chunk.slices, [(lo, hi), *(span for buffer in layers for span in buffer.spans)])
        whole = read_into_buffer(self._head.payload, kept)
        for buffer in layers:
            whole = buffer.over(whole)
        whole.fill()
        gathered.dirty = whole
        return gathered

    def write(self, ino: int, offset: int, payload: bytes | bytearray | memoryview, now_ns: int | None = None) -> int:
        """Writes all of `payload` at `offset`, now or as of `now_ns`; the number of bytes.

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
        copied_up = 0 if head.ancestry is None else 2 << inode.chunk_shift  # the chunks at both ends
        head.admit(size + copied_up + limits.PAGE_BYTES)
        prepared = self._prepare(inode, offset, size)
        head.begin_change()
        self._apply(inode, prepared, offset, payload)
        now = head.clock() if now_ns is None else now_ns
        inode.mtime_ns = inode.ctime_ns = now
        if offset + size > inode.size:
            inode.size = offset + size
        head.touch(inode)
        if head.unlogged is not None and size <= limits.REDO_PAYLOAD_BYTES_MAX:
            head.end_change((Op.WRITE, now, ino, offset, bytes(payload)), size)  # no copy where it is bytes already
        else:
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
            if contents.inline is None:  # what is overwritten need not be readable
                contents.inline = bytearray(self._inline(inode, None) if offset or size < inode.size else b"")
        else:
            head, shift, end, crowded = self._head, inode.chunk_shift, offset + size, []
            if offset == 0 and inode.size <= end <= 1 << shift and head.ancestry is None:  # a small file, all of it
                if 0 not in contents.chunks:
                    contents.chunks[0] = Chunk(None if inode.data < head.first_data else ())
                return contents
            ready: dict[int, Chunk] = {}
            for index in range(offset >> shift, (end - 1 >> shift) + 1):
                start, chunk = index << shift, contents.chunks.get(index)
                lo, hi = max(offset - start, 0), min(end - start, 1 << shift)
                if lo == 0 and min(start + (1 << shift), inode.size) <= end and head.ancestry is None:
                    if chunk is None:
                        ready[index] = Chunk(None if inode.data < head.first_data else ())
                    continue
                if chunk is None:
                    chunk = ready[index] = self._loaded(inode, index, lo, hi)
                if chunk.crowded_by(lo, hi):
                    crowded.append((index, chunk, lo, hi))
            if crowded:
                # In a clone both ends are copied, crowded or not.
                copied = len(crowded) if head.ancestry is None else 2
                head.admit(size + limits.PAGE_BYTES + (copied << shift))
                if head.contents.get(inode.data) is not contents:  # that has published all chunks
                    return self._prepare(inode, offset, size)
                for index, chunk, lo, hi in crowded:
                    ready[index] = self._gathered(chunk, lo, hi)
            self._install(contents, ready)
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
        shift, size, done = inode.chunk_shift, len(payload), 0
        while offset < end:
            index = offset >> shift
            begin = offset - (index << shift)
            n = min(end - offset, (1 << shift) - begin)
            part = payload if n == size else memoryview(payload)[done : done + n]  # as it is, it may be kept
            self._write_chunk(self._chunk_for_new(contents, index), begin, part)
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

    def _write_chunk(self, chunk: Chunk, begin: int, payload: bytes | bytearray | memoryview) -> None:
        if chunk.dirty is None:
            chunk.dirty = Buffer()
            self._head.dirty_rows += 2
        chunk.dirty.write(begin, payload)
        self._head.dirty_bytes += chunk.count()

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
            contents = self._open(inode)
            if contents.inline is None:  # nothing of it is kept at 0: what cannot be read can be replaced
                contents.inline = bytearray(self._inline(inode, None) if size else b"")
        elif 0 < size < inode.size:
            contents, shift = self._open(inode), inode.chunk_shift
            ready: dict[int, Chunk] = {}
            begin = size & ((1 << shift) - 1)
            if begin and size >> shift not in contents.chunks:
                ready[size >> shift] = self._loaded(inode, size >> shift, begin, 1 << shift)
            lo = (size + (1 << shift) - 1) >> shift
            for index in self._rows.stored(inode.data, lo) or ():
                if index not in contents.chunks:
                    ready[index] = self._loaded(inode, index, 0, 1 << shift)
                head.dirty_rows += 2
            self._install(contents, ready)

    def _shrink(self, inode: Inode, size: int) -> None:
        head, shift = self._head, inode.chunk_shift
        contents = head.contents[inode.data]
        lo = (size + (1 << shift) - 1) >> shift
        many = self._rows.stored(inode.data, lo) is None
        for index in [i for i in contents.chunks if i >= lo]:
            chunk = contents.chunks[index]
            self._discard_buffers(chunk)
            if many:
                self._discard_extents(chunk)
                del contents.chunks[index]
            else:
                chunk.slices, chunk.changed = (), True
        if many:
            self._rows.add_reclaim(inode.data, lo, CHUNK_INDEX_MAX, head.epoch_of(inode.ino))
        begin = size & ((1 << shift) - 1)
        if begin:
            chunk = contents.chunks[size >> shift]
            kept = tuple(slices.cut(chunk.slices, begin, 1 << shift))
            if kept != chunk.slices:
                chunk.slices, chunk.changed = kept, True
            if chunk.flushing is not None:
                chunk.flushing.clip(begin)
            if chunk.dirty is not None:
                chunk.dirty.truncate(begin)
                head.dirty_bytes += chunk.count()

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
        chunk.dirty = chunk.flushing = None
        self._head.dirty_bytes += chunk.count()

    def _discard_extents(self, chunk: Chunk) -> None:
        self._head.unused_extents.extend(chunk.fresh.items())
        chunk.fresh.clear()
