"""A small filesystem with something of everything in it, and a way to change its rows behind the engine's back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tzfs import limits
from tzfs.engine.check.problems import Problem, Rule
from tzfs.engine.check.run import check
from tzfs.engine.engine import Engine, Settings
from tzfs.format import keys, records
from tzfs.format.counters import COUNTERS_KEY, Counters, pack_counters, unpack_counters
from tzfs.format.keys import LIVE, Ino, Table
from tzfs.format.records import Inode
from tzfs.format.slices import Slice, pack_slices, unpack_slices
from tzfs.store.interface import Row
from tzfs.store.memory import MemoryMeta, MemoryPayload

GUID = bytes(range(16))
PAGE = limits.PAGE_BYTES


class Damaged:
    """Tables and payload without an engine; rows are put and deleted with nothing else following."""

    def __init__(self, meta: MemoryMeta, payload: MemoryPayload) -> None:
        self.meta, self.payload = meta, payload

    def copy(self) -> Damaged:
        return Damaged(self.meta.after_crash(), self.payload.after_crash())

    def problems(self, *, read_payload: bool = False) -> list[Problem]:
        txn = self.meta.begin_read()
        try:
            found = list(check(txn, self.payload, read_payload=read_payload))
        finally:
            txn.close()
        return [each for each in found if isinstance(each, Problem)]

    def rules(self, *, read_payload: bool = False) -> set[Rule]:
        return {problem.rule for problem in self.problems(read_payload=read_payload)}

    # -- rows --------------------------------------------------------------------------------------------------------

    def rows(self, table: Table, start: bytes = b"") -> list[Row]:
        txn = self.meta.begin_read()
        try:
            return [row for row in txn.range(table, start) if row[0].startswith(start)]
        finally:
            txn.close()

    def put_value(self, table: Table, key: bytes, value: bytes) -> None:
        txn = self.meta.begin_write()
        txn.put(table, key, value)
        txn.commit()

    def put(self, table: Table, key: bytes, body: bytes) -> None:
        self.put_value(table, key, records.seal(table, key, body))

    def put_numbers(self, table: Table, key: bytes, *numbers: int) -> None:
        self.put(table, key, records.pack_plain(table, *numbers))

    def delete(self, table: Table, key: bytes) -> None:
        txn = self.meta.begin_write()
        assert txn.delete(table, key)
        txn.commit()

    def body(self, table: Table, key: bytes) -> bytes:
        ((_, value),) = self.rows(table, key)
        body = records.unseal(table, key, value)
        assert body is not None
        return body

    def numbers(self, table: Table, key: bytes) -> tuple[int, ...]:
        return records.unpack_plain(table, key, self.body(table, key))

    def key(self, table: Table, prefix: bytes, version: int = 0) -> bytes:
        """The key of a version, 0 being the newest."""
        return self.rows(table, prefix)[version][0]

    # -- what is often changed -----------------------------------------------------------------------------------------

    def inode(self, ino: int, **fields: object) -> Inode:
        """The newest version of an inode, with some of its fields changed."""
        key = self.key(Table.INODE, keys.inode(ino))
        inode = records.unpack_inode(Ino(ino), key, self.body(Table.INODE, key))
        for name, value in fields.items():
            setattr(inode, name, value)
        self.put(Table.INODE, key, records.pack_inode(inode))
        return inode

    def slices(self, data: int, index: int = 0, change: Callable[[Slice], Slice] = lambda s: s) -> Slice:
        """The first slice of a chunk, changed."""
        key = self.key(Table.CHUNK, keys.chunk(data, index))
        first, *rest = unpack_slices(Table.CHUNK, key, self.body(Table.CHUNK, key))
        changed = change(first)
        self.put(Table.CHUNK, key, pack_slices((changed, *rest)))
        return changed

    def counters(self, **more: int) -> Counters:
        """The counters, with something added to some."""
        txn = self.meta.begin_read()
        counters = unpack_counters(txn.get(Table.SYS, COUNTERS_KEY) or b"")
        txn.close()
        for name, by in more.items():
            setattr(counters, name, getattr(counters, name) + by)
        self.put(Table.SYS, COUNTERS_KEY, pack_counters(counters))
        return counters

    def cell(self, death: int, birth: int, number: int, charge: int) -> None:
        """Adds to a cell; to the counter of what lives as well."""
        key = keys.cell(death, birth)
        old = self.numbers(Table.CELL, key) if self.rows(Table.CELL, key) else (0, 0)
        if old[0] + number:
            self.put_numbers(Table.CELL, key, old[0] + number, old[1] + charge)
        else:
            self.delete(Table.CELL, key)
        if death == LIVE:
            self.counters(bytes=charge)

    def use(self, segment: int, extents: int, size: int, end: int = 0) -> None:
        """Adds to a segment's use."""
        key = keys.segment(segment)
        old = self.numbers(Table.SEGMENT, key)
        self.put_numbers(Table.SEGMENT, key, old[0] + extents, old[1] + size, old[2] + end)

    def dead(self, table: Table, prefix: bytes) -> tuple[bytes, int, int, int]:
        """The one row of the deadlist about a version of `prefix`, the oldest: (key, death, birth, charge)."""
        for key, _ in self.rows(Table.DEAD):
            death, birth, of, about = keys.dead_parts(key)
            if (of, about) == (table, prefix):
                return key, death, birth, self.numbers(Table.DEAD, key)[0]
        raise LookupError(f"nothing of {table.name} {prefix.hex()} is dead")


