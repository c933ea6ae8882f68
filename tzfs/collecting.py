"""What a collection has given back, so far and in all, whoever runs it: a command on a filesystem, or its mount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from tzfs.errors import MountFailed
from tzfs.jsonrpc import Json
from tzfs.tasks import Run, Tasks


@dataclass(frozen=True, slots=True)
class Collected:
    """What `collect` gave back.

    `bytes` of contents, with `chunks` and `orphans` removed, `moved` bytes brought together from `segments` that were
    unlinked, these and others; `tables`: bytes by which the tables became smaller.  `in_use`: they could not, because
    another process reads them.
    """

    bytes: int
    orphans: int
    chunks: int
    segments: int
    moved: int = 0
    tables: int = 0
    in_use: bool = False


class Collection:
    """The runs of one collection."""

    def __init__(self, tasks: Tasks) -> None:
        self._engine = tasks.engine
        self._runs: list[Run] = []
        self._before = self._counted()
        self._orphans = tasks.engine.orphans

    def _counted(self) -> tuple[int, int, int]:
        reclaimer = self._engine.reclaimer
        return reclaimer.punched_bytes, reclaimer.reclaimed_chunks, reclaimer.unlinked_segments

    def begun(self, run: Run) -> None:
        """Counts what the run does, too."""
        self._runs.append(run)

    def so_far(self) -> Collected:
        nbytes, chunks, segments = (b - a for a, b in zip(self._before, self._counted(), strict=True))
        figures = [run.context.figures for run in self._runs]
        return Collected(
            nbytes,
            max(0, self._orphans - self._engine.orphans),  # others may have been removed while they are open
            chunks,
            segments,
            sum(f.get("moved", 0) for f in figures),
            sum(f.get("compacted", 0) for f in figures),
            any("in_use" in f for f in figures),
        )


def to_json(collected: Collected) -> dict[str, Json]:
    return asdict(collected)


def from_json(answer: Json) -> Collected:
    """What `to_json` made; `MountFailed` for anything else."""
    try:
        if isinstance(answer, dict):
            numbers = {
                key: int(str(answer[key])) for key in ("bytes", "orphans", "chunks", "segments", "moved", "tables")
            }
            return Collected(**numbers, in_use=answer["in_use"] is True)
    except (KeyError, ValueError):
        pass
    raise MountFailed("the mount did not say what it collected")


Hear = Callable[[Collected], None]
