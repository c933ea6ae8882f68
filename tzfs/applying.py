"""Bringing what a clone has changed back onto its origin: `tzfs.apply(store, "attempt-1")`.

Where the target has not changed since the snapshot that the clone came from, it becomes what the clone is; else the
changes of both are merged, file by file.  What both have changed, and not alike, is a conflict: nothing is done then,
unless `prefer` says whose change it is to be.  So a clone may go on and be applied again.  A snapshot of the state
before is taken first, so that rolling back undoes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from tzfs.catalog import FilesystemInfo
from tzfs.control import heard
from tzfs.engine.apply import Apply, Theirs
from tzfs.engine.engine import Engine
from tzfs.engine.merge import Side
from tzfs.engine.moments import Moments
from tzfs.errors import Conflicting, InvalidArgument, MountFailed, NotFound, WrongState
from tzfs.format.keys import Epoch
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command
from tzfs.management import Store
from tzfs.names import FilesystemName, SnapshotName, parse_filesystem
from tzfs.rolling_back import Progress, safety_name, to_the_end

Name = str | FilesystemName


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did, or would do, to `target`: `inodes` changed, at `paths`.

    `fast_forward`: the target had not changed since the snapshot, so it is now what the clone is.  `safety` is the
    snapshot of the state before; None where there was nothing to do.  `conflicts` are (path, reason) of what both sides
    have changed, whoever was preferred.
    """

    target: str
    inodes: int
    fast_forward: bool
    safety: str | None
    paths: tuple[str, ...]
    conflicts: tuple[tuple[str, str], ...]


def target_of(store: Store, clone: FilesystemInfo, onto: Name | None) -> tuple[FilesystemInfo, FilesystemInfo, str]:
    """What is to change; the clone's origin, and its snapshot's name.

    `WrongState` for what is no clone, `InvalidArgument` for a target that is neither its origin nor its sibling.
    """
    named = None if onto is None else store.get(onto)
    origin = store.catalog.origin(clone)
    if origin is None:
        raise WrongState(f"cannot apply {clone.name}: it is not a clone")
    info, guid = origin
    target = named or info
    if target.guid != info.guid and (target.origin != clone.origin or target.guid == clone.guid):
        raise InvalidArgument(
            f"cannot apply {clone.name} to {target.name}: it is not of the same snapshot",
            hint=f"it is a clone of {info.name}, and goes onto that or onto another clone of the same snapshot",
        )
    for name, record in store.points(info)[0].items():
        if record.guid.hex() == guid:
            return store.get(target.name, Command.APPLY_ONTO), info, name
    raise NotFound(f"the snapshot of {info.name} that {clone.name} came from is not there")


@contextmanager
def theirs_of(store: Store, clone: Name, onto: Name | None) -> Iterator[Theirs]:
    """The clone, open and unchanging.  `Busy` where somebody has it."""
    record = store.get(clone, Command.APPLY)
    target, origin, snapshot = target_of(store, record, onto)
    with ExitStack() as stack:
        writer = stack.enter_context(store.writer(record.name, {"kind": "apply"}, Command.APPLY))
        engine = writer.engine
        if engine.flattening.under_way:  # what was removed may have no row any more that says so
            raise WrongState(f"cannot apply {record.name}: it is being flattened")
        engine.commit()
        while engine.reclaiming:  # a chunk that waits to be removed has no row that says so
            engine.background_step()
            engine.commit()
        reader = stack.enter_context(store.reader(SnapshotName(origin.name, snapshot), {"kind": "apply"}))
        moments = stack.enter_context(Moments(engine.readable, engine.payload))
        after = reader.view.snapshot.epoch if target.guid == origin.guid else Epoch(0)
        yield Theirs(str(record.name), reader.view, moments.view(None), moments.tables, after)


def outcome(engine: Engine, steps: Apply, target: str, *, safety: bool) -> Applied:
    """What a plan says; with the name that the snapshot of the state before would have."""
    before = safety_name(engine.snapshots()) if safety and steps.inodes else None
    conflicts = tuple((conflict.path, conflict.reason) for conflict in steps.conflicts)
    return Applied(target, steps.inodes, steps.fast_forward, before, tuple(steps.paths), conflicts)


def apply_to(
    engine: Engine,
    theirs: Theirs,
    target: str,
    prefer: Side | None,
    *,
    safety: bool,
    dry_run: bool,
    progress: Progress | None,
) -> Applied:
    """Applies to an engine, to the end; what breaks off is taken back."""
    steps = engine.apply(theirs, prefer)
    while steps.plan():
        pass
    done = outcome(engine, steps, target, safety=safety)
    if dry_run or (done.conflicts and prefer is None):
        return done
    if done.safety is not None:
        engine.snapshot(done.safety)
    to_the_end(engine, steps, progress)
    return done


def apply(
    store: Store,
    clone: Name,
    *,
    onto: Name | None = None,
    prefer: Side | str | None = None,
    safety: bool = True,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Brings a clone's changes onto its origin, or onto another clone of the same snapshot.

    `Conflicting` where both have changed the same and nobody is preferred; with `dry_run` the answer says so.  `Busy`
    while the clone is open anywhere; the target may be mounted.  `NoSpace`, `QuotaExceeded`, `WrongState`.
    """
    prefer = None if prefer is None else Side(prefer)
    clone = parse_filesystem(clone) if isinstance(clone, str) else clone
    target, _, _ = target_of(store, store.get(clone, Command.APPLY), onto)
    mount = store.mounted(target)
    if mount is not None:
        params: dict[str, Json] = {"clone": str(clone), "safety": safety, "dry_run": dry_run}
        if prefer is not None:
            params["prefer"] = prefer.value
        with mount:
            with theirs_of(store, clone, target.name):
                pass  # what can take long about opening it is done here, and not in the mount
            done = from_json(mount.ask("apply", params, progress=heard(progress), timeout_s=None))
    else:
        with (
            store.writer(target.name, {"kind": "apply"}, Command.APPLY_ONTO) as writer,
            theirs_of(store, clone, target.name) as theirs,
        ):
            done = apply_to(
                writer.engine, theirs, str(target.name), prefer, safety=safety, dry_run=dry_run, progress=progress
            )
    if done.conflicts and prefer is None and not dry_run:
        path, reason = done.conflicts[0]
        more = f", and {len(done.conflicts) - 1} more" if done.conflicts[1:] else ""
        raise Conflicting(
            f"cannot apply {clone} to {done.target}: {path}: {reason}{more}",
            hint="-n lists all conflicts; --ours or --theirs says whose changes it is to have there",
        )
    return done


def to_json(done: Applied) -> dict[str, Json]:
    made: dict[str, Json] = dict(asdict(done))
    made["paths"] = list(done.paths)
    made["conflicts"] = [{"path": path, "reason": reason} for path, reason in done.conflicts]
    return made


def from_json(value: Json) -> Applied:
    """What `to_json` made; `MountFailed` for anything else."""
    if isinstance(value, dict):
        paths, conflicts, safety = value.get("paths"), value.get("conflicts"), value.get("safety")
        if isinstance(paths, list) and isinstance(conflicts, list):
            return Applied(
                str(value.get("target")),
                int(str(value.get("inodes"))),
                bool(value.get("fast_forward")),
                safety if isinstance(safety, str) else None,
                tuple(map(str, paths)),
                tuple((str(each["path"]), str(each["reason"])) for each in conflicts if isinstance(each, dict)),
            )
    raise MountFailed("the mount did not say what it applied")
