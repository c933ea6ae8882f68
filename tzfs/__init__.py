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
