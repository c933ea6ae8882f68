"""Two processes, or two threads, at one store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.catalog.stores import COMMAND, folders, format_tables, guid_in, numbers
from tests.store.stores import REPOSITORY
from tzfs.catalog import Catalog, partition_of
from tzfs.errors import Busy, Exists, NotFound, WrongState
from tzfs.lifecycle import State
from tzfs.names import FilesystemName


def _together(*commands: tuple[str, ...]) -> list[str]:
    """Runs each command in a process of its own, at the same time; what each printed."""
    processes = [
        subprocess.Popen([sys.executable, "-c", COMMAND, *c], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for c in commands
    ]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(commands)
    return answers


def test_of_processes_that_create_one_name_one_succeeds(tmp_path: Path) -> None:
    store = str(tmp_path / "store")  # which they also make, all at once
    answers = _together(*[(store, "create", "ws")] * 6)
    assert answers.count("done") == 1
    assert set(answers) <= {"done", "Exists", "WrongState"}
    with Catalog.open(store) as catalog:
        info = catalog.get("ws")
        assert info.state is State.ACTIVE
        assert guid_in(info.folder) == bytes.fromhex(info.guid)
        assert folders(tmp_path / "store") == numbers(catalog)


def test_processes_that_do_different_things_all_succeed(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with Catalog.open(store) as catalog:
        for name in ("a", "b", "c"):
            catalog.create(name, formatter=format_tables)
    commands = [("create", "d"), ("rename", "a", "x"), ("archive", "b"), ("destroy", "c"), ("set", "/", "a:b", "c")]
    assert _together(*[(store, *command) for command in commands]) == ["done"] * 5
    with Catalog.open(store) as catalog:
        assert {str(i.name): i.state.name for i in catalog.list()} == {"b": "ARCHIVED", "d": "ACTIVE", "x": "ACTIVE"}
        assert folders(tmp_path / "store") == numbers(catalog)


def test_of_processes_that_rename_to_one_name_one_succeeds(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with Catalog.open(store) as catalog:
        for name in ("a", "b", "c"):
            catalog.create(name, formatter=format_tables)
    answers = _together(*[(store, "rename", name, "x") for name in ("a", "b", "c")])
    assert sorted(answers) == ["Exists", "Exists", "done"]


def test_of_processes_that_destroy_one_name_one_at_least_succeeds_and_nothing_is_left(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with Catalog.open(store) as catalog:
        catalog.create("ws", formatter=format_tables)
    answers = _together(*[(store, "destroy", "ws")] * 4)
    assert "done" in answers
    assert set(answers) <= {"done", "NotFound", "Busy"}
    with Catalog.open(store) as catalog:
        assert catalog.list() == []
        assert folders(tmp_path / "store") == []


@pytest.mark.parametrize("shared", [True, False])
def test_threads_that_create_and_destroy_one_name_leave_a_sound_store(tmp_path: Path, shared: bool) -> None:
    root = tmp_path / "store"
    common = Catalog.open(root)
    wrong: list[BaseException] = []
    done = []

    def work() -> None:
        catalog = common if shared else Catalog.open(root)
        try:
            for _ in range(10):
                for destroys in (False, True):
                    with suppress(Exists, NotFound, WrongState, Busy):
                        done.append(
                            catalog.destroy("ws") if destroys else catalog.create("ws", formatter=format_tables)
                        )
        except BaseException as error:
            wrong.append(error)
        finally:
            if not shared:
                catalog.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    assert done
    assert folders(root) == numbers(common)
    common.close()


def test_a_number_that_is_just_being_let_go_is_waited_for(tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "store") as catalog:
        lock = catalog._session.layout.lock_transition(partition_of(FilesystemName("", "ws")))
        assert lock is not None
        made: list[object] = []
        thread = threading.Thread(target=lambda: made.append(catalog.create("ws", formatter=format_tables)))
        thread.start()
        catalog.create("other", formatter=format_tables)  # no transaction is open while it waits
        lock.release()
        thread.join(60)
        assert made == [catalog.get("ws")]


def test_what_another_process_is_still_doing_is_left_to_it(tmp_path: Path) -> None:
    """A process that opens the store while a creation is under way neither undoes it nor waits for it."""
    root = tmp_path / "store"
    inside, go_on = os.pipe(), os.pipe()
    Catalog.open(root).close()
    child = os.fork()
    if child == 0:
        status = 1
        try:

            def slow(folder: Path, guid: bytes) -> None:
                format_tables(folder, guid)
                os.write(inside[1], b"x")
                os.read(go_on[0], 1)

            with Catalog.open(root) as catalog:
                catalog.create("ws", formatter=slow)
            status = 0
        finally:
            os._exit(status)
    os.read(inside[0], 1)
    with Catalog.open(root) as catalog:
        assert catalog.unsettled == []
        assert catalog.get("ws").state is State.CREATING
        with pytest.raises(WrongState, match="CREATING"):
            catalog.create("ws", formatter=format_tables)
        with pytest.raises(WrongState, match="CREATING"):
            catalog.destroy("ws")
        os.write(go_on[1], b"x")
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert catalog.get("ws").state is State.ACTIVE
    for fd in (*inside, *go_on):
        os.close(fd)
