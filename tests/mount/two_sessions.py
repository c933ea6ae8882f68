"""Mounts a filesystem in this process twice, one session after the other; prints what a client saw of each.

python -m tests.mount.two_sessions STORE NAME DIRECTORY
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tzfs.mount import daemon

CLIENT = """
import os, subprocess, sys
top = sys.argv[1]
name = os.path.join(top, "file")
os.makedirs(os.path.join(top, "dir"), exist_ok=True)
for size in (1 << 20, 1 << 17, 3):
    with open(name, "wb", buffering=0) as file:
        file.write(b"x" * size)
        for number in range(100):
            path = os.path.join(top, "dir", str(number))
            os.close(os.open(path, os.O_CREAT | os.O_RDWR))
            os.close(os.open(path, os.O_RDWR))
            os.unlink(path)
    assert os.path.getsize(name) == size
subprocess.run(["umount", top], check=True)  # not `tzfs umount`, which waits for this process's parent to end
"""


def main() -> None:
    store, name, where = sys.argv[1:]
    codes, clients = [], []
    for _ in range(2):

        def ready() -> None:
            clients.append(subprocess.Popen([sys.executable, "-c", CLIENT, where]))

        daemon.serve(Path(store), name, Path(where), daemon.MountOptions(), ready)
        codes.append(clients[-1].wait())
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
