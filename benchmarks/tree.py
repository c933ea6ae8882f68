"""A real tree to unpack and to work in: Python's own library, committed to git, as a tar file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.workloads import GIT, GIT_ENVIRONMENT

FILES: Final = 5000


def make(folder: Path, *, files: int = FILES) -> Path:
    """A tar file in `folder` that holds `tree/`: about `files` sources of Python's library, and `.git`."""
    tree = folder / "tree"
    library = Path(sysconfig.get_path("stdlib"))
    sources = [
        path
        for path in sorted(library.rglob("*"))
        if path.is_file() and path.suffix in {".py", ".txt", ".pem", ".cfg"} and "site-packages" not in path.parts
    ][:files]
    copied = 0
    for number in count():
        for source in sources:
            if copied >= files:
                break
            target = tree / f"copy{number}" / source.relative_to(library)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied += 1
        if copied >= files:
            break
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "the tree"]):
        subprocess.run([*GIT, *words], cwd=tree, env=GIT_ENVIRONMENT, check=True)
    archive = folder / "tree.tar"
    subprocess.run(["tar", "cf", archive, "-C", folder, "tree"], check=True)
    shutil.rmtree(tree)
    os.sync()
    return archive
