"""How a request is answered whatever happens, and what is counted of it.

pyfuse3 ends the whole mount where a handler raises anything but `FUSEError`, so every handler goes through `answered`
(it never waits) or `answered_later` (it may), and what the pump calls without pyfuse3 through `answered_at_once`: all
count, time, and turn each error into an errno.

While `held` is set, what would change the filesystem waits, uncounted, and all else is answered.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import trio
from pyfuse3 import FUSEError

from tzfs import limits
from tzfs.errors import MountFailed, TzfsError, errno_of

log = logging.getLogger(__name__)

OF_A_LISTING: Final = frozenset({"readdir", "releasedir"})  # requests that begin with a listing's handle, not a node

CHANGING: Final = frozenset({
    "setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "create", "write", "setxattr",
    "removexattr",
})  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")


class RequestStatistics:
    """How many requests of one kind were answered, and how long the handler took."""

    __slots__ = ("count", "errors", "slowest_ns", "total_ns")

    def __init__(self, count: int = 0, errors: int = 0, total_ns: int = 0, slowest_ns: int = 0) -> None:
        self.count, self.errors, self.total_ns, self.slowest_ns = count, errors, total_ns, slowest_ns

    def ended(self, began: int, count: int = 1) -> int:
        """One more that began then on the clock of `perf_counter_ns`; when it ended.

        A `count` of 0: it is counted elsewhere.
        """
        ended = time.perf_counter_ns()
        self.count += count
        self.total_ns += ended - began
        if ended - began > self.slowest_ns:
            self.slowest_ns = ended - began
        return ended


class Answering(Protocol):
    """What has handlers: figures by kind of request, and an engine that may have failed of an error."""

    requests: dict[str, RequestStatistics]
    held: trio.Event | None  # changes wait for it

    def stop_if_failed(self) -> None: ...


Self = TypeVar("Self", bound=Answering)


def refusal(operations: Answering, kind: str, args: tuple[object, ...], error: BaseException) -> FUSEError:
    """What the kernel is answered; `args` are the request's, of which the first says what it is about."""
    operations.requests[kind].errors += 1
    if isinstance(error, FUSEError):
        return error
    operations.stop_if_failed()
    number = errno_of(error)
    if not isinstance(error, TzfsError):
        log.exception("request %s failed", kind)
    elif number == errno.EIO and not isinstance(error, MountFailed):  # of that the log has the reason already
        about = args[0] if args else None
        inode = f" of inode {about & limits.INO_MAX}" if isinstance(about, int) and kind not in OF_A_LISTING else ""
        log.error("request %s%s: %s", kind, inode, error)
    return FUSEError(number)


def _waits(kind: str, args: tuple[object, ...]) -> bool:
    """Whether the request changes something: opening may truncate."""
    return kind in CHANGING or (kind == "open" and isinstance(args[1], int) and bool(args[1] & os.O_TRUNC))


async def _turn(operations: Answering) -> None:
    """Until changes are let in."""
    while (held := operations.held) is not None:
        await held.wait()


def answered(
    handler: Callable[Concatenate[Self, P], T],
) -> Callable[Concatenate[Self, P], Coroutine[Any, Any, T]]:
    """The coroutine of a handler that never waits: counts, times, and turns errors into errnos."""
    kind = handler.__name__

    async def request(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.held is not None and _waits(kind, args):
            await _turn(self)
        statistics = self.requests[kind]
        began = time.perf_counter_ns()
        try:
            return handler(self, *args, **kwargs)
        except Exception as error:
            raise refusal(self, kind, args, error) from None
        finally:
            statistics.ended(began)

    request.__name__ = kind
    return request


def answered_later(
    handler: Callable[Concatenate[Self, P], Awaitable[T]],
) -> Callable[Concatenate[Self, P], Coroutine[Any, Any, T]]:
    """`answered` for a handler that may wait."""
    kind = getattr(handler, "__name__", "request")

    async def request(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.held is not None and _waits(kind, args):
            await _turn(self)
        statistics = self.requests[kind]
        began = time.perf_counter_ns()
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:
            raise refusal(self, kind, args, error) from None
        finally:
            statistics.ended(began)

    request.__name__ = kind
    return request


def answered_at_once(kind: str) -> Callable[[Callable[Concatenate[Self, P], int]], Callable[Concatenate[Self, P], int]]:
    """`answered` for a handler of requests of that `kind` which pyfuse3 does not see: an error is its negative errno.

    Nobody calls it while changes are held.
    """

    def decorate(handler: Callable[Concatenate[Self, P], int]) -> Callable[Concatenate[Self, P], int]:
        def request(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> int:
            statistics = self.requests[kind]
            began = time.perf_counter_ns()
            try:
                return handler(self, *args, **kwargs)
            except Exception as error:
                return -refusal(self, kind, args, error).errno
            finally:
                statistics.ended(began)

        return request

    return decorate


KINDS = (
    "lookup", "forget", "getattr", "setattr", "readlink", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename",
    "link", "open", "create", "read", "write", "flush", "release", "fsync", "opendir", "readdir", "releasedir",
    "fsyncdir", "statfs", "setxattr", "getxattr", "listxattr", "removexattr", "access",
)  # fmt: skip
