"""The rows of the catalog, byte for byte, as section 9 of FORMAT.md has them."""

from __future__ import annotations

from tzfs import catalog_rows as rows
from tzfs.format.keys import CATALOG_TABLES, Table
from tzfs.format.records import unseal
from tzfs.lifecycle import State
from tzfs.names import STORE_SCOPE, parse_filesystem
from tzfs.store.memory import MemoryMeta

RECORD = rows.FilesystemRecord(
    name=parse_filesystem("agents/ws"),
    guid="00112233445566778899aabbccddeeff",
    partition=0x00AB,
    state=State.CREATING,
    created_ns=1,
    created_as="agents/first",
    changed_ns=2,
    properties={"agent:task": "é"},
)
BODY = (
    '{"changed_ns":2,"created_as":"agents/first","created_ns":1,"guid":"00112233445566778899aabbccddeeff",'
    '"namespace":"agents","origin":null,"partition":"00000000000000ab","properties":{"agent:task":"é"},'
    '"state":"creating"}'
).encode()


def _bodies(meta: MemoryMeta) -> dict[tuple[int, bytes], bytes | None]:
    txn = meta.begin_read()
    try:
        return {(t, key): unseal(t, key, value) for t in CATALOG_TABLES for key, value in txn.range(t, b"")}
    finally:
        txn.close()


def test_a_filesystem_is_its_record_its_number_and_a_mark_while_it_passes() -> None:
    meta = MemoryMeta(tables=CATALOG_TABLES)
    txn = meta.begin_write()
    rows.put_filesystem(txn, RECORD)
    txn.commit()
    assert _bodies(meta) == {
        (32, b"agents/ws"): BODY,
        (33, b"partition/00000000000000ab"): b"agents/ws",
        (33, b"pending/00000000000000ab"): b"",
    }
    txn = meta.begin_write()
    rows.put_filesystem(txn, RECORD.moved(State.ACTIVE, 3))
    txn.commit()
    assert set(_bodies(meta)) == {(32, b"agents/ws"), (33, b"partition/00000000000000ab")}


def test_the_store_and_its_scopes_are_rows_of_their_own() -> None:
    meta = MemoryMeta(tables=CATALOG_TABLES)
    txn = meta.begin_write()
    rows.put_store(txn, rows.StoreRecord(guid="ff" * 16, created_ns=7))
    rows.put_scope(txn, STORE_SCOPE, {"dirty_max": "1M"})
    txn.commit()
    store = b'{"compat":0,"created_ns":7,"format":1,"guid":"' + b"ff" * 16 + b'","incompat":0,"ro_compat":0}'
    assert _bodies(meta) == {(33, b"store"): store, (33, b"scope/"): b'{"properties":{"dirty_max":"1M"}}'}


def test_a_record_sealed_whole_has_these_bytes() -> None:
    meta = MemoryMeta(tables=CATALOG_TABLES)
    txn = meta.begin_write()
    rows.put_filesystem(txn, RECORD)
    assert txn.get(Table.CATALOG_STORE, b"partition/00000000000000ab") == bytes.fromhex("0148dfd80f") + b"agents/ws"
    txn.close()


def test_a_long_body_goes_on_in_pieces_that_follow_it() -> None:
    meta = MemoryMeta(tables=CATALOG_TABLES)
    txn = meta.begin_write()
    rows.put_scope(txn, STORE_SCOPE, {"agent:long": "x" * 9000})
    txn.commit()
    found = _bodies(meta)
    assert [key for _, key in found] == [b"scope/", b"scope/\0\x01", b"scope/\0\x02"]
    pieces = [body or b"" for body in found.values()]
    assert [len(piece) for piece in pieces[:2]] == [4000, 4000]
    assert b"".join(pieces) == b'{"properties":{"agent:long":"' + b"x" * 9000 + b'"}}'
