"""The process behind a mount: opens what is mounted, serves the kernel and the control socket, ends cleanly.

Lifecycle: open (lease, tables, engine, or a snapshot's reader) -> mount -> ready -> serve -> unmount -> close. SIGTERM,
SIGINT, `umount` and the control socket's `unmount` all lead to the same end: the mount goes, what is dirty is
committed, the lease is released.  While programs use the mount it goes from the tree of directories at once, and the
rest follows when they have left; a second signal does not wait for them.  What fails before ready undoes what was done
and is raised to whoever started the daemon.

One trio thread runs everything but payload I/O.  An engine that has failed keeps the mount there, answering EIO, so
that nothing is written under the mountpoint in the belief that it is the workspace; `status` says why.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from tzfs import failpoints
from tzfs.catalog import FilesystemInfo
from tzfs.engine.engine import Engine
from tzfs.errors import MountFailed, NotFound, TzfsError, from_os_error
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command, State
from tzfs.management import Store, open_store
from tzfs.mount import memory, pump
from tzfs.mount import mountpoint as mountpoints
from tzfs.mount.committing import Committer
from tzfs.mount.control import ControlServer
from tzfs.mount.destroying import destroyed
from tzfs.mount.events import Events
from tzfs.mount.kernel_queue import KernelQueue
from tzfs.mount.methods import methods
from tzfs.mount.operations import Operations
from tzfs.mount.tasks import TaskRunner
from tzfs.mount.writeback import write_out
from tzfs.names import SnapshotName, parse
from tzfs.opening import HeadReader, Writer
from tzfs.runtime import place_of, socket_path
from tzfs.settings import settings_of
from tzfs.space import warnings as quota_warnings
from tzfs.tasks import Tasks
from tzfs.units import parse_percents

log = logging.getLogger(__name__)

failpoints.declare("mount.before", "everything is open, nothing is mounted")
failpoints.declare("mount.ready", "the mount is there, nobody has been told")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `tzfs mount -o` may say."""

    allow_other: bool = False
    xattr: bool = False
    writeback: bool = False
    readonly: bool = False
    nonempty: bool = False  # mount over a directory that has something in it
    use_pump: bool = True
    use_answers: bool = True
    spin_us: int = pump.SPIN_NS_DEFAULT // 1000


@dataclass(slots=True)
class Mount:
    """One mount, for the control methods to act upon.  `snapshots` has those of a filesystem's; None for a snapshot's.

    `guid` is the filesystem's: it may be renamed while it is mounted.
    """

    name: str
    guid: str
    store: Path
    mountpoint: Path
    options: MountOptions
    operations: Operations
    committer: Committer | None
    writer: Writer | None
    snapshots: Engine | HeadReader | None
    stop: trio.Event
    snapdir_visible: bool = False
    started_ns: int = field(default_factory=time.time_ns)
    pump: pump.Pump | None = None
    queue: KernelQueue | None = None  # from when it is mounted
    failed: str | None = None
    archive_after: bool = False
    last_collection: dict[str, Json] | None = None
    info: FilesystemInfo | None = None  # as `apply` last found it
    tasks: TaskRunner | None = None  # of a filesystem that is mounted for writing
    events: Events = field(init=False)

    def __post_init__(self) -> None:
        journal = None if self.writer is None else self.writer.engine.journal
        self.events = Events(lambda: self.name, journal)

    def prop(self, name: str) -> str:
        """The exact value of a property."""
        assert self.info is not None
        return self.info.property(name).parsable

    def warnings(self) -> list[str]:
        """What somebody who asks for the status should know, a line each."""
        found = [] if self.tasks is None else self.tasks.tasks.warnings()
        if self.writer is not None and self.failed is None:
            percents = parse_percents(self.prop("quota_warnings"))
            found += [text for _, text in quota_warnings(self.writer.engine.usages(), percents).values()]
        return found

    def warn(self, text: str) -> None:
        """Something that whoever looks after the filesystem should know."""
        log.warning("%s: %s", self.name, text)
        self.events.publish("warning", said=text)

    def task_failed(self, name: str, error: Exception) -> None:
        """Tells whoever listens."""
        self.events.publish("task failed", task=name, error=str(error))

    def freeing(self) -> int:
        """The bytes of destroyed snapshots that are still to be freed."""
        return 0 if self.writer is None or self.failed is not None else self.writer.engine.freeing()

    def fail(self, reason: str) -> None:
        """The engine has failed: the mount stays and answers EIO."""
        if self.failed is None:
            self.failed = reason
            self.operations.engine_failed()
            log.error("the mount has failed: %s", reason)
            self.events.publish("failed", reason=reason)

    async def catch_up(self) -> None:
        """What the kernel has queued, closed and removed files included, is served before who asks now is answered.

        A file just removed is in use until the kernel says otherwise, and it says so when its turn comes.
        """
        if self.queue is not None:
            await self.queue.catch_up()

    async def write_out(self) -> None:
        """The kernel hands over what it has of programs' writes."""
        await write_out(os.fspath(self.mountpoint), self.operations.nodes_open_for_writing())

    def record(self, store: Store) -> FilesystemInfo:
        """The mounted filesystem in the catalog, under whatever name it has now."""
        for info in store.filesystems():
            if info.guid == self.guid:
                self.name = str(info.name)
                return info
        raise NotFound(f"filesystem {self.name} is not in the store any more")

    def apply(self, store: Store) -> None:
        """Does as the filesystem's properties say."""
        self.info = info = self.record(store)
        if self.writer is not None:
            self.writer.engine.configure(settings_of(info))
        if self.tasks is not None:
            self.tasks.changed()
        self.snapdir_visible = info.property("snapdir").parsable == "visible"


