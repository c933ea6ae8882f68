"""Leases and view holds, between processes: taken once, named, gone with their holder however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path

import pytest

from tests.store.stores import fds_below, python, standing
from tzfs import failpoints
from tzfs.errors import Busy, Displaced, NotFound, StoreError
from tzfs.store.lease import (
    LOCK_FILE,
    VIEWS_FOLDER,
    Lease,
    ViewHold,
    beginning_to_read,
    live_views,
    no_new_readers,
)

HOLD = """
import sys
from tzfs.store.lease import Lease
lease = Lease.acquire(sys.argv[1], info={"mountpoint": "/somewhere", "socket": "/run/socket"})
print("ready", flush=True)
sys.stdin.read()
lease.release()
"""

VIEW = """
import sys
from tzfs.store.lease import ViewHold
hold = ViewHold.acquire(sys.argv[1], name="before", epoch=7)
print("ready", flush=True)
sys.stdin.read()
hold.release()
"""


def test_a_lease_is_held_once_and_says_by_whom(tmp_path: Path) -> None:
    assert Lease.holder(tmp_path) is None
    with Lease.acquire(tmp_path, info={"mountpoint": "/here", "socket": None}) as lease:
        told = Lease.holder(tmp_path)
        assert told is not None
        assert told["pid"] == os.getpid()
        assert told["mountpoint"] == "/here"
        assert isinstance(told["started"], int)
        with pytest.raises(Busy, match=rf"pid {os.getpid()}, mounted at /here") as caught:
            Lease.acquire(tmp_path, info={})
        assert caught.value.holders == (f"pid {os.getpid()}, mounted at /here",)
        assert lease.held
    assert not lease.held
    lease.release()
    assert Lease.holder(tmp_path) is None
    Lease.acquire(tmp_path, info={}).release()
    assert fds_below(tmp_path) == []


def test_another_process_holds_it_until_it_ends(tmp_path: Path) -> None:
    with standing(HOLD, str(tmp_path)) as other:
        told = Lease.holder(tmp_path)
        assert told is not None
        assert told["pid"] == other.pid
        assert told["socket"] == "/run/socket"
        with pytest.raises(Busy, match=f"pid {other.pid}"):
            Lease.acquire(tmp_path, info={})
        assert other.stdin is not None
        other.stdin.close()
        other.wait()
        Lease.acquire(tmp_path, info={}).release()
        other.stdin = None


def test_kill_9_gives_the_lease_back(tmp_path: Path) -> None:
    with standing(HOLD, str(tmp_path)) as other:
        other.kill()
        other.wait()
    assert (tmp_path / LOCK_FILE).read_text() != "", "what the dead holder said is still there"
    assert Lease.holder(tmp_path) is None
    Lease.acquire(tmp_path, info={}).release()


def test_the_lock_file_stays_and_is_for_its_owner_only(tmp_path: Path) -> None:
    Lease.acquire(tmp_path, info={}).release()
    first = (tmp_path / LOCK_FILE).stat()
    Lease.acquire(tmp_path, info={}).release()
    assert (tmp_path / LOCK_FILE).stat().st_ino == first.st_ino
    assert stat.S_IMODE(first.st_mode) == 0o600


def test_what_a_holder_says_can_be_changed(tmp_path: Path) -> None:
    with Lease.acquire(tmp_path, info={"mountpoint": "/a" * 500}) as lease:
        lease.update({"mountpoint": "/b", "socket": "/s"})
        told = Lease.holder(tmp_path)
        assert told is not None
        assert (told["mountpoint"], told["socket"], told["pid"]) == ("/b", "/s", os.getpid())
        lease.update({"mountpoint": "/" + "c" * 100_000})
        assert Lease.holder(tmp_path) == {"pid": os.getpid()}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]\n",
        b"\xff\n",
        b"[" * 9_000,
        b'{"pid": "x"}',
        b'{"pid": 1, "socket": []}',
        b'{"pid": 1, "socket": "\\ud800"}',
    ],
)
def test_what_cannot_be_understood_does_not_matter(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    assert Lease.holder(tmp_path) is None
    with (tmp_path / LOCK_FILE).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert Lease.holder(tmp_path) in ({}, {"pid": 1})
        with pytest.raises(Busy):
            Lease.acquire(tmp_path, info={})
    Lease.acquire(tmp_path, info={}).release()


def test_looking_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared lock of somebody who looks only delays an acquisition."""
    Lease.acquire(tmp_path, info={}).release()
    looking = (tmp_path / LOCK_FILE).open("rb")
    fcntl.flock(looking, fcntl.LOCK_SH)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            looking.close()

    monkeypatch.setattr("tzfs.store.lease.time.sleep", wait)
    Lease.acquire(tmp_path, info={}).release()
    assert len(waits) == 3


