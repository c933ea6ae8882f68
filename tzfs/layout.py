"""The folders of a store on the disk: made, checked, locked and removed here, and nowhere else.

    STORE/                      0700 (where it is made here; an empty folder that is there is taken as it is)
      catalog/                  the catalog's tables, and `transitions`, whose bytes are locks (below)
      fs/<16 hex digits>/       one filesystem: meta/ segments/ views/ lock

Nothing inside a store may be a symbolic link: a link that is met is refused, or, on removal, unlinked and not
followed.  Removal also stops at anything mounted inside.  What is made here is mode 0700 and is durable when the
function that makes it says so; nothing else syncs on the way.

A *transition lock* is held by whoever takes a filesystem through CREATING or DELETING: one byte of `transitions`, at
the filesystem's number, locked through an open file description, so that it dies with its holder and nothing has to be
cleaned up.  Who can take the lock of a filesystem in such a state knows that the transition was interrupted.

This module knows neither names nor records; it gets numbers of partitions, and paths.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import shlex
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from tzfs.errors import (
    Busy,
    Displaced,
    ForeignStore,
    NotFound,
    PermissionDenied,
    ReadOnly,
    StoreError,
    TzfsError,
    from_os_error,
)
from tzfs.failpoints import declare, hit
from tzfs.store.folders import FLOCK
from tzfs.store.lease import LOCK_FILE, VIEWS_FOLDER
from tzfs.store.space import reserve

CATALOG: Final = "catalog"
FILESYSTEMS: Final = "fs"
META: Final = "meta"
SEGMENTS: Final = "segments"
TRANSITIONS: Final = "transitions"

# What the catalog's folder may hold before its first commit; anything else there is somebody else's.
USAGE: Final = "usage"  # what filesystems count for in the store's quota: `tzfs.ledger`
_CATALOG_FILES: Final = frozenset(("data.mdb", "lock.mdb", "place", TRANSITIONS, USAGE, f"{USAGE}.new"))
_ROOT_PAGES_BYTES: Final = 2 * os.sysconf("SC_PAGE_SIZE")  # an LMDB file of at most this has no commit in it
_IGNORED: Final = frozenset(("lost+found",))  # in the root of a disk of its own
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_INIT_ROOT: Final = declare("catalog.init.root", "the store's folder is there, with nothing in it")
_INIT_FILESYSTEMS: Final = declare("catalog.init.fs", "fs/ is there; there is no catalog yet")
_REMOVE_ENTRY: Final = declare("catalog.remove.entry", "before one entry of a filesystem's folder is removed")
_REMOVE_FOLDER: Final = declare("catalog.remove.folder", "a filesystem's folder is empty and about to be removed")
_REMOVE_SYNC: Final = declare("catalog.remove.sync", "a filesystem's folder is removed, fs/ is not synced")


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Turns an `OSError` of the body into the `TzfsError` that fits, its message beginning with `what`."""
    try:
        yield
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        raise _translated(error, what + where) from error


def _translated(error: OSError, what: str) -> TzfsError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"{what}: {reason.lower()}", hint="the store belongs to another user, or use --store")
    if error.errno == errno.EROFS:
        return ReadOnly(f"{what}: {reason.lower()}")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return ForeignStore(f"{what}: a symbolic link, or not a folder, where the store has a folder")
    return from_os_error(error, what)


