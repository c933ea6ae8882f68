"""Bringing back files and trees of a snapshot into an open filesystem, by reference.

    time_travel.restore(store, "ws@before", ["src", "notes/1.md"])        fs.restore("before", ["src"], to="old")

A path comes back to where it was, or, with `to`, into that directory under its last name.  What comes back is a copy
that shares all contents with the snapshot.  All of it comes back in one step, or nothing does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from tzfs.engine.engine import Engine
from tzfs.engine.restore import Wanted
from tzfs.errors import InvalidArgument, NotADirectory, NotFound
from tzfs.rolling_back import Progress, to_the_end
from tzfs.tree import Path, SnapshotView, Tree, components


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: how many `inodes` came back, and the `paths` where what was asked for is now."""

    inodes: int
    paths: tuple[str, ...]


def wanted(
    engine: Engine, snapshot: str, paths: Sequence[Path], to: Path | None
) -> tuple[list[Wanted], tuple[str, ...]]:
    """What the paths are in the snapshot, and where they go.

    `NotFound` where a path, or the directory that it goes into, is not there; `InvalidArgument` for the root.
    """
    then, now = SnapshotView(engine.view(snapshot)), Tree(engine, "the filesystem")
    found, places = [], []
    for path in paths:
        shown = os.fsdecode(path)
        names = components(path)
        if not names or names[-1] == b"..":
            raise InvalidArgument(f"{shown}: the root cannot be restored", hint="tzfs rollback brings everything back")
        source = then._resolve(path, follow=False)
        into = b"/".join(names[:-1]) if to is None else os.fsencode(to)
        try:
            directory = now._resolve(into)
        except (NotFound, NotADirectory):
            hint = "restore that directory, or elsewhere with --to" if to is None else "make it first"
            raise NotFound(f"{os.fsdecode(into)}: no such directory to restore {shown} into", hint=hint) from None
        if not stat.S_ISDIR(directory.mode):
            raise NotADirectory(f"{os.fsdecode(into)}: not a directory, and {shown} cannot be restored into it")
        found.append(Wanted(source.ino, directory.ino, names[-1]))
        places.append(os.fsdecode(b"/".join([*components(into), names[-1]])))
    return found, tuple(places)


def restore(
    engine: Engine,
    snapshot: str,
    paths: Sequence[Path],
    *,
    to: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Restores into an engine, to the end; what breaks off is taken back.

    `NotFound`, `Exists` (without `force`), `InvalidArgument`, `NoSpace`, `QuotaExceeded`.
    """
    sources, places = wanted(engine, snapshot, paths, to)
    steps = engine.restore(snapshot, sources, force=force)
    to_the_end(engine, steps, progress)
    return Restored(steps.inodes, places)
