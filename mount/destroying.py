"""The control method that destroys snapshots under a running mount.

The engine's commit takes their names away; then the kernel is told, from a thread, to forget their folders in
`.zfs/snapshot`: whoever looks there has the folder's lock in the kernel, and waits for this mount's loop.  The answer
comes after that, so nobody who has it finds a folder there.  What is still open in one, a file or a working directory,
answers ESTALE from then on, but for what the kernel has cached of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, TypedDict

import pyfuse3
import trio

from tzfs import limits
from tzfs.engine.destroy import Destroyed
from tzfs.engine.engine import Engine
from tzfs.jsonrpc import Json
from tzfs.mount.committing import Committer
from tzfs.mount.method import Declared, Within, method
from tzfs.mount.nodes import SNAPSHOTS_NODE
from tzfs.mount.operations import Operations


class Destroy(TypedDict):
    names: list[Annotated[str, Within(1, limits.SNAPSHOT_NAME_BYTES_MAX)]]
    dry_run: bool


def destroying_methods(
    operations: Operations, writing: Callable[[str], tuple[Engine, Committer]]
) -> Mapping[str, Declared]:
    """The methods, by name.  `writing` answers the engine and the committer of a mount that writes, or raises."""

    async def destroy(params: Destroy) -> Json:
        """The names, oldest first, and what is or would be freed."""
        engine, committer = writing("destroy a snapshot of")
        names = params["names"]
        if params["dry_run"]:
            await committer.commit()
            return _told(engine.destroyer.foresee(names))

        def act() -> tuple[Destroyed, Callable[[], None]]:
            done = engine.destroy(names)
            return done, destroyed(operations, done.names)

        done, forget = await committer.change(act)
        await trio.to_thread.run_sync(forget)
        return _told(done)

    return {"snapshot.destroy": method(Destroy, destroy)}


def destroyed(operations: Operations, names: Sequence[str]) -> Callable[[], None]:
    """These snapshots have just gone; what is answered tells the kernel, in a thread."""
    raw = [os.fsencode(name) for name in names]
    operations.snapshots_destroyed(raw)
    return partial(_forget, raw)


def _told(done: Destroyed) -> Json:
    return {"names": [*done.names], "bytes": done.bytes}


def _forget(names: Sequence[bytes]) -> None:
    for name in names:
        with contextlib.suppress(OSError):  # the kernel does not know it
            pyfuse3.invalidate_entry(SNAPSHOTS_NODE, name)
