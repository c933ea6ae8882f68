"""Dependencies point one way.  `ROOMS` is the architecture's table; every import of the three folders is held to it.

A room is a module or a package with all that is below it.  A row says which rooms it may use, and may name only rows
above its own, so the table has no way to say a cycle.  An import counts wherever it stands: at the top of a module,
within a function, for the type checker.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).resolve().parent.parent
FOLDERS: Final = {"tzfs": PROJECT / "tzfs", "tzfs.mount": PROJECT / "mount", "tzfs.native": PROJECT / "native"}

_GROUND: Final = ("tzfs.limits", "tzfs.errors", "tzfs.failpoints", "tzfs.native")
_BYTES: Final = (*_GROUND, "tzfs.format")
_STORE: Final = (*_BYTES, "tzfs.store.interface", "tzfs.store")
_NAMES: Final = ("tzfs.names", "tzfs.lifecycle", "tzfs.retention", "tzfs.units", "tzfs.properties", "tzfs.inheritance")
_CATALOG: Final = (*_STORE, *_NAMES, "tzfs.layout")
_CONTROL: Final = ("tzfs.jsonrpc", "tzfs.control", "tzfs.runtime")
_API: Final = (
    *_CATALOG,
    *_CONTROL,
    "tzfs.engine",
    "tzfs.tree",
    "tzfs.filesystem",
    "tzfs.opening",
    "tzfs.flattening",
    "tzfs.checking",
    "tzfs.rolling_back",
    "tzfs.restoring",
    "tzfs.streams",
    "tzfs.tasks",
    "tzfs.collecting",
    "tzfs.space",
)

ROOMS: Final[dict[str, tuple[str, ...]]] = {
    # what everything stands on; it knows nothing of filesystems
    "tzfs.limits": (),
    "tzfs.errors": (),
    "tzfs.failpoints": ("tzfs.errors",),
    "tzfs.native": (),
    # bytes in, values out: no I/O, hence no failpoints
    "tzfs.format": ("tzfs.limits", "tzfs.errors", "tzfs.native"),
    # the interface is all that the engine sees of a store
    "tzfs.store.interface": _BYTES,
    "tzfs.store": (*_BYTES, "tzfs.store.interface"),
    "tzfs.engine": (*_BYTES, "tzfs.store.interface"),
    # texts and rules, without I/O
    "tzfs.names": ("tzfs.limits", "tzfs.errors"),
    "tzfs.lifecycle": ("tzfs.errors",),
    "tzfs.retention": ("tzfs.errors", "tzfs.names"),
    "tzfs.units": ("tzfs.errors",),
    "tzfs.properties": ("tzfs.limits", "tzfs.errors", "tzfs.names", "tzfs.retention", "tzfs.units"),
    "tzfs.inheritance": ("tzfs.properties",),
    # the catalog makes, names and removes filesystems, and never looks into one
    "tzfs.layout": (*_GROUND, "tzfs.store"),
    "tzfs.catalog_rows": (*_BYTES, "tzfs.store.interface", *_NAMES),
    "tzfs.catalog_log": (*_BYTES, "tzfs.store.interface"),
    "tzfs.catalog_session": (*_CATALOG, "tzfs.catalog_rows"),
    "tzfs.transitions": (*_CATALOG, "tzfs.catalog_log", "tzfs.catalog_rows", "tzfs.catalog_session"),
    "tzfs.catalog": (*_CATALOG, "tzfs.catalog_log", "tzfs.catalog_rows", "tzfs.catalog_session", "tzfs.transitions"),
    # talking to whoever has a filesystem mounted
    "tzfs.runtime": ("tzfs.limits", "tzfs.errors", "tzfs.native"),
    "tzfs.jsonrpc": ("tzfs.limits", "tzfs.errors"),
    "tzfs.control": ("tzfs.limits", "tzfs.errors", "tzfs.runtime", "tzfs.jsonrpc"),
    # a clone made independent, here or by whoever has it mounted
    "tzfs.flattening": ("tzfs.errors", "tzfs.jsonrpc", "tzfs.control", "tzfs.engine"),
    # one filesystem as a program sees it: paths over an engine or a view, wherever its bytes are
    "tzfs.tree": (*_BYTES, "tzfs.names", "tzfs.engine"),
    "tzfs.rolling_back": (*_BYTES, "tzfs.engine"),
    "tzfs.restoring": (*_BYTES, "tzfs.engine", "tzfs.tree", "tzfs.rolling_back"),
    "tzfs.streams": (*_BYTES, "tzfs.engine"),
    "tzfs.filesystem": (
        *_BYTES,
        "tzfs.names",
        "tzfs.engine",
        "tzfs.tree",
        "tzfs.rolling_back",
        "tzfs.restoring",
        "tzfs.streams",
        "tzfs.flattening",
    ),
    # an engine put onto the folders of a filesystem
    "tzfs.origins": (*_STORE, "tzfs.layout", "tzfs.engine"),
    "tzfs.opening": (*_STORE, "tzfs.layout", "tzfs.engine", "tzfs.origins"),
    # what all is tested for, here or by whoever has it mounted
    "tzfs.checking": (*_STORE, "tzfs.engine", "tzfs.opening", "tzfs.jsonrpc"),
    # what properties say of space
    "tzfs.space": (*_STORE, "tzfs.engine", *_NAMES),
    # background tasks: when they are due, and what each does with an engine
    "tzfs.schedule": (),
    "tzfs.pruning": (*_BYTES, "tzfs.names", "tzfs.retention"),
    "tzfs.tasks": (
        *_BYTES,
        "tzfs.lifecycle",
        "tzfs.jsonrpc",
        "tzfs.engine",
        "tzfs.schedule",
        "tzfs.pruning",
        "tzfs.space",
        *_NAMES,
    ),
    # how writers share the quota of the store
    "tzfs.ledger": ("tzfs.limits", "tzfs.errors", "tzfs.layout", "tzfs.store", "tzfs.opening"),
    # what properties decide for an engine
    "tzfs.settings": (*_CATALOG, "tzfs.engine", "tzfs.catalog"),
    # who has what open
    "tzfs.status": (*_STORE, *_CONTROL, "tzfs.catalog"),
    "tzfs.dependants": (*_CATALOG, "tzfs.engine", "tzfs.opening", "tzfs.catalog"),
    "tzfs.facts": (
        *_STORE,
        *_NAMES,
        "tzfs.engine",
        "tzfs.catalog",
        "tzfs.ledger",
        "tzfs.opening",
        "tzfs.settings",
        "tzfs.space",
    ),
    "tzfs.collecting": ("tzfs.errors", "tzfs.jsonrpc", "tzfs.tasks"),
    # a filesystem by its lease, or through who has it
    "tzfs.access": (*_API, "tzfs.catalog", "tzfs.dependants", "tzfs.ledger", "tzfs.settings"),
    # the verbs, mounted or not; and what `import tzfs` gives
    "tzfs.management": (
        *_API,
        "tzfs.access",
        "tzfs.catalog",
        "tzfs.catalog_rows",
        "tzfs.dependants",
        "tzfs.facts",
        "tzfs.settings",
        "tzfs.status",
    ),
    "tzfs.marking": (*_API, "tzfs.catalog", "tzfs.management"),
    "tzfs.runs": (*_BYTES, "tzfs.engine"),
    "tzfs.journal": (*_API, "tzfs.access", "tzfs.catalog", "tzfs.management", "tzfs.runs"),
    "tzfs.events": (*_API, "tzfs.access", "tzfs.catalog", "tzfs.management", "tzfs.journal"),
    "tzfs.destroying": (*_API, "tzfs.catalog", "tzfs.dependants", "tzfs.management", "tzfs.marking"),
    "tzfs.time_travel": (*_API, "tzfs.catalog", "tzfs.management", "tzfs.dependants", "tzfs.destroying"),
    "tzfs.policies": (*_API, "tzfs.catalog", "tzfs.management", "tzfs.pruning", "tzfs.destroying"),
    "tzfs.sending": (*_API, "tzfs.catalog", "tzfs.management"),
    "tzfs.receiving": (*_API, "tzfs.catalog", "tzfs.settings", "tzfs.management"),
    "tzfs.patch": (*_BYTES, "tzfs.engine"),
    "tzfs.comparing": (*_API, "tzfs.catalog", "tzfs.management", "tzfs.patch"),
    "tzfs.applying": (*_API, "tzfs.catalog", "tzfs.management"),
    "tzfs.remembering": (
        *_API,
        "tzfs.access",
        "tzfs.catalog",
        "tzfs.management",
        "tzfs.runs",
        "tzfs.time_travel",
        "tzfs.comparing",
    ),
    "tzfs": (
        *_API,
        "tzfs.catalog",
        "tzfs.management",
        "tzfs.applying",
        "tzfs.marking",
        "tzfs.destroying",
        "tzfs.journal",
        "tzfs.remembering",
        "tzfs.sending",
        "tzfs.receiving",
    ),
    "tzfs.mount": (
        *_API,
        "tzfs.catalog",
        "tzfs.journal",
        "tzfs.runs",
        "tzfs.settings",
        "tzfs.management",
        "tzfs.marking",
        "tzfs.applying",
        "tzfs.comparing",
        "tzfs",
    ),
    "tzfs.cli": (
        *_API,
        "tzfs.catalog",
        "tzfs.journal",
        "tzfs.runs",
        "tzfs.remembering",
        "tzfs.events",
        "tzfs.management",
        "tzfs.marking",
        "tzfs.policies",
        "tzfs.time_travel",
        "tzfs.destroying",
        "tzfs.applying",
        "tzfs.comparing",
        "tzfs.sending",
        "tzfs.receiving",
        "tzfs",
        "tzfs.mount",
    ),
}

# Who may use what does not come with Python; whatever is not here, nobody.
OUTSIDE: Final[dict[str, tuple[str, ...]]] = {
    "lmdb": ("tzfs.store.lmdb_environment", "tzfs.store.lmdb_store", "tzfs.store.lmdb_compaction"),
    "trio": ("tzfs.mount",),
    "pyfuse3": ("tzfs.mount",),
    "click": ("tzfs.cli",),
    "rich": ("tzfs.cli",),
    "cffi": ("tzfs.native.build",),
    "xxhash": ("tzfs.native.reference",),
    "_typeshed": ("tzfs.tree", "tzfs.filesystem"),  # the type checker's own
}


@dataclass(frozen=True, slots=True)
class Import:
    """`module`, line `line`, imports `target`; `at_run_time` is False for those that only the type checker makes."""

    module: str
    line: int
    target: str
    at_run_time: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def _modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            if package != "tzfs" or (PROJECT / "tzfs" / parts[0]).resolve() not in FOLDERS.values():
                found[name] = path
    return found


MODULES: Final = _modules()


def _imports(module: str, source: str) -> Iterator[Import]:
    tree = ast.parse(source)
    checked = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.unparse(guard.test)
        for statement in guard.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(module, node.lineno, _resolved(target), node not in checked)


def _resolved(target: str) -> str:
    """The longest part of a dotted name that is a module or room of the project; of another's, its first part."""
    if not target.startswith("tzfs.") and target != "tzfs":
        return target.partition(".")[0]
    while target not in MODULES and target not in ROOMS and "." in target:
        target = target.rpartition(".")[0]
    return target


