"""What is timed, and the client process that does it: `python -m benchmarks.workloads`.

A row is one thing done many times in a directory.  The client reads jobs from stdin and writes answers to stdout, each
a line of JSON, so that the driver can go round all targets row by row while each client's state stays where it is.
The timing loops are here, in the client, and do nothing but system calls of `os`.

Rows come in order and build on each other: `create` makes the files that `stat cold` looks at and `unlink` removes.
`needs` names what a row builds on; the driver runs those first, whether they are asked for or not.

`cold` means that the kernel's dentries, inodes and pages have been dropped; what a daemon caches is its own affair.
`warm` means that the same was done once before, untimed: other targets drop the caches of all in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
PAGE: Final = bytes(range(256)) * 16
MIB: Final = 1 << 20
# No row may depend on who runs it or on what is in that user's configuration.
GIT: Final = ["git", "-c", "safe.directory=*", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
GIT_ENVIRONMENT: Final = {**os.environ, "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass(frozen=True, slots=True)
class Job:
    """One row in one directory; `tree` is a tar file with a real tree in it."""

    row: str
    directory: str
    files: int
    mib: int
    tree: str

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def names(self, prefix: str = "f") -> list[str]:
        return [self.path(f"d/{prefix}{number:06}") for number in range(self.files)]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the report.  Times are `us`, `ms` or `s` (lower is better), rates `MiB/s` (higher is better)."""

    name: str
    unit: str
    run: Callable[[Job], float]
    needs: tuple[str, ...] = ()
    durable: bool = False  # it waits for the disk, which an empty filesystem does not: no ratio to that
    cold: bool = False  # it drops the kernel's caches, which only root may

    @property
    def is_rate(self) -> bool:
        return self.unit == "MiB/s"


def drop(what: int) -> None:
    """Drop the kernel's clean caches: 1 pages, 2 dentries and inodes, 3 both."""
    os.sync()
    DROP_CACHES.write_text(str(what))


def settle(directory: str) -> None:
    """Let a daemon work off what the kernel told it (FORGET, RELEASE) before the next row is timed."""
    for _ in range(100):
        os.statvfs(directory)


def each_us(begun: float, count: int) -> float:
    return (time.perf_counter() - begun) / count * 1e6


def seconds(command: list[str], *, cwd: str, environment: dict[str, str] | None = None) -> float:
    begun = time.perf_counter()
    subprocess.run(command, cwd=cwd, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def create(job: Job) -> float:
    os.mkdir(job.path("d"))
    names = job.names()
    begun = time.perf_counter()
    for name in names:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, PAGE)
        os.close(fd)
    return each_us(begun, len(names))


def stat_cold(job: Job) -> float:
    names = job.names()
    random.Random(1).shuffle(names)
    drop(2)
    settle(job.directory)
    begun = time.perf_counter()
    for name in names:
        os.stat(name)
    return each_us(begun, len(names))


def readdir_stat(job: Job) -> float:
    drop(2)
    settle(job.directory)
    begun = time.perf_counter()
    with os.scandir(job.path("d")) as entries:
        found = [entry.stat(follow_symlinks=False).st_size for entry in entries]
    took = each_us(begun, job.files)
    if found != [len(PAGE)] * job.files:
        raise RuntimeError(f"{len(found)} files found, or of a wrong size, instead of {job.files}")
    return took


def open_read_cold(job: Job) -> float:
    drop(3)
    settle(job.directory)
    return open_read(job)


def open_read_warm(job: Job) -> float:
    open_read(job)
    return open_read(job)


def open_read(job: Job) -> float:
    names = job.names()
    begun = time.perf_counter()
    for name in names:
        fd = os.open(name, os.O_RDONLY)
        if os.read(fd, 8192) != PAGE:
            raise RuntimeError(f"{name} does not hold what was written")
        os.close(fd)
    return each_us(begun, len(names))


def overwrite(job: Job) -> float:
    names = job.names()
    begun = time.perf_counter()
    for name in names:
        fd = os.open(name, os.O_WRONLY)
        os.pwrite(fd, PAGE, 0)
        os.close(fd)
    return each_us(begun, len(names))


def rename(job: Job) -> float:
    pairs = list(zip(job.names(), job.names("r"), strict=True))
    begun = time.perf_counter()
    for old, new in pairs:
        os.rename(old, new)
    return each_us(begun, len(pairs))


def unlink(job: Job) -> float:
    names = job.names("r")
    begun = time.perf_counter()
    for name in names:
        os.unlink(name)
    return each_us(begun, len(names))


def mkdir(job: Job) -> float:
    names = job.names("m")
    begun = time.perf_counter()
    for name in names:
        os.mkdir(name)
    return each_us(begun, len(names))


