"""Mountpoints: what is mounted where, whether a directory can take a mount, and taking mounts away."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tzfs.errors import Busy, NotADirectory, NotFound, PermissionDenied, StoreError, from_os_error

FSTYPE = "fuse.tzfs"
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo: `source` is `tzfs:` and the name, for a mount of ours."""

    path: Path
    fstype: str
    source: str


def _unescape(raw: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda m: bytes((int(m[1], 8),)), raw))


def mounts(mountinfo: bytes | None = None) -> list[Mounted]:
    """Everything mounted in this process's namespace, in the order it was mounted."""
    raw = Path("/proc/self/mountinfo").read_bytes() if mountinfo is None else mountinfo
    found = []
    for line in raw.splitlines():
        head, _, tail = line.partition(b" - ")
        before, after = head.split(b" "), tail.split(b" ")
        if len(before) >= 5 and len(after) >= 2:
            found.append(Mounted(Path(_unescape(before[4])), after[0].decode(), _unescape(after[1])))
    return found


def mount_at(path: Path) -> Mounted | None:
    """What is mounted at exactly that path, the topmost."""
    return next((m for m in reversed(mounts()) if m.path == path), None)


def is_dead(path: Path) -> bool:
    """Whether a FUSE mount is there whose process has gone."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def prepare(path: Path) -> Path:
    """The mountpoint, resolved and fit to be mounted on: a dead mount of ours is taken away first.

    Raises `NotFound`, `NotADirectory`, `Busy` (something is mounted there), `PermissionDenied`.
    """
    absolute = Path(os.path.abspath(path))
    try:  # without touching the last component: a dead mount cannot be resolved
        resolved = absolute.parent.resolve(strict=True) / absolute.name
    except OSError as error:
        raise NotFound(f"mountpoint {path}: {os.strerror(error.errno or 0)}") from None
    there = mount_at(resolved)
    if there is not None and there.fstype == FSTYPE and is_dead(resolved):
        unmount(resolved, lazy=True)
        there = mount_at(resolved)
    if there is not None:
        raise Busy(
            f"mountpoint {path}: {there.source} is mounted there", holders=(there.source,), hint="unmount it first"
        )
    try:
        found = os.stat(resolved)
    except FileNotFoundError:
        raise NotFound(f"mountpoint {path}: no such directory", hint=f"mkdir {path}") from None
    except PermissionError:
        raise PermissionDenied(f"mountpoint {path}: permission denied") from None
    except OSError as error:
        raise from_os_error(error, f"mountpoint {path}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectory(f"mountpoint {path} is not a directory")
    resolved = resolved.resolve()
    if os.getuid() != 0 and (found.st_uid != os.getuid() or not os.access(resolved, os.W_OK)):
        raise PermissionDenied(f"mountpoint {path} is not a directory of yours")
    return resolved


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Takes a mount away; `Busy` while programs use it, unless `lazy`."""
    command = (
        ["umount", "--no-canonicalize"] if os.getuid() == 0 else [shutil.which("fusermount3") or "fusermount3", "-u"]
    )
    if lazy:
        command.append("-l" if os.getuid() == 0 else "-z")
    try:
        done = subprocess.run(
            [*command, "--", os.fspath(path)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise StoreError(f"{command[0]}: {os.strerror(error.errno or 0)}", hint="install fuse3") from error
    if done.returncode != 0:
        reason = done.stderr.strip()
        if "busy" in reason.lower():
            raise Busy(f"{path}: programs are using it", hint="leave it and close its files, or give --lazy")
        if mount_at(path) is None:
            raise NotFound(f"{path}: nothing is mounted there")
        raise StoreError(f"{path}: {reason or 'could not be unmounted'}")
