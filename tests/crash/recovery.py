"""The program that is recorded after a power cut: a writer opens the folder, does what is left to do, and ends.

python -m tests.crash.recovery FOLDER MARKS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.engine.batches import small_batches
from tests.engine.world import GUID
from tzfs.engine.engine import Settings
from tzfs.opening import Writer
from tzfs.store.lease import Lease


def recovered(folder: Path) -> Writer:
    """A writer of the folder, in which no receive is to go on."""
    settings = Settings(chunk_shift=12, dirty_bytes_max=1 << 20)
    writer = Writer(folder, GUID, lease=Lease.acquire(folder, info={}), settings=settings, receiving=True)
    if not writer.engine.cloned and (receiver := writer.engine.receiver()).partial is not None:
        receiver.cancel()
    return writer


def main(folder: Path, marks: Path) -> None:
    small_batches(pytest.MonkeyPatch())
    out = os.open(marks, os.O_WRONLY)
    os.write(out, b"{}")
    with recovered(folder) as writer:
        while writer.engine.background_step():
            writer.engine.commit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
