"""rsync: a real source tree goes in and comes out again with its links, modes, owners and times, and no difference."""

from __future__ import annotations

from pathlib import Path

from tests.tools.programs import run
from tests.tools.trees import make_tree


def _assert_equal(one: Path, two: Path, cwd: Path) -> None:
    for options in ("-anHc", "-an"):
        difference = run("rsync", options, "--delete", "--itemize-changes", f"{one}/", f"{two}/", cwd=cwd)
        assert difference == "", difference[:2000]


def scenario(directory: Path, outside: Path) -> None:
    """`outside` is a folder on the local disk: the tree is made there, and comes back there."""
    source = make_tree(outside / "source")
    inside = directory / "inside"
    run("rsync", "-aH", "--checksum", f"{source}/", f"{inside}/", cwd=outside)
    _assert_equal(source, inside, outside)
    run("rsync", "-aH", "--checksum", f"{inside}/", f"{outside / 'back'}/", cwd=outside)
    _assert_equal(source, outside / "back", outside)
    run("rsync", "-aHS", "--inplace", f"{inside}/", f"{directory / 'second'}/", cwd=outside)
    _assert_equal(inside, directory / "second", outside)
    (source / "os.py").write_bytes(b"changed for all its names\n")
    (source / "odd" / "empty").rmdir()
    run("rsync", "-aH", "--checksum", "--delete", f"{source}/", f"{inside}/", cwd=outside)
    _assert_equal(source, inside, outside)
