"""send and receive: through pipes, mounted and not, cut and gone on with."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import CommandLine, check_words
from tests.cli.test_streams import command, on_a_terminal
from tests.mount.workspace import PROJECT, Workspace
from tzfs import receiving
from tzfs.format import stream
from tzfs.format.stream import Kind
from tzfs.management import Store, open_store
from tzfs.names import FilesystemName


class Pipes:
    """Commands whose standard input and output are bytes."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def __call__(self, *arguments: str, data: bytes = b"", code: int = 0) -> bytes:
        done = subprocess.run(
            command(self.store, *arguments), cwd=PROJECT, input=data, capture_output=True, check=False, timeout=120
        )
        self.err = done.stderr.decode()
        assert done.returncode == code, self.err
        assert code or not self.err, self.err
        if code:
            check_words(self.err)
        return done.stdout


@pytest.fixture
def pipes(tzfs: CommandLine) -> Pipes:
    """A filesystem with two snapshots and a bookmark of the first."""
    tzfs.ok("create", "-o", "agent:a=1", "ws")
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        fs.mkdir("d")
        fs.write_bytes("d/large", os.urandom(1 << 20))
        fs.write_text("small", "one\n")
        fs.snapshot("a", {"agent:b": "2"})
        fs.bookmark("a", "mark")
        fs.write_text("small", "two\n")
        fs.link("small", "again")
        fs.snapshot("b")
    return Pipes(tzfs.store)


def test_a_stream_makes_a_filesystem_and_brings_it_up_to_date(tzfs: CommandLine, pipes: Pipes) -> None:
    whole = pipes("send", "ws@a")
    assert pipes("receive", "copy", data=whole) == b"received copy@a\n"
    said = json.loads(pipes("receive", "--json", "copy", data=pipes("send", "-i", "@a", "ws@b")))
    assert said["snapshots"] == ["copy@b"]
    pipes("receive", "other@renamed", data=whole)
    pipes("receive", "other", data=pipes("send", "-i", "#mark", "ws@b"))
    pipes("receive", "all", data=pipes("send", "-R", "ws@b"))
    assert tzfs.ok("get", "-H", "-o", "value", "agent:a", "all") == "1\n"
    assert tzfs.ok("get", "-H", "-o", "value", "agent:b", "all@a") == "2\n"
    for name in ("copy@b", "other@b", "all@b"):
        guids = {tzfs.ok("get", "-H", "-o", "value", "guid", each) for each in ("ws@b", name)}
        assert len(guids) == 1
        with open_store(tzfs.store) as store, store.open_snapshot(name) as view, store.open_snapshot("ws@b") as source:
            assert view.read_bytes("d/large") == source.read_bytes("d/large")
            assert view.stat("again") == source.stat("again")
        assert "no problems" in tzfs.ok("check", "--payload", name.partition("@")[0])


def test_a_real_tree_arrives_as_it_is(tzfs: CommandLine, pipes: Pipes, tmp_path: Path) -> None:
    """Everything that the Python API sees of a tree of sources, attributes with nanoseconds included."""
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        for here, folders, files in os.walk(PROJECT / "tzfs", followlinks=False):
            inside = Path("src") / Path(here).relative_to(PROJECT)
            fs.mkdir(str(inside), parents=True, exist_ok=True)
            folders[:] = [name for name in folders if name not in ("__pycache__", "mount", "native")]
            for name in files:
                fs.write_bytes(str(inside / name), (Path(here) / name).read_bytes())
                fs.utime(str(inside / name), atime_ns=1, mtime_ns=1_600_000_000_123_456_789)
        fs.symlink("x" * 4050, "long")
        fs.setxattr("small", "user.long", b"v" * 60_000)
        fs.snapshot("tree")
    pipes("receive", "copy", data=pipes("send", "ws@tree"))
    with (
        open_store(tzfs.store) as store,
        store.open_snapshot("ws@tree") as ours,
        store.open_snapshot("copy@tree") as it,
    ):
        walked = list(ours.walk("/"))
        assert walked == list(it.walk("/"))
        assert len(walked) > 8
        for here, folders, files in walked:
            for name in [*folders, *files]:
                path = f"{here}/{name}"
                assert it.stat(path, follow_symlinks=False) == ours.stat(path, follow_symlinks=False)
                if name in files and name != "long":
                    assert it.read_bytes(path) == ours.read_bytes(path)
        assert it.readlink("long") == ours.readlink("long")
        assert it.getxattr("small", "user.long") == b"v" * 60_000
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        out: list[bytes] = []
        assert fs.send("tree", out.append).snapshots == ("tree",)
    pipes("receive", "-n", "other", data=b"".join(out))


