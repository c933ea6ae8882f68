"""A snapshot under load is one instant of what four writers did, and stays so; it has the kernel's dirty pages too.

Each writer goes through the same endless list of operations, in a directory of its own: create, write, append,
overwrite across a chunk's border, rename over an older file, symlink, unlink, truncate.  Each carries its number n into
what it changes, can be replayed on a dict, and is one request: so no write begins within a page and goes on in the next
(the kernel makes two requests of such a one where it does not have the first page).  Before and after each the writer
draws a ticket from a clock all share (a file they append to: the kernel orders appends) and logs it.

So for a writer a snapshot must be the state after its first k operations, for one k.  Four such numbers are one instant
exactly if no operation that is in the snapshot began after one that is not in it had been answered.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import tiers
from tests.mount.workspace import PATIENCE_S, PROJECT, Workspace, eventually

WRITERS = 4
SNAPSHOTS = tiers.number("SNAPSHOTS", short=8, long=40)
KINDS = 9  # of operations; a round of them has one number of round, and n = KINDS * round + kind
KEPT = 7  # names that files are renamed to, and rounds after which links are removed
PAGE = 4096
TABLE_BYTES = 3 * 131072  # three chunks, so that there are borders to write across
FAR_BEYOND = 1 << 62  # a ticket that will not be drawn
Tree = dict[str, bytes]  # path -> contents, or where a link points to


def stamp(n: int) -> bytes:
    return b"%015d\n" % n


def table_offset(n: int) -> int:
    """A page of the table, and every third time the last but one of a chunk."""
    if n // KINDS % 3 == 0:
        return 131072 * (1 + n // KINDS % 2) - 2 * PAGE
    return n * 7919 % (TABLE_BYTES // PAGE - 3) * PAGE


class Clock:
    """Tickets that every process draws from one row: a later call anywhere has a higher one."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def draw(self) -> int:
        os.write(self._fd, b".")
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def close(self) -> None:
        os.close(self._fd)


def write_for_ever(top: Path, clock_path: Path, log_path: Path) -> None:
    """A writer's whole life; the log has two tickets for each operation, before and after."""
    clock = Clock(clock_path)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.chdir(top)
    fds = {name: os.open(name, os.O_RDWR | os.O_APPEND * (name == "log")) for name in ("log", "table", "cut")}
    n = 0
    while True:
        step, kind = divmod(n, KINDS)
        os.write(log, clock.draw().to_bytes(8, sys.byteorder))
        if kind == 0:
            new = os.open(f"new-{step}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        elif kind == 1:
            os.write(new, stamp(n) * 700)
        elif kind in (2, 7):
            os.write(fds["log"], stamp(n) * 16)
        elif kind == 3:
            os.pwrite(fds["table"], stamp(n) * 768, table_offset(n))
        elif kind == 4:
            os.rename(f"new-{step}", f"kept-{step % KEPT}")
        elif kind == 5:
            os.symlink(str(n), f"link-{step}")
        elif kind == 6:
            if step >= KEPT:
                os.unlink(f"link-{step - KEPT}")
        else:
            os.ftruncate(fds["cut"], n * 37 % 200_000)
        os.write(log, clock.draw().to_bytes(8, sys.byteorder))
        if kind == 1:
            os.close(new)
        n += 1


class Replay:
    """What a writer's directory has after so many operations, without a filesystem."""

    def __init__(self) -> None:
        self.done = 0
        self.files: dict[str, bytearray] = {"log": bytearray(), "table": bytearray(TABLE_BYTES), "cut": bytearray()}

    def go_on(self) -> None:
        """One operation more."""
        n, files = self.done, self.files
        step, kind = divmod(n, KINDS)
        if kind == 0:
            files[f"new-{step}"] = bytearray()
        elif kind == 1:
            files[f"new-{step}"] += stamp(n) * 700
        elif kind in (2, 7):
            files["log"] += stamp(n) * 16
        elif kind == 3:
            files["table"][table_offset(n) : table_offset(n) + 3 * PAGE] = stamp(n) * 768
        elif kind == 4:
            files[f"kept-{step % KEPT}"] = files.pop(f"new-{step}")
        elif kind == 5:
            files[f"link-{step}"] = bytearray(str(n).encode())
        elif kind == 6:
            files.pop(f"link-{step - KEPT}", None)
        else:
            size = n * 37 % 200_000
            files["cut"] = files["cut"][:size].ljust(size, b"\0")
        self.done += 1

    def differs(self, found: Tree) -> list[str]:
        return sorted(name for name in self.files.keys() | found.keys() if self.files.get(name) != found.get(name))


def tree_at(top: Path) -> Tree:
    found = {}
    for where, _, names in os.walk(top):
        for name in names:
            path = Path(where, name)
            contents = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
            found[str(path.relative_to(top))] = contents
    return found


def below(tree: Tree, directory: str) -> Tree:
    return {name.removeprefix(directory + "/"): data for name, data in tree.items() if name.startswith(directory + "/")}


class Log:
    """What a writer has logged, all of it."""

    def __init__(self, path: Path) -> None:
        self._tickets = array("Q")
        raw = path.read_bytes()
        self._tickets.frombytes(raw[: len(raw) // 8 * 8])

    def began(self, n: int) -> int:
        return self._tickets[2 * n] if 2 * n < len(self._tickets) else FAR_BEYOND

    def answered(self, n: int) -> int:
        return self._tickets[2 * n + 1] if 2 * n + 1 < len(self._tickets) else FAR_BEYOND


@contextmanager
def writing(workspace: Workspace, clock_path: Path) -> Iterator[list[Path]]:
    """Four writers at work, all of them; their logs."""
    logs = [workspace.base / f"log-{w}" for w in range(WRITERS)]
    for w in range(WRITERS):
        top = workspace.mnt / f"w{w}"
        top.mkdir()
        for name in ("log", "table", "cut"):
            (top / name).write_bytes(bytes(TABLE_BYTES) if name == "table" else b"")
    writers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, pathlib; from tests.mount import test_snapshot_consistency as t; "
                "t.write_for_ever(*map(pathlib.Path, sys.argv[1:]))",
                workspace.mnt / f"w{w}",
                clock_path,
                log,
            ],
            cwd=PROJECT,
        )
        for w, log in enumerate(logs)
    ]
    try:
        assert eventually(lambda: all(log.exists() and log.stat().st_size > 32 * KINDS for log in logs))
        yield logs
        assert [writer.poll() for writer in writers] == [None] * WRITERS, "a writer met an error"
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(PATIENCE_S)


