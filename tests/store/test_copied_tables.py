"""Tables that were cut short, damaged or copied are refused with a reason, or are exactly one commit; never SIGBUS."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path

import pytest

from tests.store.stores import fds_below
from tzfs.errors import CorruptionError, ForeignStore, TzfsError
from tzfs.format.keys import Table, inode, suffix
from tzfs.store import lmdb_pages, place
from tzfs.store.lmdb_store import LmdbMeta

PAGE = 4096


def build(folder: Path, *, rows: int = 3000) -> None:
    """Tables of several levels, with overflow pages, deleted rows and a free list."""
    meta = LmdbMeta(folder, create=True)
    for generation in range(3):
        txn = meta.begin_write()
        for i in range(rows):
            txn.put(Table.INODE, inode(i) + suffix(generation), b"%d" % i * 10)
        for i in range(0, rows, 50):
            txn.put(Table.INLINE, inode(i) + suffix(1), bytes([generation]) * 3500)
        if generation:
            for i in range(0, rows, 2):
                txn.delete(Table.INODE, inode(i) + suffix(generation - 1))
        txn.commit()
    meta.close()


def rows_in(folder: Path) -> list[tuple[bytes, bytes]]:
    meta = LmdbMeta(folder, readonly=True)
    try:
        txn = meta.begin_read()
        rows = [*txn.range(Table.INODE, b""), *txn.range(Table.INLINE, b"")]
        txn.close()
        return rows
    finally:
        meta.close()


def rows_or_error(folder: Path) -> list[tuple[bytes, bytes]] | TzfsError:
    try:
        return rows_in(folder)
    except TzfsError as error:
        return error


def check(folder: Path) -> None:
    data = folder / "data.mdb"
    fd = os.open(data, os.O_RDONLY)
    try:
        lmdb_pages.verify(fd, lmdb_pages.meta_pages(fd, str(data))[0], str(data))
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "meta"
    build(folder)
    return folder


def test_a_sound_file_passes_the_walk(built: Path) -> None:
    check(built)


def test_a_new_file_passes_the_walk(tmp_path: Path) -> None:
    LmdbMeta(tmp_path / "meta", create=True).close()
    check(tmp_path / "meta")


def test_every_length_is_refused_or_whole(built: Path, tmp_path: Path) -> None:
    whole = rows_in(built)
    size = (built / "data.mdb").stat().st_size
    refused = []
    for length in [*range(0, 3 * PAGE, 1000), *random.Random(1).sample(range(2 * PAGE, size), 30), size - 1]:
        folder = tmp_path / str(length)
        shutil.copytree(built, folder)
        os.truncate(folder / "data.mdb", length)
        answer = rows_or_error(folder)
        if isinstance(answer, TzfsError):
            refused.append(str(answer))
        else:
            assert answer == whole, length
        shutil.rmtree(folder)
    assert len(refused) >= 30
    assert [e for e in refused if not re.search("cut short|truncated|no tables", e)] == []
    assert fds_below(tmp_path) == []


def test_a_file_cut_short_in_place_is_refused_for_writing_too(tmp_path: Path) -> None:
    build(tmp_path / "meta")
    data = tmp_path / "meta" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    for readonly in (False, True):
        with pytest.raises(CorruptionError, match="truncated"):
            LmdbMeta(tmp_path / "meta", readonly=readonly)
    assert data.stat().st_size > 0


def test_a_last_page_that_was_never_written_is_no_damage(tmp_path: Path) -> None:
    """LMDB leaves out pages that were taken and given back in one transaction, also at the end of the file."""
    build(tmp_path / "meta", rows=300)
    data = tmp_path / "meta" / "data.mdb"
    # Raise "last page" in both root pages, as such a transaction would.
    with data.open("r+b") as file:
        for number in (0, 1):
            at = number * PAGE + 16 + 24 + 2 * 48
            file.seek(at)
            last = int.from_bytes(file.read(8), "little")
            file.seek(at)
            file.write((last + 3).to_bytes(8, "little"))
    meta = LmdbMeta(tmp_path / "meta")
    txn = meta.begin_write()
    txn.put(Table.SYS, b"key", b"value")
    txn.commit()
    meta.close()
    check(tmp_path / "meta")


def test_pages_of_another_moment_are_noticed(built: Path, tmp_path: Path) -> None:
    """Each page in turn is replaced by another of the same file: used ones are noticed, free ones do no harm."""
    whole = rows_in(built)
    pristine = (built / "data.mdb").read_bytes()
    pages = len(pristine) // PAGE
    hints = []
    generator = random.Random(2)
    for number in generator.sample(range(2, pages), min(60, pages - 2)):
        folder = tmp_path / str(number)
        shutil.copytree(built, folder)
        other = generator.choice([n for n in range(2, pages) if n != number])
        with (folder / "data.mdb").open("r+b") as file:
            file.seek(number * PAGE)
            file.write(pristine[other * PAGE : (other + 1) * PAGE])
        answer = rows_or_error(folder)
        if isinstance(answer, CorruptionError):
            hints.append(answer.hint)
        else:
            assert answer == whole, number
        shutil.rmtree(folder)
    assert len(hints) >= 10
    assert all(hints)


def test_flipped_bits_never_crash_the_walk(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "meta"
    pristine = (built / "data.mdb").read_bytes()
    shutil.copytree(built, folder)
    generator = random.Random(3)
    for _ in range(120):
        damaged = bytearray(pristine)
        page = generator.randrange(len(pristine) // PAGE)
        for _ in range(3):
            damaged[page * PAGE + generator.randrange(64 if generator.random() < 0.8 else PAGE)] ^= (
                1 << generator.randrange(8)
            )
        (folder / "data.mdb").write_bytes(damaged)
        try:
            check(folder)
        except (CorruptionError, ForeignStore):
            continue


# -- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_an_idle_store_is_checked_once_and_then_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "meta", rows=300)
    shutil.copytree(tmp_path / "meta", tmp_path / "copy")
    walks: list[object] = []
    monkeypatch.setattr(lmdb_pages, "verify", lambda *arguments: walks.append(arguments))
    for _ in range(2):
        meta = LmdbMeta(tmp_path / "copy")
        meta.begin_write().close()
        meta.close()
    assert len(walks) == 1
    assert rows_in(tmp_path / "copy") == rows_in(tmp_path / "meta")
    assert len(walks) == 1


@pytest.mark.parametrize("readonly", [False, True])
def test_a_copy_made_while_the_store_was_in_use_is_refused_with_a_way_out(tmp_path: Path, readonly: bool) -> None:
    build(tmp_path / "meta", rows=300)
    meta = LmdbMeta(tmp_path / "meta")
    txn = meta.begin_write()
    shutil.copytree(tmp_path / "meta", tmp_path / "copy")
    txn.close()
    meta.close()
    with pytest.raises(ForeignStore, match="copy that was made while the filesystem was mounted") as caught:
        LmdbMeta(tmp_path / "copy", readonly=readonly)
    assert caught.value.hint is not None
    assert str(tmp_path / "copy" / place.FILE_NAME) in caught.value.hint
    (tmp_path / "copy" / place.FILE_NAME).unlink()
    assert rows_in(tmp_path / "copy") == rows_in(tmp_path / "meta")


def test_a_damaged_copy_of_an_idle_store_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "meta")
    shutil.copytree(tmp_path / "meta", tmp_path / "copy")
    data = tmp_path / "copy" / "data.mdb"
    content = bytearray(data.read_bytes())
    content[4 * PAGE :] = bytes(len(content) - 4 * PAGE)
    data.write_bytes(content)
    with pytest.raises(CorruptionError, match="another moment"):
        LmdbMeta(tmp_path / "copy")


def test_a_store_that_crashed_opens_where_it_is(tmp_path: Path) -> None:
    """The mark of a write transaction that nobody ended means nothing while the file is the same."""
    build(tmp_path / "meta", rows=300)
    meta = LmdbMeta(tmp_path / "meta")
    meta.begin_write().close()
    meta.close()
    where = place.read(tmp_path / "meta")
    assert where is not None
    assert not where.writing
    mark = place.PlaceMark(tmp_path / "meta", where.inode)
    mark.writing()
    mark.close()
    assert rows_in(tmp_path / "meta")


@pytest.mark.parametrize("content", [b"", b"TZFSPLAC", b"x" * 17, b"TZFSPLAC" + bytes(100)])
def test_a_place_that_cannot_be_read_counts_as_an_idle_copy(tmp_path: Path, content: bytes) -> None:
    build(tmp_path / "meta", rows=300)
    (tmp_path / "meta" / place.FILE_NAME).write_bytes(content)
    assert place.suspect(tmp_path / "meta", tmp_path / "meta" / "data.mdb")
    assert rows_in(tmp_path / "meta")
