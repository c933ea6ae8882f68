"""A look-up in a clone of a clone asks each filesystem up to the one that has it, once for each row, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.engine.conftest import GUID
from tzfs.engine.beginning import format_clone
from tzfs.engine.cloning import kinds_of
from tzfs.engine.engine import Engine
from tzfs.engine.inherited import Above, Ancestry
from tzfs.format.keys import Epoch, Table
from tzfs.format.superblock import Origin
from tzfs.store.interface import ReadTransaction, Row
from tzfs.store.memory import MemoryMeta, MemoryPayload

DEPTH = 5
FILES = 200


class Counted:
    """A read transaction that counts what it is asked, and whether it has ended."""

    def __init__(self, txn: ReadTransaction, asked: Counter[str]) -> None:
        self._txn, self._asked = txn, asked
        asked["begin"] += 1

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._txn.get(table, key)

    def get_many(self, table: Table, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._txn.get_many(table, keys)

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        self._asked["seek"] += 1
        return self._txn.seek(table, prefix, epoch)

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        self._asked["seek_many"] += 1
        return self._txn.seek_many(table, prefixes, epoch)

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        self._asked["range"] += 1
        return self._txn.range(table, start, stop, reverse=reverse)

    def close(self) -> None:
        self._asked["end"] += 1
        self._txn.close()


class CountedTables:
    """An origin's tables, whose transactions are counted."""

    def __init__(self, meta: MemoryMeta) -> None:
        self.meta = meta
        self.asked: Counter[str] = Counter()

    def begin_read(self) -> ReadTransaction:
        return Counted(self.meta.begin_read(), self.asked)


def chain() -> tuple[Engine, list[CountedTables]]:
    """A filesystem of `FILES` files, and the deepest of clones of it; and the origins, nearest first."""
    meta, payload = MemoryMeta(), MemoryPayload()
    Engine.format(meta, guid=GUID, now_ns=1)
    engine = Engine(meta, payload)
    for i in range(FILES):
        engine.mknod(1, b"%03d" % i, 0o100644, uid=0, gid=0)
    above: Ancestry | None = None
    origins: list[CountedTables] = []
    for _ in range(DEPTH):
        record, counters = engine.snapshot("s"), engine.counters
        link = Origin(GUID.hex(), 1, record.guid.hex(), record.epoch, counters.next_ino, counters.next_data)
        engine.close()
        origins.insert(0, CountedTables(meta))
        above = Ancestry(Above(origins[0], payload, link, above))
        meta, payload = MemoryMeta(), MemoryPayload()
        format_clone(meta, guid=GUID, now_ns=1, origin=link, kinds=kinds_of(record))
        engine = Engine(meta, payload, ancestry=above)
    for each in origins:
        each.asked.clear()
    return engine, origins


def test_a_look_up_asks_each_origin_once_for_a_row_in_one_transaction() -> None:
    engine, origins = chain()
    engine.lookup(1, b"000")  # with the root, which is in memory from then on
    for each in origins:
        each.asked.clear()
    engine.lookup(1, b"007")  # an entry and an inode
    for each in origins:
        assert each.asked == {"begin": 1, "seek": 2, "end": 1}
    engine.close()


def test_a_listing_with_attributes_asks_each_origin_once_for_a_table() -> None:
    engine, origins = chain()
    assert len(engine.readdir_plus(1, b"", FILES)) == FILES
    for each in origins:
        assert (each.asked["range"], each.asked["seek_many"]) == (1, 1)
        assert each.asked["begin"] == each.asked["end"]
    engine.close()


def test_a_name_that_was_changed_is_not_looked_for_above() -> None:
    engine, origins = chain()
    engine.unlink(1, b"001")
    engine.rename(1, b"002", 1, b"new", 0)
    engine.commit()
    for each in origins:
        each.asked.clear()
    assert engine.find(1, b"001") is None
    assert engine.find(1, b"002") is None
    for each in origins:
        assert not each.asked
    engine.close()
