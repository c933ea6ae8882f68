"""The rows of the catalog: what a store knows of itself and of its filesystems, as values in and rows out.

In `catalog`, one record a filesystem, under its name:

    name                    {guid, partition, state, created_ns, created_as, changed_ns, namespace, origin, properties}

In `catalog_store`, what belongs to the store, and two indexes that let a command touch a few rows instead of all:

    store                   {format, compat, ro_compat, incompat, guid, created_ns}
    partition/<16 hex>      the name of the filesystem that has this number
    pending/<16 hex>        empty; the filesystem of this number is in CREATING or DELETING
    scope/                  {properties} set on the whole store
    scope/<namespace>/      {properties} set on a namespace
    log/<16 hex>            an entry of the store's log: what was done to the names of filesystems (`catalog_log`)

Bodies are canonical JSON (names in `partition/` are plain UTF-8).  A row holds at most a page, and properties may be
longer: a body of more than `PIECE_BYTES` goes on in rows `key ‖ 00 ‖ n`, n = 1, 2, ... in one byte; a full piece may
be followed by another.  No name has a NUL in it, so a record's pieces follow it and are nobody else's.  Fields that
this version does not know are kept as they are.

In `catalog_hold`, a row for each clone, empty, by which its origin's snapshot is kept:

    <16 hex of the origin>/<32 hex of the snapshot's guid>/<16 hex of the clone>

Invariants: the record of a clone has `origin`, the first two parts of its row there, and no other record has a row;
each filesystem's record has exactly one `partition` row, and a `pending` row if and only if its state is a
passing one; they change in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tzfs.errors import CorruptionError, LimitReached
from tzfs.format.keys import Table
from tzfs.format.records import damaged, pack_json, seal, unpack_json, unseal
from tzfs.lifecycle import State
from tzfs.names import FilesystemName, Scope, parse_filesystem
from tzfs.store.interface import ReadTransaction, Row, WriteTransaction

STORE_FORMAT: Final = 1
PIECE_BYTES: Final = 4000  # with its envelope it fits a page, as an inline file does
PIECES_MAX: Final = 64  # 256,000 bytes: 31 user properties of the greatest length, or thousands of short ones

_STORE_KEY: Final = b"store"
_PARTITION: Final = b"partition/"
_PENDING: Final = b"pending/"
_SCOPE: Final = b"scope/"
_PASSING: Final = frozenset((State.CREATING, State.DELETING))


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """What a store says of itself.  The flags are bit sets; a set bit in `incompat` keeps an unknowing version out, in
    `ro_compat` from writing."""

    guid: str
    created_ns: int
    format: int = STORE_FORMAT
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0


@dataclass(frozen=True, slots=True)
class FilesystemRecord:
    """One filesystem.  `partition` was computed from `created_as`, its first name; a renamed one keeps both.

    `changed_ns` is when it came into its state.  `extra` are fields of a later version.
    """

    name: FilesystemName
    guid: str
    partition: int
    state: State
    created_ns: int
    created_as: str
    changed_ns: int
    origin: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)

    def moved(self, state: State, now_ns: int) -> FilesystemRecord:
        return replace(self, state=state, changed_ns=now_ns)


# -- the store ---------------------------------------------------------------------------------------------------------


def get_store(txn: ReadTransaction) -> StoreRecord | None:
    fields = _get_json(txn, Table.CATALOG_STORE, _STORE_KEY)
    if fields is None:
        return None
    take = _Fields(Table.CATALOG_STORE, _STORE_KEY, fields)
    return StoreRecord(
        guid=take.text("guid"),
        created_ns=take.number("created_ns"),
        format=take.number("format"),
        compat=take.number("compat"),
        ro_compat=take.number("ro_compat"),
        incompat=take.number("incompat"),
    )


def put_store(txn: WriteTransaction, record: StoreRecord) -> None:
    fields = {
        "guid": record.guid,
        "created_ns": record.created_ns,
        "format": record.format,
        "compat": record.compat,
        "ro_compat": record.ro_compat,
        "incompat": record.incompat,
    }
    _put_body(txn, Table.CATALOG_STORE, _STORE_KEY, pack_json(fields))


def get_scope(txn: ReadTransaction, scope: Scope) -> dict[str, str]:
    """The properties set on a scope; none are an empty dict."""
    key = _scope_key(scope)
    fields = _get_json(txn, Table.CATALOG_STORE, key)
    return {} if fields is None else _Fields(Table.CATALOG_STORE, key, fields).texts("properties")


def put_scope(txn: WriteTransaction, scope: Scope, properties: Mapping[str, str]) -> None:
    key = _scope_key(scope)
    if properties:
        _put_body(txn, Table.CATALOG_STORE, key, pack_json({"properties": dict(properties)}))
    else:
        _delete_body(txn, Table.CATALOG_STORE, key)


def _scope_key(scope: Scope) -> bytes:
    return _SCOPE + (str(scope).encode() if scope.namespace else b"")


# -- filesystems -------------------------------------------------------------------------------------------------------


def get_filesystem(txn: ReadTransaction, name: FilesystemName) -> FilesystemRecord | None:
    key = str(name).encode()
    fields = _get_json(txn, Table.CATALOG, key)
    return None if fields is None else _decode(key, fields)


def filesystems(txn: ReadTransaction, scope: Scope) -> Iterator[FilesystemRecord | CorruptionError]:
    """The records within `scope` by name; for one that is damaged, what is wrong with it."""
    start = str(scope).encode() if scope.namespace else b""
    stop = start[:-1] + b"0" if start else None  # "0" follows "/"
    rows = txn.range(Table.CATALOG, start, stop)
    row = next(rows, None)
    while row is not None:
        key, pieces = row[0], [row]
        while (row := next(rows, None)) is not None and row[0].startswith(key + b"\0"):
            pieces.append(row)
        try:
            yield _decode(key, _parse(Table.CATALOG, key, pieces))
        except CorruptionError as error:
            yield error


def put_filesystem(txn: WriteTransaction, record: FilesystemRecord) -> None:
    """Writes the record, its number and its pending mark."""
    fields = {
        **record.extra,
        "guid": record.guid,
        "partition": f"{record.partition:016x}",
        "state": record.state.value,
        "created_ns": record.created_ns,
        "created_as": record.created_as,
        "changed_ns": record.changed_ns,
        "namespace": record.name.namespace,
        "origin": record.origin,
        "properties": dict(record.properties),
    }
    key, number = str(record.name).encode(), f"{record.partition:016x}".encode()
    if record.origin is not None:
        _put_row(txn, Table.CATALOG_HOLD, f"{record.origin}/".encode() + number, b"")
    _put_body(txn, Table.CATALOG, key, pack_json(fields))
    _put_row(txn, Table.CATALOG_STORE, _PARTITION + number, key)
    if record.state in _PASSING:
        _put_row(txn, Table.CATALOG_STORE, _PENDING + number, b"")
    else:
        txn.delete(Table.CATALOG_STORE, _PENDING + number)


def delete_filesystem(txn: WriteTransaction, record: FilesystemRecord) -> None:
    """Removes the record, its number and its pending mark."""
    number = f"{record.partition:016x}".encode()
    _delete_body(txn, Table.CATALOG, str(record.name).encode())
    txn.delete(Table.CATALOG_STORE, _PARTITION + number)
    txn.delete(Table.CATALOG_STORE, _PENDING + number)
    if record.origin is not None:
        txn.delete(Table.CATALOG_HOLD, f"{record.origin}/".encode() + number)


def origin_text(partition: int, snapshot: bytes) -> str:
    """What the record of a clone says of its origin: the filesystem's number and the snapshot's guid."""
    return f"{partition:016x}/{snapshot.hex()}"


def origin_parts(origin: str) -> tuple[int, str]:
    """The origin's number and its snapshot's guid, in hex."""
    number, _, guid = origin.partition("/")
    try:
        return int(number, 16), guid
    except ValueError:
        raise CorruptionError(f"the catalog has an origin that is none: {origin!r}") from None


def clones_of(txn: ReadTransaction, partition: int) -> list[tuple[str, FilesystemRecord]]:
    """(guid of the snapshot, clone) for each clone of a snapshot of that filesystem."""
    found = []
    start = f"{partition:016x}/".encode()
    for key, _ in txn.range(Table.CATALOG_HOLD, start, start[:-1] + b"0"):
        _, guid, clone = key.decode().split("/")
        record = find_partition(txn, int(clone, 16))
        if record is not None:
            found.append((guid, record))
    return sorted(found, key=lambda pair: str(pair[1].name))


def release_origin(txn: WriteTransaction, record: FilesystemRecord) -> FilesystemRecord:
    """The filesystem is a clone no more, and keeps nobody's snapshot."""
    delete_filesystem(txn, record)
    released = replace(record, origin=None)
    put_filesystem(txn, released)
    return released


