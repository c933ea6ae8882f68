"""The request pump alone, on a pipe, where every state can be brought about (mounted: test_pump_mounted.py)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Final, cast

import pyfuse3
import pytest
import trio
import trio.testing

import tzfs.native._native as _native
from tzfs.mount import pump

WAITS_MAX: Final = 20_000_000  # 5,000 turns of a pump that lets trio run
NEVER_NS: Final = 1 << 60

Pipe = tuple[int, int]


@pytest.fixture
def installed() -> Iterator[pump.Pump]:
    made = pump.install()
    assert made is not None
    with made:
        yield made
    assert vars(pyfuse3)["trio"] is trio


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


@pytest.fixture
def full(pipe: Pipe) -> int:
    """A descriptor that is always readable: full load."""
    os.write(pipe[1], b"x")
    return pipe[0]


def never_by_time(made: pump.Pump) -> None:
    """Leave the pump only its other reasons to let trio run."""
    made._state.turn_max_ns = NEVER_NS


async def serve_until(made: pump.Pump, fd: int, event: trio.Event, waits_max: int = WAITS_MAX) -> None:
    """What a worker of pyfuse3 does at full load, with requests that take no time."""
    for _ in range(waits_max):
        if event.is_set():
            return
        await made._wait_readable(fd)
    raise AssertionError(f"trio did not run during {waits_max} requests")


# -- alone -------------------------------------------------------------------------------------------------------------


def test_a_waiting_request_is_taken_without_letting_trio_run(installed: pump.Pump, full: int) -> None:
    async def main() -> None:
        await installed._wait_readable(full)  # the first wait begins with a turn, to learn of trio's timers
        never_by_time(installed)
        other_ran = False

        async def other() -> None:
            nonlocal other_ran
            other_ran = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(1000):
                await installed._wait_readable(full)
            assert not other_ran

    trio.run(main)
    assert installed.statistics.ready == 1001
    assert installed.statistics.waited == 0


def test_it_is_quiet_when_no_request_has_come_since_it_was_asked(installed: pump.Pump, full: int) -> None:
    async def main() -> None:
        for _ in range(3):
            await installed._wait_readable(full)
            assert not installed.quiet()
            assert installed.quiet()
            assert installed.quiet()

    trio.run(main)


def test_other_tasks_run_again_and_again_under_full_load(installed: pump.Pump, full: int) -> None:
    async def main() -> None:
        enough = trio.Event()

        async def other() -> None:
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            enough.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await serve_until(installed, full, enough)

    trio.run(main)
    assert installed.statistics.turns >= 10


def test_a_thread_that_is_done_interrupts_full_load(installed: pump.Pump, full: int) -> None:
    async def main() -> None:
        done = trio.Event()

        async def other() -> None:
            await trio.to_thread.run_sync(lambda: None)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked()
            await installed._wait_readable(full)
            never_by_time(installed)
            await serve_until(installed, full, done)

    trio.run(main)


@pytest.mark.parametrize("load", [b"", b"x"], ids=["an idle spin", "full load"])
def test_a_message_on_a_socket_interrupts(installed: pump.Pump, pipe: Pipe, load: bytes) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        answered = trio.Event()

        async def control() -> None:
            await trio.socket.from_stdlib_socket(near).recv(1)
            os.write(pipe[1], b"x")  # ends the spin, which has no other end here
            answered.set()

        with near, far:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(control)
                await trio.testing.wait_all_tasks_blocked()
                os.write(pipe[1], b"x")
                await installed._wait_readable(pipe[0])
                os.read(pipe[0], 1)
                never_by_time(installed)
                installed._state.spin_ns = NEVER_NS
                os.write(pipe[1], load)
                far.send(b"x")
                await serve_until(installed, pipe[0], answered)

    trio.run(main)
    assert installed.statistics.wakes == 1


def test_requests_go_on_while_something_else_wakes_trio_all_the_time(installed: pump.Pump, full: int) -> None:
    """What waits for trio goes first, but a request follows each time."""
    state = installed._state
    state.turn_ns = pump._lib.tzfs_pump_now_ns()
    never_by_time(installed)
    verdicts = [pump._lib.tzfs_pump_wait(state, full, full) for _ in range(6)]
    assert verdicts == [pump._WOKEN, pump._READY] * 3


def test_a_timer_interrupts_full_load(installed: pump.Pump, full: int) -> None:
    async def main() -> None:
        over = trio.Event()

        async def other() -> None:
            with trio.CancelScope(deadline=trio.current_time() + 0.001):
                await trio.sleep_forever()
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await installed._wait_readable(full)
            never_by_time(installed)
            await serve_until(installed, full, over)

    trio.run(main)


class InRound(trio.abc.Instrument):
    """Does something in the `number`th round of trio's loop from when it is added, between its looks for work."""

    def __init__(self, number: int, do: Callable[[], None]) -> None:
        self.left, self.do = number, do

    def after_io_wait(self, timeout: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.do()


@pytest.mark.parametrize("of", ["thread", "timer"])
@pytest.mark.parametrize("number", [1, 2])
def test_what_comes_up_while_trio_runs_is_not_left_for_later(
    installed: pump.Pump, full: int, number: int, of: str
) -> None:
    """In whatever round of a turn a thread is done or a time is over: nothing wakes the pump for it again."""
    clock = trio.testing.MockClock()

    async def main() -> None:
        done, over = trio.Event(), trio.Event()

        async def other() -> None:
            with trio.move_on_after(1):
                await done.wait()
            over.set()

        def come_up() -> None:
            if of == "thread":
                token.run_sync_soon(done.set)
            else:
                clock.jump(1)

        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(instrument := InRound(number, come_up))
            await installed._wait_readable(full)
            never_by_time(installed)
            assert instrument.left <= 0
            await serve_until(installed, full, over, 1000)
            trio.lowlevel.remove_instrument(instrument)

    for _ in range(20):  # trio tosses a coin for the order of who runs
        installed._state.turn_ns, installed._state.turn_max_ns = 0, pump.TURN_MAX_NS
        trio.run(main, clock=clock)


def test_cancelling_ends_a_wait_under_full_load(installed: pump.Pump, full: int) -> None:
    async def main() -> bool:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_until, installed, full, trio.Event())
                await trio.lowlevel.checkpoint()
                scope.cancel()
        return scope.cancelled_caught

    assert trio.run(main)


