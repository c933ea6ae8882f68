"""Doing operations of the redo log again on a head that stands at the commit they followed.

What an operation does depends on the tables and on what came before it, so all come in order and none may fail: one
that does shows that log and tables do not belong together, and nothing is committed.  Inodes whose last name goes stay
until the end, as if the kernel still knew them: a write that followed then finds its inode, as it did the first time.

Nothing is committed meanwhile: a commit voids the log, and a crash would then lose the operations not yet done.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tzfs import failpoints
from tzfs.engine.attributes import Attributes
from tzfs.engine.contents import ContentsTable
from tzfs.engine.head import Head
from tzfs.engine.namespace import Namespace
from tzfs.errors import CorruptionError, NoSpace, TzfsError
from tzfs.format.operations import Op, Operation

failpoints.declare("redo.replay", "a writer is about to do operations of the redo log again")


def redo_operations(
    operations: Iterable[Operation], head: Head, namespace: Namespace, attributes: Attributes, contents: ContentsTable
) -> None:
    """Does them again; `CorruptionError` where one does not fit, `NoSpace`."""
    clock, referenced, admit, pace = head.clock, head.referenced, head.admit, head.pace
    head.referenced = lambda ino: True
    head.admit, head.pace = (lambda nbytes: None), (lambda: None)  # there was room for them, and they are few
    failpoints.hit("redo.replay")
    try:
        for operation in operations:
            head.clock = partial(int, operation[1])
            try:
                _redo(operation, namespace, attributes, contents)
            except NoSpace:
                raise
            except TzfsError as error:
                raise CorruptionError(
                    f"the redo log does not fit the tables: {Op(operation[0]).name.lower()}: {error}",
                    hint="with the file `redo` moved away the filesystem opens as it was last committed",
                ) from error
    finally:
        head.clock, head.referenced, head.admit, head.pace = clock, referenced, admit, pace


def _redo(operation: Operation, namespace: Namespace, attributes: Attributes, contents: ContentsTable) -> None:
    op, _, *arguments = operation
    match op:
        case Op.CREATE:
            parent, mode, uid, gid, rdev, ino, name, target = arguments
            made = namespace.create(parent, name, mode, uid=uid, gid=gid, rdev=rdev, target=target).ino
            if made != ino:
                raise CorruptionError(f"inode {made} was made where {ino} was expected")
        case Op.LINK:
            namespace.link(*arguments)
        case Op.UNLINK:
            namespace.unlink(*arguments)
        case Op.RMDIR:
            namespace.rmdir(*arguments)
        case Op.RENAME:
            parent, new_parent, flags, name, new_name = arguments
            namespace.rename(parent, name, new_parent, new_name, flags)
        case Op.SETATTR:
            ino, mode, uid, gid, size, atime_ns, mtime_ns, ctime_ns = arguments
            attributes.setattr(
                ino, mode=mode, uid=uid, gid=gid, size=size, atime_ns=atime_ns, mtime_ns=mtime_ns, ctime_ns=ctime_ns
            )
        case Op.WRITE:
            contents.write(*arguments)
        case Op.SETXATTR:
            ino, flags, name, value = arguments
            attributes.setxattr(ino, name, value, flags)
        case Op.REMOVEXATTR:
            attributes.removexattr(*arguments)
