"""What can still be said and done where the record of an inode or of an entry is damaged.

An entry has the number and the type of its inode, so a name whose inode cannot be read can be listed and found, and
removed and replaced unless it is a directory's.  Of a damaged entry there is the name, which is in its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Self

from tzfs.engine import reads
from tzfs.engine.head import Head
from tzfs.errors import CorruptionError, Stale
from tzfs.format import keys
from tzfs.format.keys import Ino
from tzfs.format.records import FLAG_XATTR, Inode, UnreadableInode


def inode_or_less(load: Callable[[int], Inode], ino: Ino, kind: int) -> Inode:
    """The inode that an entry names, or what the entry tells of one whose record is damaged or lost."""
    try:
        return load(ino)
    except (CorruptionError, Stale):
        return UnreadableInode(ino, kind)


def lost(directory: int, name: bytes, ino: int) -> CorruptionError:
    """What is wrong where an entry names an inode of which there is no record."""
    return CorruptionError(f"entry {name!r} of directory {directory} names inode {ino}, which does not exist")


def with_damaged(entries: list[tuple[bytes, Inode]], damaged: Iterable[bytes], limit: int) -> list[tuple[bytes, Inode]]:
    """Entries of a listing, ascending, with those whose own records are damaged among them: of these there is a name.

    That may be one that no entry can have.  Where there are `limit` of the others, damaged ones behind the last are for
    the next call.
    """
    last = entries[-1][0] if len(entries) >= limit else None
    names = {name for name, _ in entries}
    more = [
        (name, UnreadableInode(Ino(0), 0))
        for name in dict.fromkeys(damaged)
        if name not in names and (last is None or name < last)
    ]
    return sorted([*entries, *more], key=itemgetter(0))


class DamagedInode(UnreadableInode):
    """What has to be known of an inode in order to remove a name of it: its rows of `link`, and what is wrong."""

    __slots__ = ("error", "names")

    def __init__(self, ino: Ino, kind: int, names: set[tuple[Ino, bytes]], error: CorruptionError) -> None:
        super().__init__(ino, kind)
        self.flags = FLAG_XATTR  # for all we know
        self.names, self.error = names, error

    @classmethod
    def of(cls, head: Head, ino: Ino, kind: int, error: CorruptionError) -> Self:
        """As it stands in the head."""
        names = {keys.link_name(key) for key in reads.linked_rows(head.look, ino, head.epoch, damaged_too=True)}
        for (linked, parent, other), present in head.links.items():
            if linked == ino:
                (names.add if present else names.discard)((Ino(parent), other))
        return cls(ino, kind, names, error)

    def report(self, head: Head) -> None:
        """It is gone; of its contents nobody knows, so they stay."""
        head.report(f"{self.error}; what it held is not given back")


def orphan(head: Head, ino: int) -> Inode:
    """An inode without a name, also where its record is damaged or lost."""
    try:
        return head.inode(ino)
    except CorruptionError as error:
        return DamagedInode(Ino(ino), 0, set(), error)
    except Stale:
        return DamagedInode(Ino(ino), 0, set(), CorruptionError(f"inode {ino} is an orphan, and does not exist"))
