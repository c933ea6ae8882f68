"""SQLite: processes write to one database at the same time, in WAL mode and with a rollback journal; none is lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.tools.programs import TIMEOUT_S, environment

WRITERS = 3
TRANSACTIONS = 60

WRITER = """
import sqlite3, sys
path, writer, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection = sqlite3.connect(path, timeout=120, isolation_level=None)
for number in range(count):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (writer, number, bytes([writer]) * (number * 97 % 9000)))
    connection.execute("UPDATE total SET entries = entries + 1")
    connection.execute("COMMIT")
connection.close()
"""
READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
seen = 0
while seen < int(sys.argv[2]):
    connection.execute("BEGIN")
    (entries,) = connection.execute("SELECT count(*) FROM entry").fetchone()
    (total,) = connection.execute("SELECT entries FROM total").fetchone()
    connection.execute("COMMIT")
    assert entries == total >= seen, (entries, total, seen)
    seen = total
"""


def _write_together(path: Path, journal: str) -> None:
    with closing(sqlite3.connect(path, timeout=120)) as connection:
        (mode,) = connection.execute(f"PRAGMA journal_mode={journal}").fetchone()
        assert mode == journal, f"SQLite refused journal mode {journal}: it is {mode}"
        connection.executescript(
            "CREATE TABLE entry (writer INTEGER, number INTEGER, content BLOB, PRIMARY KEY (writer, number));"
            "CREATE TABLE total (entries INTEGER); INSERT INTO total VALUES (0);"
        )
    commands = [[sys.executable, "-c", WRITER, str(path), str(w), str(TRANSACTIONS)] for w in range(WRITERS)]
    commands.append([sys.executable, "-c", READER, str(path), str(WRITERS * TRANSACTIONS)])
    processes = [subprocess.Popen(c, env=environment(path.parent), stderr=subprocess.PIPE, text=True) for c in commands]
    failures = []
    for process in processes:
        _, error = process.communicate(timeout=TIMEOUT_S)
        if process.returncode:
            failures.append(error)
    assert not failures, failures
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT entries FROM total").fetchone() == (WRITERS * TRANSACTIONS,)
        assert connection.execute(
            "SELECT count(*), sum(length(content)), count(DISTINCT writer) FROM entry"
        ).fetchone() == (WRITERS * TRANSACTIONS, WRITERS * sum(n * 97 % 9000 for n in range(TRANSACTIONS)), WRITERS)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("DELETE FROM entry WHERE number % 2")
        connection.commit()
        connection.execute("VACUUM")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name], "journals are gone when it is closed"


def scenario(directory: Path) -> None:
    """Concurrent writers and a reader in each journal mode."""
    for journal in ("wal", "delete", "truncate"):
        folder = directory / journal
        folder.mkdir()
        _write_together(folder / "database", journal)
