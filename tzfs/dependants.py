"""Who keeps a snapshot from being destroyed beside its readers: the clones that were made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tzfs.catalog import Catalog, FilesystemInfo
from tzfs.engine.engine import Engine
from tzfs.store.lease import Info

Readers = Callable[[], AbstractContextManager[list[Info]]]


def with_clones(readers: Readers, engine: Engine, catalog: Catalog, info: FilesystemInfo) -> Readers:
    """`readers` of the filesystem's snapshots, and its clones among them, as the catalog has them at that moment.

    Whoever clones a snapshot reads it until its clone is recorded, so that it is found here one way or the other.
    """
    path = catalog.info.path

    @contextmanager
    def both() -> Iterator[list[Info]]:
        with readers() as found:
            names = {record.guid.hex(): (name, record.epoch) for name, record in engine.snapshots().items()}
            with Catalog.open(path, create=False, readonly=True) as now:
                clones: list[Info] = [
                    {"name": names[guid][0], "epoch": names[guid][1], "clone": str(clone)}
                    for guid, clone in now.clones(info)
                    if guid in names
                ]
            yield [*found, *clones]

    return both
