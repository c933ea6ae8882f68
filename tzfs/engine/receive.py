"""A snapshot comes in as the frames of a stream, staged above the head, and becomes the head and a snapshot of it in
one commit.

    begin      what was answered is committed, orphans and removed chunks go; the head is what the stream starts from
    feed       each frame is staged: a key once, with payload of its own
    finish     what is staged is looked at as a whole (`verify`), flipped, and named, in one commit
    cancel     nothing has happened;   suspend: what was staged stays, to go on with later

Inode numbers are the sender's; whoever has the snapshot that a stream starts from has the numbers that it means.  Data
ids are this filesystem's own.  A stream is not believed: what a frame says is looked at before it is staged, and what
they say together before anybody sees it.

A suspended receive is a row of `sys`: how far it came, whatever lies beyond it was staged too or not.  Who goes on
begins again with that inode, and what is staged of it already stays.
"""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import Final

from tzfs import failpoints, limits
from tzfs.engine import reads, slices
from tzfs.engine.attributes import INLINE_VALUE_BYTES_MAX
from tzfs.engine.chunks import CHUNK_INDEX_MAX
from tzfs.engine.copying import stored_as, stored_raw
from tzfs.engine.head import Head
from tzfs.engine.namespace import Namespace
from tzfs.engine.partial import PARTIAL, Partial, pack_partial, read_partial
from tzfs.engine.reclaim import Reclaimer
from tzfs.engine.settling import extent_charge
from tzfs.engine.snapshots import KINDS, Snapshots
from tzfs.engine.staging import Staging
from tzfs.engine.txg import TxgCommitter
from tzfs.engine.verify import Verifier
from tzfs.engine.versions import Version
from tzfs.errors import BadStream, InternalError
from tzfs.format import keys, records, stream
from tzfs.format.keys import ROOT, DataId, Ino, Table
from tzfs.format.records import FLAG_INLINE, FLAG_XATTR, Inode, Snapshot
from tzfs.format.slices import Slice, pack_slices, pack_xattr
from tzfs.format.stream import Frame, How, Kind

_KINDS: Final = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)
_LISTED: Final = 128

failpoints.declare("receive.suspend", "how far a receive came is written, not yet committed")


