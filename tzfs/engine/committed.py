"""What the tables say of a filesystem as a whole: superblock, counters, and sums over few rows.

Each function reads within the transaction it is given, a reader's or the writer's own; a writer's shows the last commit
and what background work has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tzfs.errors import CorruptionError
from tzfs.format import records
from tzfs.format.counters import COUNTERS_KEY, Counters, unpack_counters
from tzfs.format.keys import Table
from tzfs.format.superblock import SUPERBLOCK_KEY, Superblock, unpack_superblock
from tzfs.store.interface import ReadTransaction


def read_superblock(txn: ReadTransaction) -> Superblock:
    """The filesystem's superblock; `CorruptionError` where there is none."""
    value = txn.get(Table.SYS, SUPERBLOCK_KEY)
    if value is None:
        raise CorruptionError(
            "the filesystem has no superblock", hint="it was never formatted, or is not a filesystem of tzfs"
        )
    return unpack_superblock(value)


def read_counters(txn: ReadTransaction) -> Counters:
    """The counters as committed."""
    value = txn.get(Table.SYS, COUNTERS_KEY)
    if value is None:
        raise CorruptionError("the filesystem has no counters")
    return unpack_counters(value)


def readable_segments(txn: ReadTransaction) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """(key, (extents, bytes, end)) of the segments whose rows are not damaged."""
    for key, value in txn.range(Table.SEGMENT, b""):
        with suppress(CorruptionError):
            body = records.unseal(Table.SEGMENT, key, value)
            if body is not None:
                yield key, records.unpack_plain(Table.SEGMENT, key, body)


def read_extents(txn: ReadTransaction) -> tuple[int, int]:
    """How many extents there are, those that only snapshots see included, and in how many segments; a row a segment.

    Segments whose rows are damaged do not count.
    """
    found = [extents for _, (extents, _, _) in readable_segments(txn)]
    return sum(found), len(found)
