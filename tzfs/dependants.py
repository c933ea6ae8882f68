"""What keeps a filesystem or a snapshot from being destroyed: snapshots, holds, and the clones that were made from it.

The command, `tzfs.destroy` and `Store.destroy` ask the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from tzfs.catalog import Catalog, FilesystemInfo
from tzfs.engine.destroy import check_unused
from tzfs.engine.engine import Engine
from tzfs.errors import Busy, CorruptionError, Displaced, NotEmpty, NotFound, TablesLost, TzfsError, about
from tzfs.format.records import Snapshot
from tzfs.lifecycle import State
from tzfs.opening import committed_points, committed_snapshots
from tzfs.store.lease import Info

SHOWN_MAX: Final = 8  # names in a hint
UNREADABLE: Final = (CorruptionError, TablesLost, Displaced)  # what cannot be read another time either
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


def check_empty(info: FilesystemInfo, *, recursive: bool) -> dict[str, Snapshot]:
    """The snapshots of a filesystem that is to be destroyed with them; `NotEmpty` unless that is meant."""
    there = snapshots_of(info)
    if there and not recursive:
        raise NotEmpty(
            f"cannot destroy {info.name}: it has snapshots",
            hint=f"-r destroys them too: {_some([f'{info.name}@{name}' for name in there])}",
        )
    return there


def check_free(info: FilesystemInfo) -> None:
    """`Busy` where one of the filesystem's snapshots is held."""
    there = snapshots_of(info)
    with naming(info, there):
        check_unused(there, ())


@contextmanager
def naming(info: FilesystemInfo, names: Iterable[str]) -> Iterator[None]:
    """Within, who is in the way of snapshots is told with the filesystem's name: an engine does not know it."""
    try:
        yield
    except Busy as error:
        if not error.holders:
            raise
        what = _some([f"{info.name}@{name}" for name in names])
        text = f"cannot destroy {what}: in use by {'; '.join(error.holders)}"
        raise Busy(text, holders=error.holders, hint=error.hint) from error


def snapshots_of(info: FilesystemInfo) -> dict[str, Snapshot]:
    """Those of a filesystem, oldest first.

    `dependants.UNREADABLE` where it cannot be mounted read-only either; damaged accounts do not matter here.
    """
    if info.state in (State.CREATING, State.DELETING):
        return {}
    try:
        with about(info.name):
            return committed_snapshots(info.folder)
    except NotFound:  # its folder is lost
        return {}


def mountable(info: FilesystemInfo) -> str | None:
    """A hint at the snapshots of a filesystem that cannot be read, for a snapshot needs less than the head; None where
    there are none, or they cannot be read either."""
    try:
        there, _ = committed_points(info.folder)
    except TzfsError:  # the caller has one to tell already
        return None
    if not there:
        return None
    return f"its snapshots can still be mounted: {_some([f'{info.name}@{name}' for name in there])}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= SHOWN_MAX else f"{', '.join(names[:SHOWN_MAX])} and others"
