"""A filesystem as plain as can be, to hold the engine against: dicts, and a full copy for every snapshot.

It has the engine's calls and errors, and none of its machinery: no epochs, no versions, no transaction groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tzfs import errors
from tzfs.engine.head import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

ROOT = 1


@dataclass
class Node:
    """An inode.  `entries` for directories, `data` for files and symlinks."""

    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int = 0
    data: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    mtime_ns: int = 0
    parent: int = ROOT

    @property
    def is_dir(self) -> bool:
        return self.mode & S_IFMT == S_IFDIR


def copied(nodes: Mapping[int, Node]) -> dict[int, Node]:
    """The same tree, of nodes that change by themselves."""
    return {
        ino: replace(n, data=bytearray(n.data), entries=dict(n.entries), xattrs=dict(n.xattrs))
        for ino, n in nodes.items()
    }


class Plain:
    """The tree, the orphans, and the trees of the snapshots."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {ROOT: Node(S_IFDIR | 0o755, 0, 0, 2)}
        self.orphans: set[int] = set()
        self.snapshots: dict[str, dict[int, Node]] = {}
        self.open: set[int] = set()
        self.holds: dict[str, set[str]] = {}  # of snapshots
        self.labels: dict[str, dict[str, str]] = {}
        self.bookmarks: dict[str, tuple[int, list[int]]] = {}  # the epoch, and the inodes there were
        self.notes: list[tuple[int, int]] = []  # lines of the log: their numbers, and how long they are

    def copy(self) -> Plain:
        """One that changes by itself.  The trees of snapshots never change, and so are shared."""
        other = Plain()
        other.nodes = copied(self.nodes)
        other.orphans, other.open = set(self.orphans), set(self.open)
        other.snapshots = dict(self.snapshots)
        other.holds = {name: set(tags) for name, tags in self.holds.items()}
        other.labels = {name: dict(labels) for name, labels in self.labels.items()}
        other.bookmarks = dict(self.bookmarks)
        other.notes = list(self.notes)
        return other

    def directory(self, ino: int) -> Node:
        node = self.node(ino)
        if not node.is_dir:
            raise errors.NotADirectory("")
        return node

    def node(self, ino: int) -> Node:
        if ino not in self.nodes:
            raise errors.Stale("")
        return self.nodes[ino]

    def lookup(self, parent: int, name: bytes) -> int:
        entries = self.directory(parent).entries
        if name not in entries:
            raise errors.NotFound("")
        return entries[name]

    def for_entry(self, parent: int) -> Node:
        directory = self.directory(parent)
        if parent in self.orphans:
            raise errors.NotFound("")
        return directory

    def create(self, ino: int, parent: int, name: bytes, mode: int, gid: int, data: bytes, rdev: int) -> None:
        directory = self.directory(parent)
        if directory.mode & 0o2000:
            gid = directory.gid
            if mode & S_IFMT == S_IFDIR:
                mode |= 0o2000
        is_dir = mode & S_IFMT == S_IFDIR
        self.nodes[ino] = Node(mode, 7, gid, 2 if is_dir else 1, rdev, bytearray(data), parent=parent)
        directory.entries[name] = ino
        directory.nlink += is_dir

    def check_new(self, parent: int, name: bytes) -> None:
        if name in self.for_entry(parent).entries:
            raise errors.Exists("")

    def link(self, ino: int, parent: int, name: bytes) -> None:
        node = self.node(ino)
        if node.is_dir:
            raise errors.NotPermitted("")
        directory = self.for_entry(parent)
        if node.nlink == 0:
            raise errors.NotFound("")
        if name in directory.entries:
            raise errors.Exists("")
        directory.entries[name] = ino
        node.nlink += 1

    def _unname(self, ino: int) -> None:
        node = self.nodes[ino]
        node.nlink = 0 if node.is_dir else node.nlink - 1
        if node.nlink == 0:
            if ino in self.open:
                self.orphans.add(ino)
            else:
                del self.nodes[ino]

    def unlink(self, parent: int, name: bytes) -> None:
        ino = self.lookup(parent, name)
        if self.nodes[ino].is_dir:
            raise errors.IsADirectory("")
        del self.nodes[parent].entries[name]
        self._unname(ino)

    def rmdir(self, parent: int, name: bytes) -> None:
        ino = self.lookup(parent, name)
        node = self.nodes[ino]
        if not node.is_dir:
            raise errors.NotADirectory("")
        if node.entries:
            raise errors.NotEmpty("")
        del self.nodes[parent].entries[name]
        self.nodes[parent].nlink -= 1
        self._unname(ino)

    def _under(self, ino: int, top: int) -> bool:
        while True:
            if ino == top:
                return True
            if ino == ROOT:
                return False
            ino = self.nodes[ino].parent

    def _check_move(self, ino: int, source: int, target: int) -> None:
        if self.nodes[ino].is_dir and source != target and self._under(target, ino):
            raise errors.InvalidArgument("")

    def rename(self, parent: int, name: bytes, target: int, new: bytes, flags: int) -> None:
        if flags not in (0, 1, 2):
            raise errors.InvalidArgument("")
        source, there = self.directory(parent), self.for_entry(target)
        ino, over = self.lookup(parent, name), there.entries.get(new)
        if flags == 2:
            if over is None:
                raise errors.NotFound("")
            self._check_move(ino, parent, target)
            self._check_move(over, target, parent)
            source.entries[name], there.entries[new] = over, ino
            for moved, old, now in ((ino, parent, target), (over, target, parent)):
                if self.nodes[moved].is_dir:
                    self.nodes[old].nlink -= 1
                    self.nodes[now].nlink += 1
                    self.nodes[moved].parent = now
            return
        if over is not None and flags == 1:
            raise errors.Exists("")
        if over == ino:
            return
        self._check_move(ino, parent, target)
        node = self.nodes[ino]
        if over is not None:
            replaced = self.nodes[over]
            if replaced.is_dir:
                if not node.is_dir:
                    raise errors.IsADirectory("")
                if replaced.entries:
                    raise errors.NotEmpty("")
                there.nlink -= 1
            elif node.is_dir:
                raise errors.NotADirectory("")
            self._unname(over)
        del source.entries[name]
        there.entries[new] = ino
        if node.is_dir:
            source.nlink -= 1
            there.nlink += 1
            node.parent = target

    def write(self, ino: int, offset: int, payload: bytes) -> None:
        node = self.node(ino)
        if node.is_dir:
            raise errors.IsADirectory("")
        if node.mode & S_IFMT != S_IFREG:
            raise errors.InvalidArgument("")
        if payload:
            node.data.extend(bytes(max(0, offset - len(node.data))))
            node.data[offset : offset + len(payload)] = payload

    def truncate(self, ino: int, size: int) -> None:
        node = self.node(ino)
        if node.is_dir:
            raise errors.IsADirectory("")
        if node.mode & S_IFMT != S_IFREG:
            raise errors.InvalidArgument("")
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    def forget(self, ino: int) -> None:
        self.open.discard(ino)
        if ino in self.orphans:
            self.orphans.remove(ino)
            del self.nodes[ino]

    def snapshot(self, name: str) -> None:
        self.snapshots[name] = copied({i: n for i, n in self.nodes.items() if i not in self.orphans})

    def restarted(self) -> None:
        """Nobody refers to anything any more."""
        for ino in list(self.orphans):
            self.forget(ino)
        self.open.clear()

    def counted(self) -> tuple[int, int, int, int, int]:
        """(inodes, files, directories, symlinks, others) with names."""
        kinds = [n.mode & S_IFMT for i, n in self.nodes.items() if i not in self.orphans]
        files, dirs, links = (kinds.count(k) for k in (S_IFREG, S_IFDIR, S_IFLNK))
        return len(kinds), files, dirs, links, len(kinds) - files - dirs - links
