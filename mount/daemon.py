"""The process behind a mount: opens what is mounted, serves the kernel and the control socket, ends cleanly.

Lifecycle: open (lease, tables, engine, or a snapshot's reader) -> mount -> ready -> serve -> unmount -> close.  SIGTERM,
SIGINT, `umount` and the control socket's `unmount` all lead to the same end: the mount goes, what is dirty is committed,
the lease is released.  What fails before ready undoes what was done and is raised to whoever started the daemon.

One trio thread runs everything but payload I/O.  An engine that has failed keeps the mount there, answering EIO, so that
nothing is written under the mountpoint in the belief that it is the workspace; `status` says why.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from tzfs import failpoints
from tzfs.engine.engine import Settings
from tzfs.errors import MountFailed, from_os_error
from tzfs.mount import pump
from tzfs.mount.committing import Committer
from tzfs.mount.control import ControlServer
from tzfs.mount.methods import methods
from tzfs.mount.operations import Operations
from tzfs.opening import Reader, Writer

log = logging.getLogger(__name__)

failpoints.declare("mount.before", "everything is open, nothing is mounted")
failpoints.declare("mount.ready", "the mount is there, nobody has been told")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `tzfs mount -o` may say."""

    allow_other: bool = False
    xattr: bool = False
    writeback: bool = False
    readonly: bool = False
    spin_us: int = 50


@dataclass(slots=True)
class Mount:
    """One mount, for the control methods to act upon."""

    name: str
    mountpoint: Path
    options: MountOptions
    operations: Operations
    committer: Committer | None
    writer: Writer | None
    apply_settings: Callable[[Mapping[str, str]], None]
    stop: trio.Event
    started_ns: int
    pump: pump.Pump | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def failed(self) -> str | None:
        return self.failures[0] if self.failures else None


def fuse_options(name: str, options: MountOptions) -> set[str]:
    """The options of the kernel's mount."""
    out = set(pyfuse3.default_options)
    out.discard("default_permissions")
    out |= {"default_permissions", f"fsname=tzfs:{name}".replace(",", "\\,"), "subtype=tzfs", "noatime"}
    if options.allow_other:
        out.add("allow_other")
    if options.readonly:
        out.add("ro")
    return out
