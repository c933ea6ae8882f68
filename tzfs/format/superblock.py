"""The superblock: which format a filesystem has, who may open it, and which generation of writers may commit to it.

One record, `SUPERBLOCK_KEY` in table SYS, its body JSON.  It is written when the filesystem is made, when a writer
begins (the generation grows by one) and when a feature comes into use; never in between.  A writer compares the stored
bytes with its own in every commit: a difference means that another one has taken the lease, and fences it off.

Features are bits in three sets, by what a tzfs that does not know one may still do:

    compat      everything
    ro_compat   read; not write
    incompat    nothing

A bit is set in the commit that first writes what it stands for, and cleared, if ever, in the one that removes the last
of it.  `FEATURES` gives every bit that has a meaning a name, `SUPPORTED` says which of them this tzfs has.

Invariant: `unpack(pack(s)) == s`, fields that a later tzfs has added (`extra`) included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format.keys import DataId, Epoch, Ino, Table
from tzfs.format.records import damaged, pack_json, seal, unpack_json, unseal

SUPERBLOCK_KEY: Final = b"superblock"
FORMAT_VERSION: Final = 1

# How checksums, payload sums and names are made; another id is another method, which this tzfs does not have.
CHECKSUM: Final = "fnv1a-folded"
PAYLOAD_CHECKSUM: Final = "xxh3-32/4k"
NAMES: Final = "bytes"
CREATED_BY: Final = "0.1.0"  # tzfs.__version__, which is above this floor; a test compares them


class Kind(StrEnum):
    """A set of feature bits, by the name of its field."""

    COMPAT = "compat"
    RO_COMPAT = "ro_compat"
    INCOMPAT = "incompat"


@dataclass(frozen=True, slots=True)
class Feature:
    """One bit of one set: what its presence means."""

    kind: Kind
    bit: int
    name: str
    meaning: str


BOOKMARKS: Final = Feature(Kind.RO_COMPAT, 2, "bookmarks", "tombstones are kept for the differences since a bookmark")
SHARED_EXTENTS: Final = Feature(Kind.RO_COMPAT, 0, "shared_extents", "extents have two lifetimes or more, in `shared`")
STAGING: Final = Feature(
    Kind.RO_COMPAT, 1, "staging", "a rollback, receive or apply under way has rows born above the head"
)
ORIGIN: Final = Feature(Kind.INCOMPAT, 0, "origin", "what is not here is looked up in another filesystem's snapshot")
CODECS: Final = Feature(
    Kind.INCOMPAT, 1, "codecs", "extents or the contents of chunks are stored with a codec other than raw"
)
SAVED: Final = Feature(Kind.COMPAT, 0, "saved", "cells and dead rows have all that compression has saved")
FEATURES: Final = (
    SAVED,
    SHARED_EXTENTS,
    STAGING,
    BOOKMARKS,
    ORIGIN,
    CODECS,
    Feature(Kind.INCOMPAT, 2, "encryption", "extents or records are encrypted"),
)
SUPPORTED: Final[frozenset[Feature]] = frozenset({SAVED, SHARED_EXTENTS, STAGING, BOOKMARKS, ORIGIN, CODECS})


def feature_names(kind: Kind, bits: int) -> list[str]:
    """The names of the features in a set, lowest bit first; a bit without a name is `bit N`."""
    names = {f.bit: f.name for f in FEATURES if f.kind is kind}
    return [names.get(bit, f"bit {bit}") for bit in range(bits.bit_length()) if bits >> bit & 1]


@dataclass(frozen=True, slots=True)
class Origin:
    """The snapshot that a clone was made from, and the first ids that are the clone's own.

    `guid` and `partition` are the filesystem's, `snapshot` is the snapshot's guid (its name may change).  What has an
    id below `first_ino` or `first_data` and no version here is looked up there at `epoch`.
    """

    guid: str
    partition: int
    snapshot: str
    epoch: Epoch
    first_ino: Ino
    first_data: DataId


@dataclass(frozen=True, slots=True)
class Superblock:
    """`guid` is 32 hex digits; `created_by` the version of tzfs that made it; `extra` are fields of a later one."""

    guid: str
    created_ns: int
    created_by: str = CREATED_BY
    format_version: int = FORMAT_VERSION
    generation: int = 0
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    checksum: str = CHECKSUM
    payload_checksum: str = PAYLOAD_CHECKSUM
    names: str = NAMES
    origin: Origin | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def new(
        cls, *, guid: bytes, created_ns: int, created_by: str = CREATED_BY, origin: Origin | None = None
    ) -> Superblock:
        """That of a filesystem just made."""
        made = cls(guid.hex(), created_ns, created_by, origin=origin)
        return made if origin is None else made.with_features([ORIGIN])

    def next_generation(self) -> Superblock:
        """For the writer who has just taken the lease: whoever had it before cannot commit any more."""
        return replace(self, generation=self.generation + 1)

    def has(self, feature: Feature) -> bool:
        return self._bits(feature.kind) >> feature.bit & 1 == 1

    @property
    def saved_known(self) -> bool:
        """Whether the rows have all that compression has saved: nothing else was written before."""
        return self.has(SAVED) or not self.has(CODECS)

    def with_features(self, features: Iterable[Feature], *, on: bool = True) -> Superblock:
        """The same with the bits of `features` set, or cleared."""
        bits = {kind: self._bits(kind) for kind in Kind}
        for feature in features:
            bit = 1 << feature.bit
            bits[feature.kind] = bits[feature.kind] | bit if on else bits[feature.kind] & ~bit
        return replace(self, compat=bits[Kind.COMPAT], ro_compat=bits[Kind.RO_COMPAT], incompat=bits[Kind.INCOMPAT])

    def _bits(self, kind: Kind) -> int:
        return {Kind.COMPAT: self.compat, Kind.RO_COMPAT: self.ro_compat, Kind.INCOMPAT: self.incompat}[kind]

    def check(self, *, for_writing: bool) -> None:
        """Returns if this tzfs may open the filesystem; else `ForeignStore`, which says what it lacks."""
        if self.format_version > FORMAT_VERSION:
            raise _newer(self.format_version)
        for what, found, known in (
            ("record checksums", self.checksum, CHECKSUM),
            ("payload checksums", self.payload_checksum, PAYLOAD_CHECKSUM),
            ("names", self.names, NAMES),
        ):
            if found != known:
                raise ForeignStore(
                    f"filesystem {self.guid} has {what} of kind {found!r}, this tzfs knows {known!r}", hint=_NEWER_HINT
                )
        if missing := self._missing(Kind.INCOMPAT):
            raise ForeignStore(
                f"filesystem {self.guid} needs {missing}, which this tzfs does not have", hint=_NEWER_HINT
            )
        if for_writing and (missing := self._missing(Kind.RO_COMPAT)):
            raise ForeignStore(
                f"filesystem {self.guid} has {missing}, which this tzfs can read but not write",
                hint="use a newer tzfs to write it; its snapshots can be read with this one",
            )

    def _missing(self, kind: Kind) -> str:
        known = sum(1 << f.bit for f in SUPPORTED if f.kind is kind)
        return ", ".join(feature_names(kind, self._bits(kind) & ~known))


_NEWER_HINT: Final = "a newer tzfs wrote it; use that one"


def _newer(version: int) -> ForeignStore:
    return ForeignStore(f"filesystem has format version {version}, this tzfs knows {FORMAT_VERSION}", hint=_NEWER_HINT)


def pack_superblock(s: Superblock) -> bytes:
    """The value to store under `SUPERBLOCK_KEY`, envelope and all."""
    origin = None
    if s.origin is not None:
        o = s.origin
        origin = {
            "guid": o.guid,
            "partition": f"{o.partition:016x}",
            "snapshot": o.snapshot,
            "epoch": o.epoch,
            "first_ino": o.first_ino,
            "first_data": o.first_data,
        }
    fields: dict[str, object] = {
        **s.extra,
        "format_version": s.format_version,
        "guid": s.guid,
        "created_ns": s.created_ns,
        "created_by": s.created_by,
        "generation": s.generation,
        "compat": s.compat,
        "ro_compat": s.ro_compat,
        "incompat": s.incompat,
        "checksum": s.checksum,
        "payload_checksum": s.payload_checksum,
        "names": s.names,
        "origin": origin,
    }
    return seal(Table.SYS, SUPERBLOCK_KEY, pack_json(fields))


def unpack_superblock(value: bytes) -> Superblock:
    """From the stored value.  `CorruptionError`; `ForeignStore` for a newer format version, before looking further."""
    body = unseal(Table.SYS, SUPERBLOCK_KEY, value)
    if body is None:
        raise _damaged("a tombstone")
    fields = _object(unpack_json(Table.SYS, SUPERBLOCK_KEY, body), "superblock")
    version = _number(fields, "format_version", lowest=1)
    if version > FORMAT_VERSION:
        raise _newer(version)
    origin = fields.pop("origin", None)
    return Superblock(
        format_version=version,
        guid=_guid(fields, "guid"),
        created_ns=_number(fields, "created_ns", lowest=None),
        created_by=_text(fields, "created_by"),
        generation=_number(fields, "generation"),
        compat=_number(fields, "compat"),
        ro_compat=_number(fields, "ro_compat"),
        incompat=_number(fields, "incompat"),
        checksum=_text(fields, "checksum"),
        payload_checksum=_text(fields, "payload_checksum"),
        names=_text(fields, "names"),
        origin=None if origin is None else _origin(_object(origin, "origin")),
        extra=fields,
    )


def _origin(fields: dict[str, object]) -> Origin:
    partition = _text(fields, "partition")
    if len(partition) != 16 or not _is_hex(partition):
        raise _damaged("partition of the origin is not 16 hex digits")
    return Origin(
        guid=_guid(fields, "guid"),
        partition=int(partition, 16),
        snapshot=_guid(fields, "snapshot"),
        epoch=Epoch(_number(fields, "epoch")),
        first_ino=Ino(_number(fields, "first_ino")),
        first_data=DataId(_number(fields, "first_data")),
    )


def _damaged(why: str) -> CorruptionError:
    return damaged(Table.SYS, SUPERBLOCK_KEY, why)


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _damaged(f"{what} is not an object")
    return value


def _number(fields: dict[str, object], name: str, *, lowest: int | None = 0) -> int:
    value = fields.pop(name, None)
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64 or (lowest is not None and value < lowest):
        raise _damaged(f"{name} is not a number in its range")
    return value


def _text(fields: dict[str, object], name: str) -> str:
    value = fields.pop(name, None)
    if not isinstance(value, str):
        raise _damaged(f"{name} is not a text")
    return value


def _guid(fields: dict[str, object], name: str) -> str:
    value = _text(fields, name)
    if len(value) != 32 or not _is_hex(value):
        raise _damaged(f"{name} is not 32 hex digits")
    return value


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdef" for c in text)
