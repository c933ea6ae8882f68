"""What a mount answers to `stats`: figures that are kept anyway, so that asking costs the mount next to nothing.

    uptime_s, failed, memory (bytes: anonymous; mapped, which is the page cache)
    requests    by kind: count, errors, mean_us, slowest_us (of the handler, waiting included)
    answered_in_c   how many of them, by kind, never reached a handler
    cache       inodes in memory; nodes: what the kernel knows; open_for_writing; dirty_bytes, dirty_rows: not committed
    pump        what the request pump has done, where there is one

and, of a filesystem that is mounted for writing:

    inodes, files, directories, symlinks, bytes (charged to what lives), snapshots, orphans, reclaiming (ranges of
    removed chunks), drift
    extents     payload in segments, that of snapshots included: a chunk (`recordsize`) written whole has one, and one
                more for each piece of it overwritten since, up to 16; contents up to 4,000 bytes have none
    segments    files that they lie in
    quotas      of each that is set: used, limit
    txg         number, commits (group commits, fsyncs included), last_ms, slowest_ms; logged: operations that are
                durable in the redo log, and not yet in the tables
    gc          punched_bytes, reclaimed_chunks, unlinked_segments since mounting; last_ns: when there was last
                something to do; last: what the last `gc` asked for did, and when
    tasks       by name: interval_s (0: off), budget_s, last_ns, took_ns, next_ns, said (what the last run did),
                failures in a row and the error of the last one, more (its budget ended it)
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tzfs.engine.committed import read_extents
from tzfs.jsonrpc import Json

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount
    from tzfs.mount.requests import RequestStatistics


def statistics(mount: Mount) -> dict[str, Json]:
    """All that there is to say of the mount."""
    operations = mount.operations
    cache: dict[str, Json] = {
        "nodes": len(operations.answers),
        "open_for_writing": len(operations.nodes_open_for_writing()),
    }
    answer: dict[str, Json] = {
        "uptime_s": round((time.time_ns() - mount.started_ns) / 1e9, 3),
        "requests": {kind: _request(s) for kind, s in operations.figures().items() if s.count},
        "answered_in_c": {kind: n for kind, (n, _, _) in operations.answers.statistics().items() if n},
        "cache": cache,
        "memory": _memory(),
        "failed": mount.failed,
    }
    if mount.pump is not None:
        pumped = mount.pump.statistics
        answer["pump"] = {name: getattr(pumped, name) for name in pumped.__slots__}
    if mount.writer is not None and mount.committer is not None:
        engine, committer = mount.writer.engine, mount.committer
        counters, reclaimer = engine.counters, engine.reclaimer
        cache |= {"inodes": engine.cached, "dirty_bytes": engine.dirty_bytes, "dirty_rows": engine.dirty_rows}
        txn = engine.meta.begin_read()
        try:
            extents, segments = read_extents(txn)
        finally:
            txn.close()
        answer |= {
            "inodes": counters.inodes,
            "files": counters.files,
            "directories": counters.directories,
            "symlinks": counters.symlinks,
            "bytes": counters.bytes,
            "extents": extents,
            "segments": segments,
            "quotas": {u.name: {"used": u.used, "limit": u.limit} for u in engine.usages()},
            "snapshots": len(engine.snapshots()),
            "orphans": engine.orphans,
            "reclaiming": engine.reclaiming,
            "drift": list(engine.drift),
            "txg": {
                "number": counters.txg,
                "commits": engine.commits,
                "last_ms": round(committer.last_commit_ms, 3),
                "slowest_ms": round(committer.slowest_commit_ms, 3),
                "logged": engine.logged,
            },
            "gc": {
                "punched_bytes": reclaimer.punched_bytes,
                "reclaimed_chunks": reclaimer.reclaimed_chunks,
                "unlinked_segments": reclaimer.unlinked_segments,
                "last_ns": committer.last_background_ns,
                "last": mount.last_collection,
            },
        }
    if mount.tasks is not None:
        answer["tasks"] = mount.tasks.tasks.report()
    return answer


def _request(s: RequestStatistics) -> Json:
    return {
        "count": s.count,
        "errors": s.errors,
        "mean_us": round(s.total_ns / s.count / 1e3, 2),
        "slowest_us": round(s.slowest_ns / 1e3, 1),
    }


def _memory() -> Json:
    found: dict[str, Json] = {}
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found["anonymous" if name == "RssAnon" else "mapped"] = int(rest.split()[0]) * 1024
    return found
