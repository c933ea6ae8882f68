"""Waiting until the kernel's queue is served."""

from __future__ import annotations

import time

import trio.testing

from tzfs.mount.kernel_queue import CATCH_UP_S, KernelQueue


class Queue(KernelQueue):
    """With so many requests in it, of which one is served between two looks."""

    def __init__(self, requests: int) -> None:
        super().__init__()
        self.requests = requests

    def __bool__(self) -> bool:
        self.requests -= 1
        return self.requests >= 0


def test_all_of_it_is_served_however_long_others_have_the_processor() -> None:
    queue = Queue(20)
    trio.run(queue.catch_up, clock=trio.testing.MockClock(rate=1e9))
    assert queue.requests == -1


def test_it_ends_in_the_midst_of_requests_that_never_end() -> None:
    queue = Queue(1 << 60)
    began = time.thread_time()
    trio.run(queue.catch_up)
    assert time.thread_time() - began >= CATCH_UP_S
    assert queue.requests > 0
