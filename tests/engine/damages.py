"""One damage for each way in which a rule can be broken, and what is to be said of it: that rule, and no other."""

from __future__ import annotations

from collections.abc import Callable

from tests.engine.histories import PAGE, History
from tzfs.engine import bequest
from tzfs.engine.check.problems import Rule
from tzfs.format import keys, records
from tzfs.format.keys import LIVE, Table
from tzfs.format.records import FLAG_INLINE, Snapshot
from tzfs.format.superblock import BOOKMARKS, SUPERBLOCK_KEY, pack_superblock, unpack_superblock
from tzfs.native import record_sum


def _record(h: History) -> None:
    key, value = h.fs.rows(Table.INLINE)[0]
    h.fs.put_value(Table.INLINE, key, value[:-1] + bytes([value[-1] ^ 1]))


def _record_of_a_later_version(h: History) -> None:
    key = b"later"
    h.fs.put_value(Table.SYS, key, b"\2" + record_sum(Table.SYS, key, 2, b"").to_bytes(4, "big"))


def _record_too_short(h: History) -> None:
    h.fs.put(Table.CELL, keys.cell(77, 76), b"short")


def _key(h: History) -> None:
    h.fs.put(Table.ORPHAN, b"odd key", bytes(8))


def _key_with_a_slash(h: History) -> None:
    h.fs.put(Table.DIRENT, keys.dirent(1, b"a/b") + keys.suffix(1), records.pack_dirent(h.ino["fifo"], 1))


def _no_superblock(h: History) -> None:
    h.fs.delete(Table.SYS, SUPERBLOCK_KEY)


def _id_above(h: History) -> None:
    h.fs.counters(next_ino=-3, next_data=-3, next_segment=-1)


def _born_above_the_head(h: History) -> None:
    key = h.fs.key(Table.INODE, keys.inode(h.ino["fifo"]))
    body = h.fs.body(Table.INODE, key)
    moved = key[:-8] + keys.suffix(99)
    h.fs.put(Table.INODE, moved, body)  # beside the old one, which so dies
    h.fs.put(Table.CHANGE, keys.change(99, Table.INODE, key[:-8]), b"")
    size = len(key) + len(body) + records.ENVELOPE_BYTES
    h.fs.put_numbers(Table.DEAD, keys.dead(99, 1, Table.INODE, key[:-8]), size)
    h.fs.cell(LIVE, 1, -1, -size)
    h.fs.cell(LIVE, 99, 1, size)
    h.fs.cell(99, 1, 1, size)


def _bookmark_of_the_head(h: History) -> None:
    ((_, value),) = h.fs.rows(Table.SYS, SUPERBLOCK_KEY)
    superblock = unpack_superblock(value).with_features([BOOKMARKS])
    h.fs.put_value(Table.SYS, SUPERBLOCK_KEY, pack_superblock(superblock))
    bookmark = records.Bookmark(h.fs.counters().epoch, bytes(16), 0, 0)
    h.fs.put(Table.BOOKMARK, b"ahead", records.pack_bookmark(bookmark))


def _bookmark_unannounced(h: History) -> None:
    h.fs.put(Table.BOOKMARK, b"mark", records.pack_bookmark(records.Bookmark(keys.Epoch(1), bytes(16), 0, 0)))


def _bookmark_too_short(h: History) -> None:
    h.fs.put(Table.BOOKMARK, b"mark", b"short")


def _log_with_a_hole(h: History) -> None:
    h.fs.delete(Table.LOG, keys.u64(2))


def _log_of_numbers(h: History) -> None:
    h.fs.put(Table.LOG, keys.u64(1), b"[1]")


def _counter(h: History) -> None:
    h.fs.counters(files=1, inodes=1)


def _cell(h: History) -> None:
    key, _ = h.fs.rows(Table.CELL)[0]
    number, charge = h.fs.numbers(Table.CELL, key)
    h.fs.put_numbers(Table.CELL, key, number, charge + 1)


def _snapshot_twice(h: History) -> None:
    h.fs.put(Table.SNAPSHOT, b"again", records.pack_snapshot(Snapshot(keys.Epoch(1), bytes(16), 0, 0, 0, 0)))


