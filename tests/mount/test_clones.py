"""A clone of a real tree, mounted beside its origin, changed by real tools, flattened under them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.mount.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


def _same(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", one, other], check=False, capture_output=True).returncode == 0


def test_a_clone_of_a_mounted_tree_is_worked_in_and_flattened_under_it(workspace: Workspace) -> None:
    w = workspace
    mine, theirs = w.base / "mine", w.base / "theirs"
    w.tzfs("create", "first")
    origin = w.mount(name="first", where=mine)
    subprocess.run(["cp", "-r", REPOSITORY / "tzfs" / "engine", mine / "tree"], check=True)
    subprocess.run(["git", "init", "-q", mine / "tree"], check=True)
    (mine / "blob").write_bytes(bytes(range(256)) * 4000)
    (mine / "hard").hardlink_to(mine / "blob")
    w.tzfs("snapshot", "first@s")
    w.tzfs("clone", "first@s", "attempt")
    clone = w.mount(name="attempt", where=theirs)
    assert _same(mine, theirs)

    git: list[str | Path] = ["git", "-C", theirs / "tree", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], check=True)
    with (theirs / "hard").open("r+b") as file:
        file.seek(300_000)
        file.write(b"changed")
    (theirs / "tree").rename(theirs / "moved")
    (mine / "blob").unlink()
    changed = (theirs / "blob").read_bytes()
    assert changed[300_000:300_007] == b"changed"
    assert changed[:300_000] + changed[300_007:] == (mine / "hard").read_bytes()[:300_000] + changed[300_007:]
    assert not (theirs / "tree").exists()
    assert w.tzfs("get", "-H", "-o", "value", "origin", "attempt").strip() == "first@s"
    w.tzfs("check", "attempt")

    w.tzfs("flatten", "attempt")
    assert w.tzfs("get", "-H", "-o", "value", "origin", "attempt").strip() == "-"
    assert (theirs / "blob").read_bytes() == changed
    status: list[str | Path] = ["git", "-C", theirs / "moved", "status", "--porcelain"]
    assert subprocess.run(status, check=True, capture_output=True).stdout == b""
    w.unmount(origin)
    w.tzfs("destroy", "-r", "first")
    assert (theirs / "hard").read_bytes() == changed
    w.tzfs("check", "--payload", "attempt")
    w.unmount(clone)
