"""What the tests of the catalog share: formatters, a clock, and the code of other processes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tzfs.catalog import Catalog
from tzfs.format.keys import Table
from tzfs.store.lmdb_store import LmdbMeta

FORMATTED: Final = b"formatted"


def format_tables(folder: Path, guid: bytes) -> None:
    """A formatter that leaves tables with one row in them."""
    meta = LmdbMeta(folder / "meta", create=True)
    try:
        txn = meta.begin_write()
        txn.put(Table.SYS, FORMATTED, guid)
        txn.commit()
    finally:
        meta.close()


def guid_in(folder: Path) -> bytes | None:
    """What `format_tables` left there."""
    meta = LmdbMeta(folder / "meta", readonly=True)
    try:
        txn = meta.begin_read()
        try:
            return txn.get(Table.SYS, FORMATTED)
        finally:
            txn.close()
    finally:
        meta.close()


def ticking() -> Callable[[], int]:
    """A clock that gives 1,000 s, 1,001 s, ... in nanoseconds."""
    seconds = itertools.count(1000)
    return lambda: next(seconds) * 1_000_000_000


def tree(root: Path) -> list[str]:
    """Every path below `root`, relative, sorted; links are not followed."""
    found = []
    for directory, folders, files in os.walk(root):
        found += [os.path.relpath(os.path.join(directory, name), root) for name in folders + files]
    return sorted(found)


def folders(root: Path) -> list[str]:
    """The filesystems' folders in a store."""
    return sorted(os.listdir(root / "fs"))


def numbers(catalog: Catalog) -> list[str]:
    """The folders that the catalog knows."""
    return sorted(info.folder.name for info in catalog.list())


# Run by `tests.store.stores.python`: STORE COMMAND ARGUMENT...; prints the error's class, or "done".
COMMAND: Final = """
import sys
from tests.catalog.stores import format_tables
from tzfs.catalog import Catalog
from tzfs.errors import TzfsError

store, command, *arguments = sys.argv[1:]
try:
    with Catalog.open(store) as catalog:
        if command == "create":
            catalog.create(*arguments, formatter=format_tables)
        elif command == "set":
            catalog.set_property(*arguments)
        elif command != "open":
            getattr(catalog, command)(*arguments)
except TzfsError as error:
    print(type(error).__name__)
else:
    print("done")
"""
