"""The handlers that change nothing: look-ups, attributes, listings, and the folders `.zfs` and `.zfs/snapshot`.

Handles of directories keep a listing's place; all others are node ids (`nodes`).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, ReaddirToken, RequestContext, StatvfsData

from tzfs import limits
from tzfs.engine.damaged import inode_or_less
from tzfs.engine.engine import Engine
from tzfs.engine.head import check_name
from tzfs.engine.view import View
from tzfs.errors import CorruptionError, MountFailed, TzfsError, UsageError
from tzfs.format.keys import ROOT
from tzfs.format.records import Inode, UnreadableInode
from tzfs.mount.answers import Answers
from tzfs.mount.nodes import (
    CONTROL_TREE,
    FOREVER_S,
    INO_MASK,
    SNAPSHOTS_NAME,
    SNAPSHOTS_NODE,
    ZFS_NAME,
    ZFS_NODE,
    Views,
    absent,
    attributes_of,
    attributes_of_unreadable,
)
from tzfs.mount.requests import KINDS, RequestStatistics, answered
from tzfs.opening import HeadReader

log = logging.getLogger(__name__)

WRITING = 1 << 63  # in a file handle: it may write
LISTING_BATCH = 48  # entries with attributes that fit the kernel's 4-8 KiB of a READDIR, and a few


class _Listing:
    """A directory being listed: the names answered so far; entry i has the position i + 3, after `.` and `..`.

    `evictions` is what the answers' counter said at its beginning.  `damaged` says that entries are left out, of which
    not even the names are sound: it ends with EIO, after all the others.
    """

    __slots__ = ("damaged", "evictions", "names", "node")

    def __init__(self, node: int) -> None:
        self.node = node
        self.names: list[bytes] = []
        self.evictions = 0
        self.damaged = False


def _is_name(name: bytes) -> bool:
    """Whether the kernel takes it for a name."""
    try:
        check_name(name)
    except UsageError:
        return False
    return True


class Looking(pyfuse3.Operations):
    """What a mount answers of its trees: the mounted one, and those of the snapshots that are browsed.

    `answers` has what C may answer by itself, kept current here for what has been looked at.
    """

    supports_dot_lookup = False
    enable_acl = False

    def __init__(
        self, root: Engine | View, snapshots: Engine | HeadReader | None, snapdir_visible: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._live: Engine | View = root
        self._engine = root if isinstance(root, Engine) else None
        self._snapshots = snapshots or self._engine  # what `.zfs` shows; a mounted snapshot has none
        self._snapdir_visible = snapdir_visible
        self._views = Views(self._snapshots)
        self._listings: dict[int, _Listing] = {}
        self._reported: set[tuple[int, bytes]] = set()  # entries of which there is only a name: once in the log each
        self._next_listing = 1
        self.answers = Answers(live_max=INO_MASK, writing=WRITING, valid_s=FOREVER_S, writable=self._engine is not None)
        self.requests = {kind: RequestStatistics() for kind in KINDS}
        self.held: trio.Event | None = None

    def figures(self) -> dict[str, RequestStatistics]:
        """Requests by kind, those that C answered included."""
        out = dict(self.requests)
        for kind, (count, total_ns, slowest_ns) in self.answers.statistics().items():
            s = self.requests[kind]
            out[kind] = RequestStatistics(
                s.count + count, s.errors, s.total_ns + total_ns, max(s.slowest_ns, slowest_ns)
            )
        return out

    def engine_failed(self) -> None:
        """From now on each request is to hear of it."""
        self.answers.stop()

    def stop_if_failed(self) -> None:
        """A request was refused: it may have failed the engine, or broken off half-way, which is the same."""
        if self._engine is not None:
            try:
                self._engine.check()
            except MountFailed:
                self.engine_failed()

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _tree(self, node: int) -> Engine | View:
        """The tree a node is in; `NotFound` for `.zfs` and what is directly in it."""
        if node <= INO_MASK:
            return self._live
        number = node >> limits.INO_BITS
        if number == CONTROL_TREE:
            raise FUSEError(errno.EROFS)
        return self._views.view(number)

    def _told(self, parent: int, name: bytes, inode: Inode, tree: int = 0) -> EntryAttributes:
        """The attributes of an inode that the kernel is hereby told of, under this name of the directory."""
        self.answers.entry(parent, name, inode, tree)
        return attributes_of(inode, tree)

    # -- looking -----------------------------------------------------------------------------------------------------

    @answered
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode <= INO_MASK:
            try:
                found = self._live.find(parent_inode, name)
            except CorruptionError:
                return self._found_damaged(parent_inode, name)
            if found is not None:
                return self._told(parent_inode, name, found)
            if name == ZFS_NAME and parent_inode == ROOT and self._snapshots is not None:
                self.answers.told(ZFS_NODE)
                return self._views.attributes(ZFS_NODE)
            return absent()
        if parent_inode >> limits.INO_BITS == CONTROL_TREE:
            return self._lookup_control(parent_inode, name)
        tree = parent_inode & ~INO_MASK
        try:
            found = self._tree(parent_inode).lookup(parent_inode & INO_MASK, name)
        except CorruptionError:
            return self._found_damaged(parent_inode, name)
        return self._told(parent_inode, name, found, tree)

    def _found_damaged(self, parent: int, name: bytes) -> EntryAttributes:
        """It has its name, by which it can be removed; what is wrong, who asks for its attributes hears."""
        bits = parent & ~INO_MASK
        found = self._tree(parent).find_damaged(parent & INO_MASK, name)
        if not isinstance(found, UnreadableInode):
            return self._told(parent, name, found, bits)
        self.answers.told(found.ino | bits)
        return attributes_of_unreadable(found, bits)

    def _lookup_control(self, parent: int, name: bytes) -> EntryAttributes:
        if parent == ZFS_NODE:
            if name != SNAPSHOTS_NAME:
                raise FUSEError(errno.ENOENT)
            self.answers.told(SNAPSHOTS_NODE)
            return self._views.attributes(SNAPSHOTS_NODE)
        tree = self._views.tree_of(name)
        return self._told(parent, name, self._tree(tree).inode(ROOT), tree)

    def snapshot_renamed(self, old: bytes, new: bytes) -> None:
        """Its folder in `.zfs/snapshot` is the same under the new name; the kernel is yet to be told."""
        self._views.renamed(old, new)
        self.answers.unname(SNAPSHOTS_NODE, old)
        self.answers.unname(SNAPSHOTS_NODE, new)

    def snapshots_destroyed(self, names: Sequence[bytes]) -> None:
        """They are gone from `.zfs/snapshot`; the kernel is yet to be told."""
        for name in names:
            self._views.destroyed(name)
            self.answers.unname(SNAPSHOTS_NODE, name)
        if names:
            self.answers.clear()  # of what is in them, too

    @answered
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if inode >> limits.INO_BITS == CONTROL_TREE:
            return self._views.attributes(inode)
        tree = inode & ~INO_MASK
        found = self._tree(inode).inode(inode & INO_MASK)
        self.answers.put(found, tree)
        return attributes_of(found, tree)

    @answered
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._tree(inode).readlink(inode & INO_MASK)

    @answered
    def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Asked only where the kernel does not check, in root's private mount: root may not what nobody may execute."""
        if not mode & os.X_OK or inode >> limits.INO_BITS == CONTROL_TREE:
            return True
        found = self._tree(inode).inode(inode & INO_MASK).mode
        return stat.S_ISDIR(found) or bool(found & 0o111)

    @answered
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = StatvfsData()
        answer.f_namemax = limits.NAME_BYTES_MAX
        answer.f_bsize = answer.f_frsize = limits.PAGE_BYTES
        engine = self._engine
        if engine is not None:
            s = engine.statfs()
            answer.f_blocks, answer.f_bfree, answer.f_bavail = s.blocks, s.blocks_free, s.blocks_available
            answer.f_files, answer.f_ffree, answer.f_favail = s.files, s.files_free, s.files_free
        elif isinstance(self._live, View):
            snapshot = self._live.snapshot
            answer.f_blocks = (snapshot.bytes + limits.PAGE_BYTES - 1) // limits.PAGE_BYTES
            answer.f_files = snapshot.inodes
        return answer

    # -- listing -----------------------------------------------------------------------------------------------------

    @answered
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = self._next_listing
        self._next_listing += 1
        self._listings[handle] = _Listing(inode)
        return handle

    @answered
    def releasedir(self, fh: int) -> None:
        self._listings.pop(fh, None)

    @answered
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        listing = self._listings[fh]
        node, names, reply = listing.node, listing.names, cast(Any, pyfuse3.readdir_reply)
        answers = self.answers
        if start_id == 0:
            names.clear()
            listing.evictions = answers.evictions
            listing.damaged = False
        if node >> limits.INO_BITS == CONTROL_TREE:
            self._list_control(node, start_id, token)
            return
        tree, ino = self._tree(node), node & INO_MASK
        bits = node & ~INO_MASK
        begun = start_id > 1
        if start_id == 0 and not reply(token, b".", attributes_of(tree.inode(ino), bits), 1):
            return
        if start_id <= 1:
            up = inode_or_less(tree.inode, tree.parent_of(ino), stat.S_IFDIR >> 12)
            if not reply(token, b"..", attributes_of(up, bits), 2):
                return
            start_id = 2
        shows_zfs = node == ROOT and self._snapshots is not None and self._snapdir_visible()
        del names[start_id - 2 :]  # a program may have gone back
        after = names[-1] if names else b""
        told = len(names)
        while True:
            try:
                batch = self._batch(listing, tree, after)
            except TzfsError:
                if len(names) > told:
                    return  # the kernel refers to those from now on; it asks for the rest, and hears it then
                raise
            for name, inode in batch:
                if isinstance(inode, UnreadableInode):
                    attributes = attributes_of_unreadable(inode, bits)
                    if not reply(token, name, attributes, len(names) + 3):
                        return
                    answers.told(int(attributes.st_ino))
                    names.append(name)
                    continue
                if not reply(token, name, attributes_of(inode, bits), len(names) + 3):
                    return
                answers.told(inode.ino | bits)
                answers.put(inode, bits)
                answers.name(node, name, inode.ino | bits)
                names.append(name)
            if not batch:
                break
            after = batch[-1][0]
        if listing.evictions == answers.evictions and node != ROOT:  # in which there is `.zfs` besides
            answers.complete(node)
        if shows_zfs and after != b"\xff":
            names.append(b"\xff")  # after every name there can be in a listing that shows it
            if reply(token, ZFS_NAME, self._views.attributes(ZFS_NODE), len(names) + 2):
                answers.told(ZFS_NODE)
        if listing.damaged and begun and len(names) == told:
            raise FUSEError(errno.EIO)

    def _batch(self, listing: _Listing, tree: Engine | View, after: bytes) -> list[tuple[bytes, Inode]]:
        """Entries behind `after`, as far as they can be told; it is in the log of which there is only a name."""
        node, ino = listing.node, listing.node & INO_MASK
        try:
            return tree.readdir_plus(ino, after, LISTING_BATCH)
        except CorruptionError:
            batch = tree.readdir_damaged(ino, after, LISTING_BATCH)
        found = [(name, inode) for name, inode in batch if name > after and _is_name(name)]
        for name, inode in batch:
            if not inode.ino and (node, name) not in self._reported:
                self._reported.add((node, name))
                log.error("listing of inode %d: the record of entry %r is damaged", ino, name)
        listing.damaged |= len(found) < len(batch)
        listing.evictions = -1  # C must not take what it has been told of for all
        return found

    def _list_control(self, node: int, start_id: int, token: ReaddirToken) -> None:
        reply = cast(Any, pyfuse3.readdir_reply)
        entries: list[tuple[bytes, int]] = [(b".", node), (b"..", ZFS_NODE if node == SNAPSHOTS_NODE else ROOT)]
        if node == ZFS_NODE:
            entries.append((SNAPSHOTS_NAME, SNAPSHOTS_NODE))
        elif self._snapshots is not None:
            entries += [(os.fsencode(name), 0) for name in self._snapshots.snapshots()]
        for position, (name, at) in enumerate(entries[start_id:], start_id):
            if not at:
                tree = self._views.tree_of(name)
                attributes = attributes_of(self._tree(tree).inode(ROOT), tree)
                at = tree | ROOT
            elif at == ROOT:
                attributes = attributes_of(self._live.inode(ROOT))
            else:
                attributes = self._views.attributes(at)
            if not reply(token, name, attributes, position + 1):
                return
            if position >= 2:
                self.answers.told(at)
