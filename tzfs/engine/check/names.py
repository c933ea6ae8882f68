"""Inodes and their names: read by inode number, the four tables that begin with it side by side.

Every entry is followed to its inode, at every view that sees it; the inode must name it back.  The other way round is
counted: where each entry is one that its inode names, there are as many names as entries only if no inode names an
entry that is not there.  Where the numbers differ, every inode's names are looked up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from tzfs.engine.check.extents import Lifetimes
from tzfs.engine.check.forms import inode_form, slices_form
from tzfs.engine.check.problems import Findings, Rule
from tzfs.engine.check.sight import Sight, Span, Tally, pieces, within
from tzfs.engine.check.tables import Facts
from tzfs.engine.check.versions import Version, Versions
from tzfs.engine.head import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from tzfs.errors import TzfsError
from tzfs.format import keys, records
from tzfs.format.keys import ROOT, Ino, Table
from tzfs.format.records import FLAG_XATTR, Inode
from tzfs.format.slices import unpack_xattr
from tzfs.limits import XATTR_VALUE_BYTES_MAX

_DIRECTORY: Final = S_IFDIR >> 12
_KINDS: Final = {S_IFREG: "files", S_IFDIR: "directories", S_IFLNK: "symlinks"}


class _Side:
    """One of the tables: its versions, taken by the number that their keys begin with."""

    def __init__(self, versions: Iterator[Version]) -> None:
        self._versions = versions
        self._next = next(versions, None)

    @property
    def number(self) -> int | None:
        return None if self._next is None else int.from_bytes(self._next.key[:8], "big")

    def of(self, number: int) -> Iterator[Version]:
        while self._next is not None and self.number == number:
            version, self._next = self._next, next(self._versions, None)
            yield version


class Names:
    """The pass over inodes and names.  `owners` are (data id, inode), for the pass over contents."""

    def __init__(
        self, versions: Versions, lifetimes: Lifetimes, sight: Sight, facts: Facts, findings: Findings
    ) -> None:
        self._versions, self._lifetimes, self._sight = versions, lifetimes, sight
        self._facts, self._findings = facts, findings
        self.owners: list[tuple[int, int]] = []
        self._orphans = dict(facts.orphans)  # those whose inode has not been met
        self._counts: Counter[str] = Counter()
        self._entries, self._names = Tally(), Tally()  # over the whole filesystem
        self._astray = False  # an entry that its inode does not name has been found
        self._parents: dict[int, list[tuple[int, int, int]]] = {}  # directory -> (first view, last, parent)

    def run(self) -> Iterator[None]:
        walk = self._versions.walk
        inodes, entries, links, values = (
            _Side(walk(table)) for table in (Table.INODE, Table.DIRENT, Table.LINK, Table.XATTR)
        )
        while numbers := [side.number for side in (inodes, entries, links, values) if side.number is not None]:
            ino = min(numbers)
            spans = self._inode(ino, inodes)
            inside, subdirectories, named = Tally(), Tally(), Tally()
            unsure = False
            for version in entries.of(ino):
                unsure |= self._entry(ino, version, inside, subdirectories)
                yield
            for version in links.of(ino):
                if version.damaged or version.body is not None:
                    named.add(version.first, version.last)
            for version in values.of(ino):
                self._attribute(ino, version, spans)
                yield
            self._tell(ino, spans, inside, subdirectories, named, unsure=unsure)
            yield
        for ino, at in sorted(self._orphans.items()):
            words = f"inode {ino} is not there without a name since epoch {at}"
            self._findings.report(Rule.ORPHAN, Table.ORPHAN, keys.orphan(ino), words)
        yield from self._reverse()
        yield from self._cycles()
        self._compare_counters()

    # -- one inode -----------------------------------------------------------------------------------------------------

    def _inode(self, ino: int, side: _Side) -> tuple[Span, ...]:
        """The inode's versions, each by itself; how the views see it."""
        report, counters = self._findings.report, self._facts.counters
        spans, owned = [], set()
        for version in side.of(ino):
            inode = None
            if version.body is not None:
                try:
                    inode = records.unpack_inode(Ino(ino), version.key, version.body)
                except TzfsError as error:
                    report(Rule.RECORD, Table.INODE, version.key, str(error))
            elif not version.damaged:
                continue
            if version.first < version.last:
                spans.append(Span(version.first, version.last, inode))
            if inode is None:
                continue
            if wrong := inode_form(inode):
                report(Rule.INODE, Table.INODE, version.key, wrong)
            if inode.nlink == 0:
                if version.level:
                    continue  # without a name in the origin: nobody here can come to it, and its contents are not ours
                self._orphan(version, ino)
            elif version.first < version.last == len(self._facts.views):
                self._counts[_KINDS.get(inode.mode & S_IFMT, "others")] += 1
            if inode.data:
                owned.add(inode.data)
        if counters is not None:
            if ino >= counters.next_ino and spans:
                words = f"inode {ino} is not below next_ino {counters.next_ino}"
                report(Rule.ID, Table.INODE, keys.inode(ino), words)
            for data in owned:
                if data >= counters.next_data:
                    words = f"data id {data} is not below next_data {counters.next_data}"
                    report(Rule.ID, Table.INODE, keys.inode(ino), words)
        self.owners += [(data, ino) for data in owned]
        spans.reverse()
        return tuple(spans)

    def _orphan(self, version: Version, ino: int) -> None:
        if version.birth > self._facts.epoch:
            return  # staged: its row comes with the flip
        since = self._orphans.pop(ino, None) if version.newest else None
        if since != version.birth:
            words = f"inode {ino} has no name, and `orphan` says {since}, not {version.birth}"
            self._findings.report(Rule.ORPHAN, Table.INODE, version.key, words)

    def _attribute(self, ino: int, version: Version, spans: tuple[Span, ...]) -> None:
        report, key = self._findings.report, version.key
        value: object = b""
        if version.body is not None:
            try:
                value = unpack_xattr(key, version.body)
            except TzfsError as error:
                report(Rule.RECORD, Table.XATTR, key, str(error))
                return
        if isinstance(value, tuple):
            wrong = slices_form(value, XATTR_VALUE_BYTES_MAX)
            if wrong:
                report(Rule.SLICES, Table.XATTR, key, wrong)
            self._lifetimes.version(Table.XATTR, version, value, sound=not wrong)
        if version.body is None:
            return
        for piece in within(spans, version.first, version.last):
            if not isinstance(piece, Span):
                if version.level and ino in self._facts.nameless_inos:
                    continue
                report(Rule.ATTRIBUTE, Table.XATTR, key, f"there is no inode {ino} {self._sight.words(piece[0])}")
            elif piece.inode is not None and not piece.inode.flags & FLAG_XATTR:
                words = f"inode {ino} says {self._sight.words(piece.first)} that it has none"
                report(Rule.ATTRIBUTE, Table.XATTR, key, words)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _entry(self, directory: int, version: Version, inside: Tally, subdirectories: Tally) -> bool:
        """Follows an entry to its inode; True where the entry cannot be read."""
        first, last, key = version.first, version.last, version.key
        if version.body is None:
            if version.damaged:
                inside.add(first, last)
            return version.damaged
        try:
            ino, kind = records.unpack_dirent(key, version.body)
        except TzfsError as error:
            self._findings.report(Rule.RECORD, Table.DIRENT, key, str(error))
            inside.add(first, last)
            return True
        if first == last:
            return False
        inside.add(first, last)
        self._entries.add(first, last)
        if kind == _DIRECTORY:
            subdirectories.add(first, last)
            self._parents.setdefault(ino, []).append((first, last, directory))
        name = keys.dirent_name(key)
        for piece in within(self._sight.inode(ino), first, last):
            if not isinstance(piece, Span):
                words = f"there is no inode {ino} {self._sight.words(piece[0])}"
                self._findings.report(Rule.ENTRY, Table.DIRENT, key, words)
            elif piece.inode is not None:
                self._follow(key, kind, directory, name, piece, piece.inode)
        return False

    def _follow(self, key: bytes, kind: int, directory: int, name: bytes, piece: Span, inode: Inode) -> None:
        if inode.mode >> 12 != kind:
            words = f"inode {inode.ino} is of type {inode.mode >> 12}, not {kind}, {self._sight.words(piece.first)}"
            self._findings.report(Rule.ENTRY, Table.DIRENT, key, words)
        if inode.name:
            back = (inode.parent, inode.name) == (directory, name)
        else:
            back = self._sees(Table.LINK, keys.link(inode.ino, directory, name), piece)
        if not back:
            self._astray = True
            words = f"inode {inode.ino} does not name it {self._sight.words(piece.first)}"
            self._findings.report(Rule.NAME, Table.DIRENT, key, words)

    def _sees(self, table: Table, prefix: bytes, piece: Span, ino: int | None = None) -> bool:
        """Whether all views of the piece see a value there; of an entry: one that names `ino`."""
        at = piece.first
        for seen in self._sight.key(table, prefix):
            if seen.first <= at < seen.last:
                if ino is not None and not seen.damaged and int.from_bytes(seen.body[:8], "big") != ino:
                    return False
                at = seen.last
        return at >= piece.last

    def _tell(
        self,
        ino: int,
        spans: tuple[Span, ...],
        inside: Tally,
        subdirectories: Tally,
        links: Tally,
        *,
        unsure: bool,
    ) -> None:
        """What the inode says of its names and entries, against what there is."""
        for piece, (entries, directories, names) in pieces(spans, inside, subdirectories, links):
            key = keys.inode(ino)
            if not isinstance(piece, Span):
                where = self._sight.words(piece[0])
                if entries:
                    words = f"{entries} entries are in inode {ino}, which is not there {where}"
                    self._findings.report(Rule.DIRECTORY, Table.DIRENT, key, words)
                if names:
                    words = f"{names} names are of inode {ino}, which is not there {where}"
                    self._findings.report(Rule.NAME, Table.LINK, key, words)
            elif piece.inode is not None:
                self._names.add(piece.first, piece.last, names + bool(piece.inode.name and piece.inode.nlink))
                known = None if unsure else directories
                self._tell_piece(key, piece.inode, self._sight.words(piece.first), entries, known, names)

    def _tell_piece(
        self, key: bytes, inode: Inode, where: str, entries: int, subdirectories: int | None, links: int
    ) -> None:
        report = self._findings.report
        if inode.mode & S_IFMT == S_IFDIR:
            if inode.size != entries:
                words = f"directory {inode.ino} says it has {inode.size} entries, and has {entries}, {where}"
                report(Rule.DIRECTORY, Table.INODE, key, words)
            if subdirectories is not None and inode.nlink and inode.nlink != 2 + subdirectories:
                words = f"directory {inode.ino} says nlink {inode.nlink}, and has {subdirectories} directories, {where}"
                report(Rule.DIRECTORY, Table.INODE, key, words)
        else:
            if entries:
                words = f"inode {inode.ino} is no directory, and has {entries} entries, {where}"
                report(Rule.DIRECTORY, Table.INODE, key, words)
            expected = 0 if not inode.nlink else 1 if inode.name else links
            if inode.nlink != expected:
                words = f"inode {inode.ino} says nlink {inode.nlink}, and has {expected} names, {where}"
                report(Rule.LINKS, Table.INODE, key, words)
        if links and (inode.name or not inode.nlink):
            words = f"inode {inode.ino} has {links} rows in `link` beside what its record says, {where}"
            report(Rule.NAME, Table.LINK, key, words)

    def _reverse(self) -> Iterator[None]:
        """Looks up every inode's names, where they are not as many as the entries."""
        if not self._astray and self._entries.same_as(self._names):
            return
        for prefix in self._versions.prefixes(Table.INODE):
            yield
            ino = int.from_bytes(prefix, "big")
            for span in self._sight.inode(ino):
                inode = span.inode
                if inode is not None and inode.name and inode.nlink:
                    self._must_be_there(Table.INODE, prefix, span, ino, inode.parent, inode.name)
        for prefix in self._versions.prefixes(Table.LINK):
            yield
            ino, (directory, name) = int.from_bytes(prefix[:8], "big"), keys.link_name(prefix + bytes(8))
            for seen in self._sight.key(Table.LINK, prefix):
                self._must_be_there(Table.LINK, prefix, Span(seen.first, seen.last, None), ino, directory, name)

    def _must_be_there(self, table: Table, key: bytes, span: Span, ino: int, directory: int, name: bytes) -> None:
        if not self._sees(Table.DIRENT, keys.dirent(directory, name), span, ino):
            words = f"inode {ino} says that it is {name!r} in directory {directory}, which has no such entry"
            self._findings.report(Rule.NAME, table, key, f"{words} {self._sight.words(span.first)}")

    # -- the whole -----------------------------------------------------------------------------------------------------

    def _cycles(self) -> Iterator[None]:
        """From each directory upwards, at the first view that sees it under its parent, to the root."""
        begins: dict[int, list[int]] = {}
        for ino, rows in self._parents.items():
            for first, _, _ in rows:
                begins.setdefault(first, []).append(ino)
        for view in sorted(begins):
            reached: set[int] = {ROOT}
            for ino in begins[view]:
                yield
                way: list[int] = []
                at: int | None = ino
                while at is not None and at not in reached:
                    way.append(at)
                    reached.add(at)
                    at = next((up for first, last, up in self._parents.get(at, ()) if first <= view < last), None)
                if at is not None and at in way:
                    words = f"directory {at} is below itself {self._sight.words(view)}"
                    self._findings.report(Rule.CYCLE, Table.INODE, keys.inode(at), words)

    def _compare_counters(self) -> None:
        counters, counts = self._facts.counters, self._counts
        if counters is None:
            return
        counts["inodes"] = counts.total()
        for name in ("inodes", "files", "directories", "symlinks", "others"):
            if getattr(counters, name) != counts[name]:
                words = f"{name} is {getattr(counters, name)}, counted {counts[name]}"
                self._findings.report(Rule.COUNTER, Table.SYS, b"counters", words)