def test_a_folder_that_is_gone_has_no_lease(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Lease.acquire(tmp_path / "gone", info={})
    assert Lease.holder(tmp_path / "gone") is None


def test_a_lock_on_a_folder_that_was_removed_meanwhile_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "fs"
    folder.mkdir()
    (folder / LOCK_FILE).touch()
    original = fcntl.flock

    def removed(fd: int, operation: int) -> None:
        (folder / LOCK_FILE).unlink()
        folder.rmdir()
        pytest.MonkeyPatch.undo(patch)
        original(fd, operation)

    patch = pytest.MonkeyPatch()
    patch.setattr(fcntl, "flock", removed)
    with pytest.raises(NotFound):
        Lease.acquire(folder, info={})
    assert fds_below(tmp_path) == []


def test_a_forked_child_does_not_keep_the_lease_alive(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path, info={})
    hold = ViewHold.acquire(tmp_path, name="s", epoch=1)
    end, start = os.pipe()
    said, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(start)
        clean = not lease.held and not hold.held and fds_below(tmp_path) == []
        lease.release()
        hold.release()
        os.write(say, b"x")
        os.read(end, 1)
        os._exit(0 if clean else 1)
    os.close(end)
    os.read(said, 1)
    assert Lease.holder(tmp_path) is not None
    assert len(live_views(tmp_path)) == 1
    lease.release()
    hold.release()
    assert Lease.holder(tmp_path) is None, "while the child still runs"
    assert live_views(tmp_path) == []
    for fd in (start, said, say):
        os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_program_started_by_the_holder_does_not_keep_the_lease_alive(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path, info={})
    with standing("import sys; print('ready', flush=True); sys.stdin.read()"):
        lease.release()
        assert Lease.holder(tmp_path) is None


# -- views -----------------------------------------------------------------------------------------------------------


def test_views_are_listed_while_their_processes_live(tmp_path: Path) -> None:
    assert live_views(tmp_path) == []
    with standing(VIEW, str(tmp_path)) as one, standing(VIEW, str(tmp_path)) as two:
        mine = ViewHold.acquire(tmp_path, name="mine", epoch=9)
        views = live_views(tmp_path)
        assert {(v["pid"], v["name"], v["epoch"]) for v in views} == {
            (one.pid, "before", 7),
            (two.pid, "before", 7),
            (os.getpid(), "mine", 9),
        }
        mine.release()
        mine.release()
        one.kill()
        one.wait()
        assert [v["pid"] for v in live_views(tmp_path)] == [two.pid]
        assert len(list((tmp_path / VIEWS_FOLDER).iterdir())) == 1, "the file of the dead one was removed"
    assert live_views(tmp_path) == []
    assert list((tmp_path / VIEWS_FOLDER).iterdir()) == []


def test_one_process_may_hold_many_views(tmp_path: Path) -> None:
    holds = [ViewHold.acquire(tmp_path, name=f"s{i}", epoch=i) for i in range(10)]
    assert sorted(str(v["name"]) for v in live_views(tmp_path)) == [f"s{i}" for i in range(10)]
    with holds.pop() as last:
        assert last.held
    for hold in holds:
        hold.release()
    assert live_views(tmp_path) == []
    assert fds_below(tmp_path) == []


def test_a_view_whose_file_was_taken_for_a_dead_ones_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcntl.flock
    looked: list[int] = []

    def swept(fd: int, operation: int) -> None:
        if not looked:
            looked.append(fd)
            assert live_views(tmp_path) == []
        original(fd, operation)

    monkeypatch.setattr(fcntl, "flock", swept)
    hold = ViewHold.acquire(tmp_path, name="s", epoch=1)
    monkeypatch.undo()
    assert [v["name"] for v in live_views(tmp_path)] == ["s"]
    hold.release()
    assert fds_below(tmp_path) == []


def test_a_view_of_a_filesystem_that_is_gone_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        ViewHold.acquire(tmp_path / "gone", name="s", epoch=1)


@pytest.mark.parametrize("linked", [".", VIEWS_FOLDER])
def test_no_link_is_followed_to_a_lock_or_a_view(tmp_path: Path, linked: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "fs"
    (outside / VIEWS_FOLDER).mkdir(parents=True)
    view = f"1-{'0' * 16}"
    for name in (LOCK_FILE, "shadow", view, f"{VIEWS_FOLDER}/{view}"):
        (outside / name).write_text("of somebody else")
    before = standing_in(outside)
    if linked == ".":
        folder.symlink_to(outside)
        with pytest.raises(Displaced, match=f"{folder}: not a folder"):
            Lease.acquire(folder, info={})
        with pytest.raises(Displaced, match=f"{folder}: not a folder"):
            Lease.holder(folder)
    else:
        folder.mkdir()
        (folder / VIEWS_FOLDER).symlink_to(outside)
    with pytest.raises(Displaced, match="not a folder, or a link to one"):
        live_views(folder)
    with pytest.raises(Displaced, match="not a folder, or a link to one"):
        ViewHold.acquire(folder, name="s", epoch=1)
    for gate in (beginning_to_read, no_new_readers):
        with pytest.raises(Displaced, match="not a folder, or a link to one"), gate(folder):
            pass
    assert standing_in(outside) == before
    assert fds_below(tmp_path) == []


def standing_in(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_what_is_no_view_stays_among_them(tmp_path: Path) -> None:
    views = tmp_path / VIEWS_FOLDER
    views.mkdir()
    others = ["notes", "1-0123", "x-0123456789abcdef", "1-0123456789ABCDEF", "1-0123456789abcdef.old"]
    for name in [*others, "1-0123456789abcdef"]:
        (views / name).write_text("{}")
    with (views / "notes").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert live_views(tmp_path) == []
    assert sorted(path.name for path in views.iterdir()) == sorted(others), "but for the dead reader's"


def test_view_files_are_one_line_of_json_for_their_owner_only(tmp_path: Path) -> None:
    hold = ViewHold.acquire(tmp_path, name="näme", epoch=3)
    told = json.loads(hold.path.read_text())
    assert (told["name"], told["epoch"], told["pid"]) == ("näme", 3, os.getpid())
    assert stat.S_IMODE(hold.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(hold.path.parent.stat().st_mode) == 0o700
    hold.release()


# -- failures --------------------------------------------------------------------------------------------------------

POINTS = ("lease.open", "lease.lock", "lease.info", "lease.release", "view.create", "view.lock", "view.release")


def life(directory: Path) -> None:
    Lease.acquire(directory, info={}).release()
    ViewHold.acquire(directory, name="s", epoch=1).release()


def test_the_points_are_those_that_are_declared(tmp_path: Path) -> None:
    with failpoints.counting() as counts:
        life(tmp_path)
    assert set(counts) == set(POINTS)
    assert set(POINTS) == {name for name in failpoints.KNOWN if name.split(".")[0] in ("lease", "view")}


@pytest.mark.parametrize("point", POINTS)
def test_after_a_failure_at_any_step_no_lock_and_no_descriptor_is_left(tmp_path: Path, point: str) -> None:
    failpoints.arm(point, "error:EIO")
    if point.endswith(".release"):
        life(tmp_path)
    else:
        with pytest.raises(StoreError):
            life(tmp_path)
    assert fds_below(tmp_path) == []
    assert Lease.holder(tmp_path) is None
    assert live_views(tmp_path) == []
    life(tmp_path)


@pytest.mark.parametrize("point", POINTS)
def test_after_a_crash_at_any_step_no_lock_is_left(tmp_path: Path, point: str) -> None:
    code = "import pathlib, sys; from tests.store.test_lease import life; life(pathlib.Path(sys.argv[1]))"
    done = python(code, str(tmp_path), environment={failpoints.ENVIRONMENT: f"{point}=crash"})
    assert done.returncode == failpoints.CRASH_STATUS
    assert Lease.holder(tmp_path) is None
    assert live_views(tmp_path) == []
    life(tmp_path)