class Receiver:
    """Receives snapshots into a head that nobody else changes, one after the other."""

    def __init__(
        self,
        head: Head,
        staging: Staging,
        committer: TxgCommitter,
        snapshots: Snapshots,
        namespace: Namespace,
        reclaimer: Reclaimer,
    ) -> None:
        self._head, self._staging, self._committer = head, staging, committer
        self._snapshots, self._namespace, self._reclaimer = snapshots, namespace, reclaimer
        self.partial = read_partial(head.txn)
        self._open = False
        self._rows = self._written = 0
        self._fresh: set[tuple[Table, bytes]] = set()
        self._inode: Inode | None = None  # the current one
        self._how, self._chunk, self._last_name = How.ANEW, 0, b""
        self._again = 0  # the inode that a resumed stream begins with
        self._at: Partial | None = None  # where a cut may go on

    # -- begin and end -----------------------------------------------------------------------------------------------

    def begin(self, name: str, at: Partial, *, resumable: bool) -> None:
        """From here on the head does not change but by the stream; `at` is its begin, or where it goes on.

        `Exists` where a snapshot has the name, `NoSpace`, `QuotaExceeded`: nothing has begun then.
        """
        head, partial = self._head, self.partial
        head.check()
        self._snapshots.check_new(name)
        self._name, self._again = name, 0
        self._inode = None
        self._at = replace(at, ino=0, chunk=0, anew=False) if resumable else None
        begins = head.staging is None
        if begins:
            while head.orphans or head.reclaims or head.dirty:
                for ino in list(head.orphans)[: limits.RECLAIM_BATCH_CHUNKS]:
                    self._namespace.forget(ino)
                self._committer.commit()
                if head.reclaims:
                    self._reclaimer.step()
            self._staging.begin()
        elif partial is None or partial.to != at.to:
            raise InternalError("another receive is under way")
        else:
            self._again = partial.ino
            self._at = partial
        try:
            self._open_batch()
        except BaseException:
            if begins and head.failed is None:
                self._withdraw()
            raise

    def feed(self, frame: Frame) -> None:
        """Stages what a frame says.  `BadStream`, `NoSpace`, `QuotaExceeded`; then `cancel`, or `suspend`."""
        kind, body = frame
        if kind is Kind.INODE:
            self._begin_inode(*stream.unpack_inode_frame(body))
        elif kind is Kind.GONE:
            self._gone(stream.unpack_number(body))
        elif self._inode is None:
            raise BadStream(f"the stream has {kind.name} before any inode")
        elif kind is Kind.ENTRIES:
            self._entries(self._inode, body)
        elif kind is Kind.LINKS:
            self._links(self._inode, body)
        elif kind is Kind.XATTR:
            self._xattr(self._inode, *stream.unpack_xattr(body))
        elif kind is Kind.INLINE:
            self._inline(self._inode, body)
        elif kind is Kind.DATA:
            self._data(self._inode, *stream.unpack_data(body))
        elif kind is Kind.HOLE:
            self._hole(self._inode, stream.unpack_number(body))
        else:
            raise BadStream(f"the stream has {kind.name} within a snapshot")

    def finish(self, record: Snapshot, next_ino: int) -> Snapshot:
        """All has come: it becomes the head, and a snapshot.  `BadStream` where it does not fit together.

        `next_ino`: inode numbers below it are the sender's, given or not.
        """
        self._close_batch()
        head, at = self._head, self._staging.epoch
        verifier = Verifier(head.txn, head.epoch, at)
        verifier.run()
        if verifier.kinds.inodes > 0:
            head.check_inos(verifier.kinds.inodes - 1)
        records.pack_snapshot(replace(record, extra={KINDS: [limits.INO_MAX] * 4}))  # too long ones are refused now
        made: list[Snapshot] = []

        def change() -> None:
            head.note("receive", snapshot=self._name, guid=record.guid.hex())
            verifier.kinds.apply(head)
            head.counters.next_ino = Ino(max(head.counters.next_ino, verifier.last_ino + 1, next_ino))

        def then() -> None:
            counters = head.counters
            kinds = [counters.files, counters.directories, counters.symlinks, counters.others]
            made.append(
                replace(
                    record,
                    epoch=at,
                    txg=counters.txg,
                    inodes=counters.inodes,
                    bytes=counters.bytes,
                    extra={KINDS: kinds},
                )
            )
            self._snapshots.put(self._name, made[0])
            self._put_partial(self._after())

        self._staging.flip(change, then)
        self._snapshots.put_committed(self._name, made[0])
        self.partial = self._after()
        return made[0]

    def _after(self) -> Partial | None:
        """What is left to be received once the snapshot is there."""
        at = self._at
        return None if at is None or at.to == at.last else Partial(at.source, at.to, "", at.last, 0, 0, anew=False)

    def cancel(self) -> None:
        """Nothing has happened, of a suspended receive either."""
        self._close_batch()
        if self.partial is not None:
            self._head.begin_change()
            self._put_partial(None)
            self._head.end_change()
            self.partial = None
            self._committer.commit()
        self._withdraw()

    def _withdraw(self) -> None:
        while self._head.staging is not None:
            self._staging.withdraw()

    def suspend(self) -> Partial | None:
        """What was staged is durable, and stays; where it goes on.  None where nothing can be kept."""
        self._close_batch()
        if self._at is None and self.partial is None:
            self.cancel()
            return None
        self._committer.commit()  # where nothing has begun, what was kept before stays as it was
        return self.partial

    def _put_partial(self, partial: Partial | None) -> None:
        txn = self._head.txn
        if partial is None:
            txn.delete(Table.SYS, PARTIAL)
            return
        txn.put(Table.SYS, PARTIAL, records.seal(Table.SYS, PARTIAL, pack_partial(partial)))
        failpoints.hit("receive.suspend")

    # -- batches -----------------------------------------------------------------------------------------------------

    def _open_batch(self) -> None:
        head = self._head
        if self._written > head.settings.dirty_bytes_max:
            self._committer.commit()
            self._written = 0
        if head.room is not None:
            head.room(limits.PAGE_BYTES)
        self._staging.open_batch()
        self._open = True

    def _close_batch(self) -> None:
        """What has been staged is in the transaction, with how far it is."""
        if not self._open:
            return
        self._open = False
        if self._at is not None:
            if self._inode is not None and self._rows:
                anew = self._how is How.ANEW
                self._at = replace(self._at, ino=self._inode.ino, chunk=self._chunk, anew=anew)
            self._put_partial(self._at)
            self.partial = self._at
        self._staging.close_batch(6 * self._rows)
        self._rows = 0
        self._fresh.clear()

    def _stage(self, table: Table, prefix: bytes, body: bytes | None) -> None:
        """Stages a key."""
        old = self._once(table, prefix)
        if body is None and (old is None or records.is_tombstone(old[1])):
            return
        self._staging.stage(table, prefix, body, old)
        self._fresh.add((table, prefix))
        self._rows += 1
        if self._rows >= limits.STAGING_BATCH_KEYS:
            self._close_batch()
            self._open_batch()

    def _once(self, table: Table, prefix: bytes) -> Version | None:
        """The newest version of a key of which the stream has said nothing yet."""
        old = self._head.txn.seek(table, prefix, self._staging.epoch)
        if (table, prefix) in self._fresh or (old is not None and old[0] == self._staging.epoch):
            raise BadStream(f"the stream says twice what becomes of {table.name.lower()} {prefix.hex()}")
        return old

    def _staged(self, table: Table, prefix: bytes) -> bool:
        """Whether a resumed stream says again what is staged already."""
        if self._inode is None or self._inode.ino != self._again:
            return False
        old = self._head.txn.seek(table, prefix, self._staging.epoch)
        return old is not None and old[0] == self._staging.epoch

    # -- inodes ------------------------------------------------------------------------------------------------------

    def _before(self, ino: int) -> Inode | None:
        """The inode as the head has it."""
        return reads.inode_at(self._head.txn, ino, self._head.epoch)

    def _begin_inode(self, inode: Inode, how: How) -> None:
        _check_inode(inode)
        inode.data = DataId(0)
        old, resumed = self._before(inode.ino), inode.ino == self._again
        if self._inode is not None and self._inode.ino >= inode.ino:
            raise BadStream(f"inode {inode.ino} of the stream comes after {self._inode.ino}")
        if old is not None and stat.S_IFMT(old.mode) != stat.S_IFMT(inode.mode):
            raise BadStream(f"inode {inode.ino} of the stream is of another type than the one that is here")
        self._how, self._last_name = how, b""
        self._chunk = 0
        if resumed and self._at is not None:
            self._chunk = self._at.chunk
        self._inode = inode
        if self._staged(Table.INODE, keys.inode(inode.ino)):
            staged = reads.inode_at(self._head.txn, inode.ino, self._staging.epoch)
            if (
                staged is None
                or replace(staged, data=DataId(0)) != inode
                or (how is How.KEPT) != self._kept(old, staged)
            ):
                raise BadStream(f"inode {inode.ino} of the stream is not what it was before the stream was cut")
            inode.data = staged.data
            self._drop_old(old, inode)
            return
        if stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode):
            if how is How.KEPT:
                if old is None or (old.flags ^ inode.flags) & FLAG_INLINE or old.chunk_shift != inode.chunk_shift:
                    raise BadStream(f"inode {inode.ino} of the stream keeps contents that are not here")
                inode.data = old.data
            else:
                inode.data = self._head.new_data()
        self._stage(Table.INODE, keys.inode(inode.ino), records.pack_inode(inode))
        self._drop_old(old, inode)

    @staticmethod
    def _kept(old: Inode | None, new: Inode) -> bool:
        return old is not None and bool(new.data) and old.data == new.data

    def _drop_old(self, old: Inode | None, inode: Inode) -> None:
        """What the inode had of contents and does not keep."""
        if old is None or not old.data:
            return
        if old.data != inode.data:
            self._drop_contents(old, 0)
        elif inode.size < old.size and not inode.flags & FLAG_INLINE:
            self._drop_contents(old, (inode.size + (1 << inode.chunk_shift) - 1) >> inode.chunk_shift)

    def _drop_contents(self, old: Inode, lo: int) -> None:
        if old.flags & FLAG_INLINE:
            self._drop(Table.INLINE, keys.inline(old.data))
            return
        while found := reads.chunk_indexes(self._head.txn, old.data, lo, CHUNK_INDEX_MAX, _LISTED):
            for index in found:
                self._drop(Table.CHUNK, keys.chunk(old.data, index))
            lo = found[-1] + 1

    def _drop(self, table: Table, prefix: bytes) -> None:
        if not self._staged(table, prefix):
            self._stage(table, prefix, None)

    def _gone(self, ino: int) -> None:
        if self._inode is not None and self._inode.ino >= ino:
            raise BadStream(f"inode {ino} of the stream comes after {self._inode.ino}")
        old = self._before(ino)
        if ino == ROOT:
            raise BadStream("the stream removes the root")
        if old is None:
            return
        self._how, self._chunk = How.ANEW, 0
        self._inode = replace(old, mode=0)  # nothing more can be said of it
        self._drop(Table.INODE, keys.inode(ino))
        for table in (Table.XATTR, Table.LINK, Table.DIRENT):
            after = b""
            prefix, named = keys.u64(ino), len(keys.u64(ino))
            while found := reads.named_rows(self._head.txn, table, prefix, after, self._head.epoch, _LISTED):
                for key, _ in found:
                    self._drop(table, key[:-8])
                after = found[-1][0][named:-9]
        if old.data:
            self._drop_contents(old, 0)

    # -- what belongs to an inode --------------------------------------------------------------------------------------

    def _entries(self, inode: Inode, body: bytes) -> None:
        if not stat.S_ISDIR(inode.mode):
            raise BadStream(f"inode {inode.ino} of the stream has entries and is no directory")
        for name, ino, kind in stream.unpack_entries(body):
            if name <= self._last_name:
                raise BadStream(f"entries of directory {inode.ino} of the stream do not ascend")
            self._last_name = name
            _check_name(name)
            prefix = keys.dirent(inode.ino, name)
            if not self._staged(Table.DIRENT, prefix):
                self._stage(Table.DIRENT, prefix, records.pack_dirent(ino, kind) if ino else None)

    def _links(self, inode: Inode, body: bytes) -> None:
        if not inode.mode or stat.S_ISDIR(inode.mode):
            raise BadStream(f"inode {inode.ino} of the stream cannot have several names")
        for directory, name, there in stream.unpack_links(body):
            _check_name(name)
            prefix = keys.link(inode.ino, directory, name)
            if not self._staged(Table.LINK, prefix):
                self._stage(Table.LINK, prefix, b"" if there else None)

    def _xattr(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        if not inode.mode or not inode.flags & FLAG_XATTR:
            raise BadStream(f"inode {inode.ino} of the stream has attributes and does not say so")
        if not name or b"\0" in name or len(value or b"") > limits.XATTR_VALUE_BYTES_MAX:
            raise BadStream(f"inode {inode.ino} of the stream has an attribute that cannot be")
        prefix = keys.xattr(inode.ino, name)
        if self._staged(Table.XATTR, prefix):
            return
        if value is not None and len(value) > INLINE_VALUE_BYTES_MAX:
            self._once(Table.XATTR, prefix)
            self._stage(Table.XATTR, prefix, pack_xattr(self._stored(value)))
        else:
            self._stage(Table.XATTR, prefix, None if value is None else pack_xattr(value))

    def _inline(self, inode: Inode, body: bytes) -> None:
        inline = inode.data and inode.flags & FLAG_INLINE and self._how is How.ANEW
        if not inline or not body or len(body) > min(limits.INLINE_BYTES_MAX, inode.size):
            raise BadStream(f"inode {inode.ino} of the stream has contents that it cannot have")
        if not self._staged(Table.INLINE, keys.inline(inode.data)):
            self._stage(Table.INLINE, keys.inline(inode.data), body)

    def _data(self, inode: Inode, index: int, payload: bytes) -> None:
        self._check_chunk(inode, index)
        if len(payload) > min(1 << inode.chunk_shift, inode.size - (index << inode.chunk_shift)):
            raise BadStream(f"chunk {index} of inode {inode.ino} of the stream is longer than there is room for")
        prefix = keys.chunk(inode.data, index)
        if not self._staged(Table.CHUNK, prefix):
            self._once(Table.CHUNK, prefix)
            # The sender may have had a gap there, and cut the file short within it without touching the chunk.
            kept = payload.rstrip(b"\0") or payload[:1]
            self._stage(Table.CHUNK, prefix, pack_slices(self._stored(kept, compressed=True)))
        self._chunk = index + 1

    def _hole(self, inode: Inode, index: int) -> None:
        self._check_chunk(inode, index)
        if self._how is not How.KEPT:
            raise BadStream(f"inode {inode.ino} of the stream has a hole where nothing was")
        self._drop(Table.CHUNK, keys.chunk(inode.data, index))
        self._chunk = index + 1

    def _check_chunk(self, inode: Inode, index: int) -> None:
        if not inode.mode or not inode.data or inode.flags & FLAG_INLINE:
            raise BadStream(f"inode {inode.ino} of the stream has chunks and cannot have any")
        if index << inode.chunk_shift >= inode.size or index < self._chunk:
            raise BadStream(f"chunk {index} of inode {inode.ino} of the stream is out of order or beyond its end")

    def _stored(self, payload: bytes, *, compressed: bool = False) -> tuple[Slice, ...]:
        """The payload in an extent of its own, born with what is staged next, which must not fail; or for its record.

        `compressed`: by the filesystem's own property, as what is written, whatever the sender's was.
        """
        head, at, size = self._head, self._staging.epoch, len(payload)
        if head.room is not None:  # near a quota it commits, to look exactly: between two batches
            self._close_batch()
            head.room(size + limits.PAGE_BYTES)
            self._staging.open_batch()
            self._open = True
        self._committer.reserve(size + limits.PAGE_BYTES)
        made = stored_as(head, payload, at, alone=True) if compressed else stored_raw(head, payload, at)
        stored = sum(extent_charge(s.stored_bytes) for s in made if not s.embedded)
        head.flushed_bytes += stored
        self._written += stored
        head.versions.extents_born(slices.extents(made).items())
        return made


def _check_inode(inode: Inode) -> None:
    """What an inode says of itself can be."""
    kind = stat.S_IFMT(inode.mode)
    contents = kind in (stat.S_IFREG, stat.S_IFLNK)
    largest = limits.SYMLINK_TARGET_BYTES_MAX if kind == stat.S_IFLNK else limits.FILE_BYTES_MAX
    if (
        not 1 <= inode.ino <= limits.INO_MAX
        or kind not in _KINDS
        or inode.mode & ~0o177777
        or inode.flags & ~(FLAG_INLINE | FLAG_XATTR)
        or not limits.CHUNK_SHIFT_MIN <= inode.chunk_shift <= limits.CHUNK_SHIFT_MAX
        or inode.size > largest
        or (inode.flags & FLAG_INLINE and inode.size > limits.INLINE_BYTES_MAX)
        or (not contents and kind != stat.S_IFDIR and inode.size)
        or inode.nlink > limits.LINKS_MAX
        or (inode.ino == ROOT and (kind != stat.S_IFDIR or inode.name or inode.parent))
        or (not inode.name and inode.parent)
    ):
        raise BadStream(f"inode {inode.ino} of the stream says what cannot be")
    if inode.name:
        _check_name(inode.name)


def _check_name(name: bytes) -> None:
    if name in (b"", b".", b"..") or len(name) > limits.NAME_BYTES_MAX or b"/" in name or b"\0" in name:
        raise BadStream(f"the stream has {name!r} for a name")
