"""What is measured: each target is mounted, pinned or let loose, and taken down again.

A target that cannot start raises `Unavailable` with the reason; the driver prints it and goes on without.  A target
ends only processes that it started itself, or that hold its own mountpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, cast

ROOT: Final = Path(__file__).parents[1]
START_S: Final = 30.0
POOL_BYTES: Final = 16 << 30  # sparse


class Unavailable(Exception):
    """The target cannot be measured here; the text says why."""


class Target(Protocol):
    """One column of the report."""

    name: str

    def start(self, folder: Path) -> Path:
        """Stand up inside the empty `folder`; the directory to work in."""

    def stop(self) -> None:
        """Take everything down; no error if it never stood."""

    def daemons(self) -> Sequence[int]:
        """The processes that serve it."""

    def requests(self) -> dict[str, int] | None:
        """FUSE requests answered so far, by kind, where the target counts them."""


def run(*words: str | Path) -> str:
    """Run a command; `Unavailable` with what it printed if it fails or is not there."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed") from error
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def mounted(mountpoint: Path) -> bool:
    # Not os.path.ismount: that asks the daemon, which may be dead.
    return any(line.split(" ")[4] == str(mountpoint) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def unmount(mountpoint: Path) -> None:
    if mounted(mountpoint):
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        if subprocess.run([*command, mountpoint], capture_output=True, check=False).returncode:
            lazy = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
            subprocess.run([*lazy, mountpoint], check=False)


def holders(mountpoint: Path) -> list[int]:
    """The processes that have /dev/fuse open and were started with this mountpoint."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if os.fsencode(mountpoint) not in (entry / "cmdline").read_bytes():
                continue
            if any(os.readlink(fd) == "/dev/fuse" for fd in (entry / "fd").iterdir()):
                found.append(int(entry.name))
    return found


def pin(pids: Sequence[int], cpus: set[int]) -> None:
    """Let every thread of the processes run on `cpus` only; threads to come inherit it."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cpus)


class Disk:
    """The local disk: no daemon at all."""

    name = "disk"

    def start(self, folder: Path) -> Path:
        directory = folder / "work"
        directory.mkdir()
        return directory

    def stop(self) -> None:
        pass

    def daemons(self) -> Sequence[int]:
        return []

    def requests(self) -> dict[str, int] | None:
        return None


class Empty:
    """benchmarks.emptyfs: what Python and the request pump cost with nothing behind them."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._mountpoint: Path | None = None

    def start(self, folder: Path) -> Path:
        self._mountpoint = folder / "mnt"
        self._mountpoint.mkdir()
        command = [sys.executable, "-m", "benchmarks.emptyfs", str(self._mountpoint), *self._options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        if self._line().strip() != "ready":
            self._process.wait()
            assert self._process.stderr is not None
            words = self._process.stderr.read().strip().splitlines()
            raise Unavailable(words[-1] if words else f"exit {self._process.returncode}")
        return self._mountpoint

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], START_S)[0]:
            raise Unavailable("it does not answer")
        return self._process.stdout.readline()

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.communicate(timeout=START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._process = None
        if self._mountpoint is not None:
            unmount(self._mountpoint)

    def daemons(self) -> Sequence[int]:
        return [] if self._process is None else [self._process.pid]

    def requests(self) -> dict[str, int] | None:
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGUSR1)
        return cast(dict[str, int], json.loads(self._line())["requests"])


class Tzfs:
    """tzfs as its users start it: its command line, a store of its own, a daemon in the background."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        self._options = options
        self._command = [str(Path(sys.executable).with_name("tzfs"))]
        self.store: Path | None = None
        self.mountpoint: Path | None = None

    def tzfs(self, *words: str | Path) -> str:
        assert self.store is not None
        return run(*self._command, "--store", self.store, *words)

    def start(self, folder: Path) -> Path:
        self.store, self.mountpoint = folder / "store", folder / "mnt"
        self.mountpoint.mkdir()
        self.tzfs("create", "ws")
        self.mount()
        return self.mountpoint

    def mount(self) -> None:
        assert self.mountpoint is not None
        options = ["-o", ",".join(self._options)] if self._options else []
        self.tzfs("mount", *options, "ws", self.mountpoint)

    def unmount(self) -> None:
        assert self.mountpoint is not None
        self.tzfs("umount", self.mountpoint)

    def stop(self) -> None:
        if self.mountpoint is None or not mounted(self.mountpoint):
            return
        try:
            self.unmount()
        except Unavailable:
            unmount(self.mountpoint)

    def daemons(self) -> Sequence[int]:
        return [] if self.mountpoint is None else holders(self.mountpoint)

    def requests(self) -> dict[str, int] | None:
        return None


class ZfsFuse:
    """zfs-fuse with Debian's settings, on a pool in a file.  There can be only one daemon on a machine."""

    name = "zfs-fuse"

    def __init__(self) -> None:
        self._daemon: subprocess.Popen[bytes] | None = None
        self._pool = f"tzfsbench{os.getpid()}"
        self._made = False
        self._image: Path | None = None

    def start(self, folder: Path) -> Path:
        if os.geteuid() != 0:
            raise Unavailable("only root may run zfs-fuse")
        daemon = shutil.which("zfs-fuse", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
        if daemon is None:
            raise Unavailable("zfs-fuse is not installed")
        if subprocess.run(["pgrep", "-x", "zfs-fuse"], capture_output=True, check=False).returncode == 0:
            raise Unavailable("a zfs-fuse daemon is running already, and is not ours to pin or to stop")
        with open(folder / "zfs-fuse.log", "wb") as log:
            self._daemon = subprocess.Popen(
                [daemon, "--no-daemon", "--no-kstat-mount"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        begun = time.monotonic()
        while True:
            try:
                run("zpool", "list", "-H")
                break
            except Unavailable:
                if self._daemon.poll() is not None or time.monotonic() - begun > START_S:
                    raise
                time.sleep(0.1)
        self._image = folder / "pool.img"
        with open(self._image, "wb") as file:
            file.truncate(POOL_BYTES)
        mountpoint = folder / "mnt"
        run("zpool", "create", "-o", "cachefile=none", "-m", mountpoint, self._pool, self._image)
        self._made = True
        return mountpoint

    def stop(self) -> None:
        if self._daemon is None:
            return
        begun = time.monotonic()
        while self._made:
            try:
                # Destroying a pool that the kernel has only just let go of answers "busy".
                with contextlib.suppress(Unavailable):
                    run("zfs", "umount", self._pool)
                run("zpool", "destroy", "-f", self._pool)
                self._made = False
            except Unavailable:
                if time.monotonic() - begun > START_S:
                    break
                time.sleep(0.2)
        self._daemon.terminate()
        try:
            self._daemon.wait(START_S)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
        self._daemon = None
        if self._image is not None:
            self._image.unlink(missing_ok=True)

    def daemons(self) -> Sequence[int]:
        return [] if self._daemon is None else [self._daemon.pid]

    def requests(self) -> dict[str, int] | None:
        return None


class Overlay:
    """fuse-overlayfs over two directories of the local disk."""

    name = "fuse-overlayfs"

    def __init__(self) -> None:
        self._mountpoint: Path | None = None

    def start(self, folder: Path) -> Path:
        for part in ("lower", "upper", "scratch", "mnt"):
            (folder / part).mkdir()
        self._mountpoint = folder / "mnt"
        options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/scratch"
        run("fuse-overlayfs", "-o", options, self._mountpoint)
        return self._mountpoint

    def stop(self) -> None:
        if self._mountpoint is not None:
            unmount(self._mountpoint)

    def daemons(self) -> Sequence[int]:
        return [] if self._mountpoint is None else holders(self._mountpoint)

    def requests(self) -> dict[str, int] | None:
        return None


def all_targets() -> dict[str, Target]:
    """Every target there is, by name; those of `DEFAULT` are measured unless others are asked for."""
    targets: list[Target] = [
        Disk(),
        Empty("emptyfs"),
        Empty("emptyfs-writeback", "--writeback"),
        Empty("emptyfs-nospin", "--spin-us", "0"),
        Empty("emptyfs-nopump", "--no-pump"),
        Tzfs("tzfs"),
        Tzfs("tzfs-writeback", "writeback"),
        ZfsFuse(),
        Overlay(),
    ]
    return {target.name: target for target in targets}


DEFAULT: Final = ("disk", "emptyfs", "emptyfs-writeback", "tzfs", "tzfs-writeback", "zfs-fuse", "fuse-overlayfs")
