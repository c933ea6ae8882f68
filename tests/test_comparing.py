"""Diffs, patches and versions through the library, and what a patch says: git itself applies it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.test_diff import line
from tzfs import comparing, patch
from tzfs.errors import Busy, InvalidArgument, NotFound
from tzfs.filesystem import FileSystem
from tzfs.management import Store, open_store
from tzfs.names import parse_filesystem, parse_snapshot
from tzfs.tree import Tree


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as store:
        store.create("ws")
        yield store


def told(store: Store, older: str, newer: str | None = None, path: str = "/") -> list[str]:
    return [line(found) for found in comparing.diff(store, older, newer, path)]


def test_between_snapshots_and_to_what_is_now(store: Store) -> None:
    with store.open("ws") as fs:
        fs.mkdir("/d")
        fs.write_bytes("/d/f", b"1")
        fs.snapshot("a")
        fs.write_bytes("/d/f", b"2")
        fs.snapshot("b")
        fs.rename("/d", "/e")
        assert [line(found) for found in fs.diff("a")] == ["M / mtime", "R /d /e", "M /e/f contents,mtime"]
        assert [line(found) for found in fs.diff("a", "b")] == ["M /d/f contents,mtime"]
        assert [line(found) for found in fs.diff("a", path="e/f")] == ["M /e/f contents,mtime"]
        assert told(store, "ws@a", "@b") == ["M /d/f contents,mtime"]  # of snapshots, whoever has it open
        with pytest.raises(Busy):
            told(store, "ws@a")
    assert told(store, "ws@a") == told(store, "ws@a", "ws") == ["M / mtime", "R /d /e", "M /e/f contents,mtime"]
    assert told(store, "ws@b", path="/e") == ["R /d /e"]
    names = parse_snapshot("ws@a"), parse_filesystem("ws")
    assert len(list(comparing.diff(store, *names))) == 3
    store.archive("ws")
    assert told(store, "ws@b") == ["M / mtime", "R /d /e"]


def test_what_cannot_be_compared_is_refused(store: Store) -> None:
    store.create("other")
    for name in ("ws@a", "ws@b", "other@c"):
        store.snapshot(name)
    for older, newer, path, error in (
        ("ws@b", "ws@a", "/", InvalidArgument),
        ("ws@a", "ws@a", "/", InvalidArgument),
        ("ws@a", "other@c", "/", InvalidArgument),
        ("ws@a", "other", "/", InvalidArgument),
        ("ws", "ws@a", "/", InvalidArgument),
        ("ws@none", None, "/", NotFound),
        ("ws@a", "@none", "/", NotFound),
        ("none@a", None, "/", NotFound),
        ("ws@a", None, "/none", NotFound),
    ):
        with pytest.raises(error):
            told(store, older, newer, path)


def test_a_diff_that_is_not_taken_to_its_end_lets_go(store: Store) -> None:
    with store.open("ws") as fs:
        fs.snapshot("a")
        for i in range(5):
            fs.write_bytes(f"/{i}", b"")
        found = fs.diff("a")
        assert next(found).path == "/"
        fs.write_bytes("/later", b"")
        assert [each.path for each in found] == [f"/{i}" for i in range(5)]
        found = fs.diff("a")
        next(found)
    with pytest.raises(InvalidArgument, match="closed"):
        next(found)
    assert told(store, "ws@a")[-1] == "+ /later"


def test_versions_of_a_file_that_is_gone(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_bytes("/f", b"1")
        fs.snapshot("a")
        fs.write_bytes("/f", b"22")
        fs.snapshot("b")
        fs.snapshot("c")
        fs.unlink("/f")
        assert [(v.first, v.last, v.size) for v in fs.versions("f")] == [("a", "a", 1), ("b", "c", 2)]
        assert len(comparing.versions(store, "ws", "/f")) == 2  # as last committed
    assert [(v.first, v.last, v.size) for v in comparing.versions(store, "ws", "/f")] == [("a", "a", 1), ("b", "c", 2)]
    with pytest.raises(NotFound):
        comparing.versions(store, "ws", "/none")


# -- patches ---------------------------------------------------------------------------------------------------------


def lines(fs: FileSystem, store: Store) -> bytes:
    fs.close()
    return b"".join(comparing.patch(store, "ws@a"))


def test_a_patch_is_as_git_writes_it(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_text("/f", "1\n2\n3\n")
        fs.write_text("/gone", "gone")
        fs.write_bytes("/binary", b"\0")
        fs.write_text("/moved", "m\n")
        fs.snapshot("a")
        fs.write_text("/f", "1\n2!\n3\n")
        fs.unlink("/gone")
        fs.write_bytes("/binary", b"\1\0")
        fs.rename("/moved", '/a "q"\n')
        fs.symlink("f", "/link")
        fs.mkdir("/directory")
        text = lines(fs, store)
    assert (
        text.decode()
        == r"""diff --git a/f b/f
