"""Listing a directory: the rows of the last commit and what has changed since, merged in the order of names."""

from __future__ import annotations

from tzfs.engine import reads
from tzfs.engine.damaged import inode_or_less, lost, with_damaged
from tzfs.engine.head import Head
from tzfs.errors import NotFound
from tzfs.format import keys
from tzfs.format.keys import Ino, Table
from tzfs.format.records import Inode, unpack_dirent


class Listings:
    """The directories of a head, listed."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def readdir(
        self, ino: int, after: bytes, limit: int, damaged: list[bytes] | None = None
    ) -> list[tuple[bytes, Ino, int]]:
        """At most `limit` entries (name, inode, file type) with names above `after`, ascending; no `.`, no `..`.

        Fewer than `limit` do not mean the end; none do.  `damaged`: as for `reads.named_rows`.
        """
        head = self._head
        head.check()
        head.directory(ino)
        changed = head.dirents.get(ino)
        out: list[tuple[bytes, Ino, int]] = []
        if ino < head.first_ino:
            hidden = len(changed) if changed else 0  # so many rows at most may turn out to be replaced or gone
            rows = reads.named_rows(
                head.look,
                Table.DIRENT,
                keys.u64(ino),
                after,
                head.epoch_of(ino),
                min(limit + hidden, 2 * limit),
                damaged,
            )
            for key, body in rows:
                name = keys.dirent_name(key)
                if not changed or name not in changed:
                    out.append((name, *unpack_dirent(key, body)))
            if rows and len(rows) == min(limit + hidden, 2 * limit) and changed:
                last = keys.dirent_name(rows[-1][0])  # beyond it there may be rows that were not read
                new = [(n, *e) for n, e in changed.items() if e is not None and after < n <= last]
                if not out and not new:
                    return self.readdir(ino, last, limit, damaged)
            else:
                new = [(n, *e) for n, e in changed.items() if e is not None and n > after] if changed else []
        else:
            new = [(n, *e) for n, e in changed.items() if e is not None and n > after] if changed else []
        if new:
            out.extend(new)
            out.sort()
        return out[:limit]

    def readdir_plus(self, ino: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        """Like `readdir`, with inodes: those not in memory are looked up in one pass, in inode order."""
        head = self._head
        entries = self.readdir(ino, after, limit)
        known = head.inodes
        missing = sorted({i for _, i, _ in entries if i not in known})
        loaded: dict[int, Inode | None] = dict(
            zip(missing, reads.inodes_at(head.look, missing, head.epoch), strict=True) if missing else ()
        )
        out = []
        for name, i, _ in entries:
            inode = known.get(i)
            if inode is None:
                inode = loaded[i]
                if inode is None:
                    raise lost(ino, name, i)
                known[i] = inode
            out.append((name, inode))
        return out

    def readdir_damaged(self, ino: int, after: bytes, limit: int) -> list[tuple[bytes, Inode]]:
        """What can be told where `readdir_plus` fails: `UnreadableInode` where the inode cannot be read, or the entry.

        Of the latter there may be more than `limit`.
        """
        damaged: list[bytes] = []
        entries = self.readdir(ino, after, limit, damaged)
        found = [(name, inode_or_less(self._head.inode, i, kind)) for name, i, kind in entries]
        changed = self._head.dirents.get(ino, {})
        return with_damaged(found, (name for name in damaged if name not in changed), limit)

    def find_damaged(self, parent: int, name: bytes) -> Inode:
        """What the entry tells where `find` fails; `CorruptionError` where that is what is damaged."""
        head = self._head
        head.check()
        changed = head.dirents.get(parent, {})
        entry = changed[name] if name in changed else reads.dirent_at(head.look, parent, name, head.epoch_of(parent))
        if entry is None:
            raise NotFound(f"no entry {name!r} in directory {parent}")
        return inode_or_less(head.inode, *entry)
