"""A tree of files by path, read-only: what a snapshot's view and an open filesystem have in common.

Paths are `str`, `bytes` or `os.PathLike`, always taken from the tree's root, whether or not they begin with a slash.
Symbolic links are followed within the tree, at most `limits.SYMLINKS_FOLLOWED_MAX` of them; `..` of the root is the
root, so no path leads out.  Names that are not UTF-8 come as `os.fsdecode` gives them.
"""

from __future__ import annotations

import io
import os
import stat as stat_bits
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tzfs import limits
from tzfs.engine.engine import Engine
from tzfs.engine.view import View
from tzfs.errors import InvalidArgument, NameTooLong, NoAttribute, NotADirectory, NotFound, Stale, SymlinkLoop
from tzfs.format.keys import ROOT
from tzfs.format.records import Inode

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
LISTING_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Stat:
    """What `os.stat` says of a file, in the same words; times in nanoseconds."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat_bits.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat_bits.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat_bits.S_ISLNK(self.mode)


def to_stat(i: Inode) -> Stat:
    return Stat(i.ino, i.mode, i.nlink, i.uid, i.gid, i.size, i.rdev, i.atime_ns, i.mtime_ns, i.ctime_ns)


def components(path: Path) -> list[bytes]:
    """The names in a path; `NameTooLong`, `InvalidArgument`."""
    raw = os.fsencode(path)
    if len(raw) > limits.PATH_BYTES_MAX:
        raise NameTooLong(f"path of {len(raw)} bytes; the limit is {limits.PATH_BYTES_MAX}")
    if b"\0" in raw:
        raise InvalidArgument("a path cannot contain NUL")
    return [name for name in raw.split(b"/") if name not in (b"", b".")]


class Tree:
    """Read-only calls by path.  `FileSystem` and `SnapshotView` build on it.

    A tree is used by the thread that opened it, until whatever it was opened from is closed; anything later, or from
    elsewhere, is `InvalidArgument`.  `what` is what it is called then.
    """

    def __init__(self, source: Engine | View, what: str, *, within: Tree | None = None) -> None:
        self.__source = source
        self._what = what
        self._within = within
        self._thread = threading.get_ident()
        self._ended = False

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._ended or (self._within is not None and self._within.closed)

    def end(self) -> None:
        """Lets nothing be done with it any more; what it stands on is closed by whoever opened that."""
        self._ended = True

    def _check_usable(self) -> None:
        if self.closed:
            raise InvalidArgument(f"{self._what} is closed", hint="open it again, and use it within the with block")
        if threading.get_ident() != self._thread:
            raise InvalidArgument(
                f"{self._what} belongs to the thread that opened it", hint="open it where it is used, or mount it"
            )

    @property
    def _source(self) -> Engine | View:
        self._check_usable()
        return self.__source

    # -- resolving -----------------------------------------------------------------------------------------------

    def _resolve(self, path: Path, *, follow: bool = True) -> Inode:
        """The inode a path leads to; of a symbolic link at its end only with `follow` what it points to."""
        directory, name = self._resolve_parent(path, follow=follow)
        try:
            return self._child(directory, name)
        except Stale:
            raise
        except NotFound:
            raise NotFound(f"{os.fsdecode(path)}: no such file or directory") from None

    def _child(self, directory: Inode, name: bytes) -> Inode:
        return directory if not name else self._source.lookup(directory.ino, name)

    def _resolve_parent(self, path: Path, *, follow: bool = False) -> tuple[Inode, bytes]:
        """(directory, last name) of a path; the name is empty for the root.  What the name names need not exist."""
        source = self._source
        here, todo, followed = source.inode(ROOT), components(path)[::-1], 0
        while todo:
            name = todo.pop()
            if name == b"..":
                here = source.inode(source.parent_of(here.ino))
                continue
            if not stat_bits.S_ISDIR(here.mode):
                raise NotADirectory(f"{os.fsdecode(path)}: a part of the path is not a directory")
            if not todo and not follow:
                return here, name
            try:
                found = source.lookup(here.ino, name)
            except NotFound:
                if not todo:
                    return here, name
                raise NotFound(f"{os.fsdecode(path)}: no such file or directory") from None
            if stat_bits.S_ISLNK(found.mode):
                followed += 1
                if followed > limits.SYMLINKS_FOLLOWED_MAX:
                    raise SymlinkLoop(f"{os.fsdecode(path)}: more than {limits.SYMLINKS_FOLLOWED_MAX} symbolic links")
                target = source.readlink(found.ino)
                if target.startswith(b"/"):
                    here = source.inode(ROOT)
                todo += components(target)[::-1]
                continue
            if not todo:
                return here, name
            here = found
        return here, b""

    # -- reading -------------------------------------------------------------------------------------------------

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> Stat:
        """The attributes of what the path names.  `NotFound`, `NotADirectory`, `SymlinkLoop`."""
        return to_stat(self._resolve(path, follow=follow_symlinks))

    def exists(self, path: Path) -> bool:
        """Whether the path names anything, symbolic links followed."""
        try:
            self._resolve(path)
        except (NotFound, NotADirectory):
            return False
        return True

    def is_dir(self, path: Path) -> bool:
        """Whether the path names a directory."""
        return self.exists(path) and self.stat(path).is_dir

    def is_file(self, path: Path) -> bool:
        """Whether the path names a regular file."""
        return self.exists(path) and self.stat(path).is_file

    def listdir(self, path: Path = "/") -> list[str]:
        """The names in a directory, in byte order, without `.` and `..`."""
        return [name for name, _ in self.scandir(path)]

    def scandir(self, path: Path = "/") -> Iterator[tuple[str, Stat]]:
        """(name, attributes) of each entry of a directory, in byte order of the names."""
        ino = self._resolve(path).ino
        after = b""
        while batch := self._source.readdir_plus(ino, after, LISTING_BATCH):
            for name, inode in batch:
                yield os.fsdecode(name), to_stat(inode)
            after = batch[-1][0]

    def walk(self, top: Path = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """Like `os.walk`, top down, without following symbolic links."""
        start = os.fsdecode(top)
        todo = [start]
        while todo:
            here = todo.pop()
            directories: list[str] = []
            others: list[str] = []
            for name, found in self.scandir(here):
                (directories if found.is_dir else others).append(name)
            yield here, directories, others
            todo += [f"{here.rstrip('/')}/{name}" for name in reversed(directories)]

    def readlink(self, path: Path) -> str:
        """The target of a symbolic link."""
        return os.fsdecode(self._source.readlink(self._resolve(path, follow=False).ino))

    def read_bytes(self, path: Path) -> bytes:
        """All of a file."""
        with self._open_read(path) as file:
            return file.readall()

    def read_text(self, path: Path, encoding: str = "utf-8") -> str:
        """All of a file, decoded."""
        return self.read_bytes(path).decode(encoding)

    def open_read(self, path: Path) -> io.BufferedReader:
        """The file, open for buffered binary reading."""
        return io.BufferedReader(self._open_read(path))

    def _open_read(self, path: Path) -> ReadFile:
        return ReadFile(self, self._resolve(path).ino)

    def getxattr(self, path: Path, name: str) -> bytes:
        """An extended attribute; `NoAttribute`."""
        return self._source.getxattr(self._resolve(path).ino, os.fsencode(name))

    def listxattr(self, path: Path) -> list[str]:
        """The names of the extended attributes."""
        return [os.fsdecode(name) for name in self._source.listxattr(self._resolve(path).ino)]

    def has_xattr(self, path: Path, name: str) -> bool:
        """Whether the file has the attribute."""
        try:
            self.getxattr(path, name)
        except NoAttribute:
            return False
        return True


class ReadFile(io.RawIOBase):
    """A file open for reading, unbuffered; seekable."""

    def __init__(self, tree: Tree, ino: int) -> None:
        super().__init__()
        tree._source.plan_read(ino, 0, 0)  # a directory is refused now, not at the first read
        self._tree, self._ino, self._at = tree, ino, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._at, self._tree._source.inode(self._ino).size)[whence]
        if base + offset < 0:
            raise InvalidArgument("cannot seek to before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._tree._source.plan_read(self._ino, self._at, min(len(view), limits.MIB)).execute()
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class SnapshotView(Tree):
    """A snapshot's tree.  `name` is what it is called, `created_ns` when it was taken."""

    def __init__(self, view: View, *, within: Tree | None = None) -> None:
        super().__init__(view, f"snapshot {view.name}", within=within)
        self.name = view.name
        self.created_ns = view.snapshot.created_ns
