"""Applying a clone to the mount's filesystem: as a rollback is done, with what the clone has changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

import trio

from tzfs.applying import outcome, theirs_of, to_json
from tzfs.engine.merge import Side
from tzfs.jsonrpc import Json
from tzfs.management import open_store
from tzfs.mount.method import Report
from tzfs.mount.rolling_back import PAUSE_S, forgotten, staged, told_of, writing
from tzfs.mount.writeback import write_out

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount


class ApplyClone(TypedDict):
    """The parameters of `apply`; `prefer` says whose it is to be where both have changed the same."""

    clone: str
    prefer: NotRequired[Literal["ours", "theirs"]]
    safety: NotRequired[bool]
    dry_run: NotRequired[bool]


async def apply_mounted(mount: Mount, params: ApplyClone, report: Report) -> Json:
    """Applies to the mount's filesystem, or finds out what that would do; reports {done, total}, answers an `Applied`.

    Where there are conflicts and nobody is preferred, that is the answer, and nothing has been done.
    """
    engine, committer = writing(mount, "apply to")
    operations = mount.operations
    prefer = Side(params["prefer"]) if "prefer" in params else None
    with open_store(mount.store, create=False) as store:
        target = mount.record(store).name
        async with committer.exclusive:
            await write_out(os.fspath(mount.mountpoint), operations.nodes_open_for_writing())
            held = operations.held = trio.Event()
            try:
                await committer.commit()
                with theirs_of(store, params["clone"], target) as theirs:
                    steps = engine.apply(theirs, prefer)
                    while await committer.between_commits(steps.plan):
                        await trio.sleep(PAUSE_S)
                    done = outcome(engine, steps, str(target), safety=params.get("safety", True))
                    if params.get("dry_run", False) or (done.conflicts and prefer is None):
                        return to_json(done)
                    if done.safety is not None:
                        await committer.snapshot_exclusive(done.safety)
                    await staged(mount, steps, report)
                told = told_of(operations.answers, engine, steps.changes, with_names=mount.options.writeback)
                operations.dropping = frozenset(told.inodes)
            finally:
                operations.held = None
                held.set()
            await forgotten(mount, engine, told)
    return to_json(done)