def rename_filesystem(txn: WriteTransaction, record: FilesystemRecord, name: FilesystemName) -> FilesystemRecord:
    """The same record under another name, which must be free."""
    _delete_body(txn, Table.CATALOG, str(record.name).encode())
    renamed = replace(record, name=name)
    put_filesystem(txn, renamed)
    return renamed


def find_partition(txn: ReadTransaction, partition: int) -> FilesystemRecord | None:
    """The filesystem that has this number."""
    key = _PARTITION + f"{partition:016x}".encode()
    value = txn.get(Table.CATALOG_STORE, key)
    if value is None:
        return None
    body = unseal(Table.CATALOG_STORE, key, value)
    try:
        record = get_filesystem(txn, parse_filesystem((body or b"").decode()))
    except (UnicodeDecodeError, ValueError):
        raise damaged(Table.CATALOG_STORE, key, "not a name") from None
    if record is None or record.partition != partition:
        raise damaged(Table.CATALOG_STORE, key, "names a filesystem that has another number, or none")
    return record


def pending(txn: ReadTransaction) -> list[int]:
    """The numbers of the filesystems in CREATING or DELETING."""
    numbers = []
    for key, _ in txn.range(Table.CATALOG_STORE, _PENDING, _PENDING[:-1] + b"0"):
        try:
            numbers.append(int(key[len(_PENDING) :], 16))
        except ValueError:
            raise damaged(Table.CATALOG_STORE, key, "not a number") from None
    return numbers


