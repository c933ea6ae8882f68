"""The store's log: what was done to filesystems by name, created, renamed, set and destroyed; rows of the catalog.

An entry is a row `log/<16 hex>` of `catalog_store`, written in the transaction that does what it says, so it is there
if and only if that has happened.  Numbers ascend by one; the newest `ENTRIES_MAX` are kept.  What is done to snapshots
and contents is in the log of the filesystem itself (`engine/journal.py`); an entry here has its `guid`, by which the
two are shown together, also under another name.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from tzfs.format.keys import Table
from tzfs.format.log import Entry, Field, pack_entry, unpack_entry
from tzfs.format.records import seal, unseal
from tzfs.store.interface import ReadTransaction, WriteTransaction

ENTRIES_MAX: Final = 8192  # 200 bytes each, in a table that is read for `tzfs log` alone
REMOVED_MAX: Final = 8

_LOG: Final = b"log/"
_END: Final = b"log0"


def note(txn: WriteTransaction, now_ns: int, kind: str, /, **fields: Field) -> None:
    """An entry of what `txn` does."""
    newest = next(read(txn), None)
    number = 1 if newest is None else newest.number + 1
    key = _key(number)
    txn.put(Table.CATALOG_STORE, key, seal(Table.CATALOG_STORE, key, pack_entry(now_ns, kind, fields)))
    old = txn.range(Table.CATALOG_STORE, _LOG, _key(max(0, number - ENTRIES_MAX) + 1))
    for gone in [key for key, _ in islice(old, REMOVED_MAX)]:
        txn.delete(Table.CATALOG_STORE, gone)


def read(txn: ReadTransaction) -> Iterator[Entry]:
    """All entries, the newest first."""
    for key, value in txn.range(Table.CATALOG_STORE, _LOG, _END, reverse=True):
        body = unseal(Table.CATALOG_STORE, key, value) or b""
        yield unpack_entry(Table.CATALOG_STORE, key, body, int(key[len(_LOG) :], 16))


def _key(number: int) -> bytes:
    return _LOG + f"{number:016x}".encode()
