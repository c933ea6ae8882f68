"""tzfs: a filesystem for agent workspaces, with live snapshots.

    import tzfs

    with tzfs.open_store() as store:
        store.create("agent-1")
        with store.open("agent-1") as fs:
            fs.write_text("report.md", "draft\\n")
            fs.snapshot("before")
            fs.write_text("report.md", "final\\n")
        with store.open_snapshot("agent-1@before") as then:
            print(then.read_text("report.md"))

`Store` has the verbs of the command line; `FileSystem` is one filesystem open for writing, `SnapshotView` a snapshot.
No mount and no FUSE are needed.  Every error is a `TzfsError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tzfs import errors
    from tzfs.applying import Applied, apply
    from tzfs.catalog import FilesystemInfo
    from tzfs.checking import Checked
    from tzfs.collecting import Collected
    from tzfs.destroying import Destruction, destroy
    from tzfs.engine.check.problems import Problem, Progress
    from tzfs.engine.diff import Difference
    from tzfs.engine.history import FileVersion
    from tzfs.errors import TzfsError
    from tzfs.filesystem import FileSystem
    from tzfs.journal import Logged, log
    from tzfs.management import MountStatus, SnapshotInfo, Store, open_store
    from tzfs.receiving import Received, receive
    from tzfs.remembering import Undone, undo
    from tzfs.sending import send
    from tzfs.streams import Sent
    from tzfs.tree import SnapshotView, Stat

__all__ = [
    "Applied",
    "Checked",
    "Collected",
    "Destruction",
    "Difference",
    "FileSystem",
    "FileVersion",
    "FilesystemInfo",
    "Logged",
    "MountStatus",
    "Problem",
    "Progress",
    "Received",
    "Sent",
    "SnapshotInfo",
    "SnapshotView",
    "Stat",
    "Store",
    "TzfsError",
    "Undone",
    "apply",
    "destroy",
    "errors",
    "log",
    "open_store",
    "receive",
    "send",
    "undo",
]
__version__ = "0.1.0"

_HOMES: Final = {
    "Applied": "applying",
    "Checked": "checking",
    "Collected": "collecting",
    "Destruction": "destroying",
    "Difference": "engine.diff",
    "FileSystem": "filesystem",
    "FileVersion": "engine.history",
    "FilesystemInfo": "catalog",
    "Logged": "journal",
    "MountStatus": "management",
    "Problem": "engine.check.problems",
    "Progress": "engine.check.problems",
    "Received": "receiving",
    "Sent": "streams",
    "SnapshotInfo": "management",
    "SnapshotView": "tree",
    "Stat": "tree",
    "Store": "management",
    "TzfsError": "errors",
    "Undone": "remembering",
    "apply": "applying",
    "destroy": "destroying",
    "log": "journal",
    "open_store": "management",
    "receive": "receiving",
    "send": "sending",
    "undo": "remembering",
}


def __getattr__(name: str) -> Any:
    """Loads what is asked for, and no more: a command of the line needs a part of the library, and starts each time."""
    if name == "errors":
        return import_module("tzfs.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'tzfs' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"tzfs.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
