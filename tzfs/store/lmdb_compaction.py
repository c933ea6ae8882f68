"""The tables' file made as small as its rows: a compacting copy that takes the original's place.

LMDB uses freed pages again and never gives them back.  So a copy of the last commit is made, without its free pages, in
a folder `meta.new` beside `meta`, and the two folders are exchanged by one call of renameat2:

    made --`run`, any thread--> copied, durable --`install`--> in place --`let_go`, any thread--> over
                                     '---`withdraw`, or an error--> gone, the original goes on

`install` unlinks the original and `let_go` closes it: for a large file the disk's file system needs 0.1 s only then.

- The copy is of one commit; if another came meanwhile, or this process reads or writes just then, `install` is `Busy`.
- No other process may have the original open: it would go on reading a file that nobody writes.  LMDB's own lock says
  so (each process has byte 0 of `lock.mdb` shared): ours is given back, and taken exclusively for the exchange.  Who
  comes in just then waits in LMDB, may have mapped the old file, finds that the folder is another, and opens again
  (`lmdb_environment`).
- The copy is open, and with it its `lock.mdb` initialised, before it can be found by its name: whoever opens the folder
  first would otherwise say there which root counts, perhaps of the other file.
- Both folders have the same commit.  Whichever a crash leaves under the name is whole; the other is removed by the next
  writer (`discard`).
- The copy begins to count its commits anew.  Whoever refers to them by number (the redo log) has to be cleared first.

It takes the space of the copy until the original is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import lmdb

from tzfs.errors import Busy, TzfsError, from_os_error
from tzfs.failpoints import declare, hit
from tzfs.format.keys import Table
from tzfs.store import folders, lmdb_environment, place
from tzfs.store.lmdb_environment import DATA_FILE, LOCK_FILE, Environment, translated

SUFFIX: Final = ".new"

_FOLDER: Final = declare("compact.folder", "before the folder of a compacting copy is made")
_COPY: Final = declare("compact.copy", "before the rows are copied")
_SYNC: Final = declare("compact.sync", "the copy is written, not yet synced")
_OPEN: Final = declare("compact.open", "the copy is durable; before it is opened")
_CLOSE: Final = declare("compact.close", "the copy is open; before the original is closed")
_EXCHANGE: Final = declare("compact.exchange", "the original is closed; before the folders are exchanged")
_EXCHANGED: Final = declare("compact.exchanged", "the folders are exchanged, which is not yet durable")
_REMOVE: Final = declare("compact.remove", "the copy is in place; before the original is removed")


def discard(directory: Path) -> None:
    """Removes what a compaction of `directory` that was interrupted has left beside it; for who may write it."""
    left = _beside(directory)
    try:
        if left.exists():
            shutil.rmtree(left)
    except OSError as error:
        raise from_os_error(error, f"{left}: remove") from error


def _beside(directory: Path) -> Path:
    return directory.with_name(directory.name + SUFFIX)


class Compaction:
    """One compacting copy of an environment; see the module's text."""

    def __init__(self, shared: Environment, tables: Sequence[Table]) -> None:
        self._shared, self._tables = shared, tables
        self._folder = _beside(shared.directory)
        self._commit = -1
        self.lost = False  # the exchange may not survive a power cut: nothing may be committed any more
        self._error: Exception | None = None
        self._original: Callable[[], object] = lambda: None

    def run(self) -> None:
        """Makes the copy, durably; its error is raised by `install`.  The environment may be used meanwhile."""
        shared = self._shared
        try:
            hit(_FOLDER)
            discard(shared.directory)
            self._folder.mkdir(0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._folder / DATA_FILE, flags, 0o600)
            try:
                hit(_COPY)
                self._commit = shared.env.info()["last_txnid"]
                shared.env.copyfd(fd, compact=True)
                mark = place.PlaceMark(self._folder, os.fstat(fd).st_ino)
                mark.close()
                hit(_SYNC)
                os.fsync(fd)
            finally:
                os.close(fd)
            folders.sync(self._folder)
            folders.sync(self._folder.parent)
        except (OSError, lmdb.Error, TzfsError) as error:
            self._error = error

    def let_go(self) -> None:
        """Gives the original's space back, after `install`; on any thread."""
        self._original()

    def withdraw(self) -> None:
        """The copy is not wanted any more."""
        discard(self._shared.directory)

    def install(self) -> None:
        """Puts the copy in the original's place; on this environment's thread, without a transaction.

        `Busy` where that cannot be now, `NoSpace`, `StoreError`; the original then goes on, unless `lost`.
        """
        what = f"{self._shared.directory}: compact"
        try:
            with lmdb_environment.opening() as users:
                if self._error is not None:
                    raise self._error
                if any(user.reads(self._shared) for user in users) or self._shared.writer is not None:
                    raise Busy(f"{what}: being read in this process", hint="try again later")
                if self._shared.env.info()["last_txnid"] != self._commit:
                    raise Busy(f"{what}: it was changed while it was copied", hint="try again later")
                self._install()
        except OSError as error:
            raise from_os_error(error, what) from error
        except lmdb.Error as error:
            raise translated(error, what) from error
        finally:
            if not self.lost:
                discard(self._shared.directory)

    def _install(self) -> None:
        shared, folder = self._shared, self._shared.directory
        hit(_OPEN)
        new = lmdb_environment.mapped(self._folder, self._tables)
        try:
            if shared.reserved_end > shared.end:  # what is in memory only was admitted because of that
                new.reserve(shared.reserved_end - shared.end)
            hit(_CLOSE)
            shared.env.close()
            try:
                with _alone_in(folder):
                    hit(_EXCHANGE)
                    folders.exchange(folder, self._folder)
                    self.lost = True
                    hit(_EXCHANGED)
                    folders.sync(folder.parent)
                    self.lost = False
            except BaseException:
                if not self.lost:
                    lmdb_environment.map_again(shared, self._tables)
                raise
        except BaseException:
            if not self.lost:
                new.give_up()
                raise
            lmdb_environment.take_over(shared, new)
            raise
        lmdb_environment.take_over(shared, new)
        hit(_REMOVE)
        with suppress(OSError):  # it then goes here, and takes longer
            fd = os.open(self._folder / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._original = weakref.finalize(self, os.close, fd)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process has the environment open, or opens it, while the context lasts; `Busy`.  Ours is closed."""
    fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, folders.FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        except (BlockingIOError, PermissionError):
            raise Busy(f"{folder}: open in another process", hint="try again when nobody reads its snapshots") from None
        yield
    finally:
        os.close(fd)
