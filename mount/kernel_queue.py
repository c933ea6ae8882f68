"""The requests that the kernel has for this process and has not been asked for yet."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from typing import Final

import trio

# Where requests never end, who waits for the end goes on in the midst of them: when they have taken so much work, or so
# much time, of the disk's as a rule.
CATCH_UP_WORK_S: Final = 0.01
CATCH_UP_S: Final = 0.25


class KernelQueue:
    """The queue of the one session that pyfuse3 has open, which keeps its descriptor to itself.

    Where that is not to be found, something is always taken to be in it.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._found = False
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the one that was listed with
                if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                    self._poll.register(int(name), select.POLLIN)
                    self._found = True

    def __bool__(self) -> bool:
        """Whether a request can be read now.  Never once the session has ended."""
        return not self._found or any(events & select.POLLIN for _, events in self._poll.poll(0))

    async def catch_up(self) -> None:
        """Serves what is in it, until nothing is; but see `CATCH_UP_S`.

        On a busy machine little work takes long, which alone is no reason to go on.
        """
        work_until, until = time.thread_time() + CATCH_UP_WORK_S, trio.current_time() + CATCH_UP_S
        while self and time.thread_time() < work_until and trio.current_time() < until:
            await trio.lowlevel.checkpoint()
