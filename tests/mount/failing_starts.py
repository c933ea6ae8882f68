"""Starts a mount in this process once for each failpoint named, and then with none; prints what each start left behind.

python -m tests.mount.failing_starts STORE NAME DIRECTORY POINT...
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

from tzfs import failpoints
from tzfs.errors import TzfsError
from tzfs.mount import daemon, mountpoint


def held(where: Path) -> set[str]:
    """What this process holds of what a start takes."""
    found = {f"thread {thread.name}" for thread in threading.enumerate() if "trio" not in thread.name.lower()}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add(f"descriptor {name} of {os.readlink(f'/proc/self/fd/{name}')}")
    found |= {f"mount {m.path}" for m in mountpoint.mounts() if m.path == where}
    return found


def main() -> None:
    store, name, where, *points = sys.argv[1:]
    at = Path(where)
    said = []
    for point in [*points, ""]:
        if point:
            failpoints.arm(point, "error:EIO")
        before = held(at)
        error = ""
        try:
            daemon.serve(Path(store), name, at, daemon.MountOptions(), lambda: mountpoint.unmount(at, lazy=True))
        except (TzfsError, OSError) as caught:
            error = type(caught).__name__
        failpoints.disarm_all()
        said.append({"point": point, "error": error, "left": sorted(held(at) - before)})
    print(json.dumps(said))


if __name__ == "__main__":
    main()
