"""A listing with attributes looks all inodes of a page up at once, and never one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from tests.engine.conftest import GUID
from tzfs.engine.engine import Engine
from tzfs.format.keys import Epoch, Table
from tzfs.store.interface import Row
from tzfs.store.memory import MemoryMeta, MemoryPayload, MemoryWrite

FILES = 1000


class Counting(MemoryWrite):
    """A transaction that counts what it is asked."""

    asked: ClassVar[Counter[str]] = Counter()

    def get(self, table: Table, key: bytes) -> bytes | None:
        self.asked["get"] += 1
        return super().get(table, key)

    def seek(self, table: Table, prefix: bytes, epoch: int) -> tuple[Epoch, bytes] | None:
        self.asked["seek"] += 1
        return super().seek(table, prefix, epoch)

    def seek_many(self, table: Table, prefixes: Sequence[bytes], epoch: int) -> list[tuple[Epoch, bytes] | None]:
        self.asked["seek_many"] += 1
        return [MemoryWrite.seek(self, table, prefix, epoch) for prefix in prefixes]

    def range(self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[Row]:
        self.asked["range"] += 1
        return super().range(table, start, stop, reverse=reverse)


class CountingMeta(MemoryMeta):
    def begin_write(self) -> MemoryWrite:
        began = super().begin_write()
        began.__class__ = Counting
        return began


@pytest.mark.parametrize("page", [10, 100, 1000])
def test_a_listing_with_attributes_makes_no_look_up_per_entry(page: int) -> None:
    meta, payload = CountingMeta(), MemoryPayload()
    Engine.format(meta, guid=GUID, now_ns=1)
    engine = Engine(meta, payload)
    for i in range(FILES):
        engine.mknod(1, b"%d" % i, 0o100644, uid=0, gid=0)
    engine.close()
    engine = Engine(meta, payload)  # nothing is in memory
    Counting.asked.clear()
    after, listed = b"", 0
    while batch := engine.readdir_plus(1, after, page):
        after, listed = batch[-1][0], listed + len(batch)
    assert listed == FILES
    pages = FILES // page
    assert Counting.asked["seek_many"] == pages
    assert Counting.asked["range"] == pages + 1
    assert Counting.asked["seek"] + Counting.asked["get"] <= 2, "the directory itself"
    engine.close()
