"""What C answers is what the engine says at that moment, after any operations in any order.

The handlers of a real `Operations` over a real engine are called as pyfuse3 calls them; after each step C is asked for
every name in every directory and for every node.  What it leaves to the handlers is fine; what it answers must be so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import pyfuse3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiers
from tests.mount.answers_world import (
    CONTEXT,
    GUID,
    NUMBERS,
    STEPS,
    Refused,
    at,
    create,
    create_at_once,
    evict,
    link,
    look_at,
    lookup,
    made,
    mkdir,
    mknod,
    opendir,
    post,
    readdir,
    release,
    rename,
    result,
    run,
    write,
    xattr,
)
from tests.mount.wire import Kernel
from tzfs.engine.engine import Engine, Settings
from tzfs.errors import StoreError
from tzfs.format.keys import ROOT
from tzfs.format.records import Inode
from tzfs.mount.operations import Operations
from tzfs.store.memory import MemoryMeta, MemoryPayload


@pytest.fixture(autouse=True, scope="module")
def replies() -> Iterator[None]:
    """pyfuse3's token has room only where the kernel has given it: here it is a list of names, and how many fit."""
    true = pyfuse3.readdir_reply

    def reply(token: tuple[list[bytes], int], name: bytes, attributes: object, next_id: int) -> bool:
        taken, room = token
        if len(taken) >= room:
            return False
        taken.append(name)
        return True

    pyfuse3.readdir_reply = cast(Any, reply)
    yield
    pyfuse3.readdir_reply = true


@settings(max_examples=tiers.number("ANSWERS", short=120, long=2000), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(STEPS) - 1), NUMBERS, NUMBERS, NUMBERS), min_size=20, max_size=50),
    st.booleans(),
    st.booleans(),
)
def test_what_is_answered_is_what_the_engine_says(
    steps: list[tuple[int, int, int, int]], crowded: bool, warm: bool
) -> None:
    run(steps, crowded=crowded, warm=warm)


def test_most_of_what_is_known_is_answered() -> None:
    """Else the invariant would hold of an empty cache."""
    w = run([at(mkdir), at(mknod, 1, 0), at(mknod, 1, 1), at(readdir, 0, 5, 0), at(lookup, 1, 0)])
    assert w.answered > w.checked / 2


def test_small_writes_of_all_that_a_file_has_are_posted() -> None:
    w = run([at(create, 0, 3), at(post, 0, 1, 2), at(post, 0, 9, 2), at(post, 0, 60, 2), at(post, 0, 3, 2)], warm=True)
    assert w.posted == 6  # one is shorter than what there is then
    assert len(w.writing) == 2


def test_unlinks_of_what_is_known_are_posted() -> None:
    steps = [at(mknod, 0, 2), at(post, 1, 2, 7), at(lookup, 0, 2), at(create, 0, 3), at(post, 1, 3, 7)]
    two_names = [at(mknod, 0, 2), at(link, 0, 3, 8), at(post, 1, 3, 7), at(post, 1, 2, 7)]
    w = run([*steps, *two_names, at(look_at, 8), at(release)], warm=True)
    assert len(w.nodes) == 9
    assert w.unlinked == 4


def test_a_file_found_and_cut_by_a_create_is_told_as_it_is_then(monkeypatch: pytest.MonkeyPatch) -> None:
    w = made()
    with w.kernel:
        create(w, 0, 0, 0)
        assert w.operations.write_at_once(w.writing[0], 0, b"contents") == 8
        setattr_ = w.engine.setattr

        def forgetful(*arguments: Any, **changes: Any) -> Inode:
            """A commit comes first, and the inode leaves the engine's cache."""
            w.engine.commit()
            w.engine._head.inodes.clear()
            return setattr_(*arguments, **changes)

        monkeypatch.setattr(w.engine, "setattr", forgetful)
        create_at_once(w, 0, 0, 1)
        w.check()


def test_a_write_of_nothing_changes_no_time() -> None:
    steps = [at(mknod, 0, 2), at(create, 0, 3), at(release), at(xattr, 7, 0, 1), at(write)]
    assert run(steps, warm=True).writing


