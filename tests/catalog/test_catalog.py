"""The catalog: a filesystem's life, its number, its names, and what a store is."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.catalog.stores import folders, format_tables, guid_in, numbers, ticking, tree
from tests.store.stores import fds_below, standing
from tzfs.catalog import Catalog, partition_of
from tzfs.errors import (
    Busy,
    Exists,
    InvalidArgument,
    LimitReached,
    NameTooLong,
    NotFound,
    ReadOnly,
    StoreError,
    TzfsError,
    WrongState,
)
from tzfs.lifecycle import Command, State
from tzfs.names import FilesystemName, Scope, parse_filesystem
from tzfs.opening import format_filesystem
from tzfs.store.lease import Lease, ViewHold

# FNV-1a-64 of namespace, NUL, name, by the published constants.
GOLDEN = {
    "ws": "d891bb186b6fa8b1",
    "team/ws": "b5ed49d8589043ee",
    "a": "08326707b4eb37da",
    "工作区": "87092050aba2bfe8",
}


def test_a_new_filesystem_is_active_and_formatted_in_its_own_folder(catalog: Catalog) -> None:
    info = catalog.create("team/ws", formatter=format_tables, properties={"recordsize": "64K", "a:b": "c"})
    assert str(info.name) == "team/ws"
    assert info.state is State.ACTIVE
    assert info.folder == catalog.info.path / "fs" / f"{info.partition:016x}"
    assert guid_in(info.folder) == bytes.fromhex(info.guid)
    assert len(bytes.fromhex(info.guid)) == 16
    assert (info.created_ns, info.changed_ns) == (1001 * 10**9, 1002 * 10**9)
    assert info.origin is None
    assert dict(info.local) == {"recordsize": "65536", "a:b": "c"}
    assert catalog.get("team/ws") == info
    assert catalog.refresh(info) == info
    assert catalog.list() == [info]


def test_everything_in_a_store_is_its_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with Catalog.open(tmp_path / "store") as catalog:
            folder = catalog.create("ws", formatter=format_filesystem).folder
            with Lease.acquire(folder, info={}):
                found = {path: (tmp_path / "store" / path).stat().st_mode for path in [*tree(tmp_path / "store"), "."]}
    finally:
        os.umask(umask)
    assert len(found) > 10
    for path, mode in found.items():
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path


@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_are_fnv_1a_of_the_name_and_last(tmp_path: Path, name: str) -> None:
    assert f"{partition_of(parse_filesystem(name)):016x}" == GOLDEN[name]
    with Catalog.open(tmp_path / "store") as catalog:
        first = catalog.create(name, formatter=format_tables)
        assert f"{first.partition:016x}" == GOLDEN[name]
    with Catalog.open(tmp_path / "store") as catalog:
        assert catalog.get(name) == first
        renamed = catalog.rename(name, "other/name")
        assert (renamed.partition, renamed.guid, renamed.folder) == (first.partition, first.guid, first.folder)
    with Catalog.open(tmp_path / "store") as catalog:
        assert catalog.get("other/name") == renamed
        assert guid_in(renamed.folder) == bytes.fromhex(first.guid)


def test_an_old_name_can_be_created_again_after_a_rename_beside_what_it_named(catalog: Catalog) -> None:
    first = catalog.create("ws", formatter=format_tables)
    catalog.rename("ws", "old")
    second = catalog.create("ws", formatter=format_tables)
    third = catalog.create("xs", formatter=format_tables)
    assert second.partition == (first.partition + 1) % (1 << 64)
    assert len({first.guid, second.guid, third.guid}) == 3
    assert catalog.get("old").guid == first.guid
    for info in (first, second, third):
        assert guid_in(info.folder) == bytes.fromhex(info.guid)


def test_an_old_name_created_again_after_destroy_has_its_number_and_another_guid(catalog: Catalog) -> None:
    first = catalog.create("ws", formatter=format_tables)
    catalog.destroy("ws")
    second = catalog.create("ws", formatter=format_tables)
    assert second.partition == first.partition
    assert second.guid != first.guid
    with pytest.raises(NotFound, match="was destroyed"):
        catalog.refresh(first)


def test_a_number_whose_folder_is_there_is_not_taken_and_what_is_in_it_stays(catalog: Catalog) -> None:
    wanted = partition_of(FilesystemName("", "ws"))
    squatter = catalog.info.path / "fs" / f"{wanted:016x}"
    squatter.mkdir()
    (squatter / "precious").write_text("x")
    (catalog.info.path / "fs" / f"{wanted + 1:016x}").symlink_to("/nowhere")
    assert catalog.create("ws", formatter=format_tables).partition == wanted + 2
    catalog.destroy("ws")
    assert (squatter / "precious").read_text() == "x"


def test_a_number_of_a_lost_folder_is_not_given_away(catalog: Catalog) -> None:
    first = catalog.create("ws", formatter=format_tables)
    catalog.rename("ws", "old")
    os.rename(first.folder, catalog.info.path / "elsewhere")
    assert catalog.create("ws", formatter=format_tables).partition == first.partition + 1


def test_the_number_after_the_last_is_the_first(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tzfs.transitions.fnv1a64", lambda data: (1 << 64) - 1)
    made = [catalog.create(name, formatter=format_tables).partition for name in ("a", "b", "c")]
    assert made == [(1 << 64) - 1, 0, 1]


def test_a_name_that_is_taken_is_refused(catalog: Catalog) -> None:
    info = catalog.create("ws", formatter=format_tables)
    catalog.create("xs", formatter=format_tables)
    with pytest.raises(Exists, match="ws"):
        catalog.create("ws", formatter=format_tables)
    with pytest.raises(Exists, match="ws"):
        catalog.rename("xs", "ws")
    with pytest.raises(Exists):
        catalog.rename("ws", "ws")
    assert catalog.get("ws") == info


def test_what_is_not_there_is_not_found(catalog: Catalog) -> None:
    for call in (
        lambda: catalog.get("ws"),
        lambda: catalog.rename("ws", "xs"),
        lambda: catalog.archive("ws"),
        lambda: catalog.activate("ws"),
        lambda: catalog.destroy("ws"),
        lambda: catalog.set_property("ws", "atime", "off"),
        lambda: catalog.inherit_property("ws", "atime"),
        lambda: catalog.acquire("ws", info={}),
    ):
        with pytest.raises(NotFound, match="ws"):
            call()


def test_malformed_names_are_refused_before_anything_is_touched(catalog: Catalog) -> None:
    before = tree(catalog.info.path)
    for bad in ("../x", "", "a@b", "a\n"):
        with pytest.raises(InvalidArgument):
            catalog.create(bad, formatter=format_tables)
    with pytest.raises(NameTooLong):
        catalog.create("x" * 256, formatter=format_tables)
    with pytest.raises(InvalidArgument):
        catalog.create("ws", formatter=format_tables, properties={"recordsize": "3"})
    assert tree(catalog.info.path) == before


def test_the_longest_name_works(catalog: Catalog) -> None:
    name = "n" * 127 + "/" + "x" * 127
    info = catalog.create(name, formatter=format_tables, properties={"a:b": "v" * 8191})
    assert catalog.get(name) == info
    assert [i.guid for i in catalog.list()] == [info.guid]


def test_archive_and_activate_are_each_others_undoing(catalog: Catalog) -> None:
    first = catalog.create("ws", formatter=format_tables)
    archived = catalog.archive("ws")
    assert archived.state is State.ARCHIVED is catalog.get("ws").state
    with pytest.raises(WrongState, match="ARCHIVED"):
        catalog.archive("ws")
    with pytest.raises(WrongState, match="ARCHIVED"):
        catalog.acquire("ws", info={})
    active = catalog.activate("ws")
    assert active.state is State.ACTIVE
    with pytest.raises(WrongState, match="ACTIVE"):
        catalog.activate("ws")
    assert (active.guid, active.partition) == (first.guid, first.partition)
    assert first.changed_ns < archived.changed_ns < active.changed_ns
    assert Lease.holder(first.folder) is None


def test_destroy_leaves_nothing(catalog: Catalog) -> None:
    catalog.create("keep", formatter=format_filesystem)
    before = tree(catalog.info.path)
    info = catalog.create("ws", formatter=format_filesystem)
    (info.folder / "segments" / "deep").mkdir()
    (info.folder / "segments" / "deep" / "file").write_bytes(b"x")
    assert catalog.destroy("ws", dry_run=True) == info == catalog.get("ws")
    assert catalog.destroy("ws") == info
    assert tree(catalog.info.path) == before
    assert [str(i.name) for i in catalog.list()] == ["keep"]


def test_an_archived_filesystem_can_be_destroyed_renamed_and_labelled(catalog: Catalog) -> None:
    catalog.create("ws", formatter=format_tables)
    catalog.archive("ws")
    catalog.set_property("ws", "a:b", "c")
    assert catalog.rename("ws", "xs").state is State.ARCHIVED
    catalog.destroy("xs")
    assert catalog.list() == []


def test_a_filesystem_whose_folder_is_lost_can_be_destroyed(catalog: Catalog) -> None:
    info = catalog.create("ws", formatter=format_tables)
    os.rename(info.folder, catalog.info.path / "elsewhere")
    with pytest.raises(StoreError, match="missing from the store"):
        catalog.acquire("ws", info={})
    catalog.destroy("ws")
    assert catalog.list() == []


HOLD = """
import sys
from tzfs.store.lease import Lease
with Lease.acquire(sys.argv[1], info={"mountpoint": "/mnt/ws"}):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_is_held_by_another_process_names_it(catalog: Catalog) -> None:
    info = catalog.create("ws", formatter=format_tables)
    with standing(HOLD, str(info.folder)) as process:
        for call in (
            lambda: catalog.archive("ws"),
            lambda: catalog.destroy("ws"),
            lambda: catalog.destroy("ws", dry_run=True),
            lambda: catalog.acquire("ws", info={}),
            lambda: catalog.acquire("ws", info={}, command=Command.MOUNT_READONLY),
        ):
            with pytest.raises(Busy, match=f"ws.*pid {process.pid}, mounted at /mnt/ws") as caught:
                call()
            assert caught.value.holders == (f"pid {process.pid}, mounted at /mnt/ws",)
        told = catalog.holder(info)
        assert told is not None
        assert told["pid"] == process.pid
        assert catalog.rename("ws", "xs").state is State.ACTIVE
        catalog.set_property("xs", "txg_interval", "5")
    catalog.destroy("xs")