@pytest.mark.parametrize("options", [(), ("nopump",)], ids=["pump", "stock-loop"])
def test_a_snapshot_under_load_is_one_instant_and_stays_so(workspace: Workspace, options: tuple[str, ...]) -> None:
    pid = workspace.mount(*options)
    clock_path = workspace.base / "clock"
    clock = Clock(clock_path)
    asked: dict[str, tuple[int, int]] = {}
    trees: dict[str, Tree] = {}
    snapshots = workspace.mnt / ".zfs" / "snapshot"
    with writing(workspace, clock_path) as logs, workspace.client() as client:
        for i in range(SNAPSHOTS):
            name, before = f"s{i}", clock.draw()
            if i == SNAPSHOTS // 2:
                workspace.tzfs("snapshot", f"ws@{name}")
            else:
                client.call("snapshot.create", name=name)
            asked[name] = (before, clock.draw())
            trees[name] = tree_at(snapshots / name)  # the writers go on
        for name, tree in trees.items():
            assert tree_at(snapshots / name) == tree, f"{name} has changed"
    clock.close()
    told = [Log(path) for path in logs]
    replays = [Replay() for _ in range(WRITERS)]
    for name, (before, after) in asked.items():
        for w, (log, replay) in enumerate(zip(told, replays, strict=True)):
            advance(replay, log, below(trees[name], f"w{w}"), before, what=f"{name}, writer {w}")
        cut = [replay.done for replay in replays]
        last_begun = max(log.began(k - 1) for log, k in zip(told, cut, strict=True))
        first_answered = min(log.answered(k) for log, k in zip(told, cut, strict=True))
        assert last_begun < first_answered, f"{name}: {cut} is no instant of the four"
        assert before < first_answered, f"{name}: an operation answered before the command is not in it"
        assert last_begun < after, f"{name}: an operation begun after the command returned is in it"
    assert all(replay.done > SNAPSHOTS * KINDS for replay in replays), "too little has happened to say anything"
    workspace.unmount(pid)
    assert workspace.problems() == []
    with workspace.mounted(*options):
        for name, tree in trees.items():
            assert tree_at(snapshots / name) == tree, f"{name} has changed in the remount"


def advance(replay: Replay, log: Log, found: Tree, before: int, *, what: str) -> None:
    """Goes on to the state that is found; at least all that was answered before the command began, in order."""
    differences: list[list[str]] = []
    while log.began(replay.done) < FAR_BEYOND or not differences:
        if log.answered(replay.done) > before:
            differences.append(replay.differs(found))
            if not differences[-1]:
                return
        replay.go_on()
    nearest = min(differences, key=len)
    raise AssertionError(f"{what}: like no prefix of its history; the nearest one differs in {nearest}")


