"""Records changed past all rules, as a bad disk changes them: a bit of the body, or where there is none of the sum."""

from __future__ import annotations

from tzfs.format import keys
from tzfs.format.keys import Table
from tzfs.store.interface import WriteTransaction


def damage_row(txn: WriteTransaction, table: Table, key: bytes) -> None:
    """The record under a whole key."""
    value = txn.get(table, key)
    assert value is not None
    txn.put(table, key, value[:-1] + bytes([value[-1] ^ 1]))


def damage(txn: WriteTransaction, table: Table, prefix: bytes) -> None:
    """The newest version of a record."""
    found = txn.seek(table, prefix, keys.EPOCH_MAX)
    assert found is not None
    damage_row(txn, table, prefix + keys.suffix(found[0]))
