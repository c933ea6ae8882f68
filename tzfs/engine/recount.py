"""A recount: what the counters, cells and segment counters should say, worked out from the rows themselves.

The reference for every incremental counter: tests compare after each step, `check` will compare on request.  It reads
all tables, so its cost is that of the filesystem's whole history.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tzfs.engine.head import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from tzfs.engine.reads import masked, reclaims_of
from tzfs.engine.slices import extents
from tzfs.engine.versions import extent_charge
from tzfs.errors import CorruptionError
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, Table
from tzfs.format.records import Slice
from tzfs.store.interface import ReadTransaction


@dataclass(slots=True)
class Recount:
    """Counted from the rows; `problems` are broken invariants, one line each."""

    inodes: int = 0
    files: int = 0
    directories: int = 0
    symlinks: int = 0
    others: int = 0
    bytes: int = 0
    cells: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    segments: dict[int, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _References:
    """Which inodes and data ids live, and which rows refer to one."""

    inodes: set[int] = field(default_factory=set)
    data: set[int] = field(default_factory=set)
    of_inodes: list[tuple[int, str]] = field(default_factory=list)
    of_data: list[tuple[int, int, str]] = field(default_factory=list)  # (data id, chunk index, row)


def recount(txn: ReadTransaction, epoch: int) -> Recount:
    """Counts everything, and checks the invariant of versions, `change` and `dead` on the way."""
    out = Recount()
    deaths: dict[tuple[int, Table, bytes], int] = {}
    cells: Counter[tuple[int, int]] = Counter()
    charged: Counter[tuple[int, int]] = Counter()
    lifetimes: dict[tuple[int, int], tuple[int, int]] = {}  # (extent, birth) -> (death, charge)
    for key, value in txn.range(Table.DEAD, b""):
        death, birth, table, prefix = keys.dead_parts(key)
        (charge,) = records.unpack_plain(Table.DEAD, key, _body(Table.DEAD, key, value))
        if (birth, table, prefix) in deaths:
            out.problems.append(f"two deaths of {table.name} {prefix.hex()} born at {birth}")
        deaths[birth, table, prefix] = death
        cells[death, birth] += 1
        charged[death, birth] += charge
        if table is Table.EXTENT:
            lifetimes[int.from_bytes(prefix, "big"), birth] = (death, charge)
    changes = {keys.change_parts(key) for key, _ in txn.range(Table.CHANGE, b"")}
    references = _References()
    for table in keys.VERSIONED:
        _count_table(txn, table, epoch, out, deaths, changes, cells, charged, lifetimes, references)
    out.problems += [f"no such inode: {row}" for ino, row in references.of_inodes if ino not in references.inodes]
    reclaims = reclaims_of(txn)
    out.problems += [
        f"no such data id: {row}"
        for data, index, row in references.of_data
        if data not in references.data and not masked(reclaims, data, index, keys.EPOCH_MAX)
    ]
    for since, table, prefix in changes:
        out.problems.append(f"change row without a version: {table.name} {prefix.hex()} born at {since}")
    uses: dict[int, list[int]] = {}
    for (extent, born), (died, charge) in lifetimes.items():
        if died == LIVE:
            cells[died, born] += 1
            charged[died, born] += charge
        use = uses.setdefault(extent >> 32, [0, 0])
        use[0] += 1
        use[1] += charge
    out.cells = {c: (cells[c], charged[c]) for c in cells}
    out.bytes = sum(charge for (death, _), charge in charged.items() if death == LIVE)
    out.segments = {number: (use[0], use[1]) for number, use in uses.items()}
    return out


def _count_table(
    txn: ReadTransaction,
    table: Table,
    epoch: int,
    out: Recount,
    deaths: dict[tuple[int, Table, bytes], int],
    changes: set[tuple[keys.Epoch, Table, bytes]],
    cells: Counter[tuple[int, int]],
    charged: Counter[tuple[int, int]],
    lifetimes: dict[tuple[int, int], tuple[int, int]],
    references: _References,
) -> None:
    previous = b""
    for key, value in txn.range(table, b""):
        prefix, birth = key[:-8], keys.birth_of(key)
        newest = prefix != previous
        previous = prefix
        body = records.unseal(table, key, value)
        name = f"{table.name} {prefix.hex()} born at {birth}"
        if (birth, table, prefix) in changes:
            changes.remove((birth, table, prefix))
        else:
            out.problems.append(f"no change row: {name}")
        if newest == ((birth, table, prefix) in deaths):
            out.problems.append(f"{'newest version is dead' if newest else 'no death'}: {name}")
        if birth > epoch:
            out.problems.append(f"born in the future: {name}")
        if not newest:
            continue
        cells[LIVE, birth] += 1
        if body is None:
            continue
        charged[LIVE, birth] += len(key) + len(value)
        about = int.from_bytes(prefix[:8], "big")
        if table is Table.INODE:
            inode = records.unpack_inode(keys.Ino(about), key, body)
            _count_inode(out, inode)
            references.inodes.add(about)
            references.data.add(inode.data)
        elif table in (Table.INLINE, Table.CHUNK):
            references.of_data.append((about, keys.chunk_index(prefix) if table is Table.CHUNK else 0, name))
        else:
            references.of_inodes.append((about, name))
            if table is Table.DIRENT:
                references.of_inodes.append((records.unpack_dirent(key, body)[0], name))
        named: bytes | tuple[Slice, ...] = b""
        if table is Table.CHUNK:
            named = records.unpack_slices(table, key, body)
        elif table is Table.XATTR:
            named = records.unpack_xattr(key, body)
        if not isinstance(named, bytes):
            for (extent, born), stored in extents(named).items():
                if (extent, born) in lifetimes:
                    out.problems.append(f"extent {extent:#x} born at {born} is named twice, or dead: {name}")
                lifetimes[extent, born] = (LIVE, extent_charge(stored))


def _count_inode(out: Recount, inode: records.Inode) -> None:
    if inode.nlink == 0:
        return
    kind = inode.mode & S_IFMT
    out.inodes += 1
    out.files += kind == S_IFREG
    out.directories += kind == S_IFDIR
    out.symlinks += kind == S_IFLNK
    out.others += kind not in (S_IFREG, S_IFDIR, S_IFLNK)


def _body(table: Table, key: bytes, value: bytes) -> bytes:
    body = records.unseal(table, key, value)
    if body is None:
        raise CorruptionError(f"a tombstone in table {table.name.lower()}, which has no versions")
    return body
