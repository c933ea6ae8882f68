"""Mountpoints: what is mounted where, whether a directory can take a mount, and taking mounts away.

A mount whose process has died stays in the table and answers ENOTCONN to everything; `prepare` takes such a one of
tzfs away and nothing else.  A mount that is alive may hang: nothing here touches one but to see whether it is dead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tzfs.errors import (
    Busy,
    InvalidArgument,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    PermissionDenied,
    StoreError,
    from_os_error,
)
from tzfs.mount.background import has_ended

FSTYPE: Final = "fuse.tzfs"
ANSWER_S: Final = 5.0  # how long a mount may take to say that it is alive
END_S: Final = 60.0  # a daemon's last commit: 64 MiB of payload and 8,000 rows on a slow disk, with room
STALE_MAX: Final = 64  # dead mounts on top of each other that `prepare` takes away
_SOURCE: Final = re.compile(r"tzfs:(.*)\[([0-9a-f]+)\]", re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo."""

    path: Path
    fstype: str
    source: str

    @property
    def what(self) -> tuple[str, str]:
        """Of a mount of tzfs: the place of its filesystem, and what follows its name, `@` and a snapshot or nothing.

        The name itself may have changed, and be another filesystem's.  Of other mounts nothing is known.
        """
        found = _SOURCE.fullmatch(self.source) if self.fstype == FSTYPE else None
        return ("", "") if found is None else (found[2], "".join(found[1].partition("@")[1:]))


def source(name: str, place: str) -> str:
    """What the table of mounts calls a mount of `name` (FS or FS@SNAP); `place` is its filesystem's (`place_of`)."""
    return f"tzfs:{name}[{place}]"


def _unescape(raw: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda m: bytes((int(m[1], 8),)), raw))


def mounts(mountinfo: bytes | None = None) -> list[Mounted]:
    """Everything mounted in this process's namespace, in the order it was mounted."""
    raw = Path("/proc/self/mountinfo").read_bytes() if mountinfo is None else mountinfo
    found = []
    for line in raw.split(b"\n"):  # a name may have any other line end in it
        head, _, tail = line.partition(b" - ")
        before, after = head.split(b" "), tail.split(b" ")
        if len(before) >= 5 and len(after) >= 2:
            found.append(Mounted(Path(_unescape(before[4])), _unescape(after[0]), _unescape(after[1])))
    return found


def tzfs_mounts() -> list[Mounted]:
    """The mounts of tzfs, dead ones included, in the order they were made."""
    return [m for m in mounts() if m.fstype == FSTYPE]


def mount_at(path: Path) -> Mounted | None:
    """What is mounted at exactly that path, the topmost; the path has no symbolic link in it."""
    return next((m for m in reversed(mounts()) if m.path == path), None)


def locate(path: str | os.PathLike[str]) -> Path:
    """The path without symbolic links, a mount that it names left untouched."""
    head, tail = os.path.split(os.fspath(path).rstrip("/"))
    if tail in ("", ".", ".."):
        return Path(os.path.realpath(path))
    place = Path(os.path.realpath(head), tail)
    return place if mount_at(place) is not None else Path(os.path.realpath(place))


def is_dead(path: Path) -> bool:
    """Whether a FUSE mount is there whose process has gone.

    Asked with statvfs, which the kernel never answers from its caches; a process that has stopped answers nothing, and
    counts as alive after `ANSWER_S`.
    """
    dead: list[bool] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            dead.append(error.errno in (errno.ENOTCONN, errno.ECONNABORTED))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return dead == [True]


