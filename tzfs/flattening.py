"""Flattening a clone to the end, and what is said of it on the way, by whoever does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from tzfs.control import ControlClient
from tzfs.engine.engine import Engine
from tzfs.errors import MountFailed
from tzfs.jsonrpc import Json


@dataclass(frozen=True, slots=True)
class Flattened:
    """How much of the origin has been gone through: keys, and bytes of payload that were copied."""

    keys: int
    bytes: int


def so_far(engine: Engine) -> Flattened:
    """Since the filesystem was opened."""
    return Flattened(engine.flattening.keys_done, engine.flattening.bytes_done)


def flatten_now(engine: Engine, progress: Callable[[Flattened], None] | None = None) -> Flattened:
    """Flattens to the end; what breaks it off leaves it to be gone on with."""
    engine.flattening.begin()
    while engine.flattening.under_way:
        engine.flattening.step()
        if progress is not None:
            progress(so_far(engine))
    return so_far(engine)


def ask(mount: ControlClient, progress: Callable[[Flattened], None] | None = None) -> Flattened:
    """Has a mount flatten what it has mounted, to the end."""
    told = None if progress is None else lambda value: progress(from_json(value))
    return from_json(mount.ask("flatten", {}, progress=told, timeout_s=None))


def to_json(done: Flattened) -> dict[str, Json]:
    return dict(asdict(done))


def from_json(value: Json) -> Flattened:
    """What `to_json` made; `MountFailed` for anything else."""
    if not isinstance(value, dict) or not {"keys", "bytes"} <= value.keys():
        raise MountFailed("the mount does not say how far flattening has come")
    return Flattened(int(str(value["keys"])), int(str(value["bytes"])))
