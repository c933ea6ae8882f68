"""Who may write a filesystem, and who reads its snapshots: locks that die with their process.

`Lease` is the right to write: an exclusive flock on `lock` in the filesystem's folder.  The kernel gives it back
however its holder ends, kill -9 included, so nothing here ever expires or is broken by force.  The file says who holds
it, as one line of JSON, for people and for `Busy`; only the flock counts: a disk too full to be told who it is refuses
nobody, so that what is on it can be removed.  The file is never unlinked while its folder lives, nor emptied: the block
that it has is there for the next holder.

`ViewHold` is a file of its own in `views/` for each reading process and snapshot, locked in the same way; destroying a
snapshot asks `live_views` first, which also removes the files of readers that have died.  A reader holds and then looks
whether its snapshot is still there, with the folder's lock shared (`beginning_to_read`); a destroyer looks who holds it
and then removes it, with the folder's lock to itself (`no_new_readers`): neither slips between the other's steps.

No link is followed to a lock or a view, and of `views/` nothing is removed that is not named as a view is.

Neither is inherited: a forked child closes its copy of the descriptor, or the lock would outlive its holder in it.  So
a daemon takes them after it has gone to the background.

States of both: held -> released, by `release` or by the end of the process; in a forked child, released from the start.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tzfs.errors import Busy, Displaced, NoSpace, NotFound, TzfsError, from_os_error
from tzfs.failpoints import declare, hit

LOCK_FILE: Final = "lock"
VIEWS_FOLDER: Final = "views"
INFO_BYTES_MAX: Final = 16 * 1024  # a socket path, a mount point of 4,095 bytes, escaped
TESTED_TRIES_MAX: Final = 200  # times a lock is found shared by somebody who only looks, 1 ms apart
READER_TRIES_MAX: Final = 10_000  # as long as a destroyer may take to commit

Value = str | int | float | None
Info = dict[str, Value]

_LEASE_OPEN: Final = declare("lease.open", "before the lock file is opened or made")
_LEASE_LOCK: Final = declare("lease.lock", "the lock file is open; before it is locked")
_LEASE_INFO: Final = declare("lease.info", "locked; before it is written who holds it")
_LEASE_RELEASE: Final = declare("lease.release", "before the lock is given back")
_VIEW_CREATE: Final = declare("view.create", "before the view's file is made")
_VIEW_LOCK: Final = declare("view.lock", "the view's file is written; before it is locked")
_VIEW_RELEASE: Final = declare("view.release", "before the view's file is unlinked")

_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_LOOKING: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a fifo there makes nobody wait
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_VIEW: Final = re.compile("([0-9]+)-[0-9a-f]{16}")  # the reader's pid


class _Held:
    """A locked file.  `fd` is -1 once it is released, or belongs to the process this one forked from."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        _held.add(self)

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        _held.discard(self)
        if fd >= 0:
            os.close(fd)


_held: Final[weakref.WeakSet[_Held]] = weakref.WeakSet()