def test_contents_are_compressed_as_is_set_where_they_come(tzfs: CommandLine, pipes: Pipes) -> None:
    """By the property of the filesystem or, where the receive makes it, of the place."""
    text = b"the same again and again\n" * 20_000
    tzfs.ok("create", "-o", "compression=off", "text")
    with open_store(tzfs.store) as store, store.open("text") as fs:
        fs.write_bytes("text", text)
        fs.snapshot("a")
    whole, everything = pipes("send", "text@a"), pipes("send", "-R", "text@a")
    tzfs.ok("set", "compression=zstd", "/")
    tzfs.ok("create", "n/other")
    tzfs.ok("set", "compression=off", "n/")

    def ratio(name: str) -> float:
        return float(tzfs.ok("get", "-Hp", "-o", "value", "refcompressratio", name))

    pipes("receive", "copy", data=whole)
    pipes("receive", "-s", "resumable", data=whole)
    pipes("receive", "n/copy", data=whole)
    pipes("receive", "all", data=everything)  # which brings the property with it
    assert ratio("text") == ratio("n/copy") == ratio("all") == 1.0
    assert ratio("copy") > 10
    assert ratio("resumable") > 10
    for name in ("copy", "n/copy", "all"):
        with open_store(tzfs.store) as store, store.open_snapshot(f"{name}@a") as view:
            assert view.read_bytes("text") == text
        assert "no problems" in tzfs.ok("check", "--payload", name)


def test_what_would_be_sent_and_received_is_said(tzfs: CommandLine, pipes: Pipes) -> None:
    assert b"would send ws@b from @a: about" in pipes("send", "-nv", "-i", "a", "ws@b")
    said = json.loads(pipes("send", "-n", "--json", "-R", "ws@b"))
    assert [row["name"] for row in said["snapshots"]] == ["ws@a", "ws@b"]
    assert said["snapshots"][0]["bytes"] > 1 << 20 > said["snapshots"][1]["bytes"] > 0
    assert pipes("receive", "-n", "copy", data=pipes("send", "-R", "ws@b")) == (
        b"would receive copy@a\nwould receive copy@b\n"
    )
    assert "copy" not in tzfs.ok("list", "-H")


