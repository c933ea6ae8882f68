"""An agent's hour: commands in a mounted workspace, remembered by `tzfs run`, and what its operator does in between.

Each command runs twice: in the mount, by `tzfs run`, and in a plain directory of the local disk.  That directory is the
model of the head; of each snapshot there is a tree (`trees.py`) as a value.  What an operator does (undo, fork and
apply, restore, rollback, prune, destroy, hold) is done to the model by laying out trees.  After each step the mount is
compared with the directory, and the snapshots there are with those that there have to be.

Commands of tzfs are run in this process, as the program would: five hundred starts of an interpreter would be most of
the time.  One seed makes one hour: nothing in it depends on the clock.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.cli.command_line import CommandLine
from tests.mount.workspace import NAME, PATIENCE_S, PROJECT, Workspace
from tests.scenarios import commands, trees
from tests.scenarios.commands import Command, Drawing
from tests.scenarios.trees import Contents, Known, Tree
from tzfs import journal

PATTERNS: Final = "run-*,undo-*,rollback-*,fork*"
KEPT: Final = 12  # the oldest that the policy keeps; and the newest
LOOKED_AT_EVERY: Final = 10  # steps: a snapshot is read again, and every file
ENVIRONMENT: Final = {
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Author",
    "GIT_AUTHOR_EMAIL": "author@example.org",
    "GIT_AUTHOR_DATE": "1600000000 +0000",
    "GIT_COMMITTER_NAME": "Author",
    "GIT_COMMITTER_EMAIL": "author@example.org",
    "GIT_COMMITTER_DATE": "1600000000 +0000",
}


class Hour:
    """See the module's text.  `ws` is mounted at `ws.mnt`; this process has `ENVIRONMENT`, and that of `ws`."""

    def __init__(self, ws: Workspace, plain: Path, seed: int, parts: tuple[str, ...]) -> None:
        self.ws, self.plain, self.seed = ws, plain, seed
        self.tzfs = CommandLine(ws.store_path)
        self.contents: Contents = {}
        self._plain: Known = {}
        self._mounted: Known = {}
        self.snapshots: dict[str, Tree] = {}  # oldest first
        self.kept: set[str] = set()  # held or bookmarked
        self.held: set[str] = set()
        self.commands = self.number = 0
        self.undoable = False  # the last that changed something was a command or an undo
        self.done: list[str] = []
        self._parts = parts
        self._kinds: list[Callable[[Drawing], Command]] = []
        self._deeds: list[Callable[[Hour, random.Random], None]] = []

    def begin(self) -> None:
        """Mounts it, sets the policy, and brings the source tree into it, under git."""
        ws = self.ws
        ws.mount("xattr")
        self.tzfs.ok("set", "prune_interval=0", NAME)
        self.tzfs.ok("policy", "set", "--names", PATTERNS, NAME, f"1000w(keep={KEPT})")
        self.plain.mkdir()
        self.plain.chmod(stat.S_IMODE(ws.mnt.stat().st_mode))
        self.head: Tree = {}
        copied = [
            f"cp -r {PROJECT / part} . && find . -name __pycache__ -prune -exec rm -r {{}} +" for part in self._parts
        ]
        self.command(commands.shell(" && ".join([*copied, "find . -name '*.so' -exec rm {} +", commands.SETUP])))
        assert self.done[-1].startswith("0 "), self.done
        empty = next(name for name, tree in self.snapshots.items() if not tree)
        self.tzfs.ok("destroy", f"{NAME}@{empty}")  # nothing is to be done in an empty tree
        self.follow(self.head, {empty})

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A command, and now and then what an operator does."""
        self.number += 1
        r = random.Random(f"{self.seed}/{self.number}")
        if not self._kinds:
            self._kinds = [*commands.KINDS]
            random.Random(f"{self.seed}/{self.number}/kinds").shuffle(self._kinds)
        if not self._deeds:
            self._deeds = [*DEEDS]
            random.Random(f"{self.seed}/{self.number}/deeds").shuffle(self._deeds)
        self.command(self._kinds.pop()(Drawing(r, self.head, self.number)))
        if r.random() < 0.6:
            self._deeds.pop()(self, r)
        self.look(again=self.number % LOOKED_AT_EVERY == 0)
        if self.number % LOOKED_AT_EVERY == 0 and self.snapshots:
            self.look_at(r.choice([*self.snapshots]))

    def command(self, argv: Command) -> None:
        """The same command in the mount and in the plain directory."""
        self.commands += 1
        before = self.head
        done = self.tzfs("run", NAME, "--", *argv)
        code = self.run_plain(argv)
        self.say(f"{done.code} {argv}")
        assert (done.code, done.err) == (code, ""), self.failure([f"{done}, expected {code}"])
        self.follow(before)
        if self.head != before:
            self.undoable = True

    def run_plain(self, argv: Command, **more: str) -> int:
        environment = {**os.environ, "PWD": str(self.plain), **more}
        done = subprocess.run(
            argv, cwd=self.plain, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S,
            check=False,
        )  # fmt: skip
        return done.returncode

    def say(self, text: str) -> None:
        self.done.append(text)

    def look(self, *, again: bool) -> None:
        """The mount is what the plain directory is; `again`: files are read whose times have not changed, too."""
        if again:
            self._mounted.clear()
        found = trees.differences(trees.capture(self.ws.mnt, {}, self._mounted), self.head)
        assert not found, self.failure(found)

    def follow(self, before: Tree, gone: frozenset[str] | set[str] = frozenset()) -> None:
        """The plain directory has changed from `before`; these snapshots are `gone`, others may have come."""
        self.head = trees.capture(self.plain, self.contents, self._plain)
        with self.ws.store() as store:
            names = [found.name.snapshot for found in store.snapshots(NAME, settle=False)]
        missing = [name for name in self.snapshots if name not in names]
        assert set(missing) == set(gone), self.failure([f"gone: {missing}, expected {sorted(gone)}"])
        for name in missing:
            del self.snapshots[name]
        for name in names:
            if name not in self.snapshots:
                was_before = name.endswith("-before") or name.startswith("rollback-")
                self.snapshots[name] = before if was_before else self.head

    def failure(self, found: list[str]) -> str:
        return "\n".join([f"seed {self.seed}, step {self.number}", *self.done[-6:], *found])

    def look_at(self, name: str) -> None:
        """A snapshot is what it was, to the last byte."""
        found = trees.capture(self.ws.mnt / ".zfs" / "snapshot" / name, {})
        different = trees.differences(found, self.snapshots[name])
        assert not different, self.failure([f"snapshot {name}", *different])

    def lay_out(self, tree: Tree) -> None:
        trees.lay_out(tree, self.contents, self.plain)

    # -- what the operator does ------------------------------------------------------------------------------------

    def undo(self, r: random.Random) -> None:
        """Takes the last entry back, or is refused where something was changed since."""
        with self.ws.store() as store:
            entries = [e.fields for e in journal.log(store, NAME)]
        ends = [(str(e.get("before")), str(e.get("after"))) for e in entries if e.get("before") and e.get("after")]
        self._undo(ends[-1] if ends else None)

    def _undo(self, ends: tuple[str, str] | None) -> None:
        before, done = self.head, self.tzfs("undo", "-v", NAME)
        self.say(f"undo {ends}: {done.code} {done.err}")
        there = ends is not None and all(end in self.snapshots for end in ends)
        same = ends is not None and there and self.snapshots[ends[1]] == before
        if not (there and same):
            assert done.code, self.failure(["undone, although something was changed since"])
        elif self.undoable:
            assert not done.code, self.failure([done.err])
        if ends is not None and not done.code:
            self.lay_out(self.snapshots[ends[0]])
            self.undoable = True
        self.follow(before)

    def undo_twice(self, r: random.Random) -> None:
        self.undo(r)
        self.undo(r)

    def roll_back(self, r: random.Random) -> None:
        name = r.choice([*self.snapshots][-40:])
        before, newer = self.head, set([*self.snapshots][[*self.snapshots].index(name) + 1 :])
        recursive = r.random() < 0.3 and len(newer) < 10
        done = self.tzfs("rollback", *(["-r"] if recursive else []), f"{NAME}@{name}")
        self.say(f"rollback {name}, -r {recursive}: {done.code} {done.err}")
        refused = recursive and bool(newer & self.held)
        assert bool(done.code) == refused, self.failure([done.err])
        if not refused:
            self.lay_out(self.snapshots[name])
            self.undoable = False
        self.follow(before, newer if recursive and not refused else set())

    def restore(self, r: random.Random) -> None:
        name = r.choice([*self.snapshots])
        tree, head = self.snapshots[name], self.head
        folders = {path for path, node in head.items() if stat.S_ISDIR(node.mode)} | {""}
        paths = [path for path in tree if not path.startswith(".git") and os.path.dirname(path) in folders]
        if not paths:
            return
        path = r.choice(paths)
        into = r.choice(sorted(folder for folder in folders if not folder.startswith(".git")))
        elsewhere = r.random() < 0.4 and os.path.join(into, os.path.basename(path)) not in head
        target = os.path.join(into, os.path.basename(path)) if elsewhere else path
        self.say(f"restore {name} {path!r} to {target!r}")
        self.tzfs.ok("restore", *(["--to", f"/{into}"] if elsewhere else ["-f"]), f"{NAME}@{name}", path)
        place = self.plain / target
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        self._put(trees.part(tree, path), path, target)
        self.undoable = False
        self.follow(head)

    def _put(self, part: Tree, path: str, target: str) -> None:
        """Puts what was at `path` at `target`; names are one file where they come back together."""
        aside = self.plain.with_name("aside")
        aside.mkdir()
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
        first: dict[str, str] = {}
        twins = {name: first.setdefault(node.twin, name) for name, node in part.items()}
        told = {
            name: trees.Node(n.mode, n.owner, n.links, twins[name], n.xattrs, n.seen, n.kept)
            for name, n in part.items()
        }
        trees.put(told, self.contents, aside)
        (aside / path).rename(self.plain / target)
        shutil.rmtree(aside)

    def prune(self, r: random.Random) -> None:
        covered = [n for n in self.snapshots if n.startswith(("run-", "undo-", "rollback-", "fork"))]
        gone = {n for n in covered[KEPT:-1] if n not in self.kept}
        self.say(f"prune {len(gone)}")
        told = self.tzfs.ok("prune", "-nv", NAME).splitlines()
        assert sum(line.startswith("would destroy") for line in told) == len(gone), self.failure(told)
        self.tzfs.ok("prune", NAME)
        self.follow(self.head, gone)

    def destroy(self, r: random.Random) -> None:
        names = [*self.snapshots]
        first = r.randrange(len(names))
        chosen = names[first : first + r.choice((1, 1, 3, 6))]
        done = self.tzfs("destroy", f"{NAME}@{chosen[0]}%{chosen[-1]}")
        refused = bool(set(chosen) & self.held)
        self.say(f"destroy {chosen}: {done.code} {done.err}")
        assert bool(done.code) == refused, self.failure([done.err])
        self.follow(self.head, set() if refused else set(chosen))
        self.kept -= set() if refused else set(chosen)

    def keep(self, r: random.Random) -> None:
        """Holds a snapshot, or releases one; or bookmarks one."""
        name = r.choice([*self.snapshots])
        self.say(f"hold or bookmark {name}")
        if len(self.held) > 2:
            name = r.choice(sorted(self.held))
            self.tzfs.ok("release", "keep", f"{NAME}@{name}")
            self.held.discard(name)
            self.kept.discard(name)
        elif r.random() < 0.5 and name not in self.held:
            self.tzfs.ok("hold", "keep", f"{NAME}@{name}")
            self.held.add(name)
            self.kept.add(name)
        else:
            self.tzfs.ok("bookmark", f"{NAME}@{name}", f"#mark-{self.number}")
            self.kept.add(name)
        self.follow(self.head)

    def take(self, r: random.Random) -> None:
        self.tzfs.ok("snapshot", f"{NAME}@step-{self.number}")
        self.say("snapshot")
        self.follow(self.head)

    def collect(self, r: random.Random) -> None:
        self.say(self.tzfs.ok("gc", NAME))
        self.say(self.tzfs.ok("check", NAME))
        self.follow(self.head)

    def fork(self, r: random.Random) -> None:
        """A command in clones at once; one of them is kept, whatever has been done here meanwhile."""
        draw = Drawing(r, self.head, self.number)
        path, other, count = draw.alone(), draw.alone(), r.choice((2, 2, 3))
        change, make = draw.forked(path)
        before, chosen = self.head, r.randrange(count)
        self.say(f"fork {path!r} {change!r}, keep {chosen} of {count}")
        there = set(self.snapshots)
        self.tzfs.ok("run", "-o", "xattr", "--fork", str(count), NAME, "--", *commands.shell(f"{change}; {make}"))
        self.follow(before)
        (point,) = set(self.snapshots) - there
        clones = [f"{NAME}-{point}-{number}" for number in range(count)]
        meanwhile = r.choice(("nothing", "other", "same"))
        if meanwhile == "nothing" or (meanwhile == "other" and other == path):
            self._apply(clones[chosen])
            self._forked(f"{change}; {make}", chosen)
        elif meanwhile == "other":
            self.command(draw.edit_of(other))
            self._apply(clones[chosen])
            self._forked(f"{change}; {make}", chosen)
        else:
            self.command(draw.edit_of(path))
            refused = self.tzfs("apply", clones[chosen])
            self.say(f"apply: {refused.code} {refused.out}{refused.err}")
            assert refused.code, self.failure(["applied over a conflict"])
            self.follow(self.head)
            if r.random() < 0.5:
                self._apply(clones[chosen], "--ours")
                self._forked(make, chosen)
            else:
                self._apply(clones[chosen], "--theirs")
                (self.plain / path).unlink()
                self._put(trees.part(before, path), path, path)
                self._forked(f"{change}; {make}", chosen)
        self.undoable = False
        self.follow(self.head)
        for clone in clones:
            self.tzfs.ok("destroy", "-r", clone)
        self.follow(self.head)

    def _apply(self, clone: str, *options: str) -> None:
        self.say(self.tzfs.ok("apply", *options, clone))

    def _forked(self, script: str, number: int) -> None:
        assert self.run_plain(commands.shell(script), TZFS_FORK=str(number)) == 0


DEEDS: Final[tuple[Callable[[Hour, random.Random], None], ...]] = (
    Hour.undo,
    Hour.undo,
    Hour.undo_twice,
    Hour.roll_back,
    Hour.restore,
    Hour.restore,
    Hour.fork,
    Hour.prune,
    Hour.destroy,
    Hour.keep,
    Hour.take,
    Hour.collect,
)