class Lease(_Held):
    """The right to write one filesystem, from `acquire` to `release`."""

    @classmethod
    def acquire(cls, directory: str | os.PathLike[str], *, info: Mapping[str, Value]) -> Lease:
        """Takes the lease of the filesystem in `directory`, at once or not at all.

        `info` says who takes it (mountpoint, socket); `pid` and `started` (seconds since the epoch) are added.  Raises
        `Busy`, naming the holder; `NotFound` if the folder is gone.
        """
        path = Path(directory) / LOCK_FILE
        try:
            fd = _lock_file(path.parent)
        except FileNotFoundError as error:
            raise NotFound(f"{directory}: no such filesystem") from error
        except OSError as error:
            raise from_os_error(error, f"{path}: lock") from error
        if fd is None:
            raise _busy(path)
        lease = cls(path, fd)
        try:
            lease.update(info)
        except BaseException:
            lease._close()
            raise
        return lease

    @staticmethod
    def holder(directory: str | os.PathLike[str]) -> Info | None:
        """What the holder of the lease says of itself, or None if nobody holds it.  Takes nothing, waits for nothing.

        A holder that is just taking it may have said nothing yet: then the dict is empty.
        """
        path = Path(directory) / LOCK_FILE
        try:
            fd = _open_lock(path.parent, _LOOKING)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, f"{path}: open") from error
        try:
            return _info(fd) if _locked(fd) else None
        except OSError as error:
            raise from_os_error(error, f"{path}: read") from error
        finally:
            os.close(fd)

    def update(self, info: Mapping[str, Value]) -> None:
        """Says anew who holds it: once the socket is there, for example.  On a full disk it may say nothing."""
        told: Info = {"pid": os.getpid(), "started": int(time.time()), **info}
        line = json.dumps(told).encode() + b"\n"
        if len(line) > INFO_BYTES_MAX:
            line = json.dumps({"pid": os.getpid()}).encode() + b"\n"
        try:
            hit(_LEASE_INFO)
            _say(self._fd, line)
        except OSError as error:
            raise from_os_error(error, f"{self.path}: write") from error

    def release(self) -> None:
        """Gives the lease back; idempotent, and nothing in a forked child."""
        if not self.held:
            return
        try:
            hit(_LEASE_RELEASE)
            _say(self._fd, b"\n")
        except OSError:
            pass  # what it says counts for nothing once the lock is gone
        finally:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ViewHold(_Held):
    """Keeps one snapshot from being destroyed while this process reads it."""

    @classmethod
    def acquire(
        cls, directory: str | os.PathLike[str], *, name: str, epoch: int, info: Mapping[str, Value] | None = None
    ) -> ViewHold:
        """Holds snapshot `name`, taken at `epoch`, of the filesystem in `directory`; `info` says what for.

        The caller then looks whether the snapshot is still there, and releases the hold if not.
        """
        views = Path(directory) / VIEWS_FOLDER
        told: Info = {**(info or {}), "pid": os.getpid(), "started": int(time.time()), "name": name, "epoch": epoch}
        try:
            hit(_VIEW_CREATE)
            with _views(directory, make=True) as folder:
                while True:
                    path = views / f"{os.getpid()}-{secrets.token_hex(8)}"
                    fd = os.open(path.name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
                    try:
                        _say(fd, json.dumps(told).encode() + b"\n")
                        hit(_VIEW_LOCK)
                        fcntl.flock(fd, fcntl.LOCK_EX)  # waits for those who only look, if for anyone
                        if os.fstat(fd).st_nlink:
                            return cls(path, fd)
                        os.close(fd)  # taken for a dead reader's, just before it was locked
                    except BaseException:
                        with suppress(FileNotFoundError):
                            os.unlink(path.name, dir_fd=folder)
                        os.close(fd)
                        raise
        except FileNotFoundError as error:
            raise NotFound(f"{directory}: no such filesystem") from error
        except OSError as error:
            raise from_os_error(error, f"{views}: hold {name}") from error

    def release(self) -> None:
        """Lets the snapshot go; idempotent, and nothing in a forked child."""
        if not self.held:
            return
        try:
            hit(_VIEW_RELEASE)
            self.path.unlink(missing_ok=True)
        except OSError:
            pass  # unlocked, it counts for nothing; `live_views` removes it
        finally:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def live_views(directory: str | os.PathLike[str]) -> list[Info]:
    """What the processes that read snapshots of the filesystem in `directory` say: pid, started, name, epoch.

    One that found the disk full may have said nothing but its pid, which its file is named by: its snapshot is then
    "?", without an epoch, and may be any.
    Removes the files of those that have died.
    """
    live: list[Info] = []
    try:
        with _views(directory) as folder:
            for name in sorted(os.listdir(folder)):
                if (view := _VIEW.fullmatch(name)) is None:
                    continue
                try:
                    fd = os.open(name, _LOOKING, dir_fd=folder)
                except FileNotFoundError:
                    continue  # released just now
                try:
                    if _locked(fd, unlink=name, dir_fd=folder):
                        live.append({"pid": int(view[1]), "name": "?", **_info(fd)})
                finally:
                    os.close(fd)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise from_os_error(error, f"{Path(directory) / VIEWS_FOLDER}: read") from error
    return live


@contextmanager
def beginning_to_read(directory: str | os.PathLike[str]) -> Iterator[None]:
    """While it lasts no snapshot of the filesystem in `directory` is destroyed.  Waits for one that is; `Busy`."""
    with _gate(directory, fcntl.LOCK_SH, READER_TRIES_MAX):
        yield


@contextmanager
def no_new_readers(directory: str | os.PathLike[str]) -> Iterator[list[Info]]:
    """`live_views`; while it lasts nobody begins to read a snapshot of the filesystem in `directory`.

    `Busy` where somebody is just beginning and does not get on with it.
    """
    with _gate(directory, fcntl.LOCK_EX, TESTED_TRIES_MAX):
        yield live_views(directory)


@contextmanager
def _gate(directory: str | os.PathLike[str], how: int, tries: int) -> Iterator[None]:
    where = Path(directory) / VIEWS_FOLDER
    with ExitStack() as stack:
        try:
            views = stack.enter_context(_views(directory, make=True))
        except FileNotFoundError as error:
            raise NotFound(f"{directory}: no such filesystem") from error
        except OSError as error:
            raise from_os_error(error, f"{where}: open") from error
        while True:
            try:
                fcntl.flock(views, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                tries -= 1
                if not tries:
                    raise Busy(
                        f"{where}: another process is opening or destroying a snapshot, and does not get on with it",
                        hint="try again",
                    ) from None
                time.sleep(0.001)
        yield


def _open_folder(path: Path, *, dir_fd: int | None = None) -> int:
    """A descriptor of the folder, which is in `dir_fd`; `Displaced` where it is not one itself."""
    try:
        return os.open(path if dir_fd is None else path.name, _FOLDER, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Displaced(f"{path}: not a folder, or a link to one") from error
        raise


def _open_lock(directory: Path, flags: int) -> int:
    folder = _open_folder(directory)
    try:
        return os.open(LOCK_FILE, flags, 0o600, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def _views(directory: str | os.PathLike[str], *, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder of views; `make` makes it where it is not there."""
    path = Path(directory) / VIEWS_FOLDER
    folder = _open_folder(path.parent)
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(path.name, 0o700, dir_fd=folder)
        views = _open_folder(path, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        yield views
    finally:
        os.close(views)


def _lock_file(directory: Path) -> int | None:
    """A descriptor of the locked file, or None if somebody else has it locked."""
    tries = 0
    while True:
        hit(_LEASE_OPEN)
        fd = _open_lock(directory, _FLAGS | os.O_CREAT)
        try:
            hit(_LEASE_LOCK)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)  # the folder was removed, and perhaps made again, in between
        except BlockingIOError:
            taken = _locked(fd)
            os.close(fd)
            tries += 1
            if taken or tries > TESTED_TRIES_MAX:
                return None
            time.sleep(0.001)  # somebody is only looking: that takes microseconds
        except BaseException:
            os.close(fd)
            raise


def _locked(fd: int, *, unlink: str | None = None, dir_fd: int | None = None) -> bool:
    """Whether another descriptor has the file locked exclusively.  `unlink`: removes it if not, by its name."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    if unlink is not None:
        with suppress(FileNotFoundError):
            os.unlink(unlink, dir_fd=dir_fd)
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _say(fd: int, line: bytes) -> None:
    """Replaces the text of a lock file; on a full disk by as much as fits, or nothing."""
    try:
        os.pwrite(fd, line, 0)  # readers take the first line only, so what was longer before does no harm
        os.ftruncate(fd, len(line))
    except OSError as error:
        if not isinstance(from_os_error(error, ""), NoSpace):
            raise
        with suppress(OSError):
            os.pwrite(fd, b"\n", 0)  # rather nobody than an earlier holder


def _info(fd: int) -> Info:
    """What the holder says, as far as it can be that: the file may have come from anywhere."""
    line = os.pread(fd, INFO_BYTES_MAX, 0).partition(b"\n")[0]
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict) or not isinstance(told.get("pid", 0), int):
        return {}
    return {name: value for name, value in told.items() if _sayable(value)}


def _sayable(value: object) -> bool:
    if isinstance(value, str):
        try:
            os.fsencode(value)
        except UnicodeEncodeError:  # half a character
            return False
        return True
    return value is None or isinstance(value, int | float)


def _busy(path: Path) -> TzfsError:
    """`Busy`, in the words of whoever holds the lock."""
    told = Lease.holder(path.parent) or {}
    who = f"pid {told['pid']}" if "pid" in told else "another process"
    where = told.get("mountpoint")
    text = f"{who}, mounted at {where}" if where else who
    return Busy(f"in use by {text}", holders=[text], hint="unmount it, or wait for that process to end")


def _after_fork() -> None:
    """In the child: the parent's locks are the parent's, and must not live on in here."""
    for held in list(_held):
        held._close()


os.register_at_fork(after_in_child=_after_fork)
