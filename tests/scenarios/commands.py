"""What an agent does in a source tree: commands of real tools, drawn by a seed from what is there.

Each does the same wherever it is run on the same tree: no clock, no random number, no order that a directory happens to
have comes into what it leaves.
"""

from __future__ import annotations

import random
import shlex
import shutil
import stat
import sys
from collections.abc import Callable
from typing import Final

from tests.scenarios.trees import Node, Tree

FILES_MAX: Final = 900  # beyond them, trees are removed instead of copied
COPIED_MAX: Final = 60  # files in a directory that is copied or removed
Command = list[str]

SETUP: Final = """
git init -q -b main . && git config gc.auto 0 && git config core.fsmonitor false && git config pack.threads 1 &&
git config index.version 2 && git add -A && git commit -qm begin
"""

WRITE: Final = """
import os, sys
path, at, size, seed = sys.argv[1], *map(int, sys.argv[2:])
import hashlib
with open(path, "r+b" if os.path.exists(path) else "w+b") as file:
    file.seek(at)
    file.write(hashlib.shake_128(str(seed).encode()).digest(size))
"""

DATABASE: Final = """
import sqlite3, sys
path, seed = sys.argv[1], int(sys.argv[2])
with sqlite3.connect(path) as db:
    db.execute("create table if not exists notes (id integer primary key, text)")
    db.executemany("insert into notes (text) values (?)", ((f"{seed} " * (i % 90),) for i in range(400)))
    db.execute("delete from notes where id % 3 = ?", (seed % 3,))
    db.execute("update notes set text = text || 'x' where id % 7 = ?", (seed % 7,))
db.close()
"""

ATTRIBUTES: Final = """
import os, sys
path, seed = sys.argv[1], int(sys.argv[2])
for name in os.listxattr(path)[: seed % 2]:
    os.removexattr(path, name)
os.setxattr(path, f"user.n{seed % 3}", b"%d" % seed * (1 + seed % 40))
"""

PROGRAM: Final = '#include <stdio.h>\nint main(void) { return printf("%d\\n", NUMBER) < 0; }\n'


def python(text: str, *arguments: object) -> Command:
    return [sys.executable, "-c", text, *map(str, arguments)]


def shell(text: str) -> Command:
    return ["sh", "-c", text]


