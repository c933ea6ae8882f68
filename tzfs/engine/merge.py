"""Three trees made one: what a clone has changed, on what its origin has become, by inode and by name.

`base` is the snapshot that the clone came from, `ours` the head that changes, `theirs` the clone.  Below the clone's
first inode numbers mean the same in all three; an inode that only theirs has gets the negative of its number here.
What both have newly made at one place, alike in kind, contents, mode, owner and attributes, is one inode, with the
number of ours: both have made the same change, which is no conflict, and what has been applied once is met again so.
Looked at is what theirs has touched, so the cost is that of its change, whatever the trees' size.

A *place* is a directory and a name in it.  Each place that theirs has touched is merged by itself: who alone has
changed it has it.  So is each of the contents, mode, owner and attributes of a file that both have.  That leaves what
cannot be: a directory in two places, below itself, or gone with something in it; a file removed that the other side has
changed; one moved to two places.  The places that are to blame are *forced*: they become those of the side that is
preferred, whether or not it has changed them, and what they name is looked at again.  Only so many places can be
forced, and with all of them forced there is only that side's tree; so it ends, and what comes out is a tree.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, cast

from tzfs.engine.diff import BATCH, PIECE_SHIFT, Changes, Diff
from tzfs.engine.view import View
from tzfs.format.keys import ROOT
from tzfs.format.records import Inode

Place = tuple[int, bytes]
ASPECTS: Final[tuple[str, ...]] = ("contents", "mode", "owner", "xattr")  # what is merged by itself


class Side(StrEnum):
    """Who is right where both have changed the same."""

    OURS = "ours"
    THEIRS = "theirs"


@dataclass(frozen=True, slots=True)
class Conflict:
    """What both sides have changed: `path`, in the head where it has one, and why both cannot be."""

    path: str
    reason: str


class Merge:
    """`conflicts` is complete, and `places` and `aspects` are what is to be done, once `run` has come to its end."""

    def __init__(
        self,
        base: View,
        ours: View,
        theirs: View,
        our_changes: Changes,
        their_changes: Changes,
        prefer: Side | None,
    ) -> None:
        self._views = {"base": base, "ours": ours, "theirs": theirs}
        self._our_diff, self._their_diff = Diff(base, ours, our_changes), Diff(base, theirs, their_changes)
        self._our_changes, self._changes = our_changes, their_changes
        self._prefer = prefer or Side.OURS
        self._touched: set[Place] = set()
        self._forced: set[Place] = set()
        self._of: dict[int, set[Place]] = defaultdict(set)  # touched or forced, by directory
        self._inodes: dict[tuple[str, int], Inode | None] = {}
        self._seen: dict[tuple[str, Place], int] = {}
        self._named: dict[tuple[str, int], set[Place]] = {}
        self._ours_of: dict[int, int] = {}  # of inodes that both have newly made: number of theirs -> number of ours
        self._theirs_of: dict[int, int] = {}  # and back
        self._todo: list[int] = []
        self._changed: set[int] = set()  # by theirs, in whatever way
        self.conflicts: list[Conflict] = []
        self.places: dict[Place, int] = {}  # what is to be named, 0 for nothing, where that is not what ours has
        self.aspects: dict[int, set[str]] = {}  # of inodes that ours has too: what becomes theirs, `mtime` among it

    def run(self) -> Iterator[None]:
        """Yields now and then."""
        yield from self._changes.read()
        yield from self._pair()
        batch: list[int] = []
        for ino in self._changes.inodes:
            batch.append(ino)
            if len(batch) == BATCH:
                self._take(batch)
                batch.clear()
                yield
        self._take(batch)
        count = 0
        while self._todo:
            self._check(self._todo.pop())
            if (count := count + 1) % BATCH == 0:
                yield
        for place in sorted(self._touched | self._forced):
            if (to := self.at(place)) != self._entry("ours", place):
                self.places[place] = to
        for which in sorted(self._changed):
            if which > 0 and self.inode("ours", which) is not None and (which == ROOT or self.names(which)):
                yield from self._aspects(which)

    # -- what each side has ------------------------------------------------------------------------------------------

    def _shared(self, ino: int) -> bool:
        return self.inode("base", ino) is not None

    def inode(self, side: str, which: int) -> Inode | None:
        """What a side has under a number, with a name; None for nothing."""
        if (side, which) not in self._inodes:
            ino = self._theirs(which) if side == "theirs" else max(which, 0)
            found = self._views[side].inodes([ino])[0] if ino else None
            self._inodes[side, which] = found if found is not None and found.nlink else None
        return self._inodes[side, which]

    def some(self, which: int) -> Inode:
        """What any side has under a number."""
        found = self.inode("ours", which) or self.inode("theirs", which) or self.inode("base", which)
        assert found is not None
        return found

    def _their_number(self, ino: int) -> int:
        """The number here of an inode of theirs."""
        return ino if ino == 0 or self._shared(ino) else self._ours_of.get(ino, -ino)

    def _theirs(self, which: int) -> int:
        """The number there of an inode; 0 for one that theirs cannot have."""
        if which < 0:
            return -which
        return self._theirs_of.get(which) or (which if self._shared(which) else 0)

    def _entry(self, side: str, place: Place) -> int:
        if (side, place) not in self._seen:
            directory, name = place
            if side == "theirs":
                there = self._theirs(directory)
                found = self._views[side].entry(there, name) if there else 0
                self._seen[side, place] = self._their_number(found)
            else:
                self._seen[side, place] = self._views[side].entry(directory, name) if directory > 0 else 0
        return self._seen[side, place]

    def _places(self, side: str, which: int) -> set[Place]:
        """Where a side has an inode."""
        if (side, which) not in self._named:
            inode = self.inode(side, which)
            found = set() if inode is None else cast(set[Place], self._views[side].names_of(inode))
            if side == "theirs":
                found = {(self._their_number(directory), name) for directory, name in found}
            self._named[side, which] = found
        return self._named[side, which]

    def _everywhere(self, which: int) -> set[Place]:
        return self._places("base", which) | self._places("ours", which) | self._places("theirs", which)

    def places_of_ours(self, which: int) -> set[Place]:
        return self._places("ours", which)

    def ours_at(self, place: Place) -> int:
        """What ours has at a place; 0 for nothing."""
        return self._entry("ours", place)

    def values(self, place: Place) -> set[int]:
        """What it is to name, and names now."""
        return {self.at(place), self.ours_at(place)}

    def as_based(self, which: int) -> bool:
        """Whether ours has the contents of the base."""
        base, ours = self.inode("base", which), self.inode("ours", which)
        return base is not None and ours is not None and "contents" not in _all(self._our_diff.compare(base, ours))

    # -- what both have made -----------------------------------------------------------------------------------------

    def _pair(self) -> Generator[None, None, None]:
        """Finds the inodes that both have newly made, from the top down, before anything else is asked of them."""
        if self._our_changes.empty:
            return
        view, decided = self._views["theirs"], set[int]()
        for count, ino in enumerate(self._changes.inodes):
            todo = [] if self._shared(ino) else [ino]
            while todo:
                made = view.inodes([todo[-1]])[0]
                places = [] if made is None or not made.nlink else sorted(view.names_of(made))
                above = {int(directory) for directory, _ in places if not self._shared(directory)} - decided
                if above:
                    todo += sorted(above)
                    continue
                if todo.pop() in decided or made is None:
                    continue
                decided.add(made.ino)
                for directory, name in places:
                    if (yield from self._same(made, self._their_number(directory), name)):
                        break
            if count % BATCH == 0:
                yield

    def _same(self, theirs: Inode, directory: int, name: bytes) -> Generator[None, None, bool]:
        """Whether what theirs has newly made is what ours has at a place."""
        here = self._entry("ours", (directory, name))
        ours = self.inode("ours", here) if here and here not in self._theirs_of and not self._shared(here) else None
        if ours is None or (ours.mode, ours.rdev) != (theirs.mode, theirs.rdev):
            return False
        for aspect in ASPECTS:
            if not (yield from self._alike(aspect, ours, theirs)):
                return False
        self._ours_of[theirs.ino], self._theirs_of[here] = here, theirs.ino
        return True

    # -- what is to be -----------------------------------------------------------------------------------------------

    def at(self, place: Place) -> int:
        """What a place is to name; 0 for nothing."""
        ours = self._entry("ours", place)
        if place in self._forced:
            return self._entry(self._prefer, place)
        if place not in self._touched:
            return ours
        base, theirs = self._entry("base", place), self._entry("theirs", place)
        return theirs if ours == base else ours

    def names(self, which: int) -> set[Place]:
        """Where an inode is to be."""
        return {place for place in self._everywhere(which) if self.at(place) == which}

    def exists(self, which: int) -> bool:
        """Whether an inode is to be there."""
        return which == ROOT or bool(self.names(which))

    def _take(self, inos: list[int]) -> None:
        """What theirs has touched."""
        view_inodes = self._views["theirs"].inodes(inos)
        for ino, now in zip(inos, view_inodes, strict=True):
            which = self._their_number(ino)
            if now is None and which < 0:
                continue  # it came and went
            self._changed.add(which)
            self._todo.append(which)
            for place in sorted(self._places("base", which) ^ self._places("theirs", which)):
                self._touch(place)

    def _touch(self, place: Place) -> None:
        if place in self._touched:
            return
        self._touched.add(place)
        self._of[place[0]].add(place)
        base, ours, theirs = (self._entry(side, place) for side in self._views)
        self._todo += [which for which in (base, ours, theirs, place[0]) if which]
        if base not in (ours, theirs) and ours != theirs:
            self._force({place}, place, "both have put something else there")

    def _force(self, places: set[Place], where: Place, reason: str | None) -> None:
        """Both sides' changes cannot be at `places`; nothing happens where that has been said already.

        Without a reason it follows from another conflict.
        """
        fresh = places - self._forced
        if not fresh:
            return
        if reason is not None:
            self._conflict(where, reason)
        for place in sorted(fresh):
            before = self.at(place)
            self._forced.add(place)
            self._of[place[0]].add(place)
            sides = (self._entry(side, place) for side in self._views)
            self._todo += [which for which in (*sides, place[0], before) if which]

    def _conflict(self, where: Place, reason: str) -> None:
        self.conflicts.append(Conflict(os.fsdecode(self.path(where)), reason))

    def path(self, place: Place) -> bytes:
        """A path of a place, where ours has its directory, or else theirs, or the base."""
        directory, name = place
        above = [name]
        while directory != ROOT:
            places = self._places("ours", directory) or self._places("theirs", directory)
            directory, name = min(places or self._places("base", directory))
            above.append(name)
        return b"/" + b"/".join(reversed(above))

    # -- what cannot be ----------------------------------------------------------------------------------------------

    def _check(self, which: int) -> None:
        if which == ROOT:
            return
        base, ours, theirs = (self._places(side, which) for side in self._views)
        everywhere, names = base | ours | theirs, self.names(which)
        if not everywhere:
            return
        where = min(ours or theirs or base)
        force = partial(self._force, everywhere, where)
        if base and ours != base and theirs != base and ours != theirs:
            if not theirs or not ours:
                if names:
                    force("removed by one, moved by the other")
            elif len(base) == len(ours) == len(theirs) == 1:
                force("moved to two places")
        if not everywhere <= self._forced and base and bool(ours) != bool(theirs):
            there = "ours" if ours else "theirs"
            if self._differs(there, which):
                force("removed by one, changed by the other")
        names = self.names(which)
        directory = stat.S_ISDIR(self.some(which).mode)
        if directory and len(names) > 1:
            force("a directory moved to two places")
        elif directory and not names:
            self._check_emptied(which, everywhere)
        for place in sorted(names):
            if not self.exists(place[0]):
                self._force({place} | self._everywhere(place[0]), place, self._orphaned(place[0]))
        if directory and base and names and bool(ours) != bool(theirs):
            self._bring_back(which)
        if directory:
            self._check_cycle(which)

    def _check_emptied(self, which: int, everywhere: set[Place]) -> None:
        """A directory that is to go has nothing in it."""
        inside = self._of[which] | self._inside("ours", which)
        for place in sorted(inside):
            if self.at(place):
                self._force({place} | everywhere, place, self._orphaned(which))

    def _orphaned(self, directory: int) -> str | None:
        """Why something cannot be in a directory that is to go; one that is new goes for another reason."""
        return "its directory was removed by the other" if self._places("base", directory) else None

    def _bring_back(self, which: int) -> None:
        """A directory that one has removed, and that stays, keeps what it has in the other."""
        inside = set(self._of[which])
        if self._prefer is Side.THEIRS:
            inside |= self._inside("theirs", which)
        self._force(inside, (which, b""), None)

    def _inside(self, side: str, which: int) -> set[Place]:
        """The places in a directory where a side has something."""
        found: set[Place] = set()
        after = b""
        inode = self.inode(side, which)
        while inode is not None and (entries := self._views[side].readdir(inode.ino, after, BATCH)):
            found |= {(which, name) for name, _, _ in entries}
            after = entries[-1][0]
        return found

    def _check_cycle(self, which: int) -> None:
        passed: list[int] = []
        while which != ROOT and which not in passed:
            passed.append(which)
            names = self.names(which)
            if not names:
                return
            which = min(names)[0]
        if which == ROOT:
            return
        ring = passed[passed.index(which) :]
        places = set().union(*map(self._everywhere, ring))
        self._force(
            places,
            min(min(here) for each in ring if (here := self._places("ours", each))),
            "each was moved below the other",
        )

    def _differs(self, side: str, which: int) -> bool:
        """Whether a side has changed anything about an inode but its names."""
        old, new = self.inode("base", which), self.inode(side, which)
        assert old is not None
        assert new is not None
        return bool(_aspects_of(_all(self._diff(side).compare(old, new)), new) - {"mtime"})

    def _diff(self, side: str) -> Diff:
        return self._our_diff if side == "ours" else self._their_diff

    # -- contents and attributes -------------------------------------------------------------------------------------

    def _aspects(self, which: int) -> Generator[None, None, None]:
        base, ours, theirs = (self.inode(side, which) for side in self._views)
        if base is None or ours is None or theirs is None:
            return
        here = _aspects_of((yield from self._our_diff.compare(base, ours)), ours)
        there = _aspects_of((yield from self._their_diff.compare(base, theirs)), theirs)
        taken: set[str] = set()
        for aspect in ASPECTS:
            if aspect not in there:
                continue
            if aspect not in here:
                taken.add(aspect)
            elif not (yield from self._alike(aspect, ours, theirs)):
                where = (0, b"") if which == ROOT else min(self._places("ours", which))
                path = "/" if which == ROOT else os.fsdecode(self.path(where))
                self.conflicts.append(Conflict(path, f"both have changed its {aspect}"))
                if self._prefer is Side.THEIRS:
                    taken.add(aspect)
        if "mtime" in there and ("mtime" not in here or theirs.mtime_ns > ours.mtime_ns):
            taken.add("mtime")
        if "contents" in here | there:
            taken = taken | {"mtime"} if "contents" in taken or "contents" not in here else taken - {"mtime"}
        if taken:
            self.aspects[which] = taken

    def _alike(self, aspect: str, ours: Inode, theirs: Inode) -> Generator[None, None, bool]:
        """Whether both have changed it to the same."""
        if aspect == "mode":
            return ours.mode == theirs.mode
        if aspect == "owner":
            return (ours.uid, ours.gid) == (theirs.uid, theirs.gid)
        a, b = self._views["ours"], self._views["theirs"]
        if aspect == "xattr":
            names = a.listxattr(ours.ino)
            if names != b.listxattr(theirs.ino):
                return False
            return all(a.getxattr(ours.ino, name) == b.getxattr(theirs.ino, name) for name in names)
        if stat.S_ISDIR(ours.mode):
            return True  # its names are merged one by one
        if ours.size != theirs.size:
            return False
        for offset in range(0, ours.size, 1 << PIECE_SHIFT):
            yield
            if a.read(ours.ino, offset, 1 << PIECE_SHIFT) != b.read(theirs.ino, offset, 1 << PIECE_SHIFT):
                return False
        return True


def _all(steps: Generator[None, None, list[str]]) -> list[str]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(list[str], end.value)


def _aspects_of(changed: list[str], inode: Inode) -> set[str]:
    """What a comparison says, as far as it is merged; a directory's size follows from its names."""
    return {
        "contents" if what == "size" else what for what in changed if what != "size" or not stat.S_ISDIR(inode.mode)
    }
