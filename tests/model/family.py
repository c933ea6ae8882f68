"""Worlds that are clones of each other's snapshots, all going on at once, each beside a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.engine.plain import Plain, copied
from tests.engine.world import DiskStores, Step
from tests.model.inheriting import ClonedOnDisk, cloned
from tests.model.world import Everything
from tzfs.engine.flatten import Flatten
from tzfs.errors import QuotaExceeded

WORLDS_MAX: Final = 4
KINDS: Final = {"clone": 5, "flatten": 4, "drop": 2}  # the steps of a family beyond those of its worlds


class Clone(Everything):
    """A clone of a snapshot whose tree `model` has."""

    def __init__(self, stores: DiskStores, model: Plain) -> None:
        super().__init__(stores)
        self.model = model
        self.committed = model.copy()

    def do_flatten(self, a: int, b: int, c: int, d: int) -> None:
        """Begins, or goes on."""
        self._let_jobs_end()
        flattening: Flatten = self.engine.flattening
        try:
            flattening.begin()
        except QuotaExceeded:
            assert self.limits
            return
        for _ in range(b % 20):
            flattening.step()
        self.settled()


@dataclass
class Member:
    """One world; `above` is the one that it was made from a snapshot of, which `tag` holds."""

    world: Everything
    above: Member | None
    tag: str


class Family:
    """The worlds.  The first is no clone; a member is dropped only when no other was made from it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self.members = [Member(Everything(DiskStores(self._place())), None, "")]

    def _place(self) -> Path:
        path = self._folder / str(self._made)
        path.mkdir()
        return path

    def worlds(self) -> list[Everything]:
        return [member.world for member in self.members]

    def apply(self, which: int, step: Step) -> None:
        """A step of the world `which`, or of the family there."""
        member = self.members[which % len(self.members)]
        if step[0] in KINDS:
            getattr(self, f"_{step[0]}")(member, *step[1:])
        else:
            member.world.apply(step)
        for each in self.members:
            self._let_go(each)

    def _clone(self, member: Member, a: int, b: int, c: int, d: int) -> None:
        world = member.world
        names = sorted(world.model.snapshots)
        if not names or len(self.members) == WORLDS_MAX:
            return
        name = names[a % len(names)]
        self._made += 1
        tag = f"clone {self._made}"
        world._let_jobs_end()
        try:
            world.engine.marks.hold(tag, [name])
        except QuotaExceeded:
            assert world.limits
            return
        world.model.holds.setdefault(name, set()).add(tag)
        model = Plain()
        model.nodes = copied(world.model.snapshots[name])
        stores = ClonedOnDisk(self._place(), world, name)
        world.settled()
        self.members.append(Member(Clone(stores, model), member, tag))

    def _flatten(self, member: Member, a: int, b: int, c: int, d: int) -> None:
        if isinstance(member.world, Clone):
            member.world.apply(("flatten", a, b, c, d))

    def _drop(self, member: Member, a: int, b: int, c: int, d: int) -> None:
        if member.above is not None and all(other.above is not member for other in self.members):
            member.world._let_jobs_end()
            member.world.engine.abandon()
            member.world.stores.close()
            self.members.remove(member)
            self._release(member)

    def _let_go(self, member: Member) -> None:
        """Of what has been flattened."""
        if member.above is not None and member.tag and not cloned(member.world.stores.meta):
            self._release(member)

    def _release(self, member: Member) -> None:
        """The origin's snapshot is not needed any more; by whatever name it has now."""
        if member.above is None or not member.tag:
            return
        above, tag = member.above.world, member.tag
        member.tag = ""
        above._let_jobs_end()
        for name, tags in above.model.holds.items():
            if tag in tags:
                above.engine.marks.release(tag, [name])
                tags.remove(tag)
        above.settled()

    def close(self) -> None:
        for world in reversed(self.worlds()):
            world._let_jobs_end()
            world.engine.close()
            world.stores.close()

    def __iter__(self) -> Iterator[Everything]:
        return iter(self.worlds())