def test_cancelling_ends_an_idle_wait(installed: pump.Pump, pipe: Pipe) -> None:
    async def main() -> bool:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(installed._wait_readable, pipe[0])
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        return scope.cancelled_caught

    assert trio.run(main)


def test_closing_ends_an_idle_wait_and_one_under_full_load(installed: pump.Pump, pipe: Pipe) -> None:
    async def serve_for_ever(fd: int) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await serve_until(installed, fd, trio.Event())

    async def main() -> None:
        for load in (b"", b"x"):
            installed._begin_session()
            os.write(pipe[1], load)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_for_ever, pipe[0])
                for _ in range(100):
                    await trio.lowlevel.checkpoint()
                installed._notify_closing(pipe[0])

    trio.run(main)


def test_an_idle_wait_spins_once_and_then_sleeps(installed: pump.Pump, pipe: Pipe) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(installed._wait_readable, pipe[0])
            await trio.testing.wait_all_tasks_blocked()
            before = installed.statistics
            assert (before.waited, before.ready, before.spun) == (1, 0, 0)
            assert before.vain <= 1
            for _ in range(50):  # trio goes round, for reasons of its own; the pump is not in it
                await trio.testing.wait_all_tasks_blocked()
            assert installed.statistics == before
            os.write(pipe[1], b"x")

    trio.run(main)


def test_spins_in_vain_become_rarer_and_one_success_restores_them(installed: pump.Pump, pipe: Pipe) -> None:
    state = installed._state
    state.spin_ns = 1000
    never_by_time(installed)
    state.turn_ns = pump._lib.tzfs_pump_now_ns()

    def spins() -> bool:
        before = state.vain
        assert pump._lib.tzfs_pump_wait(state, pipe[0], -1) == pump._IDLE
        return state.vain > before

    pattern = [number for number in range(60) if spins()]
    assert pattern == [0, 2, 6, 14, 30, 46]
    os.write(pipe[1], b"x")
    assert pump._lib.tzfs_pump_wait(state, pipe[0], -1) == pump._READY
    os.read(pipe[0], 1)
    assert [spins(), spins(), spins()] == [True, False, True]


