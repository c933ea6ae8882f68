"""The counters of a filesystem: one record, rewritten by every commit.

`epoch` counts snapshots, `txg` commits; `next_*` are the ids to be given next and only grow; the rest counts what lives.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from typing import Final

from tzfs.format.keys import DataId, Epoch, Ino, Table, Txg
from tzfs.format.records import damaged, unseal

COUNTERS_KEY: Final = b"counters"
_COUNTERS: Final = struct.Struct(">12Q")


@dataclass(slots=True)
class Counters:
    """`bytes` is what all live versions and extents are charged; the kinds of inodes add up to `inodes`."""

    epoch: Epoch = Epoch(1)
    txg: Txg = Txg(1)
    next_ino: Ino = Ino(2)
    next_data: DataId = DataId(1)
    next_segment: int = 1
    next_id: int = 1
    inodes: int = 0
    files: int = 0
    directories: int = 0
    symlinks: int = 0
    others: int = 0
    bytes: int = 0


def pack_counters(counters: Counters) -> bytes:
    return _COUNTERS.pack(*astuple(counters))


def unpack_counters(value: bytes) -> Counters:
    """From the stored value, envelope and all."""
    body = unseal(Table.SYS, COUNTERS_KEY, value)
    if body is None or len(body) != _COUNTERS.size:
        raise damaged(Table.SYS, COUNTERS_KEY, "wrong length")
    return Counters(*_COUNTERS.unpack(body))
