"""Streams: what is received is what was sent; what is no stream, or a bad one, changes nothing."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.conftest import Workspace
from tests.engine.histories import everything
from tests.engine.plain import ROOT
from tests.engine.streams import frames_of, into, sent, sent_on, tree
from tests.engine.world import WEIGHTS, MemoryStores, World
from tzfs import limits
from tzfs.engine.compression import Compression
from tzfs.engine.engine import Engine
from tzfs.engine.partial import pack_token, unpack_token
from tzfs.errors import (
    BadStream,
    Busy,
    Diverged,
    Exists,
    ForeignStore,
    InvalidArgument,
    LimitReached,
    NotFound,
)
from tzfs.format import stream
from tzfs.format.stream import Frame, How, Kind
from tzfs.receiving import Cut

REFUSED = (BadStream, ForeignStore, Diverged, Exists, LimitReached)
CHANGES = (
    "create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write", "truncate", "chmod", "chown",
    "setxattr", "removexattr", "open", "forget", "commit", "absorb", "flush", "background",
)  # fmt: skip
NAMES = ("first", "second", "third", "fourth")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A filesystem with something of everything, and four snapshots."""
    fs = everything(monkeypatch).fs
    engine = Engine(fs.meta, fs.payload)
    engine.snapshot("fourth", {"test:a": "1"})
    return engine


# -- round trips -------------------------------------------------------------------------------------------------------


def test_a_snapshot_and_each_after_it_arrive_whole(source: Engine, ws: Workspace) -> None:
    assert into(ws.engine, sent(source, "first")) == ("first",)
    for base, name in pairwise(NAMES):
        assert into(ws.engine, sent(source, name, base)) == (name,)
    assert_trees(source, ws.engine, *NAMES)


def assert_trees(source: Engine, target: Engine, *names: str) -> None:
    for name in names:
        assert tree(target.view(name)) == tree(source.view(name))
    assert target.problems() == []


def test_all_snapshots_at_once_keep_their_order_names_and_guids(source: Engine, ws: Workspace) -> None:
    assert into(ws.engine, sent(source, "fourth", recursive=True)) == NAMES
    assert_trees(source, ws.engine, *NAMES)
    assert [(n, s.guid, s.created_ns, s.properties) for n, s in ws.engine.snapshots().items()] == [
        (n, s.guid, s.created_ns, s.properties) for n, s in source.snapshots().items()
    ]
    assert tree(ws.engine.view("fourth"))[1] == tree(source.view("fourth"))[1]


def test_a_bookmark_serves_when_its_snapshot_is_gone(source: Engine, ws: Workspace) -> None:
    into(ws.engine, sent(source, "first"))
    source.bookmarks.create("first", "mark")
    source.destroy(["first", "second"])
    while source.background_step() or source.dirty:
        source.commit()
    into(ws.engine, sent(source, "fourth", "#mark"))
    assert_trees(source, ws.engine, "fourth")


def test_an_incremental_stream_may_skip_snapshots(source: Engine, ws: Workspace) -> None:
    into(ws.engine, sent(source, "first"))
    assert into(ws.engine, sent(source, "fourth", "first"), called="renamed") == ("renamed",)
    assert tree(ws.engine.view("renamed")) == tree(source.view("fourth"))


def test_what_was_received_can_be_written_and_sent_back(source: Engine, ws: Workspace) -> None:
    into(ws.engine, sent(source, "fourth", recursive=True))
    ino = ws.file(b"new here", b"n" * 9000)
    ws.engine.unlink(1, b"small")
    ws.engine.snapshot("back")
    assert ino > max(tree(source.view("fourth")))
    source.mkdir(1, b"other again", 0o755, uid=0, gid=0)
    with pytest.raises(Diverged):
        into(source, sent(ws.engine, "back", "fourth"))
    into(source, sent(ws.engine, "back", "fourth"), force=True)
    assert_trees(ws.engine, source, "back")


@pytest.mark.parametrize("seed", range(4))
def test_histories_arrive(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECLAIM_AT_ONCE_CHUNKS", 2)
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 5)
    monkeypatch.setattr(limits, "RECLAIM_BATCH_CHUNKS", 3)
    world, target = World(MemoryStores()), Workspace()
    compression = Compression.named(("off", "zstd")[seed % 2])  # of the target; the source changes its own
    target.engine.configure(replace(target.engine.settings, compression=compression))
    r = random.Random(seed)
    kinds = {kind: weight for kind, weight in WEIGHTS.items() if kind in (*CHANGES, "compression")}
    base: str | None = None
    for number in range(400):
        kind = r.choices(list(kinds), list(kinds.values()))[0]
        world.apply((kind, r.randrange(64), r.randrange(64), r.randrange(64), r.randrange(64)))
        if number % 25 == 24:
            world._let_jobs_end()
            source, name = world.engine, f"sent-{number}"
            source.snapshot(name)
            into(target.engine, sent(source, name, base))
            assert_trees(source, target.engine, name)
            if number % 75 == 74:
                whole = Workspace().engine
                into(whole, sent(source, name))
                assert_trees(source, whole, name)
            base = name
            if r.random() < 0.5:
                source.bookmarks.create(name, name)
                source.destroy([name])
                base = f"#{name}"
    while target.engine.background_step() or target.engine.dirty:
        target.engine.commit()
    assert target.engine.problems() == []