class Layout:
    """Paths and folders of one store.  `root` has no symbolic link in it; it is resolved once, when opened."""

    def __init__(self, root: Path) -> None:
        self.root: Final = root
        self.catalog: Final = root / CATALOG
        self.filesystems: Final = root / FILESYSTEMS

    def folder(self, partition: int) -> Path:
        """Where the filesystem numbered `partition` lies."""
        return self.filesystems / f"{partition:016x}"

    # -- the store itself ------------------------------------------------------------------------------------------

    def is_store(self) -> bool:
        """True if a catalog is there that has had its first commit; False if one is still to be made.

        `NotFound` if there is no such folder, `ForeignStore` if what is there is neither a store nor the beginning of
        one.
        """
        with translating(f"store {self.root}"):
            try:
                entries = set(os.listdir(self.root)) - _IGNORED
            except FileNotFoundError:
                raise NotFound(f"store {self.root}: no such folder") from None
            except NotADirectoryError:
                raise ForeignStore(f"store {self.root}: not a folder") from None
            if CATALOG not in entries:
                if entries - {FILESYSTEMS} or (FILESYSTEMS in entries and os.listdir(self.filesystems)):
                    raise ForeignStore(
                        f"store {self.root}: the folder is not empty and is not a tzfs store",
                        hint="give an empty or a new folder",
                    )
                return False
            check_folder(self.catalog)
            if FILESYSTEMS in entries:
                check_folder(self.filesystems)
            inside = set(os.listdir(self.catalog))
            for entry in inside & _CATALOG_FILES:
                with suppress(FileNotFoundError):  # it was replaced just now
                    check_file(self.catalog / entry)
            if "data.mdb" in inside and os.lstat(self.catalog / "data.mdb").st_size > _ROOT_PAGES_BYTES:
                if FILESYSTEMS not in entries:
                    raise ForeignStore(f"store {self.root}: it has a catalog, but its folder fs is missing")
                return True
            if inside - _CATALOG_FILES or (FILESYSTEMS in entries and os.listdir(self.filesystems)):
                raise ForeignStore(f"store {self.root}: its catalog is missing", hint="restore catalog/ from a copy")
            return False

    def check_owner(self) -> None:
        """`PermissionDenied` where the store that is there is another user's, for root, too.

        Its owner could not open what somebody else makes in it, and may exchange what is opened for a link to something
        that is not the owner's.
        """
        found = {os.lstat(path).st_uid for path in (self.catalog / "data.mdb", self.catalog, self.filesystems)}
        if found == {os.geteuid()}:
            return
        owner = max(found - {os.geteuid()})
        try:
            user = pwd.getpwuid(owner).pw_name
        except KeyError:
            user = f"#{owner}"
        raise PermissionDenied(
            f"store {self.root}: it belongs to user {user}, and is for that user alone",
            hint=f"sudo -u {shlex.quote(user)} tzfs ..., as its owner",
        )

    def make(self) -> None:
        """Makes what is missing of an empty store, durably, but for the catalog's tables.  Twice does no harm."""
        with translating(f"make the store {self.root}"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.root.mkdir(0o700)
            hit(_INIT_ROOT)
            with suppress(FileExistsError):
                self.filesystems.mkdir(0o700)
            check_folder(self.filesystems)
            hit(_INIT_FILESYSTEMS)
            with suppress(FileExistsError):
                self.catalog.mkdir(0o700)
            sync_folder(self.root)
            sync_folder(self.root.parent)

    def keep_reserve(self, nbytes: int) -> None:
        """Keeps `nbytes` allocated beyond the end of the catalog's tables; where that cannot be, nothing."""
        with suppress(OSError):
            fd = os.open(self.catalog / "data.mdb", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                reserve(fd, os.fstat(fd).st_size, nbytes)
            finally:
                os.close(fd)

    @contextmanager
    def making(self) -> Iterator[None]:
        """While the context lasts no other process is between `make` and its first commit."""
        with translating(f"store {self.root}"):
            fd = os.open(self.root, _DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # -- filesystems -----------------------------------------------------------------------------------------------

    def is_taken(self, partition: int) -> bool:
        """Whether anything stands where the filesystem's folder would be."""
        return os.path.lexists(self.folder(partition))

    def make_folder(self, partition: int) -> Path:
        """A new folder with its empty rooms and its lock; not synced.  `FileExistsError` if something is there."""
        folder = self.folder(partition)
        folder.mkdir(0o700)
        for room in (META, SEGMENTS, VIEWS_FOLDER):
            (folder / room).mkdir(0o700)
        os.close(os.open(folder / LOCK_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return folder

    def sync(self, partition: int) -> None:
        """Makes a new folder, its rooms and what is named in them durable."""
        folder = self.folder(partition)
        for path in (folder / META, folder, self.filesystems):
            sync_folder(path)

    def check(self, partition: int) -> Path:
        """The folder, in which nothing that will be opened is a symbolic link; `StoreError` if it is missing."""
        folder = self.folder(partition)
        with translating(f"open {folder}"):
            try:
                for path in (folder, folder / META, folder / SEGMENTS, folder / VIEWS_FOLDER):
                    check_folder(path)
            except FileNotFoundError as error:
                raise StoreError(f"{error.filename}: missing from the store", hint="restore it from a copy") from None
            for path in (folder / LOCK_FILE, folder / META / "data.mdb", folder / META / "lock.mdb"):
                with suppress(FileNotFoundError):
                    check_file(path)
        return folder

    def remove_folder(self, partition: int) -> None:
        """Removes the folder and all in it, durably.  Interrupted, it goes on when called again; gone, it is done."""
        folder = self.folder(partition)
        parent = os.open(self.filesystems, _DIRECTORY)
        try:
            _remove(parent, folder.name, os.fstat(parent).st_dev)
            hit(_REMOVE_SYNC)
            os.fsync(parent)
        finally:
            os.close(parent)

    # -- transition locks ------------------------------------------------------------------------------------------

    def lock_transition(self, partition: int, *, wait: bool = False) -> TransitionLock | None:
        """The lock, or None where another process, or another thread of this one, has it and `wait` is false."""
        fd = os.open(self.catalog / TRANSITIONS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Offsets have 63 bits.  Two filesystems that share a lock exclude each other for a moment, no more.
            request = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, partition >> 1, 1, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return TransitionLock(fd)


class TransitionLock:
    """A lock that is held until the context ends or `release` is called; in a forked child, not held."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        _held.add(self)

    def release(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        _held.discard(self)
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


_held: Final[weakref.WeakSet[TransitionLock]] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child: the parent's locks are the parent's, and must not live on in here."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_after_fork)


def check_no_link(path: Path) -> int:
    """`Displaced` for a symbolic link, `FileNotFoundError` if there is nothing; the mode of what there is."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise Displaced(f"{path}: a symbolic link inside a store", hint="put what it leads to itself there")
    return mode


def check_folder(path: Path) -> None:
    """`Displaced` unless `path` is a folder itself, not a link to one; `FileNotFoundError` if there is nothing."""
    if not stat.S_ISDIR(check_no_link(path)):
        raise Displaced(f"{path}: not a folder")


def check_file(path: Path) -> None:
    """As `check_folder`, for a regular file."""
    if not stat.S_ISREG(check_no_link(path)):
        raise Displaced(f"{path}: not a file")


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(parent: int, name: str, device: int) -> None:
    """Removes `name` in the folder `parent`, whatever it is; never through a link, never on another device."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        hit(_REMOVE_ENTRY)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        return
    try:
        if os.fstat(fd).st_dev != device:
            raise Busy(f"{name}: something is mounted there", holders=(name,), hint="unmount it first")
        while True:
            for entry in sorted(os.listdir(fd)):
                _remove(fd, entry, device)
            hit(_REMOVE_FOLDER)
            try:
                os.rmdir(name, dir_fd=parent)
            except FileNotFoundError:
                return
            except OSError as error:
                # A process that came to open the filesystem has just made its lock file; it will see the state.
                if error.errno != errno.ENOTEMPTY:
                    raise
                continue
            return
    finally:
        os.close(fd)
