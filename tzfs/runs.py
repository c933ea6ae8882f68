"""Commands that are remembered: a snapshot before, one after, and an entry of the log with what came of it.

    begin    an entry `run` with argv and working directory; a snapshot RUN-before, unless there is one already that has
             all there is: in one commit
    end      a snapshot RUN-after, and the entry with exit code and duration, in one commit; where nothing has changed,
             the snapshot before goes instead, and the entry names none

so a crash in between leaves an entry that has not ended, or none; never half of one.  RUN is `run-` and the entry's
number; the snapshots have the property `tzfs:run`, by which a policy can tell them.  A snapshot that cannot be taken (a
limit, a quota) keeps no command from running; the entry says it.

Commands may run in one filesystem at the same time: what differs between before and after is then all of theirs.
`Runs` knows those that are under way, so that none takes away a snapshot that another began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tzfs.engine.diff import Kind
from tzfs.engine.engine import Engine
from tzfs.errors import NotFound, TzfsError
from tzfs.format.log import Field
from tzfs.format.records import Snapshot

KIND: Final = "run"
COUNTED: Final = {Kind.ADDED: "added", Kind.REMOVED: "removed", Kind.MODIFIED: "modified", Kind.RENAMED: "renamed"}
MARK: Final = "tzfs:run"  # the property of the snapshots, the entry's number


@dataclass(frozen=True, slots=True)
class Begun:
    """A command is about to run: its entry, and the snapshot before; `said` is why there is none."""

    entry: int
    before: str | None
    said: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """What it has changed lies between these snapshots; nothing where `after` is None.

    `needless` is the snapshot before where it is not needed; `said` is why there is none after.
    """

    before: str | None
    after: str | None
    needless: str | None
    said: str | None


@dataclass(slots=True)
class _Run:
    before: str | None
    made: bool


class Runs:
    """The commands that run in an open filesystem.  What was written is in the engine when a call is made."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[int, _Run] = {}

    def begin(self, argv: Sequence[str], cwd: str, pid: int) -> Begun:
        """Before a command of the process `pid`."""
        engine = self._engine
        engine.commit()
        before = engine.unchanged()
        if before is not None and any(run.before == before for run in self._open.values()):
            before = None  # that one may go
        number = engine.journal.append(KIND, argv=[*argv], cwd=cwd, pid=pid, started=_started(pid))
        made, said = before is None, None
        if before is None:
            before = _free(f"run-{number}-before", engine.snapshots())
        engine.journal.amend(number, before=before)
        if made:
            said = self._snapshot(before, number)
        if said is not None:
            engine.journal.amend(number, before=None, said=said)
            before, made = None, False
        self._open[number] = _Run(before, made)
        return Begun(number, before, said)

    def end(self, entry: int, fields: Mapping[str, Field]) -> Ended:
        """After it; `fields` are what the entry is to say of how it ended.  `NotFound` for one that is not running."""
        engine = self._engine
        run = self._open.pop(entry, None)
        if run is None:
            raise NotFound(f"no command {entry} is running")
        engine.commit()
        snapshots, before, said = engine.snapshots(), run.before, None
        if before not in snapshots:  # somebody has destroyed or renamed it
            engine.journal.amend(entry, **fields)
            return Ended(None, None, None, said)
        if not engine.changed_since(snapshots[before].epoch):
            engine.journal.amend(entry, **fields, before=None)
            return Ended(None, None, before if run.made else None, None)
        after, made = engine.unchanged(), False
        if after is None or any(other.before == after for other in self._open.values()):
            after, made = _free(f"run-{entry}-after", snapshots), True
        engine.journal.amend(entry, **fields, after=after)
        if made and (said := self._snapshot(after, entry)) is not None:
            engine.journal.amend(entry, after=None, said=said)
            after = None
        return Ended(before, after, None, said)

    def _snapshot(self, name: str, number: int) -> str | None:
        """Takes a snapshot, or says why not."""
        try:
            self._engine.snapshot(name, {MARK: str(number)}, log=False)
        except TzfsError as error:
            if self._engine.failed is not None:
                raise
            return str(error)
        return None


def undone(engine: Engine, entry: int, before: str) -> tuple[int, str | None]:
    """Notes that an entry was taken back, `before` being the snapshot of the state before that; the new entry's number,
    and a snapshot of the state after it, if it could be taken."""
    engine.commit()
    number = engine.journal.append("undo", undone=entry, before=before)
    after: str | None = _free(f"undo-{number}", engine.snapshots())
    engine.journal.amend(number, after=after)
    try:
        engine.snapshot(f"{after}", {MARK: str(number)}, log=False)
    except TzfsError as error:
        if engine.failed is not None:
            raise
        engine.journal.amend(number, after=None, said=str(error))
        after = None
    return number, after


def running(fields: Mapping[str, Field]) -> bool:
    """Whether the command of an entry that has not ended still runs, as far as this machine's processes tell."""
    pid, started = fields.get("pid"), fields.get("started")
    return isinstance(pid, int) and started is not None and _started(pid) == started


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _free(name: str, snapshots: Mapping[str, Snapshot]) -> str:
    found, number = name, 1
    while found in snapshots:
        number += 1
        found = f"{name}-{number}"
    return found


__all__ = ["COUNTED", "KIND", "MARK", "Begun", "Ended", "Runs", "running", "undone"]
