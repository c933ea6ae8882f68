"""What may be changed of a snapshot after it was taken: its holds, its labels and its name; never what it shows.

All three are in the snapshot's one row, beside its epoch and guid, which stay.  Each call looks at everything that it
is asked for first, and then changes all of it in one commit, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tzfs import limits
from tzfs.engine.head import Head
from tzfs.engine.snapshots import Snapshots
from tzfs.errors import Exists, InvalidArgument, NotFound
from tzfs.format.records import Snapshot


def check_tag(tag: str) -> str:
    """A hold's tag, given back if it can be one: 1 to 255 bytes that can be printed on a line.  `InvalidArgument`."""
    length = len(tag.encode("utf-8", "surrogatepass"))
    if not 1 <= length <= limits.SNAPSHOT_NAME_BYTES_MAX or not tag.isprintable():
        raise InvalidArgument(
            f"a tag has 1 to {limits.SNAPSHOT_NAME_BYTES_MAX} bytes of printable text, this one {length}"
        )
    return tag


class Marks:
    """Those of the snapshots of a head."""

    def __init__(self, head: Head, snapshots: Snapshots) -> None:
        self._head, self._snapshots = head, snapshots

    def hold(self, tag: str, names: Iterable[str]) -> None:
        """Keeps snapshots from being destroyed until `release` of the same tag.

        `NotFound`; `Exists` where one has the tag; `LimitReached` where its holds and labels do not fit into a row.
        """
        self._head.check()
        check_tag(tag)
        now_ns, changes = self._head.clock(), {}
        for name in names:
            record = self._snapshots.get(name)
            if tag in record.holds:
                raise Exists(f"snapshot {name!r} is held by {tag!r} already")
            changes[name] = (name, replace(record, holds={**record.holds, tag: now_ns}))
        self._head.admit(limits.PAGE_BYTES)
        self._snapshots.rewrite(changes, "hold", tag=tag, snapshots=[*changes])

    def release(self, tag: str, names: Iterable[str]) -> None:
        """Takes holds away.  `NotFound` where one has no such tag, or is not there."""
        self._head.check()
        changes = {}
        for name in names:
            record = self._snapshots.get(name)
            if tag not in record.holds:
                raise NotFound(f"snapshot {name!r} is not held by {tag!r}")
            changes[name] = (name, replace(record, holds={t: at for t, at in record.holds.items() if t != tag}))
        # Without asking for room: a full disk must not keep anybody from destroying.
        self._snapshots.rewrite(changes, "release", tag=tag, snapshots=[*changes])

    def label(self, names: Iterable[str], changes: Mapping[str, str | None]) -> None:
        """Sets user properties; those given as None are taken away.  The caller has checked names and values."""
        self._head.check()
        rows = {}
        for name in names:
            record = self._snapshots.get(name)
            merged: dict[str, str | None] = {**record.properties, **changes}
            rows[name] = (name, replace(record, properties={k: v for k, v in merged.items() if v is not None}))
        self._head.admit(limits.PAGE_BYTES)
        self._snapshots.rewrite(rows, "label", snapshots=[*rows], properties=changes)

    def rename(self, old: str, new: str) -> Snapshot:
        """Gives a snapshot another name, which the caller has validated.  `NotFound`, `Exists`."""
        self._head.check()
        record = self._snapshots.get(old)
        if new in self._snapshots.all():
            raise Exists(f"snapshot {new!r} exists")
        self._snapshots.rewrite({old: (new, record)}, "rename", snapshot=old, to=new)
        return record
