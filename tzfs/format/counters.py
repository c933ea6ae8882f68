"""The counters of a filesystem: one record, rewritten by every commit.

`epoch` counts snapshots, `txg` commits; `next_*` are the ids to be given next and only grow; the rest counts what
lives.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

from tzfs.format.keys import ROOT, DataId, Epoch, Ino, Table, Txg
from tzfs.format.records import damaged, unseal

COUNTERS_KEY: Final = b"counters"
_COUNTERS: Final = struct.Struct(">12Q")


@dataclass(slots=True)
class Counters:
    """`bytes` is what all live versions and extents are charged; the kinds of inodes add up to `inodes`."""

    epoch: Epoch
    txg: Txg
    next_ino: Ino
    next_data: DataId
    next_segment: int
    next_id: int
    inodes: int
    files: int
    directories: int
    symlinks: int
    others: int
    bytes: int

    @classmethod
    def of_empty(cls) -> Counters:
        """Those of a filesystem with nothing but its root, which costs what the caller adds to `bytes`."""
        return cls(Epoch(1), Txg(1), Ino(ROOT + 1), DataId(1), 1, 1, 1, 0, 1, 0, 0, 0)


_FIELDS: Final = attrgetter(*(field.name for field in fields(Counters)))


def pack_counters(counters: Counters) -> bytes:
    return _COUNTERS.pack(*_FIELDS(counters))


def unpack_counters(value: bytes) -> Counters:
    """From the stored value, envelope and all."""
    body = unseal(Table.SYS, COUNTERS_KEY, value)
    if body is None or len(body) != _COUNTERS.size:
        raise damaged(Table.SYS, COUNTERS_KEY, "wrong length")
    return Counters(*_COUNTERS.unpack(body))
