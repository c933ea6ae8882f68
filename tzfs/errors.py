"""Every error tzfs raises, sorted by whose fault it is, and the three tables that translate them.

Below `TzfsError` stand four families: the caller's (a name that is not there, a directory that is not empty), the
world's (`StoreError`: the disk or the store refused), the data's (`CorruptionError`: what is on disk is not what was
written) and ours (`InternalError`).  Each message names the thing it is about; `hint` says what to try.

`errno_of`, `exit_code_of` and `rpc_code_of` are the only places where an error becomes a number.  They look an
exception's class up along its method resolution order, so a new class below an old one has an answer from birth.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final


class TzfsError(Exception):
    """The root of all errors raised on purpose.  `str(error)` is one lower-case line; `hint` may add what to try."""

    hint: str | None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


# -- the caller's --------------------------------------------------------------------------------------------------


class UsageError(TzfsError):
    """The request itself is malformed: a bad name, an unknown property, a value out of bounds."""


class InvalidArgument(UsageError):
    """An argument that no state of the filesystem would make valid (EINVAL)."""


class NameTooLong(UsageError):
    """A name, path, symlink target or attribute name beyond its limit (ENAMETOOLONG)."""


class NotFound(TzfsError):
    """No such filesystem, snapshot, file or directory (ENOENT)."""


class NoAttribute(NotFound):
    """The inode has no extended attribute of that name (ENODATA)."""


class Stale(NotFound):
    """The inode has gone: a handle outlived it (ESTALE)."""


class Exists(TzfsError):
    """The name is taken (EEXIST)."""


class Conflicting(Exists):
    """Both of what is to be merged have changed the same (EEXIST)."""


class NotADirectory(TzfsError):
    """A directory was needed (ENOTDIR)."""


class IsADirectory(TzfsError):
    """Anything but a directory was needed (EISDIR)."""


class NotEmpty(TzfsError):
    """The directory has entries (ENOTEMPTY)."""


class PermissionDenied(TzfsError):
    """Mode bits refuse it (EACCES)."""


class NotPermitted(TzfsError):
    """Only the owner or root may do this, or nobody may (EPERM)."""


class ReadOnly(TzfsError):
    """The filesystem, snapshot or mount is read-only (EROFS)."""


class Busy(TzfsError):
    """Somebody else is using it; `holders` says who (EBUSY)."""

    holders: Sequence[str]

    def __init__(self, message: str, *, holders: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.holders = tuple(holders)


class WrongState(TzfsError):
    """The filesystem's lifecycle state forbids the command; the message names the state (EBUSY)."""


class Diverged(TzfsError):
    """The filesystem is not what a change starts from: it has not that snapshot, or has gone on since."""


class NotSupported(TzfsError):
    """Well-formed, but this filesystem does not do it (ENOTSUP)."""


class LimitReached(TzfsError):
    """A stated limit of `tzfs.limits` was met; subclasses carry the errno of each."""


class TooManyLinks(LimitReached):
    """An inode has as many names as it may have (EMLINK)."""


class FileTooBig(LimitReached):
    """Beyond the largest file size (EFBIG)."""


class AttributeTooBig(LimitReached):
    """An extended attribute's value, or the list of names, is beyond its limit (E2BIG)."""


class OutOfRange(LimitReached):
    """The caller's buffer or range is too small for the answer (ERANGE)."""


class SymlinkLoop(LimitReached):
    """Too many symbolic links on the way (ELOOP)."""


class QuotaExceeded(LimitReached):
    """The filesystem's quota would be exceeded (EDQUOT)."""


# -- the world's ---------------------------------------------------------------------------------------------------


class StoreError(TzfsError):
    """The store could not do it: the disk failed, a file is missing, another program got in the way (EIO)."""


class NoSpace(StoreError):
    """The disk or the map is full; nothing was changed (ENOSPC)."""


class ForeignStore(StoreError):
    """The directory is not a tzfs store, or is one of a format this version cannot read."""


class TablesLost(ForeignStore):
    """There are no tables of tzfs where some must be: lost or overwritten, or the folder was never tzfs's.

    Where `sys` is there and another is missing it is `ForeignStore`: another version may know why.
    """


class Displaced(ForeignStore):
    """Something else, a symbolic link say, is where the store has a file or a folder of its own."""


class MountFailed(StoreError):
    """A mount could not be made, or failed and answers nothing any more until it is mounted again."""


class Fenced(StoreError):
    """Another process took the lease; this writer may not commit any more."""


# -- the data's and ours -------------------------------------------------------------------------------------------


class CorruptionError(TzfsError):
    """What is on disk is not what was written: a checksum, a key or a reference is wrong (EIO)."""


class BadStream(CorruptionError):
    """What came in is no stream of snapshots, or not all that was sent of one, or says what cannot be."""


class InternalError(TzfsError):
    """A broken invariant: a bug of tzfs (EIO)."""