def clear_pending(txn: WriteTransaction, partition: int) -> None:
    txn.delete(Table.CATALOG_STORE, _PENDING + f"{partition:016x}".encode())


def _decode(key: bytes, fields: dict[str, object]) -> FilesystemRecord:
    take = _Fields(Table.CATALOG, key, fields)
    try:
        name = parse_filesystem(key.decode())
        partition = int(take.text("partition"), 16)
        state = State(take.text("state"))
    except Exception as error:
        if isinstance(error, CorruptionError):
            raise
        raise damaged(Table.CATALOG, key, f"not a filesystem's: {error}") from None
    if not 0 <= partition < 1 << 64:
        raise damaged(Table.CATALOG, key, "its number is out of range")
    record = FilesystemRecord(
        name=name,
        guid=take.text("guid"),
        partition=partition,
        state=state,
        created_ns=take.number("created_ns"),
        created_as=take.text("created_as"),
        changed_ns=take.number("changed_ns"),
        origin=None if fields.get("origin") is None else take.text("origin"),
        properties=take.texts("properties"),
    )
    return replace(record, extra={k: v for k, v in fields.items() if k not in _KNOWN})


_KNOWN: Final = frozenset(
    ("guid", "partition", "state", "created_ns", "created_as", "changed_ns", "namespace", "origin", "properties")
)


class _Fields:
    """A JSON object whose fields are taken by type; a field that is missing or of another type is damage."""

    def __init__(self, table: Table, key: bytes, fields: Mapping[str, object]) -> None:
        self._table, self._key, self._fields = table, key, fields

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise damaged(self._table, self._key, f"{name} is not text")
        return value

    def number(self, name: str) -> int:
        value = self._fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise damaged(self._table, self._key, f"{name} is not a number")
        return value

    def texts(self, name: str) -> dict[str, str]:
        value = self._fields.get(name)
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise damaged(self._table, self._key, f"{name} is not a table of strings")
        return value


# -- rows and pieces ---------------------------------------------------------------------------------------------------


def _get_json(txn: ReadTransaction, table: Table, key: bytes) -> dict[str, object] | None:
    value = txn.get(table, key)
    if value is None:
        return None
    rows = [(key, value)]
    while len(rows[-1][1]) > PIECE_BYTES:  # with its envelope: a full piece
        piece_key = key + bytes((0, len(rows)))
        more = txn.get(table, piece_key)
        if more is None:
            break
        rows.append((piece_key, more))
    return _parse(table, key, rows)


def _parse(table: Table, key: bytes, rows: list[Row]) -> dict[str, object]:
    body = b"".join(unseal(table, row_key, value) or b"" for row_key, value in rows)
    fields = unpack_json(table, key, body)
    if not isinstance(fields, dict):
        raise damaged(table, key, "not a JSON object")
    return fields


def _put_row(txn: WriteTransaction, table: Table, key: bytes, body: bytes) -> None:
    txn.put(table, key, seal(table, key, body))


def _put_body(txn: WriteTransaction, table: Table, key: bytes, body: bytes) -> None:
    if len(body) > PIECE_BYTES * PIECES_MAX:
        raise LimitReached(
            f"the properties of {key.decode(errors='replace')} would take {len(body)} bytes; "
            f"at most {PIECE_BYTES * PIECES_MAX} are allowed"
        )
    _delete_body(txn, table, key)
    _put_row(txn, table, key, body[:PIECE_BYTES])
    for number, at in enumerate(range(PIECE_BYTES, len(body), PIECE_BYTES), 1):
        _put_row(txn, table, key + bytes((0, number)), body[at : at + PIECE_BYTES])


def _delete_body(txn: WriteTransaction, table: Table, key: bytes) -> None:
    txn.delete(table, key)
    for piece, _ in list(txn.range(table, key + b"\0", key + b"\1")):
        txn.delete(table, piece)