def prepare(path: Path, *, store: Path | None = None, nonempty: bool = False) -> Path:
    """The mountpoint, resolved and fit to be mounted on: dead mounts of ours are taken away first.

    The store may not lie below it, nor it in the store: the mount would hide what it is made of, and wait for itself.
    A directory with something in it, which nobody would see any more, is refused unless `nonempty`, as by `zfs mount`
    unless told otherwise.  Raises `NotFound`, `NotADirectory`, `NotEmpty`, `Busy` (something is mounted there),
    `PermissionDenied`, `InvalidArgument`.
    """
    try:
        resolved = locate(path)
    except OSError as error:
        raise from_os_error(error, f"mountpoint {path}") from error
    there = mount_at(resolved)
    for _ in range(STALE_MAX):
        if there is None or there.fstype != FSTYPE or not is_dead(resolved):
            break
        unmount(resolved, lazy=True)
        there = mount_at(resolved)
    if there is not None:
        raise Busy(
            f"mountpoint {path}: {there.source} is mounted there", holders=(there.source,), hint="unmount it first"
        )
    _check_directory(path, resolved)
    if store is not None:
        real = Path(os.path.realpath(store))
        if real.is_relative_to(resolved):
            raise InvalidArgument(f"mountpoint {path}: the mount would hide {store}", hint="mount somewhere else")
        if resolved.is_relative_to(real):
            raise InvalidArgument(f"mountpoint {path} is part of the store {store}", hint="mount somewhere else")
    if not nonempty and _has_entries(path, resolved):
        raise NotEmpty(
            f"mountpoint {path} is not empty: the mount would hide what is in it",
            hint="empty it, or mount somewhere else, or give -o nonempty",
        )
    return resolved


def _has_entries(path: Path, resolved: Path) -> bool:
    try:
        with os.scandir(resolved) as entries:
            return next(entries, None) is not None
    except OSError as error:
        raise from_os_error(error, f"mountpoint {path}") from error


def _check_directory(path: Path, resolved: Path) -> None:
    try:
        found = os.stat(resolved)
    except FileNotFoundError:
        raise NotFound(f"mountpoint {path}: no such directory", hint=f"mkdir {path}") from None
    except PermissionError:
        raise PermissionDenied(f"mountpoint {path}: permission denied") from None
    except NotADirectoryError:
        raise NotADirectory(f"mountpoint {path}: not a directory on the way") from None
    except OSError as error:
        raise from_os_error(error, f"mountpoint {path}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectory(f"mountpoint {path} is not a directory")
    # fusermount3's rule: who could not put files there may not cover it either
    if os.getuid() != 0 and (
        not os.access(resolved, os.W_OK) or (found.st_mode & stat.S_ISVTX and found.st_uid != os.getuid())
    ):
        raise PermissionDenied(f"mountpoint {path} is not a directory of yours")


def unmount(path: Path, *, lazy: bool = False, daemon: int | None = None, timeout_s: float = END_S) -> None:
    """Takes a mount away; `Busy` while programs use it, unless `lazy`, when it goes as soon as they have left.

    Given the pid of the mount's process, it returns when that has ended, and with it the last commit is done; `Busy`
    if it takes longer than `timeout_s`.  With `lazy` it does not wait.
    """
    pidfd = _open_process(daemon) if daemon is not None and not lazy else None
    try:
        if os.getuid() != 0 or not _umount(path, lazy=lazy):
            _fusermount(path, lazy=lazy)
        if pidfd is not None and not has_ended(pidfd, timeout_s):
            raise Busy(
                f"{path} is unmounted, but process {daemon} is still at work",
                holders=(f"process {daemon}",),
                hint=f"its log says at what; where a container has {path} too, what ends that is: kill {daemon}",
            )
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _umount(path: Path, *, lazy: bool) -> bool:
    """umount2(2); False where this root may not mount, as in a container: fusermount3 may be able to."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EPERM:
        return False
    if number in (errno.EINVAL, errno.ENOENT):
        raise NotFound(f"{path}: nothing is mounted there")
    if number == errno.EBUSY:
        raise _busy(path)
    raise StoreError(f"{path}: {os.strerror(number)}")


def _fusermount(path: Path, *, lazy: bool) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount3"
    try:
        done = subprocess.run(
            [program, "-u", *(["-z"] if lazy else []), "--", os.fspath(path)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise StoreError(f"{program}: {os.strerror(error.errno or 0)}", hint="install fuse3") from error
    if done.returncode != 0:
        reason = done.stderr.strip()
        if "busy" in reason.lower():
            raise _busy(path)
        if mount_at(path) is None:
            raise NotFound(f"{path}: nothing is mounted there")
        if "not permitted" in reason.lower() or "not found in" in reason.lower():  # fusermount3 looks for the user's
            raise NotPermitted(f"{path}: the mount is another user's")
        raise StoreError(f"{path}: {reason or 'could not be unmounted'}")


def _busy(path: Path) -> Busy:
    return Busy(f"{path}: programs are using it", hint="leave it and close its files, or give --lazy")
