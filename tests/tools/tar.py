"""tar: a real source tree is unpacked, compared with the archive, packed again and unpacked on the local disk."""

from __future__ import annotations

from pathlib import Path

from tests.tools.programs import run
from tests.tools.trees import make_tree


def scenario(directory: Path, outside: Path) -> None:
    """`outside` is a folder on the local disk."""
    source = make_tree(outside / "source")
    pack = ("tar", "--format=pax", "--sparse", "--sort=name")
    run(*pack, "-cf", outside / "first.tar", "-C", source, ".", cwd=outside)
    inside = directory / "inside"
    inside.mkdir()
    run("tar", "-xpf", outside / "first.tar", "-C", inside, cwd=outside)
    run("tar", "-df", outside / "first.tar", "-C", inside, cwd=outside)
    run(*pack, "-czf", directory / "second.tar.gz", "-C", inside, ".", cwd=outside)
    back = outside / "back"
    back.mkdir()
    run("tar", "-xpzf", directory / "second.tar.gz", "-C", back, cwd=outside)
    run("tar", "-df", outside / "first.tar", "-C", back, cwd=outside)
    assert run("tar", "-tf", outside / "first.tar", cwd=outside) == run(
        "tar", "-tzf", directory / "second.tar.gz", cwd=outside
    )
    difference = run("rsync", "-anHc", "--delete", "--itemize-changes", f"{source}/", f"{inside}/", cwd=outside)
    assert difference == "", difference[:2000]