def test_without_a_spin_time_it_never_spins(pipe: Pipe) -> None:
    with cast(pump.Pump, pump.install(spin_ns=0)) as made:
        never_by_time(made)
        made._state.turn_ns = pump._lib.tzfs_pump_now_ns()
        assert [pump._lib.tzfs_pump_wait(made._state, pipe[0], -1) for _ in range(20)] == [pump._IDLE] * 20
        assert made.statistics.yields == 0


def test_a_closed_descriptor_is_left_to_the_read_to_report(installed: pump.Pump) -> None:
    fd = os.dup(0)
    os.close(fd)
    never_by_time(installed)
    installed._state.turn_ns = pump._lib.tzfs_pump_now_ns()
    assert pump._lib.tzfs_pump_wait(installed._state, fd, -1) == pump._READY


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_the_lock_does_not_yield_when_nobody_holds_it() -> None:
    async def main() -> None:
        lock = pump._Lock()
        with trio.testing.assert_no_checkpoints():
            for _ in range(3):
                async with lock:
                    pass

    trio.run(main)


def test_the_lock_admits_one_at_a_time_and_everyone_in_the_end() -> None:
    inside = entered = 0

    async def worker(lock: pump._Lock) -> None:
        nonlocal inside, entered
        for _ in range(20):
            async with lock:
                inside += 1
                entered += 1
                assert inside == 1
                await trio.lowlevel.checkpoint()
                inside -= 1
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        lock = pump._Lock()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(worker, lock)

    trio.run(main)
    assert entered == 100


def test_a_cancelled_waiter_takes_the_lock_from_nobody() -> None:
    async def main() -> None:
        lock = pump._Lock()
        entered = trio.Event()
        impatient = trio.CancelScope()

        async def waiter(scope: trio.CancelScope, event: trio.Event) -> None:
            with scope:
                async with lock:
                    event.set()

        async with trio.open_nursery() as nursery:
            async with lock:
                nursery.start_soon(waiter, impatient, trio.Event())
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(waiter, trio.CancelScope(), entered)
                await trio.testing.wait_all_tasks_blocked()
                impatient.cancel()
            await entered.wait()
        assert impatient.cancelled_caught
        with trio.testing.assert_no_checkpoints():
            async with lock:
                pass

    trio.run(main)


# -- in its place and out of it ----------------------------------------------------------------------------------------


def test_it_declines_when_switched_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TZFS_PUMP", "off")
    with caplog.at_level(logging.INFO):
        assert pump.install() is None
    assert "switched off" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"), [("trio", None), ("__version__", "4.0.0"), ("_wait_fuse_readable", None)], ids=str
)
def test_it_declines_a_pyfuse3_that_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str | None
) -> None:
    if value is None:
        monkeypatch.delattr(pyfuse3, name)
    else:
        monkeypatch.setattr(pyfuse3, name, value)
    assert pump.install() is None
    assert "request pump: not used" in caplog.text


def test_it_is_installed_once_and_closed_at_will(installed: pump.Pump, caplog: pytest.LogCaptureFixture) -> None:
    assert pump.install() is None
    assert "something else is there already" in caplog.text
    installed.close()
    installed.close()
    with cast(pump.Pump, pump.install()):
        pass


def test_a_negative_spin_time_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        pump.install(spin_ns=-1)


def test_the_shim_is_trio_in_everything_else(installed: pump.Pump) -> None:
    shim = installed._shim
    assert shim.open_nursery is trio.open_nursery
    assert shim.ClosedResourceError is trio.ClosedResourceError
    assert shim.lowlevel.current_task is trio.lowlevel.current_task
    with pytest.raises(AttributeError):
        _ = shim.no_such_name


def test_the_guard_says_what_it_cannot_redirect() -> None:
    assert pump._lib.tzfs_pump_unguard() == 1
    assert pump._lib.tzfs_pump_guard(b"/no/such/object.so") == 1
    assert pump._lib.tzfs_pump_guard(os.fsencode(str(_native.__file__))) == 2
    assert pump._lib.tzfs_pump_unguard() == 1