ERRNO: Final[Mapping[type[BaseException], int]] = {
    UsageError: errno.EINVAL,
    NameTooLong: errno.ENAMETOOLONG,
    NotFound: errno.ENOENT,
    NoAttribute: errno.ENODATA,
    Stale: errno.ESTALE,
    Exists: errno.EEXIST,
    NotADirectory: errno.ENOTDIR,
    IsADirectory: errno.EISDIR,
    NotEmpty: errno.ENOTEMPTY,
    PermissionDenied: errno.EACCES,
    NotPermitted: errno.EPERM,
    ReadOnly: errno.EROFS,
    Busy: errno.EBUSY,
    WrongState: errno.EBUSY,
    NotSupported: errno.ENOTSUP,
    LimitReached: errno.ENOSPC,
    TooManyLinks: errno.EMLINK,
    FileTooBig: errno.EFBIG,
    AttributeTooBig: errno.E2BIG,
    OutOfRange: errno.ERANGE,
    SymlinkLoop: errno.ELOOP,
    QuotaExceeded: errno.EDQUOT,
    StoreError: errno.EIO,
    NoSpace: errno.ENOSPC,
    CorruptionError: errno.EIO,
    InternalError: errno.EIO,
    TzfsError: errno.EIO,
}

# Exit codes follow sysexits.h where it has a fitting one; 1 is "it could not be done", 2 "you asked wrongly".
EXIT_CODE: Final[Mapping[type[BaseException], int]] = {
    UsageError: 2,
    StoreError: 74,  # EX_IOERR
    NoSpace: 1,
    ForeignStore: 78,  # EX_CONFIG
    CorruptionError: 65,  # EX_DATAERR
    InternalError: 70,  # EX_SOFTWARE
    PermissionDenied: 77,  # EX_NOPERM
    NotPermitted: 77,
    Busy: 75,  # EX_TEMPFAIL
    WrongState: 75,
    TzfsError: 1,
}

# JSON-RPC 2.0 keeps -32768..-32000; -32602 is its "invalid params".
RPC_CODE: Final[Mapping[type[BaseException], int]] = {
    UsageError: -32602,
    NotFound: 1,
    Exists: 2,
    Busy: 3,
    WrongState: 4,
    ReadOnly: 5,
    PermissionDenied: 6,
    NotPermitted: 6,
    LimitReached: 7,
    NotSupported: 8,
    NotADirectory: 9,
    IsADirectory: 9,
    NotEmpty: 9,
    NoSpace: 10,
    StoreError: 11,
    CorruptionError: 12,
    InternalError: -32603,
    TzfsError: 13,
}


def _along_mro(error: BaseException, table: Mapping[type[BaseException], int], default: int) -> int:
    for cls in type(error).__mro__:
        if cls in table:
            return table[cls]
    return default


def errno_of(error: BaseException) -> int:
    """The errno for `error`: the table's for a `TzfsError`, an `OSError`'s own, `EIO` for anything else."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return _along_mro(error, ERRNO, errno.EIO)


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ended with `error`; what is not a `TzfsError` counts as ours (70)."""
    return _along_mro(error, EXIT_CODE, 74 if isinstance(error, OSError) else 70)


def rpc_code_of(error: BaseException) -> int:
    """The JSON-RPC error code for `error`; what is not a `TzfsError` is an internal error (-32603)."""
    return _along_mro(error, RPC_CODE, -32603)


def from_os_error(error: OSError, what: str) -> TzfsError:
    """`error`, met while doing `what` to the store, as one of ours: `NoSpace` for a full disk, else `StoreError`."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: {reason}", hint="free space on the disk that holds the store, and try again")
    return StoreError(f"{what}: {reason}")


def no_snapshot(filesystem: object, snapshot: str) -> NotFound:
    """What is raised where a filesystem has no such snapshot."""
    return NotFound(f"no snapshot {filesystem}@{snapshot}", hint=f"tzfs list -t snapshot {filesystem}")


# -- one of several ------------------------------------------------------------------------------------------------

DAMAGE: Final = (StoreError, CorruptionError)  # of one filesystem, which keeps nobody from the others
OnFailure = Callable[[TzfsError], None]


def text_about(what: object, error: TzfsError) -> str:
    """What an error says, with the name of what it is about before it, unless it begins with that.

    Before its first colon a name is followed by a colon, `@` or `#`, or comes after `filesystem`: else it is a word.
    """
    text, name = str(error), re.escape(str(what))
    named = re.match(rf"(?:[^:]* )?{name}[:@#]|(?:[^:]* )?filesystem {name}(?![^ ])", text)
    return text if named else f"{what}: {text}"


@contextmanager
def about(what: object) -> Iterator[None]:
    """Within, damage is told with the name of what it is of."""
    try:
        yield
    except DAMAGE as error:
        error.args = (text_about(what, error),)
        raise