def test_a_filesystem_whose_snapshot_is_read_is_not_destroyed(catalog: Catalog) -> None:
    info = catalog.create("ws", formatter=format_tables)
    with ViewHold.acquire(info.folder, name="before", epoch=1):
        with pytest.raises(Busy, match=f"pid {os.getpid()}, reading @before"):
            catalog.destroy("ws")
        catalog.archive("ws")
    catalog.destroy("ws")


def test_the_lease_of_an_active_filesystem_is_had_once(catalog: Catalog) -> None:
    catalog.create("ws", formatter=format_tables)
    info, lease = catalog.acquire("ws", info={"mountpoint": "/mnt"})
    with lease:
        assert info.state is State.ACTIVE
        with pytest.raises(Busy, match="mounted at /mnt"):
            catalog.acquire("ws", info={})
    assert catalog.confirm(info, Command.OPEN) == info
    catalog.archive("ws")
    with pytest.raises(WrongState, match="ARCHIVED"):
        catalog.confirm(info, Command.OPEN)


def test_a_failed_formatter_undoes_the_creation(catalog: Catalog) -> None:
    class Odd(BaseException):
        pass

    error: BaseException = Odd()

    def fails(folder: Path, guid: bytes) -> None:
        format_tables(folder, guid)
        raise error

    raised: list[tuple[BaseException, type[BaseException]]] = [
        (Odd(), Odd),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (NotFound("x"), NotFound),
        (OSError(errno.EIO, "x"), StoreError),
    ]
    for what, shown in raised:
        error = what
        with pytest.raises(shown):
            catalog.create("ws", formatter=fails)
        assert folders(catalog.info.path) == []
        assert catalog.list() == []
    assert fds_below(catalog.info.path / "fs") == []
    assert catalog.create("ws", formatter=format_tables).state is State.ACTIVE


