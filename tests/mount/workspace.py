"""A store with one filesystem in a folder of its own, and its mounts: each a daemon started as `tzfs mount` starts it.

`Workspace.close` unmounts or kills every daemon it has started, by pid, and says what any of them has left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tzfs.control import ControlClient, connect
from tzfs.jsonrpc import Json
from tzfs.lifecycle import Command
from tzfs.management import Store, open_store
from tzfs.mount import mountpoint
from tzfs.mount.background import has_ended
from tzfs.store.lease import live_views

PROJECT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 60.0  # far beyond whatever is waited for; what is late is hung
NAME: Final = "ws"


def number_of(act: Callable[[], object]) -> int:
    """The errno it fails with; 0 where it does not."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def eventually(happened: Callable[[], bool]) -> bool:
    """Whether it happens within `PATIENCE_S`."""
    until = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


class Workspace:
    """See the module's text.  `mnt` is the directory it is mounted at."""

    def __init__(self, base: Path, *, store: Path | None = None) -> None:
        self.base = base
        self.store_path = store or base / "store"
        self.mnt = base / "mnt"
        self.runtime = base / "run"
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": os.fspath(self.runtime),
            "XDG_STATE_HOME": os.fspath(base / "state"),
        }
        self._daemons: dict[int, tuple[int, Path]] = {}  # pid -> its pidfd and mountpoint
        for directory in (self.mnt, self.runtime):
            directory.mkdir()
        with open_store(self.store_path) as opened:
            opened.create(NAME)

    # -- commands ------------------------------------------------------------------------------------------------

    def start(self, *arguments: str | Path, failpoints: str = "") -> subprocess.Popen[str]:
        """A command of tzfs, begun."""
        return subprocess.Popen(
            [sys.executable, "-m", "tzfs.cli", "--store", self.store_path, *arguments],
            cwd=PROJECT,
            env={**self.environment, "TZFS_FAILPOINTS": failpoints},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, failpoints: str = "") -> subprocess.CompletedProcess[str]:
        """A command of tzfs, run to its end, whatever that is."""
        with self.start(*arguments, failpoints=failpoints) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def tzfs(self, *arguments: str | Path) -> str:
        """A command that must succeed; what it printed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store, opened in this process."""
        with open_store(self.store_path, create=False) as opened:
            yield opened

    # -- mounts --------------------------------------------------------------------------------------------------

    def mount(self, *options: str, name: str = NAME, where: Path | None = None, failpoints: str = "") -> int:
        """Mounts, and answers the daemon's pid."""
        where = where or self.mnt
        if mountpoint.mount_at(where) is None:
            where.mkdir(exist_ok=True)
        done = self.run("mount", *(["-o", ",".join(options)] if options else []), name, where, failpoints=failpoints)
        assert done.returncode == 0, f"mount: exit {done.returncode}\n{done.stderr}\n{self.log()}"
        with self.store() as store:
            told = next(s for s in store.status(ask=False) if s.mountpoint == os.fspath(where))
        self._daemons[told.pid] = (os.pidfd_open(told.pid), where)
        return told.pid

    def daemons(self) -> list[int]:
        """The daemons that have been started and have not been seen to end."""
        return list(self._daemons)

    def unmount(self, pid: int) -> None:
        """Takes the mount of that daemon away, and waits for its end."""
        mountpoint.unmount(self._daemons[pid][1], daemon=pid, timeout_s=PATIENCE_S)
        self.ended(pid)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Sends the daemon a signal, and waits for its end; after SIGKILL its dead mount stays."""
        signal.pidfd_send_signal(self._daemons[pid][0], number)
        self.ended(pid)

    def ended(self, pid: int) -> None:
        """Waits until the daemon has ended."""
        pidfd, _ = self._daemons[pid]
        assert has_ended(pidfd, PATIENCE_S), f"the daemon goes on\n{self.log()}"
        os.close(pidfd)
        del self._daemons[pid]

    @contextmanager
    def mounted(self, *options: str, name: str = NAME, where: Path | None = None) -> Iterator[Path]:
        """A mount for the body."""
        pid = self.mount(*options, name=name, where=where)
        yield where or self.mnt
        self.unmount(pid)

    def client(self) -> ControlClient:
        """A connection to the mount of the filesystem."""
        with self.store() as store:
            holder = store.catalog.holder(store.get(NAME))
        assert holder is not None
        return connect(Path(str(holder["socket"])))

    def call(self, method: str, **params: Json) -> Json:
        """One call to the mount of the filesystem."""
        with self.client() as client:
            return client.call(method, **params)

    def stats(self, *path: str) -> Json:
        """A value of the mount's statistics."""
        found = self.call("stats")
        for name in path:
            assert isinstance(found, dict)
            found = found[name]
        return found

    def number(self, *path: str) -> int:
        """A number of the mount's statistics."""
        found = self.stats(*path)
        assert isinstance(found, int)
        return found

    # -- afterwards ----------------------------------------------------------------------------------------------

    def log(self) -> str:
        """What the daemons have logged."""
        return "".join(path.read_text() for path in sorted((self.base / "state").rglob("*.log")))

    def problems(self) -> list[str]:
        """What a check of everything finds wrong; nothing may be mounted."""
        with self.store() as store, store.writer(NAME, {"kind": "test"}, Command.OPEN) as writer:
            return [*map(str, writer.engine.problems()), *writer.engine.drift]

    def leftovers(self) -> list[str]:
        """Mounts, sockets, leases and views that are there though no daemon is."""
        found = [f"mount {m.path}" for m in mountpoint.mounts() if m.path.is_relative_to(self.base)]
        found += [f"socket {path}" for path in self.runtime.rglob("*.sock")]
        with self.store() as store:
            for info in store.filesystems():
                holder = store.catalog.holder(info)
                found += [] if holder is None else [f"lease {holder}"]
                found += [f"view {view}" for view in live_views(info.folder)]
        return found

    def close(self) -> None:
        """Ends every daemon that is still there; nothing may be left of any."""
        with ExitStack() as stack:
            for pid, (pidfd, where) in list(self._daemons.items()):
                stack.callback(os.close, pidfd)
                try:
                    mountpoint.unmount(where, lazy=True)
                except Exception as error:
                    print(f"unmount {where}: {error}")
                if not has_ended(pidfd, PATIENCE_S):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    has_ended(pidfd)
                    raise AssertionError(f"daemon {pid} did not end\n{self.log()}")
            for dead in [m.path for m in mountpoint.tzfs_mounts() if m.path.is_relative_to(self.base)]:
                mountpoint.unmount(dead, lazy=True)
