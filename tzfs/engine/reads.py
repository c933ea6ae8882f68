"""Reading rows at an epoch, and reading payload: what the writer and a snapshot's reader share.

The functions look rows up in a transaction and decode them.  A `ReadPlan` is the second half of a read: planned where
the rows are (on the engine's thread), executed wherever it may block.  What was in memory at planning time is copied
into the plan; what lies in extents is read later and verified page by page against the sums in the slices.

Invariant: a plan never returns bytes that do not match their sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from tzfs.engine.compression import Decoded, decoded_of, load
from tzfs.engine.foreign import level_of, location, tagged
from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import Epoch, Ino, Table
from tzfs.format.records import Inode, Reclaim
from tzfs.format.slices import CODEC_RAW, Slice, unpack_slices
from tzfs.limits import PAGE_BYTES
from tzfs.native import gather, pages_match
from tzfs.store.interface import PayloadReader, ReadTransaction


def body_at(txn: ReadTransaction, table: Table, prefix: bytes, epoch: int) -> bytes | None:
    """The body of the version of `prefix` visible at `epoch`; None where there is none."""
    found = txn.seek(table, prefix, epoch)
    if found is None:
        return None
    return records.unseal(table, prefix + keys.suffix(found[0]), found[1])


def inode_at(txn: ReadTransaction, ino: int, epoch: int) -> Inode | None:
    found = txn.seek(Table.INODE, keys.u64(ino), epoch)
    return None if found is None else _decode_inode(ino, found)


def inodes_at(txn: ReadTransaction, inos: Sequence[int], epoch: int) -> list[Inode | None]:
    """One inode, or None, for each of `inos`, which must ascend; one pass over the table."""
    found = txn.seek_many(Table.INODE, [keys.u64(ino) for ino in inos], epoch)
    return [None if f is None else _decode_inode(ino, f) for ino, f in zip(inos, found, strict=True)]


def _decode_inode(ino: int, found: tuple[Epoch, bytes]) -> Inode | None:
    key = keys.u64(ino) + keys.suffix(found[0])
    body = records.unseal(Table.INODE, key, found[1])
    return None if body is None else records.unpack_inode(Ino(ino), key, body)


def dirent_at(txn: ReadTransaction, directory: int, name: bytes, epoch: int) -> tuple[Ino, int] | None:
    """(inode, file type) of an entry; None where there is none."""
    prefix = keys.dirent(directory, name)
    return dirent_in(prefix, txn.seek(Table.DIRENT, prefix, epoch))


def dirent_in(prefix: bytes, found: tuple[Epoch, bytes] | None) -> tuple[Ino, int] | None:
    """`dirent_at`, of what a seek for the prefix has found."""
    if found is None:
        return None
    key = prefix + keys.suffix(found[0])
    body = records.unseal(Table.DIRENT, key, found[1])
    return None if body is None else records.unpack_dirent(key, body)


def named_rows(
    txn: ReadTransaction,
    table: Table,
    prefix: bytes,
    after: bytes,
    epoch: int,
    limit: int,
    damaged: list[bytes] | None = None,
) -> list[tuple[bytes, bytes]]:
    """(whole key, body) of at most `limit` rows of a table whose keys end in a name, as visible at `epoch`.

    `prefix` is what stands before the name; names come ascending, those above `after` only.  Versions that `epoch`
    does not see are skipped by seeking, so that a listing does not pay for a directory's past.  Rows that are damaged
    are left out where `damaged` is given, and their names go there, or what is left of them; else the first is raised.
    """
    out: list[tuple[bytes, bytes]] = []
    stop, shortest = keys.after(prefix), len(prefix) + 10
    start = prefix + after + b"\1" if after else prefix
    while start is not None and len(out) < limit:
        restart: bytes | None = None
        done = b""  # the name, with its prefix and NUL, whose visible version has been met
        for key, value in txn.range(table, start, stop):
            named = key[:-8]
            if len(key) < shortest or key[-9]:
                if damaged is None:
                    raise keys.malformed(table, key)
                damaged.append(key[len(prefix) :].partition(b"\0")[0])
                continue
            if named == done:
                restart = named[:-1] + b"\1"  # an older version: on to the next name
                break
            if keys.birth_of(key) > epoch:
                newer = named + keys.suffix(epoch)
                if key < newer:
                    restart = newer
                    break
            done = named
            try:
                body = records.unseal(table, key, value)
            except CorruptionError:
                if damaged is None:
                    raise
                damaged.append(named[len(prefix) : -1])
                continue
            if body is not None:
                out.append((key, body))
                if len(out) == limit:
                    break
        if restart is None:
            break
        start = restart
    return out


def linked_rows(txn: ReadTransaction, ino: int, epoch: int, *, damaged_too: bool = False) -> list[bytes]:
    """The whole keys of an inode's rows of `link` as visible at `epoch`; also of those with damaged records, all of
    which is in their keys, or the first of these is raised."""
    found: list[bytes] = []
    seen = b""
    prefix = keys.inode(ino)
    for key, value in txn.range(Table.LINK, prefix, keys.after(prefix)):
        if keys.birth_of(key) <= epoch and key[:-8] != seen:
            seen = key[:-8]
            try:
                present = records.unseal(Table.LINK, key, value) is not None
            except CorruptionError:
                if not damaged_too:
                    raise
                present = True
            if present:
                found.append(key)
    return found


def slices_at(
    txn: ReadTransaction, data: int, index: int, epoch: int, reclaims: Iterable[Reclaim]
) -> tuple[Slice, ...]:
    """The slices of a chunk as visible at `epoch`: none for a hole, and none for what is being reclaimed by then."""
    if masked(reclaims, data, index, epoch):
        return ()
    prefix = keys.chunk(data, index)
    found = txn.seek(Table.CHUNK, prefix, epoch)
    if found is None:
        return ()
    key = prefix + keys.suffix(found[0])
    body = records.unseal(Table.CHUNK, key, found[1])
    if body is None:
        return ()
    slices = unpack_slices(Table.CHUNK, key, body)
    return slices if type(found[1]) is bytes else tagged(slices, level_of(found[1]))


def masked(reclaims: Iterable[Reclaim], data: int, index: int, epoch: int) -> bool:
    """Whether the chunk waits for its removal, which counts from an epoch at or before `epoch`."""
    return any(r.data == data and r.lo <= index < r.hi and r.at <= epoch for r in reclaims)


def reclaims_of(txn: ReadTransaction) -> list[Reclaim]:
    """All ranges being reclaimed: few, as long as the background work keeps up."""
    out = []
    for key, value in txn.range(Table.RECLAIM, b""):
        body = records.unseal(Table.RECLAIM, key, value)
        if body is not None:
            data, lo, hi, at = records.unpack_plain(Table.RECLAIM, key, body)
            out.append(Reclaim(keys.DataId(data), lo, hi, Epoch(at)))
    return out


def chunk_indexes(txn: ReadTransaction, data: int, lo: int, hi: int, limit: int) -> list[int]:
    """At most `limit` chunk indexes in [lo, hi) that have any row, ascending; versions are skipped by seeking."""
    out: list[int] = []
    stop = keys.chunk(data, hi)
    while len(out) < limit:
        for key, _ in txn.range(Table.CHUNK, keys.chunk(data, lo), stop):
            lo = keys.chunk_index(key) + 1
            out.append(lo - 1)
            break
        else:
            break
    return out


class ReadPlan:
    """`size` bytes to be put together from memory and extents; what neither covers is zero.

    `ino` is whose contents they are: errors name it, what was decompressed before may serve, and what is now is kept.
    Without it all is read from the disk.
    """

    __slots__ = ("_decoded", "_extents", "_ino", "_memory", "_payload", "size")

    def __init__(self, payload: PayloadReader, size: int, *, ino: int = 0) -> None:
        self.size = size
        self._ino = ino
        self._decoded: Decoded | None = None
        self._payload = payload
        self._memory: list[tuple[int, bytes]] = []
        self._extents: list[tuple[int, Slice, int, int]] = []

    def add_bytes(self, offset: int, data: bytes) -> None:
        """`data` belongs at `offset` of the answer; later pieces win over earlier ones and over extents."""
        self._memory.append((offset, data))

    def add_slices(self, base: int, slices: Iterable[Slice], lo: int, hi: int) -> None:
        """[lo, hi) of a chunk whose first byte belongs at `base` of the answer."""
        for s in slices:
            a, b = max(s.offset, lo), min(s.offset + s.length, hi)
            if a < b:
                self._extents.append((base + a, s, a - s.offset, b - a))

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be read from extents."""
        return not self._extents

    @property
    def hole(self) -> bool:
        """Whether nothing covers any of it."""
        return not self._extents and not self._memory

    def try_now(self) -> bytes | None:
        """The bytes if that takes no disk, else None."""
        return self._run(wait=False)

    def execute(self) -> bytes:
        """The bytes; may block on the disk.  Raises `CorruptionError`, `SegmentGone`."""
        answer = self._run(wait=True)
        assert answer is not None
        return answer

    def _run(self, *, wait: bool) -> bytes | None:
        if not self._extents and len(self._memory) == 1 and len(self._memory[0][1]) == self.size:
            return self._memory[0][1]
        pieces: list[tuple[int, memoryview]] = []
        for offset, s, begin, length in self._extents:
            try:
                got = self._load(s, begin, length, wait=wait)
            except CorruptionError as error:
                if self._ino and type(error) is CorruptionError:  # not that a segment is gone
                    raise CorruptionError(f"contents of inode {self._ino}: {error}") from None
                raise
            if got is None:
                return None
            pieces.append((offset, got))
        if len(pieces) == 1 and not self._memory and len(pieces[0][1]) == self.size:
            return bytes(pieces[0][1])
        target = bytearray(self.size)
        if pieces:
            gather(target, pieces)
        for offset, data in self._memory:
            target[offset : offset + len(data)] = data
        return bytes(target)

    def _load(self, s: Slice, begin: int, length: int, *, wait: bool) -> memoryview | None:
        at = s.extent_offset + begin
        if s.codec != CODEC_RAW:
            if self._decoded is None:
                self._decoded = decoded_of(self._payload) if self._ino else Decoded()
            raw = load(self._payload, s, self._decoded, wait=wait)
            return None if raw is None else memoryview(raw)[at : at + length]
        page = at & -PAGE_BYTES
        end = min((at + length + PAGE_BYTES - 1) & -PAGE_BYTES, s.raw_bytes)
        stored = memoryview(bytearray(end - page))
        if not self._payload.read_into(s.extent, page, stored, wait=wait):
            return None
        first = (page - (s.extent_offset & -PAGE_BYTES)) // PAGE_BYTES
        sums = s.sums[4 * first : 4 * (first + (end - page + PAGE_BYTES - 1) // PAGE_BYTES)]
        bad = pages_match(stored, sums)
        if bad >= 0:
            raise CorruptionError(f"damaged payload: {location(s.extent, page + bad * PAGE_BYTES)}")
        return stored[at - page : at - page + length]


def orphaned_at(txn: ReadTransaction, key: bytes, value: bytes) -> Epoch:
    """Since when the inode is an orphan.

    Where its row is damaged, that is when the inode was written last, if that says that it has no name: else it may be
    the row's key that is damaged, and `CorruptionError` is raised.
    """
    try:
        (at,) = records.unpack_plain(Table.ORPHAN, key, records.unseal(Table.ORPHAN, key, value) or b"")
        return Epoch(at)
    except CorruptionError:
        ino = int.from_bytes(key, "big")
        found = txn.seek(Table.INODE, keys.inode(ino), keys.EPOCH_MAX)
        with suppress(CorruptionError):
            inode = inode_at(txn, ino, keys.EPOCH_MAX)
            if found is not None and inode is not None and not inode.nlink:
                return found[0]
        raise
