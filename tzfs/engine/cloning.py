"""What a clone needs to know of the snapshot that it is made from, whatever its size."""

from __future__ import annotations

from tzfs.engine.snapshots import KINDS
from tzfs.errors import WrongState
from tzfs.format.records import Snapshot


def kinds_of(snapshot: Snapshot) -> tuple[int, int, int, int]:
    """How many files, directories, symlinks and other inodes the snapshot has, from its record.

    `WrongState` for a record without them: the first versions did not write it.
    """
    kinds = snapshot.extra.get(KINDS)
    if not isinstance(kinds, list) or len(kinds) != 4 or not all(type(n) is int and n >= 0 for n in kinds):
        raise WrongState(
            "the snapshot was made by an earlier tzfs, which did not count what a clone must know",
            hint="take a new snapshot, and clone that",
        )
    files, directories, symlinks, others = kinds
    return files, directories, symlinks, others
