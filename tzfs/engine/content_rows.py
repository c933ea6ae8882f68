"""The rows of contents: how changed chunks and inline bytes, and those that are gone, become rows of a transaction.

A range of chunks that is gone, and too many to remove at once, is a row of `reclaim`: its chunks read as holes from its
epoch on, and are removed in the background.  A write into such a range first finishes the chunk it touches, and the
range splits around it; ranges of one data id never overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from tzfs import limits
from tzfs.engine import reads, slices
from tzfs.engine.chunks import CHUNK_INDEX_MAX, Chunk
from tzfs.engine.head import Drop, Head
from tzfs.engine.versions import Lifetime, Version
from tzfs.errors import CorruptionError, InternalError
from tzfs.format import keys, records
from tzfs.format.keys import DataId, Epoch, ExtentId, Table
from tzfs.format.records import ENVELOPE_BYTES, Reclaim
from tzfs.format.slices import EMBEDDED_MARK, extents_of, pack_slices


class ContentRows:
    """The rows of a head's contents."""

    def __init__(self, head: Head) -> None:
        self._head = head

    # -- what is stored, and what is being reclaimed -----------------------------------------------------------------

    def stored(self, data: DataId, lo: int) -> list[int] | None:
        """Chunk indexes from `lo` on that have rows and are not being reclaimed; None for too many to remove at
        once."""
        head = self._head
        if data >= head.first_data:
            return []
        found = reads.chunk_indexes(head.look, data, lo, CHUNK_INDEX_MAX, limits.RECLAIM_AT_ONCE_CHUNKS + 1)
        if len(found) > limits.RECLAIM_AT_ONCE_CHUNKS:
            return None
        reclaims = head.reclaims.values()
        return [i for i in found if not reads.masked(reclaims, data, i, keys.EPOCH_MAX)]

    def add_reclaim(self, data: DataId, lo: int, hi: int, at: Epoch) -> None:
        """Chunks [lo, hi) are gone from `at` on and will be removed in the background; ranges never overlap."""
        for r in sorted(r for r in self._head.reclaims.values() if r.data == data and r.hi > lo):
            if lo < r.lo:
                self._add_range(Reclaim(data, lo, min(r.lo, hi), at))
            lo = r.hi
        if lo < hi:
            self._add_range(Reclaim(data, lo, hi, at))

    def _add_range(self, r: Reclaim) -> None:
        head = self._head
        number = head.counters.next_id
        head.counters.next_id += 1
        head.reclaims[number] = r
        head.reclaims_changed.add(number)

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Turns all changed contents into rows of the transaction.  Every buffer must have been flushed."""
        head = self._head
        versions, txg = head.versions, head.counters.txg
        self._publish_drops()
        made: dict[Epoch, list[tuple[bytes, bytes]]] = {}
        changed: dict[Epoch, list[tuple[bytes, bytes]]] = {}
        gone: dict[Epoch, list[bytes]] = {}
        born: list[Lifetime] = []
        died: dict[Epoch, list[Lifetime]] = {}
        unread: set[bytes] = set()  # keys of chunks that were overwritten without a look at them
        for data, contents in sorted(head.contents.items()):
            at, fresh = head.epoch_of(contents.ino), data >= head.first_data
            if contents.inline_changed:
                if contents.inline:
                    versions.put(Table.INLINE, keys.inline(data), bytes(contents.inline), at, fresh=fresh)
                elif not fresh:
                    versions.remove(Table.INLINE, keys.inline(data), at)
            for index in sorted(contents.chunks):
                chunk = contents.chunks[index]
                if chunk.dirty is not None or chunk.flushing is not None:
                    raise InternalError(f"chunk {index} of data {data} was not flushed before publishing")
                if not chunk.changed:
                    continue
                if head.reclaims and not fresh:
                    self._finish(contents.data, index)
                prefix = keys.chunk(data, index)
                if chunk.slices:
                    rows = made if fresh else changed
                    rows.setdefault(at, []).append((prefix, pack_slices(chunk.slices)))
                elif not fresh:
                    gone.setdefault(at, []).append(prefix)
                if chunk.base is None:
                    unread.add(prefix)
                if chunk.base or len(chunk.slices) != 1 or len(chunk.fresh) != (not chunk.slices[0].embedded):
                    self._publish_extents(chunk, at, born, died)
                elif chunk.fresh:  # written at once, and nothing of before is kept: nearly always
                    s = chunk.slices[0]
                    born.append(((s.extent, s.birth), (s.stored_bytes, s.raw_bytes)))
        for at, fresh_rows in made.items():
            versions.put_fresh(Table.CHUNK, fresh_rows, at)
        for at, changed_rows in changed.items():
            prefixes = [prefix for prefix, _ in changed_rows]
            olds = head.txn.seek_many(Table.CHUNK, prefixes, at)
            versions.put_many(Table.CHUNK, changed_rows, at, olds=olds)
            self._kill_unread(unread, prefixes, olds, at, died)
        for at, prefixes in gone.items():
            olds = head.txn.seek_many(Table.CHUNK, prefixes, at)
            versions.remove_many(Table.CHUNK, prefixes, at, olds=olds)
            self._kill_unread(unread, prefixes, olds, at, died)
        versions.extents_born(born)
        for at, lifetimes in died.items():
            versions.extents_died(lifetimes, at, txg)
        head.unused_extents += head.copies.items()
        head.copies.clear()
        for extent, stored in head.unused_extents:
            versions.punch(ExtentId(extent), stored, txg)
        for number in head.reclaims_changed:
            key = keys.reclaim(number)
            r = head.reclaims.get(number)
            if r is None:
                head.txn.delete(Table.RECLAIM, key)
            else:
                body = records.pack_plain(Table.RECLAIM, *r)
                head.txn.put(Table.RECLAIM, key, records.seal(Table.RECLAIM, key, body))
        head.contents.clear()
        head.drops.clear()
        head.unused_extents.clear()
        head.reclaims_changed.clear()

    def _kill_unread(
        self,
        unread: set[bytes],
        prefixes: Sequence[bytes],
        olds: Sequence[Version | None],
        at: Epoch,
        died: dict[Epoch, list[Lifetime]],
    ) -> None:
        """What the old records of chunks named that nobody has looked at."""
        found = [(prefix, old) for prefix, old in zip(prefixes, olds, strict=True) if prefix in unread]
        if found:
            died.setdefault(at, []).extend(self._named([prefix for prefix, _ in found], [old for _, old in found]))

    def _publish_extents(
        self, chunk: Chunk, at: Epoch, born: list[Lifetime], died: dict[Epoch, list[Lifetime]]
    ) -> None:
        """What the chunk names anew, and what it has stopped naming."""
        versions, txg = self._head.versions, self._head.counters.txg
        old, new = slices.extents(chunk.base or ()), slices.extents(chunk.slices)
        born += [lifetime for lifetime in new.items() if lifetime[0] not in old]
        died.setdefault(at, []).extend([lifetime for lifetime in old.items() if lifetime[0] not in new])
        kept = {extent for extent, _ in new}
        for extent, stored in chunk.fresh.items():
            if extent not in kept:
                versions.punch(extent, stored, txg)

    def _finish(self, data: DataId, index: int) -> None:
        """A write into a range being reclaimed: this chunk first, and the range splits around it."""
        head = self._head
        for number, r in list(head.reclaims.items()):
            if r.data == data and r.lo <= index < r.hi:
                self.remove_chunk(data, index, r.at)
                head.versions.settle()  # the same key is about to be put
                del head.reclaims[number]
                head.reclaims_changed.add(number)
                if r.lo < index:
                    self._add_range(r._replace(hi=index))
                if index + 1 < r.hi:
                    self._add_range(r._replace(lo=index + 1))

    def remove_chunk(self, data: DataId, index: int, at: Epoch) -> None:
        """The chunk is absent from `at` on, and its extents die with it."""
        self.remove_chunks([keys.chunk(data, index)], at)

    def remove_chunks(self, prefixes: Sequence[bytes], at: Epoch) -> None:
        """`remove_chunk` for each of these keys of chunks, which ascend."""
        head = self._head
        olds = head.txn.seek_many(Table.CHUNK, prefixes, at)
        head.versions.remove_many(Table.CHUNK, prefixes, at, olds=olds)
        head.versions.extents_died(self._named(prefixes, olds), at, head.counters.txg)

    def _named(self, prefixes: Sequence[bytes], olds: Sequence[Version | None]) -> list[Lifetime]:
        """What the newest records of these chunks name: `olds`, as they were sought for `prefixes`.

        A damaged record goes all the same, or its file could not be removed; what it named stays, and is reported.
        """
        found = [
            (prefix + keys.suffix(old[0]), old[1])
            for prefix, old in zip(prefixes, olds, strict=True)
            if old is not None and old[1][ENVELOPE_BYTES : ENVELOPE_BYTES + 1] != EMBEDDED_MARK
        ]
        stored, values = [key for key, _ in found], [value for _, value in found]
        named: list[Lifetime] = []
        try:
            for key, body in zip(stored, records.unseal_many(Table.CHUNK, stored, values), strict=True):
                if body is not None:
                    named += extents_of(Table.CHUNK, key, body)
        except CorruptionError as error:
            if len(stored) == 1:
                self._head.report(f"{error}; what it names is not given back")
                return []
            return [
                lifetime for key, value in found for lifetime in self._named([key[:-8]], [(keys.birth_of(key), value)])
            ]
        return named

    def _publish_drops(self) -> None:
        drops: dict[Epoch, list[Drop]] = {}
        for drop in self._head.drops:
            drops.setdefault(drop.at, []).append(drop)
        for at, dropped in drops.items():
            inline = sorted(keys.inline(drop.data) for drop in dropped if drop.inline)
            self._head.versions.remove_many(Table.INLINE, inline, at)
            chunks: list[bytes] = []
            for drop in dropped:
                if drop.hi == 1:  # most files have one chunk, and need no search
                    chunks.append(keys.chunk(drop.data, 0))
                elif drop.hi:
                    try:
                        stored = self.stored(drop.data, 0)
                    except CorruptionError as error:  # of what an origin removes: which chunks it still has is not told
                        self._head.report(f"{error}; what is inherited of contents is removed later")
                        stored = None
                    if stored is None:
                        self.add_reclaim(drop.data, 0, CHUNK_INDEX_MAX, at)
                    else:
                        chunks += [keys.chunk(drop.data, index) for index in stored]
            self.remove_chunks(sorted(chunks), at)