# -- wrong bases -------------------------------------------------------------------------------------------------------


def test_a_stream_on_a_wrong_base_is_refused_with_a_reason(source: Engine, ws: Workspace) -> None:
    whole, second, third = sent(source, "first"), sent(source, "second", "first"), sent(source, "third", "second")
    with pytest.raises(Diverged, match="starts from second, which the filesystem does not have"):
        into(ws.engine, third)
    into(ws.engine, whole)
    with pytest.raises(Exists):
        into(ws.engine, whole)
    with pytest.raises(Diverged, match="does not have"):
        into(ws.engine, third)
    ws.file(b"mine")
    with pytest.raises(Diverged, match="has changed since @first"):
        into(ws.engine, second)
    ws.engine.snapshot("newer")
    with pytest.raises(Diverged, match="has newer snapshots: newer"):
        into(ws.engine, second)
    assert list(ws.engine.snapshots()) == ["first", "newer"]
    assert into(ws.engine, second, force=True) == ("second",)
    assert list(ws.engine.snapshots()) == ["first", "second"]
    assert_trees(source, ws.engine, "first", "second")
    with pytest.raises(Exists):
        into(ws.engine, third, called="first")
    assert ws.engine.find(1, b"mine") is None


def test_what_cannot_be_sent_is_refused(source: Engine) -> None:
    for arguments, error in (
        (("nothing",), NotFound),
        (("second", "nothing"), NotFound),
        (("second", "#nothing"), NotFound),
        (("second", "third"), InvalidArgument),
        (("second", "second"), InvalidArgument),
    ):
        with pytest.raises(error):
            sent(source, *arguments)


# -- cuts --------------------------------------------------------------------------------------------------------------


