"""read, write, truncate, seek, mmap and copies: contents are what was written, holes are zeros, errors are named."""

from __future__ import annotations

import errno
import mmap
import os
import random
import resource
from pathlib import Path

import pytest

from tests.places import Place
from tests.posix.calls import fails, fallocate, make, opened

CHUNK = 128 * 1024
EDGES = (0, 1, 3999, 4000, 4001, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17)


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("length", EDGES)
def test_whole_file_reads_back(root: Path, length: int) -> None:
    content = pattern(length)
    path = make(root / "file", content)
    assert path.read_bytes() == content
    assert path.stat().st_size == length


@pytest.mark.parametrize("length", EDGES)
def test_truncate_to_and_from_each_edge(root: Path, length: int) -> None:
    content = pattern(2 * CHUNK)
    path = make(root / "file", content)
    os.truncate(path, length)
    assert path.read_bytes() == content[:length].ljust(length, b"\0")
    os.truncate(path, 2 * CHUNK)
    assert path.read_bytes() == content[:length].ljust(2 * CHUNK, b"\0")[: 2 * CHUNK]
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    os.truncate(path, length)
    assert path.read_bytes() == bytes(length)


def test_shrinking_and_growing_again_shows_zeros_not_the_old_bytes(root: Path) -> None:
    path = make(root / "file", b"s" * 10_000)
    with opened(path, os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 10)
        os.ftruncate(descriptor, 10_000)
        assert os.pread(descriptor, 10_000, 0) == b"s" * 10 + bytes(9_990)
        os.ftruncate(descriptor, 10)
        os.pwrite(descriptor, b"far", 9_000)
        assert os.pread(descriptor, 10_000, 0) == b"s" * 10 + bytes(8_990) + b"far"


