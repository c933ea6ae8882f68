"""What keeps each snapshot of a filesystem: its policy, and what no policy may touch.  Pure.

`verdicts` puts what the tables and the catalog say of snapshots before `retention.choose`: holds, bookmarks of just
that snapshot, clones that have come from it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

from tzfs import retention
from tzfs.format.records import Bookmark, Snapshot
from tzfs.retention import Candidate, Verdict

AUTOMATIC_PREFIX = retention.AUTOMATIC.rstrip("*")


def verdicts(
    grid: str,
    names: str,
    snapshots: Mapping[str, Snapshot],
    bookmarks: Mapping[str, Bookmark],
    clones: Mapping[str, Iterable[str]],
    *,
    now_ns: int,
) -> list[Verdict]:
    """What keeps each snapshot, oldest first.  `grid` and `names` are exact values of `retention` and
    `retention_names`; `clones` has the filesystems that have come from a snapshot, by its name."""
    marked: dict[bytes, list[str]] = {}
    for name, bookmark in bookmarks.items():
        marked.setdefault(bookmark.guid, []).append(name)

    def protected(name: str, record: Snapshot) -> str | None:
        if record.holds:
            return f"held: {', '.join(sorted(record.holds))}"
        if record.guid in marked:
            return f"bookmarked: {', '.join('#' + mark for mark in sorted(marked[record.guid]))}"
        if name in clones:
            return f"origin of {', '.join(sorted(clones[name]))}"
        return None

    candidates = [
        Candidate(name, record.created_ns, record.epoch, protected(name, record)) for name, record in snapshots.items()
    ]
    return retention.choose(retention.parse_grid(grid), retention.parse_names(names), candidates, now_ns=now_ns)


def automatic_name(now_ns: int, taken: Iterable[str]) -> str:
    """The name of a snapshot taken by itself now: `auto-2026-11-26T10:00:00Z`; where it is taken, with a number."""
    at = datetime.datetime.fromtimestamp(now_ns // 1_000_000_000, datetime.UTC)
    name = f"{AUTOMATIC_PREFIX}{at:%Y-%m-%dT%H:%M:%S}Z"
    there, number, free = set(taken), 1, name
    while free in there:
        number += 1
        free = f"{name}-{number}"
    return free
