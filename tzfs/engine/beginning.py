"""How a filesystem begins, and how a writer of it does.

`format_filesystem` writes an empty one.  `begin_writing` takes a new lease generation, gives back what an earlier
writer wrote and never committed, and loads what is small into a `Head`: counters, orphans, reclaims.  The generation is
a commit of its own, unless the redo log has something: then it is part of the one in which that is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from tzfs import failpoints, limits
from tzfs.engine import reads
from tzfs.engine.committed import read_counters, read_superblock, readable_segments
from tzfs.engine.head import S_IFDIR, Head, Settings
from tzfs.engine.inherited import Ancestry, read_cursor
from tzfs.engine.versions import Versions
from tzfs.errors import CorruptionError, InternalError, TzfsError
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, pack_counters
from tzfs.format.keys import ROOT, DataId, Epoch, Ino, Table, Txg
from tzfs.format.operations import Operation
from tzfs.format.records import Inode, Reclaim
from tzfs.format.slices import slices_of
from tzfs.format.superblock import SUPERBLOCK_KEY, Origin, Superblock, pack_superblock
from tzfs.limits import PAGE_BYTES
from tzfs.store.interface import MetaStore, PayloadStore, ReadTransaction, RedoStore

failpoints.declare("open.generation", "a writer is about to take a new lease generation")
failpoints.declare("open.trim", "a writer is about to trim what was never committed")


def format_filesystem(
    meta: MetaStore, *, guid: bytes, now_ns: int, uid: int = 0, gid: int = 0, mode: int = 0o755
) -> None:
    """Writes an empty filesystem, its root owned by `uid` and `gid`, in one commit."""
    txn = meta.begin_write()
    try:
        counters = Counters.of_empty()
        versions = Versions(lambda what, by: None, lambda line: None)
        versions.begin(txn)
        root = Inode(
            ROOT, S_IFDIR | mode, uid, gid, 2, 0, DataId(0), 0, now_ns, now_ns, now_ns, now_ns, 0,
            limits.CHUNK_SHIFT_DEFAULT, Ino(0), b"",
        )  # fmt: skip
        versions.put(Table.INODE, keys.inode(ROOT), records.pack_inode(root), counters.epoch, fresh=True)
        counters.bytes = versions.live_bytes_delta
        versions.settle()
        txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(Superblock.new(guid=guid, created_ns=now_ns)))
        txn.put(Table.SYS, COUNTERS_KEY, records.seal(Table.SYS, COUNTERS_KEY, pack_counters(counters)))
        txn.commit()
    except BaseException:
        txn.close()
        raise


def format_clone(
    meta: MetaStore, *, guid: bytes, now_ns: int, origin: Origin, kinds: tuple[int, int, int, int]
) -> None:
    """Writes a filesystem that has nothing of its own yet, in one commit, whatever the size of its origin.

    `kinds`: how many files, directories, symlinks and other inodes the origin's snapshot has.
    """
    txn = meta.begin_write()
    try:
        files, directories, symlinks, others = kinds
        counters = replace(
            Counters.of_empty(),
            next_ino=origin.first_ino,
            next_data=origin.first_data,
            inodes=sum(kinds),
            files=files,
            directories=directories,
            symlinks=symlinks,
            others=others,
        )
        superblock = Superblock.new(guid=guid, created_ns=now_ns, origin=origin)
        txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(superblock))
        txn.put(Table.SYS, COUNTERS_KEY, records.seal(Table.SYS, COUNTERS_KEY, pack_counters(counters)))
        txn.commit()
    except BaseException:
        txn.close()
        raise


def begin_writing(
    meta: MetaStore,
    payload: PayloadStore,
    redo: RedoStore | None,
    *,
    settings: Settings,
    clock: Callable[[], int],
    ancestry: Ancestry | None = None,
) -> tuple[Head, Superblock, list[Operation]]:
    """The head of the last commit, with its transaction open; the superblock as it stands from now on; and what an
    earlier writer left in the redo log, to be done again and committed before anything else."""
    txn = meta.begin_write()
    try:
        superblock = read_superblock(txn)
        superblock.check(for_writing=True)
        if superblock.origin != (None if ancestry is None else ancestry.link):
            raise InternalError("a clone is opened without its origin")
        operations = redo.pending(meta.commit_number) if redo is not None else []
        superblock = superblock.next_generation()
        failpoints.hit("open.generation")
        txn.put(Table.SYS, SUPERBLOCK_KEY, pack_superblock(superblock))
        if not operations:  # a commit voids the log: where something is in it, that is part of the first
            txn.commit()
            txn = meta.begin_write()
        counters = read_counters(txn)
        counters.txg = Txg(counters.txg + 1)  # the one that was committed is over
        lost = _trim(txn, payload, counters)
        if ancestry is not None:
            ancestry.cursor, _ = read_cursor(txn)
        head = Head(meta, payload, txn, counters, settings=settings, clock=clock, ancestry=ancestry)
        for number in lost:
            head.report(f"segment {number} has no row, and is not looked after until it has")
        for key, value in txn.range(Table.ORPHAN, b""):
            try:
                at = reads.orphaned_at(txn, key, value)
                head.orphans[int.from_bytes(key, "big")] = at
            except CorruptionError as error:
                head.report(f"{error}; what it is about is not given back")
        for key, value in txn.range(Table.RECLAIM, b""):
            body = records.unseal(Table.RECLAIM, key, value)
            if body is not None:
                data, lo, hi, epoch = records.unpack_plain(Table.RECLAIM, key, body)
                head.reclaims[int.from_bytes(key, "big")] = Reclaim(DataId(data), lo, hi, Epoch(epoch))
    except BaseException:
        txn.close()
        raise
    return head, superblock, operations


def _trim(txn: ReadTransaction, payload: PayloadStore, counters: Counters) -> list[int]:
    """Gives back what an earlier writer wrote and never committed: whole segments, and the ends of others.

    A segment whose row is damaged stays as it is.  So does one whose row is lost, which is the answer: it is told from
    one that was begun before a commit, and filled after it, by what names it.
    """
    rows = {int.from_bytes(key, "big") for key, _ in txn.range(Table.SEGMENT, b"")}
    payload.begin_numbering(counters.next_segment)
    there = payload.segments()
    doubtful = {n for n in there if n not in rows and n < counters.next_segment and _has_payload(payload, n, there[n])}
    lost = _named(txn, doubtful) if doubtful else set()
    ends = {int.from_bytes(key, "big"): end for key, (_, _, end) in readable_segments(txn)}
    for number in there:
        failpoints.hit("open.trim")
        if number in ends:
            end = keys.extent_id(number, ends[number] // PAGE_BYTES)
            payload.punch(end, limits.SEGMENT_BYTES_MAX - ends[number])
        elif number not in rows and number not in lost:
            payload.remove_segment(number)
    return sorted(lost)


def _has_payload(payload: PayloadStore, number: int, size: int) -> bool:
    """Whether a segment, which takes `size` bytes, has more than its header, or may have."""
    try:
        ranges = payload.data_ranges(number)
    except TzfsError:
        return True  # for all we know: what could not be opened now may be read another time
    return size > PAGE_BYTES if ranges is None else any(end > PAGE_BYTES for _, end in ranges)


def _named(txn: ReadTransaction, segments: set[int]) -> set[int]:
    """Those of the segments that a chunk or an attribute names; reads all of them."""
    found = set()
    for table in (Table.CHUNK, Table.XATTR):
        for key, value in txn.range(table, b""):
            with suppress(CorruptionError):  # what it names cannot be read through it
                found |= {s.extent >> 32 for s in slices_of(table, key, records.unseal(table, key, value))} & segments
            if found == segments:
                return found
    return found
