"""How long the long tests are: short in the gate, long with `TZFS_SLOW=1`.  None is left out in either.

A number can be set by itself: `TZFS_CUTS=100 pytest tests/crash`.  The commands are in ARCHITECTURE.md.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

SLOW: Final = os.environ.get("TZFS_SLOW", "0") != "0"

patient: Final = pytest.mark.timeout(100_000 if SLOW else 300)  # beside a long form, which takes hours


def number(name: str, *, short: int, long: int | None = None) -> int:
    """`TZFS_<name>` where it is set, else that of the tier; without `long` they have the same."""
    return int(os.environ.get(f"TZFS_{name}", short if long is None or not SLOW else long))
