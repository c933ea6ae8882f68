"""A filesystem with empty handlers: `python -m benchmarks.emptyfs DIR`.

It keeps names and attributes in dicts, in memory, and file contents as one bytes object each; nothing is durable,
checked or accounted. It stands under the same request pump and has the same mount options as tzfs, so that what tzfs
takes beyond it is tzfs's own. Requests are counted by kind.

One line on stdout, `ready`, says that it is mounted.  At SIGUSR1, and when it ends, it prints its requests so far and
the pump's statistics as one line of JSON.  SIGTERM, SIGINT and umount end it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from tzfs.mount import pump

FOREVER_S: Final = 1e6
ROOT: Final = pyfuse3.ROOT_INODE


class Node:
    """A file, directory or symlink; `entries` is None but for directories."""

    __slots__ = ("changed_ns", "data", "entries", "gid", "ino", "links", "mode", "size", "uid")

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = 0
        self.links = 2 if stat.S_ISDIR(mode) else 1
        self.data: bytes | bytearray = b""
        self.entries: dict[bytes, int] | None = {} if stat.S_ISDIR(mode) else None
        self.changed_ns = time.time_ns()


class EmptyFs(pyfuse3.Operations):
    """Every request that the benchmarks make, answered from dicts."""

    supports_dot_lookup = False
    enable_acl = False

    def __init__(self, *, writeback: bool = False) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback
        self.requests: Counter[str] = Counter()
        self.nodes: dict[int, Node] = {ROOT: Node(ROOT, stat.S_IFDIR | 0o755, os.getuid(), os.getgid())}
        self.next_ino = ROOT + 1
        self.listings: dict[int, list[tuple[bytes, int]]] = {}

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = node.ino
        entry.st_mode = node.mode
        entry.st_nlink = node.links
        entry.st_uid = node.uid
        entry.st_gid = node.gid
        entry.st_size = node.size
        entry.st_blksize = 4096
        entry.st_blocks = -(-node.size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.changed_ns
        entry.entry_timeout = entry.attr_timeout = FOREVER_S
        entry.generation = 0
        return entry

    def _entries(self, ino: int) -> dict[bytes, int]:
        entries = self.nodes[ino].entries
        if entries is None:
            raise FUSEError(errno.ENOTDIR)
        return entries

    def _new(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        entries = self._entries(parent)
        if name in entries:
            raise FUSEError(errno.EEXIST)
        node = Node(self.next_ino, mode, ctx.uid, ctx.gid)
        self.next_ino += 1
        self.nodes[node.ino] = node
        entries[name] = node.ino
        if node.entries is not None:
            self.nodes[parent].links += 1
        return node

    def _drop(self, parent: int, name: bytes) -> None:
        ino = self._entries(parent).pop(name, None)
        if ino is None:
            raise FUSEError(errno.ENOENT)
        node = self.nodes[ino]
        node.links -= 2 if node.entries is not None else 1
        if node.entries is not None:
            self.nodes[parent].links -= 1

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        self.requests["lookup"] += 1
        ino = self._entries(parent_inode).get(name)
        if ino is None:
            absent = EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = FOREVER_S
            return absent
        return self._attributes(self.nodes[ino])

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        self.requests["getattr"] += 1
        return self._attributes(self.nodes[inode])

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self.requests["setattr"] += 1
        node = self.nodes[inode]
        if fields.update_size:
            node.data = node.data[: attr.st_size].ljust(attr.st_size, b"\0")
            node.size = attr.st_size
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_mtime:
            node.changed_ns = attr.st_mtime_ns
        return self._attributes(node)

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self.requests["create"] += 1
        node = self._new(parent_inode, name, mode, ctx)
        return FileInfo(fh=node.ino, keep_cache=True), self._attributes(node)

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self.requests["mknod"] += 1
        return self._attributes(self._new(parent_inode, name, mode, ctx))

    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        self.requests["mkdir"] += 1
        return self._attributes(self._new(parent_inode, name, stat.S_IFDIR | mode, ctx))

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self.requests["symlink"] += 1
        node = self._new(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.data = target
        node.size = len(target)
        return self._attributes(node)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self.requests["link"] += 1
        entries = self._entries(new_parent_inode)
        if new_name in entries:
            raise FUSEError(errno.EEXIST)
        node = self.nodes[inode]
        entries[new_name] = inode
        node.links += 1
        return self._attributes(node)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        self.requests["readlink"] += 1
        return bytes(self.nodes[inode].data)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self.requests["unlink"] += 1
        self._drop(parent_inode, name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self.requests["rmdir"] += 1
        ino = self._entries(parent_inode).get(name)
        if ino is not None and self._entries(ino):
            raise FUSEError(errno.ENOTEMPTY)
        self._drop(parent_inode, name)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        self.requests["rename"] += 1
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        source, target = self._entries(parent_inode_old), self._entries(parent_inode_new)
        ino = source[name_old]
        replaced = target.get(name_new)
        if replaced is not None and flags:
            raise FUSEError(errno.EEXIST)
        if replaced == ino:
            return
        if replaced is not None:
            if self.nodes[replaced].entries:
                raise FUSEError(errno.ENOTEMPTY)
            self._drop(parent_inode_new, name_new)
        del source[name_old]
        target[name_new] = ino
        if self.nodes[ino].entries is not None:
            self.nodes[parent_inode_old].links -= 1
            self.nodes[parent_inode_new].links += 1

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        self.requests["open"] += 1
        node = self.nodes[inode]
        if flags & os.O_TRUNC:
            node.data = b""
            node.size = 0
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self.requests["read"] += 1
        return bytes(self.nodes[fh].data[off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self.requests["write"] += 1
        node = self.nodes[fh]
        if off == 0 and len(buf) >= node.size:
            node.data = buf
        else:
            if isinstance(node.data, bytes):
                node.data = bytearray(node.data)  # grows in place: appending must not copy the whole file each time
            if off > node.size:
                node.data.extend(bytes(off - node.size))
            node.data[off : off + len(buf)] = buf
        node.size = len(node.data)
        node.changed_ns = time.time_ns()
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        self.requests["flush"] += 1
        raise FUSEError(errno.ENOSYS)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self.requests["fsync"] += 1

    async def release(self, fh: FileHandleT) -> None:
        self.requests["release"] += 1

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self.requests["opendir"] += 1
        handle = max(self.listings, default=0) + 1
        self.listings[handle] = list(self._entries(inode).items())
        return handle

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        self.requests["readdir"] += 1
        listing = self.listings[fh]
        for index in range(start_id, len(listing)):
            name, ino = listing[index]
            if not pyfuse3.readdir_reply(token, name, self._attributes(self.nodes[ino]), index + 1):
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        self.requests["releasedir"] += 1
        del self.listings[fh]

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        self.requests["fsyncdir"] += 1

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        self.requests["statfs"] += 1
        figures = StatvfsData()
        figures.f_bsize = figures.f_frsize = 4096
        figures.f_blocks = figures.f_bfree = figures.f_bavail = 1 << 24
        figures.f_files = figures.f_ffree = figures.f_favail = 1 << 24
        figures.f_namemax = 255
        return figures

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        self.requests["getxattr"] += 1
        raise FUSEError(errno.ENOSYS)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        self.requests["listxattr"] += 1
        raise FUSEError(errno.ENOSYS)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self.requests["forget"] += 1
        for inode, _count in inode_list:
            node = self.nodes.get(inode)
            if node is not None and node.links <= (1 if node.entries is not None else 0) and inode != ROOT:
                del self.nodes[inode]


async def serve(report: Callable[[], None]) -> None:
    """Run pyfuse3 until umount, SIGTERM or SIGINT; print `ready` when requests will be answered."""
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            print("ready", flush=True)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
            nursery.start_soon(run)
            async for number in signals:
                if number == signal.SIGUSR1:
                    report()
                else:
                    pyfuse3.terminate()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emptyfs", description=__doc__.partition("\n")[0])
    parser.add_argument("mountpoint")
    parser.add_argument("--writeback", action="store_true", help="let the kernel cache writes")
    parser.add_argument("--no-pump", action="store_true", help="stock trio")
    parser.add_argument("--spin-us", type=int, default=pump.SPIN_NS_DEFAULT // 1000)
    options = parser.parse_args(argv)
    operations = EmptyFs(writeback=options.writeback)
    fuse_options = (set(pyfuse3.default_options) - {"default_permissions"}) | {"fsname=emptyfs", "noatime"}
    with contextlib.ExitStack() as stack:
        installed = None if options.no_pump else pump.install(spin_ns=options.spin_us * 1000)
        if installed is not None:
            stack.enter_context(installed)

        def report() -> None:
            figures: dict[str, dict[str, int]] = {"requests": dict(operations.requests)}
            if installed is not None:
                figures["pump"] = dataclasses.asdict(installed.statistics)
            print(json.dumps(figures), flush=True)

        pyfuse3.init(operations, options.mountpoint, fuse_options)
        try:
            trio.run(serve, report)
        finally:
            pyfuse3.close(unmount=True)
        report()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
