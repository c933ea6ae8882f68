"""Every step of every command: a process that dies there, or an error met there, and what the next one finds."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.catalog.stores import folders, format_tables, guid_in, numbers
from tests.dying import died
from tests.store.stores import fds_below
from tzfs import catalog_rows as rows
from tzfs import failpoints
from tzfs.catalog import Catalog
from tzfs.errors import Exists, NoSpace, NotFound, TzfsError, WrongState
from tzfs.format.keys import CATALOG_TABLES, Table
from tzfs.lifecycle import State
from tzfs.store.lease import Lease
from tzfs.store.lmdb_store import LmdbMeta

POINTS = frozenset(name for name in failpoints.KNOWN if name.startswith(("catalog.", "meta.create.")))

A, R = State.ACTIVE, State.ARCHIVED
Stands = dict[str, tuple[State, str | None]]  # name -> state, the user property "a:b"


@dataclass(frozen=True)
class Case:
    """A command, what must be there for it, and what there is before and after it."""

    prepare: Callable[[Catalog], object]
    run: Callable[[Catalog], object]
    before: Stands
    after: Stands
    done: type[TzfsError] | None = None  # what the command says when it has been done already


def _made(catalog: Catalog) -> None:
    catalog.create("ws", formatter=format_tables)


def _archived(catalog: Catalog) -> None:
    _made(catalog)
    catalog.archive("ws")


CASES = {
    "open": Case(lambda c: None, lambda c: None, {}, {}),
    "create": Case(
        lambda c: None,
        lambda c: c.create("ws", formatter=format_tables, properties={"a:b": "1"}),
        {},
        {"ws": (A, "1")},
        Exists,
    ),
    "rename": Case(_made, lambda c: c.rename("ws", "ns/xs"), {"ws": (A, None)}, {"ns/xs": (A, None)}, NotFound),
    "archive": Case(_made, lambda c: c.archive("ws"), {"ws": (A, None)}, {"ws": (R, None)}, WrongState),
    "activate": Case(_archived, lambda c: c.activate("ws"), {"ws": (R, None)}, {"ws": (A, None)}, WrongState),
    "set": Case(_made, lambda c: c.set_property("ws", "a:b", "1"), {"ws": (A, None)}, {"ws": (A, "1")}),
    "destroy": Case(_made, lambda c: c.destroy("ws"), {"ws": (A, None)}, {}, NotFound),
}


def _prepare(root: Path, case: Case, name: str) -> None:
    if name != "open":
        with Catalog.open(root) as catalog:
            case.prepare(catalog)


def _steps(name: str, tmp_path: Path) -> list[tuple[str, int]]:
    """Every point that opening the store and running the command passes, with the number of the passage."""
    case = CASES[name]
    root = tmp_path / "counted"
    _prepare(root, case, name)
    with failpoints.counting() as counts:
        catalog = Catalog.open(root)
        case.run(catalog)
        found = dict(counts)
    catalog.close()
    return [(point, n) for point, hits in found.items() for n in range(hits)]


def _sound(root: Path) -> Stands:
    """What there is after all that was interrupted is ended; fails unless records, indexes and folders agree."""
    with Catalog.open(root) as catalog:
        assert catalog.unsettled == []
        infos = catalog.list()
        assert folders(root) == numbers(catalog)
        for info in infos:
            assert guid_in(info.folder) == bytes.fromhex(info.guid)
            assert Lease.holder(info.folder) is None
            assert catalog.refresh(info) == info
        assert sorted(os.listdir(root)) == ["catalog", "fs"]
        stands = {str(info.name): (info.state, info.property("a:b").exact) for info in infos}
    meta = LmdbMeta(root / "catalog", tables=CATALOG_TABLES, readonly=True)
    txn = meta.begin_read()
    assert rows.pending(txn) == []
    assert len(list(txn.range(Table.CATALOG_STORE, b"partition/", b"partition0"))) == len(stands)
    meta.close()
    return stands


def _again(root: Path, case: Case, stands: Stands) -> None:
    """The command does now what it should have done, or says that it was done."""
    with Catalog.open(root) as catalog:
        if stands == case.after and case.done is not None:
            with pytest.raises(case.done):
                case.run(catalog)
        else:
            case.run(catalog)
    assert _sound(root) == case.after


def test_the_commands_pass_every_point_that_is_this_suites(tmp_path: Path) -> None:
    passed = {point for name in CASES for point, _ in _steps(name, tmp_path / name)}
    assert passed >= POINTS


def _run(case: Case, root: Path) -> None:
    case.run(Catalog.open(root))


@pytest.mark.parametrize("name", CASES)
def test_after_a_crash_at_any_step_the_command_has_happened_or_not_and_works_again(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    steps = _steps(name, tmp_path)
    seen = set()
    for number, (point, n) in enumerate(steps):
        root = tmp_path / f"s{number}"
        _prepare(root, case, name)
        assert died(partial(_run, case, root), point, n), (point, n)
        stands = _sound(root)
        assert stands in (case.before, case.after), (point, n)
        seen.add(stands == case.after)
        _again(root, case, stands)
    assert len(steps) > 5
    assert seen == ({True} if name == "open" else {True, False})


@pytest.mark.parametrize("action", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", CASES)
def test_after_an_error_at_any_step_nothing_is_left_over_and_the_command_works_again(
    tmp_path: Path, name: str, action: str
) -> None:
    case = CASES[name]
    for number, (point, n) in enumerate(_steps(name, tmp_path)):
        root = tmp_path / f"s{number}"
        _prepare(root, case, name)
        failpoints.arm(point, f"error:{action}", after=n)
        catalog, raised = None, None
        try:
            catalog = Catalog.open(root)
            case.run(catalog)
        except TzfsError as error:
            raised = error
        assert not isinstance(raised, NoSpace) or action == "ENOSPC"
        if raised is None:
            # Only where the point's work can be done without: a reserve for what frees space, giving back a lock.
            assert point in ("meta.reserve", "lease.release"), (point, n)
        failpoints.disarm_all()
        if catalog is not None:
            assert fds_below(root / "fs") == []
            if name == "destroy" and [info.state for info in catalog.list()] == [State.DELETING]:
                case.run(catalog)  # goes on where it stood, in the same open store
                assert catalog.list() == []
            catalog.close()
        assert fds_below(root) == [], (point, n)
        stands = _sound(root)
        assert stands in (case.before, case.after), (point, n)
        _again(root, case, stands)


def test_a_crash_while_ending_what_a_crash_interrupted_is_ended_by_the_next(tmp_path: Path) -> None:
    for number, (first, second) in enumerate(
        (first, second)
        for first in ("catalog.create.formatted", "catalog.destroy.recorded")
        for second in (
            "catalog.remove.entry",
            "catalog.remove.folder",
            "catalog.remove.sync",
            "catalog.destroy.removed",
        )
    ):
        root = tmp_path / f"s{number}"
        case = CASES["create" if "create" in first else "destroy"]
        with Catalog.open(root) as catalog:
            case.prepare(catalog)
        for point in (first, second, second if "entry" in second else "meta.open.readers"):
            assert died(partial(_run, case, root), point), (first, second, point)
        assert _sound(root) == {}


def test_what_cannot_be_ended_is_told_and_does_not_stop_other_commands(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Catalog.open(root) as catalog:
        catalog.create("ws", formatter=format_tables)
        failpoints.arm("catalog.destroy.recorded", "error:EIO")
        with pytest.raises(TzfsError):
            catalog.destroy("ws")
    failpoints.arm("catalog.remove.entry", "error:EIO")
    with Catalog.open(root) as catalog:
        assert len(catalog.unsettled) == 1
        assert os.strerror(errno.EIO) in catalog.unsettled[0]
        assert catalog.get("ws").state is State.DELETING
        catalog.create("xs", formatter=format_tables)
        lock = catalog._session.layout.lock_transition(catalog.get("ws").partition)
        assert lock is not None
        with lock, pytest.raises(WrongState, match="DELETING"):  # as if another process were at it
            catalog.archive("ws")
        with pytest.raises(NotFound):  # the command that meets it ends it first
            catalog.archive("ws")
    assert set(_sound(root)) == {"xs"}
