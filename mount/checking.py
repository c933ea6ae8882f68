"""Checking what is mounted, while it goes on being used.

What the kernel has to write is written out and committed first; the check then reads that commit in a read transaction
of its own, in a worker thread, a few milliseconds at a time.  Until it ends nothing that the commit refers to is
punched or unlinked, and pages that later commits free are not used again: a long check lets the tables grow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NotRequired, TypedDict

import trio

from tzfs.checking import checked, to_json
from tzfs.engine.check.problems import Problem, Progress
from tzfs.engine.check.run import Event
from tzfs.jsonrpc import Json
from tzfs.mount.method import Report
from tzfs.opening import HeadReader
from tzfs.store.interface import PayloadReader, Readable

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount

BATCH_S: Final = 0.002  # of work in the thread, which shares the interpreter with the requests
PAUSE_S: Final = 0.002  # for them alone


class Check(TypedDict):
    """The parameters of `check`."""

    payload: NotRequired[bool]


async def check_mounted(mount: Mount, params: Check, report: Report) -> Json:
    """Reports each problem and how far it has come; answers when all has been read."""
    read_payload = params.get("payload", False)
    if mount.writer is None or mount.committer is None:
        assert isinstance(mount.snapshots, HeadReader)
        committed = mount.snapshots.committed
        await _check(committed.meta, committed.payload, report, read_payload=read_payload)
        return None
    await mount.write_out()
    await mount.committer.commit()
    engine = mount.writer.engine
    pin = engine.pin()
    try:
        await _check(engine.readable, engine.payload, report, read_payload=read_payload)
    finally:
        engine.unpin(pin)
    return None


async def _check(meta: Readable, payload: PayloadReader, report: Report, *, read_payload: bool) -> None:
    txn = meta.begin_read()
    try:
        steps = checked(txn, payload, read_payload=read_payload)
        over = False
        while not over:
            found, over = await trio.to_thread.run_sync(_batch, steps)
            for event in found:
                await report(to_json(event))
            await trio.sleep(PAUSE_S)
    finally:
        txn.close()


def _batch(steps: Iterator[Event]) -> tuple[list[Problem | Progress], bool]:
    """What `BATCH_S` of work finds; whether that was all."""
    found: list[Problem | Progress] = []
    until = time.monotonic() + BATCH_S
    for event in steps:
        if event is not None:
            found.append(event)
        if time.monotonic() >= until:
            return found, False
    return found, True
