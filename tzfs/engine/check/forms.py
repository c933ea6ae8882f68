"""The form of one row at a time: what its key, its inode or its slices must look like.  Pure; each answers what is
wrong in words, or None."""

from __future__ import annotations

from typing import Final

from tzfs import limits
from tzfs.engine.head import S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG
from tzfs.format.keys import ROOT, VERSIONED, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode
from tzfs.format.slices import CODEC_RAW, CODECS, EMBEDDED_BYTES_MAX, Slice
from tzfs.limits import PAGE_BYTES

_KINDS: Final = (S_IFDIR, S_IFREG, S_IFLNK, S_IFIFO, 0o140000, 0o060000, 0o020000)  # and sockets, devices
_LENGTHS: Final = {
    Table.INODE: 16,
    Table.INLINE: 16,
    Table.CHUNK: 24,
    Table.CELL: 16,
    Table.ORPHAN: 8,
    Table.RECLAIM: 8,
    Table.DESTROY: 8,
    Table.PUNCH: 16,
    Table.SHARED: 8,
    Table.SEGMENT: 8,
    Table.LOG: 8,
}
_NAMED: Final = {Table.DIRENT: 8, Table.LINK: 16, Table.XATTR: 8}  # where the name begins


def key_form(table: Table, key: bytes) -> str | None:
    """What is wrong with a key of `table`."""
    if table is Table.CHANGE:
        return _about(key, 8)
    if table is Table.DEAD:
        return _about(key, 16)
    if table is Table.SNAPSHOT:
        return _text(key)
    begin = _NAMED.get(table)
    if begin is None:
        if table in _LENGTHS and len(key) != _LENGTHS[table]:
            return f"it has {len(key)} bytes, not {_LENGTHS[table]}"
        return _number(key) if table in _LENGTHS and table not in (Table.CELL, Table.PUNCH) else None
    if len(key) < begin + 10 or key[-9] != 0:
        return "it does not end in a name, NUL and birth"
    name = key[begin:-9]
    if 0 in name or len(name) > limits.NAME_BYTES_MAX:
        return "its name has a NUL, or is too long"
    if table is not Table.XATTR and (b"/" in name or name in (b".", b"..")):
        return f"{name!r} cannot be the name of an entry"
    return _number(key)


def _number(key: bytes) -> str | None:
    return None if any(key[:8]) else "no id is 0"


def _about(key: bytes, begin: int) -> str | None:
    """Of a row about another row: `begin` bytes, the table's number, the prefix of its key."""
    if len(key) <= begin + 1:
        return "it is too short"
    number, prefix = key[begin], key[begin + 1 :]
    if begin == 16 and number == Table.EXTENT:
        return None if len(prefix) == 8 else f"an extent's number has 8 bytes, not {len(prefix)}"
    if number not in VERSIONED:
        return f"it is about table {number}, which has no versions"
    wrong = key_form(Table(number), prefix + bytes(8))
    return None if wrong is None else f"of the key it is about: {wrong}"


def _text(key: bytes) -> str | None:
    try:
        key.decode()
    except UnicodeDecodeError:
        return "a snapshot's name is UTF-8"
    return None if len(key) <= limits.SNAPSHOT_NAME_BYTES_MAX else "a snapshot's name is too long"


def inode_form(inode: Inode) -> str | None:
    """What is wrong with an inode's fields among themselves."""
    kind = inode.mode & S_IFMT
    if kind not in _KINDS or inode.mode & ~(S_IFMT | 0o7777):
        return f"no inode has mode {inode.mode:o}"
    if inode.flags & ~(FLAG_INLINE | FLAG_XATTR):
        return f"flags {inode.flags:#x} are not known"
    if not limits.CHUNK_SHIFT_MIN <= inode.chunk_shift <= limits.CHUNK_SHIFT_MAX:
        return f"a chunk cannot have 2^{inode.chunk_shift} bytes"
    has_data = kind in (S_IFREG, S_IFLNK)
    if has_data != bool(inode.data) or (inode.flags & FLAG_INLINE and not has_data):
        return "only files and symbolic links have contents"
    if has_data and inode.size > limits.FILE_BYTES_MAX:
        return f"no file has {inode.size} bytes"
    if bool(inode.parent) != bool(inode.name) or len(inode.name) > limits.NAME_BYTES_MAX:
        return "its name and its parent do not go together"
    if inode.ino == ROOT and (kind != S_IFDIR or inode.name):
        return "the root is a directory without a name"
    if kind == S_IFDIR and not inode.name and inode.ino != ROOT:
        return "a directory has one name"
    return None


def slices_form(slices: tuple[Slice, ...], room: int) -> str | None:
    """What is wrong with the slices of a chunk, or of an attribute's value, of `room` bytes."""
    if len(slices) > limits.SLICES_MAX:
        return f"there are {len(slices)} slices, at most {limits.SLICES_MAX} are allowed"
    if any(s.embedded for s in slices) and len(slices) != 1:
        return "what lies in the record is not alone"
    end = 0
    agreed: dict[tuple[int, int], tuple[int, int, int]] = {}
    for s in slices:
        if s.length == 0 or s.offset < end:
            return "slices are not ascending and disjoint"
        end = s.offset + s.length
        if s.extent_offset + s.length > s.raw_bytes:
            return f"a slice leaves extent {s.extent:#x}"
        if s.codec not in CODECS:
            return f"codec {s.codec} is not known"
        if s.raw_bytes > limits.EXTENT_BYTES_MAX or (s.codec != CODEC_RAW and s.stored_bytes >= s.raw_bytes):
            return f"an extent cannot have {s.raw_bytes} bytes, stored in {s.stored_bytes}"
        if s.embedded:
            if s.codec == CODEC_RAW or s.stored_bytes > EMBEDDED_BYTES_MAX:
                return "what lies in the record is not compressed, or too long"
            continue
        whole = (s.raw_bytes, s.stored_bytes, s.codec)
        if agreed.setdefault((s.extent, s.birth), whole) != whole:
            return f"slices do not agree about extent {s.extent:#x}"
        if s.codec != CODEC_RAW:
            pages = 1
        else:
            pages = (s.extent_offset + s.length - 1) // PAGE_BYTES - s.extent_offset // PAGE_BYTES + 1
            if s.stored_bytes != s.raw_bytes:
                return f"extent {s.extent:#x} is raw, and stored in another length"
        if len(s.sums) != 4 * pages:
            return f"a slice of {pages} pages has {len(s.sums) // 4} sums"
    return None if end <= room else f"slices end at {end}, where there are {room} bytes"