class History:
    """What `everything` made: inode numbers and data ids by name."""

    def __init__(self, damaged: Damaged, inos: dict[str, int], data: dict[str, int]) -> None:
        self.fs, self.ino, self.data = damaged, inos, data


def everything(monkeypatch: pytest.MonkeyPatch) -> History:
    """Files inline, in chunks, with holes, with two names; directories; attributes short and long; three snapshots and
    changes between them; an orphan; a range being reclaimed; extents that wait to be punched."""
    monkeypatch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 2)
    meta, payload = MemoryMeta(), MemoryPayload()
    Engine.format(meta, guid=GUID, now_ns=1)
    engine = Engine(meta, payload, settings=Settings(chunk_shift=12), clock=lambda: 5)
    ino: dict[str, int] = {}

    def file(name: str, content: bytes = b"", parent: int = 1) -> None:
        ino[name] = engine.mknod(parent, name.encode(), 0o100644, uid=1, gid=1).ino
        engine.write(ino[name], 0, content)

    for name, parent in (("top", "root"), ("middle", "top"), ("bottom", "middle"), ("empty", "root")):
        ino[name] = engine.mkdir(ino.get(parent, 1), name.encode(), 0o755, uid=1, gid=1).ino
    file("small", b"small" * 100)
    file("other", b"other" * 100)
    file("large", bytes(range(1, 251)) * 60)
    file("two", b"2" * 5000, ino["top"])
    engine.link(ino["two"], ino["bottom"], b"two again")
    file("sparse", b"s" * 4500)
    engine.write(ino["sparse"], 30_000, b"s" * 4500)
    file("long", b"l" * 40_000)
    ino["link"] = engine.symlink(1, b"link", b"t" * 4050, uid=1, gid=1).ino
    ino["fifo"] = engine.mknod(1, b"fifo", 0o010600, uid=1, gid=1).ino
    engine.setxattr(ino["small"], b"user.short", b"value")
    engine.setxattr(ino["small"], b"user.long", b"v" * 5000)
    file("gone", b"g" * 9000)
    file("held", b"h" * 6000)
    engine.snapshot("first")
    engine.setattr(ino["small"], mode=0o600)
    engine.write(ino["small"], 0, b"SMALL")
    engine.snapshot("second")
    engine.write(ino["large"], 4096, b"L" * 4096)
    engine.write(ino["sparse"], 100, b"S" * 50)
    engine.setxattr(ino["small"], b"user.long", b"V" * 6000)
    engine.rename(1, b"other", ino["top"], b"moved")
    engine.unlink(1, b"gone")
    engine.setattr(ino["long"], size=5000)
    engine.snapshot("third")
    engine.referenced = lambda number: number == ino["held"]
    engine.unlink(1, b"held")
    engine.write(ino["held"], 0, b"H" * 100)
    engine.write(ino["large"], 8192, b"M" * 4096)
    engine.commit()
    engine.write(ino["large"], 8192, b"N" * 4096)
    engine.commit()
    data: dict[str, int] = {name: engine.inode(number).data for name, number in ino.items() if name != "gone"}
    assert engine.problems() == []
    engine.close()
    return History(Damaged(meta.after_crash(), payload.after_crash()), ino, data)
