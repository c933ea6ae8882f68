"""An error at any step of creating, opening, viewing or snapshotting through the library gives back all that was taken.

The steps are not listed here: a run without errors counts which failpoints the act passes, and how often, and then each
of those hits answers an error once.  (A mount's own steps: tests/mount/test_lifecycle.py; a command's on the catalog:
tests/catalog/test_crash.py.)
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.dying import copied
from tests.noise import noise
from tzfs import comparing, failpoints
from tzfs.errors import Exists, TzfsError
from tzfs.management import Store, open_store

CONTENTS = noise(10_240)  # some of it in segments
SYNC_AND_DIE = """
import os, sys
from tzfs.management import open_store
with open_store(sys.argv[1]) as store, store.open("ws") as fs:
    for i in range(3):
        fs.write_bytes(f"/logged-{i}", b"x" * 5000)
        fs.sync()
    os._exit(0)
"""


def _create(store: Store) -> None:
    store.create("new")


def _open(store: Store) -> None:
    with store.open("ws") as fs:
        assert fs.read_bytes("/file") == CONTENTS
        fs.write_bytes("/more", CONTENTS)


def _view(store: Store) -> None:
    with store.open_snapshot("ws@s") as view:
        assert view.read_bytes("/file") == CONTENTS


def _read_only(store: Store) -> None:
    with store.open_readonly("ws") as tree:
        assert tree.read_bytes("/file") == CONTENTS


def _diff(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_bytes("/file", CONTENTS[1:])
    with suppress(Exists):  # it is done again after an error
        store.snapshot("ws@t")
    for newer in (None, "@t"):
        assert b"Binary files a/file and b/file differ\n" in list(comparing.patch(store, "ws@s", newer))
    assert comparing.versions(store, "ws", "/file")[0].last == "s"
    with store.open("ws") as fs:
        fs.write_bytes("/file", CONTENTS)  # as every act leaves it


def _snapshot(store: Store) -> None:
    store.snapshot("ws@new")


ACTS: dict[str, Callable[[Store], None]] = {
    "create": _create,
    "open": _open,
    "open after a crash": _open,
    "view": _view,
    "view after a crash": _view,
    "read only": _read_only,
    "snapshot": _snapshot,
    "diff": _diff,
}


@pytest.fixture
def store_path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "store"
    with open_store(path) as store:
        store.create("ws")
        with store.open("ws") as fs:
            fs.write_bytes("/file", CONTENTS)
        store.snapshot("ws@s")
        if request.node.callspec.params["act"] == "read only":
            store.archive("ws")
    return path


def crash(path: Path) -> None:
    """Leaves synced changes in the redo log, as a process does that was killed."""
    subprocess.run([sys.executable, "-c", SYNC_AND_DIE, path], check=True)


def held(below: Path) -> list[str]:
    """What this process has of the store: descriptors, locks, LMDB readers, and threads."""
    # Trio keeps its worker threads for a while, and lets them go when it likes: those of other tests too.
    found = [f"thread {t.name}" for t in threading.enumerate() if not t.name.startswith("Trio thread")]
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith(os.fspath(below)):
            found.append(f"descriptor of {target}")
    pid, inodes = os.getpid(), {f"{p.stat().st_ino}": p for p in below.rglob("*")}
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, _, owner, file, *_ = line.replace("-> ", "").split()
        if int(owner) == pid and (path := inodes.get(file.rpartition(":")[2])) is not None:
            found.append(f"{kind} lock of {path}")
    for line in Path("/proc/self/maps").read_text().splitlines():
        if os.fspath(below) in line:
            found.append(f"mapping of {line.split()[-1]}")
    return sorted(found)


def steps(path: Path, act: str) -> list[tuple[str, int]]:
    """Each hit of each failpoint that the act passes from the opening of the store on."""
    with failpoints.counting() as counts, open_store(path) as store:
        ACTS[act](store)
    with open_store(path) as store, store.open_readonly("ws") if act == "read only" else store.open("ws"):
        kinds = {what.split()[0] for what in held(path)}
    assert kinds >= {"thread", "descriptor", "FLOCK", "mapping"}, "it does not see what is held"
    return [(point, n) for point, hits in counts.items() for n in range(min(hits, 3))]


@pytest.mark.parametrize("act", list(ACTS))
def test_after_an_error_at_any_step_all_is_given_back_and_trying_again_works(
    store_path: Path, tmp_path: Path, act: str
) -> None:
    def fresh(number: int) -> Path:
        path = copied(store_path, tmp_path / f"{number}")
        if act.endswith("after a crash"):
            crash(path)
        return path

    passed = steps(fresh(0), act)
    assert len(passed) > (2 if act.startswith("view") else 5), passed
    failed = 0
    for number, (point, nth) in enumerate(passed, 1):
        path = fresh(number)
        before = held(path)
        failpoints.arm(point, "error:EIO", after=nth)
        try:
            with open_store(path) as store:
                ACTS[act](store)
        except (TzfsError, OSError):
            failed += 1
        finally:
            failpoints.disarm_all()
        assert held(path) == before, (point, nth)
        with open_store(path) as store:
            if act == "create" and [f for f in store.filesystems() if str(f.name) == "new"]:
                continue  # the error came when it was done
            if act == "snapshot" and "new" in [s.name.snapshot for s in store.snapshots("ws")]:
                continue
            ACTS[act](store)
            if act == "open after a crash":
                with store.open("ws") as fs:
                    assert [fs.read_bytes(f"/logged-{i}") for i in range(3)] == [b"x" * 5000] * 3
        assert held(path) == before, (point, nth)
    assert failed > len(passed) // 2
