"""How far a receive came that was cut: a row of `sys`, and as text the token that the sender is given to go on.

The row is written in the transaction that has what was staged up to there, so the two agree after any crash.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, fields
from typing import Final

from tzfs import limits
from tzfs.engine.chunks import CHUNK_INDEX_MAX
from tzfs.errors import CorruptionError, InvalidArgument
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.native import fnv1a32
from tzfs.store.interface import ReadTransaction

PARTIAL: Final = b"receive"  # in `sys`


@dataclass(frozen=True, slots=True)
class Partial:
    """Where a receive goes on: `to` is the snapshot under way, empty between two; `base` what it starts from, empty
    where that is nothing; guids are in hex.

    It goes on with inode `ino`, and of its contents with `chunk`; `anew` says how those were begun.  `source` is what
    the sender calls the filesystem.
    """

    source: str
    base: str
    to: str
    last: str
    ino: int
    chunk: int
    anew: bool


def pack_partial(partial: Partial) -> bytes:
    return records.pack_json(asdict(partial))


def read_partial(txn: ReadTransaction) -> Partial | None:
    """What a receive that was cut has left; None where there is none."""
    value = txn.get(Table.SYS, PARTIAL)
    body = None if value is None else records.unseal(Table.SYS, PARTIAL, value)
    if body is None:
        return None
    partial = _partial(records.unpack_json(Table.SYS, PARTIAL, body))
    if partial is None:
        raise records.damaged(Table.SYS, PARTIAL, "not what a receive leaves")
    return partial


def _partial(said: object) -> Partial | None:
    """The row, if it is what it must be."""
    kinds = {"str": str, "int": int, "bool": bool}
    if not isinstance(said, dict) or said.keys() != {f.name for f in fields(Partial)}:
        return None
    if any(type(said[f.name]) is not kinds[str(f.type)] for f in fields(Partial)):
        return None
    if not 0 <= said["ino"] <= limits.INO_MAX or not 0 <= said["chunk"] <= CHUNK_INDEX_MAX + 1:
        return None
    return Partial(**said)


def pack_token(partial: Partial) -> str:
    """The property `receive_resume_token`."""
    body = pack_partial(partial)
    return base64.urlsafe_b64encode(fnv1a32(body).to_bytes(4, "big") + body).decode().rstrip("=")


def unpack_token(token: str) -> Partial:
    """`InvalidArgument` where it is none."""
    try:
        whole = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        body = whole[4:]
        if fnv1a32(body).to_bytes(4, "big") != whole[:4]:
            raise ValueError
        partial = _partial(records.unpack_json(Table.SYS, PARTIAL, body))
    except (ValueError, CorruptionError):
        partial = None
    if partial is None:
        raise InvalidArgument("that is no resume token", hint="tzfs get -H -o value receive_resume_token FILESYSTEM")
    return partial
