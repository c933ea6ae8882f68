"""What a check says: problems, each with the rule that is broken, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tzfs.format.keys import Table


class Rule(StrEnum):
    """The rules, by what each is about.  A problem names the one that is broken."""

    RECORD = "record"  # every value matches its envelope and can be taken apart
    KEY = "key"  # every key has its table's form
    SUPERBLOCK = "superblock"  # there is one, and one row of counters
    ID = "id"  # ids, epochs, txgs and segment numbers are below the counters' next ones
    COUNTER = "counter"  # the counters are what a recount gives
    CELL = "cell"  # so are the cells
    SNAPSHOT = "snapshot"  # no two have one epoch
    VERSION = "version"  # the newest version lives, each other has one death, before the next one's birth
    CHANGE = "change"  # each version has one row in `change`, and each such row its version
    DEADLIST = "deadlist"  # a dead row is charged what it costs, and a snapshot sees what it is about
    INODE = "inode"  # an inode's fields agree with each other
    ENTRY = "entry"  # a directory entry's inode exists, with that type
    NAME = "name"  # entries and inodes name each other
    LINKS = "links"  # nlink is the number of names
    DIRECTORY = "directory"  # size and nlink of a directory are counted from its entries
    CYCLE = "cycle"  # the directories are one tree
    ORPHAN = "orphan"  # an inode without a name is in `orphan`, and the other way round
    ATTRIBUTE = "attribute"  # extended attributes belong to an inode that says so
    OWNER = "owner"  # contents hang on exactly one inode
    CONTENTS = "contents"  # contents are where the inode says, and within its size
    SLICES = "slices"  # slices are ascending, disjoint, within chunk and extent, with their sums
    EXTENT = "extent"  # each lifetime is named by one key, or dead and seen; what is named has its lifetime
    SHARED = "shared"  # extents with two lifetimes have their row in `shared`
    RECLAIM = "reclaim"  # ranges being reclaimed are apart, and nothing in them is newer
    DESTROY = "destroy"  # destroys under way are about a snapshot that is gone
    PLACE = "place"  # extents lie within their segment's committed part, apart from each other
    SEGMENT = "segment"  # a segment's use is what a recount gives, and its file is there
    PUNCH = "punch"  # nothing waits to be punched that lives, or waits twice
    INHERITED = "inherited"  # what a clone does not inherit any more is what a recount gives
    LEAK = "leak"  # what nothing names has been given back, or waits for it
    PAYLOAD = "payload"  # payload matches its sums
    TABLES = "tables"  # the tables can be read


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken rule, and where: a row by table and key; of what is no row, the nearest one."""

    rule: Rule
    table: str
    key: bytes
    words: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.table}/{self.key.hex()}: {self.words}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a check has come: `total` rows are an estimate; payload is counted where it is read."""

    stage: str
    rows: int
    total: int
    payload_bytes: int
    payload_total: int


class Findings:
    """What has been found and not handed out yet; and the counts that `Progress` is made of."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.rows = 0
        self.payload_bytes = 0

    def report(self, rule: Rule, table: Table, key: bytes, words: str) -> None:
        self.problems.append(Problem(rule, table.name.lower(), key, words))

    def take(self) -> list[Problem]:
        taken, self.problems = self.problems, []
        return taken
