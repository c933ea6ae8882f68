"""Reads LMDB 0.9's file as bytes: is all of it there, and is it a tree?

LMDB maps its file and trusts it.  A page that lies beyond the end of the file is then no error but a SIGBUS, and a page
of another moment is followed wherever it points.  Both happen to a file that was copied while it was in use, or cut
short.  This module reads the same structures with `pread`, so that such a file is refused with a reason before LMDB
sees it.  It knows the format and nothing else: no environment, no locks.

The format, little-endian, pages of 4,096 bytes (LMDB takes the machine's page size; its own record of it is believed):

    page      number u64 ‖ pad u16 ‖ flags u16 ‖ lower u16 ‖ upper u16 (of a run of overflow pages: their count u32)
    meta      pages 0 and 1: magic u32 ‖ version u32 ‖ address u64 ‖ map size u64 ‖ free tree ‖ main tree ‖
              last page u64 ‖ transaction u64; the one with the higher transaction counts
    tree      pad u32 (in the free tree: page size) ‖ flags u16 ‖ depth u16 ‖ branch, leaf, overflow pages, entries,
              root, u64 each; an empty tree's root is all ones
    node      low u16 ‖ high u16 ‖ flags u16 ‖ key length u16 ‖ key ‖ data; a page's nodes are found by the u16 offsets
              that follow its header.  In a branch low, high and flags are the child's number; in a leaf low and high
              are the data's length, unless flag 1 says that the data is the number of an overflow run; flag 2 marks
              the data as a tree

The last page of a healthy file may lie beyond its end: LMDB does not write pages that were taken and given back within
one transaction.  A file that is shorter than its last page is therefore walked, not refused at once.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from tzfs.errors import CorruptionError, ForeignStore, TablesLost

_PAGE: Final = struct.Struct("<QHHHH")
_META: Final = struct.Struct("<IIQQ")
_TREE: Final = struct.Struct("<IHHQQQQQ")
_LAST: Final = struct.Struct("<QQ")
_NODE: Final = struct.Struct("<HHHH")
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_NO_PAGE: Final = (1 << 64) - 1
_BRANCH, _LEAF, _OVERFLOW, _META_FLAG = 1, 2, 4, 8
_KINDS: Final = _BRANCH | _LEAF | _OVERFLOW | _META_FLAG
_BIG, _SUBTREE = 1, 2
_INTEGER_KEY: Final = 0x08
META_BYTES: Final = _PAGE.size + _META.size + 2 * _TREE.size + _LAST.size


class Tree(NamedTuple):
    """The root record of one tree."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


@dataclass(frozen=True, slots=True)
class MetaPage:
    """One of the two root pages: the state after one commit."""

    page_bytes: int
    free: Tree
    main: Tree
    last_page: int
    transaction: int

    @property
    def bytes_needed(self) -> int:
        """The length of a file that has every page."""
        return (self.last_page + 1) * self.page_bytes


def meta_pages(fd: int, what: str) -> list[MetaPage]:
    """Both root pages, the newest first.

    `TablesLost` for no file of LMDB, `ForeignStore` for another version's, `CorruptionError` if cut short.
    """
    first = _meta_page(os.pread(fd, META_BYTES, 0), 0, what)
    second = _meta_page(os.pread(fd, META_BYTES, first.page_bytes), 1, what)
    return sorted((first, second), key=lambda meta: meta.transaction, reverse=True)


def _meta_page(data: bytes, number: int, what: str) -> MetaPage:
    if len(data) < META_BYTES:
        raise CorruptionError(f"{what}: cut short within its root pages", hint="copied while mounted? copy it again")
    found, _, flags, _, _ = _PAGE.unpack_from(data)
    magic, version, _, _ = _META.unpack_from(data, _PAGE.size)
    if magic != _MAGIC or found != number or flags & _KINDS != _META_FLAG:
        raise TablesLost(f"{what}: not a file of LMDB")
    if version != _VERSION:
        raise ForeignStore(f"{what}: format {version} of LMDB, tzfs uses {_VERSION}")
    at = _PAGE.size + _META.size
    free, main = Tree(*_TREE.unpack_from(data, at)), Tree(*_TREE.unpack_from(data, at + _TREE.size))
    if free.pad < 512 or free.pad & (free.pad - 1):
        raise CorruptionError(f"{what}: page size {free.pad}")
    return MetaPage(free.pad, free, main, *_LAST.unpack_from(data, at + 2 * _TREE.size))


def verify(fd: int, meta: MetaPage, what: str) -> None:
    """Walks everything that `meta` reaches: `CorruptionError` for the first page that is absent or not what it must be.

    Each page must lie within the file, carry its own number and the right kind, keep its keys in order and within what
    its parent promises, and each tree must have the pages and entries it says.  The caller sees to it that no writer
    reuses the pages meanwhile (a read transaction on `meta`).  Time is one read of every page.
    """
    _Walk(fd, meta, what).tree(meta.free, "free list")
    _Walk(fd, meta, what).tree(meta.main, "main")


