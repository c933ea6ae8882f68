"""What a filesystem remembers of its background tasks: rows `task/<name>` of the table `sys`, JSON.

They come with the next commit, and cost none of their own: after a crash a task may have run once more than it knows.
Fields that a reader does not know are kept by nobody: the next run writes the row anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from tzfs.engine.head import Head
from tzfs.format import records
from tzfs.format.keys import Table
from tzfs.store.interface import ReadTransaction

PREFIX = b"task/"
Fields = Mapping[str, str | int | bool | None]


def read_task_rows(txn: ReadTransaction) -> dict[str, dict[str, object]]:
    """The rows by the task's name; `CorruptionError` for one that is no JSON object."""
    found = {}
    for key, value in txn.range(Table.SYS, PREFIX, PREFIX[:-1] + b"0"):
        body = records.unseal(Table.SYS, key, value)
        fields = None if body is None else records.unpack_json(Table.SYS, key, body)
        if not isinstance(fields, dict):
            raise records.damaged(Table.SYS, key, "not a JSON object")
        found[key[len(PREFIX) :].decode()] = fields
    return found


class TaskRows:
    """The rows of an open head."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def all(self) -> dict[str, dict[str, object]]:
        """What is remembered of each task."""
        self._head.check()
        return read_task_rows(self._head.txn)

    def put(self, name: str, fields: Fields) -> None:
        """Remembers `fields` of the task from the next commit on."""
        head = self._head
        head.check()
        key = PREFIX + name.encode()
        row = records.seal(Table.SYS, key, records.pack_json(dict(fields)))
        head.begin_change()
        head.txn.put(Table.SYS, key, row)
        head.dirty_rows += 1
        head.end_invisible_change()
