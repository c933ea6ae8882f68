"""Properties set on, or taken from, several targets, while mounts cannot be told or a target cannot be changed."""

from __future__ import annotations

import re

import pytest

from tests.cli.command_line import CommandLine
from tzfs import properties
from tzfs.catalog import Catalog, FilesystemInfo
from tzfs.errors import Busy, LimitReached, NotFound, StoreError, TzfsError, exit_code_of
from tzfs.management import Store, open_store


@pytest.mark.parametrize("refusal", [StoreError, Busy])
def test_each_mount_is_told_of_a_property_whatever_keeps_another_from_it(
    three: CommandLine, monkeypatch: pytest.MonkeyPatch, refusal: type[TzfsError]
) -> None:
    """All that could not be told are named, but for one that went meanwhile: `holder`."""
    holder: dict[str, str] | None = {"kind": "mount"}
    told: list[str] = []

    class Mount:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> Mount:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def call(self, method: str) -> None:
            assert method == "property.changed"
            if self.name == "b":
                raise refusal("the mount answers nobody")
            told.append(self.name)

    def mounted(self: Store, info: FilesystemInfo, **how: object) -> Mount:
        if str(info.name) == "a":
            raise StoreError("its lock is not a file")
        return Mount(str(info.name))

    monkeypatch.setattr(Store, "mounted", mounted)
    monkeypatch.setattr(Catalog, "holder", lambda *_: holder)
    hint = (
        "hint: it is changed all the same; the same command once more tells a mount that has not heard of it; "
        "tzfs status shows which do not answer\n"
    )
    both = three.refused("set", "snapdir=visible", "/", code=74)
    assert both == "tzfs: a: its lock is not a file; b: the mount answers nobody\n" + hint
    assert told == ["c"]
    told_b = three.refused("set", "snapdir=hidden", "b", code=exit_code_of(refusal("")))
    assert told_b == "tzfs: b: the mount answers nobody\n" + hint
    if refusal is StoreError:
        holder = None
        assert three.refused("set", "snapdir=visible", "/", code=74) == "tzfs: a: its lock is not a file\n" + hint
        three.ok("set", "snapdir=hidden", "b")
    monkeypatch.undo()
    assert three.ok("get", "-H", "-o", "value", "snapdir", "a", "b") == "visible\nhidden\n"


@pytest.mark.parametrize(
    ("line", "properties"),
    [
        (["set", "snapdir=visible", "a:b=c", "a", "b"], ["snapdir", "a:b"]),
        (["inherit", "retention", "a", "b"], ["retention"]),
        (["policy", "inherit", "a", "b"], ["retention", "retention_names", "snapshot_interval"]),
    ],
)
def test_a_mount_that_is_not_told_keeps_nothing_else_from_being_changed(
    three: CommandLine, monkeypatch: pytest.MonkeyPatch, line: list[str], properties: list[str]
) -> None:
    def mounted(self: Store, info: FilesystemInfo, **how: object) -> None:
        raise StoreError("its lock is not a file")

    for name in ("a", "b"):
        three.ok("policy", "set", "--names", "*", "--every", "10m", name, "24x1h")
    monkeypatch.setattr(Store, "mounted", mounted)
    answer = three(*line)
    assert (answer.code, answer.out) == (74, "")
    assert answer.err.startswith("tzfs: a: its lock is not a file; b: its lock is not a file\nhint: it is changed all")
    monkeypatch.undo()
    changed = "local" if line[0] == "set" else "default"
    sources = three.ok("get", "-H", "-o", "source", ",".join(properties), "a", "b").split()
    assert sources == [changed] * 2 * len(properties)


@pytest.mark.parametrize(
    "line",
    [
        ["inherit", "u:x", "a", "gone"],
        ["inherit", "u:x", "gone", "a@s"],
        ["inherit", "u:x", "a@s", "gone"],
        ["policy", "inherit", "a", "gone"],
    ],
)
def test_nothing_is_inherited_where_one_of_several_is_not_there(three: CommandLine, line: list[str]) -> None:
    three.ok("policy", "set", "a", "24x1h")
    three.ok("set", "u:x=1", "a", "a@s")
    assert three(*line).err.startswith("tzfs: cannot clear a property of gone: there is no such filesystem\n")
    assert three(*line).code == exit_code_of(NotFound(""))
    assert three.ok("get", "-H", "-o", "value", "retention", "a") == "24x1h\n"
    assert three.ok("get", "-H", "-o", "value", "u:x", "a", "a@s") == "1\n1\n"


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_changed_before_another_cannot_be_is_told_to_the_mounts(
    three: CommandLine, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """The properties of one are too long together, which is seen when the last of them is set."""
    told: list[str] = []

    def mounted(self: Store, info: FilesystemInfo, **how: object) -> None:
        told.append(str(info.name))
        if kept:
            raise StoreError("the mount answers nobody")

    long = "x" * properties.USER_VALUE_BYTES_MAX
    three.ok("set", *(f"u:{number}={long}" for number in range(30)), "b")
    monkeypatch.setattr(Store, "mounted", mounted)
    answer = three("set", "snapdir=visible", f"u:30={long}", f"u:31={long}", "a", "b", "a", "c")
    first, *rest = answer.err.splitlines()
    reason, *untold = first.split("; at most 256000 are allowed")
    assert re.fullmatch(r"tzfs: the properties of b would take \d+ bytes", reason)
    assert untold == ["; a: the mount answers nobody; b: the mount answers nobody" if kept else ""]
    assert not any("changed all the same" in line for line in rest)
    assert answer.code == exit_code_of(LimitReached(""))
    assert told == ["a", "b"], "once each, and not the one that was not reached"
    monkeypatch.undo()
    assert three.ok("get", "-H", "-o", "value", "snapdir", "a", "b", "c") == "visible\nvisible\nhidden\n"


def test_all_are_changed_before_the_first_mount_is_told(three: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def mounted(self: Store, info: FilesystemInfo, **how: object) -> None:
        seen.append([self.properties(name, settle=False)["snapdir"].exact or "" for name in ("a", "b", "c")])

    monkeypatch.setattr(Store, "mounted", mounted)
    three.ok("set", "snapdir=visible", "a", "b", "a", "/")
    assert seen == [["visible"] * 3] * 3, "each of the three is told once"


@pytest.mark.parametrize("of", ["c", None])
def test_the_mount_of_what_has_the_name_when_it_is_changed_is_told(
    three: CommandLine, monkeypatch: pytest.MonkeyPatch, of: str | None
) -> None:
    """The name goes to another filesystem after it was looked at, or is gone once it was changed."""
    told: list[str] = []
    with open_store(three.store) as store:
        guids = {store.get(name).guid: name for name in "abc"}
    change = Store.change_property

    def changing(self: Store, target: str, name: str, text: str, *, settle: bool) -> None:
        if str(target) == "b" and of is not None:
            self.rename("b", "d")
            self.rename(of, "b")
        change(self, target, name, text, settle=settle)
        if str(target) == "b" and of is None:
            self.rename("b", "d")

    def mounted(self: Store, info: FilesystemInfo, **how: object) -> None:
        told.append(guids[info.guid])

    monkeypatch.setattr(Store, "change_property", changing)
    monkeypatch.setattr(Store, "mounted", mounted)
    three.ok("set", "snapdir=visible", "a", "b")
    assert told == ["a", of or "b"]
