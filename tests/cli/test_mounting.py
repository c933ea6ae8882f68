"""mount, umount, status: by name or by directory, what is where, what has failed, what has died."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import check_words
from tests.mount.test_mountpoint import move
from tests.mount.workspace import NAME, PROJECT, Workspace
from tzfs.control import connect
from tzfs.errors import Busy
from tzfs.mount import mountpoint


def refused(workspace: Workspace, *arguments: str | Path, code: int) -> str:
    done = workspace.run(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done
    check_words(done.stderr)
    return done.stderr


def gone(workspace: Workspace, pid: int) -> None:
    """Umount has returned: the mount and its process have ended, without any further waiting."""
    assert not Path(f"/proc/{pid}/cwd").exists()
    workspace.ended(pid)
    assert mountpoint.mount_at(workspace.mnt) is None


@pytest.mark.parametrize("target", ["ws", "{mnt}", "{mnt}/", "{link}", "relative"])
def test_umount_takes_a_name_or_a_directory(workspace: Workspace, target: str) -> None:
    pid = workspace.mount()
    (workspace.mnt / "f").write_text("kept")
    link = workspace.base / "link"
    link.symlink_to(workspace.mnt)
    named = target.format(mnt=workspace.mnt, link=link)
    if target == "relative":
        named = os.path.relpath(workspace.mnt, PROJECT)
    assert workspace.tzfs("umount", named) == ""
    gone(workspace, pid)
    with workspace.mounted() as mnt:
        assert (mnt / "f").read_text() == "kept"


def test_umount_by_directory_works_from_any_store_and_waits_for_the_end(workspace: Workspace, tmp_path: Path) -> None:
    pid = workspace.mount()
    workspace.store_path, own = tmp_path / "another", workspace.store_path
    try:
        assert "ws" in refused(workspace, "umount", "ws", code=1)  # a name is of this store alone
        workspace.tzfs("umount", workspace.mnt)
    finally:
        workspace.store_path = own
    gone(workspace, pid)


def test_umount_refuses(workspace: Workspace, tmp_path: Path) -> None:
    assert refused(workspace, "umount", "ws", code=75) == "tzfs: cannot unmount ws: it is not mounted\n"
    assert refused(workspace, "umount", "ws@s", code=75) == "tzfs: cannot unmount ws@s: it is not mounted\n"
    assert "there is no such filesystem" in refused(workspace, "umount", "none", code=1)
    for path in (tmp_path, tmp_path / "none", Path("/proc")):
        assert refused(workspace, "umount", path, code=1) == (
            f"tzfs: {path}: nothing of tzfs is mounted there\nhint: tzfs status shows what is mounted\n"
        )
    assert os.path.ismount("/proc")


def test_umount_of_what_is_in_use_says_so_and_lazily_it_goes(workspace: Workspace) -> None:
    pid = workspace.mount()
    (workspace.mnt / "f").touch()
    with open(workspace.mnt / "f", "w") as file:
        assert refused(workspace, "umount", "ws", code=75) == (
            f"tzfs: {workspace.mnt}: programs are using it\nhint: leave it and close its files, or give --lazy\n"
        )
        workspace.tzfs("umount", "--lazy", "ws")
        assert mountpoint.mount_at(workspace.mnt) is None
        file.write("late")
    workspace.ended(pid)
    with workspace.mounted() as mnt:
        assert (mnt / "f").read_text() == "late"


def test_a_snapshot_mounted_twice_is_unmounted_by_directory(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@s")
    places = [workspace.base / "a", workspace.base / "b"]
    pids = [workspace.mount(name="ws@s", where=place) for place in places]
    told = refused(workspace, "umount", "ws@s", code=75)
    assert all(str(place) in told for place in places)
    assert told.endswith("hint: give the directory\n")
    workspace.tzfs("umount", places[0])
    workspace.tzfs("umount", "ws@s")
    for pid in pids:
        workspace.ended(pid)


def test_status_shows_mounts_and_what_has_died(workspace: Workspace) -> None:
    assert workspace.tzfs("status", "-H") == ""
    assert workspace.tzfs("status").split() == ["NAME", "MOUNTPOINT", "PID", "KIND", "STATE"]
    assert json.loads(workspace.tzfs("status", "--json")) == []
    pid = workspace.mount()
    workspace.tzfs("snapshot", "ws@s")
    past = workspace.base / "past"
    reader = workspace.mount(name="ws@s", where=past)
    assert workspace.tzfs("status", "-H") == (
        f"ws\t{workspace.mnt}\t{pid}\tmount\tok\nws@s\t{past}\t{reader}\tsnapshot\tok\n"
    )
    assert json.loads(workspace.tzfs("status", "--json"))[0] == {
        "name": "ws", "mountpoint": str(workspace.mnt), "pid": pid, "kind": "mount", "failed": None,
        "warnings": [], "freeing": 0,
    }  # fmt: skip
    workspace.unmount(reader)
    workspace.kill(pid)
    what = f"its process has died: tzfs umount {workspace.mnt}"
    assert workspace.tzfs("status", "-H") == f"ws\t{workspace.mnt}\t-\tdead\t{what}\n"
    workspace.tzfs("umount", "ws")
    assert workspace.tzfs("status", "-H") == ""
    assert mountpoint.mount_at(workspace.mnt) is None
    with workspace.mounted():  # the next mount takes over what the killed one has left: its socket
        pass


def test_what_has_died_is_its_own_stores_and_has_its_name_of_now(workspace: Workspace, tmp_path: Path) -> None:
    workspace.tzfs("snapshot", "ws@s")
    past = workspace.base / "past"
    for pid in (workspace.mount(), workspace.mount(name="ws@s", where=past)):
        workspace.kill(pid)
    own, copy, another = workspace.store_path, tmp_path / "copy", tmp_path / "another"
    shutil.copytree(own, copy)
    try:
        workspace.store_path = another
        workspace.tzfs("create", "ws")
        for workspace.store_path in (copy, another):
            assert workspace.tzfs("status", "-H") == ""
            assert refused(workspace, "umount", "ws", code=75) == "tzfs: cannot unmount ws: it is not mounted\n"
    finally:
        workspace.store_path = own
    workspace.tzfs("rename", "ws", "new")
    found = [line.split("\t")[:4] for line in workspace.tzfs("status", "-H").splitlines()]
    assert found == [["new", str(workspace.mnt), "-", "dead"], ["new@s", str(past), "-", "dead"]]
    workspace.tzfs("umount", "new@s")
    workspace.tzfs("umount", "new")
    assert workspace.tzfs("status", "-H") == ""
    with workspace.mounted(name="new"):  # which takes over what the killed ones have left: their sockets
        pass


@pytest.mark.needs("root")
def test_of_dead_mounts_on_top_of_each_other_the_topmost_is_shown_and_unmounted(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@s")
    past = workspace.base / "past"
    for pid in (workspace.mount(), workspace.mount(name="ws@s", where=past)):
        workspace.kill(pid)
    move(past, workspace.mnt)
    for name in ("ws@s", "ws"):
        [line] = workspace.tzfs("status", "-H").splitlines()
        assert line.split("\t")[:4] == [name, str(workspace.mnt), "-", "dead"]
        workspace.tzfs("umount", name)
    assert workspace.tzfs("status", "-H") == ""
    with workspace.mounted():  # which takes over what the killed ones have left: their sockets
        pass


@pytest.mark.needs("root")
def test_a_mount_that_is_in_another_namespace_too_is_unmounted_here_and_what_ends_it_is_said(
    workspace: Workspace,
) -> None:
    pid = workspace.mount()
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
    ) as container:
        assert container.stdout is not None
        assert container.stdout.readline() == b"\n"
        with pytest.raises(Busy, match=f"is unmounted, but process {pid} is still at work") as caught:
            mountpoint.unmount(workspace.mnt, daemon=pid, timeout_s=0.5)
        assert str(caught.value.hint).endswith(f": kill {pid}")
        assert not os.path.ismount(workspace.mnt)
        workspace.kill(pid, signal.SIGTERM)
        container.kill()
    assert workspace.problems() == []


def test_a_mount_of_a_snapshot_says_of_which(workspace: Workspace) -> None:
    workspace.tzfs("snapshot", "ws@s")
    with workspace.mounted(name="ws@s"):
        [socket] = workspace.runtime.rglob("*.sock")
        with connect(socket) as client:
            told = client.call("info")
    assert isinstance(told, dict)
    assert told["name"] == "ws@s"


def test_status_says_what_has_failed(workspace: Workspace) -> None:
    pid = workspace.mount(failpoints="commit.rows=error:EIO")
    (workspace.mnt / "f").write_text("lost")
    workspace.run("sync", "ws")
    line = workspace.tzfs("status", "-H")
    assert line.startswith(f"ws\t{workspace.mnt}\t{pid}\tmount\t")
    assert "error" in line.lower()
    assert "its mount has failed" in refused(workspace, "run", "ws", "--", "true", code=74)
    workspace.run("umount", "ws")
    workspace.ended(pid)


def test_status_shows_a_program_that_has_a_filesystem_open(workspace: Workspace) -> None:
    with workspace.store() as store, store.open(NAME):
        assert workspace.tzfs("status", "-H") == f"ws\t-\t{os.getpid()}\tprogram\tok\n"
        told = refused(workspace, "snapshot", "ws@s", code=75)
    assert f"in use by pid {os.getpid()}" in told


def test_statistics_are_a_document_of_the_mount(workspace: Workspace) -> None:
    assert "ws is not mounted" in refused(workspace, "status", "--statistics", "ws", code=75)
    with workspace.mounted() as mnt:
        (mnt / "f").touch()
        told = json.loads(workspace.tzfs("status", "--statistics", "ws"))
    assert told["files"] == 1
    assert told["requests"]["create"]["count"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ws", "{base}/none"], 1, "{base}/none: no such directory\nhint: mkdir {base}/none"),
        (["ws", "{base}/file"], 1, "mountpoint {base}/file is not a directory"),
        (["ws", ""], 2, "mountpoint is empty"),
        (["none", "{mnt}"], 1, "cannot mount none: there is no such filesystem"),
        (["ws@none", "{mnt}"], 1, "no snapshot ws@none"),
        (["-o", "colour", "ws", "{mnt}"], 2, "mount option 'colour' is not known\nhint: there are ro, allow_other"),
        (["-o", "spin=x", "ws", "{mnt}"], 2, "mount option 'spin=x' is not known"),
        (["ws"], 2, "missing argument"),
        (["ws", "{base}"], 2, "would hide"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mount_refuses(workspace: Workspace, arguments: list[str], code: int, message: str) -> None:
    (workspace.base / "file").touch()
    places = {"base": workspace.base, "mnt": workspace.mnt}
    told = refused(workspace, "mount", *(a.format(**places) for a in arguments), code=code)
    assert message.format(**places) in told


def test_the_log_is_called_as_the_filesystem_is(workspace: Workspace) -> None:
    with workspace.mounted():
        pass
    [log] = (workspace.base / "state" / "tzfs").iterdir()
    assert log.name.startswith("ws-")
    assert f"mounted ws at {workspace.mnt}" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_mount_in_the_foreground_ends_with_ctrl_c(workspace: Workspace) -> None:
    process = workspace.start("mount", "-f", "ws", workspace.mnt)
    assert process.stderr is not None
    for line in process.stderr:
        if "mounted ws at" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert mountpoint.mount_at(workspace.mnt) is None


def test_without_pyfuse3_mounting_says_what_is_missing(workspace: Workspace) -> None:
    program = "import sys; sys.modules['pyfuse3'] = None; from tzfs.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "--store", workspace.store_path, "mount", "ws", workspace.mnt],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tzfs: mounting needs pyfuse3\nhint: pip install 'tzfs[mount]'\n"
