"""The rows of names: how changed entries and links become rows of a transaction, and what is known of them before.

A row that an operation has looked at in order to change it is kept in `versions.sought` until it is published, and what
was published in `head.known_entries`: neither is looked for again.  What a clone inherits is never known: its own rows
do not say what shows.
"""

from __future__ import annotations

from typing import Final

from tzfs import limits
from tzfs.engine import reads
from tzfs.engine.head import Head
from tzfs.engine.versions import UNKNOWN, Version
from tzfs.format import keys, records
from tzfs.format.keys import Ino, Table
from tzfs.format.records import pack_dirent

_STAND_IN: Final = bytes(
    records.ENVELOPE_BYTES + len(pack_dirent(0, 0))
)  # of a row's value: who knows it looks no more


class EntryRows:
    """The rows of a head's names."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._stored = head.versions.sought

    def find(self, directory: int, name: bytes) -> tuple[Ino, int] | None:
        """(inode, file type) of the entry as it stands; None where there is none."""
        head = self._head
        changed = head.dirents.get(directory)
        if changed is not None and name in changed:
            return changed[name]
        if directory >= head.first_ino:
            return None
        return reads.dirent_at(head.look, directory, name, head.epoch_of(directory))

    def to_change(self, directory: int, name: bytes) -> tuple[Ino, int] | None:
        """`find`, of which publishing needs not look for the row again."""
        head = self._head
        changed = head.dirents.get(directory)
        if changed is not None and name in changed:
            return changed[name]
        if directory >= head.first_ino:
            return None
        prefix = keys.dirent(directory, name)
        if len(self._stored) > limits.DIRTY_ROWS_MAX:
            self._stored.clear()  # of operations that were refused
        known = head.known_entries.get(prefix)
        if known is not None:
            self._stored[prefix] = known[0], _STAND_IN
            return known[1]
        found = self._stored[prefix] = head.txn.seek(Table.DIRENT, prefix, head.epoch)
        if found is None and head.ancestry is not None:
            return reads.dirent_at(head.look, directory, name, head.epoch)
        return reads.dirent_in(prefix, found)

    def publish(self) -> None:
        """Turns changed names into rows of the transaction."""
        head = self._head
        versions, epoch, stored, known = head.versions, head.epoch, self._stored, head.known_entries
        made: list[tuple[bytes, bytes]] = []
        gone: list[bytes] = []
        olds: list[Version | None] = []
        for directory in sorted(head.dirents):
            fresh = directory >= head.first_ino
            changed = head.dirents[directory]
            for name in sorted(changed):
                entry, prefix = changed[name], keys.dirent(directory, name)
                old = None if fresh else stored.get(prefix, UNKNOWN)
                if entry is not None:
                    body = pack_dirent(*entry)
                    if head.ancestry is None:
                        known[prefix] = epoch, entry
                    if old is None:
                        made.append((prefix, body))
                    else:
                        versions.put(Table.DIRENT, prefix, body, epoch, old=old)
                    continue
                known.pop(prefix, None)
                if old is UNKNOWN:
                    versions.remove(Table.DIRENT, prefix, epoch)
                elif old is not None or versions.inherits is not None:
                    gone.append(prefix)
                    olds.append(old)
        versions.put_fresh(Table.DIRENT, made, epoch)
        versions.remove_many(Table.DIRENT, gone, epoch, olds=olds)
        for ino, directory, name in sorted(head.links):
            fresh = ino >= head.first_ino
            if head.links[ino, directory, name]:
                versions.put(Table.LINK, keys.link(ino, directory, name), b"", epoch, fresh=fresh)
            elif not fresh:
                versions.remove(Table.LINK, keys.link(ino, directory, name), epoch)
        head.dirents.clear()
        head.links.clear()
        stored.clear()
