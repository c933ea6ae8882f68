"""A diff of contents: what `git diff` would say, line by line, of what differs between two views.

Text files are shown as unified diffs with three lines around each change; a file with a NUL in it is binary, and one of
more than `PATCH_BYTES_MAX` bytes, or `PATCH_LINES_MAX` lines, is too large: both are named and not shown.  Directories
and special files have no contents and are left out, save for changed modes.  A symbolic link's contents are its target.
A file that was removed and a new one that took its name, as editors save, are shown as one that was changed.

Memory: the contents of two files.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Final

from tzfs import limits
from tzfs.engine.diff import Difference, Kind, find
from tzfs.engine.view import View
from tzfs.errors import NotFound, Stale
from tzfs.format.records import Inode

PATCH_BYTES_MAX: Final = limits.MIB  # of each file: what difflib compares in a few seconds at worst
PATCH_LINES_MAX: Final = 20_000  # likewise
BINARY_BYTES: Final = 8000  # in which git looks for a NUL
_QUOTED: Final = re.compile(rb'[\x00-\x1f"\\\x7f-\xff]')
_ESCAPES: Final = {
    0x07: b"\\a", 0x08: b"\\b", 0x09: b"\\t", 0x0A: b"\\n", 0x0B: b"\\v", 0x0C: b"\\f", 0x0D: b"\\r",
    0x22: b'\\"', 0x5C: b"\\\\",
}  # fmt: skip


def patch(found: Iterable[Difference], older: View, newer: View) -> Iterator[bytes]:
    """The lines, each with its end."""
    for each in found:
        old_path = None if each.kind is Kind.ADDED else each.path
        new_path = None if each.kind is Kind.REMOVED else (each.new_path or each.path)
        old = new = None
        try:
            if each.kind is Kind.MODIFIED:  # its path is the newer end's
                old, new = older.inode(each.ino), newer.inode(each.ino)
            elif each.kind is Kind.RENAMED:
                yield from _renamed(each)
                continue
            elif each.kind is Kind.ADDED:
                new = newer.inode(each.ino)
                if _successor(older, newer, each.path) is not None:
                    continue  # shown where the one before it was removed
            else:
                old = older.inode(each.ino)
                new = _successor(older, newer, each.path)
                new_path = None if new is None else each.path
        except (Stale, NotFound):  # of the head, which goes on
            yield b"%s changed meanwhile\n" % _quoted("", each.path)
            continue
        yield from _file(old_path, old, older, new_path, new, newer)


def _successor(older: View, newer: View, path: str) -> Inode | None:
    """The new file that has the name of one that is gone."""
    names = os.fsencode(path).split(b"/")[1:]
    before, now = find(older, names), find(newer, names)
    if before is None or now is None or before.ino == now.ino or stat.S_IFMT(before.mode) != stat.S_IFMT(now.mode):
        return None
    gone, new = newer.inodes([before.ino])[0], older.inodes([now.ino])[0]
    return now if (gone is None or gone.nlink == 0) and (new is None or new.nlink == 0) else None


def _renamed(found: Difference) -> Iterator[bytes]:
    assert found.new_path is not None
    yield _head(found.path, found.new_path)
    yield b"rename from %s\n" % _quoted("", found.path[1:])
    yield b"rename to %s\n" % _quoted("", found.new_path[1:])


def _file(
    old_path: str | None, old: Inode | None, older: View, new_path: str | None, new: Inode | None, newer: View
) -> Iterator[bytes]:
    present = new or old
    assert present is not None
    shown = stat.S_ISREG(present.mode) or stat.S_ISLNK(present.mode)
    path = new_path or old_path
    assert path is not None
    head = [_head(old_path or path, path)]
    if old is None:
        head.append(b"new file mode %o\n" % present.mode)
    elif new is None:
        head.append(b"deleted file mode %o\n" % present.mode)
    elif old.mode != new.mode:
        head += [b"old mode %o\n" % old.mode, b"new mode %o\n" % new.mode]
    if not shown:
        if old is not None and new is not None and old.mode != new.mode:
            yield from head
        return
    body = list(_contents(old_path, old, older, new_path, new, newer))
    if body or len(head) > 1:
        yield from head
        yield from body


def _contents(
    old_path: str | None, old: Inode | None, older: View, new_path: str | None, new: Inode | None, newer: View
) -> Iterator[bytes]:
    a = b"/dev/null" if old is None or old_path is None else _quoted("a", old_path)
    b = b"/dev/null" if new is None or new_path is None else _quoted("b", new_path)
    if max(inode.size for inode in (old, new) if inode is not None) > PATCH_BYTES_MAX:
        yield b"Files %s and %s differ: too large to compare line by line\n" % (a, b)
        return
    try:
        before, after = _read(older, old), _read(newer, new)
    except Stale:
        yield b"Files %s and %s differ: changed meanwhile\n" % (a, b)
        return
    if before == after:
        return
    if b"\0" in before[:BINARY_BYTES] or b"\0" in after[:BINARY_BYTES]:
        yield b"Binary files %s and %s differ\n" % (a, b)
        return
    lines = _lines(before), _lines(after)
    if max(map(len, lines)) > PATCH_LINES_MAX:
        yield b"Files %s and %s differ: too large to compare line by line\n" % (a, b)
        return
    for line in difflib.diff_bytes(difflib.unified_diff, *lines, a, b, lineterm=b"\n"):
        yield line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"


def _read(view: View, inode: Inode | None) -> bytes:
    if inode is None:
        return b""
    return view.readlink(inode.ino) if stat.S_ISLNK(inode.mode) else view.read(inode.ino, 0, PATCH_BYTES_MAX)


def _lines(contents: bytes) -> list[bytes]:
    """Split at newlines only, each with its end."""
    lines = [line + b"\n" for line in contents.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _head(old: str, new: str) -> bytes:
    return b"diff --git %s %s\n" % (_quoted("a", old), _quoted("b", new))


def _quoted(before: str, path: str) -> bytes:
    """A path as git writes it: as it is, or in quotes and escaped as in C."""
    raw = os.fsencode(before + path)
    if not _QUOTED.search(raw):
        return raw
    return b'"' + _QUOTED.sub(lambda m: _ESCAPES.get(m[0][0], b"\\%03o" % m[0][0]), raw) + b'"'
