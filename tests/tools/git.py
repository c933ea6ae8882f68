"""git: a repository with a history is cloned, worked in, packed and checked in full."""

from __future__ import annotations

import random
from pathlib import Path

from tests.tools.programs import run


def make_repository(where: Path, *, files: int = 400, commits: int = 12) -> None:
    """A repository with text, binary, executable and linked files, branches, a merge and a tag; the same every time."""
    random_ = random.Random(1)
    where.mkdir()
    run("git", "init", "-q", "-b", "main", cwd=where)
    for number in range(files):
        path = where / f"directory-{number % 17}" / f"file-{number:04d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{random_.random()}\n" for _ in range(random_.randrange(1, 60))))
    (where / "binary").write_bytes(random_.randbytes(700_000))
    (where / "script.sh").write_text("#!/bin/sh\necho works\n")
    (where / "script.sh").chmod(0o755)
    (where / "link").symlink_to("directory-0/file-0000.txt")
    for commit in range(commits):
        for _ in range(10):
            number = random_.randrange(files)
            with open(where / f"directory-{number % 17}" / f"file-{number:04d}.txt", "a") as file:
                file.write(f"commit {commit}\n")
        run("git", "add", "-A", cwd=where)
        run("git", "commit", "-q", "-m", f"commit {commit}", cwd=where)
    run("git", "checkout", "-q", "-b", "topic", "HEAD~3", cwd=where)
    (where / "topic.txt").write_text("topic\n")
    run("git", "add", "-A", cwd=where)
    run("git", "commit", "-q", "-m", "topic", cwd=where)
    run("git", "checkout", "-q", "main", cwd=where)
    run("git", "merge", "-q", "--no-ff", "-m", "merge", "topic", cwd=where)
    run("git", "tag", "-a", "-m", "tag", "v1", cwd=where)


def scenario(directory: Path) -> None:
    """Makes a repository there, clones it without shortcuts, works in the clone, pushes back, and checks both."""
    origin, clone = directory / "origin", directory / "clone"
    make_repository(origin)
    run("git", "clone", "-q", "--no-local", origin, clone, cwd=directory)
    assert run("git", "rev-parse", "HEAD", cwd=clone) == run("git", "rev-parse", "HEAD", cwd=origin)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "fsck", "--full", "--strict", cwd=clone)

    (clone / "directory-1" / "file-0001.txt").write_text("changed\n")
    (clone / "directory-2" / "file-0002.txt").unlink()
    (clone / "directory-3").rename(clone / "moved")
    (clone / "new").write_text("new\n")
    changed = run("git", "status", "--porcelain", "-uall", cwd=clone).splitlines()
    assert " M directory-1/file-0001.txt" in changed
    assert " D directory-2/file-0002.txt" in changed
    assert "?? new" in changed
    run("git", "stash", "-q", "-u", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "stash", "pop", "-q", cwd=clone)
    run("git", "checkout", "-q", "-b", "work", cwd=clone)
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-q", "-m", "work", cwd=clone)
    run("git", "push", "-q", "origin", "work", cwd=clone)
    for revision in ("v1", "HEAD~5", "work"):
        run("git", "checkout", "-q", revision, cwd=clone)
        assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "worktree", "add", "-q", directory / "tree", "main", cwd=clone)
    run("git", "gc", "-q", "--prune=now", cwd=clone)
    for repository in (origin, clone, directory / "tree"):
        run("git", "fsck", "--full", "--strict", cwd=repository)
    assert run("git", "rev-parse", "work", cwd=origin) == run("git", "rev-parse", "work", cwd=clone)
