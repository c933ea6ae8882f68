"""A directory tree as a value: what is compared with what a filesystem shows, and laid out again on the local disk.

A tree has everything that a program sees of files but their times and numbers: names, types, modes, owners, link
counts, which names are one file, targets, extended attributes, bytes.  Bytes are kept once, by their digest, in
`Contents`.  What `git` writes into its index of a file's times and numbers is left out of a digest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_INDEX: Final = ".git/index"  # of the tree's own repository
_SHOWN_MAX: Final = 10
CLOCK_NS: Final = 50_000_000  # within it, two changes of a file may have the same time


@dataclass(frozen=True, slots=True)
class Node:
    """`seen` is the digest of what is compared of the contents, `kept` that of the contents; of a link, its target.

    `twin` is the first of the names of one file.
    """

    mode: int
    owner: tuple[int, int]
    links: int
    twin: str
    xattrs: tuple[tuple[str, bytes], ...]
    seen: bytes
    kept: bytes = field(compare=False)


Tree = dict[str, Node]  # by path below the top, in order of paths
Contents = dict[bytes, bytes]
Known = dict[str, tuple[tuple[int, ...], Node]]  # by path: what `stat` said of a file, and what it was


def capture(top: Path, contents: Contents, known: Known | None = None) -> Tree:
    """The tree below `top`; what its files have is put into `contents`.

    With `known`, which is brought up to date, what `stat` says nothing new of is not read again.
    """
    first: dict[tuple[int, int], str] = {}
    tree: Tree = {}
    before, now_ns = {} if known is None else dict(known), time.time_ns()
    if known is not None:
        known.clear()
    for path in _walk(top, ""):
        where = os.path.join(top, path)
        found = os.lstat(where)
        stamp = (*found[:7], found.st_mtime_ns, found.st_ctime_ns)
        twin = first.setdefault((found.st_dev, found.st_ino), path)
        if path in before and before[path][0] == stamp and before[path][1].twin == twin:
            tree[path] = before[path][1]
            if known is not None:
                known[path] = before[path]
            continue
        names = os.listxattr(where, follow_symlinks=False) if stat.S_IFMT(found.st_mode) != stat.S_IFLNK else []
        xattrs = tuple((name, os.getxattr(where, name)) for name in sorted(names))
        seen = kept = b""
        if twin != path:
            seen, kept = tree[twin].seen, tree[twin].kept
        elif stat.S_ISREG(found.st_mode):
            data = Path(where).read_bytes()
            assert len(data) == found.st_size, f"{path}: {found.st_size} bytes, of which {len(data)} were read"
            kept = hashlib.sha256(data).digest()
            contents[kept] = data
            seen = hashlib.sha256(_without_stat(data)).digest() if path == _INDEX else kept
        elif stat.S_ISLNK(found.st_mode):
            seen = kept = os.fsencode(os.readlink(where))
        tree[path] = Node(found.st_mode, (found.st_uid, found.st_gid), found.st_nlink, twin, xattrs, seen, kept)
        if known is not None and found.st_ctime_ns < now_ns - CLOCK_NS:
            known[path] = stamp, tree[path]
    return tree


def _walk(top: Path, path: str) -> Iterator[str]:
    with os.scandir(top / path) as entries:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_directory in names:
        yield os.path.join(path, name)
        if is_directory:
            yield from _walk(top, os.path.join(path, name))


def _without_stat(index: bytes) -> bytes:
    """An index of git's (version 2) without what `stat` says, and without the sum over it."""
    if index[:8] != b"DIRC\x00\x00\x00\x02":
        return index
    out, at = [index[:12]], 12
    for _ in range(int.from_bytes(index[8:12], "big")):
        end = index.index(b"\0", at + 62)
        out += [index[at + 24 : at + 28], index[at + 40 : end]]  # the mode; the object, flags and path
        at += (end - at) // 8 * 8 + 8
    return b"".join([*out, index[at:-20]])


def differences(found: Tree, expected: Tree) -> list[str]:
    """What `found` has otherwise than expected, a line each, the first few; empty where they are the same."""
    said = [f"missing: {path}" for path in expected if path not in found]
    for path, node in found.items():
        if path not in expected:
            said.append(f"not expected: {path}")
        elif node != (other := expected[path]):
            fields = (
                f"{name} {getattr(node, name)!r}, expected {getattr(other, name)!r}"
                for name in ("mode", "owner", "links", "twin", "xattrs", "seen")
                if getattr(node, name) != getattr(other, name)
            )
            said.append(f"{path}: {'; '.join(fields)}")
    return said[:_SHOWN_MAX]


def lay_out(tree: Tree, contents: Contents, top: Path) -> None:
    """Makes `top` the tree, whatever was there."""
    for entry in top.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    put(tree, contents, top)


def put(tree: Tree, contents: Contents, top: Path) -> None:
    """Makes what the tree has below `top`, where nothing of it is yet; names are one file where both are in it."""
    made: dict[str, Path] = {}
    for path, node in tree.items():
        where = top / path
        if node.twin in made:
            os.link(made[node.twin], where, follow_symlinks=False)
            continue
        kind = stat.S_IFMT(node.mode)
        if kind == stat.S_IFDIR:
            where.mkdir()
        elif kind == stat.S_IFLNK:
            os.symlink(node.kept, os.fsencode(where))
        elif kind == stat.S_IFIFO:
            os.mkfifo(where)
        else:
            where.write_bytes(contents[node.kept])
        made[node.twin] = where
        for name, value in node.xattrs:
            os.setxattr(where, name, value)
    for path, node in reversed(tree.items()):
        if stat.S_IFMT(node.mode) != stat.S_IFLNK:
            os.chmod(top / path, stat.S_IMODE(node.mode))


def part(tree: Tree, path: str) -> Tree:
    """What is at `path` and below."""
    return {name: node for name, node in tree.items() if name == path or name.startswith(path + "/")}
