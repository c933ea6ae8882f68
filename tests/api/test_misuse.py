"""What a program does wrong has a clear error: after the end, twice, elsewhere; and what it leaves open is closed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tzfs
from tests.mount.workspace import NAME, Workspace
from tzfs import FileSystem, Store, time_travel
from tzfs.errors import Busy, Exists, InvalidArgument, IsADirectory, NotEmpty, NotFound, TzfsError, WrongState
from tzfs.marking import hold, release


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with tzfs.open_store(tmp_path / "store") as opened:
        opened.create("ws")
        yield opened


def descriptors(below: Path) -> list[str]:
    """The files below a folder that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(path for path in found if path.startswith(f"{below}/"))


USES: dict[str, Callable[[FileSystem], object]] = {
    "read": lambda fs: fs.read_text("f"),
    "write": lambda fs: fs.write_text("f", "x"),
    "open": lambda fs: fs.open("f"),
    "list": lambda fs: fs.listdir(),
    "stat": lambda fs: fs.stat("f"),
    "exists": lambda fs: fs.exists("f"),
    "mkdir": lambda fs: fs.mkdir("d"),
    "rename": lambda fs: fs.rename("f", "g"),
    "snapshot": lambda fs: fs.snapshot("s"),
    "snapshots": lambda fs: fs.snapshots(),
    "view": lambda fs: fs.view("before"),
    "sync": lambda fs: fs.sync(),
    "collect": lambda fs: fs.collect(),
    "statfs": lambda fs: fs.statfs(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_filesystem_that_is_closed_says_so(store: Store, use: Callable[[FileSystem], object]) -> None:
    with store.open("ws") as fs:
        fs.write_text("f", "x")
        fs.snapshot("before")
        assert not fs.closed
    assert fs.closed
    fs.close()  # once more is harmless
    with pytest.raises(InvalidArgument, match="filesystem ws is closed"):
        use(fs)


def test_views_and_files_end_with_what_they_were_opened_from(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_text("f", "x" * 100_000)
        fs.snapshot("s")
        view = fs.view("s")
        file = view.open_read("f")
        assert file.read(1) == b"x"
    for use in (lambda: view.read_text("f"), view.listdir, lambda: file.read(90_000)):
        with pytest.raises(InvalidArgument, match="snapshot s is closed"):
            use()
    with store.open_snapshot("ws@s") as then:
        assert then.listdir() == ["f"]
    with pytest.raises(InvalidArgument, match="snapshot s is closed"):
        then.listdir()
    with store.open_readonly("ws") as tree:
        assert tree.listdir() == ["f"]
    with pytest.raises(InvalidArgument, match="filesystem ws is closed"):
        tree.listdir()


def test_files_that_are_left_open_are_written_out_and_closed(store: Store) -> None:
    with store.open("ws") as fs:
        text, binary = fs.open("text", "w"), fs.open("binary", "wb")
        text.write("kept")
        binary.write(b"kept too")
    assert text.closed
    assert binary.closed
    with store.open_readonly("ws") as tree:
        assert tree.read_text("text") == "kept"
        assert tree.read_bytes("binary") == b"kept too"


def _fail_in(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_text("f", "x")
        fs.snapshot("s")
        with store.open_snapshot("ws@s"):
            raise ZeroDivisionError


def test_an_error_in_the_body_closes_everything_too(store: Store) -> None:
    before = descriptors(store.path)
    with pytest.raises(ZeroDivisionError):
        _fail_in(store)
    assert descriptors(store.path) == before
    with store.open("ws") as fs:
        assert fs.read_text("f") == "x"


def test_everything_is_given_back(tmp_path: Path) -> None:
    with tzfs.open_store(tmp_path / "store") as store:
        store.create("ws")
        with store.open("ws") as fs:
            fs.snapshot("s")
            fs.open("f", "w")
        with store.open_snapshot("ws@s"), store.open_readonly("ws"):
            assert descriptors(tmp_path) != []
    assert descriptors(tmp_path) == []
    store.close()


def test_another_thread_is_refused(store: Store) -> None:
    raised: list[BaseException] = []

    def use(fs: FileSystem) -> None:
        try:
            fs.write_text("f", "x")
        except TzfsError as error:
            raised.append(error)

    with store.open("ws") as fs:
        thread = threading.Thread(target=use, args=(fs,))
        thread.start()
        thread.join()
        [error] = raised
        assert type(error) is InvalidArgument
        assert "filesystem ws belongs to the thread that opened it" in str(error)
        fs.write_text("f", "y")


def test_opening_twice_names_who_has_it(store: Store) -> None:
    with store.open("ws"):
        for opening in (lambda: store.open("ws"), lambda: store.snapshot("ws@s"), lambda: store.destroy("ws")):
            with pytest.raises(Busy, match=f"in use by pid {os.getpid()}") as caught:
                opening()
            assert caught.value.holders == (f"pid {os.getpid()}",)
    store.open("ws").close()


def test_what_the_command_would_refuse_to_destroy_is_refused(store: Store) -> None:
    store.snapshot("ws@s")
    hold(store, "keep", ["ws@s"])
    for dry_run in (True, False):
        with pytest.raises(NotEmpty, match="cannot destroy ws: it has snapshots") as caught:
            store.destroy("ws", dry_run=dry_run)
        assert caught.value.hint == "-r destroys them too: ws@s"
        with pytest.raises(Busy, match="cannot destroy ws@s: in use by hold keep on @s"):
            store.destroy("ws", recursive=True, dry_run=dry_run)
    release(store, "keep", ["ws@s"])
    store.clone("ws@s", "clone")
    with pytest.raises(Busy, match="clone"):
        store.destroy("ws", recursive=True)
    store.destroy("clone")
    with store.open("ws"), pytest.raises(Busy, match=f"in use by pid {os.getpid()}"):
        store.destroy("ws")
    assert store.destroy("ws", recursive=True, dry_run=True).name == store.get("ws").name
    store.destroy("ws", recursive=True)
    assert store.filesystems() == []


def test_opening_what_is_mounted_names_the_mount(workspace: Workspace) -> None:
    with workspace.mounted() as mnt, workspace.store() as store:
        (mnt / "f").write_text("x")
        with pytest.raises(Busy, match=f"in use by pid [0-9]+, mounted at {mnt}") as caught:
            store.open(NAME)
        assert caught.value.hint == "unmount it first: tzfs umount ws"
        store.snapshot("ws@s")  # what a mount can do, it is asked for
        with store.open_snapshot("ws@s") as then:
            assert then.read_text("f") == "x"


def test_what_is_not_there_or_not_allowed(store: Store) -> None:
    with pytest.raises(NotFound, match="there is no such filesystem"):
        store.open("none")
    with pytest.raises(NotFound, match="no snapshot ws@none"), store.open_snapshot("ws@none"):
        pass
    store.archive("ws")
    with pytest.raises(WrongState, match="it is ARCHIVED"):
        store.open("ws")
    store.activate("ws")
    with store.open("ws") as fs:
        fs.mkdir("d")
        with pytest.raises(IsADirectory):
            fs.open("d")
        with pytest.raises(InvalidArgument, match="mode 'rw'"):
            fs.open("f", "rw")
        with pytest.raises(NotFound, match=r"^d/none: no such file or directory$"):
            fs.read_text("d/none")


def test_words_name_the_snapshot_with_its_filesystem_and_the_path(store: Store) -> None:
    store.snapshot("ws@s")
    with pytest.raises(Exists, match=r"^snapshot ws@s exists$"):
        store.snapshot("ws@s")
    for act in (
        lambda: time_travel.rollback(store, "ws@none"),
        lambda: time_travel.rollback(store, "ws@none", destroy_newer=True),
        lambda: time_travel.restore(store, "ws@none", ["f"]),
        lambda: tzfs.send(store, "ws@none", len),
        lambda: store.clone("ws@none", "c"),
    ):
        with pytest.raises(NotFound, match=r"^no snapshot ws@none$") as caught:
            act()
        assert caught.value.hint == "tzfs list -t snapshot ws"
    with pytest.raises(NotFound, match=r"^d/f: no such file or directory$"):
        time_travel.restore(store, "ws@s", ["d/f"])


def test_a_store_that_is_closed_says_so(store: Store) -> None:
    store.close()
    for use in (
        store.filesystems,
        lambda: store.create("xs"),
        lambda: store.open("ws"),
        lambda: store.snapshot("ws@s"),
        store.status,
    ):
        with pytest.raises(InvalidArgument, match=f"store {store.path} is closed"):
            use()


def test_a_store_that_is_not_there_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="none: there is none"):
        tzfs.open_store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
