"""Power cuts: what a disk may have on it when the power goes, worked out from a record of what was done to it.

`record` runs a program under `recorder.c`, which logs every write, sync, change of length, hole and name below one
folder.  `Disk` follows such a log and knows at each point what must be on the disk and what may be; `Disk.image` makes
one of the many folders that could be found if the power went there:

- what was synced is there; a file's contents by its own fsync or fdatasync, a name by the fsync of its folder;
- of what was done to a file since its last sync: the first so many changes, or any of them, or pieces of 512 bytes of
  any of them; the names in a folder likewise;
- a write to a descriptor with O_DSYNC is there once it has returned, and in pieces while it has not.

Nothing is assumed of the order in which a disk writes what was not synced.  A piece of 512 bytes is written whole or
not at all, which FORMAT.md asks of a disk.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from tzfs.store import place

HERE: Final = Path(__file__).resolve().parent
PROJECT: Final = HERE.parents[1]
SECTOR: Final = 512
PAGE: Final = 4096
IGNORED: Final = "lock.mdb"  # mapped, not written; says nothing after a power cut
_HEAD: Final = struct.Struct("=BBHHQQ")
_ZEROS: Final = bytes(PAGE)


class Kind(IntEnum):
    """As in recorder.c."""

    WRITE = 1
    SYNC = 2
    TRUNCATE = 3
    PUNCH = 4
    CREATE = 5
    UNLINK = 6
    RENAME = 7
    MKDIR = 8
    RMDIR = 9
    MARK = 10
    LINK = 11
    ALLOCATE = 12
    EXCHANGE = 13


@dataclass(frozen=True, slots=True)
class Event:
    """One call that succeeded.  Paths are relative to the folder; the folder itself is the empty one."""

    kind: Kind
    durable: bool
    path: str
    other: str
    offset: int
    size: int
    data: bytes


def compiled(where: Path) -> Path:
    """The recorder, built into `where`."""
    library = where / "recorder.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", library, HERE / "recorder.c", "-ldl", "-lpthread"], check=True)
    return library


def record(library: Path, folder: Path, log: Path, module: str, *arguments: str) -> list[Event]:
    """Runs `python -m module folder marks arguments...`; what it did below `folder`, and what it wrote to `marks`."""
    marks = log.with_suffix(".marks")
    marks.touch()
    recording = {"RECORD_ROOT": os.fspath(folder), "RECORD_LOG": os.fspath(log), "RECORD_MARKS": os.fspath(marks)}
    done = subprocess.run(
        [sys.executable, "-m", module, folder, marks, *arguments],
        cwd=PROJECT,
        env={**os.environ, **recording, "LD_PRELOAD": os.fspath(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{module} {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return list(_events(log.read_bytes()))


def _events(raw: bytes) -> Iterator[Event]:
    at = 0
    while at < len(raw):
        kind, flags, path_length, other_length, offset, size = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        path = raw[at : at + path_length].decode()
        other = raw[at + path_length : at + path_length + other_length].decode()
        at += path_length + other_length
        data = b""
        if kind in (Kind.WRITE, Kind.MARK):
            data = raw[at : at + size]
            at += size
        if os.path.basename(path) != IGNORED:
            yield Event(Kind(kind), bool(flags), path, other, offset, size, data)


@dataclass(slots=True)
class _File:
    """A file, whatever its names: what is on the disk, and what may be."""

    contents: bytearray = field(default_factory=bytearray)
    pending: list[_Change] = field(default_factory=list)


_Node = _File | None  # None: a folder


@dataclass(slots=True)
class _Change:
    """A change to a file, or to names, that is not known to be on the disk; `durable` is one that is, behind others
    that may not.  `node` is what a name is of."""

    event: Event
    durable: bool = False
    node: _Node = None


Image = dict[str, bytearray | None]


class Disk:
    """A folder that is followed through a log.  `seed` decides what an image has of what was not synced."""

    def __init__(self, folder: Path) -> None:
        """Begins with what is in `folder`, all of it durable."""
        self._names: dict[str, _Node] = {"": None}
        for path in sorted(folder.rglob("*")):
            name = os.fspath(path.relative_to(folder))
            if path.is_dir():
                self._names[name] = None
            elif path.name != IGNORED:
                self._names[name] = _File(bytearray(path.read_bytes()))
        self._lasting = dict(self._names)
        self._renames: list[_Change] = []  # of names, in their order, that no folder's sync covers

    # -- following the log ---------------------------------------------------------------------------------------------

    def begin(self, event: Event) -> None:
        """The call is under way: it may be on the disk, also in part."""
        if event.kind is Kind.MARK or event.kind is Kind.SYNC or event.path.endswith(" (deleted)"):
            return
        if event.kind in (Kind.WRITE, Kind.TRUNCATE, Kind.PUNCH, Kind.ALLOCATE):
            file = self._names[event.path]
            assert file is not None
            file.pending.append(_Change(event))
            return
        node = self._names.get(event.path)
        if event.kind is Kind.CREATE:
            node = _File()
        self._renames.append(_Change(event, node=node))
        _rename(self._names, event, node)

    def end(self, event: Event) -> None:
        """The call has returned."""
        if event.path.endswith(" (deleted)"):
            return
        node = self._names.get(event.path)
        if event.kind is Kind.WRITE and event.durable:
            assert node is not None
            node.pending[-1].durable = True
            _settle(node, all(change.durable for change in node.pending))
        elif event.kind is Kind.SYNC and node is not None:
            _settle(node, True)
        elif event.kind is Kind.SYNC:
            rest = []
            for change in self._renames:
                if event.path in (
                    os.path.dirname(change.event.path),
                    os.path.dirname(change.event.other or change.event.path),
                ):
                    _rename(self._lasting, change.event, change.node)
                else:
                    rest.append(change)
            self._renames = rest

    def follow(self, events: Sequence[Event]) -> None:
        for event in events:
            self.begin(event)
            self.end(event)

    # -- images --------------------------------------------------------------------------------------------------------

    def whole(self) -> Image:
        """As the process that made the log sees the folder."""
        return {path: None if node is None else _with(node, node.pending) for path, node in self._names.items()}

    def image(self, r: random.Random) -> Image:
        """What could be found after a power cut now."""
        names = dict(self._lasting)
        for change in _some(self._renames, r):
            _rename(names, change.event, change.node)
        made: dict[int, bytearray] = {}
        image: Image = {}
        for path, node in sorted(names.items()):
            if path and os.path.dirname(path) not in image:
                continue  # the name of a folder above it is not there
            if node is None:
                image[path] = None
                continue
            if id(node) not in made:
                made[id(node)] = _with(node, _some(node.pending, r), r)
            image[path] = made[id(node)]
        return image


def _settle(file: _File, now: bool) -> None:
    if now:
        file.contents = _with(file, file.pending)
        file.pending.clear()


def _rename(names: dict[str, _Node], event: Event, node: _Node) -> None:
    if event.kind in (Kind.UNLINK, Kind.RMDIR):
        names.pop(event.path, None)
    elif event.kind in (Kind.CREATE, Kind.MKDIR):
        names[event.path] = node
    elif event.kind is Kind.LINK:
        names[event.other] = node
    elif event.kind is Kind.EXCHANGE:
        ends = {event.path: event.other, event.other: event.path}
        moved = {p: ends[end] + p[len(end) :] for p in names for end in ends if p == end or p.startswith(end + "/")}
        nodes = {path: names.pop(path) for path in moved}
        names.update((moved[path], each) for path, each in nodes.items())
    else:
        for path in [p for p in names if p == event.path or p.startswith(event.path + "/")]:
            names[event.other + path[len(event.path) :]] = names.pop(path)


def _some(pending: Sequence[_Change], r: random.Random) -> list[_Change]:
    """What is durable and some of the rest, in their order: none, all, the first, or any."""
    how = r.randrange(6)
    end = (0, len(pending), r.randint(0, len(pending)))[how] if how < 3 else 0
    likely = r.choice((0.1, 0.5, 0.9)) if how >= 3 else 0.0
    return [each for i, each in enumerate(pending) if i < end or each.durable or r.random() < likely]


def _with(file: _File, changes: Sequence[_Change], r: random.Random | None = None) -> bytearray:
    """The contents after changes; with `r`, those that are not durable perhaps in pieces."""
    out = bytearray(file.contents)
    torn = r is not None and r.random() < 0.5
    for change in changes:
        event = change.event
        if event.kind is Kind.TRUNCATE:
            del out[event.size :]
            out.extend(bytes(event.size - len(out)))
        elif event.kind is Kind.ALLOCATE:
            out.extend(bytes(max(0, event.offset + event.size - len(out))))
        elif r is None or not torn or change.durable:
            _put(out, event, event.offset, event.offset + event.size)
        else:
            for begin, end in _pieces(event, r):
                _put(out, event, begin, end)
    return out


def _pieces(event: Event, r: random.Random) -> list[tuple[int, int]]:
    """Some of the sectors of a write, or of the pages of a hole: any, or all up to one."""
    unit = SECTOR if event.kind is Kind.WRITE else PAGE
    ends = [*range((event.offset // unit + 1) * unit, event.offset + min(event.size, 1 << 26), unit)]
    begins = [event.offset, *ends]
    pieces = list(zip(begins, [*ends, event.offset + event.size], strict=True))
    if r.random() < 0.3:
        return pieces[: r.randint(0, len(pieces))]
    likely = r.choice((0.2, 0.5, 0.9))
    return [piece for piece in pieces if r.random() < likely]


def _put(out: bytearray, event: Event, begin: int, end: int) -> None:
    if event.kind is Kind.PUNCH:
        end = min(end, len(out))
        if begin < end:
            out[begin:end] = bytes(end - begin)
        return
    if len(out) < begin:
        out.extend(bytes(begin - len(out)))
    out[begin:end] = event.data[begin - event.offset : end - event.offset]


def write_out(image: Image, folder: Path) -> None:
    """Makes the image; pages of zeros are holes.  The tables are told that they are where they were, not a copy."""
    folder.mkdir(mode=0o700)
    for path, contents in sorted(image.items()):
        if contents is None:
            (folder / path).mkdir(mode=0o700, exist_ok=True)
            continue
        fd = os.open(folder / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, len(contents))
        for at in range(0, len(contents), PAGE):
            page = contents[at : at + PAGE]
            if page != _ZEROS[: len(page)]:
                os.pwrite(fd, page, at)
        os.close(fd)
    for path in image:
        if os.path.basename(path) == place.FILE_NAME and (data := folder / os.path.dirname(path) / "data.mdb").exists():
            marked = bytearray((folder / path).read_bytes())
            if len(marked) >= 16:  # a crash keeps the inode's number
                marked[8:16] = os.stat(data).st_ino.to_bytes(8, "big")
                (folder / path).write_bytes(marked)
