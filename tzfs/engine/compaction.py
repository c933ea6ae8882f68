"""Making the tables smaller under an open head.

    begin    everything is committed; what it answers copies the tables, in any thread, while the head goes on
    end      the copy takes their place, between two transactions of which neither has anything in it

What is in memory only, not committed, stays there and is written to the new tables by the next commit.  The copy counts
its commits anew, so the redo log, which refers to them by number, is cleared before.
"""

from __future__ import annotations

from tzfs import failpoints
from tzfs.engine.head import Head
from tzfs.engine.txg import TxgCommitter
from tzfs.store.interface import Compaction

failpoints.declare("compact.begin", "the tables are about to be copied into smaller ones")
failpoints.declare("compact.log", "the copy is made, and the redo log is about to be cleared")
failpoints.declare("compact.done", "the copy is in place; nobody has been told")


class Compactor:
    """Compactions of a head's tables, one at a time."""

    def __init__(self, head: Head, txg: TxgCommitter) -> None:
        self._head, self._txg = head, txg

    def slack(self) -> tuple[int, int]:
        """What the tables take, and how much of it has rows, in bytes."""
        self._head.check()
        return self._head.meta.slack()

    def begin(self) -> Compaction | None:
        """A copy to be run; None where there is never anything to gain."""
        self._head.check()
        failpoints.hit("compact.begin")
        return self._head.meta.compaction()

    def end(self, copy: Compaction) -> None:
        """Puts the copy in place; `Busy` where somebody is in the way.

        An error leaves the tables as they were, or fails the head.
        """
        head = self._head
        head.check()
        failpoints.hit("compact.log")
        self._txg.replace_tables(copy)
        failpoints.hit("compact.done")
