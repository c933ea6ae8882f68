"""The superblock: which format a filesystem has, and which generation of writers may commit to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Final

from tzfs.errors import ForeignStore
from tzfs.format.keys import Table
from tzfs.format.records import damaged, pack_json, seal, unpack_json, unseal

SUPERBLOCK_KEY: Final = b"superblock"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Superblock:
    guid: str
    created_ns: int
    version: int = FORMAT_VERSION
    generation: int = 0
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0

    @classmethod
    def new(cls, *, guid: bytes, created_ns: int) -> Superblock:
        return cls(guid.hex(), created_ns)

    def next_generation(self) -> Superblock:
        return replace(self, generation=self.generation + 1)

    def check(self, *, for_writing: bool) -> None:
        if self.version > FORMAT_VERSION or self.incompat or (for_writing and self.ro_compat):
            raise ForeignStore(f"filesystem has format version {self.version}")


def pack_superblock(s: Superblock) -> bytes:
    return seal(Table.SYS, SUPERBLOCK_KEY, pack_json(asdict(s)))


def unpack_superblock(value: bytes) -> Superblock:
    body = unseal(Table.SYS, SUPERBLOCK_KEY, value)
    fields = unpack_json(Table.SYS, SUPERBLOCK_KEY, body or b"")
    if not isinstance(fields, dict):
        raise damaged(Table.SYS, SUPERBLOCK_KEY)
    return Superblock(**fields)
