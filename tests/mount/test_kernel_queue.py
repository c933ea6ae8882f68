"""Waiting until the kernel's queue is served."""

from __future__ import annotations

import time

import trio.testing

from tzfs.mount.kernel_queue import CATCH_UP_S, CATCH_UP_WORK_S, KernelQueue

ENDLESS = 1 << 60


class Queue(KernelQueue):
    """With so many requests in it, of which one is served between two looks, in so much time and no work."""

    def __init__(self, requests: int, *, each_s: float = 0.0) -> None:
        super().__init__()
        self.requests, self.each_s, self.clock = requests, each_s, trio.testing.MockClock()

    def __bool__(self) -> bool:
        self.clock.jump(self.each_s)
        self.requests -= 1
        return self.requests >= 0


def test_all_of_it_is_served_though_others_have_the_processor_meanwhile() -> None:
    queue = Queue(20, each_s=CATCH_UP_WORK_S)
    trio.run(queue.catch_up, clock=queue.clock)
    assert queue.requests == -1


def test_it_ends_in_the_midst_of_requests_that_never_end() -> None:
    queue = Queue(ENDLESS)
    began = time.thread_time()
    trio.run(queue.catch_up, clock=queue.clock)
    assert time.thread_time() - began >= CATCH_UP_WORK_S
    assert queue.requests > 0


def test_it_ends_in_the_midst_of_requests_that_wait_for_a_slow_disk() -> None:
    queue = Queue(ENDLESS, each_s=0.4 * CATCH_UP_S)
    trio.run(queue.catch_up, clock=queue.clock)
    assert ENDLESS - queue.requests == 3