@pytest.mark.parametrize("seed", range(12))
def test_random_writes_and_truncates_match_a_model(root: Path, seed: int) -> None:
    random_ = random.Random(seed)
    model = bytearray()
    path = make(root / "file")
    limit = random_.choice((6_000, 300_000, 1_000_000))
    descriptor = os.open(path, os.O_RDWR)
    try:
        for step in range(120):
            offset, length = random_.randrange(limit), random_.randrange(1, limit // 4)
            match random_.randrange(8):
                case 0:
                    os.ftruncate(descriptor, offset)
                    del model[offset:]
                    model.extend(bytes(offset - len(model)))
                case 1:
                    assert os.pread(descriptor, length, offset) == model[offset : offset + length], step
                case 2:
                    os.fsync(descriptor)
                case 3:
                    os.close(descriptor)
                    descriptor = os.open(path, os.O_RDWR)
                case _:
                    data = random_.randbytes(length) if random_.random() < 0.8 else bytes(length)
                    assert os.pwrite(descriptor, data, offset) == length
                    model.extend(bytes(max(0, offset - len(model))))
                    model[offset : offset + length] = data
            assert os.fstat(descriptor).st_size == len(model), step
    finally:
        os.close(descriptor)
    assert path.read_bytes() == model


def test_reading_beyond_the_end_is_short_then_empty(root: Path) -> None:
    path = make(root / "file", b"12345")
    with opened(path) as descriptor:
        assert os.pread(descriptor, 100, 3) == b"45"
        assert os.pread(descriptor, 100, 5) == b""
        assert os.pread(descriptor, 100, 2**40) == b""
        assert os.pread(descriptor, 0, 0) == b""


def test_write_of_nothing_changes_nothing(root: Path) -> None:
    path = make(root / "file", b"12345")
    os.utime(path, (1, 1))
    with opened(path, os.O_WRONLY) as descriptor:
        assert os.write(descriptor, b"") == 0
        assert os.pwrite(descriptor, b"", 100) == 0
    assert path.stat().st_size == 5
    assert path.stat().st_mtime == 1


def test_descriptors_share_the_file_and_not_the_position(root: Path) -> None:
    path = make(root / "file", b"abcdef")
    with opened(path, os.O_RDWR) as first, opened(path, os.O_RDWR) as second:
        assert os.read(first, 3) == b"abc"
        assert os.read(second, 2) == b"ab"
        os.write(first, b"XYZ")
        assert os.read(second, 10) == b"cXYZ"
        third = os.dup(first)
        os.lseek(third, 1, os.SEEK_SET)
        assert os.read(first, 2) == b"bc"
        os.close(third)


def test_append_always_goes_to_the_end(root: Path) -> None:
    path = make(root / "file", b"start")
    with opened(path, os.O_WRONLY | os.O_APPEND) as first, opened(path, os.O_WRONLY | os.O_APPEND) as second:
        os.write(first, b"1")
        os.write(second, b"2")
        os.lseek(first, 0, os.SEEK_SET)
        os.write(first, b"3")
    assert path.read_bytes() == b"start123"


def test_appends_of_two_processes_do_not_overwrite_each_other(root: Path) -> None:
    path = make(root / "log")
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
                for line in range(500):
                    os.write(descriptor, b"%d %d\n" % (number, line))
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    lines = path.read_bytes().splitlines()
    for number in range(2):
        assert [line for line in lines if line.startswith(b"%d " % number)] == [
            b"%d %d" % (number, line) for line in range(500)
        ]
    assert len(lines) == 1000


def test_vectors_of_buffers(root: Path) -> None:
    path = make(root / "file")
    with opened(path, os.O_RDWR) as descriptor:
        assert os.pwritev(descriptor, [b"one", b"", b"two" * 50_000, b"three"], 10) == 3 + 150_000 + 5
        target = [bytearray(5), bytearray(8), bytearray(200_000)]
        assert os.preadv(descriptor, target, 5) == 5 + 3 + 150_000 + 5
        assert bytes(target[0] + target[1]) == bytes(5) + b"onetwotw"


def test_wrong_descriptors_and_arguments_are_refused(root: Path) -> None:
    path = make(root / "file", b"12345")
    with opened(path, os.O_RDONLY) as reading, opened(path, os.O_WRONLY) as writing:
        with fails(errno.EBADF):
            os.write(reading, b"x")
        with fails(errno.EBADF):
            os.read(writing, 1)
        with fails(errno.EINVAL):
            os.ftruncate(reading, 0)
        with fails(errno.EINVAL):
            os.pread(reading, 1, -1)
        with fails(errno.EINVAL):
            os.lseek(reading, -1, os.SEEK_SET)
        with fails(errno.EINVAL):
            os.ftruncate(writing, -1)
    with fails(errno.EBADF):
        os.read(reading, 1)
    with fails(errno.EINVAL):
        os.truncate(path, -1)
    with opened(root) as directory:
        with fails(errno.EISDIR):
            os.read(directory, 1)
        with fails(errno.EBADF):
            os.write(directory, b"x")
    with fails(errno.EISDIR):
        os.truncate(root, 0)
    with opened(path, os.O_PATH) as nothing_but_a_path:
        for call in (lambda: os.read(nothing_but_a_path, 1), lambda: os.fchmod(nothing_but_a_path, 0o600)):
            with fails(errno.EBADF):
                call()


def test_size_limit_of_the_process_is_efbig(root: Path) -> None:
    path = make(root / "file", b"x" * 1000)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            with opened(path, os.O_WRONLY) as descriptor:
                assert os.pwrite(descriptor, b"y" * 1000, 1500) == 500
                with fails(errno.EFBIG):
                    os.pwrite(descriptor, b"z", 2000)
                with fails(errno.EFBIG):
                    os.ftruncate(descriptor, 2001)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == b"x" * 1000 + bytes(500) + b"y" * 500


def test_largest_offset_is_efbig(root: Path) -> None:
    path = make(root / "file", b"content")
    with opened(path, os.O_RDWR) as descriptor:
        with fails(errno.EFBIG, errno.EINVAL):
            os.pwrite(descriptor, b"xx", 2**63 - 2)
        with fails(errno.EFBIG, errno.EINVAL):
            os.ftruncate(descriptor, 2**63 - 1)
    assert path.read_bytes() == b"content"


# -- holes ---------------------------------------------------------------------------------------------------------


def test_sparse_file_reads_zeros_and_takes_little_room(place: Place, root: Path) -> None:
    path = make(root / "sparse")
    size = 1 << 40
    with opened(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"first", 0)
        os.pwrite(descriptor, b"last", size - 4)
        os.pwrite(descriptor, b"middle", size // 2)
        assert os.fstat(descriptor).st_size == size
        assert os.pread(descriptor, 10, size // 2 - 2) == b"\0\0middle\0\0"
        assert os.pread(descriptor, CHUNK, size // 4) == bytes(CHUNK)
        assert os.pread(descriptor, 100, size - 8) == b"\0\0\0\0last"
        os.fsync(descriptor)
    assert (path.stat().st_blocks * 512 < 1 << 22) == place.mode.counts_blocks
    os.truncate(path, size // 2 + 3)
    with opened(path) as descriptor:
        assert os.pread(descriptor, 100, size // 2) == b"mid"


def test_seek_finds_holes_or_takes_the_whole_file_for_data(place: Place, root: Path) -> None:
    path = make(root / "sparse")
    with opened(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"x" * CHUNK, 8 * CHUNK)
        os.ftruncate(descriptor, 16 * CHUNK)
        os.fsync(descriptor)
        data, hole = os.lseek(descriptor, 0, os.SEEK_DATA), os.lseek(descriptor, 8 * CHUNK, os.SEEK_HOLE)
        assert (data, hole) == ((8 * CHUNK, 9 * CHUNK) if place.mode.tells_holes else (0, 16 * CHUNK))
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails(errno.ENXIO):
                os.lseek(descriptor, 16 * CHUNK, whence)


def test_allocation_is_done_or_refused_and_emulated_by_the_library(place: Place, root: Path) -> None:
    path = make(root / "file", b"content")
    with opened(path, os.O_RDWR) as descriptor:
        if place.mode.allocates:
            fallocate(descriptor, 0, 0, 100_000)
        else:
            with fails(errno.EOPNOTSUPP):
                fallocate(descriptor, 0, 0, 100_000)
        os.posix_fallocate(descriptor, 0, 100_000)
        assert os.fstat(descriptor).st_size == 100_000
        assert os.pread(descriptor, 100, 0) == b"content" + bytes(93)


# -- other ways to read and write ------------------------------------------------------------------------------------


def test_shared_mapping_writes_through(root: Path) -> None:
    content = pattern(3 * CHUNK + 100)
    path = make(root / "file", content)
    with opened(path, os.O_RDWR) as descriptor:
        with mmap.mmap(descriptor, len(content)) as mapping:
            assert mapping[:] == content
            mapping[5:10] = b"HELLO"
            mapping[CHUNK - 2 : CHUNK + 2] = b"edge"
            mapping.flush()
            assert os.pread(descriptor, 5, 5) == b"HELLO"
            mapping[-3:] = b"end"
        os.fsync(descriptor)
    expected = bytearray(content)
    expected[5:10], expected[CHUNK - 2 : CHUNK + 2], expected[-3:] = b"HELLO", b"edge", b"end"
    assert path.read_bytes() == expected


def test_mapping_outlives_its_descriptor_and_its_name(root: Path) -> None:
    path = make(root / "file", b"x" * 10_000)
    with opened(path, os.O_RDWR) as descriptor:
        mapping = mmap.mmap(descriptor, 10_000)
    os.link(path, root / "kept")
    path.unlink()
    mapping[0:4] = b"kept"
    mapping.close()
    assert (root / "kept").read_bytes()[:5] == b"keptx"


def test_mapping_sees_writes_and_writes_see_the_mapping(root: Path) -> None:
    path = make(root / "file", bytes(8192))
    with opened(path, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 8192) as mapping:
        os.pwrite(descriptor, b"written", 4000)
        assert mapping[4000:4007] == b"written"
        mapping[4000:4006] = b"mapped"
        assert os.pread(descriptor, 7, 4000) == b"mappedn"


def test_private_mapping_leaves_the_file_alone(root: Path) -> None:
    path = make(root / "file", b"x" * 8192)
    with opened(path) as descriptor, mmap.mmap(descriptor, 8192, mmap.MAP_PRIVATE) as mapping:
        mapping[0] = ord("y")
        mapping.flush()
    assert path.read_bytes() == b"x" * 8192


def test_mapping_is_refused_without_the_right_to_write(root: Path) -> None:
    path = make(root / "file", b"x" * 8192)
    with opened(path) as descriptor, fails(errno.EACCES):
        mmap.mmap(descriptor, 8192, mmap.MAP_SHARED, mmap.PROT_WRITE)


def test_direct_io_reads_and_writes_the_same_bytes(root: Path) -> None:
    path = make(root / "file", pattern(2 * CHUNK))
    buffer = mmap.mmap(-1, CHUNK)
    with opened(path, os.O_RDWR | os.O_DIRECT) as descriptor:
        assert os.preadv(descriptor, [buffer], CHUNK) == CHUNK
        assert buffer[:] == pattern(2 * CHUNK)[CHUNK:]
        buffer[:] = b"d" * CHUNK
        assert os.pwritev(descriptor, [buffer], 0) == CHUNK
    buffer.close()
    assert path.read_bytes() == b"d" * CHUNK + pattern(2 * CHUNK)[CHUNK:]


def test_kernel_side_copies(root: Path) -> None:
    content = pattern(3 * CHUNK + 5)
    source = make(root / "source", content)
    with opened(source) as reading, opened(root / "copy", os.O_CREAT | os.O_RDWR) as writing:
        copied = 0
        while count := os.copy_file_range(reading, writing, len(content)):
            copied += count
        assert copied == len(content)
        os.lseek(writing, 0, os.SEEK_SET)
        sent = 0
        while sent < len(content):
            sent += os.sendfile(writing, reading, sent, len(content) - sent)
    assert (root / "copy").read_bytes() == content
    with opened(source) as reading, opened(root / "copy") as unwritable, fails(errno.EBADF):
        os.copy_file_range(reading, unwritable, 10)


def test_synchronous_writes(root: Path) -> None:
    for flags in (os.O_SYNC, os.O_DSYNC):
        with opened(root / "file", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | flags) as descriptor:
            os.write(descriptor, b"durable")
        assert (root / "file").read_bytes() == b"durable"
