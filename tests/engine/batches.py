"""Batches so small that a file of a few chunks, and a change of a few names, take several: for tests of what happens in
between."""

from __future__ import annotations

import pytest

from tzfs import limits
from tzfs.engine import diff, staged_change


def small_batches(patch: pytest.MonkeyPatch, *, staging: int = 3) -> None:
    """Of all background work, staging and diffs."""
    patch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 2)
    patch.setattr(limits, "RECLAIM_BATCH_CHUNKS", 3)
    patch.setattr(limits, "STAGING_BATCH_KEYS", staging)
    patch.setattr(limits, "DESTROY_BATCH_ROWS", 3)
    patch.setattr(limits, "FLATTEN_BATCH_KEYS", 5)
    patch.setattr(staged_change, "LISTED", 2)
    patch.setattr(diff, "BATCH", 3)
    patch.setattr(diff, "ROWS_BETWEEN", 2)