def test_a_bad_stream_leaves_no_filesystem(tzfs: CommandLine, pipes: Pipes) -> None:
    whole = pipes("send", "ws@a")
    before = tzfs.ok("list", "-H", "-o", "name", "-t", "all")
    for bad in (b"", whole[: len(whole) // 2], whole[:-1], b"x" * 1000, whole[:5000] + b"?" + whole[5001:]):
        pipes("receive", "copy", data=bad, code=65)
        pipes("receive", "-n", "copy", data=bad, code=65)
        assert tzfs.ok("list", "-H", "-o", "name", "-t", "all") == before
    for refused in (
        ("receive", "copy", pipes("send", "-i", "a", "ws@b")),
        ("receive", "ws", whole),
        ("receive", "ws", pipes("send", "-i", "a", "ws@b")),
    ):
        pipes(*refused[:2], data=refused[2], code=1)
    pipes("receive", "copy@one", data=pipes("send", "-R", "ws@b"), code=2)
    assert tzfs.ok("list", "-H", "-o", "name", "-t", "all") == before


def _with_header(whole: bytes, kind: Kind, **fields: object) -> bytes:
    """The stream with fields of a header changed, and sound in every other way."""
    reader, out = stream.Reader(io.BytesIO(whole).read), io.BytesIO()
    writer, body = stream.Writer(out.write), b""
    found = None
    while found is not Kind.END:
        found, body = reader.get()
        if found is kind:
            body = json.dumps(stream.unpack_object(body) | fields).encode()
        writer.put(found, stream.pack_totals(writer.frames, writer.bytes) if found is Kind.END else body)
    return out.getvalue()


def test_a_receive_that_may_go_on_leaves_nothing_of_a_header_that_cannot_be(tzfs: CommandLine, pipes: Pipes) -> None:
    whole = pipes("send", "ws@a")
    lies: list[tuple[Kind, dict[str, object]]] = [
        (Kind.BEGIN, {"filesystem": "x" * 300_000}),
        (Kind.BEGIN, {"filesystem": "\ud800"}),
        (Kind.BEGIN, {"base_name": "x" * 300_000}),
        (Kind.SNAPSHOT, {"name": None}),
        (Kind.SNAPSHOT, {"properties": {"agent:b": "\ud800"}}),
    ]
    for kind, fields in lies:
        pipes("receive", "-s", "copy", data=_with_header(whole, kind, **fields), code=65)
        assert "copy" not in tzfs.ok("list", "-H", "-o", "name"), fields


def test_a_whole_stream_goes_only_into_a_filesystem_that_has_nothing(tzfs: CommandLine, pipes: Pipes) -> None:
    whole = pipes("send", "ws@a")
    tzfs.ok("create", "empty")
    pipes("receive", "-s", "ws", data=whole, code=1)
    assert "filesystem ws exists" in pipes.err
    pipes("receive", "-s", "empty", data=whole)
    assert tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot", "empty") == "empty@a\n"


def test_a_receive_that_was_cut_goes_on(tzfs: CommandLine, pipes: Pipes) -> None:
    whole = pipes("send", "-R", "ws@b")
    pipes("receive", "-s", "copy", data=whole[: len(whole) // 2], code=1)
    token = tzfs.ok("get", "-H", "-o", "value", "receive_resume_token", "copy").strip()
    assert token in pipes.err
    assert "was cut" in tzfs.refused("snapshot", "copy@mine", code=75)
    assert "was cut" in tzfs.refused("gc", "copy", code=75)
    assert "no problems" in tzfs.ok("check", "--payload", "copy")
    rest = pipes("send", "-t", token)
    assert len(rest) < len(whole)
    pipes("receive", "copy", data=rest)
    assert tzfs.ok("get", "-H", "-o", "value", "receive_resume_token", "copy") == "-\n"
    assert tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot", "copy") == "copy@a\ncopy@b\n"
    assert "no problems" in tzfs.ok("check", "--payload", "copy")
    tzfs.ok("snapshot", "copy@mine")


def test_a_receive_that_was_cut_can_be_given_up(tzfs: CommandLine, pipes: Pipes) -> None:
    whole, more = pipes("send", "ws@a"), pipes("send", "-i", "a", "ws@b")
    pipes("receive", "-s", "copy", data=whole[: len(whole) // 2], code=1)
    tzfs.ok("receive", "-A", "copy")
    assert "copy" not in tzfs.ok("list", "-H")
    pipes("receive", "copy", data=whole)
    pipes("receive", "-s", "copy", data=more[: len(more) - 30], code=1)
    tzfs.ok("receive", "-A", "copy")
    tzfs.refused("receive", "-A", "copy", code=1)
    pipes("receive", "copy", data=more)


def test_force_rolls_back_to_where_the_stream_starts(tzfs: CommandLine, pipes: Pipes) -> None:
    pipes("receive", "copy", data=pipes("send", "ws@a"))
    tzfs.ok("snapshot", "copy@mine")
    more = pipes("send", "-i", "a", "ws@b")
    pipes("receive", "copy", data=more, code=1)
    assert "has newer snapshots: mine" in pipes.err
    pipes("receive", "-F", "copy", data=more)
    assert tzfs.ok("list", "-H", "-o", "name", "-t", "snapshot", "copy") == "copy@a\ncopy@b\n"


def test_a_clone_is_sent_whole_with_what_it_shares(tzfs: CommandLine, pipes: Pipes) -> None:
    tzfs.ok("clone", "ws@a", "clone")
    with open_store(tzfs.store) as store, store.open("clone") as fs:
        fs.write_text("own", "own")
        fs.unlink("small")
        fs.snapshot("first")
        with fs.open("d/large", "r+b") as file:
            file.write(b"changed")
        fs.snapshot("second")
    pipes("receive", "copy", data=pipes("send", "clone@first"))
    more = pipes("send", "-i", "first", "clone@second")
    assert len(more) < 1 << 19
    pipes("receive", "copy", data=more)
    with open_store(tzfs.store) as store, store.open_snapshot("copy@second") as view:
        assert sorted(view.listdir("/")) == ["d", "own"]
        with store.open_snapshot("clone@second") as source:
            assert view.read_bytes("d/large") == source.read_bytes("d/large")
    assert "no problems" in tzfs.ok("check", "--payload", "copy")
    tzfs.ok("clone", "copy@first", "other")
    pipes("receive", "other", data=more, code=1)
    assert "into a clone" in pipes.err


def test_no_stream_goes_to_a_terminal(tzfs: CommandLine, pipes: Pipes) -> None:
    assert "not written to a terminal" in on_a_terminal(tzfs.store, "send", "ws@a", code=2)
    assert "not read from a terminal" in on_a_terminal(tzfs.store, "receive", "copy", code=2)


def test_a_mounted_filesystem_is_sent_while_it_is_written_and_not_received_into(workspace: Workspace) -> None:
    def tzfs(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        line = command(workspace.store_path, *arguments)
        return subprocess.run(
            line, cwd=PROJECT, input=data, capture_output=True, env=workspace.environment, check=False, timeout=120
        )

    workspace.mount()
    tree = workspace.mnt / "tree"
    shutil.copytree(PROJECT / "tzfs" / "engine", tree, ignore=shutil.ignore_patterns("__pycache__"))
    os.link(tree / "head.py", tree / "linked")
    os.symlink("nowhere", tree / "symlink")
    os.mkfifo(tree / "fifo")
    with open(tree / "sparse", "wb") as sparse:
        sparse.truncate(1 << 24)
        sparse.seek(1 << 23)
        sparse.write(os.urandom(1 << 20))
    workspace.tzfs("snapshot", "ws@s")
    line = command(workspace.store_path, "send", "ws@s")
    with subprocess.Popen(line, cwd=PROJECT, stdout=subprocess.PIPE, env=workspace.environment) as sender:
        assert sender.stdout is not None
        begin = sender.stdout.read(100)
        shutil.rmtree(tree)
        (workspace.mnt / "later").write_text("not in it")
        data = begin + sender.stdout.read()
    assert sender.returncode == 0
    assert tzfs("receive", "copy", data=data).returncode == 0
    copy = workspace.base / "copy"
    workspace.mount(name="copy", where=copy)
    assert seen(copy / "tree") == seen(workspace.mnt / ".zfs" / "snapshot" / "s" / "tree")
    workspace.tzfs("snapshot", "ws@t")
    more = tzfs("send", "-i", "s", "ws@t")
    assert more.returncode == 0
    refused = tzfs("receive", "copy", data=more.stdout)
    assert refused.returncode == 75
    assert b"in use by" in refused.stderr


def seen(top: Path) -> dict[str, object]:
    """What stat, readlink and read say of everything below."""
    found: dict[str, object] = {}
    for here, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = Path(here) / name
            s = path.lstat()
            contents = (
                path.read_bytes() if stat.S_ISREG(s.st_mode) else os.readlink(path) if path.is_symlink() else None
            )
            found[str(path.relative_to(top))] = (
                s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_rdev, s.st_mtime_ns, s.st_ctime_ns, contents
            )  # fmt: skip
    assert len(found) > 20
    return found


KILLED = """
import os, sys
from tzfs.management import Store, open_store
from tzfs.names import FilesystemName
with open_store(sys.argv[1]) as store:
    fs = store.open("copy")
    fs.write_bytes("/acknowledged", b"text")
    fs.sync()
    os._exit(0)
"""


def test_what_is_fsynced_while_a_receive_is_given_up_is_not_given_up(
    tzfs: CommandLine, pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the redo log has it, since the process that wrote it was killed."""
    whole = pipes("send", "ws@a")
    pipes("receive", "-s", "copy", data=whole[: len(whole) // 2], code=1)
    remove = receiving._remove_empty

    def others_are_faster(store: Store, name: FilesystemName) -> None:
        subprocess.run([sys.executable, "-c", KILLED, tzfs.store], check=True)
        assert (store.get(name).folder / "redo").stat().st_size > 0
        remove(store, name)

    monkeypatch.setattr(receiving, "_remove_empty", others_are_faster)
    tzfs.ok("receive", "-A", "copy")
    with open_store(tzfs.store) as store, store.open("copy") as fs:
        assert fs.read_bytes("/acknowledged") == b"text"
