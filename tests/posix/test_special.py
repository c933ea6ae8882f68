"""Fifos, sockets and device nodes."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import fails, opened


def test_fifo_carries_bytes_and_reports_enxio_without_a_reader(root: Path) -> None:
    fifo = root / "fifo"
    os.mkfifo(fifo, 0o600)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    with fails(errno.ENXIO):
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with opened(fifo, os.O_RDONLY | os.O_NONBLOCK) as reader, opened(fifo, os.O_WRONLY | os.O_NONBLOCK) as writer:
        os.write(writer, b"through")
        assert os.read(reader, 100) == b"through"
        with fails(errno.ESPIPE):
            os.lseek(reader, 0, os.SEEK_SET)
    assert fifo.stat().st_size == 0


def test_socket_is_bound_connected_and_enxio_to_open(root: Path) -> None:
    (root / "s").mkdir()
    previous = os.getcwd()
    os.chdir(root / "s")  # the path of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            with socket.socket(socket.AF_UNIX) as second, fails(errno.EADDRINUSE):
                second.bind("socket")
            client.connect("socket")
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(10) == b"hello"
            assert stat.S_ISSOCK(os.stat("socket").st_mode)
            with fails(errno.ENXIO):
                os.open("socket", os.O_RDWR)
        os.unlink("socket")
    finally:
        os.chdir(previous)


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize("device", [(1, 3), (0, 0), (4095, 1_048_575), (259, 70_000)])
def test_device_node_keeps_its_number(root: Path, kind: int, device: tuple[int, int]) -> None:
    os.mknod(root / "node", kind | 0o600, os.makedev(*device))
    found = (root / "node").stat()
    assert stat.S_IFMT(found.st_mode) == kind
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == device


@pytest.mark.needs("root")
def test_opening_a_device_node(place: Place, root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "driverless", stat.S_IFCHR | 0o666, os.makedev(4000, 77))
    if not place.mode.has_devices:
        with fails(errno.EACCES):
            os.open(root / "null", os.O_RDWR)
        return
    with opened(root / "null", os.O_RDWR) as descriptor:
        assert os.write(descriptor, b"x") == 1
    with fails(errno.ENXIO):
        os.open(root / "driverless", os.O_RDWR)


def test_mknod_refuses(root: Path) -> None:
    with fails(errno.EPERM):
        os.mknod(root / "directory", stat.S_IFDIR | 0o755)
    with fails(errno.EINVAL):
        os.mknod(root / "symlink", stat.S_IFLNK | 0o777)


@pytest.mark.needs("ordinary")
def test_device_node_is_eperm_for_an_ordinary_user(root: Path) -> None:
    with fails(errno.EPERM):
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
