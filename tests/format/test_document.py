"""`FORMAT.md` says what the code does, wherever it gives a number."""

from __future__ import annotations

import re
from pathlib import Path

import tzfs.format
from tzfs import limits
from tzfs.format import keys, records
from tzfs.format.keys import Table
from tzfs.format.slices import Slice, pack_slices
from tzfs.format.superblock import CHECKSUM, FEATURES, NAMES, PAYLOAD_CHECKSUM
from tzfs.store.interface import KEY_BYTES_MAX, VALUE_BYTES_MAX

TEXT = (Path(tzfs.format.__file__).parent / "FORMAT.md").read_text()
DIRENT_KEY = keys.dirent(1, b"a") + keys.suffix(1)


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    table = TEXT.split(heading, 1)[1].split("\n|---", 1)[1].split("\n\n", 1)[0].split("\n")[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_its_tables_are_the_codes_tables() -> None:
    told: dict[str, str] = {}
    for numbers, names, *_ in _rows("## 4. Tables"):
        told.update(zip(re.findall(r"\w+", numbers), re.findall(r"\w+", names), strict=True))
    assert told == {str(int(t)): t.name.lower() for t in Table}


def test_its_features_are_the_codes_features() -> None:
    told = [(kind, int(bit), name.strip("`")) for kind, bit, name, _ in _rows("## 10. How the format evolves")]
    assert told == [(f.kind.value, f.bit, f.name) for f in FEATURES]


def test_its_example_is_what_the_code_writes() -> None:
    value = records.seal(Table.DIRENT, DIRENT_KEY, records.pack_dirent(2, 0o100644 >> 12))
    dead = records.tombstone(Table.DIRENT, DIRENT_KEY)
    block = TEXT.split("Example: the entry", 1)[1].split("## 4", 1)[0]
    hexes = ["".join(re.findall(r"\b(?:[0-9a-f]{2})+\b", line)) for line in block.splitlines() if line[:4] == "    "]
    assert [line for line in hexes if line] == [DIRENT_KEY.hex(), value.hex(), dead.hex()]


def test_its_sizes_are_the_codes_sizes() -> None:
    assert f"### 5.1 Inode: {records.INODE_BYTES} bytes" in TEXT
    one = Slice(0, 1, keys.extent_id(1, 1), keys.Epoch(1), 0, 1, 1, 0, b"")
    assert f"as many slices, {len(pack_slices((one,))) - 1} bytes each" in TEXT
    empty = records.Snapshot(keys.Epoch(1), bytes(16), 0, 1, 1, 1)
    assert f"### 5.4 Snapshot: {records.pack_snapshot(empty).index(b'{')} bytes" in TEXT


def test_its_limits_are_the_codes_limits() -> None:
    bounds = {row[0]: row[1] for row in _rows("## 11. Limits")}
    assert bounds["a value"].startswith(f"{VALUE_BYTES_MAX:,} bytes")
    assert bounds["a key"] == f"{KEY_BYTES_MAX} bytes"
    assert bounds["inline contents"] == f"{limits.INLINE_BYTES_MAX:,} bytes"
    assert bounds["a chunk"].endswith(f"at most {limits.SLICES_MAX} slices")
    assert (1 << limits.CHUNK_SHIFT_MIN, 1 << limits.CHUNK_SHIFT_MAX) == (4096, 1 << 20)
    assert bounds["a symbolic link's target"] == f"{limits.SYMLINK_TARGET_BYTES_MAX:,} bytes"
    assert bounds["names of one inode, subdirectories of a directory"] == f"{limits.LINKS_MAX:,}"
    assert limits.FILE_BYTES_MAX == (1 << 63) - 4097
    assert bounds["a snapshot's properties and holds"].startswith(f"{records.SNAPSHOT_JSON_BYTES_MAX:,} bytes")
    assert limits.SEGMENT_BYTES_MAX == 1 << 30
    assert limits.MAP_BYTES == 1 << 38
    assert limits.INO_MAX == (1 << 40) - 1


def test_its_methods_are_the_codes_methods() -> None:
    for method in (CHECKSUM, PAYLOAD_CHECKSUM, NAMES):
        assert f'"{method}"' in TEXT