def test_a_stream_cut_after_any_frame_goes_on_from_there(
    source: Engine, make: Callable[[], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STAGING_BATCH_KEYS", 3)
    data = sent(source, "fourth", recursive=True)
    less = 0
    for end, frame in frames_of(data)[:-1]:
        ws = make()
        ws.engine.settings.dirty_bytes_max = 9000
        with pytest.raises((BadStream, Cut)) as cut:
            into(ws.engine, data[: end + 5], resumable=True)
        done = list(ws.engine.snapshots())
        if not isinstance(cut.value, Cut):
            assert (frame.kind, done) == (Kind.BEGIN, [])
            ws.assert_sound()
            continue
        partial = unpack_token(cut.value.token)
        assert pack_token(partial) == cut.value.token
        ws.engine.close()
        ws.meta, ws.payload = ws.meta.after_crash(), ws.payload.after_crash()
        with pytest.raises(Busy):
            Engine(ws.meta, ws.payload)
        ws.engine = Engine(ws.meta, ws.payload, receiving=True)
        rest = sent_on(source, partial)
        less += len(rest) < len(data) // 2
        into(ws.engine, rest, resumable=True)
        assert_trees(source, ws.engine, *NAMES)
        ws.engine.close()
        ws.engine = Engine(ws.meta.after_crash(), ws.payload.after_crash())
        ws.assert_sound()
    assert less > 10


def test_a_cut_within_a_file_does_not_send_again_what_has_come(ws: Workspace, make: Callable[[], Workspace]) -> None:
    ws.file(b"large", random.Random(1).randbytes(60 << 17))
    ws.engine.snapshot("s")
    data = sent(ws.engine, "s")
    other = make()
    with pytest.raises(Cut) as cut:
        into(other.engine, data[: len(data) * 2 // 3], resumable=True)
    rest = sent_on(ws.engine, unpack_token(cut.value.token))
    assert len(rest) < len(data) // 2
    into(other.engine, rest)
    assert_trees(ws.engine, other.engine, "s")


def test_a_stream_that_is_cut_is_withdrawn_unless_it_may_go_on(source: Engine, ws: Workspace) -> None:
    into(ws.engine, sent(source, "first"))
    before = tree(ws.engine.view("first"))
    data = sent(source, "third", "first")
    for end, _ in frames_of(data)[:-2]:
        with pytest.raises(BadStream, match="cut off"):
            into(ws.engine, data[:end])
        assert list(ws.engine.snapshots()) == ["first"]
        assert ws.engine.problems() == []
    assert tree(ws.engine.view("first")) == before
    ws.file(b"usable")


def test_a_receive_that_was_cut_can_be_given_up(source: Engine, ws: Workspace) -> None:
    into(ws.engine, sent(source, "first"))
    data = sent(source, "third", "first")
    with pytest.raises(Cut):
        into(ws.engine, data[:-400], resumable=True)
    with pytest.raises(Busy, match="was cut"):
        into(ws.engine, sent(source, "second", "first"))
    with pytest.raises(Busy):
        ws.file(b"not now")
    ws.engine.receiver().cancel()
    ws.file(b"usable")
    assert ws.engine.problems() == []
    with pytest.raises(InvalidArgument):
        unpack_token("AAAA")


# -- hostile streams ---------------------------------------------------------------------------------------------------


def rebuilt(frames: list[Frame]) -> bytes:
    """The frames as a stream whose sums are right."""
    out = io.BytesIO()
    writer = stream.Writer(out.write)
    for kind, body in frames:
        writer.put(kind, stream.pack_totals(writer.frames, 0) if kind is Kind.END else body)
    return out.getvalue()


class Recorded:
    """A whole stream, and one that starts from its snapshot."""

    def __init__(self, whole: bytes, more: bytes) -> None:
        self.whole, self.more = whole, more


@pytest.fixture(scope="module")
def streams() -> Recorded:
    patch = pytest.MonkeyPatch()
    fs = everything(patch).fs
    patch.undo()
    engine = Engine(fs.meta, fs.payload)
    return Recorded(sent(engine, "first"), sent(engine, "third", "first"))


def assert_refused_or_sound(ws: Workspace, data: bytes) -> bool:
    """Whether the stream was taken; if not, nothing has changed."""
    before = tree(ws.engine.view("first"))
    taken = True
    try:
        into(ws.engine, data)
    except REFUSED:
        taken = False
        assert list(ws.engine.snapshots()) == ["first"]
        assert tree(ws.engine.view("first")) == before
        assert ws.engine.unchanged() == "first"
    assert ws.engine.problems() == []
    return taken


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 1 << 32), bit=st.integers(0, 7))
def test_flipped_bits_are_noticed(streams: Recorded, at: int, bit: int) -> None:
    whole, more = streams.whole, streams.more
    ws = Workspace()
    into(ws.engine, whole)
    bad = bytearray(more)
    bad[at % len(bad)] ^= 1 << bit
    assert not assert_refused_or_sound(ws, bytes(bad))


Number = st.integers(0, 1 << 16)
Lies = st.tuples(
    st.sampled_from(("flip", "flip", "cut", "double", "drop", "swap", "kind", "splice")), Number, Number, Number
)


def lie(frames: list[Frame], how: str, a: int, b: int, c: int) -> None:
    """Changes one of the frames, or their order."""
    at, other = a % len(frames), b % len(frames)
    kind, body = frames[at]
    if how == "flip" and body:
        where = b % len(body)
        frames[at] = Frame(kind, body[:where] + bytes((c % 256,)) + body[where + 1 :])
    elif how == "cut":
        frames[at] = Frame(kind, body[: b % (len(body) + 1)])
    elif how == "drop" and len(frames) > 1:
        del frames[at]
    elif how == "swap":
        frames[at], frames[other] = frames[other], frames[at]
    elif how == "kind":
        frames[at] = Frame(Kind(1 + b % len(Kind)), body)
    else:
        frames.insert(at, frames[other if how == "splice" else at])


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lies=st.lists(Lies, min_size=1, max_size=3))
def test_frames_that_lie_change_nothing_or_are_sound(streams: Recorded, lies: list[tuple[str, int, int, int]]) -> None:
    whole, more = streams.whole, streams.more
    ws = Workspace()
    into(ws.engine, whole)
    frames = [frame for _, frame in frames_of(more)]
    for each in lies:
        lie(frames, *each)
    assert_refused_or_sound(ws, rebuilt(frames))


def _changed(frames: list[Frame], kind: Kind, change: Callable[[bytes], bytes | None]) -> list[Frame]:
    """The frames with the first of a kind that `change` knows changed."""
    for at, frame in enumerate(frames):
        body = change(frame.body) if frame.kind is kind else None
        if body is not None:
            return [*frames[:at], Frame(kind, body), *frames[at + 1 :]]
    raise LookupError(kind)


def _inode(**fields: object) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        inode, how = stream.unpack_inode_frame(body)
        for name, value in fields.items():
            setattr(inode, name, value)
        return stream.pack_inode_frame(inode, how)

    return change


def _named(old: bytes, new: bytes) -> Callable[[bytes], bytes | None]:
    def change(body: bytes) -> bytes | None:
        entries = stream.unpack_entries(body)
        found = [(new if name == old else name, ino, kind) for name, ino, kind in entries]
        return None if found == entries else stream.pack_entries(sorted(found))

    return change


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Kind.ENTRIES, _named(b"large", b"../../etc")),
        (Kind.ENTRIES, _named(b"large", b"a/b")),
        (Kind.ENTRIES, _named(b"large", b"a\0b")),
        (Kind.ENTRIES, _named(b"large", b"..")),
        (Kind.ENTRIES, _named(b"large", b"renamed")),
        (Kind.ENTRIES, lambda body: body[:-1]),
        (Kind.INODE, _inode(nlink=9)),
        (Kind.INODE, _inode(size=1 << 62)),
        (Kind.INODE, _inode(ino=1 << 41)),
        (Kind.INODE, _inode(mode=0o100644)),
        (Kind.INODE, _inode(mode=0)),
        (Kind.INODE, _inode(chunk_shift=60)),
        (Kind.INODE, _inode(flags=8)),
        (Kind.INODE, _inode(name=b"root", parent=2)),
        (Kind.DATA, lambda body: stream.pack_data(1 << 50, body[8:])),
        (Kind.DATA, lambda body: body + bytes(1 << 17)),
        (Kind.DATA, lambda body: body[:8]),
        (Kind.INLINE, lambda body: body + bytes(4000)),
        (Kind.XATTR, lambda body: b"\1\xff" + body[2:9]),
        (Kind.DONE, lambda body: body + b"x"),
        (Kind.SNAPSHOT, lambda body: body.replace(b"first", b"a@b/c")),
        (Kind.SNAPSHOT, lambda body: b"[" * 100_000),
        (Kind.BEGIN, lambda body: b"{}"),
        (Kind.END, None),
    ],
)
def test_a_stream_that_says_what_cannot_be_is_refused(
    streams: Recorded, kind: Kind, change: Callable[[bytes], bytes | None] | None
) -> None:
    ws = Workspace()
    frames = [frame for _, frame in frames_of(streams.whole)]
    frames = frames[:-1] + frames[-2:] if change is None else _changed(frames, kind, change)
    with pytest.raises(BadStream):
        into(ws.engine, rebuilt(frames))
    assert ws.engine.snapshots() == {}
    assert ws.engine.readdir(1, b"", 10) == []
    ws.file(b"usable")
    ws.assert_sound()


