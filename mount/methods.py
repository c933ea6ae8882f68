"""What a mount answers on its control socket: each method from its parameters to a JSON value.

The methods are faces of the engine, of the committer and of `tzfs.management`; nothing is decided here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tzfs import properties as props
from tzfs.errors import InvalidArgument
from tzfs.format.records import Snapshot
from tzfs.jsonrpc import Json, Params
from tzfs.management import open_store
from tzfs.mount.writeback import write_out
from tzfs.names import check_snapshot_component

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount

Method = Callable[[Params], Awaitable[Json]]


def methods(mount: Mount) -> Mapping[str, Method]:
    """The methods of one mount, by name."""
    m = _Methods(mount)
    table: dict[str, Method] = {"ping": m.ping, "info": m.info, "stats": m.stats, "unmount": m.unmount}
    if mount.writer is not None:
        table |= {
            "snapshot.create": m.snapshot_create,
            "snapshot.list": m.snapshot_list,
            "sync": m.sync,
            "gc": m.gc,
            "archive": m.archive,
            "property.get": m.property_get,
            "property.set": m.property_set,
            "property.inherit": m.property_inherit,
            "property.changed": m.property_changed,
        }
    return table


def _only(params: Params, *names: str) -> None:
    unknown = sorted(set(params) - set(names))
    if unknown:
        raise InvalidArgument(f"unknown parameter {unknown[0]!r}")


def _text(params: Params, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str):
        raise InvalidArgument(f"parameter {name!r} must be a string")
    return value


def _snapshot(name: str, record: Snapshot) -> Json:
    return {
        "name": name,
        "epoch": record.epoch,
        "guid": record.guid.hex(),
        "created_ns": record.created_ns,
        "txg": record.txg,
        "inodes": record.inodes,
        "bytes": record.bytes,
        "properties": dict(record.properties),
    }


class _Methods:
    def __init__(self, mount: Mount) -> None:
        self._mount = mount

    async def ping(self, params: Params) -> Json:
        _only(params)
        return "pong"

    async def info(self, params: Params) -> Json:
        _only(params)
        mount = self._mount
        return {
            "name": mount.name,
            "mountpoint": os.fspath(mount.mountpoint),
            "pid": os.getpid(),
            "started_ns": mount.started_ns,
            "readonly": mount.writer is None,
            "writeback": mount.options.writeback,
            "xattr": mount.options.xattr,
            "failed": mount.failed,
        }

    async def snapshot_create(self, params: Params) -> Json:
        _only(params, "name", "properties")
        name = check_snapshot_component(_text(params, "name"))
        given = params.get("properties", {})
        if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
            raise InvalidArgument("parameter 'properties' must be a table of strings")
        properties = {key: props.parse(key, str(value)) for key, value in given.items()}
        committer = self._mount.committer
        assert committer is not None
        operations = self._mount.operations
        await write_out(os.fspath(self._mount.mountpoint), operations.nodes_open_for_writing())
        return _snapshot(name, await committer.snapshot(name, properties))

    async def snapshot_list(self, params: Params) -> Json:
        _only(params)
        writer = self._mount.writer
        assert writer is not None
        return [_snapshot(name, record) for name, record in writer.engine.snapshots().items()]

    async def sync(self, params: Params) -> Json:
        _only(params)
        committer, operations = self._mount.committer, self._mount.operations
        assert committer is not None
        await write_out(os.fspath(self._mount.mountpoint), operations.nodes_open_for_writing())
        await committer.commit()
        return None

    async def gc(self, params: Params) -> Json:
        _only(params)
        writer, committer = self._mount.writer, self._mount.committer
        assert writer is not None
        assert committer is not None
        reclaimer = writer.engine.reclaimer
        before = (reclaimer.punched_bytes, reclaimer.reclaimed_chunks, reclaimer.unlinked_segments)
        orphans = writer.engine.orphans
        await committer.collect()
        return {
            "bytes": reclaimer.punched_bytes - before[0],
            "orphans": max(0, orphans - writer.engine.orphans),
            "chunks": reclaimer.reclaimed_chunks - before[1],
            "segments": reclaimer.unlinked_segments - before[2],
        }

    async def unmount(self, params: Params) -> Json:
        _only(params)
        self._mount.stop.set()
        return None

    async def archive(self, params: Params) -> Json:
        """Ends the mount and archives the filesystem; the answer comes before both."""
        _only(params)
        self._mount.archive_after = True
        self._mount.stop.set()
        return None

    # -- properties ----------------------------------------------------------------------------------------------

    def _store_path(self) -> Path:
        return self._mount.store

    async def property_get(self, params: Params) -> Json:
        _only(params, "name")
        wanted = params.get("name")
        with open_store(self._store_path(), create=False) as store:
            found = store.properties(self._mount.name)
        if wanted is not None:
            value = found.get(str(wanted))
            if value is None:
                props.check_name(str(wanted))
            found = {} if value is None else {value.name: value}
        return {v.name: {"value": v.exact, "source": v.source} for v in found.values()}

    async def property_set(self, params: Params) -> Json:
        _only(params, "name", "value")
        with open_store(self._store_path(), create=False) as store:
            value = store.catalog.set_property(self._mount.name, _text(params, "name"), _text(params, "value"))
        self._mount.reload()
        return {"value": value.exact, "source": value.source}

    async def property_inherit(self, params: Params) -> Json:
        _only(params, "name")
        with open_store(self._store_path(), create=False) as store:
            value = store.catalog.inherit_property(self._mount.name, _text(params, "name"))
        self._mount.reload()
        return {"value": value.exact, "source": value.source}

    async def property_changed(self, params: Params) -> Json:
        _only(params)
        self._mount.reload()
        return None

    # -- statistics ----------------------------------------------------------------------------------------------

    async def stats(self, params: Params) -> Json:
        _only(params)
        mount = self._mount
        requests: dict[str, Json] = {}
        for kind, s in mount.operations.figures().items():
            if s.count:
                requests[kind] = {
                    "count": s.count,
                    "errors": s.errors,
                    "mean_us": round(s.total_ns / s.count / 1e3, 2),
                    "slowest_us": round(s.slowest_ns / 1e3, 1),
                }
        answer: dict[str, Json] = {
            "uptime_s": round((time.time_ns() - mount.started_ns) / 1e9, 3),
            "requests": requests,
            "known_inodes": len(mount.operations.answers),
            "memory": _memory(),
            "failed": mount.failed,
        }
        if mount.pump is not None:
            statistics = mount.pump.statistics
            answer["pump"] = {name: getattr(statistics, name) for name in statistics.__slots__}
        if mount.writer is not None and mount.committer is not None:
            engine, committer = mount.writer.engine, mount.committer
            counters, cached = engine.counters, engine.cached
            answer |= {
                "inodes": counters.inodes,
                "files": counters.files,
                "directories": counters.directories,
                "symlinks": counters.symlinks,
                "bytes": counters.bytes,
                "snapshots": len(engine.snapshots()),
                "orphans": engine.orphans,
                "drift": list(engine.drift),
                "cache": {"inodes": cached, "dirty_bytes": engine.dirty_bytes, "dirty_rows": engine.dirty_rows},
                "txg": {
                    "number": counters.txg,
                    "commits": engine.commits,
                    "last_ms": round(committer.last_commit_ms, 3),
                    "slowest_ms": round(committer.slowest_commit_ms, 3),
                },
                "gc": {
                    "punched_bytes": engine.reclaimer.punched_bytes,
                    "reclaimed_chunks": engine.reclaimer.reclaimed_chunks,
                    "unlinked_segments": engine.reclaimer.unlinked_segments,
                    "last_ns": committer.last_background_ns,
                },
            }
        return answer


def _memory() -> Json:
    """Anonymous and mapped memory of this process, in bytes; the tables are mapped, and are the page cache."""
    found: dict[str, Json] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found["anonymous" if name == "RssAnon" else "mapped"] = int(rest.split()[0]) * 1024
    return found
