"""The stores under test, made and made again, and a second process for what is between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from tzfs.format.keys import ExtentId
from tzfs.store.interface import Buffer, MetaStore, PayloadStore
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.memory import MemoryMeta, MemoryPayload
from tzfs.store.segments import Segments

REPOSITORY: Final = Path(__file__).parents[2]
GUID: Final = bytes(range(16))
SMALL_SEGMENT: Final = 1 << 20


class Made(Protocol):
    """One kind of store in one place."""

    name: str

    def meta(self, *, readonly: bool = False) -> MetaStore: ...

    def payload(self, *, segment_bytes_max: int = SMALL_SEGMENT) -> PayloadStore: ...

    def meta_again(self, meta: MetaStore) -> MetaStore:
        """What the next process finds, the present one having closed the store."""
        ...

    def payload_again(self, payload: PayloadStore) -> PayloadStore: ...


class OnDisk:
    name = "disk"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def meta(self, *, readonly: bool = False) -> MetaStore:
        if readonly:
            LmdbMeta(self.directory / "meta", create=True).close()
        return LmdbMeta(self.directory / "meta", create=not readonly, readonly=readonly)

    def payload(self, *, segment_bytes_max: int = SMALL_SEGMENT) -> PayloadStore:
        return Segments(self.directory / "segments", guid=GUID, create=True, segment_bytes_max=segment_bytes_max)

    def meta_again(self, meta: MetaStore) -> MetaStore:
        meta.close()
        return LmdbMeta(self.directory / "meta")

    def payload_again(self, payload: PayloadStore) -> PayloadStore:
        payload.close()
        return Segments(self.directory / "segments", guid=GUID, segment_bytes_max=SMALL_SEGMENT)


class InMemory:
    name = "memory"

    def __init__(self, directory: Path) -> None:
        pass

    def meta(self, *, readonly: bool = False) -> MetaStore:
        return MemoryMeta(readonly=readonly)

    def payload(self, *, segment_bytes_max: int = SMALL_SEGMENT) -> PayloadStore:
        return MemoryPayload(segment_bytes_max=segment_bytes_max)

    def meta_again(self, meta: MetaStore) -> MetaStore:
        assert isinstance(meta, MemoryMeta)
        return meta.after_crash()

    def payload_again(self, payload: PayloadStore) -> PayloadStore:
        assert isinstance(payload, MemoryPayload)
        return payload.after_crash()


KINDS: Final[tuple[type[OnDisk] | type[InMemory], ...]] = (OnDisk, InMemory)


def opened(
    directory: Path, *, readonly: bool = False, segment_bytes_max: int = SMALL_SEGMENT, open_max: int = 64
) -> Segments:
    """Segment files below `directory`, made where there are none."""
    return Segments(
        directory / "segments",
        guid=GUID,
        create=True,
        readonly=readonly,
        segment_bytes_max=segment_bytes_max,
        open_max=open_max,
    )


def put(payload: Segments, *pieces: Buffer) -> list[ExtentId]:
    """Writes the pieces, each to an extent of its own, and syncs."""
    extents = [payload.allocate(len(p)) for p in pieces]
    payload.write(list(zip(extents, pieces, strict=True)))
    payload.sync()
    return extents


def open_fds() -> dict[int, str]:
    """This process's descriptors, and what they are of."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def fds_below(directory: Path) -> list[str]:
    """The files below `directory` that this process has open, one entry a descriptor."""
    return sorted(path for path in open_fds().values() if path.startswith(os.fspath(directory)))


def python(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in another process that sees the same tzfs."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def standing(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs `code` in another process beside the test, from the moment it has printed "ready"; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", f"the other process said {line!r}"
        yield process
    finally:
        process.kill()
        process.communicate()
