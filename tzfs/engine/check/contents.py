"""Contents: inline rows and chunks, by data id, against the inode that each data id hangs on."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator

from tzfs.engine.check.extents import Lifetimes
from tzfs.engine.check.forms import slices_form
from tzfs.engine.check.problems import Findings, Rule
from tzfs.engine.check.sight import Sight, Span, within
from tzfs.engine.check.tables import Facts
from tzfs.engine.check.versions import Version, Versions
from tzfs.errors import TzfsError
from tzfs.format import keys
from tzfs.format.keys import Table
from tzfs.format.records import FLAG_INLINE, Inode
from tzfs.format.slices import CODEC_RAW, Slice, unpack_slices
from tzfs.format.superblock import CODECS
from tzfs.limits import CHUNK_SHIFT_MAX, INLINE_BYTES_MAX


class Contents:
    """The pass over contents.  `owners` are the (data id, inode) pairs there are; it sorts them."""

    def __init__(
        self,
        versions: Versions,
        lifetimes: Lifetimes,
        sight: Sight,
        facts: Facts,
        findings: Findings,
        owners: list[tuple[int, int]],
    ) -> None:
        self._versions, self._lifetimes, self._sight = versions, lifetimes, sight
        self._facts, self._findings = facts, findings
        self._owners = owners
        self._codecs = facts.superblock is None or facts.superblock.has(CODECS)

    def run(self) -> Iterator[None]:
        owners, report = self._owners, self._findings.report
        owners.sort()
        for (owned_id, ino), (next_id, next_ino) in itertools.pairwise(owners):
            if owned_id == next_id:
                words = f"inodes {ino} and {next_ino} both have data id {owned_id}"
                report(Rule.OWNER, Table.INODE, keys.inode(next_ino), words)
        for table in (Table.INLINE, Table.CHUNK):
            at, data = 0, -1
            spans: tuple[Span, ...] = ()
            for version in self._versions.walk(table):
                found = int.from_bytes(version.key[:8], "big")
                if found != data:
                    data = found
                    at = bisect_left(owners, (data, 0), at)
                    owned = at < len(owners) and owners[at][0] == data
                    spans = self._spans(owners[at][1], data) if owned else ()
                if table is Table.INLINE:
                    self._inline(version, data, spans)
                else:
                    self._chunk(version, data, spans)
                yield

    def _spans(self, ino: int, data: int) -> tuple[Span, ...]:
        """How the views see the inode while it has the data id, or may have."""
        return tuple(span for span in self._sight.inode(ino) if span.inode is None or span.inode.data == data)

    def _inline(self, version: Version, data: int, spans: tuple[Span, ...]) -> None:
        body, report = version.body, self._findings.report
        if body is None:
            return
        if len(body) > INLINE_BYTES_MAX:
            report(Rule.CONTENTS, Table.INLINE, version.key, f"{len(body)} bytes are not stored inline")
        for inode, where in self._seen_by(Table.INLINE, version, version.last, data, spans):
            if not inode.flags & FLAG_INLINE:
                words = f"inode {inode.ino} has its contents in chunks {where}"
                report(Rule.CONTENTS, Table.INLINE, version.key, words)
            elif len(body) > inode.size:
                words = f"{len(body)} bytes, and inode {inode.ino} has {inode.size} {where}"
                report(Rule.CONTENTS, Table.INLINE, version.key, words)

    def _chunk(self, version: Version, data: int, spans: tuple[Span, ...]) -> None:
        facts, report, key = self._facts, self._findings.report, version.key
        slices: tuple[Slice, ...] = ()
        wrong = None
        if version.body is not None:
            try:
                slices = unpack_slices(Table.CHUNK, key, version.body)
            except TzfsError as error:
                report(Rule.RECORD, Table.CHUNK, key, str(error))
                return
            wrong = slices_form(slices, 1 << CHUNK_SHIFT_MAX)
            if wrong:
                report(Rule.SLICES, Table.CHUNK, key, wrong)
            if not version.level and any(s.codec != CODEC_RAW for s in slices) and not self._codecs:
                report(Rule.SUPERBLOCK, Table.CHUNK, key, "the superblock does not say that something is compressed")
        index, last = keys.chunk_index(key), version.last
        for r in facts.reclaims.get(data, ()):
            if r.lo <= index < r.hi:
                last = min(last, bisect_left(facts.views, r.at))
                if version.birth > r.at:
                    report(Rule.RECLAIM, Table.CHUNK, key, f"born at {version.birth}, in a range gone since {r.at}")
        if not version.damaged:
            self._lifetimes.version(
                Table.CHUNK, version._replace(last=max(version.first, last)), slices, sound=not wrong
            )
        if version.body is None:
            return
        end = slices[-1].offset + slices[-1].length if slices else 0
        for inode, where in self._seen_by(Table.CHUNK, version, last, data, spans):
            begin = index << inode.chunk_shift
            if inode.flags & FLAG_INLINE:
                report(Rule.CONTENTS, Table.CHUNK, key, f"inode {inode.ino} has its contents inline {where}")
            elif begin + end > inode.size:
                words = f"its slices end at {begin + end}, and inode {inode.ino} has {inode.size} bytes {where}"
                report(Rule.CONTENTS, Table.CHUNK, key, words)
            elif end > 1 << inode.chunk_shift:
                report(Rule.SLICES, Table.CHUNK, key, f"its slices end at {end}, beyond the chunk {where}")

    def _seen_by(
        self, table: Table, version: Version, last: int, data: int, spans: tuple[Span, ...]
    ) -> Iterator[tuple[Inode, str]]:
        """The inode as the views see it that see the version, where they do; views that see none are reported."""
        for piece in within(spans, version.first, last) if version.first < last else ():
            where = self._sight.words(piece[0])
            if not isinstance(piece, Span):
                if version.level and data in self._facts.nameless_data:
                    continue
                self._findings.report(Rule.OWNER, table, version.key, f"no inode has data id {data} {where}")
            elif piece.inode is not None:
                yield piece.inode, where