class _Walk:
    """The state of one walk: where it reads, and what it has counted of the present tree."""

    def __init__(self, fd: int, meta: MetaPage, what: str) -> None:
        self.fd = fd
        self.meta = meta
        self.what = what
        self.file_bytes = os.fstat(fd).st_size
        self.branch_pages = self.leaf_pages = self.overflow_pages = self.entries = 0

    def tree(self, tree: Tree, name: str) -> None:
        if tree.root == _NO_PAGE:
            if tree.entries:
                raise self.damage(0, f"{name}: {tree.entries} entries and no root")
            return
        subtrees: list[tuple[Tree, str]] = []
        ordered = not tree.flags & _INTEGER_KEY
        stack: list[tuple[int, int, bytes | None, bytes | None]] = [(tree.root, 1, None, None)]
        while stack:
            number, depth, low, high = stack.pop()
            page, nodes = self.page(number, _BRANCH if depth < tree.depth else _LEAF)
            keys = self.keys(page, nodes, number)
            if depth < tree.depth:
                self.branch_pages += 1
                children = [self.child(page, at) for at in nodes]
                # The first key of a branch page is empty and stands for "everything below the second".
                bounds = [low, *keys[1:], high]
                stack.extend((c, depth + 1, bounds[i], bounds[i + 1]) for i, c in enumerate(children))
                keys = keys[1:]
            else:
                self.leaf_pages += 1
                self.entries += len(nodes)
                for key, at in zip(keys, nodes, strict=True):
                    self.leaf_node(page, at, key, number, subtrees)
            if ordered and not _within(keys, low, high):
                raise self.damage(number, f"{name}: its keys are not those its parent promises")
        counted = (self.branch_pages, self.leaf_pages, self.overflow_pages, self.entries)
        if counted != (tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries):
            raise self.damage(tree.root, f"{name}: the tree does not have the pages and entries it says")
        for subtree, subname in subtrees:
            _Walk(self.fd, self.meta, self.what).tree(subtree, subname)

    def page(self, number: int, kind: int) -> tuple[bytes, tuple[int, ...]]:
        size = self.meta.page_bytes
        if not 2 <= number <= self.meta.last_page:
            raise self.damage(number, f"is beyond the last page, {self.meta.last_page}")
        page = os.pread(self.fd, size, number * size)
        if len(page) < size:
            raise CorruptionError(
                f"{self.what}: truncated: page {number} is beyond the end of the file ({self.file_bytes} bytes)",
                hint="copied while mounted? copy it again while it is not",
            )
        found, _, flags, lower, upper = _PAGE.unpack_from(page)
        if found != number or flags & _KINDS != kind:
            raise self.damage(number, "is a page of another moment")
        if kind == _OVERFLOW:
            return page, ()
        if not _PAGE.size <= lower <= upper <= size or lower & 1:
            raise self.damage(number, "has impossible bounds")
        nodes = struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size)
        if not nodes or min(nodes) < upper or max(nodes) > size - _NODE.size:
            raise self.damage(number, "has impossible nodes")
        return page, nodes

    def keys(self, page: bytes, nodes: tuple[int, ...], number: int) -> list[bytes]:
        keys = []
        for at in nodes:
            key_bytes = int.from_bytes(page[at + 6 : at + 8], "little")
            if at + _NODE.size + key_bytes > len(page):
                raise self.damage(number, "has a key that leaves the page")
            keys.append(page[at + _NODE.size : at + _NODE.size + key_bytes])
        return keys

    def child(self, page: bytes, at: int) -> int:
        low, high, flags, _ = _NODE.unpack_from(page, at)
        return int(low | high << 16 | flags << 32)

    def leaf_node(self, page: bytes, at: int, key: bytes, number: int, subtrees: list[tuple[Tree, str]]) -> None:
        low, high, flags, key_bytes = _NODE.unpack_from(page, at)
        data, length = at + _NODE.size + key_bytes, low | high << 16
        stored = 8 if flags & _BIG else length
        if data + stored > len(page):
            raise self.damage(number, "has a value that leaves the page")
        if flags & _BIG:
            self.overflow_run(int.from_bytes(page[data : data + 8], "little"), length)
        elif flags & _SUBTREE:
            if length != _TREE.size:
                raise self.damage(number, "has a tree of the wrong length")
            subtrees.append((Tree(*_TREE.unpack_from(page, data)), key.decode("ascii", "replace")))

    def overflow_run(self, number: int, length: int) -> None:
        page, _ = self.page(number, _OVERFLOW)
        count = int.from_bytes(page[12:16], "little")
        end = number + count
        if count * self.meta.page_bytes < length + _PAGE.size or end - 1 > self.meta.last_page:
            raise self.damage(number, "is the start of an impossible run of pages")
        if end * self.meta.page_bytes > self.file_bytes:
            self.page(end - 1, _OVERFLOW)  # says that the file is truncated
        self.overflow_pages += count

    def damage(self, number: int, why: str) -> CorruptionError:
        return CorruptionError(
            f"{self.what}: page {number} {why}",
            hint="copied while mounted, or the disk is damaged; use another copy",
        )


def _within(keys: list[bytes], low: bytes | None, high: bytes | None) -> bool:
    return (
        all(a < b for a, b in pairwise(keys))
        and (not keys or low is None or keys[0] >= low)
        and (not keys or high is None or keys[-1] < high)
    )
