"""Attributes of inodes: mode, owner, times, size; and extended attributes.

An extended attribute's value of up to `INLINE_VALUE_BYTES_MAX` bytes is its record; a longer one lies in an extent,
which is written at once and synced by the commit that publishes the record.
"""

from __future__ import annotations

from typing import Final

from tzfs import limits
from tzfs.engine import reads, slices
from tzfs.engine.contents import ContentsTable
from tzfs.engine.foreign import foreign, level_of, tagged
from tzfs.engine.head import S_IFDIR, S_IFMT, S_IFREG, Head
from tzfs.engine.reads import ReadPlan
from tzfs.engine.settling import extent_charge
from tzfs.errors import (
    AttributeTooBig,
    CorruptionError,
    Exists,
    FileTooBig,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    OutOfRange,
)
from tzfs.format import keys, records
from tzfs.format.keys import Epoch, ExtentId, Table
from tzfs.format.operations import Op
from tzfs.format.records import FLAG_XATTR, Inode
from tzfs.format.slices import CODEC_RAW, Sizes, Slice, pack_xattr, unpack_xattr
from tzfs.native import page_sums
from tzfs.store.interface import PayloadReader, ReadTransaction

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2
INLINE_VALUE_BYTES_MAX: Final = limits.INLINE_BYTES_MAX - 1  # a byte says which kind of value it is
S_ISUID, S_ISGID, S_IXGRP = 0o4000, 0o2000, 0o0010
ID_MAX: Final = (1 << 32) - 1
NS_MIN, NS_MAX = -(1 << 63), (1 << 63) - 1

Value = bytes | tuple[Slice, ...]


def xattr_at(txn: ReadTransaction, payload: PayloadReader, ino: int, name: bytes, epoch: int) -> bytes | None:
    """The stored value of an attribute as visible at `epoch`."""
    stored = _stored_value(txn, ino, name, epoch)
    return None if stored is None else _load(payload, stored)


def xattr_names_at(txn: ReadTransaction, ino: int, epoch: int, *, damaged_too: bool = False) -> list[bytes]:
    """The names of an inode's stored attributes as visible at `epoch`, ascending; of those with damaged records too, or
    the first of these is raised."""
    damaged: list[bytes] | None = [] if damaged_too else None
    rows = reads.named_rows(txn, Table.XATTR, keys.u64(ino), b"", epoch, limits.XATTR_LIST_BYTES_MAX, damaged)
    return sorted([keys.xattr_name(key) for key, _ in rows] + (damaged or []))


def _stored_value(txn: ReadTransaction, ino: int, name: bytes, epoch: int) -> Value | None:
    prefix = keys.xattr(ino, name)
    found = txn.seek(Table.XATTR, prefix, epoch)
    if found is None:
        return None
    body = records.unseal(Table.XATTR, prefix + keys.suffix(found[0]), found[1])
    if body is None:
        return None
    value = unpack_xattr(prefix, body)
    return value if isinstance(value, bytes) or type(found[1]) is bytes else tagged(value, level_of(found[1]))


