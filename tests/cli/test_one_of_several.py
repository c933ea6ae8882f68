"""Commands about many filesystems, while another process destroys or renames one of them, or one cannot take part."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

import tzfs.access
import tzfs.management
from tests.cli.command_line import CommandLine, check_words
from tests.damaging import damage_row
from tzfs import catalog_rows, destroying, events, failpoints
from tzfs.errors import (
    Busy,
    Exists,
    NotFound,
    StoreError,
    WrongState,
    exit_code_of,
    text_about,
)
from tzfs.format.keys import CATALOG_TABLES, Table
from tzfs.management import Store, open_store
from tzfs.origins import open_tables
from tzfs.store.lmdb_store import LmdbMeta

GONE = exit_code_of(NotFound(""))


@contextmanager
def before(owner: object, name: str, nth: int, do: Callable[[], object]) -> Iterator[None]:
    """Before the function is called for the `nth` time, something is done; all else is as ever."""
    with pytest.MonkeyPatch.context() as patch:
        original, calls = getattr(owner, name), 0

        def called(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth:
                do()
            return original(*arguments, **named)

        patch.setattr(owner, name, called)
        yield
        assert calls >= nth, f"{name} was called {calls} times"


def elsewhere(
    tzfs: CommandLine, *line: str, code: int = 0, env: Mapping[str, str] | None = None
) -> Callable[[], object]:
    """The command in another process, which ends with that code."""
    command = [sys.executable, "-c", "from tzfs.cli import main; main()", "--store", str(tzfs.store), *line]

    def run() -> None:
        done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **(env or {})})
        assert done.returncode == code, done

    return run


def snapshots(tzfs: CommandLine) -> list[str]:
    return tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot").split()


def test_a_snapshot_that_goes_before_it_is_looked_at(three: CommandLine) -> None:
    with before(tzfs.management, "committed_state", 1, elsewhere(three, "destroy", "a@t")):
        three.refused("snapshot", "a@t", code=GONE)
    with before(tzfs.management, "committed_state", 1, elsewhere(three, "destroy", "a@t")):
        assert "a@t" in three.refused("snapshot", "-r", "/@t", code=GONE)
    assert snapshots(three) == ["a@s", "b@s", "b@t", "c@s", "c@t"]


def test_a_bookmark_that_goes_before_it_is_looked_at(three: CommandLine) -> None:
    with before(tzfs.access, "committed_points", 3, elsewhere(three, "destroy", "a#m")):
        three.refused("bookmark", "a@s", "#m", code=GONE)


@pytest.mark.parametrize("line", [["hold", "-r", "k"], ["release", "-r", "k"], ["holds", "-rH"]])
def test_where_the_only_one_goes_there_is_none(three: CommandLine, line: list[str]) -> None:
    three.ok("snapshot", "b@only")
    with before(tzfs.access, "committed_points", 2, elsewhere(three, "destroy", "-r", "b")):
        assert "no snapshot /@only" in three.refused(*line, "/@only", code=GONE)


@pytest.mark.parametrize("nth", [4, 5])  # found with the other two; looked at before it is held
def test_one_that_goes_after_it_was_found_is_passed_over(three: CommandLine, nth: int) -> None:
    with before(tzfs.access, "committed_points", nth, elsewhere(three, "destroy", "-r", "b")):
        three.ok("hold", "-r", "k", "/@s")
    assert three.ok("holds", "-rH", "/@s").split()[::7] == ["a@s", "c@s"]


RENAMED = "tzfs: b: it has just been renamed to x\nhint: do the same for that one\n"


@pytest.mark.parametrize("line", [["hold", "-r", "k", "/@s"], ["rename", "-r", "/@s", "@u"], ["snapshot", "-r", "/@u"]])
def test_one_that_is_renamed_after_it_was_found_is_told(three: CommandLine, line: list[str]) -> None:
    nth = 1 if line[0] == "snapshot" else 4
    with before(tzfs.access, "committed_points", nth, elsewhere(three, "rename", "b", "x")):
        answer = three(*line)
    assert (answer.code, answer.err) == (GONE, RENAMED)
    if line[0] == "hold":
        assert three.ok("holds", "-rH", "/@s").split()[::7] == ["a@s", "c@s"]
    else:
        assert {"a@u", "c@u", "x@s"} <= set(snapshots(three))


def test_one_that_has_the_name_by_then_is_left_alone(three: CommandLine) -> None:
    def exchanged() -> None:
        for line in (["destroy", "-r", "b"], ["create", "b"], ["snapshot", "b@s"]):
            elsewhere(three, *line)()

    with before(tzfs.access, "committed_points", 4, exchanged):
        three.ok("hold", "-r", "k", "/@s")
    assert three.ok("holds", "-rH", "/@s").split()[::7] == ["a@s", "c@s"]


@pytest.mark.parametrize("line", [["hold", "-r", "k", "/@s"], ["rename", "-r", "/@s", "@u"], ["destroy", "-r", "/@s"]])
def test_one_whose_destroyer_was_killed_is_passed_over(three: CommandLine, line: list[str]) -> None:
    killed = {"TZFS_FAILPOINTS": "catalog.destroy.recorded=crash"}
    nth = 1 if line[0] == "destroy" else 4
    owner, name = (destroying._Plan, "_one") if line[0] == "destroy" else (tzfs.access, "committed_points")
    with before(owner, name, nth, elsewhere(three, "destroy", "-r", "b", code=failpoints.CRASH_STATUS, env=killed)):
        three.ok(*line)
    assert {"hold": snapshots(three) == ["a@s", "c@s"]}.get(line[0], "a@s" not in snapshots(three))


@pytest.mark.parametrize("nth", range(1, 7))
def test_one_that_goes_while_snapshots_of_several_are_destroyed(three: CommandLine, nth: int) -> None:
    with before(destroying._Plan, "_one", nth, elsewhere(three, "destroy", "-r", "b")):
        told = three.ok("destroy", "-rv", "/@s")
    assert snapshots(three) == []
    assert ("b@s" in told) == (nth == 6)


@pytest.mark.parametrize("line", [["list", "-H", "-o", "name"], ["list", "--json"]])
def test_one_that_goes_while_it_is_listed_is_left_out(three: CommandLine, line: list[str]) -> None:
    with before(os, "statvfs", 2, elsewhere(three, "destroy", "-r", "b")):
        out = three.ok(*line)
    names = [row["name"] for row in json.loads(out)] if "--json" in line else out.split()
    assert names == ["a", "c"]


def test_one_that_goes_while_it_alone_is_listed_is_not_found(three: CommandLine) -> None:
    with before(Store, "properties", 1, elsewhere(three, "destroy", "-r", "b")):
        assert "filesystem b has just gone" in three.refused("list", "-H", "b", code=GONE)


def test_one_that_is_renamed_while_all_are_collected(three: CommandLine) -> None:
    with before(Store, "collect", 2, elsewhere(three, "rename", "b", "x")):
        answer = three("gc", "--all")
    assert (answer.code, answer.err) == (GONE, RENAMED)
    assert [line.partition(":")[0] for line in answer.out.splitlines()] == ["a", "c"]


def test_what_is_wrong_with_all_of_them_is_said_once(three: CommandLine) -> None:
    told = three.refused("snapshot", "-r", "-o", "foo=bar", "/@u", code=1)
    assert re.match("tzfs: there is no property 'foo'\nhint: ", told)
    assert snapshots(three) == ["a@s", "b@s", "c@s"]


def test_each_is_told_with_what_to_try(three: CommandLine) -> None:
    three.ok("hold", "k", "b@s")
    answer = three("hold", "-r", "k", "/@s")
    assert answer.err == "tzfs: cannot hold b@s: it has a hold 'k' already\nhint: tzfs holds b@s\n"
    assert answer.code == exit_code_of(Exists(""))
    three.ok("snapshot", "b@s2")
    three.ok("hold", "k", "b@s2")
    answer = three("hold", "-r", "more", "/@s", "/@s2", "/@s")
    assert (answer.code, answer.err) == (0, "")


def test_what_was_done_in_part_can_be_done_for_the_rest(three: CommandLine) -> None:
    """Which of them have it is said, and keeps none of the others from getting it."""
    with open_store(three.store) as store, store.open("b"):
        answer = three("hold", "-r", "k", "/@s")
    assert answer.code == exit_code_of(Busy(""))
    assert answer.err.startswith("tzfs: filesystem b is in use by pid ")
    assert three("hold", "-r", "k", "/@s").code == exit_code_of(Exists(""))
    assert len(three.ok("holds", "-rH", "/@s").splitlines()) == 3
    three.ok("release", "k", "b@s")
    answer = three("release", "-r", "k", "/@s")
    assert (answer.code, answer.message) == (GONE, "tzfs: cannot release b@s: it has no hold 'k'")
    assert three.ok("holds", "-rH", "/@s") == ""
    three.ok("snapshot", "b@u")
    assert three("rename", "-r", "/@s", "@u").code == exit_code_of(Exists(""))
    assert snapshots(three) == ["a@u", "b@s", "b@u", "c@u"]


def damage_catalog(tzfs: CommandLine, key: bytes) -> None:
    meta = LmdbMeta(tzfs.store / "catalog", tables=CATALOG_TABLES)
    txn = meta.begin_write()
    damage_row(txn, Table.CATALOG if txn.get(Table.CATALOG, key) else Table.CATALOG_STORE, key)
    txn.commit()
    meta.close()


def test_one_whose_number_is_damaged_keeps_no_other_from_its_turn(three: CommandLine) -> None:
    with open_store(three.store) as store:
        folder = store.get("b").folder
    damage_catalog(three, catalog_rows._PARTITION + folder.name.encode())
    for line in (["snapshot", "-r", "/@t"], ["hold", "-r", "k", "/@s"], ["rename", "-r", "/@s", "@u"], ["gc", "--all"]):
        answer = three(*line)
        assert answer.code == 65, line
        assert answer.err.startswith("tzfs: b: "), line
    assert three("list", "-H", "-o", "name", "-t", "snapshot", "a", "c").out.split() == ["a@u", "a@t", "c@u", "c@t"]
    (folder / "meta" / "data.mdb").unlink()
    answer = three("list", "--json")
    assert answer.code == 78
    assert [row["name"] for row in json.loads(answer.out)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "line",
    [
        ["archive", "b"],
        ["activate", "b"],
        ["set", "readonly=on", "/"],
        ["destroy", "-n", "b@s"],
        ["destroy", "-nR", "b@s"],
    ],
)
def test_a_lock_that_is_something_else_is_told_with_its_filesystems_name(three: CommandLine, line: list[str]) -> None:
    if line[0] == "activate":
        three.ok("archive", "b")
    with open_store(three.store) as store:
        lock = store.get("b").folder / "lock"
    lock.unlink()
    lock.symlink_to("elsewhere")
    answer = three(*line)
    assert answer.code in (74, 78)
    check_words(answer.err)
    assert answer.err.startswith("tzfs: b: ")


def test_one_whose_catalog_row_is_damaged_keeps_nothing_below_it_from_its_turn(tzfs: CommandLine) -> None:
    for name in ("n", "n/a", "n/b"):
        tzfs.ok("create", name)
        tzfs.ok("snapshot", f"{name}@s")
    damage_catalog(tzfs, b"n")
    for line in (["snapshot", "-r", "n@t"], ["hold", "-r", "k", "n@s"], ["rename", "-r", "n@s", "@u"]):
        assert tzfs(*line).code == 65, line
    assert tzfs("holds", "-rH", "n@u").out.split()[::7] == ["n/a@u", "n/b@u"]
    assert tzfs("list", "-H", "-o", "name", "-t", "snapshot", "n/").out.split() == ["n/a@u", "n/a@t", "n/b@u", "n/b@t"]


def test_the_snapshots_of_a_namespace_without_a_filesystem_of_its_name_are_destroyed(tzfs: CommandLine) -> None:
    for name in ("n/a", "n/b", "n/old"):
        tzfs.ok("create", name)
        tzfs.ok("snapshot", f"{name}@s")
    tzfs.ok("archive", "n/old")
    answer = tzfs("destroy", "-rv", "n@s")
    assert (answer.code, answer.err) == (0, "tzfs: n/old is archived, and passed over\n")
    assert answer.out.splitlines()[:2] == ["destroy n/a@s", "destroy n/b@s"]
    assert snapshots(tzfs) == ["n/old@s"]
    assert "n/old: it is ARCHIVED" in tzfs.refused("destroy", "-r", "n/@s", code=exit_code_of(WrongState("")))
    assert snapshots(tzfs) == ["n/old@s"]


def test_a_name_that_is_a_word_of_the_reason_is_told_all_the_same() -> None:
    for name, text, told in (
        ("open", "/x/meta: open: denied", "open: /x/meta: open: denied"),
        ("n/a", "cannot hold n/a@s: it has", "cannot hold n/a@s: it has"),
        ("a", "a process has its tables open", "a: a process has its tables open"),
        ("the", "cannot look into the mount: gone", "the: cannot look into the mount: gone"),
        ("a", "a: damaged", "a: damaged"),
        ("b", "filesystem b is in use by pid 5", "filesystem b is in use by pid 5"),
        ("b", "filesystem bc is in use by pid 5", "b: filesystem bc is in use by pid 5"),
        ("b", "filesystem b/c is in use by pid 5", "b: filesystem b/c is in use by pid 5"),
    ):
        assert text_about(name, StoreError(text)) == told


def test_a_hold_is_listed_once(three: CommandLine) -> None:
    three.ok("hold", "k", "a@s")
    assert len(three.ok("holds", "-rH", "/@s", "a@s").splitlines()) == 1


def test_who_reads_is_told_where_the_lock_cannot_be_looked_at(three: CommandLine) -> None:
    with open_store(three.store) as store, store.open_snapshot("b@s"):
        lock = store.get("b").folder / "lock"
        lock.unlink()
        lock.symlink_to("elsewhere")
        assert [line.split("\t")[0] for line in three.ok("status", "-H").splitlines()] == ["b@s", "b"]


@pytest.mark.parametrize("how", [["destroy", "-r"], ["rename"]])
def test_who_follows_a_filesystem_hears_what_became_of_it(three: CommandLine, how: list[str]) -> None:
    with open_store(three.store) as store:
        followed = events.follow(store, "b")
        while next(followed)["kind"] != "snapshot":
            pass
        elsewhere(three, *how, "b", *(["x"] if how == ["rename"] else []))()
        assert next(followed)["kind"] == how[0]
        if how == ["rename"]:
            elsewhere(three, "set", "a:b=c", "x")()
            assert next(followed)["kind"] == "set"
        else:
            with pytest.raises(NotFound, match="is gone"):
                next(followed)


def test_a_folder_that_must_not_be_looked_into_keeps_no_other_from_its_turn(
    three: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(three.store) as store:
        folder = store.get("b").folder
    original = os.lstat

    def refusing(path: str | Path) -> os.stat_result:
        if Path(path).parent == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    (folder / "meta" / "data.mdb").unlink()
    monkeypatch.setattr(os, "lstat", refusing)
    answer = three("list", "--json")
    assert answer.code == 78
    assert [row["name"] for row in json.loads(answer.out)] == ["a", "b", "c"]
    assert answer.err.startswith("tzfs: b: ")


# -- a lock that was removed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["lock", "views"])
@pytest.mark.parametrize("how", ["writer", "reader"])
def test_what_a_process_has_open_is_in_use_whatever_was_removed(three: CommandLine, what: str, how: str) -> None:
    with open_store(three.store) as store:
        folder = store.get("b").folder
        in_use = store.open("b") if how == "writer" else store.open_snapshot("b@s")
        with in_use:
            (folder / what).rename(folder / f"{what}.away")
            for line in (["destroy", "-r", "b"], ["destroy", "-rn", "b"], ["destroy", "--damaged", "-r", "b"]):
                assert "b" in three.refused(*line, code=75), line
            if what == "lock":
                for line in (["snapshot", "b@t"], ["gc", "b"], ["archive", "b"]):
                    assert "its lock file is gone: a process has its tables open" in three.refused(*line, code=75)
                assert not os.path.lexists(folder / what)
    three.ok("destroy", "-r", "b")


def test_tables_whose_users_cannot_be_seen_are_not_given_up(
    three: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(three.store) as store:
        folder = store.get("b").folder
    (folder / "lock").unlink()
    original = os.open

    def refusing(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if Path(path) == folder / "meta" / "lock.mdb":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)
    assert "meta/lock.mdb: open: " in three.refused("destroy", "--damaged", "-r", "b", code=74)
    assert folder.exists()


def test_a_filesystem_has_its_lock_from_the_beginning_and_who_looks_for_a_moment_is_waited_for(
    three: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.ok("create", "new")
    with open_store(three.store) as store:
        assert (store.get("new").folder / "lock").exists()
        (store.get("b").folder / "lock").unlink()
        with ExitStack() as stack:
            stack.enter_context(closing(open_tables(store.get("b").folder)))
            monkeypatch.setattr("tzfs.transitions.time.sleep", lambda seconds: stack.close())
            three.ok("snapshot", "b@t")
