"""The log of a filesystem: what is in it, what is durable, what is cut, what goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.conftest import Workspace
from tests.engine.test_redo import Logged
from tzfs.engine.rollback import Rollback
from tzfs.format.log import BODY_BYTES_MAX, Entry, pack_entry, unpack_entry


def kinds(ws: Workspace) -> list[tuple[str, object]]:
    """The entries, oldest first, each with the first of its fields."""
    return [(e.kind, next(iter(e.fields.values()), None)) for e in reversed([*ws.engine.journal.entries()])]


def finish(rollback: Rollback) -> None:
    while rollback.step():
        pass


def test_what_is_done_to_snapshots_is_logged_in_the_commit_that_does_it(ws: Workspace) -> None:
    ws.file(b"a")
    ws.engine.snapshot("one")
    ws.file(b"b")
    ws.engine.marks.hold("tag", ["one"])
    ws.engine.marks.release("tag", ["one"])
    ws.engine.marks.label(["one"], {"agent:step": "1"})
    ws.engine.marks.rename("one", "uno")
    ws.engine.bookmarks.create("uno", "mark")
    ws.engine.bookmarks.destroy(["mark"])
    finish(ws.engine.rollback("uno"))
    ws.engine.snapshot("two")
    ws.engine.destroy(["uno"])
    logged = kinds(ws)
    assert [kind for kind, _ in logged] == [
        "snapshot", "hold", "release", "label", "rename", "bookmark", "destroy", "rollback", "snapshot", "destroy"
    ]  # fmt: skip
    ws.crash()
    assert kinds(ws) == logged


@pytest.mark.parametrize("beside", [False, True])
def test_an_entry_from_before_an_fsync_is_there_after_a_crash(beside: bool) -> None:
    fs = Logged()
    if beside:
        fs.file(b"f", b"contents")
    fs.engine.journal.append("run", said="begun")
    fs.engine.harden()
    fs.engine.journal.amend(1, said="ended")
    fs.engine.harden()
    fs.engine.journal.append("run", said="lost")
    fs.crash()
    assert [entry.fields for entry in fs.engine.journal.entries()] == [{"said": "ended"}]
    fs.engine.close()


def test_numbers_ascend_over_crashes_and_the_newest_are_kept(ws: Workspace) -> None:
    ws.engine.configure(replace(ws.engine.settings, log_max=16))
    for number in range(1, 41):
        assert ws.engine.journal.append("command", number=number) == number
    assert [e.number for e in ws.engine.journal.entries()] == list(range(40, 24, -1))
    ws.engine.commit()
    ws.crash()
    assert ws.engine.journal.append("command") == 41


def test_a_lowered_bound_is_reached_in_steps(ws: Workspace) -> None:
    for _ in range(200):
        ws.engine.journal.append("command")
    ws.engine.configure(replace(ws.engine.settings, log_max=16))
    ws.engine.journal.append("command")
    assert len([*ws.engine.journal.entries()]) == 201 - 64
    for _ in range(3):
        ws.engine.journal.append("command")
    assert [e.number for e in ws.engine.journal.entries()] == list(range(204, 188, -1))


def test_an_entry_that_is_not_committed_goes_with_a_crash_whole(ws: Workspace) -> None:
    ws.engine.journal.append("command", step=1)
    ws.engine.commit()
    ws.engine.journal.append("command", step=2)
    ws.engine.journal.amend(1, step=3)
    ws.crash()
    assert kinds(ws) == [("command", 1)]


def test_an_amended_entry_keeps_its_time_and_what_it_said(ws: Workspace) -> None:
    number = ws.engine.journal.append("command", argv=["make"])
    before = ws.engine.journal.get(number)
    ws.engine.journal.amend(number, code=2)
    ws.engine.journal.amend(999, code=2)
    found = ws.engine.journal.get(number)
    assert before is not None
    assert found == replace(before, fields={"argv": ["make"], "code": 2})


def test_a_listener_hears_what_is_durable_in_order(ws: Workspace) -> None:
    heard: list[str] = []
    ws.engine.journal.listeners.append(lambda entry: heard.append(entry.kind))
    ws.engine.journal.append("command")
    assert heard == []
    ws.engine.snapshot("one")
    assert heard == ["command", "snapshot"]
    ws.engine.journal.append("lost")
    ws.crash()
    assert heard == ["command", "snapshot"]


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ["x" * 100_000]},
        {"argv": ["-a"] * 100_000},
        {"argv": ["\N{SNOWMAN}" * 1000] * 1000},
        {f"field{n}": "\0" * 1000 for n in range(100)},
    ],
)
def test_what_is_too_long_is_cut_and_says_so(ws: Workspace, fields: dict[str, str | list[str]]) -> None:
    number = ws.engine.journal.append("command", **fields)
    found = ws.engine.journal.get(number)
    assert found is not None
    assert found.fields["cut"] is True
    assert found.kind == "command"


def test_a_body_of_a_whole_page_is_not_cut() -> None:
    entry = unpack_entry(17, b"", pack_entry(1, "k", {"a": ["\ud800", "\udcff"], "\ud800": {"\ud800": 1}}), 5)
    assert entry.fields == {"a": ["\\xed\\xa0\\x80", "\\xff"], "\\xed\\xa0\\x80": {"\\xed\\xa0\\x80": 1}}
    room = BODY_BYTES_MAX - len(pack_entry(1, "k", {"a": ""}))
    body = pack_entry(1, "k", {"a": "x" * room})
    assert len(body) == BODY_BYTES_MAX
    assert unpack_entry(17, b"", body, 5) == Entry(5, 1, "k", {"a": "x" * room})
    assert unpack_entry(17, b"", pack_entry(1, "k", {"a": "x" * (room + 1)}), 5).fields["cut"] is True


def test_what_is_no_text_is_escaped() -> None:
    assert unpack_entry(17, b"", pack_entry(1, "k", {"a": ["caf\udce9"]}), 1).fields == {"a": ["caf\\xe9"]}
