"""The control methods of commands that are remembered: `tzfs.runs` on a mount, and the entry of an undo.

What programs have written is had from the kernel first, so that it lies on the right side of each snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, NotRequired, TypedDict

import trio

from tzfs.errors import Busy, InvalidArgument, ReadOnly
from tzfs.format.log import Field
from tzfs.jsonrpc import Json
from tzfs.mount.committing import Committer
from tzfs.mount.destroying import destroyed
from tzfs.mount.method import Declared, Within, method
from tzfs.runs import COUNTED, Ended, Runs, undone

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount


Number = Annotated[int, Within(0, (1 << 63) - 1)]


class Begin(TypedDict):
    argv: list[str]
    cwd: str
    pid: Number


class End(TypedDict):
    entry: Number
    code: Number
    duration_ns: Number
    signal: NotRequired[str]


class Count(TypedDict):
    entry: Number
    counts: dict[str, Number]


class Undone(TypedDict):
    entry: Number
    before: str


def running_methods(mount: Mount) -> Mapping[str, Declared]:
    """The methods, by name."""
    if mount.writer is None or mount.committer is None:
        return {"run.begin": method(Begin, lambda params: _refuse(mount))}
    m = _Running(mount, Runs(mount.writer.engine), mount.committer)
    return {
        "run.begin": method(Begin, m.begin),
        "run.end": method(End, m.end),
        "run.count": method(Count, m.count),
        "run.undone": method(Undone, m.undone),
    }


def _refuse(mount: Mount) -> Json:
    raise ReadOnly(f"nothing can be changed in {mount.name}: it is mounted read-only at {mount.mountpoint}")


class _Running:
    def __init__(self, mount: Mount, runs: Runs, committer: Committer) -> None:
        assert mount.writer is not None
        self._mount, self._runs, self._committer = mount, runs, committer
        self._engine = mount.writer.engine

    async def begin(self, params: Begin) -> Json:
        await self._mount.write_out()
        begun = await self._committer.change(lambda: self._runs.begin(params["argv"], params["cwd"], params["pid"]))
        return {"entry": begun.entry, "before": begun.before, "said": begun.said}

    async def end(self, params: End) -> Json:
        await self._mount.write_out()
        fields: dict[str, Field] = {"code": params["code"], "duration_ns": params["duration_ns"]}
        if "signal" in params:
            fields["signal"] = params["signal"]

        def act() -> tuple[Ended, Callable[[], None] | None]:
            ended = self._runs.end(params["entry"], fields)
            if ended.needless is not None:
                with suppress(Busy):  # somebody reads or holds it: it stays
                    self._engine.destroy([ended.needless], log=False)
                    return ended, destroyed(self._mount.operations, [ended.needless])
            return ended, None

        ended, forget = await self._committer.change(act)
        if forget is not None:
            await trio.to_thread.run_sync(forget)
        return {"before": ended.before, "after": ended.after, "said": ended.said}

    async def count(self, params: Count) -> Json:
        for word in params["counts"].keys() - set(COUNTED.values()):
            raise InvalidArgument(f"{word!r} is nothing that is counted")
        await self._committer.do(lambda: self._engine.journal.amend(params["entry"], **params["counts"]))
        return None

    async def undone(self, params: Undone) -> Json:
        number, after = await self._committer.change(lambda: undone(self._engine, params["entry"], params["before"]))
        return {"entry": number, "after": after}