def test_commands_met_during_a_creation_name_its_state(catalog: Catalog) -> None:
    refused = []

    def looks(folder: Path, guid: bytes) -> None:
        format_tables(folder, guid)
        assert catalog.get("ws").state is State.CREATING
        for call in (
            lambda: catalog.create("ws", formatter=format_tables),
            lambda: catalog.rename("ws", "xs"),
            lambda: catalog.archive("ws"),
            lambda: catalog.destroy("ws"),
            lambda: catalog.set_property("ws", "a:b", "c"),
            lambda: catalog.acquire("ws", info={}),
        ):
            with pytest.raises(WrongState, match="CREATING") as caught:
                call()
            refused.append(caught.value)
        with Catalog.open(catalog.info.path) as other:  # settles what was interrupted, and this was not
            assert other.get("ws").state is State.CREATING

    assert catalog.create("ws", formatter=looks).state is State.ACTIVE
    assert len(refused) == 6


def test_a_listing_is_by_name_and_by_namespace(catalog: Catalog) -> None:
    for name in ("b", "a/x", "a-b", "a", "ab/x", "a/y"):
        catalog.create(name, formatter=format_tables)
    assert [str(i.name) for i in catalog.list()] == ["a", "a-b", "a/x", "a/y", "ab/x", "b"]
    assert [str(i.name) for i in catalog.list(Scope("a"))] == ["a/x", "a/y"]
    assert catalog.list(Scope("none")) == []
    assert numbers(catalog) == folders(catalog.info.path)


