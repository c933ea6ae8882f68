"""The lifetimes of extents, as versions name them: each by the newest version of one key, or dead and seen.

With `payload` what a view sees is also read and compared with its sums.
"""

from __future__ import annotations

from tzfs.engine import slices as slicing
from tzfs.engine.check.problems import Findings, Rule
from tzfs.engine.check.tables import Facts
from tzfs.engine.check.versions import Version, Versions
from tzfs.engine.foreign import tagged
from tzfs.engine.reads import ReadPlan
from tzfs.engine.settling import extent_costs
from tzfs.errors import TzfsError
from tzfs.format import keys
from tzfs.format.keys import LIVE, Table
from tzfs.format.slices import Slice
from tzfs.store.interface import PayloadReader


class Lifetimes:
    """`live` has (extent, birth) -> (charge, saved), once all tables that name extents have been walked."""

    def __init__(self, versions: Versions, facts: Facts, findings: Findings, payload: PayloadReader | None) -> None:
        self._versions, self._facts, self._findings = versions, facts, findings
        self._payload = payload
        self.live: dict[tuple[int, int], tuple[int, int]] = {}
        self._unnamed: set[tuple[int, int]] | None = None  # dead ones that nothing seen has named yet
        self._read: set[tuple[int, int, int]] = set()  # (extent, offset, length) that the present key has had read
        self._prefix = (Table.CHUNK, b"")

    def version(self, table: Table, version: Version, slices: tuple[Slice, ...], *, sound: bool = True) -> None:
        """A version's slices, `sound` in form; versions of one key come one after the other, newest first."""
        deaths = self._versions.deaths
        if self._unnamed is None:
            self._unnamed = set(deaths)
        seen = version.first < version.last
        if version.level:
            if self._payload is not None and seen and sound:
                self._verify(self._payload, table, version, tagged(slices, version.level))
            return
        for lifetime, sizes in slicing.extents(slices).items():
            extent, birth = lifetime
            if birth > version.birth:
                self._report(table, version, f"extent {extent:#x} was born at {birth}, after the version that names it")
            if version.newest:
                if lifetime in self.live:
                    self._report(table, version, f"extent {extent:#x} born at {birth} is named by another key too")
                elif lifetime in deaths:
                    words = f"extent {extent:#x} born at {birth} died at {deaths[lifetime][0]}"
                    self._report(table, version, f"{words}, and is named by the newest version")
                else:
                    costs = self.live[lifetime] = extent_costs(sizes)
                    self._versions.count(LIVE, birth, *costs)
            elif seen:
                if lifetime in deaths and lifetime not in self.live and lifetime in self._unnamed:
                    self._dead(extent, birth, *extent_costs(sizes))
                self._unnamed.discard(lifetime)
                if lifetime not in self.live and (
                    lifetime not in deaths or deaths[lifetime][0] <= self._facts.views[version.last - 1]
                ):
                    words = f"extent {extent:#x} born at {birth} is gone, and the version seen"
                    self._report(table, version, f"{words} {self._facts.view_words[version.last - 1]} names it")
        if self._payload is not None and seen and sound:
            self._verify(self._payload, table, version, slices)

    def finish(self) -> None:
        """After all versions: dead lifetimes that no seen version names."""
        deaths = self._versions.deaths
        for extent, birth in sorted(deaths.keys() if self._unnamed is None else self._unnamed):
            death, _, _ = deaths[extent, birth]
            if any(d.older < birth <= d.snapshot < death <= d.newer for d in self._facts.destroys):
                continue
            key = keys.dead(death, birth, Table.EXTENT, keys.u64(extent))
            words = f"extent {extent:#x} born at {birth} is kept, and no version that a snapshot sees names it"
            self._findings.report(Rule.EXTENT, Table.DEAD, key, words)

    def _dead(self, extent: int, birth: int, charge: int, saved: int) -> None:
        """A dead lifetime that is seen: its row, or that of the extent if it has others, says what the extent costs."""
        facts, shared = self._facts, self._facts.shared.get(extent)
        death, told, spared = self._versions.deaths[extent, birth]
        if shared is not None:
            told, spared = shared.charge, shared.saved
        if told != charge or not facts.saved(spared, saved):
            words = (
                f"extent {extent:#x} costs {charge} and spares {saved} bytes, and {told} and {spared} are told of it"
            )
            if shared is not None:
                self._findings.report(Rule.SHARED, Table.SHARED, keys.shared(extent), words)
            else:
                key = keys.dead(death, birth, Table.EXTENT, keys.u64(extent))
                self._findings.report(Rule.DEADLIST, Table.DEAD, key, words)

    def _report(self, table: Table, version: Version, words: str) -> None:
        self._findings.report(Rule.EXTENT, table, version.key, words)

    def _verify(self, payload: PayloadReader, table: Table, version: Version, slices: tuple[Slice, ...]) -> None:
        if self._prefix != (table, version.prefix):
            self._prefix = (table, version.prefix)
            self._read.clear()
        for s in slices:
            part = (s.extent, s.extent_offset, s.length)
            if part in self._read and not s.embedded:
                continue
            self._read.add(part)
            plan = ReadPlan(payload, s.length)
            plan.add_slices(-s.offset, (s,), s.offset, s.offset + s.length)
            try:
                plan.execute()
            except TzfsError as error:
                self._findings.report(Rule.PAYLOAD, table, version.key, str(error))
            self._findings.payload_bytes += s.length
