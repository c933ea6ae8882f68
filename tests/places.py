"""The directories that the suites run on: one on the local disk, and mounts of tzfs in each of their modes.

The local disk is the reference: a test that fails there is wrong itself.  It is taken to be ext4, xfs or tmpfs.  Where
a mount may rightly answer otherwise, a trait of `Place` says so and why; a test asks the trait, never the name.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

COMMAND_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to stand on a directory, and what it does and does not do there."""

    name: str
    options: tuple[str, ...] = ()  # of `tzfs mount -o`
    tzfs: bool = True
    keeps_xattrs: bool = (
        False  # `-o xattr`; without it getxattr and its kin answer ENOTSUP, which spares a request a write
    )
    others_may_enter: bool = False  # `-o allow_other`; without it the kernel lets in the mount's owner alone
    stamps_reads: bool = False  # tzfs keeps no access times but those set: it is mounted noatime
    has_devices: bool = False  # FUSE mounts are nodev: a device node can be made, not opened
    tells_holes: bool = False  # pyfuse3 has no handler for lseek: the kernel takes the whole file for data
    allocates: bool = False  # nor for fallocate
    counts_blocks: bool = False  # st_blocks follows from the size: what a file takes is not kept with its inode
    makes_nameless: bool = False  # nor for O_TMPFILE
    makes_whiteouts: bool = False  # RENAME_WHITEOUT is for overlayfs' upper layers


DISK: Final = Mode(
    "disk",
    tzfs=False,
    keeps_xattrs=True,
    others_may_enter=True,
    stamps_reads=True,
    has_devices=True,
    tells_holes=True,
    allocates=True,
    counts_blocks=True,
    makes_nameless=True,
    makes_whiteouts=True,
)
MODES: Final = (
    DISK,
    Mode("tzfs"),
    Mode("writeback", ("writeback",)),
    Mode("xattr", ("xattr",), keeps_xattrs=True),
    Mode("writeback-xattr", ("writeback", "xattr"), keeps_xattrs=True),
    Mode("shared", ("allow_other", "xattr"), keeps_xattrs=True, others_may_enter=True),
    Mode("noanswers", ("noanswers",)),
    Mode("stock-loop", ("nopump",)),
)


class CommandFailed(Exception):
    """A command of tzfs answered other than 0; the text holds what it printed."""


def tzfs(*arguments: str | Path, store: Path) -> str:
    """Runs the installed `tzfs` beside this interpreter, and answers what it printed to standard output."""
    command = [str(Path(sys.executable).with_name("tzfs")), "--store", str(store), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def base_folder(prefix: str) -> Path:
    """A new folder that every user can pass through, below the system's folder for temporary files."""
    base = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
    base.chmod(0o755)
    return base


@dataclass(slots=True)
class Place:
    """A directory in one mode, for as long as `stand` lasts."""

    mode: Mode
    base: Path  # on the local disk
    directory: Path  # what the tests work in: below the mountpoint, or below base
    store: Path

    @property
    def mountpoint(self) -> Path:
        return self.base / "mnt"

    def start(self) -> None:
        """Mounts it (again)."""
        if self.mode.tzfs:
            options = ("-o", ",".join(self.mode.options)) if self.mode.options else ()
            tzfs("mount", *options, "ws", self.mountpoint, store=self.store)
            assert os.path.ismount(self.mountpoint), "tzfs mount answered before the mount was there"

    def stop(self) -> None:
        """Unmounts it, and makes sure that it is gone."""
        if self.mode.tzfs:
            tzfs("umount", self.mountpoint, store=self.store)
            assert not os.path.ismount(self.mountpoint), "tzfs umount left the mount behind"

    def assert_alive(self) -> None:
        """Fails, and mounts it again for the tests to come, if the daemon has died or does not answer any more."""
        try:
            os.stat(self.mountpoint / "..")
            os.statvfs(self.directory)
            if self.mode.tzfs:
                assert os.path.ismount(self.mountpoint), "the mount has gone"
        except (OSError, AssertionError) as error:
            force_unmount(self.mountpoint)
            self.start()
            raise AssertionError(f"the mount did not survive this test: {error}") from error

    @contextmanager
    def snapshot(self, name: str) -> Iterator[Path]:
        """A read-only image of the directory as it stands, for the body: a mount of its own, whatever the mode."""
        image = self.base / f"at-{name}"
        image.mkdir()
        if self.mode.tzfs:
            tzfs("snapshot", f"ws@{name}", store=self.store)
            options = ("-o", ",".join(self.mode.options)) if self.mode.options else ()
            tzfs("mount", *options, f"ws@{name}", image, store=self.store)
        else:
            for step in (["mount", "--bind"], ["mount", "-o", "remount,ro,bind"]):
                subprocess.run([*step, self.directory, image], check=True, timeout=COMMAND_TIMEOUT_S)
        try:
            yield image / self.directory.relative_to(self.mountpoint) if self.mode.tzfs else image
        finally:
            if self.mode.tzfs:
                tzfs("umount", image, store=self.store)
            else:
                subprocess.run(["umount", image], check=True, timeout=COMMAND_TIMEOUT_S)
            image.rmdir()

    def snapshot_folder(self, name: str) -> Path:
        """The directory as it stands now, as a folder below `.zfs/snapshot` of the same mount."""
        tzfs("snapshot", f"ws@{name}", store=self.store)
        return self.mountpoint / ".zfs" / "snapshot" / name / self.directory.relative_to(self.mountpoint)


def remove_tree(directory: Path) -> None:
    """Removes it and all below, whatever modes a test has left on directories there."""
    directory.chmod(0o700)
    open_up(directory)
    shutil.rmtree(directory)


def open_up(directory: Path) -> list[tuple[str, str]]:
    """Lets the owner into every directory from here down; answers which were closed, and their modes."""
    closed = []
    for where, below, _ in os.walk(directory):
        below.sort()
        for path in (Path(where) / name for name in below):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
                closed.append((str(path.relative_to(directory)), oct(mode)))
                path.chmod(0o700)
    return closed


def force_unmount(mountpoint: Path) -> None:
    """Takes a mount away whose daemon may be dead; no error if there is none."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, mountpoint], capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)


@contextmanager
def stand(mode: Mode) -> Iterator[Place]:
    """The place, made for the body and taken away after it; a mount that cannot be unmounted fails the test."""
    base = base_folder(f"tzfs-test-{mode.name}")
    mountpoint, store = base / "mnt", base / "store"
    mountpoint.mkdir()
    place = Place(mode, base, mountpoint, store)
    try:
        if mode.tzfs:
            tzfs("create", "ws", store=store)
        place.start()
        place.directory = mountpoint / "work"
        place.directory.mkdir(mode=0o755)
        yield place
        place.stop()
    finally:
        if os.path.ismount(mountpoint):
            force_unmount(mountpoint)
        shutil.rmtree(base)
