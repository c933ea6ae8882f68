"""Flattening a clone that is mounted: batches beside requests, until its origin is not needed.

Whoever asked hears how far it has come.  When he goes away it goes on, as background work of the mount.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio

from tzfs.errors import ReadOnly, WrongState
from tzfs.flattening import so_far, to_json
from tzfs.jsonrpc import Json
from tzfs.management import open_store
from tzfs.mount.method import Report

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount

PROGRESS_S: Final = 0.2  # between two reports: as often as people can read
PAUSE_S: Final = 0.002  # between two batches, for requests


async def flatten_mounted(mount: Mount, report: Report) -> Json:
    """What has been copied since the mount began."""
    if mount.writer is None or mount.committer is None:
        raise ReadOnly(
            f"cannot flatten {mount.name}: it is mounted read-only at {mount.mountpoint}",
            hint=f"unmount it first: tzfs umount {mount.name}",
        )
    engine, committer = mount.writer.engine, mount.committer
    if not engine.cloned:
        raise WrongState(f"cannot flatten {mount.name}: it is not a clone")
    flattening = engine.flattening
    await committer.change(flattening.begin)
    told = 0.0
    while flattening.under_way:
        await committer.change(flattening.step)
        if time.monotonic() - told >= PROGRESS_S:
            await report(to_json(so_far(engine)))
            told = time.monotonic()
        await trio.sleep(PAUSE_S)
    with open_store(mount.store, create=False) as store:
        store.catalog.release_origin(mount.record(store))
    return to_json(so_far(engine))