def _no_death(h: History) -> None:
    key, death, birth, charge = h.fs.dead(Table.INODE, keys.inode(h.ino["small"]))
    h.fs.delete(Table.DEAD, key)
    h.fs.cell(death, birth, -1, -charge)


def _newest_is_dead(h: History) -> None:
    prefix = keys.inode(h.ino["fifo"])
    h.fs.put_numbers(Table.DEAD, keys.dead(3, 1, Table.INODE, prefix), 0)
    h.fs.cell(3, 1, 1, 0)


def _death_of_nothing(h: History) -> None:
    h.fs.put_numbers(Table.DEAD, keys.dead(3, 1, Table.INODE, keys.inode(h.ino["fifo"] + 50)), 7)
    h.fs.cell(3, 1, 1, 7)


def _death_after_the_next_birth(h: History) -> None:
    key, death, birth, charge = h.fs.dead(Table.INODE, keys.inode(h.ino["small"]))
    h.fs.delete(Table.DEAD, key)
    h.fs.put_numbers(Table.DEAD, keys.dead(death + 1, birth, Table.INODE, keys.inode(h.ino["small"])), charge)
    h.fs.cell(death, birth, -1, -charge)
    h.fs.cell(death + 1, birth, 1, charge)


def _tombstone_of_nothing(h: History) -> None:
    prefix = keys.xattr(h.ino["fifo"], b"user.none")
    key = prefix + keys.suffix(2)
    h.fs.put_value(Table.XATTR, key, records.tombstone(Table.XATTR, key))
    h.fs.put(Table.CHANGE, keys.change(2, Table.XATTR, prefix), b"")
    h.fs.cell(LIVE, 2, 1, 0)


def _no_change(h: History) -> None:
    h.fs.delete(Table.CHANGE, h.fs.rows(Table.CHANGE)[3][0])


def _change_of_nothing(h: History) -> None:
    h.fs.put(Table.CHANGE, keys.change(1, Table.INODE, keys.inode(9999)), b"")


def _dead_and_unseen(h: History) -> None:
    h.fs.delete(Table.SNAPSHOT, b"first")


def _dead_and_charged_wrongly(h: History) -> None:
    key, death, birth, charge = h.fs.dead(Table.INODE, keys.inode(h.ino["small"]))
    h.fs.put_numbers(Table.DEAD, key, charge + 1)
    h.fs.cell(death, birth, 0, 1)


def _inode_flags(h: History) -> None:
    h.fs.inode(h.ino["fifo"], flags=64)


def _entry_of_another_type(h: History) -> None:
    key = h.fs.key(Table.DIRENT, keys.dirent(1, b"small"))
    h.fs.put(Table.DIRENT, key, records.pack_dirent(h.ino["small"], 0o010000 >> 12))


def _entry_of_another_inode(h: History) -> None:
    key = h.fs.key(Table.DIRENT, keys.dirent(1, b"small"))
    h.fs.put(Table.DIRENT, key, records.pack_dirent(h.ino["sparse"], 0o100000 >> 12))


def _inode_of_another_name(h: History) -> None:
    h.fs.inode(h.ino["small"], name=b"smell")


def _link_of_another_name(h: History) -> None:
    old = keys.link(h.ino["two"], h.ino["bottom"], b"two again")
    new = keys.link(h.ino["two"], h.ino["bottom"], b"two AGAIN")
    h.fs.delete(Table.LINK, old + keys.suffix(1))
    h.fs.delete(Table.CHANGE, keys.change(1, Table.LINK, old))
    h.fs.put(Table.LINK, new + keys.suffix(1), b"")
    h.fs.put(Table.CHANGE, keys.change(1, Table.LINK, new), b"")


def _links(h: History) -> None:
    h.fs.inode(h.ino["two"], nlink=3)


def _directory_size(h: History) -> None:
    h.fs.inode(h.ino["middle"], size=7)


def _directory_links(h: History) -> None:
    h.fs.inode(h.ino["middle"], nlink=2)


def _orphan_forgotten(h: History) -> None:
    h.fs.delete(Table.ORPHAN, keys.orphan(h.ino["held"]))


def _orphan_with_a_name(h: History) -> None:
    h.fs.put_numbers(Table.ORPHAN, keys.orphan(h.ino["fifo"]), 1)


