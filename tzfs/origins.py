"""The origins of a clone, opened for reading beside it.

They lie in the same store, in the folder that their partition names, whatever their name has become since; their
snapshot is kept by the hold that the catalog has.  Whoever writes an origin, in this process or another, is not
disturbed: it is read as any reader of a snapshot does.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

from tzfs import limits
from tzfs.engine.committed import read_superblock
from tzfs.engine.inherited import Above, Ancestry
from tzfs.engine.snapshots import read_snapshots
from tzfs.errors import CorruptionError, ForeignStore
from tzfs.format.superblock import Origin
from tzfs.layout import META, SEGMENTS, check_folder, check_no_link
from tzfs.store.interface import MetaStore
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.segments import Segments


def origin_of(meta: MetaStore) -> Origin | None:
    """What the superblock says of the origin; None where it has none, or cannot be read."""
    txn = meta.begin_read()
    try:
        return read_superblock(txn).origin
    except CorruptionError:
        return None
    finally:
        txn.close()


def open_tables(directory: Path) -> LmdbMeta:
    """The tables of a filesystem, for reading.  No link is followed to them: `Displaced`."""
    meta = directory / META
    with suppress(OSError):  # opening them says why
        check_folder(directory)
        check_no_link(meta)
        check_no_link(meta / "data.mdb")
    return LmdbMeta(meta, readonly=True)


def open_ancestry(directory: Path, link: Origin | None, stack: ExitStack, depth: int = 1) -> Ancestry | None:
    """The origins of the filesystem in `directory`, closed with `stack`; None for one without.

    `ForeignStore` where an origin, or its snapshot, is not there.
    """
    if link is None:
        return None
    if depth > limits.CLONE_DEPTH_MAX:
        raise ForeignStore(f"{directory}: a clone of more than {limits.CLONE_DEPTH_MAX} clones, one of the other")
    folder = directory.parent / f"{link.partition:016x}"
    meta = open_tables(folder)
    stack.callback(meta.close)
    txn = meta.begin_read()
    try:
        superblock, snapshots = read_superblock(txn), read_snapshots(txn)
    finally:
        txn.close()
    superblock.check(for_writing=False)
    there = any((s.guid.hex(), s.epoch) == (link.snapshot, link.epoch) for s in snapshots.values())
    if superblock.guid != link.guid or not there:
        raise ForeignStore(
            f"{directory}: the snapshot that it was cloned from is not in {folder}",
            hint="the folder was moved or copied without its origin",
        )
    payload = Segments(folder / SEGMENTS, guid=bytes.fromhex(link.guid), readonly=True)
    stack.callback(payload.close)
    above = open_ancestry(folder, superblock.origin, stack, depth + 1)
    return Ancestry(Above(meta, payload, link, above))
