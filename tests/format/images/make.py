"""Makes the frozen image of the present format: `python -m tests.format.images.make TARGET.tar.gz`.

An image is made once, when a format is new, and never again: `tests/format/test_image.py` holds every later tzfs to
what is in it.  Of what the tables can hold it has an example each, left as a crash leaves it: with a file that was
unlinked while open, a removed file whose chunks are not reclaimed yet, and extents that wait to be punched.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import tempfile
from itertools import count
from pathlib import Path

from tzfs import limits
from tzfs.catalog import Catalog
from tzfs.engine.engine import Engine, Settings
from tzfs.format.keys import ROOT
from tzfs.lifecycle import Command
from tzfs.opening import format_filesystem
from tzfs.store.lmdb_store import LmdbMeta
from tzfs.store.segments import Segments

CHUNK = 1 << 12  # the smallest, so that small files have many
REGULAR, DIRECTORY, FIFO, CHARACTER = 0o100000, 0o040000, 0o010000, 0o020000


def pattern(length: int, seed: int) -> bytes:
    """Bytes that tell in which page of which file they are, and compress well."""
    return b"".join(b"%08x%08x" % (seed, page) * 256 for page in range(length // 4096 + 1))[:length]


def fill(engine: Engine) -> None:
    """What the image holds; `test_image.py` says it again, independently."""
    wide = engine.mkdir(ROOT, b"wide", 0o755, uid=1000, gid=100)
    for i in range(40):
        engine.mknod(wide.ino, b"f%02d" % i, REGULAR | 0o644, uid=1000, gid=100)
    small = engine.mknod(ROOT, b"small.txt", REGULAR | 0o644, uid=1000, gid=100)
    engine.write(small.ino, 0, b"first\n")
    large = engine.mknod(ROOT, b"large.bin", REGULAR | 0o600, uid=0, gid=0)
    engine.write(large.ino, 0, pattern(5 * CHUNK + 100, 1))
    sparse = engine.mknod(ROOT, b"sparse", REGULAR | 0o640, uid=0, gid=0)
    engine.write(sparse.ino, 1 << 20, b"end")
    engine.symlink(ROOT, b"to-small", b"small.txt", uid=0, gid=0)
    engine.link(small.ino, wide.ino, b"hard")
    engine.mknod(ROOT, b"pipe", FIFO | 0o622, uid=0, gid=0)
    engine.mknod(ROOT, b"null", CHARACTER | 0o666, uid=0, gid=0, rdev=0x103)
    engine.setxattr(small.ino, b"user.short", b"v")
    engine.setxattr(large.ino, b"user.long", pattern(5000, 2))
    engine.mknod(ROOT, b"\xff\xfe not utf-8", REGULAR | 0o400, uid=0, gid=0)
    gone = engine.mknod(ROOT, b"gone-later", REGULAR | 0o644, uid=0, gid=0)
    engine.write(gone.ino, 0, pattern(100 * CHUNK, 3))
    engine.snapshot("first", {"agent:run": "1"})

    engine.write(small.ino, 0, b"second")
    engine.write(large.ino, CHUNK + 10, b"overwritten")
    engine.unlink(wide.ino, b"f00")
    engine.rename(wide.ino, b"f01", ROOT, b"moved")
    engine.unlink(ROOT, b"gone-later")
    engine.setattr(wide.ino, mode=0o2775)
    engine.setxattr(small.ino, b"user.short", b"w")
    engine.snapshot("second é")

    kept = engine.mknod(ROOT, b"open-while-unlinked", REGULAR | 0o644, uid=0, gid=0)
    engine.write(kept.ino, 0, b"kept until forgotten")
    brief = engine.mknod(ROOT, b"brief", REGULAR | 0o644, uid=0, gid=0)
    engine.write(brief.ino, 0, pattern(100 * CHUNK, 4))
    rewritten = engine.mknod(ROOT, b"rewritten", REGULAR | 0o644, uid=0, gid=0)
    engine.write(rewritten.ino, 0, pattern(3 * CHUNK, 5))
    engine.commit()
    engine.write(rewritten.ino, 0, pattern(3 * CHUNK, 6))
    engine.commit()
    engine.referenced = lambda ino: ino == kept.ino
    engine.unlink(ROOT, b"open-while-unlinked")
    engine.write(kept.ino, 0, b"KEPT")
    engine.unlink(ROOT, b"brief")
    engine.write(large.ino, 0, b"head")
    engine.setattr(sparse.ino, size=1 << 19)
    engine.commit()
    engine.abandon()


def make(store: Path) -> None:
    """A store with the filesystem `ws`, as above, and an empty one, archived, in a namespace."""
    catalog = Catalog.open(store, create=True)
    try:
        catalog.create("ws", formatter=lambda path, guid: format_filesystem(path, guid, uid=0, gid=0))
        catalog.create("agents/old", formatter=lambda path, guid: format_filesystem(path, guid, uid=0, gid=0))
        catalog.set_property("ws", "agent:task", "frozen")
        catalog.archive("agents/old")
        info, lease = catalog.acquire("ws", info={"kind": "image"}, command=Command.OPEN)
        meta = LmdbMeta(info.folder / "meta")
        payload = Segments(info.folder / "segments", guid=bytes.fromhex(info.guid))
        times = count(1_700_000_000_000_000_000, 1_000_000_007)
        settings = Settings(chunk_shift=limits.CHUNK_SHIFT_MIN)
        fill(Engine(meta, payload, settings=settings, clock=lambda: next(times)))
        payload.close()
        meta.close()
        lease.release()
    finally:
        catalog.close()


def pack(store: Path, target: Path) -> None:
    """The store as a compressed archive: names, modes and bytes, and nothing of the machine it was made on."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(store.rglob("*")):
            if path.name == "lock.mdb":
                continue  # LMDB's locks mean nothing once every process has closed
            member = archive.gettarinfo(path, str(path.relative_to(store)))
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            archive.addfile(member, path.open("rb") if path.is_file() else None)
    target.write_bytes(gzip.compress(raw.getvalue(), 9, mtime=0))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tzfs-image-") as folder:
        make(Path(folder))
        pack(Path(folder), Path(sys.argv[1]))
