"""Extents on the disk: apart from each other, within what is committed of their segment; and nothing left behind.

Last, because all extents must be known.  What a segment has before its end is its header, the extents that have a
lifetime, and what waits in `punch`; all else must have been given back.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

from tzfs.engine.check.extents import Lifetimes
from tzfs.engine.check.problems import Findings, Rule
from tzfs.engine.check.tables import Facts
from tzfs.engine.check.versions import Versions
from tzfs.engine.settling import extent_charge
from tzfs.errors import CorruptionError, ForeignStore, StoreError
from tzfs.format import keys
from tzfs.format.keys import LIVE, Table
from tzfs.format.records import Shared
from tzfs.limits import PAGE_BYTES
from tzfs.store.interface import PayloadReader, SegmentGone

Ranges = list[tuple[int, int]]  # bytes [begin, end) of one segment


class Space:
    """The pass over extents and segments.  Without `payload` the files themselves are not looked at."""

    def __init__(
        self, versions: Versions, lifetimes: Lifetimes, facts: Facts, findings: Findings, payload: PayloadReader | None
    ) -> None:
        self._versions, self._lifetimes = versions, lifetimes
        self._facts, self._findings, self._payload = facts, findings, payload

    def run(self) -> Iterator[None]:
        extents = self._extents()
        yield
        punches = sorted((extent, extent_charge(stored), key) for extent, stored, key in self._facts.punches)
        taken: dict[int, Ranges] = defaultdict(list)
        for extent, charge in sorted(extents.items()):
            taken[extent >> 32].append(self._place(extent, charge))
            yield
        for number, ranges in taken.items():
            for (_, end), (begin, _) in itertools.pairwise(ranges):
                if begin < end:
                    extent = keys.extent_id(number, begin // PAGE_BYTES)
                    words = f"extent {extent:#x} begins within the one before it"
                    self._findings.report(Rule.PLACE, Table.EXTENT, keys.u64(extent), words)
                yield
        yield from self._punches(taken, punches)
        yield from self._segments(extents, taken, punches)

    def _extents(self) -> dict[int, int]:
        """Every extent that has a lifetime, and what it is charged; `shared` is held against that on the way."""
        lives: dict[int, dict[int, int]] = defaultdict(dict)
        charges: dict[int, int] = {}
        saved: dict[int, int] = {}  # of those that are live and spare something
        dead_charges: dict[int, int] = defaultdict(int)
        for (extent, birth), (charge, spared) in self._lifetimes.live.items():
            lives[extent][birth] = LIVE
            charges[extent] = charge
            if spared:
                saved[extent] = spared
        for (extent, birth), (death, charge, spared) in self._versions.deaths.items():
            lives[extent][birth] = death
            dead_charges[extent] += charge + spared
            charges[extent] = max(charges.get(extent, 0), charge)
        shared = self._facts.shared
        for extent in sorted(shared.keys() | {e for e, found in lives.items() if len(found) > 1}):
            found, told = lives.get(extent, {}), shared.get(extent)
            charge = charges.get(extent, 0) or (told.charge if told else 0)
            spared = saved.get(extent, 0)
            if told and (LIVE not in found.values() or self._facts.saved(told.saved, spared)):
                spared = told.saved
            expected = Shared(charge, {keys.Epoch(b): keys.Epoch(d) for b, d in found.items()}, spared)
            if len(found) < 2 or told != expected or dead_charges[extent]:
                words = f"extent {extent:#x} has lifetimes {found}, and `shared` says {told}"
                self._findings.report(Rule.SHARED, Table.SHARED, keys.shared(extent), words)
            if found:
                charges[extent] = charge
        return charges

    def _place(self, extent: int, charge: int) -> tuple[int, int]:
        begin = keys.extent_offset(extent)
        use = self._facts.segments.get(extent >> 32)
        if use is None:
            words = f"extent {extent:#x} is in segment {extent >> 32}, of which there is no row"
            self._findings.report(Rule.PLACE, Table.EXTENT, keys.u64(extent), words)
        elif begin < PAGE_BYTES or begin + charge > use.end:
            words = f"extent {extent:#x} of {charge} bytes is outside of what is committed, which ends at {use.end}"
            self._findings.report(Rule.PLACE, Table.EXTENT, keys.u64(extent), words)
        return begin, begin + charge

    def _punches(self, taken: dict[int, Ranges], punches: list[tuple[int, int, bytes]]) -> Iterator[None]:
        report = self._findings.report
        previous = (0, 0)  # segment, end
        for extent, size, key in punches:
            yield
            number, begin = extent >> 32, keys.extent_offset(extent)
            use = self._facts.segments.get(number)
            if use is None or begin < PAGE_BYTES or begin + size > use.end or not size:
                report(Rule.PUNCH, Table.PUNCH, key, f"extent {extent:#x} is outside of what is committed")
            if previous[0] == number and begin < previous[1]:
                report(Rule.PUNCH, Table.PUNCH, key, f"extent {extent:#x} waits twice")
            previous = (number, begin + size)
        waiting: dict[int, Ranges] = defaultdict(list)
        for extent, size, _ in punches:
            begin = keys.extent_offset(extent)
            waiting[extent >> 32].append((begin, begin + size))
        for number, ranges in waiting.items():
            for begin, _ in _common(ranges, taken.get(number, [])):
                extent = keys.extent_id(number, begin // PAGE_BYTES)
                report(Rule.PUNCH, Table.PUNCH, keys.u64(extent), f"page {extent:#x} waits, and has a lifetime")
                yield

    def _segments(
        self, extents: dict[int, int], taken: dict[int, Ranges], punches: list[tuple[int, int, bytes]]
    ) -> Iterator[None]:
        facts, report = self._facts, self._findings.report
        uses: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        for extent, charge in extents.items():
            uses[extent >> 32][0] += 1
            uses[extent >> 32][1] += charge
        for extent, size, _ in punches:
            begin = keys.extent_offset(extent)
            taken[extent >> 32].append((begin, begin + size))
        for number, use in sorted(facts.segments.items()):
            yield
            key, counted = keys.segment(number), tuple(uses.get(number, (0, 0)))
            if counted != (use.extents, use.bytes):
                report(Rule.SEGMENT, Table.SEGMENT, key, f"says {(use.extents, use.bytes)}, counted {counted}")
            if use.end % PAGE_BYTES:
                report(Rule.SEGMENT, Table.SEGMENT, key, f"its end {use.end} is not that of a page")
            if self._payload is not None:
                self._file(self._payload, number, use.end, sorted(taken.get(number, [])), needed=counted != (0, 0))

    def _file(self, payload: PayloadReader, number: int, end: int, taken: Ranges, *, needed: bool) -> None:
        key, report = keys.segment(number), self._findings.report
        try:
            held = payload.data_ranges(number)
        except SegmentGone:
            if needed:
                report(Rule.SEGMENT, Table.SEGMENT, key, f"segment {number} has extents, and its file is gone")
            return
        except (CorruptionError, ForeignStore, StoreError) as error:
            report(Rule.SEGMENT, Table.SEGMENT, key, str(error))
            return
        free: Ranges = []
        at = PAGE_BYTES
        for begin, until in taken:
            if begin > at:
                free.append((at, begin))
            at = max(at, until)
        if at < end:
            free.append((at, end))
        for begin, until in _common(held, free) if held is not None else ():
            words = f"bytes {begin} to {until} of segment {number} are kept, and nothing names them"
            report(Rule.LEAK, Table.SEGMENT, key, words)


def _common(one: Ranges, other: Ranges) -> Iterator[tuple[int, int]]:
    """What both have; each ascending."""
    i = j = 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if begin < end:
            yield begin, end
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
