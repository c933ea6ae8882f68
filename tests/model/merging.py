"""Three plain trees made one, as a clone's changes are brought onto its origin.

Of each name, and of each thing about an inode, whoever has changed it alone has it.

Inode numbers mean the same in all three trees; what is new in theirs has negative ones, unless both have newly made the
like at one place, which then is one inode.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.engine.plain import ROOT, Node

Place = tuple[int, bytes]
ASPECTS = ("data", "mode", "owner", "xattrs")


@dataclass
class Tree:
    """What each place names, and what each inode is."""

    places: dict[Place, int]
    inodes: dict[int, Node]

    def at(self) -> dict[int, set[Place]]:
        """The places of each inode."""
        found: dict[int, set[Place]] = defaultdict(set)
        for place, ino in self.places.items():
            found[ino].add(place)
        return found


def tree_of(nodes: Mapping[int, Node]) -> Tree:
    """Of a tree without orphans."""
    places = {(ino, name): child for ino, node in nodes.items() for name, child in node.entries.items()}
    return Tree(places, dict(nodes))


def aspect(node: Node, what: str) -> object:
    return (node.uid, node.gid) if what == "owner" else getattr(node, what)


def alike(a: Node, b: Node) -> bool:
    return all(aspect(a, what) == aspect(b, what) for what in (*ASPECTS, "rdev"))


def clone_tree(base: Tree, ours: Tree, nodes: Mapping[int, Node]) -> Tree:
    """The tree of the clone, under the numbers that its inodes have here."""
    here = {ino: ino if ino in base.inodes else -ino for ino in nodes}
    theirs = Tree(
        {(here[d], name): here[ino] for (d, name), ino in tree_of(nodes).places.items()},
        {here[ino]: node for ino, node in nodes.items()},
    )
    while (pair := _pair(base, ours, theirs)) is not None:
        new, same = pair
        theirs.inodes[same] = theirs.inodes.pop(new)
        theirs.places = {
            (same if d == new else d, name): same if ino == new else ino for (d, name), ino in theirs.places.items()
        }
    return theirs


def _pair(base: Tree, ours: Tree, theirs: Tree) -> tuple[int, int] | None:
    """Two inodes that both have newly made; what is in a directory has a place once that has its number."""
    for place, new in sorted(theirs.places.items(), key=lambda each: (abs(each[1]), each[0])):
        same = ours.places.get(place, 0)
        taken = same in base.inodes or same in theirs.inodes
        if new < 0 and same and not taken and alike(ours.inodes[same], theirs.inodes[new]):
            return new, same
    return None


def changed(base: Tree, side: Tree, ino: int) -> set[str]:
    """What a side has changed about an inode that both have."""
    old, new = base.inodes[ino], side.inodes[ino]
    return {what for what in ASPECTS if aspect(old, what) != aspect(new, what)}


def merged(base: Tree, ours: Tree, theirs: Tree) -> Tree | None:
    """None where both have changed the same, and not alike."""
    out = Tree({}, {})
    for place in {*base.places, *ours.places, *theirs.places}:
        b, o, t = (side.places.get(place, 0) for side in (base, ours, theirs))
        if b not in (o, t) and o != t:
            return None
        if value := t if o == b else o:
            out.places[place] = value
    named = out.at()
    if _misplaced(base, ours, theirs, named):
        return None
    for ino in {ROOT, *named}:
        old, here, there = base.inodes.get(ino), ours.inodes.get(ino), theirs.inodes.get(ino)
        if old is None or here is None or there is None:
            found = here or there
            if found is None:
                return None
            out.inodes[ino] = replace(found)
            continue
        mine, other = changed(base, ours, ino), changed(base, theirs, ino)
        if any(aspect(here, what) != aspect(there, what) for what in mine & other):
            return None
        made = out.inodes[ino] = replace(here)
        for what in other - mine:
            if what == "owner":
                made.uid, made.gid = there.uid, there.gid
            else:
                setattr(made, what, getattr(there, what))
    return out if _is_tree(out, named) else None


def _misplaced(base: Tree, ours: Tree, theirs: Tree, named: Mapping[int, set[Place]]) -> bool:
    """Whether an inode was moved to two places, or one has removed what the other has moved or changed."""
    b, o, t = base.at(), ours.at(), theirs.at()
    for ino in base.inodes.keys() - {ROOT}:
        moved = o[ino] != b[ino] and t[ino] != b[ino] and o[ino] != t[ino]
        if moved and (len(b[ino]), len(o[ino]), len(t[ino])) == (1, 1, 1):
            return True
        if bool(o[ino]) != bool(t[ino]):
            there = ours if o[ino] else theirs
            if changed(base, there, ino) or (moved and named.get(ino)):
                return True
    return False


def _is_tree(tree: Tree, named: Mapping[int, set[Place]]) -> bool:
    """Whether each directory is in one place, and all hangs together."""
    if any(tree.inodes[ino].is_dir and len(places) > 1 for ino, places in named.items()):
        return False
    below: dict[int, list[int]] = defaultdict(list)
    for (directory, _), ino in tree.places.items():
        below[directory].append(ino)
    reached, todo = {ROOT}, [ROOT]
    while todo:
        for ino in below[todo.pop()]:
            if ino not in reached and tree.inodes[ino].is_dir:
                todo.append(ino)
            reached.add(ino)
    return reached == {ROOT, *named}
