"""An open filesystem, for a program: files by path, snapshots, durability.  No mount and no FUSE are needed.

    with store.open("agent-1") as fs:
        fs.write_text("notes.md", "first\\n")
        fs.snapshot("before")
        fs.write_text("notes.md", "second\\n")
        print(fs.view("before").read_text("notes.md"))

A `FileSystem` has the lease: nobody else can write meanwhile, and a mount of it is refused, as opening one that is
mounted is.  It belongs to the thread that opened it.  What is done is durable after `sync`, `snapshot` or `close`;
without them it is committed when the transaction group's interval is over, at the next call, or when much is waiting.
"""

from __future__ import annotations

import io
import os
import stat as stat_bits
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

from tzfs import limits
from tzfs.engine.destroy import Destroyed
from tzfs.engine.diff import Comparison, Difference
from tzfs.engine.engine import Engine, StatFs
from tzfs.engine.history import FileVersion, file_versions
from tzfs.engine.moments import Moments
from tzfs.errors import Exists, InvalidArgument, IsADirectory, NotFound, WrongState
from tzfs.flattening import Flattened, flatten_now
from tzfs.format.keys import ROOT
from tzfs.format.log import Entry
from tzfs.format.records import Bookmark, Inode, Snapshot
from tzfs.names import check_snapshot_component
from tzfs.restoring import Restored, restore
from tzfs.rolling_back import RolledBack, roll_back
from tzfs.streams import Own, Sent, plan, write_stream
from tzfs.tree import Path, ReadFile, SnapshotView, Stat, Tree, components, to_stat

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class FileSystem(Tree):
    """One filesystem open for writing.  Get one from `Store.open`; it is a context manager."""

    def __init__(
        self,
        engine: Engine,
        close: Callable[[], None],
        *,
        name: str,
        umask: int = 0o022,
        run_tasks: Callable[[], None] = lambda: None,
        flattened: Callable[[], None] = lambda: None,
    ) -> None:
        """`run_tasks` does what is due of the background tasks; it is called after commits and before the end.
        `flattened` hears when it is a clone no more."""
        super().__init__(engine, f"filesystem {name}")
        self._run_tasks, self._flattened = run_tasks, flattened
        self._name = name
        self.__engine = engine
        self._close = close
        self._umask = umask
        self._open: Counter[int] = Counter()
        self._files: WeakSet[io.IOBase] = WeakSet()
        engine.referenced = lambda ino: ino in self._open

    def __enter__(self) -> FileSystem:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files that are still open, commits and gives the lease back; doing it twice is harmless."""
        if self.closed:
            return
        with ExitStack() as stack:  # whatever fails on the way, the rest is done, and the lease is given back last
            stack.callback(self._close)
            stack.callback(self.end)
            if self.__engine.failed is None:
                stack.callback(self._run_tasks)
            for file in list(self._files):
                stack.callback(file.close)

    @property
    def _engine(self) -> Engine:
        self._check_usable()
        return self.__engine

    # -- durability ----------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Everything done so far is durable when it returns."""
        self._engine.harden()

    def _did(self) -> None:
        """After each change: commits when it is time, and does a batch of what is due in the background."""
        engine = self._engine
        due = engine.commit_due_at_ns()
        if engine.commit_due or (due is not None and time.time_ns() >= due):
            engine.commit()
            if engine.settings.collect:
                engine.background_step()
            self._run_tasks()

    def flatten(self, progress: Callable[[Flattened], None] | None = None) -> Flattened:
        """Of a clone: copies what it inherits, so that its origin may go.  Broken off, it goes on in the background.

        `WrongState` where it is no clone.
        """
        engine = self._engine
        if not engine.cloned:
            raise WrongState("the filesystem is not a clone")
        done = flatten_now(engine, progress)
        self._flattened()
        return done

    def collect(self) -> int:
        """Finishes all background work (removed files, space to be given back); bytes given back to the disk."""
        engine = self._engine
        before = engine.reclaimer.punched_bytes
        engine.collect()
        return engine.reclaimer.punched_bytes - before

    def statfs(self) -> StatFs:
        """Space and inodes, used and free."""
        return self._engine.statfs()

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshot(self, name: str, properties: dict[str, str] | None = None) -> Snapshot:
        """A snapshot of everything done so far, durable when it returns.  `Exists`, `InvalidArgument`, `NoSpace`."""
        return self._engine.snapshot(check_snapshot_component(name), properties)

    def rollback(self, snapshot: str, *, safety: bool = True, recursive: bool = False) -> RolledBack:
        """Makes everything what it was at a snapshot.  A snapshot of the state before is taken first.

        Newer ones stay, or with `recursive` go in the same commit, as by `zfs rollback -r`.  An open file goes on with
        what the snapshot has of it, or is stale.  `NotFound`, `NoSpace`; `Busy` where one that is to go is held, read
        or cloned: nothing is done then.
        """
        return roll_back(self._engine, snapshot, safety=safety, destroy_newer=recursive)

    def destroy_snapshots(self, *snapshots: str) -> Destroyed:
        """Destroys snapshots, all of them or none; what they alone have is freed in the background, or by `collect`.

        `NotFound`, `Busy` where one is held, read or cloned.
        """
        return self._engine.destroy(snapshots)

    def restore(self, snapshot: str, paths: Sequence[Path], *, to: Path | None = None, force: bool = False) -> Restored:
        """Brings back files and trees of a snapshot, to where they were or into the directory `to`, by reference.

        `force` replaces what is there.  `NotFound`, `Exists`, `InvalidArgument`, `NoSpace`.
        """
        return restore(self._engine, snapshot, paths, to=to, force=force)

    def snapshots(self) -> dict[str, Snapshot]:
        """All snapshots by name, oldest first."""
        return self._engine.snapshots()

    def rename_snapshot(self, old: str, new: str) -> None:
        """Gives a snapshot another name.  `NotFound`, `Exists`, `InvalidArgument`."""
        self._engine.marks.rename(old, check_snapshot_component(new))

    def hold(self, tag: str, *snapshots: str) -> None:
        """Keeps snapshots from being destroyed until `release` of the same tag.  `NotFound`, `Exists`."""
        self._engine.marks.hold(tag, snapshots)

    def release(self, tag: str, *snapshots: str) -> None:
        """Takes holds away.  `NotFound` where a snapshot has no such tag."""
        self._engine.marks.release(tag, snapshots)

    def bookmark(self, snapshot: str, name: str) -> Bookmark:
        """What is left of a snapshot, to send later ones from it after it is gone.  `NotFound`, `Exists`."""
        return self._engine.bookmarks.create(snapshot, check_snapshot_component(name))

    def drop_bookmark(self, name: str) -> None:
        """Destroys a bookmark; `NotFound`."""
        self._engine.bookmarks.destroy([name])

    def bookmarks(self) -> dict[str, Bookmark]:
        """All bookmarks by name, that of the oldest snapshot first."""
        return self._engine.bookmarks.all()

    def view(self, snapshot: str) -> SnapshotView:
        """A snapshot's tree, read-only, for as long as the filesystem is open.  `NotFound`."""
        return SnapshotView(self._engine.view(snapshot), within=self)

    def diff(self, older: str, newer: str | None = None, path: Path = "/") -> Iterator[Difference]:
        """What differs from a snapshot to a newer one, or to now, at or below `path`; by inode number.

        It is what was when the first is asked for; ask for all of them soon.  `NotFound`, `InvalidArgument`.
        """
        with self._moments() as moments:
            for found in Comparison(*moments.ordered(older, newer), moments.tables, components(path)).run():
                self._check_usable()
                if found is not None:
                    yield found

    def versions(self, path: Path) -> list[FileVersion]:
        """Each version of what has been at `path` that the snapshots and the filesystem have, oldest first."""
        with self._moments() as moments:
            return [found for found in file_versions(moments, components(path)) if found is not None]

    @contextmanager
    def _moments(self) -> Iterator[Moments]:
        engine = self._engine
        engine.commit()
        pin = engine.pin()
        try:
            with Moments(engine.readable, engine.payload) as moments:
                yield moments
        finally:
            engine.unpin(pin)

    def log(self) -> list[Entry]:
        """What was done to it: snapshots, rollbacks, commands; oldest first, as many entries as `log_max` keeps."""
        return [*self._engine.journal.entries()][::-1]

    def send(
        self, snapshot: str, write: Callable[[bytes], object], *, base: str | None = None, recursive: bool = False
    ) -> Sent:
        """Writes a snapshot as a stream; with `base`, `SNAPSHOT` or `#BOOKMARK`, what has changed since.

        `recursive` sends the snapshots between as well.  `tzfs.receiving` takes it in.  `NotFound`, `InvalidArgument`.
        """
        source = Own(self._engine, self._name)
        return write_stream(source, plan(source.name, source.points(), snapshot, base=base, recursive=recursive), write)

    # -- files ---------------------------------------------------------------------------------------------------

    def open(self, path: Path, mode: str = "r", *, encoding: str = "utf-8") -> io.IOBase:
        """Like the built-in `open`: `r`, `w`, `a`, `x`, with `+` and `b`; text unless `b`.

        What is written is buffered as Python buffers it: it is in the filesystem, and in a snapshot, after `flush` or
        `close`.  A file that is still open is closed with the filesystem.
        """
        kinds = set(mode) - {"b", "t", "+"}
        if len(kinds) != 1 or not kinds <= set("rwax") or len(set(mode)) != len(mode) or {"b", "t"} <= set(mode):
            raise InvalidArgument(f"mode {mode!r} is not one that open knows")
        kind = kinds.pop()
        writing = kind != "r" or "+" in mode
        inode = self._inode_for(path, kind)
        raw = WriteFile(self, inode.ino, append=kind == "a", readable=kind == "r" or "+" in mode, writable=writing)
        binary: io.BufferedIOBase
        if "+" in mode:
            binary = io.BufferedRandom(raw)
        elif writing:
            binary = io.BufferedWriter(raw)
        else:
            binary = io.BufferedReader(raw)
        opened = binary if "b" in mode else io.TextIOWrapper(binary, encoding=encoding)
        self._files.add(opened)
        return opened

    def _inode_for(self, path: Path, kind: str) -> Inode:
        directory, name = self._resolve_parent(path, follow=True)
        try:
            inode = self._child(directory, name)
        except NotFound:
            if kind == "r":
                raise
            inode = self._engine.mknod(
                directory.ino, name, stat_bits.S_IFREG | 0o666 & ~self._umask, uid=os.getuid(), gid=os.getgid()
            )
            self._did()
            return inode
        if kind == "x":
            raise Exists(f"{os.fsdecode(path)} exists")
        if stat_bits.S_ISDIR(inode.mode):
            raise IsADirectory(f"{os.fsdecode(path)} is a directory")
        if kind == "w":
            self._engine.setattr(inode.ino, size=0)
        return inode

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Makes `data` the contents of a file, which is created or replaced."""
        inode = self._inode_for(path, "w")
        view = memoryview(data)
        for at in range(0, len(view), limits.MIB):
            self._engine.write(inode.ino, at, view[at : at + limits.MIB])
        self._did()

    def write_text(self, path: Path, text: str, encoding: str = "utf-8") -> None:
        """Makes `text` the contents of a file, which is created or replaced."""
        self.write_bytes(path, text.encode(encoding))

    def truncate(self, path: Path, size: int) -> None:
        """Sets the size of a file; what is added reads as zeros and takes no space."""
        self._engine.setattr(self._resolve(path).ino, size=size)
        self._did()

    # -- names ---------------------------------------------------------------------------------------------------

    def mkdir(self, path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes a directory, with `parents` also those above it."""
        if parents:
            names = [name for name in os.fsdecode(path).split("/") if name]
            for i in range(1, len(names)):
                self.mkdir("/".join(names[:i]), exist_ok=True)
        directory, name = self._resolve_parent(path, follow=True)
        try:
            if not name:
                raise Exists("/ exists")
            self._engine.mkdir(directory.ino, name, mode & ~self._umask, uid=os.getuid(), gid=os.getgid())
        except Exists:
            if not exist_ok or not stat_bits.S_ISDIR(self._child(directory, name).mode):
                raise
        self._did()

    def _named(self, path: Path) -> tuple[Inode, bytes]:
        directory, name = self._resolve_parent(path)
        if not name:
            raise InvalidArgument("that cannot be done to the root")
        return directory, name

    def unlink(self, path: Path) -> None:
        """Removes a name of anything but a directory."""
        directory, name = self._named(path)
        self._engine.unlink(directory.ino, name)
        self._did()

    def rmdir(self, path: Path) -> None:
        """Removes an empty directory."""
        directory, name = self._named(path)
        self._engine.rmdir(directory.ino, name)
        self._did()

    def rmtree(self, path: Path) -> None:
        """Removes a directory and all that is in it."""
        top = os.fsdecode(path)
        for here, _, others in list(self.walk(top))[::-1]:
            for name in others:
                self.unlink(f"{here}/{name}")
            if self._resolve(here).ino != ROOT:
                self.rmdir(here)

    def rename(self, source: Path, target: Path, *, replace: bool = True, exchange: bool = False) -> None:
        """Moves a name; what has the new one is replaced, refused (`replace=False`) or swapped (`exchange=True`)."""
        directory, name = self._named(source)
        new_directory, new_name = self._named(target)
        flags = (0 if replace else 1) | (2 if exchange else 0)
        self._engine.rename(directory.ino, name, new_directory.ino, new_name, flags)
        self._did()

    def symlink(self, target: str | bytes, path: Path) -> None:
        """Makes a symbolic link at `path` that points to `target`."""
        directory, name = self._named(path)
        self._engine.symlink(directory.ino, name, os.fsencode(target), uid=os.getuid(), gid=os.getgid())
        self._did()

    def link(self, existing: Path, path: Path) -> None:
        """Makes `path` one more name of the file `existing`."""
        inode = self._resolve(existing, follow=False)
        directory, name = self._named(path)
        self._engine.link(inode.ino, directory.ino, name)
        self._did()

    # -- attributes ----------------------------------------------------------------------------------------------

    def chmod(self, path: Path, mode: int) -> Stat:
        """Sets the permission bits; the new attributes."""
        return self._setattr(path, mode=mode)

    def chown(self, path: Path, uid: int | None = None, gid: int | None = None) -> Stat:
        """Sets owner, group or both; the new attributes."""
        return self._setattr(path, uid=uid, gid=gid)

    def utime(self, path: Path, *, atime_ns: int, mtime_ns: int) -> Stat:
        """Sets both times, in nanoseconds; the new attributes."""
        return self._setattr(path, atime_ns=atime_ns, mtime_ns=mtime_ns)

    def _setattr(self, path: Path, **changes: int | None) -> Stat:
        inode = self._engine.setattr(self._resolve(path).ino, **changes)
        self._did()
        return to_stat(inode)

    def setxattr(self, path: Path, name: str, value: bytes, flags: int = 0) -> None:
        """Sets an extended attribute; `flags` as of setxattr(2)."""
        self._engine.setxattr(self._resolve(path).ino, os.fsencode(name), value, flags)
        self._did()

    def removexattr(self, path: Path, name: str) -> None:
        """Removes an extended attribute; `NoAttribute`."""
        self._engine.removexattr(self._resolve(path).ino, os.fsencode(name))
        self._did()

    # -- what open files need ------------------------------------------------------------------------------------

    def _opened(self, ino: int) -> None:
        self._open[ino] += 1

    def _closed_file(self, ino: int) -> None:
        self._open[ino] -= 1
        if not self._open[ino]:
            del self._open[ino]
            if not self.closed:
                self._engine.forget(ino)


class WriteFile(ReadFile):
    """A file of an open filesystem, unbuffered; an unlinked one lives until it is closed."""

    def __init__(self, fs: FileSystem, ino: int, *, append: bool, readable: bool, writable: bool) -> None:
        self._fs = fs
        self._registered = False
        super().__init__(fs, ino)
        fs._opened(ino)
        self._registered = True
        self._append, self._readable, self._writable = append, readable, writable

    def readable(self) -> bool:
        return self._readable

    def writable(self) -> bool:
        return self._writable

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data).cast("B")
        if self._append:
            self._at = self._fs._engine.inode(self._ino).size
        written = self._fs._engine.write(self._ino, self._at, view[: limits.MIB])
        self._at += written
        self._fs._did()
        return written

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        self._fs._engine.setattr(self._ino, size=size)
        self._fs._did()
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._registered:
                self._registered = False
                self._fs._closed_file(self._ino)