def create_fsync(job: Job) -> float:
    os.mkdir(job.path("y"))
    # So many that it does not matter what a commit of the rows before still costs the first of them.
    names = [job.path(f"y/{number}") for number in range(max(job.files // 4, 10))]
    begun = time.perf_counter()
    for name in names:
        fd = os.open(name, os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, PAGE)
        os.fsync(fd)
        os.close(fd)
    return each_us(begun, len(names))


def sequential_write(job: Job) -> float:
    block = random.Random(2).randbytes(MIB)
    begun = time.perf_counter()
    fd = os.open(job.path("big"), os.O_CREAT | os.O_WRONLY, 0o644)
    for _ in range(job.mib):
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)
    return job.mib / (time.perf_counter() - begun)


def sequential_read_cold(job: Job) -> float:
    drop(3)
    settle(job.directory)
    return sequential_read(job)


def sequential_read_warm(job: Job) -> float:
    sequential_read(job)
    return sequential_read(job)


def sequential_read(job: Job) -> float:
    buffer = bytearray(MIB)
    begun = time.perf_counter()
    fd = os.open(job.path("big"), os.O_RDONLY)
    total = 0
    while count := os.readv(fd, [buffer]):
        total += count
    took = time.perf_counter() - begun
    os.close(fd)
    if total != job.mib * MIB:
        raise RuntimeError(f"{total} bytes read instead of {job.mib * MIB}")
    return job.mib / took


def small_writes(job: Job) -> float:
    """What a linker does: many small writes to places it has also read, in one file."""
    places = random.Random(3)
    count = job.files
    fd = os.open(job.path("linked"), os.O_CREAT | os.O_RDWR, 0o644)
    os.write(fd, bytes(4 * MIB))
    begun = time.perf_counter()
    for _ in range(count):
        at = places.randrange(0, 4 * MIB - 64)
        os.pread(fd, 64, at)
        os.pwrite(fd, b"\x5a" * 64, at)
    took = each_us(begun, count)
    os.close(fd)
    return took


def sqlite(job: Job) -> float:
    """Small transactions in WAL mode, each synced at the checkpoint only, as SQLite's `synchronous=normal` does."""
    transactions = max(job.files // 4, 20)
    with contextlib.closing(sqlite3.connect(job.path("rows.db"), isolation_level=None)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = normal")
        database.execute("create table row (id integer primary key, text blob)")
        begun = time.perf_counter()
        for number in range(transactions):
            database.execute("begin")
            for part in range(5):
                database.execute("insert into row values (?, ?)", (number * 5 + part, PAGE[:500]))
            database.execute("commit")
        return each_us(begun, transactions)


def untar(job: Job) -> float:
    return seconds(["tar", "xf", job.tree, "--no-same-owner"], cwd=job.directory)


def git_status_first(job: Job) -> float:
    """After untar nothing matches git's index: it reads every file."""
    return git_status(job)


def git_status(job: Job) -> float:
    return seconds([*GIT, "status", "--porcelain"], cwd=job.path("tree"), environment=GIT_ENVIRONMENT)


def git_status_cold(job: Job) -> float:
    drop(3)
    settle(job.directory)
    return git_status(job)


def git_status_warm(job: Job) -> float:
    git_status(job)
    return git_status(job)


def git_commit(job: Job) -> float:
    with open(job.path("tree/a new file"), "xb") as file:
        file.write(PAGE)
    took = seconds([*GIT, "add", "-A"], cwd=job.path("tree"), environment=GIT_ENVIRONMENT)
    return took + seconds([*GIT, "commit", "-qm", "one more"], cwd=job.path("tree"), environment=GIT_ENVIRONMENT)


def copy_tree(job: Job) -> float:
    return seconds(["cp", "-r", "tree", "copy"], cwd=job.directory)


def remove_tree(job: Job) -> float:
    return seconds(["rm", "-r", "copy"], cwd=job.directory)


ROWS: Final = (
    Row("create+write+close 4K", "us", create),
    Row("stat cold", "us", stat_cold, needs=("create+write+close 4K",), cold=True),
    Row("readdir+stat cold", "us", readdir_stat, needs=("create+write+close 4K",), cold=True),
    Row("open+read cold", "us", open_read_cold, needs=("create+write+close 4K",), cold=True),
    Row("open+read warm", "us", open_read_warm, needs=("create+write+close 4K",)),
    Row("overwrite 4K", "us", overwrite, needs=("create+write+close 4K",)),
    Row("rename", "us", rename, needs=("create+write+close 4K",)),
    Row("unlink", "us", unlink, needs=("create+write+close 4K", "rename")),
    Row("mkdir", "us", mkdir, needs=("create+write+close 4K",)),
    Row("create+fsync", "us", create_fsync, durable=True),
    Row("sequential write+fsync", "MiB/s", sequential_write, durable=True),
    Row("sequential read cold", "MiB/s", sequential_read_cold, needs=("sequential write+fsync",), cold=True),
    Row("sequential read warm", "MiB/s", sequential_read_warm, needs=("sequential write+fsync",)),
    Row("small writes (linking)", "us", small_writes),
    Row("sqlite transaction", "us", sqlite),
    Row("untar", "s", untar),
    Row("git status, first", "s", git_status_first, needs=("untar",)),
    Row("git status cold", "s", git_status_cold, needs=("untar", "git status, first"), cold=True),
    Row("git status warm", "s", git_status_warm, needs=("untar", "git status, first")),
    Row("git add+commit", "s", git_commit, needs=("untar", "git status, first"), durable=True),
    Row("cp -r", "s", copy_tree, needs=("untar",)),
    Row("rm -r", "s", remove_tree, needs=("untar", "cp -r")),
)


def serve() -> None:
    """Read jobs, answer with `{"value": ...}` or `{"error": ...}`; the row `clear` empties the directory."""
    rows = {row.name: row for row in ROWS}
    for line in sys.stdin:
        job = Job(**json.loads(line))
        answer: dict[str, float | str]
        try:
            if job.row == "clear":
                shutil.rmtree(job.directory, ignore_errors=True)
                answer = {"value": 0.0}
            else:
                os.makedirs(job.directory, exist_ok=True)
                os.sync()  # what other targets left dirty must not be written in this one's time
                answer = {"value": rows[job.row].run(job)}
        except (OSError, RuntimeError, sqlite3.Error, subprocess.SubprocessError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


class Client:
    """The driver's side of a client process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workloads"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Job) -> float:
        """The row's figure; RuntimeError if the row failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(asdict(job)), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with {self.process.wait()}")
        answer = cast(dict[str, float | str], json.loads(line))
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return float(answer["value"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


if __name__ == "__main__":
    serve()