def test_directories_that_are_in_each_other_are_refused(ws: Workspace, make: Callable[[], Workspace]) -> None:
    a = ws.engine.mkdir(ROOT, b"a", 0o755, uid=0, gid=0).ino
    b = ws.engine.mkdir(a, b"b", 0o755, uid=0, gid=0).ino
    ws.engine.snapshot("s")
    frames = [frame for _, frame in frames_of(sent(ws.engine, "s"))]
    out, number = [], 0
    for kind, body in frames:
        if kind is Kind.INODE:
            inode, _ = stream.unpack_inode_frame(body)
            number = inode.ino
            if number == ROOT:
                inode.size, inode.nlink = 0, 2
            elif number == a:
                inode.parent = b
            elif number == b:
                inode.size, inode.nlink = 1, 3
            out.append(Frame(kind, stream.pack_inode_frame(inode, How.ANEW)))
            if number == b:
                out.append(Frame(Kind.ENTRIES, stream.pack_entries([(b"a", a, 4)])))
        elif kind is not Kind.ENTRIES or number != ROOT:
            out.append(Frame(kind, body))
    with pytest.raises(BadStream, match="not below the root"):
        into(make().engine, rebuilt(out))


def test_versions_and_features_of_later_are_refused(streams: Recorded, ws: Workspace) -> None:
    whole = streams.whole
    for changed in (whole[:8] + b"\0\0\0\2" + whole[12:], whole[:12] + b"\0\0\0\1" + whole[16:]):
        with pytest.raises(ForeignStore, match="does not know"):
            into(ws.engine, changed)
    with pytest.raises(BadStream, match="no stream of snapshots"):
        into(ws.engine, b"x" * 100)
    with pytest.raises(BadStream, match="cut off"):
        into(ws.engine, b"")


def test_the_bytes_of_a_stream_are_these() -> None:
    out = io.BytesIO()
    writer = stream.Writer(out.write)
    writer.put(Kind.GONE, stream.pack_number(7))
    writer.put(Kind.END, stream.pack_totals(1, 40))
    assert out.getvalue().hex() == GOLDEN


GOLDEN = (
    "545a465353454e44000000010000000004000000000000086443c2ba08057b1e0000000000000007"
    "0c000000000000106b8d2a2725d41ac700000000000000010000000000000028"
)