def test_properties_are_set_inherited_and_cleared(catalog: Catalog) -> None:
    catalog.create("team/ws", formatter=format_tables)
    catalog.create("ws", formatter=format_tables)

    def shown(name: str, of: str = "team/ws") -> tuple[str, str]:
        value = catalog.get(of).property(name)
        return value.human, value.source

    assert shown("recordsize") == ("128K", "default")
    assert catalog.set_property("/", "recordsize", "64K").source == "local"
    assert shown("recordsize") == ("64K", "inherited from /") == shown("recordsize", "ws")
    catalog.set_property("team/", "recordsize", "32K")
    assert shown("recordsize") == ("32K", "inherited from team/")
    assert shown("recordsize", "ws") == ("64K", "inherited from /")
    assert catalog.set_property("team/ws", "recordsize", "16K").exact == "16384"
    assert shown("recordsize") == ("16K", "local")
    catalog.rename("team/ws", "other/ws")
    assert shown("recordsize", "other/ws") == ("16K", "local")
    assert catalog.inherit_property("other/ws", "recordsize").source == "inherited from /"
    catalog.rename("other/ws", "team/ws")
    assert shown("recordsize") == ("32K", "inherited from team/")
    assert catalog.inherit_property("team/", "recordsize").human == "64K"
    assert catalog.inherit_property("/", "recordsize").source == "default"
    assert catalog.inherit_property("/", "recordsize").source == "default"
    assert shown("recordsize") == ("128K", "default")


def test_what_is_set_on_a_scope_can_be_asked_there_and_lasts(tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "store") as catalog:
        catalog.set_property("/", "a:b", "store" * 1600)
        catalog.set_property("team/", "a:b", "team")
    with Catalog.open(tmp_path / "store") as catalog:
        assert catalog.scope_layers(Scope("team")) == (
            ("local", {"a:b": "team"}),
            ("inherited from /", {"a:b": "store" * 1600}),
        )
        assert catalog.scope_layers(Scope()) == (("local", {"a:b": "store" * 1600}),)


def test_user_properties_of_the_greatest_length_fit_and_their_number_has_a_limit(catalog: Catalog) -> None:
    catalog.create("ws", formatter=format_tables)
    values = {f"a:{i}": chr(ord("a") + i % 26) * 8191 for i in range(31)}
    for name, value in values.items():
        catalog.set_property("ws", name, value)
    with pytest.raises(LimitReached, match="at most 256000"):
        catalog.set_property("ws", "a:more", "x" * 8191)
    assert catalog.get("ws").local == values
    renamed = catalog.rename("ws", "wss")
    assert renamed.local == values
    catalog.create("ws", formatter=format_tables)
    assert [dict(i.local) for i in catalog.list()] == [{}, values]
    for name in values:
        catalog.inherit_property("wss", name)
    assert catalog.get("wss").local == {}


def test_facts_are_properties_too(catalog: Catalog) -> None:
    info = catalog.create("ws", formatter=format_tables)
    found = info.properties({"used": "4096", "mounted": "no"})
    assert {n: found[n].parsable for n in ("type", "creation", "guid", "state", "origin", "used", "mounted")} == {
        "type": "filesystem",
        "creation": "1001",
        "guid": info.guid,
        "state": "active",
        "origin": "-",
        "used": "4096",
        "mounted": "no",
    }
    with pytest.raises(ReadOnly):
        catalog.set_property("ws", "used", "0")
    with pytest.raises(NotFound, match="nonsense"):
        info.property("nonsense")


def test_a_store_opened_for_reading_shows_everything_and_changes_nothing(tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "store") as catalog:
        info = catalog.create("ws", formatter=format_tables)
    with Catalog.open(tmp_path / "store", readonly=True) as catalog:
        assert catalog.info.readonly is not None
        assert catalog.list() == [info]
        for call in (
            lambda: catalog.create("xs", formatter=format_tables),
            lambda: catalog.rename("ws", "xs"),
            lambda: catalog.archive("ws"),
            lambda: catalog.destroy("ws"),
            lambda: catalog.set_property("ws", "a:b", "c"),
        ):
            with pytest.raises(ReadOnly):
                call()
        assert catalog.list() == [info]


def test_two_objects_of_one_process_share_a_store(tmp_path: Path) -> None:
    with Catalog.open(tmp_path / "store") as one, Catalog.open(tmp_path / "store") as two:
        one.create("ws", formatter=format_tables)
        assert two.get("ws").state is State.ACTIVE
        two.destroy("ws")
        assert one.list() == []


def test_a_closed_catalog_says_so(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "store", clock=ticking())
    catalog.close()
    catalog.close()
    with pytest.raises(InvalidArgument, match="is closed"):
        catalog.list()
    assert fds_below(tmp_path) == []


def test_every_error_of_a_command_is_one_of_ours(catalog: Catalog) -> None:
    catalog.create("ws", formatter=format_tables)
    os.chmod(catalog.info.path / "fs", 0)
    os.rename(catalog.info.path / "fs", catalog.info.path / "gone")
    for call in (
        lambda: catalog.create("xs", formatter=format_tables),
        lambda: catalog.archive("ws"),
        lambda: catalog.acquire("ws", info={}),
    ):
        with pytest.raises(TzfsError):
            call()