def checked_by_kernel(options: MountOptions) -> bool:
    """Whether the kernel checks permissions.

    Only root gets into root's private mount, and root needs no check; the kernel's own would have it ask for a folder's
    attributes again after each change in it, a quarter of the time of a create, rename or unlink.
    """
    return options.allow_other or os.geteuid() != 0


def fuse_options(source: str, options: MountOptions) -> set[str]:
    """The options of the kernel's mount."""
    out = {f"fsname={source}", "subtype=tzfs", "noatime"}
    if checked_by_kernel(options):
        out.add("default_permissions")
    if options.allow_other:
        out.add("allow_other")
    if options.readonly:
        out.add("ro")
    return out


def serve(store_path: Path, name: str, where: Path, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mounts `name` (FS or FS@SNAP) at `where`, calls `ready`, and returns when the mount has ended.

    Raises the `TzfsError` that keeps it from being mounted, with everything given back; a failure of the engine after
    that is reported by the mount itself.
    """
    try:
        _serve(store_path, name, where, options, ready)
    except OSError as error:
        raise from_os_error(error, f"mount of {name}") from error


def _serve(store_path: Path, name: str, where: Path, options: MountOptions, ready: Callable[[], None]) -> None:
    parsed = parse(name)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(store_path, create=False))
        where = mountpoints.prepare(where, store=store_path, nonempty=options.nonempty)
        stop = trio.Event()
        mount: Mount
        if isinstance(parsed, SnapshotName):
            info = store.get(parsed.filesystem)
            place = place_of(info.guid, info.folder)
            socket = socket_path(place, f"{os.getpid()}")
            told = {"mountpoint": os.fspath(where), "socket": os.fspath(socket)}
            reader = stack.enter_context(store.reader(parsed, told))
            operations = Operations(reader.view, xattr=options.xattr)
            options = replace(options, writeback=False, readonly=True)
            mount = Mount(name, info.guid, store.path, where, options, operations, None, None, None, stop)
        elif options.readonly or store.get(parsed).state is State.ARCHIVED:
            told = {"kind": "mount", "mountpoint": os.fspath(where)}
            head = stack.enter_context(store.head_reader(parsed, told))
            info = store.get(parsed)
            place = place_of(info.guid, info.folder)
            socket = socket_path(place, "ro")
            operations = Operations(
                head.tree,
                xattr=options.xattr,
                snapshots=head,
                snapdir_visible=lambda: mount.snapdir_visible,
            )
            options = replace(options, writeback=False, readonly=True)
            mount = Mount(str(parsed), info.guid, store.path, where, options, operations, None, None, head, stop)
            mount.apply(store)
            head.lease.update({**told, "name": str(parsed), "socket": os.fspath(socket)})
        else:
            told = {"kind": "mount", "mountpoint": os.fspath(where)}
            writer = stack.enter_context(store.writer(parsed, told, Command.MOUNT))
            info = store.get(parsed)
            place = place_of(info.guid, info.folder)
            socket = socket_path(place)
            if info.property("readonly").exact == "on":  # the kernel refuses; snapshots, collecting and labels go on
                options = replace(options, writeback=False, readonly=True)

            def failed(reason: str) -> None:  # a commit comes only once there is a mount
                mount.fail(reason)

            committer = Committer(writer.engine, failed=failed)
            memory.keep()
            committer.rested = memory.give_back
            operations = Operations(
                writer.engine,
                committer,
                xattr=options.xattr,
                writeback=options.writeback,
                snapdir_visible=lambda: mount.snapdir_visible,
            )
            mount = Mount(
                str(parsed), info.guid, store.path, where, options, operations, committer, writer, writer.engine, stop
            )
            mount.apply(store)
            tasks = Tasks(
                writer.engine,
                mount.prop,
                info.state,
                destroyed=partial(destroyed, operations),
                warn=mount.warn,
            )
            committer.background_failed = lambda error: tasks.failed("gc", error)
            mount.tasks = TaskRunner(tasks, committer, mount.write_out)
            mount.tasks.failed = mount.task_failed
            writer.lease.update({**told, "name": str(parsed), "socket": os.fspath(socket)})
        store.close()  # the catalog is opened again when it is needed
        control = ControlServer(socket, methods(mount), mount.catch_up)
        control.bind()
        stack.callback(control.close)
        if options.use_pump:
            mount.pump = pump.install(spin_ns=options.spin_us * 1000)
            if mount.pump is not None:
                stack.callback(mount.pump.close)
                if options.use_answers:
                    operations.answers.start(unchecked=not checked_by_kernel(options))
                    mount.pump.answer_with(operations.answers)
                    mount.pump.answer_at_once_with(operations)
                if mount.committer is not None:
                    mount.committer.quiet = mount.pump.quiet
        failpoints.hit("mount.before")
        _mount(name, mountpoints.source(name, place), where, options, operations)
        stack.callback(_close_session)
        mount.queue = KernelQueue()
        if mount.committer is not None:
            mount.committer.queue = mount.queue
        failpoints.hit("mount.ready")
        _tune_interpreter()
        trio.run(_loop, mount, control, ready)
    log.info("unmounted %s from %s", name, where)
    if mount.archive_after:
        with open_store(store_path, create=False) as store:
            store.archive(mount.record(store).name)


def _tune_interpreter() -> None:
    """Nearly all that the daemon allocates lives until the next commit and then goes by itself.

    Python's collector looks at it every 700 objects in the meantime, which was a third of a request's time; it now
    looks for cycles after 50,000, and never again at what was there at the start.  A flushing thread gives the
    interpreter back after 100 us instead of 5 ms: the loop lets go of it at every request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    sys.setswitchinterval(0.0001)


def _mount(name: str, source: str, where: Path, options: MountOptions, operations: Operations) -> None:
    try:
        pyfuse3.init(operations, os.fspath(where), fuse_options(source, options))
    except RuntimeError as error:
        hint = "is fuse3 installed, and /dev/fuse there for this user?"
        if options.allow_other and os.getuid() != 0:
            hint = "-o allow_other needs user_allow_other in /etc/fuse.conf"
        raise MountFailed(f"cannot mount {name} at {where}: {error}", hint=hint) from error


def _close_session() -> None:
    try:
        pyfuse3.close(unmount=True)
    except RuntimeError as error:
        log.warning("unmount: %s", error)


async def _loop(mount: Mount, control: ControlServer, ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        watching = trio.Event()
        nursery.start_soon(_watch_signals, mount, watching)
        await watching.wait()  # `ready` lets signals in that have waited: by then there is somebody to take them
        nursery.start_soon(control.serve)
        if mount.committer is not None:
            nursery.start_soon(mount.committer.run)
        if mount.tasks is not None:
            nursery.start_soon(mount.tasks.run)
        nursery.start_soon(_stop_when_asked, mount)
        log.info("mounted %s at %s", mount.name, mount.mountpoint)
        ready()
        await pyfuse3.main()
        if mount.committer is not None and mount.failed is None:
            try:
                mount.operations.forget_all()
                await mount.committer.commit()
            except (TzfsError, OSError) as error:
                mount.fail(str(error))
        nursery.cancel_scope.cancel()


async def _watch_signals(mount: Mount, watching: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        watching.set()
        async for number in signals:
            if mount.stop.is_set():
                log.warning("signal %d: ending, whoever still uses the mount", number)
                pyfuse3.terminate()
            else:
                log.info("signal %d: unmounting", number)
                mount.stop.set()


async def _stop_when_asked(mount: Mount) -> None:
    """Takes the mount away: the kernel refuses while programs use it, and is then told to do it when they have left."""
    await mount.stop.wait()
    await trio.sleep(0)
    for lazy in (False, True):
        try:
            await trio.to_thread.run_sync(partial(mountpoints.unmount, mount.mountpoint, lazy=lazy))
            return
        except TzfsError as error:
            log.info("unmount: %s", error)
    pyfuse3.terminate()
