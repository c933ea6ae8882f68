"""What a mount answers to each method: statistics, collecting, properties, and what a read-only one says."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.mount.workspace import Workspace, eventually
from tests.noise import noise
from tzfs.errors import Busy, InvalidArgument, NotFound, ReadOnly
from tzfs.jsonrpc import Json

CHUNK = 128 * 1024
METHODS = (
    "ping", "info", "stats", "unmount", "snapshot.create", "snapshot.list", "rollback", "restore", "apply",
    "sync", "settle", "gc", "check",
    "archive", "property.get", "property.set", "property.inherit", "property.changed",
)  # fmt: skip


def table(value: Json) -> dict[str, Json]:
    assert isinstance(value, dict)
    return value


# -- parameters --------------------------------------------------------------------------------------------------------


def test_every_method_refuses_what_it_does_not_know_and_changes_nothing(mounted: Workspace) -> None:
    with mounted.client() as client:
        for method in METHODS:
            with pytest.raises(InvalidArgument, match="unknown parameter 'nonsense'"):
                client.ask(method, {"nonsense": 1})
        assert table(client.call("info"))["mountpoint"] == str(mounted.mnt)
        assert client.call("snapshot.list") == []


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("check", {"payload": 1}, "'payload' must be true or false"),
        ("snapshot.create", {}, "'name' is missing"),
        ("snapshot.create", {"name": 1}, "'name' must be a string"),
        ("snapshot.create", {"name": ""}, "'name' must be a string of 1 to 255 bytes"),
        ("snapshot.create", {"name": "é" * 128}, "'name' must be a string of 1 to 255 bytes"),
        ("snapshot.create", {"name": "a/b"}, "a/b"),
        ("snapshot.create", {"name": "s", "properties": {"a:b": 1}}, "'properties' must be an object"),
        ("snapshot.create", {"name": "s", "properties": ["a:b"]}, "'properties' must be an object"),
        ("restore", {"snapshot": "s", "paths": ["\ud800"]}, "'paths' has half of a surrogate pair"),
        ("apply", {"clone": "c", "prefer": "mine"}, "'prefer' must be one of 'ours', 'theirs'"),
        ("run.begin", {"argv": ["\ud800"], "cwd": "/", "pid": 1}, "'argv' has half of a surrogate pair"),
        ("run.begin", {"argv": ["x"], "cwd": "/", "pid": -1}, "'pid' must be a whole number of 0 to"),
        ("run.count", {"entry": 1, "counts": {"before": 1}}, "'before' is nothing that is counted"),
        ("property.get", {"name": 1}, "'name' must be a string"),
        ("property.set", {"name": "a:b"}, "'value' is missing"),
        ("property.set", {"name": "a:b", "value": 1}, "'value' must be a string"),
        ("property.set", {"name": "a:b", "value": "x" * 8192}, "'value' must be a string of 0 to 8191 bytes"),
        ("property.inherit", {"name": "x" * 257}, "'name' must be a string of 1 to 256 bytes"),
    ],
)
def test_wrong_parameters_are_refused_in_words(
    mounted: Workspace, method: str, params: dict[str, Json], words: str
) -> None:
    with mounted.client() as client:
        with pytest.raises(InvalidArgument) as caught:
            client.ask(method, params)
        assert words in str(caught.value)
        assert client.call("snapshot.list") == []


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_tell_what_is_there_and_what_was_done(mounted: Workspace) -> None:
    (mounted.mnt / "folder").mkdir()
    (mounted.mnt / "folder" / "small").write_bytes(b"inline")
    (mounted.mnt / "large").write_bytes(noise(4 * CHUNK, "x"))
    (mounted.mnt / "link").symlink_to("large")
    with pytest.raises(FileExistsError):
        os.mkdir(mounted.mnt / "folder")
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(mounted.mnt / "folder")
    mounted.call("sync")  # so much payload would make the fsync a commit
    with open(mounted.mnt / "folder" / "small", "rb+") as held:
        held.write(b"INLINE")
        held.flush()
        os.fsync(held.fileno())
        stats = table(mounted.call("stats"))
        assert table(stats["cache"])["open_for_writing"] == 1
        logged = table(stats["txg"])["logged"]
        assert isinstance(logged, int)
        assert logged > 0
    mounted.call("sync")
    stats = table(mounted.call("stats"))
    assert {name: stats[name] for name in ("inodes", "files", "directories", "symlinks", "snapshots", "orphans")} == {
        "inodes": 5, "files": 2, "directories": 2, "symlinks": 1, "snapshots": 0, "orphans": 0,
    }  # fmt: skip
    assert stats["extents"] == 4
    assert stats["segments"] == 1
    assert stats["drift"] == []
    assert stats["failed"] is None
    nbytes = stats["bytes"]
    assert isinstance(nbytes, int)
    assert nbytes > 4 * CHUNK
    requests = {kind: table(value) for kind, value in table(stats["requests"]).items()}
    assert requests["mkdir"]["count"] == 1
    assert (requests["rmdir"]["count"], requests["rmdir"]["errors"]) == (1, 1)
    for request in requests.values():
        mean, slowest = request["mean_us"], request["slowest_us"]
        assert isinstance(mean, float)
        assert isinstance(slowest, float)
        assert 0 <= mean <= slowest + 0.1  # rounded differently
    cache, txg = table(stats["cache"]), table(stats["txg"])
    assert {name: cache[name] for name in ("inodes", "nodes", "open_for_writing", "dirty_bytes", "dirty_rows")} == {
        "inodes": 5, "nodes": 4, "open_for_writing": 0, "dirty_bytes": 0, "dirty_rows": 0,
    }  # fmt: skip
    assert txg["logged"] == 0
    for name in ("number", "commits", "last_ms", "slowest_ms"):
        value = txg[name]
        assert isinstance(value, int | float)
        assert value > 0, name
    pump = table(stats["pump"])
    assert pump["guarded"] is True
    assert sum(v for k in ("ready", "spun", "waited") if isinstance(v := pump[k], int)) > 10
    assert set(table(stats["memory"])) == {"anonymous", "mapped"}


def test_extents_of_a_chunk_that_is_overwritten_piece_by_piece_are_counted(mounted: Workspace) -> None:
    (mounted.mnt / "file").write_bytes(noise(CHUNK, "x"))
    mounted.call("sync")
    assert mounted.number("extents") == 1
    mounted.call("snapshot.create", name="s")
    with open(mounted.mnt / "file", "rb+") as file:
        file.write(noise(4096, "y"))
    mounted.call("sync")
    assert mounted.number("extents") == 2
    (mounted.mnt / "file").unlink()
    mounted.call("gc")
    assert mounted.number("extents") == 1, "what the snapshot sees stays"


def waits_for_the_mount(thread: threading.Thread) -> bool:
    return "request_wait" in Path(f"/proc/{os.getpid()}/task/{thread.native_id}/wchan").read_text()


@pytest.mark.parametrize("options", [(), ("nopump",)])
def test_what_was_done_before_a_method_was_called_is_in_its_answer(
    workspace: Workspace, options: tuple[str, ...]
) -> None:
    pid = workspace.mount(*options)
    turns, at_once = 12, 6
    folders = [workspace.mnt / str(number) for number in range(at_once)]  # each has a lock of its own in the kernel
    for folder in folders:
        folder.mkdir()
        for turn in range(turns):
            (folder / str(turn)).touch()
    with workspace.client() as client:
        for turn in range(turns):
            os.kill(pid, signal.SIGSTOP)
            removing = [threading.Thread(target=(folder / str(turn)).unlink) for folder in folders]
            for thread in removing:
                thread.start()
            for thread in removing:
                assert eventually(partial(waits_for_the_mount, thread))
            threading.Timer(0.02, os.kill, (pid, signal.SIGCONT)).start()
            told = table(client.call("stats"))
            for thread in removing:
                thread.join()
            assert told["files"] == at_once * (turns - turn - 1)
    workspace.unmount(pid)


# -- collecting --------------------------------------------------------------------------------------------------------


def test_collecting_reports_how_far_it_has_come_and_statistics_remember_it(mounted: Workspace) -> None:
    assert mounted.stats("gc", "last") is None
    chunks = 2000  # sparse: one page in each
    with open(mounted.mnt / "large", "wb") as file:
        for number in range(chunks):
            os.pwrite(file.fileno(), noise(4096, "x"), number * CHUNK)
    mounted.call("sync")
    (mounted.mnt / "large").unlink()
    heard: list[Json] = []
    began_ns = time.time_ns()
    with mounted.client() as client:
        done = table(client.ask("gc", {}, progress=heard.append))
        last = table(table(table(client.call("stats"))["gc"])["last"])
    assert heard
    for earlier, later in zip(heard, [*heard[1:], done], strict=True):
        for name in ("bytes", "orphans", "chunks", "segments"):
            before, after = table(earlier)[name], table(later)[name]
            assert isinstance(before, int)
            assert isinstance(after, int)
            assert before <= after
    assert {name: last[name] for name in done} == done
    began, ended = last["began_ns"], last["ended_ns"]
    assert isinstance(began, int)
    assert isinstance(ended, int)
    assert began_ns <= began <= ended <= time.time_ns()
    assert mounted.number("gc", "reclaimed_chunks") == chunks
    assert mounted.number("gc", "punched_bytes") == chunks * 4096


def test_a_collection_ends_though_somebody_goes_on_writing(mounted: Workspace) -> None:
    (mounted.mnt / "large").write_bytes(noise(10 * CHUNK, "x"))
    mounted.call("sync")
    (mounted.mnt / "large").unlink()
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.002):
            (mounted.mnt / "small").write_bytes(noise(5000))

    writing = threading.Thread(target=write)
    writing.start()
    try:
        mounted.call("gc")
        assert mounted.number("gc", "punched_bytes") >= 10 * CHUNK
    finally:
        over.set()
        writing.join()


def test_collections_at_the_same_time_do_not_give_the_same_space_back_twice(workspace: Workspace) -> None:
    pid = workspace.mount(failpoints="punch.extent=delay:0.3")  # the second begins while the first is at it
    (workspace.mnt / "file").write_bytes(noise(CHUNK, "x"))
    workspace.call("sync")
    (workspace.mnt / "file").unlink()
    threads = [threading.Thread(target=workspace.call, args=("gc",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workspace.number("gc", "punched_bytes") == CHUNK
    workspace.unmount(pid)


def test_a_collection_that_fails_is_told_as_itself(workspace: Workspace) -> None:
    workspace.tzfs("set", "gc_interval=0", "ws")  # else it may have failed already, and not fail again
    pid = workspace.mount(failpoints="punch.extent=error:EIO")
    (workspace.mnt / "file").write_bytes(noise(CHUNK, "x"))
    workspace.call("sync")
    (workspace.mnt / "file").unlink()
    done = workspace.run("gc", "ws")
    assert (done.returncode, "Input/output error" in done.stderr) == (74, True), done.stderr
    assert workspace.stats("gc", "last") is None
    workspace.unmount(pid)


# -- properties --------------------------------------------------------------------------------------------------------


def test_a_mount_follows_its_filesystem_to_a_new_name(mounted: Workspace) -> None:
    mounted.tzfs("rename", "ws", "team/other")
    try:
        mounted.tzfs("set", "snapdir=visible", "team/other")
        assert ".zfs" in os.listdir(mounted.mnt)
        with mounted.store() as store, pytest.raises(NotFound):
            store.get("ws")
        mounted.tzfs("snapshot", "team/other@s")
    finally:
        mounted.tzfs("rename", "team/other", "ws")
    assert table(mounted.call("property.get", name="snapdir"))["snapdir"] == {"value": "visible", "source": "local"}


def test_properties_are_the_same_through_the_mount_and_beside_it(mounted: Workspace) -> None:
    assert mounted.call("property.set", name="txg_interval", value="250ms") == {"value": "0.25", "source": "local"}
    assert mounted.tzfs("get", "-H", "-o", "value,source", "txg_interval", "ws").split() == ["250ms", "local"]
    assert mounted.call("property.inherit", name="txg_interval") == {"value": "1", "source": "default"}
    assert len(table(mounted.call("property.get"))) > 10
    with pytest.raises(NotFound, match="nonsense"):
        mounted.call("property.get", name="nonsense")
    with pytest.raises(ReadOnly, match="used"):
        mounted.call("property.set", name="used", value="1")


# -- read-only ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["option", "archived"])
def test_a_mount_that_cannot_write_says_so_and_where_it_is(workspace: Workspace, how: str) -> None:
    if how == "archived":
        workspace.tzfs("archive", "ws")
    with workspace.mounted(*(["ro"] if how == "option" else [])):
        assert table(workspace.call("info"))["readonly"] is True
        for command in (["snapshot", "ws@s"], ["gc", "ws"]):
            done = workspace.run(*command)
            words = "ARCHIVED" if how == "archived" and command[0] == "snapshot" else f"read-only at {workspace.mnt}"
            assert done.returncode == 1 or (how == "archived" and done.returncode == 75)
            assert words in done.stderr
        workspace.tzfs("sync", "ws")
        workspace.tzfs("set", "snapdir=visible", "a:b=c", "ws")
        assert ".zfs" in os.listdir(workspace.mnt)
        assert workspace.call("snapshot.list") == []
        assert table(workspace.call("stats"))["requests"] != {}


def test_a_mounted_filesystem_is_archived_through_its_mount_and_nothing_is_lost(workspace: Workspace) -> None:
    pid = workspace.mount()
    (workspace.mnt / "file").write_bytes(b"kept")
    workspace.call("archive")
    workspace.ended(pid)
    with workspace.store() as store:
        assert store.get("ws").state.value == "archived"
    with workspace.mounted():
        assert (workspace.mnt / "file").read_bytes() == b"kept"
        with pytest.raises(Exception, match="ARCHIVED"):
            workspace.call("archive")


def test_a_filesystem_that_is_set_readonly_refuses_changes_and_can_be_snapshotted(workspace: Workspace) -> None:
    with workspace.mounted():
        (workspace.mnt / "file").write_bytes(b"content")
    workspace.tzfs("set", "readonly=on", "ws")
    with workspace.mounted("writeback"):
        assert table(workspace.call("info"))["readonly"] is True
        assert os.statvfs(workspace.mnt).f_flag & os.ST_RDONLY
        for change in (
            (workspace.mnt / "new").touch,
            (workspace.mnt / "file").unlink,
            lambda: (workspace.mnt / "file").write_bytes(b"x"),
            lambda: (workspace.mnt / "file").chmod(0o600),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                change()
        workspace.tzfs("snapshot", "ws@s")
        workspace.tzfs("gc", "ws")
        past = workspace.mnt / ".zfs" / "snapshot" / "s"
        assert (past / "file").read_bytes() == b"content"
        with pytest.raises(OSError, match="Read-only file system"):
            (past / "new").touch()
    with workspace.store() as store:
        with pytest.raises(ReadOnly) as caught:
            store.open("ws")
        assert caught.value.hint == "tzfs set readonly=off ws"
        with store.open_readonly("ws") as tree:
            assert tree.read_bytes("file") == b"content"
        store.snapshot("ws@t")
        store.set_properties(["ws"], {"readonly": None})
        store.open("ws").close()


@pytest.mark.parametrize("target", ["ws", "/"])
def test_readonly_of_a_mounted_filesystem_stays_as_it_is_and_the_refusal_names_the_mount(
    mounted: Workspace, target: str
) -> None:
    done = mounted.run("set", "readonly=on", target)
    assert done.returncode == 75
    assert str(mounted.mnt) in done.stderr
    assert mounted.tzfs("get", "-H", "-o", "value,source", "readonly", "ws").split() == ["off", "default"]
    with pytest.raises(Busy):
        mounted.call("property.set", name="readonly", value="on")
    mounted.tzfs("inherit", "readonly", "ws")  # there is none to take away
    mounted.tzfs("set", "readonly=off", "ws")  # as it is
    mounted.tzfs("set", "readonly=on", "/")  # does not concern one that has its own
    with pytest.raises(Busy):
        mounted.call("property.inherit", name="readonly")
    (mounted.mnt / "file").touch()