def _room(module: str) -> str | None:
    """The narrowest room that `module` is in; the room `tzfs` is its `__init__` alone."""
    if module == "tzfs":
        return module
    while module not in ROOMS:
        module = module.rpartition(".")[0]
        if module in ("", "tzfs"):
            return None
    return module


def _wrongs(imports: list[Import]) -> list[str]:
    wrong = []
    for each in imports:
        here = _room(each.module)
        if each.target in sys.stdlib_module_names:
            continue
        if not each.target.startswith("tzfs"):
            users = OUTSIDE.get(each.target, ())
            if not any(each.module == user or each.module.startswith(user + ".") for user in users):
                wrong.append(f"{each}, which only {' and '.join(users) or 'nobody'} may")
            continue
        there = _room(each.target)
        if here is None or there is None:
            wrong.append(f"{each}, and the table has no room for {each.module if here is None else each.target}")
        elif there != here and there not in ROOMS[here]:
            wrong.append(f"{each}: {here} must not use {there}")
    return wrong


ALL_IMPORTS: Final = [i for name, path in MODULES.items() for i in _imports(name, path.read_text())]


def test_no_import_points_up() -> None:
    assert not _wrongs(ALL_IMPORTS), "\n".join(_wrongs(ALL_IMPORTS))


def test_the_table_names_only_rows_above() -> None:
    above: set[str] = set()
    for room, uses in ROOMS.items():
        assert set(uses) <= above, f"{room} names {sorted(set(uses) - above)}, not above it"
        above.add(room)


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    assert [name for name in MODULES if _room(name) is None] == []
    assert set(ROOMS) - {_room(name) for name in MODULES} == set()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in ALL_IMPORTS:
        if each.at_run_time and each.target in MODULES and each.target != each.module:
            graph[each.module].add(each.target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_walk_sees_the_three_folders() -> None:
    assert {"tzfs.errors", "tzfs.format.keys", "tzfs.mount.operations", "tzfs.native.reference"} <= set(MODULES)
    seen = {each.target for each in ALL_IMPORTS}
    assert {"lmdb", "trio", "pyfuse3", "tzfs.native", "tzfs.store.interface"} <= seen


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tzfs.format.keys", "import tzfs.engine.engine"),
        ("tzfs.format.keys", "from tzfs import failpoints"),
        ("tzfs.engine.reads", "from tzfs.store.lmdb_store import LmdbMeta"),
        ("tzfs.engine.reads", "from tzfs.store import segments"),
        ("tzfs.engine.reads", "def late():\n    from tzfs import catalog"),
        ("tzfs.engine.reads", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tzfs.tree import Tree"),
        ("tzfs.engine.reads", "import tzfs"),
        ("tzfs.engine.reads", "from tzfs import open_store"),
        ("tzfs.names", "from tzfs.catalog_rows import FilesystemRecord"),
        ("tzfs.layout", "from tzfs import catalog_session"),
        ("tzfs.catalog", "from tzfs.engine.engine import Engine"),
        ("tzfs.mount.operations", "import tzfs.cli"),
        ("tzfs.management", "from tzfs.mount.daemon import Mount"),
        ("tzfs.store.memory", "import lmdb"),
        ("tzfs.control", "import trio"),
        ("tzfs.filesystem", "from pyfuse3 import FUSEError"),
        ("tzfs.store.lmdb_store", "import requests"),
    ],
)
def test_an_import_that_points_up_is_noticed(module: str, source: str) -> None:
    assert len(_wrongs(list(_imports(module, source)))) == 1


def test_import_tzfs_loads_neither_trio_nor_pyfuse3_nor_the_command_line() -> None:
    program = "import sys, tzfs; print(*sorted({'trio', 'pyfuse3', 'click', 'rich', 'tzfs.mount'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
