"""The request pump: takes FUSE requests without a detour through trio while they come fast.

Stock pyfuse3 passes trio's scheduler twice for each request, once for an uncontended `trio.Lock` and once for
`wait_readable`; two thirds of a request's time go there, and between requests the processor falls asleep.  pyfuse3
looks its event library up at run time as `pyfuse3.trio`, so `install` puts a shim there that is trio in everything but
three names:

* `Lock`: entering it does not yield while nobody holds it.  It does not hand itself over on release: the worker that
  comes back from its request takes it again, and a second one gets it when the first is suspended inside a handler.
* `lowlevel.wait_readable`: polls the descriptor; if nothing is there, polls and yields the processor for up to
  `spin_ns`, in C and without the GIL; only then waits in trio.
* `lowlevel.notify_closing`: also reaches a worker that is in the pump and not in trio's own wait.

States of a wait, and what ends it:

    POLL --a request--> done                         POLL --nothing, and spins have lately been in vain--> TRIO
    POLL --nothing--> SPIN --a request--> done       SPIN --spin_ns passed--> TRIO --a request--> done
    POLL, SPIN --trio has not run for TURN_MAX_NS, a timer is due, what trio waits for has come--> TURN --> POLL

Invariants:

* Trio has a turn (`turns`) at least every TURN_MAX_NS, whatever the load, and when a thread job, a signal or a message
  from a socket waits for it: its epoll descriptor is polled beside the FUSE descriptor, at every fifth look for a
  request.  After a wait that was trio's the request comes first: what was made runnable in the same moment waits for
  the next turn.
* An idle process does not wake: at most one spin follows the last request, then the wait is trio's.  Spins in vain make
  spinning rarer, down to one wait in 16, so that slow traffic costs no processor time either.
* A request may be withdrawn (its client was killed) between poll and read.  A blocking read would then hold the
  whole process, with the GIL, until the next request.  The descriptor is therefore made non-blocking, and since
  pyfuse3 takes EAGAIN for the end of the world, its call to libfuse is led through a function in C that says EINTR
  instead, upon which pyfuse3 waits again.  Where that call cannot be redirected the descriptor is left as it was.
* Given `Answers` (native/src/answers.h), the pump reads requests itself and has C answer those it can; the others it
  hands to pyfuse3 through the same redirected call.  A WRITE, CREATE or UNLINK that need not wait is answered by the
  operations that `answer_at_once_with` was given, without pyfuse3, whose way costs as much as the operation, and which
  copies what a WRITE carries.  What C has posted of them is done by the operations before anybody else has a turn.
* `Cancelled` and `ClosedResourceError` come out of a wait as they would from trio's own, TURN_MAX_NS later at most.

Otherwise the pump knows nothing of requests, handlers or the engine.  `TZFS_PUMP=off` in the environment makes
`install` decline.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, Self, cast

import pyfuse3
import trio

from tzfs.mount.answers import FORGOTTEN_BATCH, Answers
from tzfs.mount.turns import Turns
from tzfs.native._native import ffi as _ffi
from tzfs.native._native import lib as _native_lib

log = logging.getLogger(__name__)

SPIN_NS_DEFAULT: Final = 50_000  # what waking a virtual processor costs: sleeping sooner than that cannot win
TURN_MAX_NS: Final = 2_000_000  # a turn of trio costs 10-20 us: 1 % at full load, and a ping waits 2 ms
NO_DEADLINE: Final = (1 << 63) - 1

_READY: Final = 1
_IDLE: Final = 2
_TURN: Final = 3
_WOKEN: Final = 4
_WRITE: Final = 5  # from here on: a request that the operations may answer at once
_CREATE: Final = 6
_NO_REQUEST: Final = (_IDLE, _TURN, _WOKEN)

KEPT_BYTES_MIN: Final = 32 * 1024  # from here on a payload is kept in memory of its own, else it is copied


class _State(Protocol):
    """`struct tzfs_pump` (native/src/pump.h)."""

    answers: object
    at_once: int
    asked: int
    uid: int
    gid: int
    mode: int
    flags: int
    node: int
    handle: int
    offset: int
    payload: object
    payload_bytes: int
    spin_ns: int
    turn_max_ns: int
    turn_ns: int
    deadline_ns: int
    ready: int
    spun: int
    vain: int
    idle: int
    turns: int
    wakes: int
    yields: int
    spin_sum_ns: int


class _Library(Protocol):
    def tzfs_pump_now_ns(self) -> int: ...
    def tzfs_pump_wait(self, pump: _State, fuse_fd: int, wake_fd: int, /) -> int: ...
    def tzfs_pump_guard(self, path: bytes, /) -> int: ...
    def tzfs_pump_unguard(self) -> int: ...
    def tzfs_pump_hands_over(self) -> int: ...
    def tzfs_pump_received(self) -> int: ...
    def tzfs_pump_withdrawn(self) -> int: ...
    def tzfs_pump_take(self, pump: _State, /) -> object: ...
    def tzfs_pump_answer(self, pump: _State, fuse_fd: int, result: int, /) -> None: ...
    def tzfs_pump_created(self, pump: _State, fuse_fd: int, handle: int, /) -> None: ...


_lib: Final = cast(_Library, _native_lib)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the pump has done since it was installed."""

    ready: int  # requests that were there at once
    spun: int  # requests that came within a spin
    waited: int  # waits left to trio
    vain: int  # spins that ended with nothing
    turns: int  # times trio was let run because it had not for TURN_MAX_NS, or because of a timer
    wakes: int  # times trio was let run because something it waits for had come
    yields: int  # sched_yield calls
    spin_ns: int  # time spent spinning
    withdrawn: int  # requests that were gone when they were to be read
    guarded: bool  # withdrawn requests cannot stop the loop