class Drawing:
    """Commands on a tree; `number` makes the names of what they make."""

    def __init__(self, r: random.Random, tree: Tree, number: int) -> None:
        self.r, self.tree, self.number = r, tree, number
        seen = {path: node for path, node in tree.items() if not path.startswith(".git")}
        self.files = [path for path, node in seen.items() if stat.S_ISREG(node.mode)]
        self.folders = [path for path, node in seen.items() if stat.S_ISDIR(node.mode)]

    def file(self, fits: Callable[[str, Node], bool] = lambda path, node: True) -> str:
        return self.r.choice([path for path in self.files if fits(path, self.tree[path])] or self.files)

    def source(self) -> str:
        """A file of text."""
        return self.file(lambda path, node: path.endswith((".py", ".c", ".h", ".md")))

    def alone(self) -> str:
        """A file of text with one name."""
        return self.file(lambda path, node: path.endswith(".py") and node.links == 1)

    def folder(self) -> str:
        return self.r.choice([*self.folders, "."])

    def outside(self, what: str) -> str:
        """A folder that is not in `what`: how far `cp` comes before it meets its own copy is a matter of the order in
        which a folder is listed."""
        return self.r.choice([".", *(path for path in self.folders if not (path + "/").startswith(what + "/"))])

    def small_folder(self) -> str | None:
        counts = {folder: sum(path.startswith(folder + "/") for path in self.tree) for folder in self.folders}
        return self.r.choice([folder for folder, count in counts.items() if count <= COPIED_MAX] or [None])

    # -- what is done ----------------------------------------------------------------------------------------------

    def edit(self) -> Command:
        return shell(f"sed -i -e 's/self/this{self.number}/g' -e '1i # {self.number}' -- {q(self.source())}")

    def edit_several(self) -> Command:
        where = q(self.folder())
        return shell(
            f"grep -rIl --exclude-dir=.git import {where} | LC_ALL=C sort | head -n {self.r.randint(2, 12)} |"
            f" xargs -r -d '\\n' sed -i 's/import/import  /'"
        )

    def append(self) -> Command:
        return shell(f"printf '%s\\n' {self.number} more >> {q(self.file())}")

    def make(self) -> Command:
        name = q(f"{self.folder()}/new \xe9{self.number}.md")
        return shell(f"for i in 1 2 3 4 5 6 7 8; do echo line {self.number} $i; done > {name}")

    def copy(self) -> Command:
        folder = self.small_folder()
        if folder is None or len(self.tree) > FILES_MAX:
            return self.remove()
        return shell(f"cp -r {q(folder)} {q(f'{self.outside(folder)}/copy-{self.number}')}")

    def move(self) -> Command:
        what = self.r.choice([*self.files, *self.folders])
        return shell(f"mv {q(what)} {q(f'{self.outside(what)}/moved-{self.number}')}")

    def replace(self) -> Command:
        return shell(f"mv -f {q(self.file())} {q(self.file())} || cp -f {q(self.file())} replaced-{self.number}")

    def remove(self) -> Command:
        folder = self.small_folder()
        many = len(self.tree) > FILES_MAX or self.r.random() < 0.3
        return shell(f"rm -r {q(folder if folder is not None and many else self.file())}")

    def link(self) -> Command:
        file, name = self.file(), f"{self.folder()}/link-{self.number}"
        return shell(f"ln {q(file)} {q(name)} && ln -s {q(file)} {q(name)}.s && ln {q(name)}.s {q(name)}.t")

    def modes(self) -> Command:
        mode = self.r.choice(("600", "644", "755", "4755", "440"))
        return shell(f"chmod {mode} {q(self.file())}; chmod -R o-r {q(self.folder())}")

    def write(self) -> Command:
        """Noise, into the middle of a file or as a new one."""
        size, at = self.r.choice((100, 5000, 300_000, 1_500_000)), self.r.choice((0, 10, 4096, 250_000))
        path = self.file() if self.r.random() < 0.5 else f"data-{self.number}.bin"
        return python(WRITE, path, at, size, self.number)

    def cut(self) -> Command:
        size = self.r.choice(("0", "-500", "<3000", "+2M", "100"))
        return shell(f"truncate -s '{size}' {q(self.file())}")

    def attributes(self) -> Command:
        return python(ATTRIBUTES, self.r.choice([self.file(), *self.folders[:1]]), self.number)

    def commit(self) -> Command:
        return shell(f"git add -A && git commit -qm {self.number} --allow-empty")

    def branch(self) -> Command:
        """What is not committed yet is put aside, and comes back on a branch."""
        return shell(
            f"git stash push -qu; git checkout -qb b{self.number} && git commit -q --allow-empty -m {self.number};"
            f" git stash pop -q; git checkout -q main; git status -s >/dev/null"
        )

    def discard(self) -> Command:
        if self.r.random() < 0.7:
            return shell("git gc -q --prune=now")
        return shell(
            "git update-index -q --refresh; git checkout -q -- . && git clean -qfd"
        )  # by contents, not by times

    def database(self) -> Command:
        return python(DATABASE, "notes.db", self.number)

    def build(self) -> Command:
        program = shlex.quote(PROGRAM.replace("NUMBER", str(self.number)))
        if shutil.which("cc") is None:
            return shell(f"mkdir -p build; printf %s {program} > build/p.c")
        return shell(f"mkdir -p build; printf %s {program} > build/p.c; cc -O1 -o build/p build/p.c && build/p")

    def archive(self) -> Command:
        folder = self.small_folder()
        if folder is None or len(self.tree) > FILES_MAX:
            return self.remove()
        return shell(
            f"tar -cf a.tar --sort=name --mtime=@0 --exclude=a.tar {q(folder)} && mkdir -p untar-{self.number} &&"
            f" tar -xf a.tar -C untar-{self.number} && rm a.tar"
        )

    def fifo(self) -> Command:
        return shell(f"mkfifo {q(f'{self.folder()}/fifo-{self.number}')}; mkdir -m 1777 sticky-{self.number}")

    def fail(self) -> Command:
        return shell(f"echo {self.number} >> {q(self.file())}; exit 7")

    def nothing(self) -> Command:
        return shell("ls -lR >/dev/null; touch f; rm f; exit 3")

    def forked(self, path: str) -> tuple[str, str]:
        """What a fork does: to a file that is there, and to one that it makes; `TZFS_FORK` tells them apart."""
        change = self.r.choice(("sed -i '1i # fork '$TZFS_FORK {}", 'echo "# fork $TZFS_FORK" >> {}'))
        return change.format(q(path)), f'echo "$TZFS_FORK" > "forked-{self.number}-$TZFS_FORK"'

    def edit_of(self, path: str) -> Command:
        return shell(f"echo '# {self.number}' >> {q(path)}; sed -i 's/^import/import  /' {q(path)}")


def q(path: str) -> str:
    """A path below the working directory, which no tool takes for an option, as a word of the shell's."""
    return shlex.quote(f"./{path}")


KINDS: Final[tuple[Callable[[Drawing], Command], ...]] = (
    Drawing.edit,
    Drawing.edit,
    Drawing.edit_several,
    Drawing.append,
    Drawing.make,
    Drawing.copy,
    Drawing.move,
    Drawing.replace,
    Drawing.remove,
    Drawing.link,
    Drawing.modes,
    Drawing.write,
    Drawing.write,
    Drawing.cut,
    Drawing.attributes,
    Drawing.commit,
    Drawing.commit,
    Drawing.branch,
    Drawing.discard,
    Drawing.database,
    Drawing.build,
    Drawing.archive,
    Drawing.fifo,
    Drawing.fail,
    Drawing.nothing,
)
