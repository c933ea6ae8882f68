"""Diffs, and versions of files, of what is mounted, while it goes on being used.

What the kernel has to write is written out and committed first, where the present state is asked for; then that commit
is read in a transaction of its own, in a worker thread, a few milliseconds at a time.  Until it ends nothing that the
commit refers to is given back.  What is found goes to the client as progress, in pages below what a message may have.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Final, NotRequired, TypedDict

import trio

from tzfs import limits
from tzfs.comparing import before, to_json, version_to_json
from tzfs.engine.diff import Comparison, Difference
from tzfs.engine.history import FileVersion, file_versions
from tzfs.engine.moments import Moments
from tzfs.errors import LimitReached
from tzfs.jsonrpc import Json
from tzfs.management import open_store
from tzfs.mount.method import Report, Within
from tzfs.names import SnapshotName, parse_filesystem
from tzfs.opening import HeadReader
from tzfs.tree import components

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount

BATCH_S: Final = 0.002  # of work in the thread, which shares the interpreter with the requests
PAUSE_S: Final = 0.002  # for them alone
PAGE_BYTES: Final = 64 * limits.KIB  # of JSON, for one report; one difference more than it takes may be in it
SILENT_S: Final = 1.0  # a client hears at least so often that it goes on
PATH_TEXT_BYTES_MAX: Final = 3 * limits.PATH_BYTES_MAX  # bytes that are no text take three each

Found = Difference | FileVersion

ComponentText = Annotated[str, Within(1, limits.SNAPSHOT_NAME_BYTES_MAX)]
PathText = Annotated[str, Within(0, PATH_TEXT_BYTES_MAX)]

# The parameters of `diff`; `from` is a word of Python's.
Compare = TypedDict(
    "Compare",
    {
        "from": ComponentText,
        "of": NotRequired[str],  # the filesystem that has it, of which this one is a clone
        "to": NotRequired[ComponentText | None],  # None, or none: the present state
        "path": NotRequired[PathText],
    },
)


class Versions(TypedDict):
    """The parameters of `versions`."""

    path: PathText


@asynccontextmanager
async def _moments(mount: Mount, *, now: bool) -> AsyncIterator[Moments]:
    """One commit, held; with `now` one of everything answered so far."""
    if mount.writer is None or mount.committer is None:
        assert isinstance(mount.snapshots, HeadReader)
        committed = mount.snapshots.committed
        with Moments(committed.meta, committed.payload) as moments:
            yield moments
        return
    if now:
        await mount.write_out()
        await mount.committer.commit()
    engine = mount.writer.engine
    pin = engine.pin()
    try:
        with Moments(engine.readable, engine.payload) as moments:
            yield moments
    finally:
        engine.unpin(pin)


async def diff_mounted(mount: Mount, params: Compare, report: Report) -> Json:
    """Reports pages of differences; answers how many there were."""
    newer, names = params.get("to"), components(params.get("path", ""))
    async with AsyncExitStack() as stack:
        moments = await stack.enter_async_context(_moments(mount, now=newer is None))
        if "of" in params:
            store = stack.enter_context(open_store(mount.store, create=False))
            older = SnapshotName(parse_filesystem(params["of"]), params["from"])
            held = stack.enter_context(ExitStack())
            view, above = before(store, mount.record(store), older, held)
            comparison = Comparison(view, moments.view(newer), moments.tables, names, above)
        else:
            comparison = Comparison(*moments.ordered(params["from"], newer), moments.tables, names)

        async def page(found: list[Json]) -> None:
            await report({"differences": found, "done": comparison.done, "total": comparison.total})

        return await _page_through(comparison.run(), page)


async def versions_mounted(mount: Mount, params: Versions, report: Report) -> Json:
    """Reports pages of versions; answers how many there were."""
    names = components(params["path"])
    async with _moments(mount, now=True) as moments:

        async def page(found: list[Json]) -> None:
            await report({"versions": found})

        return await _page_through(file_versions(moments, names), page)


async def _page_through(steps: Iterator[Found | None], page: Callable[[list[Json]], Awaitable[None]]) -> int:
    """Takes the steps in a thread, and gives what they find to `page`, a page at a time; how many there were."""
    pages, count, over = _Pages(), 0, False
    while not over:
        found, over = await trio.to_thread.run_sync(_batch, steps)
        count += len(found)
        for full in pages.take(found):
            await page(full)
        await trio.sleep(PAUSE_S)
    await page(pages.last())
    return count


def _batch(steps: Iterator[Found | None]) -> tuple[list[Found], bool]:
    """What `BATCH_S` of work finds; whether that was all."""
    found: list[Found] = []
    until = time.monotonic() + BATCH_S
    for each in steps:
        if each is not None:
            found.append(each)
        if time.monotonic() >= until:
            return found, False
    return found, True


class _Pages:
    """What waits to be reported."""

    def __init__(self) -> None:
        self._waiting: list[Json] = []
        self._bytes = 0
        self._said = time.monotonic()

    def take(self, found: list[Found]) -> Iterator[list[Json]]:
        """Takes in what was found; the pages that are full."""
        for each in found:
            value = to_json(each) if isinstance(each, Difference) else version_to_json(each)
            size = len(json.dumps(value))
            if size > limits.RPC_MESSAGE_BYTES_MAX - 2 * PAGE_BYTES:
                raise LimitReached(f"a path of {size} bytes is longer than a message may be", hint="unmount it first")
            self._waiting.append(value)
            self._bytes += size
            if self._bytes >= PAGE_BYTES:
                yield self._page()
        if time.monotonic() - self._said >= SILENT_S:
            yield self._page()

    def last(self) -> list[Json]:
        """The page of what is left, perhaps of nothing."""
        return self._page()

    def _page(self) -> list[Json]:
        page, self._waiting, self._bytes, self._said = self._waiting, [], 0, time.monotonic()
        return page