def _attribute(h: History) -> None:
    h.fs.inode(h.ino["small"], flags=FLAG_INLINE)


def _owner_twice(h: History) -> None:
    h.fs.inode(h.ino["small"], data=h.data["other"])


def _contents_beyond_the_size(h: History) -> None:
    h.fs.inode(h.ino["small"], size=3)


def _contents_not_where_the_inode_says(h: History) -> None:
    h.fs.inode(h.ino["two"], flags=FLAG_INLINE)


def _slices(h: History) -> None:
    h.fs.slices(h.data["two"], change=lambda s: s._replace(extent_offset=4096))


def _extent_lives_and_is_dead(h: History) -> None:
    s = h.fs.slices(h.data["two"])
    h.fs.put_numbers(Table.DEAD, keys.dead(3, s.birth, Table.EXTENT, keys.u64(s.extent)), PAGE)
    h.fs.cell(LIVE, s.birth, -1, -PAGE)
    h.fs.cell(3, s.birth, 1, PAGE)


def _extent_named_twice(h: History) -> None:
    one, two = h.fs.slices(h.data["two"], 0), h.fs.slices(h.data["two"], 1)
    h.fs.slices(
        h.data["two"],
        1,
        lambda s: s._replace(
            extent=one.extent, birth=one.birth, raw_bytes=one.raw_bytes, stored_bytes=one.stored_bytes
        ),
    )
    h.fs.cell(LIVE, two.birth, -1, -PAGE)
    h.fs.use(two.extent >> 32, -1, -PAGE)
    h.fs.put_numbers(Table.PUNCH, keys.punch(1, two.extent), two.stored_bytes)


def _extent_gone_that_is_seen(h: History) -> None:
    for key, _ in h.fs.rows(Table.DEAD):
        death, birth, table, prefix = keys.dead_parts(key)
        if table is Table.EXTENT:
            (charge,) = h.fs.numbers(Table.DEAD, key)
            extent = int.from_bytes(prefix, "big")
            h.fs.delete(Table.DEAD, key)
            h.fs.cell(death, birth, -1, -charge)
            h.fs.use(extent >> 32, -1, -charge)
            h.fs.put_numbers(Table.PUNCH, keys.punch(1, extent), charge)
            return


def _extent_kept_for_nobody(h: History) -> None:
    key, value = h.fs.rows(Table.PUNCH)[0]
    extent, charge = keys.punch_parts(key)[1], PAGE
    assert len(value)
    h.fs.delete(Table.PUNCH, key)
    h.fs.put_numbers(Table.DEAD, keys.dead(3, 1, Table.EXTENT, keys.u64(extent)), charge)
    h.fs.cell(3, 1, 1, charge)
    h.fs.use(extent >> 32, 1, charge)


def _shared(h: History) -> None:
    s = h.fs.slices(h.data["two"])
    h.fs.put(Table.SHARED, keys.shared(s.extent), records.pack_shared(records.Shared(PAGE, {s.birth: LIVE})))


def _reclaim_of_nothing(h: History) -> None:
    h.fs.counters(next_id=1)
    h.fs.put_numbers(Table.RECLAIM, keys.reclaim(h.fs.counters().next_id - 1), 1, 5, 3, 1)


def _reclaim_overlapping(h: History) -> None:
    key, _ = h.fs.rows(Table.RECLAIM)[0]
    h.fs.put_numbers(Table.RECLAIM, keys.reclaim(1 << 20), *h.fs.numbers(Table.RECLAIM, key))
    h.fs.counters(next_id=1 << 21)


def _destroy(h: History) -> None:
    h.fs.counters(next_id=1)
    h.fs.put_numbers(Table.DESTROY, keys.destroy(1), -1, 2, 4)


def _extent_beyond_the_end(h: History) -> None:
    for key, _ in h.fs.rows(Table.PUNCH):
        h.fs.payload.punch(keys.punch_parts(key)[1], *h.fs.numbers(Table.PUNCH, key))
        h.fs.delete(Table.PUNCH, key)
    h.fs.use(1, 0, 0, -h.fs.numbers(Table.SEGMENT, keys.segment(1))[2] + 2 * PAGE)