def test_a_listing_during_which_names_were_driven_out_makes_no_directory_complete() -> None:
    w = made()
    with w.kernel:
        for step in (at(mkdir), at(mknod, 1, 0), at(mknod, 1, 1), at(evict), at(opendir, 1)):
            STEPS[step[0]](w, *step[1:])
        readdir(w, 0, 2, 1)  # `.`, `..`, "a"
        evict(w, 0, 0, 0)
        readdir(w, 0, 5, 1)  # "b", and the end
        assert w.kernel.lookup(w.nodes[1], b"c") is None
        w.check()
        readdir(w, 0, 5, 0)  # all of it
        assert w.kernel.lookup(w.nodes[1], b"c") is not None
        w.check()


def test_an_operation_that_breaks_off_half_way_ends_all_answers_at_once() -> None:
    """What it left in memory was never committed, and the engine answers nothing more."""
    broken = False

    def clock() -> int:
        if broken:
            raise OSError("no time")
        return 1

    meta = MemoryMeta()
    Engine.format(meta, guid=GUID, now_ns=1)
    engine = Engine(meta, MemoryPayload(), settings=Settings(), clock=clock)
    operations = Operations(engine)
    operations.answers.start(unchecked=True)
    with Kernel(operations.answers) as kernel:
        entry = result(operations.mkdir(ROOT, b"d", 0o755, CONTEXT))
        node = int(cast(Any, entry.st_ino))
        asked: list[Callable[[], object]] = [
            lambda: kernel.lookup(ROOT, b"d"),
            lambda: kernel.lookup(node, b"absent"),
            lambda: kernel.getattr(node),
            lambda: kernel.open(node, os.O_RDWR),
            lambda: kernel.access(node, os.R_OK),
        ]
        assert None not in [ask() for ask in asked]
        with pytest.raises(Refused):
            result(operations.mkdir(ROOT, b"e" * 256, 0o755, CONTEXT))  # refused before anything has changed
        assert None not in [ask() for ask in asked]
        broken = True
        with pytest.raises(Refused):
            result(operations.mkdir(ROOT, b"e", 0o755, CONTEXT))
        assert [ask() for ask in asked] == [None] * len(asked)
        with pytest.raises(Refused):
            result(operations.getattr(node, CONTEXT))
    engine.abandon()


def test_what_a_rename_replaces_is_told_of_when_it_is_forgotten() -> None:
    w = made()
    with w.kernel:
        for step in (at(create, 0, 0), at(create, 0, 1), at(rename, 0, 0, 4)):  # "a" over "b"
            STEPS[step[0]](w, *step[1:])
        replaced = w.nodes[2]
        assert w.engine.orphan_inodes() == [replaced]
        assert w.kernel.getattr(replaced) is None, "what it says is from before"
        w.check()
        assert w.kernel.forget(replaced, 1)
        w.operations.answers.bury()
        assert w.engine.orphans == 0


def test_what_a_listing_has_told_counts_also_where_it_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refers to the entries of an answer: an error instead of it would leave them counted for ever."""
    w = made()
    names = [b"%03d" % number for number in range(60)]  # more than one batch
    for each in names:
        w.engine.mknod(ROOT, each, 0o100644, uid=0, gid=0)
    handle = result(w.operations.opendir(ROOT, CONTEXT))
    true = w.engine.readdir_plus

    def failing(ino: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        if after:
            raise StoreError("meta: read: Input/output error")
        return true(ino, after, limit)

    with w.kernel:
        monkeypatch.setattr(w.engine, "readdir_plus", failing)
        taken: list[bytes] = []
        result(w.operations.readdir(handle, 0, cast(Any, (taken, 1000))))
        assert taken == [b".", b"..", *names[:48]]
        with pytest.raises(Refused, match="5"):
            result(w.operations.readdir(handle, len(taken), cast(Any, (taken, 1000))))
        monkeypatch.undo()
        result(w.operations.readdir(handle, len(taken), cast(Any, (taken, 1000))))
        assert taken == [b".", b"..", *names, b".zfs"]
        assert [w.operations.answers.forget(node, 1) for node in range(2, 62)] == [True] * 60
