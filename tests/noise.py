"""Contents that no codec makes smaller: for tests that count what is stored."""

from __future__ import annotations

import hashlib


def noise(size: int, name: str = "") -> bytes:
    """The first `size` bytes of the endless noise of that name."""
    return hashlib.shake_128(name.encode()).digest(size)
