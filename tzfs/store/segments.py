"""Payload on disk: append-only segment files, in which extents of whole 4 KiB blocks lie one after another.

`segments/<number>.seg`, the number in decimal, from 1 to 2^32 - 1, never used twice.  Block 0 is a header
(`segment_files`), data begin at block 1.  An extent is `number << 32 | block`; its stored bytes begin at the block and
what is left of its last block is zeros, or beyond the end of the file.  Nothing here knows what the bytes mean: lengths
and checksums are in the tables.

`allocate` is arithmetic and cannot fail for want of space; the file appears with the first `write` or `reserve`.  A
segment ends when the next extent would not fit into `SEGMENT_BYTES_MAX`.  Numbers begin above every file there is and
above what `begin_numbering` was told, so a writer never appends to a segment that a crash may have left behind.

`sync` makes the data of every segment written since the last one durable, then, where files were made, their folder.
If it fails, the kernel may have dropped the pages and will say so only once: `failed` is set, and nothing is written
from then on.

Much payload at once does not stay in the page cache, where the mount's own pages have it already.  What lies on whole
pages in memory goes to the disk from there (O_DIRECT) where the disk's filesystem can do that; of the rest `sync` has
the cache drop its copy.

`reserve` allocates blocks beyond the end of the current segment.  It makes the file if there is none, and begins the
next segment first if the present one cannot take that much; so the first append after it needs neither an inode nor a
block.  What was reserved and not used is given back by the first `sync` after the segment ended, or at `close`; after a
crash, by the next writer's `begin_numbering`.

In a forked child the object is closed.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final

from tzfs.errors import CorruptionError, ForeignStore, InternalError, ReadOnly, StoreError, from_os_error
from tzfs.failpoints import declare, hit
from tzfs.format.keys import ExtentId, extent_id, extent_offset, extent_segment
from tzfs.limits import PAGE_BYTES, SEGMENT_BYTES_MAX
from tzfs.store import folders, space
from tzfs.store.interface import Buffer, SegmentGone
from tzfs.store.segment_files import OPEN_MAX, PAGED_BYTES_MIN, SegmentFiles, on_pages, pieces_of, runs, write_pieces

NUMBER_MAX: Final = (1 << 32) - 1
RESERVE_AHEAD_BYTES: Final = 16 << 20  # a few txgs of ordinary size
UNCACHED_BYTES_MIN: Final = 1 << 20  # written at once: a second copy of it would displace what is needed

CANNOT: Final = (errno.EINVAL, errno.EOPNOTSUPP)  # what O_DIRECT is answered where there is nothing of the kind
_NAME: Final = re.compile(r"([1-9][0-9]{0,9})\.seg")

_WRITE: Final = declare("segment.write", "before a run of extents is written")
_SYNC: Final = declare("segment.sync", "before a segment is synced")
_SYNC_FOLDER: Final = declare("segment.sync.folder", "segments are synced; before their folder is")
_PUNCH: Final = declare("segment.punch", "before a hole is punched")
_UNLINK: Final = declare("segment.unlink", "before a segment is unlinked")
_RESERVE: Final = declare("segment.reserve", "before space is reserved")
_FOLDER: Final = declare("segment.folder", "before the segments' folder is made")


class Segments:
    """The segments of one filesystem, in the folder `directory`.

    `create` makes the folder where it is not there, durably.  `readonly` refuses everything that changes.  `guid` is
    the filesystem's: a segment of another one is `ForeignStore`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        guid: bytes,
        readonly: bool = False,
        create: bool = False,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        open_max: int = OPEN_MAX,
    ) -> None:
        self.directory = Path(directory)
        self._readonly = readonly
        self._blocks_max: Final = segment_bytes_max // PAGE_BYTES
        self._files = SegmentFiles(self.directory, guid, readonly=readonly, open_max=open_max)
        self._syncing = threading.Lock()  # one sync at a time, so that each returns when all before it is durable
        self._placing = threading.Lock()  # of `_number`, `_block` and `_next_segment`
        self._writing = threading.Lock()  # write and reserve, one at a time; also of the four below
        self._made: set[int] = set()  # segments this object made
        self._unsynced: dict[int, list[tuple[int, int]]] = {}  # segment -> (offset, bytes) of what leaves the cache
        self._folder_unsynced = False
        self._reserved: dict[int, int] = {}  # segment -> blocks are allocated up to this byte
        self._first_number = 1  # what this object begins is numbered from here
        self._next_segment = 1
        self._number = 0  # of the segment being filled; 0: none begun
        self._block = 0  # the first free block in it
        self._failed: str | None = None
        self._closed = False
        self.reserve_supported = True
        self._direct = True  # until it is seen that it cannot be
        _all.add(self)
        if create and not readonly:
            self._make_folder()
        if not self.directory.is_dir():
            raise ForeignStore(f"{self.directory}: no segments of tzfs here")
        if not readonly:
            self._number_from(1)

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def next_segment(self) -> int:
        return self._next_segment

    @property
    def filling(self) -> int:
        return self._number

    @property
    def failed(self) -> str | None:
        return self._failed

    def begin_numbering(self, next_segment: int) -> None:
        self._check_writable()
        if self._number:
            raise InternalError(f"{self.directory}: numbering begins before the first extent")
        for number in self._number_from(next_segment):
            self._trim_left_over(number)

    def segments(self) -> dict[int, int]:
        found = {}
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    match = _NAME.fullmatch(entry.name)
                    if match:
                        try:
                            found[int(match[1])] = entry.stat(follow_symlinks=False).st_blocks * 512
                        except FileNotFoundError:
                            continue
        except OSError as error:
            raise from_os_error(error, f"{self.directory}: list") from error
        return found

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, extent: ExtentId, offset: int, length: int) -> bytes:
        target = bytearray(length)
        self.read_into(extent, offset, memoryview(target))
        return bytes(target)

    def read_into(self, extent: ExtentId, offset: int, target: memoryview, *, wait: bool = True) -> bool:
        number, begin = extent_segment(extent), extent_offset(extent) + offset
        if self._closed:
            raise InternalError(f"{self.directory}: the payload store is closed")
        if not wait:
            with self._files.using_open(number) as opened:
                try:
                    return opened is not None and os.preadv(opened, [target], begin, os.RWF_NOWAIT) == len(target)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                        return False
                    raise from_os_error(error, f"segment {number}: read") from error
        with self._files.using(number) as fd:
            done = 0
            try:
                while done < len(target):
                    count = os.preadv(fd, [target[done:]], begin + done)
                    if count == 0:
                        raise CorruptionError(
                            f"segment {number} ends within an extent: {len(target)} bytes at {begin} are not all there"
                        )
                    done += count
            except OSError as error:
                raise from_os_error(error, f"segment {number}: read") from error
        return True

    def data_ranges(self, number: int) -> list[tuple[int, int]] | None:
        try:
            if not space.punch_supported(self.directory):
                return None
            with self._files.using(number) as fd:
                return space.data_ranges(fd)
        except OSError as error:
            raise from_os_error(error, f"segment {number}: look for holes") from error

    # -- writing -------------------------------------------------------------------------------------------------------

    def allocate(self, stored_bytes: int) -> ExtentId:
        self._check_writable()
        blocks = -(-stored_bytes // PAGE_BYTES)
        if not 0 < blocks < self._blocks_max:
            raise InternalError(f"an extent of {stored_bytes} bytes")
        with self._placing:
            number, block = self._place_for(blocks)
            if number != self._number:
                self._begin(number)
            extent = extent_id(number, block)
            self._block += blocks
            return extent

    def write(self, extents: Sequence[tuple[ExtentId, Buffer]]) -> None:
        self._check_writable()
        with self._writing:
            for run in runs(extents):
                number = extent_segment(run[0][0])
                if not self._first_number <= number < self._next_segment:
                    raise InternalError(f"segment {number} was not begun by this writer")
                try:
                    with self._filling(number) as fd:
                        large = self._unsynced.setdefault(number, [])
                        hit(_WRITE)
                        large += self._write_run(fd, run)
                except OSError as error:
                    raise from_os_error(error, f"segment {number}: write") from error

    def _write_run(self, fd: int, run: Sequence[tuple[ExtentId, Buffer]]) -> Iterator[tuple[int, int]]:
        """Writes the extents, and gives what is to be dropped from the page cache: (begin, bytes)."""
        at, whole = extent_offset(run[0][0]), pieces_of(run)
        little = sum(map(len, whole)) < max(UNCACHED_BYTES_MIN, len(run) * PAGED_BYTES_MIN)  # in all, or each of them
        for paged, group in [(False, iter(whole))] if little else groupby(whole, on_pages):
            pieces = list(group)
            size = sum(map(len, pieces))
            large = size >= UNCACHED_BYTES_MIN
            if not (large and paged and self._write_direct(fd, pieces, at)):
                write_pieces(fd, pieces, at)
                if large:
                    yield at, size
            at += size

    def _write_direct(self, fd: int, pieces: Sequence[memoryview], at: int) -> bool:
        """Whether the pieces, which lie on pages, have gone past the page cache; else none need have been written."""
        if not self._direct:
            return False
        try:
            direct = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            self._direct = error.errno not in CANNOT
            return False
        try:
            return os.pwritev(direct, pieces, at) == sum(map(len, pieces))
        except OSError as error:
            if error.errno not in CANNOT:
                raise
            self._direct = False  # this filesystem wants more than whole pages
            return False
        finally:
            os.close(direct)

    def sync(self) -> None:
        self._check_writable()
        with self._syncing:
            try:
                self._sync()
            except (OSError, StoreError) as error:
                self._failed = f"{self.directory}: sync: {error}"
                raise StoreError(self._failed, hint="mount again: what was not synced is lost") from error

    def _sync(self) -> None:
        """Waits for the disk without `_writing`: the thread of the requests must get room in a segment meanwhile."""
        with self._writing:
            unsynced, self._unsynced = self._unsynced, {}
            folder_unsynced, self._folder_unsynced = self._folder_unsynced, False
        for number in sorted(unsynced):
            hit(_SYNC)
            with suppress(SegmentGone), self._files.using(number) as fd:  # removed meanwhile: nothing is left to sync
                os.fdatasync(fd)
                for begin, size in unsynced[number]:
                    space.uncache(fd, begin, size)
        if folder_unsynced:
            hit(_SYNC_FOLDER)
            folders.sync(self.directory)
        with self._writing:
            for number in [n for n in self._reserved if n < self._number]:
                with self._files.using(number) as fd:
                    space.trim(fd)
                del self._reserved[number]

    def punch(self, extent: ExtentId, stored_bytes: int) -> None:
        self._check_writable()
        nbytes = -(-stored_bytes // PAGE_BYTES) * PAGE_BYTES
        number = extent_segment(extent)
        try:
            hit(_PUNCH)
            with self._writing, self._files.using(number) as fd:
                space.punch(fd, extent_offset(extent), nbytes)
                self._unsynced.setdefault(number, [])  # the commit that forgets the extent must not outlive its hole
        except SegmentGone:
            pass
        except OSError as error:
            raise from_os_error(error, f"segment {number}: punch") from error

    def remove_segment(self, number: int) -> None:
        self._check_writable()
        if number == self._number:
            raise InternalError(f"segment {number} is being filled")
        try:
            hit(_UNLINK)
            self._files.path(number).unlink(missing_ok=True)
        except OSError as error:
            raise from_os_error(error, f"segment {number}: unlink") from error
        with self._writing:
            self._made.discard(number)
            self._unsynced.pop(number, None)
            self._reserved.pop(number, None)
        self._files.forget(number)

    def reserve(self, nbytes: int) -> None:
        self._check_writable()
        blocks = -(-nbytes // PAGE_BYTES)
        if not 0 < blocks < self._blocks_max:
            raise InternalError(f"a reserve of {nbytes} bytes")
        with self._placing:
            number, block = self._place_for(blocks)
        begin = block * PAGE_BYTES
        if begin + nbytes <= self._reserved.get(number, 0):
            return
        with self._writing:
            try:
                hit(_RESERVE)
                with self._filling(number) as fd:
                    self._unsynced.setdefault(number, [])
                    self._reserve_in(fd, number, begin, nbytes)
            except OSError as error:
                raise from_os_error(error, f"segment {number}: reserve {nbytes} bytes") from error
        with self._placing:  # only now: had it been refused, what is left of the present one would stay reserved
            if number == self._next_segment:
                self._begin(number)

    @property
    def reserved(self) -> int:
        block = self._block  # before the number: a segment that begins meanwhile then makes it less, never more
        return max(0, self._reserved.get(self._number, 0) - block * PAGE_BYTES)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        _all.discard(self)
        with self._writing:
            for number in self._reserved:
                try:
                    with self._files.using(number) as fd:
                        space.trim(fd)
                except (OSError, StoreError):
                    pass  # the blocks stay allocated until the next writer begins; nothing is lost
            self._reserved.clear()
        self._files.close()

    # -- within --------------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._closed:
            raise InternalError(f"{self.directory}: the payload store is closed")
        if self._readonly:
            raise ReadOnly(f"{self.directory}: open for reading only")
        if self._failed is not None:
            raise StoreError(f"payload cannot be written any more: {self._failed}")

    def _number_from(self, next_segment: int) -> dict[int, int]:
        """What is begun is numbered from there, or from above what there is, which is the answer."""
        there = self.segments()
        self._first_number = self._next_segment = max(next_segment, *(number + 1 for number in there), 1)
        return there

    def _place_for(self, blocks: int) -> tuple[int, int]:
        """The next block in the present segment if that can take so many more, else the first of the next one."""
        if self._number and self._block + blocks <= self._blocks_max:
            return self._number, self._block
        if self._next_segment > NUMBER_MAX:
            raise InternalError(f"{self.directory}: no segment number is left")
        return self._next_segment, 1

    def _begin(self, number: int) -> None:
        self._number, self._block = number, 1
        self._next_segment = number + 1

    def _reserve_in(self, fd: int, number: int, begin: int, nbytes: int) -> None:
        room, kept_end = self._blocks_max * PAGE_BYTES - begin, self._reserved.get(number, 0)
        # More than asked, so that the next txgs need no call; no more, where only that is left.
        for ahead in (min(nbytes + min(nbytes, RESERVE_AHEAD_BYTES), room), nbytes):
            try:
                if self.reserve_supported and space.reserve_or_leave(fd, begin, begin + ahead, kept_end=kept_end):
                    self._reserved[number] = begin + ahead
                    return
                break
            except OSError as error:
                if ahead == nbytes or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
        self.reserve_supported = False
        unwritten = max(0, begin - os.fstat(fd).st_size)  # has its place, and takes of what is free now
        if space.free_bytes(fd) < unwritten + nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._reserved[number] = begin + nbytes  # nobody else is kept from it, but we do not count on it twice

    def _make_folder(self) -> None:
        try:
            hit(_FOLDER)
            with folders.made(self.directory) as lasting:
                lasting()
        except OSError as error:
            raise from_os_error(error, f"{self.directory}: make") from error

    def _trim_left_over(self, number: int) -> None:
        """Gives back what a writer that crashed had reserved in a segment."""
        try:
            fd = os.open(self._files.path(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                stat = os.fstat(fd)
                if stat.st_blocks * 512 > stat.st_size + PAGE_BYTES:
                    space.trim(fd)
            finally:
                os.close(fd)
        except OSError:
            pass  # only space is at stake

    def _filling(self, number: int) -> AbstractContextManager[int]:
        """The descriptor of a segment of this writer's own, made where it is not there yet."""
        if number not in self._made:
            self._files.make(number)
            self._made.add(number)
            self._unsynced.setdefault(number, [])
            self._folder_unsynced = True
        return self._files.using(number)

    def _after_fork(self) -> None:
        """In the child: closed, whatever the parent's threads were doing."""
        self._closed = True
        self._files.close_in_child()


_all: Final[weakref.WeakSet[Segments]] = weakref.WeakSet()


def _close_in_child() -> None:
    for payload in list(_all):
        payload._after_fork()
    _all.clear()


os.register_at_fork(after_in_child=_close_in_child)
