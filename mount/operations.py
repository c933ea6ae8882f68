"""Kernel requests to engine calls, and their answers back; nothing else.  Those that only look are in `looking`.

Handles of files are node ids (`nodes`) too.

Caching: this process is the only writer, so entries, attributes and negative look-ups hold for ever, FLUSH is answered
ENOSYS once, and so are extended attributes unless they were asked for (each write would ask for `security.capability`).

Every handler answers an errno for every error; one that let anything else out would end the mount.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Any, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from tzfs import limits
from tzfs.engine.engine import Engine
from tzfs.engine.reads import ReadPlan
from tzfs.engine.view import View
from tzfs.errors import Exists, TzfsError
from tzfs.format.records import Inode
from tzfs.mount.answers import POSTED_MAX
from tzfs.mount.committing import Committer
from tzfs.mount.looking import WRITING, Looking
from tzfs.mount.nodes import CONTROL_TREE, INO_MASK, attributes_of
from tzfs.mount.requests import answered, answered_at_once, answered_later, refusal
from tzfs.opening import HeadReader

log = logging.getLogger(__name__)

XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")


class Operations(Looking):
    """The handlers of one mount: of a filesystem (`engine`, with its `committer`), or of one snapshot (`view`)."""

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
        super().__init__(root, snapshots, snapdir_visible)
        self.enable_writeback_cache = writeback
        self._committer = committer
        self._xattr = xattr
        self.dropping: frozenset[int] = frozenset()  # inodes that the kernel may still write to as they were
        if self._engine is not None:
            self._engine.referenced = self.answers.knows
            self.answers.forgotten = self._forgotten

    def _writable(self, node: int) -> Engine:
        engine = self._engine
        if engine is None or node > INO_MASK:
            raise FUSEError(errno.EROFS)
        return engine

    def _made(self, parent: int, name: bytes, inode: Inode) -> Inode:
        """There is a new entry, of which the kernel is told."""
        self._changed(parent)
        self.answers.entry(parent, name, inode)
        return inode

    async def forget(self, inode_list: Any) -> None:
        self.requests["forget"].count += 1
        self._forgotten([node for node, count in inode_list if self.answers.forget(node, count)])

    def _forgotten(self, nodes: list[int]) -> None:
        """The kernel does not know these nodes any more."""
        engine = self._engine
        if engine is None:
            return
        gone = False
        for node in nodes:
            if node <= INO_MASK:
                try:
                    if engine.forget(node):
                        self.answers.drop(node)
                        gone = True
                except Exception as error:  # nobody waits for an answer
                    refusal(self, "forget", (node,), error)
        if gone:
            self._changed()

    # -- changing names ----------------------------------------------------------------------------------------------

    def _changed(self, *nodes: int) -> None:
        """Something is dirty, and the attributes of these nodes are not what they were."""
        for node in nodes:
            self.answers.drop(node)
        if self._committer is not None:
            self._committer.changed()

    @answered
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        made = self._writable(parent_inode).mknod(parent_inode, name, mode, uid=ctx.uid, gid=ctx.gid, rdev=rdev)
        return attributes_of(self._made(parent_inode, name, made))

    @answered
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        made = self._writable(parent_inode).mkdir(parent_inode, name, mode, uid=ctx.uid, gid=ctx.gid)
        self.answers.complete(made.ino)
        return attributes_of(self._made(parent_inode, name, made))

    @answered
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        made = self._writable(parent_inode).symlink(parent_inode, name, target, uid=ctx.uid, gid=ctx.gid)
        return attributes_of(self._made(parent_inode, name, made))

    @answered
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        linked = self._writable(inode | new_parent_inode).link(inode, new_parent_inode, new_name)
        return attributes_of(self._made(new_parent_inode, new_name, linked))

    def _unlink(self, parent: int, name: bytes) -> int:
        self._removed(parent, name, self._writable(parent).unlink(parent, name))
        return 0

    unlink_at_once = answered_at_once("unlink")(_unlink)

    @answered
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._unlink(parent_inode, name)

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

    def _open(self, node: int, flags: int, *, uid: int) -> int:
        """A handle; O_TRUNC comes with OPEN, and what is read-only is not opened for writing.

        The kernel takes set-user-ID and set-group-ID away at a write, but leaves it to us at O_TRUNC.
        """
        if self._engine is not None:
            self._engine.check()
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            return node
        engine = self._writable(node)
        if flags & os.O_TRUNC:
            mode = engine.inode(node).mode & 0o7777
            kept = mode if uid == 0 else mode & ~0o4000 & ~(0o2000 if mode & 0o010 else 0)
            engine.setattr(node, size=0, mode=kept if kept != mode else None)
            self._changed(node)
        self.answers.opened(node)
        return node | WRITING

    def nodes_open_for_writing(self) -> list[int]:
        """The inodes of which the kernel may hold pages that it has not written yet."""
        return self.answers.writers()

    @answered
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=cast(Any, self._open(inode, flags, uid=ctx.uid)), keep_cache=True)

    def _create(self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> tuple[int, Inode]:
        engine = self._writable(parent)
        try:
            inode = engine.mknod(parent, name, mode, uid=uid, gid=gid)
        except Exists:
            if flags & os.O_EXCL:
                raise
            inode = engine.lookup(parent, name)
        else:
            flags &= ~os.O_TRUNC
        handle = self._open(inode.ino, flags, uid=uid)
        return handle, self._made(parent, name, engine.inode(inode.ino))

    @answered_at_once("create")
    def create_at_once(self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> int:
        return self._create(parent, name, mode, flags, uid, gid)[0]

    @answered
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, inode = self._create(parent_inode, name, mode, flags, ctx.uid, ctx.gid)
        return FileInfo(fh=cast(Any, handle), keep_cache=True), attributes_of(inode)

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

    def _write(self, fh: int, off: int, buf: bytes | memoryview) -> int:
        node = fh & ~WRITING
        if node in self.dropping:
            return len(buf)
        engine = self._writable(node)
        written = engine.write(node, off, buf)
        if written:
            inode = engine.inode(node)
            self.answers.wrote(node, inode.size, inode.mtime_ns)
            self._changed()
        return written

    def begin_posting(self) -> bool:
        engine, committer, state = self._engine, self._committer, self.answers.state
        if engine is None or committer is None or self.held is not None or not engine.unhindered(POSTED_MAX):
            return False
        state.removes = 1
        state.room = 0 if self.dropping else max(0, min(engine.headroom(POSTED_MAX), committer.room))
        return True

    def end_posting(self) -> None:
        state = self.answers.state
        state.removes = state.room = 0
        if not state.posted:
            return
        engine, writes, unlinks = self._writable(0), self.requests["write"], self.requests["unlink"]
        began = time.perf_counter_ns()
        try:
            for node, payload, now_ns, removes in self.answers.posted():
                if removes:
                    engine.unlink(node, payload, now_ns)
                    began = unlinks.ended(began, 0)
                else:
                    engine.write(node, 0, payload, now_ns)
                    began = writes.ended(began, 0)
        except Exception as error:  # it cannot be refused any more
            log.exception("a posted request failed")
            engine.fail(f"what had been answered could not be done: {error}")
            self.stop_if_failed()
            if self._committer is not None:
                self._committer.report_failure()
        self._changed()

    @property
    def ahead(self) -> bool:
        """Whether who writes has to wait for the disk."""
        return self._committer is not None and self._committer.ahead

    write_at_once = answered_at_once("write")(_write)

    @answered_later
    async def write(self, fh: int, off: int, buf: bytes | memoryview) -> int:
        written = self._write(fh, off, buf)
        if self._committer is not None and self._committer.ahead:
            await self._committer.make_room()
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
