"""Kernel requests to engine calls, and their answers back; nothing else.

Handles are node ids (`nodes`) too, but for directories, whose handles keep a listing's place.

Caching: this process is the only writer, so entries, attributes and negative look-ups hold for ever, FLUSH is answered
ENOSYS once, and so are extended attributes unless they were asked for (each write would ask for `security.capability`).

Every handler answers an errno for every error; one that let anything else out would end the mount.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from tzfs import limits
from tzfs.engine.engine import Engine
from tzfs.engine.reads import ReadPlan
from tzfs.engine.view import View
from tzfs.errors import Exists, MountFailed, TzfsError
from tzfs.format.keys import ROOT
from tzfs.format.records import Inode
from tzfs.mount.answers import Answers
from tzfs.mount.committing import Committer
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
)
from tzfs.mount.requests import KINDS, RequestStatistics, answered, answered_later, refusal
from tzfs.opening import HeadReader

WRITING = 1 << 63  # in a file handle: it may write
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")
LISTING_BATCH = 48  # entries with attributes that fit the kernel's 4-8 KiB of a READDIR, and a few


class _Listing:
    """A directory being listed: the names answered so far; entry i has the position i + 3, after `.` and `..`.

    `evictions` is what the answers' counter said at its beginning.
    """

    __slots__ = ("evictions", "names", "node")

    def __init__(self, node: int) -> None:
        self.node = node
        self.names: list[bytes] = []
        self.evictions = 0


class Operations(pyfuse3.Operations):
    """The handlers of one mount: of a filesystem (`engine`, with its `committer`), or of one snapshot (`view`)."""

    supports_dot_lookup = False
    enable_acl = False

    def __init__(
        self,
        root: Engine | View,
        committer: Committer | None = None,
        *,
        snapshots: Engine | HeadReader | None = None,
        xattr: bool = False,
        writeback: bool = False,
        snapdir_visible: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback
        self._live: Engine | View = root
        self._engine = root if isinstance(root, Engine) else None
        self._snapshots = snapshots or self._engine  # what `.zfs` shows; a mounted snapshot has none
        self._committer = committer
        self._xattr = xattr
        self._snapdir_visible = snapdir_visible
        self._views = Views(self._snapshots)
        self._listings: dict[int, _Listing] = {}
        self._next_listing = 1
        self.answers = Answers(live_max=INO_MASK, writing=WRITING, valid_s=FOREVER_S, writable=self._engine is not None)
        self.requests = {kind: RequestStatistics() for kind in KINDS}
        self.held: trio.Event | None = None
        self.dropping: frozenset[int] = frozenset()  # inodes that the kernel may still write to as they were
        if self._engine is not None:
            self._engine.referenced = self.answers.knows
            self.answers.forgotten = self._forgotten

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

    def _writable(self, node: int) -> Engine:
        engine = self._engine
        if engine is None or node > INO_MASK:
            raise FUSEError(errno.EROFS)
        return engine

    def _told(self, parent: int, name: bytes, inode: Inode, tree: int = 0) -> EntryAttributes:
        """The attributes of an inode that the kernel is hereby told of, under this name of the directory."""
        node, answers = inode.ino | tree, self.answers
        answers.told(node)
        answers.put(inode, tree)
        answers.name(parent, name, node)
        return attributes_of(inode, tree)

    def _made(self, parent: int, name: bytes, inode: Inode) -> EntryAttributes:
        """`_told` of a new entry."""
        self._changed(parent)
        return self._told(parent, name, inode)

    # -- looking -----------------------------------------------------------------------------------------------------

    @answered
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode <= INO_MASK:
            found = self._live.find(parent_inode, name)
            if found is not None:
                return self._told(parent_inode, name, found)
            if name == ZFS_NAME and parent_inode == ROOT and self._snapshots is not None:
                self.answers.told(ZFS_NODE)
                return self._views.attributes(ZFS_NODE)
            return absent()
        if parent_inode >> limits.INO_BITS == CONTROL_TREE:
            return self._lookup_control(parent_inode, name)
        tree = parent_inode & ~INO_MASK
        found = self._tree(parent_inode).lookup(parent_inode & INO_MASK, name)
        return self._told(parent_inode, name, found, tree)

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

    async def forget(self, inode_list: Any) -> None:
        self.requests["forget"].count += 1
        self._forgotten([node for node, count in inode_list if self.answers.forget(node, count)])

    def _forgotten(self, nodes: list[int]) -> None:
        """The kernel does not know these nodes any more."""
        engine = self._engine
        if engine is None:
            return
        for node in nodes:
            if node <= INO_MASK:
                try:
                    if engine.forget(node):
                        self._changed(node)
                except Exception as error:  # nobody waits for an answer
                    refusal(self, "forget", (node,), error)

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
        if node >> limits.INO_BITS == CONTROL_TREE:
            self._list_control(node, start_id, token)
            return
        tree, ino = self._tree(node), node & INO_MASK
        bits = node & ~INO_MASK
        if start_id == 0 and not reply(token, b".", attributes_of(tree.inode(ino), bits), 1):
            return
        if start_id <= 1:
            up = tree.parent_of(ino)
            if not reply(token, b"..", attributes_of(tree.inode(up), bits), 2):
                return
            start_id = 2
        shows_zfs = node == ROOT and self._snapshots is not None and self._snapdir_visible()
        del names[start_id - 2 :]  # a program may have gone back
        after = names[-1] if names else b""
        while True:
            batch = tree.readdir_plus(ino, after, LISTING_BATCH)
            for name, inode in batch:
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

    # -- changing names ----------------------------------------------------------------------------------------------

    def _changed(self, *nodes: int) -> None:
        """Something is dirty, and the attributes of these nodes are not what they were."""
        for node in nodes:
            self.answers.drop(node)
        if self._committer is not None:
            self._committer.changed()

    @answered
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        engine = self._writable(parent_inode)
        return self._made(
            parent_inode, name, engine.mknod(parent_inode, name, mode, uid=ctx.uid, gid=ctx.gid, rdev=rdev)
        )

    @answered
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        engine = self._writable(parent_inode)
        inode = engine.mkdir(parent_inode, name, mode, uid=ctx.uid, gid=ctx.gid)
        self.answers.complete(inode.ino)
        return self._made(parent_inode, name, inode)

    @answered
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        engine = self._writable(parent_inode)
        return self._made(parent_inode, name, engine.symlink(parent_inode, name, target, uid=ctx.uid, gid=ctx.gid))

    @answered
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        linked = self._writable(inode | new_parent_inode).link(inode, new_parent_inode, new_name)
        return self._made(new_parent_inode, new_name, linked)

    @answered
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._removed(parent_inode, name, self._writable(parent_inode).unlink(parent_inode, name))

    @answered
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._removed(parent_inode, name, self._writable(parent_inode).rmdir(parent_inode, name))

    def _removed(self, parent: int, name: bytes, ino: int) -> None:
        self.answers.removed(parent, name, ino)
        self._changed()

    @answered
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        engine, answers = self._writable(parent_inode_old | parent_inode_new), self.answers
        moved, over = engine.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)
        if moved != over:
            answers.unname(parent_inode_old, name_old)
            if flags & pyfuse3.RENAME_EXCHANGE:
                answers.name(parent_inode_old, name_old, over)
                answers.drop(over)
            elif over:
                answers.unlinked(over)
            answers.name(parent_inode_new, name_new, moved)
            self._changed(moved, parent_inode_new)

    # -- attributes --------------------------------------------------------------------------------------------------

    @answered
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        engine = self._writable(inode)
        if inode in self.dropping and not (fields.update_mode or fields.update_uid or fields.update_gid):
            return attributes_of(engine.inode(inode))
        changed = engine.setattr(
            inode,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        self.answers.put(changed)
        self._changed()
        return attributes_of(changed)

    def _check_xattr(self) -> None:
        if not self._xattr:
            raise FUSEError(errno.ENOSYS)  # the kernel does not ask again

    @answered
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        self._check_xattr()
        if inode >> limits.INO_BITS == CONTROL_TREE:
            raise FUSEError(errno.ENODATA)
        return self._tree(inode).getxattr(inode & INO_MASK, name)

    @answered
    def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        self._check_xattr()
        if inode >> limits.INO_BITS == CONTROL_TREE:
            return []
        return self._tree(inode).listxattr(inode & INO_MASK)

    @answered
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._check_xattr()
        if name in XATTR_NAMESPACES:
            raise FUSEError(errno.EINVAL)
        if not name.startswith(XATTR_NAMESPACES):
            raise FUSEError(errno.ENOTSUP)  # of `system.`, ACLs would have to be obeyed
        self._writable(inode).setxattr(inode, name, value)
        self._changed(inode)

    @answered
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._check_xattr()
        self._writable(inode).removexattr(inode, name)
        self._changed(inode)

    # -- contents ----------------------------------------------------------------------------------------------------

    def _open(self, node: int, flags: int, *, uid: int) -> FileInfo:
        """A handle; O_TRUNC comes with OPEN, and what is read-only is not opened for writing.

        The kernel takes set-user-ID and set-group-ID away at a write, but leaves it to us at O_TRUNC.
        """
        if self._engine is not None:
            self._engine.check()
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            return FileInfo(fh=cast(Any, node), keep_cache=True)
        engine = self._writable(node)
        if flags & os.O_TRUNC:
            mode = engine.inode(node).mode & 0o7777
            kept = mode if uid == 0 else mode & ~0o4000 & ~(0o2000 if mode & 0o010 else 0)
            engine.setattr(node, size=0, mode=kept if kept != mode else None)
            self._changed(node)
        self.answers.opened(node)
        return FileInfo(fh=cast(Any, node | WRITING), keep_cache=True)

    def nodes_open_for_writing(self) -> list[int]:
        """The inodes of which the kernel may hold pages that it has not written yet."""
        return self.answers.writers()

    @answered
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return self._open(inode, flags, uid=ctx.uid)

    @answered
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        engine = self._writable(parent_inode)
        try:
            inode = engine.mknod(parent_inode, name, mode, uid=ctx.uid, gid=ctx.gid)
        except Exists:
            if flags & os.O_EXCL:
                raise
            inode = engine.lookup(parent_inode, name)
        else:
            flags &= ~os.O_TRUNC
        opened = self._open(inode.ino, flags, uid=ctx.uid)
        return opened, self._made(parent_inode, name, inode)

    @answered_later
    async def read(self, fh: int, off: int, size: int) -> bytes:
        node = fh & ~WRITING
        tree, ino = self._tree(node), node & INO_MASK
        plan = tree.plan_read(ino, off, size)
        try:
            if (answer := plan.try_now()) is not None:
                return answer
            return await self._read_elsewhere(tree, plan)
        except (TzfsError, OSError):  # moved or freed meanwhile, perhaps: the versions themselves say
            if isinstance(tree, Engine) and not tree.cloned:
                raise
            return await self._read_elsewhere(tree, tree.plan_read(ino, off, size))

    @staticmethod
    async def _read_elsewhere(tree: Engine | View, plan: ReadPlan) -> bytes:
        if not isinstance(tree, Engine):
            return await trio.to_thread.run_sync(plan.execute)
        pin = tree.pin()
        try:
            return await trio.to_thread.run_sync(plan.execute)
        finally:
            tree.unpin(pin)

    @answered_later
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = fh & ~WRITING
        if node in self.dropping:
            return len(buf)
        engine, committer = self._writable(node), self._committer
        written = engine.write(node, off, buf)
        inode = engine.inode(node)
        self.answers.wrote(node, inode.size, inode.mtime_ns)
        if committer is not None:
            committer.changed()
            if engine.dirty_bytes >= committer.brake:
                await committer.make_room()
        return written

    @answered
    def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)  # nothing to do on close, and the kernel does not ask again

    @answered
    def release(self, fh: int) -> None:
        if fh & WRITING:
            self.answers.closed(fh & ~WRITING)

    def forget_all(self) -> None:
        """The kernel has gone: what it still referred to and has no name ends."""
        if self._engine is not None:
            for ino in self._engine.orphan_inodes():
                self._engine.forget(ino)

    @answered_later
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._commit()

    @answered_later
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._commit()

    async def _commit(self) -> None:
        if self._committer is not None:
            await self._committer.harden()