def _extents_overlap(h: History) -> None:
    s = h.fs.slices(h.data["two"], change=lambda s: s._replace(raw_bytes=2 * PAGE, stored_bytes=2 * PAGE))
    h.fs.cell(LIVE, s.birth, 0, PAGE)
    h.fs.use(s.extent >> 32, 0, PAGE)


def _segment(h: History) -> None:
    h.fs.use(1, 1, 0)


def _segment_file(h: History) -> None:
    h.fs.payload.remove_segment(1)


def _punch_of_what_lives(h: History) -> None:
    h.fs.put_numbers(Table.PUNCH, keys.punch(1, h.fs.slices(h.data["two"]).extent), PAGE)


def _punched_twice(h: History) -> None:
    key, _ = h.fs.rows(Table.PUNCH)[0]
    h.fs.put_numbers(Table.PUNCH, keys.punch(1, keys.punch_parts(key)[1]), *h.fs.numbers(Table.PUNCH, key))


def _leak(h: History) -> None:
    h.fs.delete(Table.PUNCH, h.fs.rows(Table.PUNCH)[0][0])


def _inherited_from_nobody(h: History) -> None:
    h.fs.put(Table.SYS, bequest.key_of(1), records.pack_sums(5, 0))


DAMAGES: list[tuple[Rule, Callable[[History], None]]] = [
    (Rule.RECORD, _record),
    (Rule.RECORD, _record_of_a_later_version),
    (Rule.RECORD, _record_too_short),
    (Rule.RECORD, _bookmark_too_short),
    (Rule.ID, _log_with_a_hole),
    (Rule.RECORD, _log_of_numbers),
    (Rule.KEY, _key),
    (Rule.KEY, _key_with_a_slash),
    (Rule.SUPERBLOCK, _no_superblock),
    (Rule.ID, _id_above),
    (Rule.SUPERBLOCK, _bookmark_unannounced),
    (Rule.ID, _bookmark_of_the_head),
    (Rule.ID, _born_above_the_head),
    (Rule.COUNTER, _counter),
    (Rule.CELL, _cell),
    (Rule.SNAPSHOT, _snapshot_twice),
    (Rule.VERSION, _no_death),
    (Rule.VERSION, _newest_is_dead),
    (Rule.VERSION, _death_of_nothing),
    (Rule.VERSION, _death_after_the_next_birth),
    (Rule.VERSION, _tombstone_of_nothing),
    (Rule.CHANGE, _no_change),
    (Rule.CHANGE, _change_of_nothing),
    (Rule.DEADLIST, _dead_and_unseen),
    (Rule.DEADLIST, _dead_and_charged_wrongly),
    (Rule.INODE, _inode_flags),
    (Rule.ENTRY, _entry_of_another_type),
    (Rule.NAME, _entry_of_another_inode),
    (Rule.NAME, _inode_of_another_name),
    (Rule.NAME, _link_of_another_name),
    (Rule.LINKS, _links),
    (Rule.DIRECTORY, _directory_size),
    (Rule.DIRECTORY, _directory_links),
    (Rule.ORPHAN, _orphan_forgotten),
    (Rule.ORPHAN, _orphan_with_a_name),
    (Rule.ATTRIBUTE, _attribute),
    (Rule.OWNER, _owner_twice),
    (Rule.CONTENTS, _contents_beyond_the_size),
    (Rule.CONTENTS, _contents_not_where_the_inode_says),
    (Rule.SLICES, _slices),
    (Rule.EXTENT, _extent_lives_and_is_dead),
    (Rule.EXTENT, _extent_named_twice),
    (Rule.EXTENT, _extent_gone_that_is_seen),
    (Rule.EXTENT, _extent_kept_for_nobody),
    (Rule.SHARED, _shared),
    (Rule.RECLAIM, _reclaim_of_nothing),
    (Rule.RECLAIM, _reclaim_overlapping),
    (Rule.DESTROY, _destroy),
    (Rule.PLACE, _extent_beyond_the_end),
    (Rule.PLACE, _extents_overlap),
    (Rule.SEGMENT, _segment),
    (Rule.SEGMENT, _segment_file),
    (Rule.PUNCH, _punch_of_what_lives),
    (Rule.PUNCH, _punched_twice),
    (Rule.INHERITED, _inherited_from_nobody),
    (Rule.LEAK, _leak),
]
