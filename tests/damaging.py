"""Records changed past all rules, as a bad disk changes them."""

from __future__ import annotations

from tzfs.format import keys
from tzfs.format.keys import Table
from tzfs.store.interface import WriteTransaction


def damage(txn: WriteTransaction, table: Table, prefix: bytes) -> None:
    """A bit of the newest version of a record changes: of its body, or where it has none of its sum."""
    found = txn.seek(table, prefix, keys.EPOCH_MAX)
    assert found is not None
    txn.put(table, prefix + keys.suffix(found[0]), found[1][:-1] + bytes([found[1][-1] ^ 1]))
