"""A real source tree, Python's own library, with what trees have besides: links, odd names, modes, holes."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def make_tree(where: Path) -> Path:
    """A copy of the standard library's sources with symlinks, hardlinks, a sparse file, odd names and modes added."""
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        where,
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages", "config-*", "test", "tests"),
    )
    (where / "link-to-file").symlink_to("os.py")
    (where / "link-to-directory").symlink_to("json")
    (where / "link-to-nothing").symlink_to("x" * 300)
    (where / "odd").mkdir()
    for number in range(30):
        os.link(where / "os.py", where / "odd" / f"os-{number}.py")
        os.link(where / "link-to-file", where / "odd" / f"link-{number}", follow_symlinks=False)
    for number, name in enumerate((b"\xff\xfe", b"new\nline", b"-rf", b" ", b"\xe6\x96\x87", b"n" * 255)):
        path = os.fsencode(where / "odd") + b"/" + name
        with open(path, "wb") as file:
            file.write(name * (number + 1))
        os.utime(path, ns=(1_600_000_000_123_456_789 + number, 1_600_000_000_987_654_321 + number))
    for mode in (0o400, 0o444, 0o640, 0o755, 0o4755, 0o2750):
        (where / "odd" / f"mode-{mode:o}").write_bytes(b"x" * mode)
        (where / "odd" / f"mode-{mode:o}").chmod(mode)
    with open(where / "odd" / "sparse", "wb") as sparse:
        sparse.truncate(40 << 20)
        os.pwrite(sparse.fileno(), b"in the middle", 20 << 20)
    os.mkfifo(where / "odd" / "fifo")
    (where / "odd" / "empty").mkdir(mode=0o700)
    (where / "odd" / "sticky").mkdir()
    (where / "odd" / "sticky").chmod(0o1777)
    return where