--- a/f
+++ b/f
@@ -1,3 +1,3 @@
 1
-2
+2!
 3
diff --git a/gone b/gone
deleted file mode 100644
--- a/gone
+++ /dev/null
@@ -1 +0,0 @@
-gone
\ No newline at end of file
diff --git a/binary b/binary
Binary files a/binary and b/binary differ
diff --git a/moved "b/a \"q\"\n"
rename from moved
rename to "a \"q\"\n"
diff --git a/link b/link
new file mode 120777
--- /dev/null
+++ b/link
@@ -0,0 +1 @@
+f
\ No newline at end of file
"""
    )


def test_what_is_large_is_named_and_not_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch, "PATCH_BYTES_MAX", 1000)
    monkeypatch.setattr(patch, "PATCH_LINES_MAX", 100)
    with store.open("ws") as fs:
        fs.snapshot("a")
        fs.write_bytes("/bytes", b"x" * 1001)
        fs.write_bytes("/lines", b"\n" * 101)
        fs.write_bytes("/all", b"\n" * 100)
        text = lines(fs, store).decode().splitlines()
    assert [each for each in text if "large" in each] == [
        f"Files /dev/null and b/{name} differ: too large to compare line by line" for name in ("bytes", "lines")
    ]
    assert text.count("+") == 100


def test_git_makes_of_the_old_tree_the_new_one(store: Store, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with store.open("ws") as fs:
        fs.mkdir("/src")
        for i in range(8):
            fs.write_text(f"/src/{i}", "".join(f"{i} {n}\n" for n in range(100)))
        fs.snapshot("a")
        with store.open_snapshot("ws@a") as then:
            export(then, tree)
        fs.write_text("/src/0", "0 0\n" + "".join(f"0 {n}\n" for n in range(90)))
        fs.write_text("/src/1.new", "another\n")
        fs.rename("/src/1.new", "/src/1")  # as editors save
        fs.unlink("/src/2")
        fs.rename("/src/3", "/src/three")
        fs.write_text("/src/three", "and changed\n")
        fs.chmod("/src/4", 0o755)
        fs.mkdir("/new")
        fs.write_text("/new/ä ö", "no newline at the end")
        fs.rename("/src/5", "/new/five")
        text = lines(fs, store)
    (tmp_path / "patch").write_bytes(text)
    assert text.count(b"deleted file") == 1
    done = subprocess.run(
        ["git", "apply", tmp_path / "patch"],
        cwd=tree,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": os.fspath(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    now = tmp_path / "now"
    now.mkdir()
    with store.open_readonly("ws") as head:
        export(head, now)
    assert contents(tree) == contents(now)


def export(tree: Tree, to: Path) -> None:
    for here, directories, files in tree.walk("/"):
        for name in directories:
            (to / here.lstrip("/") / name).mkdir()
        for name in files:
            path = f"{here}/{name}"
            (to / path.lstrip("/")).write_bytes(tree.read_bytes(path))
            (to / path.lstrip("/")).chmod(tree.stat(path).mode & 0o777)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        os.fspath(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mode & 0o100)
        for p in folder.rglob("*")
        if p.is_file()
    }