def _load(payload: PayloadReader, value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    plan = ReadPlan(payload, sum(s.length for s in value))
    plan.add_slices(0, value, 0, plan.size)
    return plan.execute()


class Attributes:
    """The attributes of a head."""

    def __init__(self, head: Head, contents: ContentsTable) -> None:
        self._head = head
        self._contents = contents

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Inode:
        """Changes what is given, all at once; the inode.

        A new owner or group clears S_ISUID, and S_ISGID where the group may execute, of anything but a directory,
        unless `mode` is given too, of which the permission bits count.  A new size sets mtime.  Raises `Stale`,
        `IsADirectory` and `InvalidArgument` (size of what is not a regular file), `FileTooBig`, `NoSpace`;
        `InvalidArgument` for an owner that there cannot be.
        """
        head = self._head
        head.check()
        head.pace()
        inode = head.inode(ino)
        kind = inode.mode & S_IFMT
        for owner in (uid, gid):
            if owner is not None and not 0 <= owner <= ID_MAX:
                raise InvalidArgument(f"a user or group has a number from 0 to {ID_MAX}, not {owner}")
        if mode is not None:
            mode &= 0o7777
        if size is not None:
            if kind == S_IFDIR:
                raise IsADirectory(f"inode {ino} is a directory")
            if kind != S_IFREG or size < 0:
                raise InvalidArgument(f"inode {ino} cannot have a size of {size}")
            if size > limits.FILE_BYTES_MAX:
                raise FileTooBig(f"a file may have {limits.FILE_BYTES_MAX} bytes, not {size}")
            if size > inode.size:
                head.admit(limits.PAGE_BYTES)
            elif head.ancestry is not None:
                head.admit(1 << inode.chunk_shift)  # what is left of an inherited chunk is copied up
            self._contents.prepare_truncate(inode, size)
        head.begin_change()
        now = head.clock()
        if size is not None:
            self._contents.truncate(inode, size)
            inode.mtime_ns = now
        if (uid is not None or gid is not None) and mode is None and kind != S_IFDIR:
            inode.mode &= ~S_ISUID
            if inode.mode & S_IXGRP:
                inode.mode &= ~S_ISGID
        if mode is not None:
            inode.mode = inode.mode & S_IFMT | mode
        if uid is not None:
            inode.uid = uid
        if gid is not None:
            inode.gid = gid
        if atime_ns is not None:
            inode.atime_ns = min(max(atime_ns, NS_MIN), NS_MAX)
        if mtime_ns is not None:
            inode.mtime_ns = min(max(mtime_ns, NS_MIN), NS_MAX)
        inode.ctime_ns = now if ctime_ns is None else min(max(ctime_ns, NS_MIN), NS_MAX)
        head.touch(inode)
        if atime_ns is not None:
            atime_ns = inode.atime_ns
        if mtime_ns is not None:
            mtime_ns = inode.mtime_ns
        if ctime_ns is not None:
            ctime_ns = inode.ctime_ns
        head.end_change((Op.SETATTR, now, ino, mode, uid, gid, size, atime_ns, mtime_ns, ctime_ns))
        return inode

    # -- extended attributes -----------------------------------------------------------------------------------------

    def _value(self, inode: Inode, name: bytes) -> Value | None:
        head = self._head
        changed = head.xattrs.get(inode.ino)
        if changed is not None and name in changed:
            return changed[name]
        if not inode.flags & FLAG_XATTR or inode.ino >= head.first_ino:
            return None
        return _stored_value(head.look, inode.ino, name, head.epoch_of(inode.ino))

    @staticmethod
    def _check_name(name: bytes) -> None:
        if not name or b"\0" in name:
            raise InvalidArgument("an extended attribute needs a name without NUL")
        if len(name) > limits.XATTR_NAME_BYTES_MAX:
            raise OutOfRange(f"attribute name of {len(name)} bytes; the limit is {limits.XATTR_NAME_BYTES_MAX}")

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """An attribute's value; `NoAttribute`."""
        head = self._head
        head.check()
        value = self._value(head.inode(ino), name)
        if value is None:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        return _load(head.payload, value)

    def listxattr(self, ino: int) -> list[bytes]:
        """The names of all attributes, ascending."""
        head = self._head
        head.check()
        inode = head.inode(ino)
        if not inode.flags & FLAG_XATTR:
            return []
        names: set[bytes] = set()
        if ino < head.first_ino:
            names.update(xattr_names_at(head.look, ino, head.epoch_of(ino)))
        for name, value in head.xattrs.get(ino, {}).items():
            if value is None:
                names.discard(name)
            else:
                names.add(name)
        return sorted(names)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Sets an attribute; `Exists` and `NoAttribute` as `flags` demand, `AttributeTooBig`, `OutOfRange`,
        `NoSpace`."""
        head = self._head
        head.check()
        self._check_name(name)
        if len(value) > limits.XATTR_VALUE_BYTES_MAX:
            raise AttributeTooBig(f"value of {len(value)} bytes; the limit is {limits.XATTR_VALUE_BYTES_MAX}")
        if flags & ~(XATTR_CREATE | XATTR_REPLACE) or flags == XATTR_CREATE | XATTR_REPLACE:
            raise InvalidArgument(f"flags {flags:#x} are not supported")
        inode = head.inode(ino)
        old = self._value(inode, name)
        if old is None and flags & XATTR_REPLACE:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        if old is not None and flags & XATTR_CREATE:
            raise Exists(f"inode {ino} has an attribute {name!r}")
        if old is None and sum(len(n) + 1 for n in self.listxattr(ino)) + len(name) + 1 > limits.XATTR_LIST_BYTES_MAX:
            raise AttributeTooBig(f"inode {ino} has as many attribute names as fit {limits.XATTR_LIST_BYTES_MAX} bytes")
        head.admit(len(value) + limits.PAGE_BYTES)
        stored: Value = bytes(value)
        if len(value) > INLINE_VALUE_BYTES_MAX:
            extent = head.payload.allocate(len(value))
            head.flushed_bytes += extent_charge(len(value))
            try:
                head.payload.write([(extent, value)])
            except BaseException:
                head.unused_extents.append((extent, len(value)))
                raise
            at = head.epoch_of(ino)
            stored = (Slice(0, len(value), extent, at, 0, len(value), len(value), CODEC_RAW, page_sums(value)),)
        head.begin_change()
        now = self._set(inode, name, stored)
        head.end_change((Op.SETXATTR, now, ino, flags, name, bytes(value)), len(value))

    def removexattr(self, ino: int, name: bytes) -> None:
        """Removes an attribute; `NoAttribute`."""
        head = self._head
        head.check()
        head.pace()
        inode = head.inode(ino)
        if self._value(inode, name) is None:
            raise NoAttribute(f"inode {ino} has no attribute {name!r}")
        head.begin_change()
        now = self._set(inode, name, None)
        head.end_change((Op.REMOVEXATTR, now, ino, name))

    def _set(self, inode: Inode, name: bytes, value: Value | None) -> int:
        head = self._head
        now = head.clock()
        changed = head.xattrs.setdefault(inode.ino, {})
        self._unused(changed.get(name))
        changed[name] = value
        inode.flags |= FLAG_XATTR
        inode.ctime_ns = now
        head.touch(inode)
        head.dirty_rows += 4
        return now

    def _unused(self, value: Value | None) -> None:
        """A value that was never published: its extent is not needed."""
        if value is not None and not isinstance(value, bytes):
            self._head.unused_extents.extend((s.extent, s.stored_bytes) for s in value)

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Turns changed attributes, and those of buried inodes, into rows of the transaction."""
        head = self._head
        for ino, (at, inode) in sorted(head.buried.items()):
            if inode.flags & FLAG_XATTR:
                for value in head.xattrs.pop(ino, {}).values():
                    self._unused(value)
                if ino < head.first_ino:
                    for name in xattr_names_at(head.look, ino, at, damaged_too=True):
                        self._publish(ino, name, None, at)
        for ino in sorted(head.xattrs):
            at = head.epoch_of(ino)
            for name, value in sorted(head.xattrs[ino].items()):
                self._publish(ino, name, value, at)
        head.xattrs.clear()

    def _publish(self, ino: int, name: bytes, value: Value | None, at: Epoch) -> None:
        head = self._head
        versions, prefix, fresh = head.versions, keys.xattr(ino, name), ino >= head.first_ino
        old = None if fresh else self._replaced(ino, name, at)
        if value is not None:
            versions.put(Table.XATTR, prefix, pack_xattr(value), at, fresh=fresh)
        elif not fresh:
            versions.remove(Table.XATTR, prefix, at)
        versions.extents_born(_extents(value).items())
        versions.extents_died(_extents(old).items(), at, head.counters.txg)

    def _replaced(self, ino: int, name: bytes, at: Epoch) -> Value | None:
        """The stored value that ends now; a damaged one ends all the same, or its inode could not be removed."""
        try:
            return _stored_value(self._head.look, ino, name, at)
        except CorruptionError as error:
            self._head.report(f"{error}; what it names is not given back")
            return None


def _extents(value: Value | None) -> dict[tuple[ExtentId, Epoch], Sizes]:
    """The lifetimes that a value names; an inherited one names none of ours."""
    if value is None or isinstance(value, bytes) or (value and foreign(value[0].extent)):
        return {}
    return slices.extents(value)