# -- pages that the kernel has not written yet -------------------------------------------------------------------------

MAPPED_BYTES = 24 << 20
CLI, SOCKET = "command", "socket"


@pytest.mark.parametrize("via", [SOCKET, CLI])
@pytest.mark.parametrize("options", [("writeback",), ()], ids=["writeback", "writethrough"])
def test_a_snapshot_has_every_page_that_was_dirty_before_it(
    workspace: Workspace, options: tuple[str, ...], via: str
) -> None:
    pid = workspace.mount(*options)
    page = os.urandom(PAGE)
    written = page * (MAPPED_BYTES // PAGE)
    mapped = _map_dirty(workspace.mnt / "mapped", written)
    closed = _map_dirty(workspace.mnt / "closed", written[: 1 << 20])  # its descriptor is closed, its mapping is not
    held = os.open(workspace.mnt / "held", os.O_CREAT | os.O_RDWR)
    try:
        os.write(held, written)
        os.ftruncate(held, MAPPED_BYTES + 5)
        (workspace.mnt / "left").write_bytes(written[:100_001])
        os.pwrite(held, b"last words", 3 * PAGE - 4)
        mapped[10 * PAGE : 10 * PAGE + 4] = b"late"
        if via == CLI:
            workspace.tzfs("snapshot", "ws@s")
        else:
            workspace.call("snapshot.create", name="s")
        mapped[0:9] = b"afterward"
        os.pwrite(held, b"afterward", 0)
        snapshot = workspace.mnt / ".zfs" / "snapshot" / "s"
        expected = bytearray(written)
        expected[10 * PAGE : 10 * PAGE + 4] = b"late"
        assert (snapshot / "mapped").read_bytes() == bytes(expected)
        expected = bytearray(written) + bytes(5)
        expected[3 * PAGE - 4 : 3 * PAGE + 6] = b"last words"
        assert (snapshot / "held").read_bytes() == bytes(expected)
        assert (snapshot / "closed").read_bytes() == written[: 1 << 20]
        assert (snapshot / "left").read_bytes() == written[:100_001]
        assert bytes(mapped[:9]) == b"afterward"
        kept = tree_at(snapshot)
    finally:
        mapped.close()
        closed.close()
        os.close(held)
    workspace.unmount(pid)
    assert workspace.problems() == []
    with workspace.mounted(*options):
        assert tree_at(workspace.mnt / ".zfs" / "snapshot" / "s") == kept
        assert (workspace.mnt / "mapped").read_bytes()[:9] == b"afterward"


def _map_dirty(path: Path, written: bytes) -> mmap.mmap:
    """A shared mapping of a file that has `written` in dirty pages and nowhere else."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(fd, len(written))
        mapping = mmap.mmap(fd, len(written), mmap.MAP_SHARED)
    finally:
        os.close(fd)
    mapping[:] = written
    return mapping


DIRTIER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(fd, 0, mmap.MAP_SHARED)
n = 0
while True:
    n += 1
    mapping[n % 64 * 4096 : n % 64 * 4096 + 8] = n.to_bytes(8, "little")
    mapping[64 * 4096 : 64 * 4096 + 8] = n.to_bytes(8, "little")
"""


@pytest.mark.parametrize("options", [("writeback",), ()], ids=["writeback", "writethrough"])
def test_pages_that_are_dirtied_all_the_time_are_not_behind_the_command(
    mounted_with: Workspace, options: tuple[str, ...]
) -> None:
    path = mounted_with.mnt / "counter"
    path.write_bytes(bytes(65 * PAGE))

    def counters(raw: bytes | mmap.mmap) -> list[int]:
        return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, 65 * PAGE, PAGE)]

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED) as shared:
        dirtier = subprocess.Popen([sys.executable, "-c", DIRTIER, path])
        try:
            assert eventually(lambda: counters(shared)[64] > 1000)
            for i in range(SNAPSHOTS):
                before = counters(shared)
                mounted_with.call("snapshot.create", name=f"s{i}")
                found = counters((mounted_with.mnt / ".zfs" / "snapshot" / f"s{i}" / "counter").read_bytes())
                assert all(f >= b for f, b in zip(found, before, strict=True)), (i, before, found)
            assert counters(shared)[64] > before[64], "nothing was dirtied meanwhile"
            assert dirtier.poll() is None
        finally:
            dirtier.kill()
            dirtier.wait(PATIENCE_S)


@pytest.fixture
def mounted_with(workspace: Workspace, options: tuple[str, ...]) -> Workspace:
    workspace.mount(*options)
    return workspace
