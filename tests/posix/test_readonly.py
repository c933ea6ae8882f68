"""A read-only directory: everything can be read, every change is EROFS, and nothing has changed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import RENAME_EXCHANGE, fails, make, opened, renameat2


@pytest.fixture(params=["mount", "folder"])
def image(request: pytest.FixtureRequest, place: Place, root: Path) -> Iterator[Path]:
    """A snapshot of a small tree: as a mount of its own (a bind mount for the disk), or below `.zfs/snapshot`."""
    make(root / "file", b"content")
    make(root / "other", b"other")
    (root / "directory" / "below").mkdir(parents=True)
    (root / "pointer").symlink_to("file")
    os.mkfifo(root / "fifo")
    if place.mode.keeps_xattrs:
        os.setxattr(root / "file", "user.a", b"value")
    name = f"{root.name}-{request.param}"
    if request.param == "folder" and place.mode.tzfs:
        yield place.snapshot_folder(name) / root.name
    else:
        with place.snapshot(name) as there:
            yield there / root.name


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda d: os.open(d / "new", os.O_CREAT | os.O_WRONLY),
    "open-to-write": lambda d: os.open(d / "file", os.O_WRONLY),
    "open-to-read-and-write": lambda d: os.open(d / "file", os.O_RDWR),
    "open-to-append": lambda d: os.open(d / "file", os.O_WRONLY | os.O_APPEND),
    "open-o_trunc": lambda d: os.open(d / "file", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda d: os.truncate(d / "file", 0),
    "mkdir": lambda d: (d / "new").mkdir(),
    "mknod": lambda d: os.mknod(d / "new", stat.S_IFREG | 0o600),
    "mkfifo": lambda d: os.mkfifo(d / "new"),
    "symlink": lambda d: (d / "new").symlink_to("x"),
    "link": lambda d: os.link(d / "file", d / "new"),
    "unlink": lambda d: (d / "file").unlink(),
    "rmdir": lambda d: (d / "directory" / "below").rmdir(),
    "rename": lambda d: (d / "file").rename(d / "new"),
    "rename-over": lambda d: (d / "file").rename(d / "other"),
    "exchange": lambda d: renameat2(d / "file", d / "directory", RENAME_EXCHANGE),
    "chmod": lambda d: (d / "file").chmod(0o600),
    "chown": lambda d: os.chown(d / "file", os.geteuid(), -1),
    "utime": lambda d: os.utime(d / "file"),
    "utime-of-a-directory": os.utime,
}


@pytest.mark.needs("images")
def test_every_change_is_erofs_and_nothing_changes(image: Path) -> None:
    before = sorted((name, (image / name).lstat()) for name in os.listdir(image))
    for name, change in CHANGES.items():
        print(name)  # shown with a failure
        with fails(errno.EROFS):
            change(image)
    assert sorted((name, (image / name).lstat()) for name in os.listdir(image)) == before


@pytest.mark.needs("images", "xattr")
def test_attributes_are_read_and_not_written(image: Path) -> None:
    assert os.getxattr(image / "file", "user.a") == b"value"
    assert os.listxattr(image / "file") == ["user.a"]
    with fails(errno.EROFS):
        os.setxattr(image / "file", "user.b", b"x")
    with fails(errno.EROFS):
        os.removexattr(image / "file", "user.a")


@pytest.mark.needs("images")
def test_everything_can_be_read(image: Path) -> None:
    assert sorted(os.listdir(image)) == ["directory", "fifo", "file", "other", "pointer"]
    assert (image / "file").read_bytes() == b"content"
    assert os.readlink(image / "pointer") == "file"
    assert (image / "pointer").read_bytes() == b"content"
    assert stat.S_ISFIFO((image / "fifo").stat().st_mode)
    assert os.access(image / "file", os.R_OK)
    if ".zfs" not in image.parts:  # there the kernel answers for the whole mount, which is not read-only
        assert not os.access(image / "file", os.W_OK)
        assert os.statvfs(image).f_flag & os.ST_RDONLY
    with opened(image / "file") as descriptor:
        os.fsync(descriptor)
    with fails(errno.ENOENT):
        os.stat(image / "missing")
    with fails(errno.ENOTDIR):
        os.stat(image / "file" / "below")


@pytest.mark.needs("images")
def test_existing_name_is_eexist_before_erofs(image: Path) -> None:
    with fails(errno.EEXIST, errno.EROFS):
        (image / "directory").mkdir()
    with fails(errno.ENOENT):
        (image / "missing").chmod(0o600)
    with fails(errno.ENOENT, errno.EROFS):
        (image / "missing").unlink()


@pytest.mark.needs("images")
def test_image_stays_while_the_directory_changes(place: Place, root: Path, image: Path) -> None:
    if not place.mode.tzfs:
        (root / "file").write_bytes(b"changed")
        assert (image / "file").read_bytes() == b"changed", "a bind mount is a view, not a snapshot"
        return
    (root / "file").write_bytes(b"changed")
    (root / "directory" / "below").rmdir()
    (root / "other").unlink()
    make(root / "new")
    assert (image / "file").read_bytes() == b"content"
    assert (image / "other").read_bytes() == b"other"
    assert (image / "directory" / "below").is_dir()
    assert not (image / "new").exists()
