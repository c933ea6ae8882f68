"""A rollback or restore under a running mount: staged while changes wait, flipped, and the kernel told what changed.

    write out    what programs have dirtied in the kernel's cache is written, as for a snapshot
    hold         from here on requests that would change something wait, and all others are answered
    stage        in batches, between which requests are served
    flip         one commit; in the same step C's cache is told of each entry and inode that is not what it was
    let go       what has waited goes on, on the new head
    invalidate   in a thread, entry by entry and inode by inode: the kernel forgets exactly what changed

The kernel may still hold dirty pages, sizes and times of inodes that changed, from writes that came in between.  They
belong before the rollback, and invalidation waits for them: until it has returned, WRITEs and changes of size and times
for such an inode are acknowledged and dropped.

With writeback caching the kernel believes its own size and times of a regular file for as long as it knows the inode.
So there the names of changed files are invalidated too, which has it forget those that nobody has open; one that is
open is truncated to its size through the mount, with a request that changes nothing here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import pyfuse3
import trio

from tzfs.engine.engine import Engine
from tzfs.engine.rollback import Changes
from tzfs.errors import ReadOnly, Stale, TzfsError
from tzfs.format.keys import ROOT
from tzfs.jsonrpc import Json
from tzfs.mount.answers import Answers
from tzfs.mount.committing import Committer
from tzfs.mount.destroying import destroyed
from tzfs.mount.method import Report
from tzfs.mount.writeback import write_out
from tzfs.restoring import wanted
from tzfs.rolling_back import Steps, newer_than, safety_name, stages_anything

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount

PAUSE_S = 0.002  # between batches: for requests alone


class RollBack(TypedDict):
    """The parameters of `rollback`."""

    snapshot: str
    safety: NotRequired[bool]
    destroy_newer: NotRequired[bool]


class RestoreInto(TypedDict):
    """The parameters of `restore`."""

    snapshot: str
    paths: list[str]
    to: NotRequired[str]
    force: NotRequired[bool]


async def roll_back_mounted(mount: Mount, params: RollBack, report: Report) -> Json:
    """Rolls the mount's filesystem back; reports {done, total}, answers {safety, inodes, destroyed}."""
    engine, committer = writing(mount, "roll back")
    operations, name, safety = mount.operations, params["snapshot"], None
    async with committer.exclusive:
        newer = newer_than(engine.snapshots(), name)
        going = newer if params.get("destroy_newer", False) else ()
        await write_out(os.fspath(mount.mountpoint), operations.nodes_open_for_writing())
        held = operations.held = trio.Event()
        try:
            await committer.commit()
            rollback = engine.rollback(name, going)
            if params.get("safety", True) and stages_anything(engine, name):
                safety = safety_name(engine.snapshots())
                await committer.snapshot_exclusive(safety)
            await staged(mount, rollback, report)
            forget = destroyed(operations, going)
            told = told_of(operations.answers, engine, rollback.changes, with_names=mount.options.writeback)
            operations.dropping = frozenset(told.inodes)
        finally:
            operations.held = None
            held.set()
        await forgotten(mount, engine, told)
        await trio.to_thread.run_sync(forget)
    return {"safety": safety, "inodes": len(rollback.changes.inodes), "destroyed": list(going)}


async def forgotten(mount: Mount, engine: Engine, told: Changes) -> None:
    """Has the kernel forget what has changed; what it writes of that meanwhile has been dropped since the flip."""
    assert mount.committer is not None
    mount.committer.changed()
    try:
        await trio.to_thread.run_sync(_invalidate, told.entries, told.inodes, False)
        if mount.options.writeback:
            await _resize(mount, engine, told.inodes)
    finally:
        mount.operations.dropping = frozenset()


def writing(mount: Mount, what: str) -> tuple[Engine, Committer]:
    """Who changes the filesystem; `ReadOnly` where it is mounted so."""
    if mount.writer is None or mount.committer is None:
        raise ReadOnly(
            f"cannot {what} {mount.name}: it is mounted read-only at {mount.mountpoint}",
            hint=f"unmount it first: tzfs umount {mount.name}",
        )
    return mount.writer.engine, mount.committer


async def restore_mounted(mount: Mount, params: RestoreInto, report: Report) -> Json:
    """Restores into the mount's filesystem; reports {done, total}, answers {inodes, paths}.

    Inodes that are replaced stay as they are for whoever has them open, so nothing that is written is dropped.
    """
    engine, committer = writing(mount, "restore into")
    operations, name = mount.operations, params["snapshot"]
    async with committer.exclusive:
        await write_out(os.fspath(mount.mountpoint), operations.nodes_open_for_writing())
        held = operations.held = trio.Event()
        try:
            await committer.commit()
            sources, places = wanted(engine, name, params["paths"], params.get("to"))
            restore = engine.restore(name, sources, force=params.get("force", False))
            await staged(mount, restore, report)
            told = told_of(operations.answers, engine, restore.changes, with_names=False)
        finally:
            operations.held = None
            held.set()
        committer.changed()
        await trio.to_thread.run_sync(_invalidate, told.entries, told.inodes, True)
    return {"inodes": restore.inodes, "paths": list(places)}


async def staged(mount: Mount, rollback: Steps, report: Report) -> None:
    """Takes the steps, to the flip; what fails is taken back."""
    committer = mount.committer
    assert committer is not None
    try:
        while await committer.between_commits(rollback.step):
            await report({"done": rollback.done, "total": rollback.total})
            await trio.sleep(PAUSE_S)
    except (TzfsError, OSError):
        if mount.failed is None:
            while await committer.between_commits(rollback.cancel):
                await trio.sleep(PAUSE_S)
        raise


def told_of(answers: Answers, engine: Engine, changes: Changes, *, with_names: bool) -> Changes:
    """Tells C's cache of all changes; those that the kernel has to be told of."""
    told = Changes()
    for directory, name, ino in changes.entries:
        if ino:
            answers.name(directory, name, ino)
            answers.drop(directory)
        else:
            answers.unname(directory, name)
        if directory == ROOT or answers.knows(directory):  # of the root it is never told
            told.entries.append((directory, name, ino))
    for ino in changes.inodes:
        answers.unlinked(ino)  # it may have no name any more
        if ino == ROOT or answers.knows(ino):
            told.inodes.append(ino)
            if with_names:
                with contextlib.suppress(Stale):
                    told.entries += [(directory, name, ino) for directory, name in engine.names_of(ino)]
    return told


def _invalidate(entries: Sequence[tuple[int, bytes, int]], inodes: Sequence[int], attributes_only: bool) -> None:
    for directory, name, _ in entries:
        with contextlib.suppress(OSError):  # ENOENT: it does not know that entry
            pyfuse3.invalidate_entry(cast(Any, directory), name)
    for ino in inodes:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(cast(Any, ino), attributes_only)


async def _resize(mount: Mount, engine: Engine, inodes: Sequence[int]) -> None:
    """Has the kernel take over the sizes and times of the regular files that are still open."""
    for ino in inodes:
        if not mount.operations.answers.knows(ino):
            continue
        try:
            inode, path = engine.inode(ino), engine.path_of(ino)
        except TzfsError:
            continue
        if path is not None and stat.S_ISREG(inode.mode):
            where = os.path.join(os.fsencode(mount.mountpoint), path)
            await trio.to_thread.run_sync(_truncate, where, inode.size, (inode.atime_ns, inode.mtime_ns))


def _truncate(path: bytes, size: int, times: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            os.utime(fd, ns=times)
        finally:
            os.close(fd)
