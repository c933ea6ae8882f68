"""What a mount answers on its control socket: each method, the shape of its parameters, and a JSON value.

The methods are faces of the engine, of the committer and of `tzfs.management`; nothing is decided here but what a mount
that cannot write answers: what would change the filesystem is `ReadOnly` and names the mount.

    every mount             ping, info, stats, unmount, events
    of a filesystem         snapshot.create, snapshot.list, rollback, restore, apply, sync, settle, gc,
                            flatten, check, diff, versions,
                            archive, those of `marking` and `destroying`,
                            property.get, .set, .inherit, .changed
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, NotRequired, TypedDict

import trio

from tzfs import limits
from tzfs import properties as props
from tzfs.collecting import Collection, to_json
from tzfs.engine.engine import Engine
from tzfs.errors import ReadOnly
from tzfs.format.records import Snapshot
from tzfs.inheritance import Value
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command, check
from tzfs.management import Store, open_store
from tzfs.mount.applying import ApplyClone, apply_mounted
from tzfs.mount.checking import Check, check_mounted
from tzfs.mount.committing import Committer
from tzfs.mount.comparing import Compare, Versions, diff_mounted, versions_mounted
from tzfs.mount.destroying import destroying_methods
from tzfs.mount.events import Follow
from tzfs.mount.flattening import flatten_mounted
from tzfs.mount.marking import marking_methods
from tzfs.mount.method import Declared, Nothing, Report, Within, method, reporting, streaming
from tzfs.mount.rolling_back import RestoreInto, RollBack, restore_mounted, roll_back_mounted
from tzfs.mount.running import running_methods
from tzfs.mount.statistics import statistics
from tzfs.names import check_snapshot_component
from tzfs.properties import USER_NAME_BYTES_MAX, USER_VALUE_BYTES_MAX
from tzfs.tasks import COLLECTING

if TYPE_CHECKING:
    from tzfs.mount.daemon import Mount

PROGRESS_S: Final = 0.2  # between two reports of one collection: as often as people can read

PropertyName = Annotated[str, Within(1, USER_NAME_BYTES_MAX)]
PropertyText = Annotated[str, Within(0, USER_VALUE_BYTES_MAX)]


class Create(TypedDict):
    name: Annotated[str, Within(1, limits.SNAPSHOT_NAME_BYTES_MAX)]
    properties: NotRequired[dict[str, str]]


class Get(TypedDict):
    name: NotRequired[PropertyName]  # without it, all


class Set(TypedDict):
    name: PropertyName
    value: PropertyText


class Inherit(TypedDict):
    name: PropertyName


def methods(mount: Mount) -> Mapping[str, Declared]:
    """The methods of one mount, by name."""
    m = _Methods(mount)
    at_once = {
        "ping": method(Nothing, lambda params: "pong"),
        "info": method(Nothing, m.info),
        "unmount": method(Nothing, m.unmount),
        "events": streaming(Follow, mount.events.follow),
    }
    table = {name: replace(declared, at_once=True) for name, declared in at_once.items()}
    table["stats"] = method(Nothing, lambda params: statistics(mount))
    if mount.snapshots is None:  # of one snapshot
        return table
    return table | {
        "snapshot.create": method(Create, m.snapshot_create),
        "snapshot.list": method(Nothing, m.snapshot_list),
        **marking_methods(mount.operations, m.writing),
        **destroying_methods(mount.operations, m.writing),
        "restore": reporting(RestoreInto, lambda params, report: restore_mounted(mount, params, report)),
        "rollback": reporting(RollBack, lambda params, report: roll_back_mounted(mount, params, report)),
        **running_methods(mount),
        "apply": reporting(ApplyClone, lambda params, report: apply_mounted(mount, params, report)),
        "sync": method(Nothing, m.sync),
        "settle": method(Nothing, m.settle),
        "gc": reporting(Nothing, m.gc),
        "diff": reporting(Compare, lambda params, report: diff_mounted(mount, params, report)),
        "versions": reporting(Versions, lambda params, report: versions_mounted(mount, params, report)),
        "flatten": reporting(Nothing, lambda params, report: flatten_mounted(mount, report)),
        "check": reporting(Check, lambda params, report: check_mounted(mount, params, report)),
        "archive": method(Nothing, m.archive),
        "property.get": method(Get, m.property_get),
        "property.set": method(Set, m.property_set),
        "property.inherit": method(Inherit, m.property_inherit),
        "property.changed": method(Nothing, m.property_changed),
    }


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


def _value(value: Value) -> Json:
    return {"value": value.exact, "source": value.source}


class _Methods:
    def __init__(self, mount: Mount) -> None:
        self._mount = mount

    def info(self, params: Nothing) -> Json:
        mount = self._mount
        return {
            "name": mount.name,
            "mountpoint": os.fspath(mount.mountpoint),
            "pid": os.getpid(),
            "started_ns": mount.started_ns,
            "readonly": mount.options.readonly,
            "writeback": mount.options.writeback,
            "xattr": mount.options.xattr,
            "failed": mount.failed,
            "warnings": [*mount.warnings()],
            "freeing": mount.freeing(),
        }

    def unmount(self, params: Nothing) -> Json:
        self._mount.stop.set()
        return None

    def archive(self, params: Nothing) -> Json:
        """Ends the mount and archives the filesystem; the answer comes before both."""
        with self._store() as store:
            info = self._mount.record(store)
        check(Command.ARCHIVE, info.name, info.state)
        self._mount.archive_after = True
        self._mount.stop.set()
        return None

    # -- what was written --------------------------------------------------------------------------------------------

    def writing(self, what: str) -> tuple[Engine, Committer]:
        mount = self._mount
        if mount.writer is None or mount.committer is None:
            raise ReadOnly(
                f"cannot {what} {mount.name}: it is mounted read-only at {mount.mountpoint}",
                hint=f"unmount it first: tzfs umount {mount.name}",
            )
        return mount.writer.engine, mount.committer

    async def snapshot_create(self, params: Create) -> Json:
        name = check_snapshot_component(params["name"])
        properties = {key: props.parse(key, text) for key, text in params.get("properties", {}).items()}
        _, committer = self.writing("snapshot")
        await self._mount.write_out()
        return _snapshot(name, await committer.snapshot(name, properties))

    def snapshot_list(self, params: Nothing) -> Json:
        assert self._mount.snapshots is not None
        return [_snapshot(name, record) for name, record in self._mount.snapshots.snapshots().items()]

    async def sync(self, params: Nothing) -> Json:
        if self._mount.committer is not None:  # else nothing was written
            await self._mount.write_out()
            await self._mount.committer.commit()
        return None

    async def settle(self, params: Nothing) -> Json:
        """What requests have changed so far is in the tables, for figures that others read there."""
        if self._mount.committer is not None:
            await self._mount.committer.commit()
        return None

    async def gc(self, params: Nothing, report: Report) -> Json:
        """What was collected; and how much so far, while it goes on."""
        self.writing("collect garbage in")
        tasks, began_ns = self._mount.tasks, time.time_ns()
        assert tasks is not None
        collection = Collection(tasks.tasks)
        done = trio.Event()

        def so_far() -> dict[str, Json]:
            return to_json(collection.so_far())

        async def tell() -> None:
            while not done.is_set():
                await report(so_far())
                with trio.move_on_after(PROGRESS_S):
                    await done.wait()

        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                for task in COLLECTING:
                    run = await tasks.run_task(task, demanded=True, begun=collection.begun)
                    if run.error is not None:
                        failure = run.error
                        break
            except Exception as error:  # raised below, outside of the nursery, as itself
                failure = error
            done.set()
        if failure is not None:
            raise failure
        answer = so_far()
        self._mount.last_collection = {**answer, "began_ns": began_ns, "ended_ns": time.time_ns()}
        return answer

    # -- properties ----------------------------------------------------------------------------------------------

    def _store(self) -> Store:
        return open_store(self._mount.store, create=False)

    async def property_get(self, params: Get) -> Json:
        await self.settle({})
        wanted = params.get("name")
        also = () if wanted is None or not wanted.startswith(props.WRITTEN_SINCE) else (wanted,)
        with self._store() as store:
            found = store.properties(self._mount.record(store), also=also, settle=False)
        if wanted is not None:
            value = found.get(wanted)
            if value is None:
                props.check_name(wanted)
            found = {} if value is None else {value.name: value}
        return {v.name: _value(v) for v in found.values()}

    async def property_set(self, params: Set) -> Json:
        await self.settle({})
        with self._store() as store:
            name = self._mount.record(store).name
            value = store.change_property(name, params["name"], params["value"], settle=False)
            self._mount.apply(store)
        return _value(value)

    def property_inherit(self, params: Inherit) -> Json:
        with self._store() as store:
            value = store.change_property(self._mount.record(store).name, params["name"], None)
            self._mount.apply(store)
        return _value(value)

    def property_changed(self, params: Nothing) -> Json:
        with self._store() as store:
            self._mount.apply(store)
        return None
