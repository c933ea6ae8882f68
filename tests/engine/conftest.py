"""Engines on stores in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tzfs.engine.compression import OFF, Compression
from tzfs.engine.engine import Engine, Settings
from tzfs.limits import CHUNK_SHIFT_DEFAULT
from tzfs.store.memory import MemoryMeta, MemoryPayload

GUID = bytes(range(16))


class Workspace:
    """An engine that can be closed, or broken off, and opened again."""

    def __init__(self, compression: Compression = OFF, *, chunk_shift: int = CHUNK_SHIFT_DEFAULT) -> None:
        self.meta, self.payload = MemoryMeta(), MemoryPayload()
        self.settings = Settings(compression=compression, chunk_shift=chunk_shift)
        Engine.format(self.meta, guid=GUID, now_ns=1)
        self.engine = Engine(self.meta, self.payload, settings=self.settings)

    def file(self, name: bytes, data: bytes = b"", parent: int = 1) -> int:
        ino = self.engine.mknod(parent, name, 0o100644, uid=1, gid=1).ino
        if data:
            self.engine.write(ino, 0, data)
        return ino

    def crash(self) -> None:
        self.engine.abandon()
        self.reopen()

    def restart(self) -> None:
        self.engine.close()
        self.reopen()

    def reopen(self) -> None:
        """The same stores in a new engine; the old one has been closed, or broken off."""
        self.meta, self.payload = self.meta.after_crash(), self.payload.after_crash()
        self.engine = Engine(self.meta, self.payload, settings=self.settings)

    def settle(self) -> None:
        """All background work done and committed."""
        self.engine.collect()

    def beside(self, kind: str) -> None:
        """What goes on beside operations: a flush that begins or ends, changes that become rows, a commit."""
        if kind == "begin":
            if self.engine.flushing is None:
                self.engine.begin_flush()
        elif kind == "end":
            self.engine.end_flush()
        elif kind == "absorb":
            self.engine.absorb()
        else:
            self.engine.commit()

    def assert_sound(self) -> None:
        assert self.engine.problems() == []
        assert self.engine.drift == []


@pytest.fixture
def ws() -> Iterator[Workspace]:
    workspace = Workspace()
    yield workspace
    if workspace.engine.failed is None:
        workspace.assert_sound()
        workspace.engine.close()


@pytest.fixture
def make() -> Callable[[], Workspace]:
    return Workspace
