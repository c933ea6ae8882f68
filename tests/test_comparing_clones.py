"""A clone compared with the snapshot that it came from: the same lines as if its changes had been made there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.test_diff import line
from tzfs import comparing
from tzfs.errors import Busy, InvalidArgument, NotFound
from tzfs.filesystem import FileSystem
from tzfs.management import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as store:
        store.create("ws")
        with store.open("ws") as fs:
            fill(fs)
        store.snapshot("ws@s")
        yield store


def fill(fs: FileSystem) -> None:
    for folder in "ab":
        fs.mkdir(f"/{folder}")
        for i in range(6):
            fs.write_bytes(f"/{folder}/{i}", b"%d" % i * (1 + 3000 * i))
    fs.link("/a/0", "/b/linked")
    fs.setxattr("/a/1", "user.x", b"x")


def change(fs: FileSystem, seed: int) -> None:
    """Some of everything, the same for a seed; whatever the clock says, times are set."""
    r = random.Random(seed)
    for count in range(14):
        files = [f"{here}/{name}".replace("//", "/") for here, _, names in fs.walk("/") for name in sorted(names)]
        there, new = r.choice(files), f"/{r.choice('ab')}/{seed}-{count}"
        what = r.randrange(8)
        if what == 0:
            fs.write_bytes(there, b"%d" % count * r.choice((1, 9000)))
        elif what == 1:
            fs.write_bytes(new, b"new")
        elif what == 2:
            fs.unlink(there)
        elif what == 3:
            fs.rename(there, new)
        elif what == 4:
            fs.link(there, new)
        elif what == 5:
            fs.setxattr(there, "user.x", b"%d" % count)
        elif what == 6:
            fs.chmod(there, 0o600 + count)
        else:
            with fs.open(there, "r+b") as file:
                file.truncate(r.choice((0, 1, 5000)))
    for here, folders, names in fs.walk("/"):
        for name in (*folders, *names):
            fs.utime(f"{here}/{name}".replace("//", "/"), atime_ns=1, mtime_ns=seed)
    fs.utime("/", atime_ns=1, mtime_ns=seed)


def told(store: Store, older: str, newer: str | None = None, path: str = "/") -> list[str]:
    return [line(found) for found in comparing.diff(store, older, newer, path)]


@pytest.mark.parametrize("seed", range(12))
def test_it_is_as_if_the_changes_had_been_made_in_the_origin(store: Store, seed: int) -> None:
    store.clone("ws@s", "c")
    assert told(store, "ws@s", "c") == []
    with store.open("c") as fs:
        change(fs, seed)
    store.snapshot("c@t")
    with store.open("ws") as fs:
        change(fs, seed)
    expected = told(store, "ws@s")
    assert expected
    assert told(store, "ws@s", "c") == told(store, "ws@s", "c@t") == expected
    assert told(store, "ws@s", "c", "/a") == told(store, "ws@s", "ws", "/a")
    assert list(comparing.patch(store, "ws@s", "c")) == list(comparing.patch(store, "ws@s"))

    store.clone("c@t", "d")
    with store.open("ws") as ws, store.open("d") as d:
        ws.snapshot("later")
        change(ws, seed + 1)
        change(d, seed + 1)
    assert told(store, "ws@s", "d") == told(store, "ws@s")
    assert told(store, "c@t", "d") == told(store, "ws@later", "ws")


def test_an_older_snapshot_of_the_origin_will_do(store: Store) -> None:
    with store.open("ws") as fs:
        fs.write_bytes("/between", b"")
    store.snapshot("ws@t")
    with store.open("ws") as fs:
        fs.write_bytes("/after", b"")
    store.clone("ws@t", "c")
    with store.open("c") as fs:
        fs.unlink("/b/5")
    assert told(store, "ws@t", "c") == ["M /b size,mtime", "- /b/5"]
    assert told(store, "ws@s", "c") == ["M / size,mtime", "M /b size,mtime", "- /b/5", "+ /between"]
    store.rename("ws", "team/ws")
    assert told(store, "team/ws@t", "c", "/b") == ["M /b size,mtime", "- /b/5"]


def test_what_a_clone_has_not_come_from_is_refused(store: Store) -> None:
    store.clone("ws@s", "c")
    store.clone("ws@s", "sibling")
    store.snapshot("ws@t")
    store.snapshot("c@own")
    with pytest.raises(InvalidArgument, match=r"cannot compare ws@t with c: that was cloned before it, from @s"):
        told(store, "ws@t", "c")
    for older, newer in (("c@own", "ws"), ("c@own", "sibling"), ("c@own", "ws@s")):
        with pytest.raises(InvalidArgument, match="no clone of it"):
            told(store, older, newer)
    with pytest.raises(NotFound, match="no snapshot c@none"):
        told(store, "ws@s", "c@none")
    with pytest.raises(NotFound, match="no such filesystem"):
        told(store, "ws@s", "none")
    with store.open("c"):
        assert told(store, "ws@s", "c@own") == []
        with pytest.raises(Busy):
            told(store, "ws@s", "c")


def test_a_clone_that_is_being_flattened_is_refused(store: Store) -> None:
    store.clone("ws@s", "c")
    store.snapshot("c@t")
    store.clone("c@t", "d")
    with store.open("c") as fs:
        fs.unlink("/a/1")
        fs._engine.flattening.begin()
    for newer in ("c", "c@t", "d"):
        with pytest.raises(InvalidArgument, match="cannot compare c with where it came from: it is being flattened"):
            told(store, "ws@s", newer)
    store.flatten("c")
    with pytest.raises(InvalidArgument):
        told(store, "ws@s", "c")
    assert told(store, "c@t", "c") == ["M /a size,mtime", "- /a/1"]