class AtOnce(Protocol):
    """Operations that answer a WRITE, a CREATE or an UNLINK in one step, or do one when it has been answered.

    Each answers its result, or the negative errno.
    """

    held: trio.Event | None  # while it is set, what would change something waits

    @property
    def ahead(self) -> bool:
        """Whether who writes has to wait."""
        ...

    def write_at_once(self, fh: int, off: int, buf: bytes | memoryview) -> int:
        """Writes; the number of bytes.  It may keep `buf`, which never changes."""
        ...

    def create_at_once(self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> int:
        """Creates and opens; the handle, of a file that the answers know."""
        ...

    def unlink_at_once(self, parent: int, name: bytes) -> int:
        """Removes the name; 0."""
        ...

    def begin_posting(self) -> bool:
        """C may answer, before they are done, changes that nothing can refuse or make wait now; whether there are any
        such."""
        ...

    def end_posting(self) -> None:
        """C may not any more, and what it has answered is done."""
        ...


class _Done:
    """An awaitable that does not suspend: half the cost of a coroutine."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return cast("Generator[None, None, None]", _nothing())


def _nothing() -> Iterator[None]:
    return iter(())


_DONE: Final = _Done()


class _Lock:
    """Mutual exclusion for pyfuse3's workers.  A woken one competes again; all are alike, so none can starve."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    def __aenter__(self) -> Awaitable[None]:
        if self._held:
            return self._acquire()
        self._held = True
        return _DONE

    async def _acquire(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> Awaitable[None]:
        self._held = False
        if self._waiting:
            self._waiting.unpark()
        return _DONE


class _Lowlevel(types.ModuleType):
    """`trio.lowlevel` but for what is set on it."""

    def __getattr__(self, name: str) -> object:
        return cast(object, getattr(trio.lowlevel, name))


class _Shim(types.ModuleType):
    """`trio` but for what is set on it."""

    Lock: Callable[[], _Lock]
    lowlevel: _Lowlevel

    def __getattr__(self, name: str) -> object:
        return cast(object, getattr(trio, name))


class Pump:
    """The pump in its place; `close`, or leaving the context, puts trio back.  Made by `install`.

    Close it only when `pyfuse3.main` has returned.  One pump serves any number of sessions one after another.
    """

    def __init__(self, *, spin_ns: int, guarded: bool) -> None:
        self._memory = _ffi.new("struct tzfs_pump *")
        self._state = cast(_State, self._memory)
        self._state.spin_ns = spin_ns
        self._state.turn_max_ns = TURN_MAX_NS
        self._state.deadline_ns = NO_DEADLINE
        self._turns = Turns()
        self._closing = False
        self._guarded = guarded
        self._nonblocking = False
        self._answers: Answers | None = None
        self._operations: AtOnce | None = None
        self._received_before = _lib.tzfs_pump_received()
        self._withdrawn_before = _lib.tzfs_pump_withdrawn()
        self._installed = True
        self._heard = 0

        lowlevel = _Lowlevel("trio.lowlevel")
        vars(lowlevel)["wait_readable"] = self._wait_readable
        vars(lowlevel)["notify_closing"] = self._notify_closing
        self._shim = _Shim("trio")
        self._shim.Lock = self._begin_session
        self._shim.lowlevel = lowlevel
        vars(pyfuse3)["trio"] = self._shim

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give pyfuse3 back its trio and its libfuse.  Doing it twice is harmless."""
        if not self._installed:
            return
        self._installed = False
        self._state.answers = _ffi.NULL
        vars(pyfuse3)["trio"] = trio
        if self._guarded and _lib.tzfs_pump_unguard() != 0:
            log.warning("request pump: pyfuse3's call to libfuse stays redirected, which does no harm")

    @property
    def statistics(self) -> Statistics:
        state = self._state
        return Statistics(
            ready=state.ready,
            spun=state.spun,
            waited=state.idle,
            vain=state.vain,
            turns=state.turns,
            wakes=state.wakes,
            yields=state.yields,
            spin_ns=state.spin_sum_ns,
            withdrawn=_lib.tzfs_pump_withdrawn() - self._withdrawn_before,
            guarded=self._nonblocking,
        )

    def answer_with(self, answers: Answers) -> None:
        """From the first turn of trio on, what `answers` can answer never reaches pyfuse3."""
        self._answers = answers

    @property
    def answers(self) -> bool:
        """Whether what can be answered in C is: not where pyfuse3's call to libfuse could not be redirected."""
        return bool(self._state.answers != _ffi.NULL)

    def answer_at_once_with(self, operations: AtOnce) -> None:
        """From now on a WRITE, CREATE or UNLINK that need not wait is answered by `operations`, without pyfuse3."""
        self._operations = operations
        self._state.at_once = 1

    def _answer_at_once(self, verdict: int, fd: int) -> bool:
        """Whether the request that has been read is answered; else pyfuse3 receives it."""
        operations, state = self._operations, self._state
        if operations is None or operations.held is not None:
            return False
        if verdict == _WRITE:
            return not operations.ahead and self._write(operations, fd)
        name: bytes = _ffi.unpack(state.payload, state.payload_bytes)
        if verdict == _CREATE:
            result = operations.create_at_once(state.node, name, state.mode, state.flags, state.uid, state.gid)
            if result >= 0:
                _lib.tzfs_pump_created(state, fd, result)
                return True
        else:
            result = operations.unlink_at_once(state.node, name)
        _lib.tzfs_pump_answer(state, fd, result)
        return True

    def _write(self, operations: AtOnce, fd: int) -> bool:
        """What a large one carries is not copied again: it begins on a page, and can go to a disk from where it is."""
        state = self._state
        size = state.payload_bytes
        payload: bytes | memoryview
        if size < KEPT_BYTES_MIN:
            payload = _ffi.unpack(state.payload, size)
        else:
            taken = _lib.tzfs_pump_take(state)
            if taken == _ffi.NULL:
                _lib.tzfs_pump_answer(state, fd, -errno.ENOMEM)
                return True
            payload = memoryview(_ffi.buffer(_ffi.gc(taken, _native_lib.tzfs_pump_free), size)).toreadonly()
        _lib.tzfs_pump_answer(state, fd, operations.write_at_once(state.handle, state.offset, payload))
        return True

    def quiet(self) -> bool:
        """Whether no request has come since this was asked last."""
        state = self._state
        before, self._heard = self._heard, state.ready + state.spun + state.idle
        return before == self._heard

    # -- what pyfuse3 calls --------------------------------------------------------------------------------------------

    def _begin_session(self) -> _Lock:
        """pyfuse3 makes one lock for each session, before its first wait."""
        self._closing = False
        self._nonblocking = False
        self._state.turn_ns = 0  # the first wait begins with a turn, which gets to know the trio that runs
        self._state.answers = _ffi.NULL
        self._received_before = _lib.tzfs_pump_received()
        return _Lock()

    async def _wait_readable(self, fd: int) -> None:
        answers, operations, turns, posting, before = self._answers, self._operations, self._turns, False, 0
        while True:
            if self._closing:
                raise trio.ClosedResourceError("the FUSE descriptor is being closed")
            verdict = _lib.tzfs_pump_wait(self._state, fd, turns.wake_fd)
            if answers is not None:
                if posting and operations is not None:  # whatever runs next may change what can be posted
                    operations.end_posting()
                    posting = False
                waiting = answers.state.forgotten
                if waiting >= FORGOTTEN_BATCH or (waiting and verdict in _NO_REQUEST):
                    answers.bury()
            if verdict >= _WRITE:
                if not self._answer_at_once(verdict, fd):
                    return
                if verdict == before != _CREATE and operations is not None:  # more of them come, it seems
                    posting = operations.begin_posting()
                before = verdict
                continue
            if verdict == _READY:
                return
            if verdict == _IDLE:
                await trio.lowlevel.wait_readable(fd)
                self._trio_ran(fd)
                if self._state.answers == _ffi.NULL:
                    return
                continue  # C may have the answer
            await turns.take()
            self._trio_ran(fd)

    def _notify_closing(self, fd: int) -> None:
        self._closing = True
        trio.lowlevel.notify_closing(fd)

    # -- between the two -----------------------------------------------------------------------------------------------

    def _trio_ran(self, fd: int) -> None:
        """Start the next turn's time, and look when trio's next timer is due.  A timer set by a request served in
        between is seen at the next turn."""
        now_ns = _lib.tzfs_pump_now_ns()
        due_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
        self._state.turn_ns = now_ns
        self._state.deadline_ns = NO_DEADLINE if math.isinf(due_s) else now_ns + int(due_s * 1e9)
        if self._guarded and not self._nonblocking and _lib.tzfs_pump_received() > self._received_before:
            # Only now is it certain that pyfuse3 reads through the guard; its first request is the kernel's INIT,
            # which nobody withdraws.
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
            self._nonblocking = True
            if self._answers is not None:
                if _lib.tzfs_pump_hands_over():
                    self._state.answers = self._answers.state
                else:
                    log.warning(
                        "request pump: nothing is answered in C, libfuse is not a version whose buffers we know"
                    )


def install(*, spin_ns: int = SPIN_NS_DEFAULT) -> Pump | None:
    """Put the pump between pyfuse3 and trio, before `pyfuse3.main` runs.

    `spin_ns` bounds the spin after each request; 0 never spins.  Returns None, with a line in the log, where pyfuse3
    is not built as the pump needs it, or where `TZFS_PUMP=off` is set: the mount then runs on stock trio.
    """
    if spin_ns < 0:
        raise ValueError(f"spin_ns must not be negative: {spin_ns}")
    if os.environ.get("TZFS_PUMP", "on") == "off":
        log.info("request pump: switched off by TZFS_PUMP")
        return None
    reason = _unfit()
    if reason is not None:
        log.warning("request pump: not used, %s", reason)
        return None
    failed = _lib.tzfs_pump_guard(os.fsencode(str(pyfuse3.__file__)))
    if failed:
        log.warning("request pump: the descriptor stays blocking, pyfuse3's call to libfuse is not found (%d)", failed)
    return Pump(spin_ns=spin_ns, guarded=not failed)


def _unfit() -> str | None:
    """Why this pyfuse3 cannot take the pump, or None if it can."""
    version = pyfuse3.__version__
    if version.split(".")[0] != "3":
        return f"pyfuse3 {version} is not a version it knows"
    if getattr(pyfuse3, "trio", None) is not trio:
        return "pyfuse3 does not look trio up as pyfuse3.trio, or something else is there already"
    missing = [name for name in ("_wait_fuse_readable", "_session_loop") if not hasattr(pyfuse3, name)]
    if missing:
        return f"pyfuse3 {version} has no {missing[0]}"
    return None
