"""Steps of the model's world that change how new contents are stored, and contents that compress in every way."""

from __future__ import annotations

import random
from dataclasses import replace

from tzfs.engine.compression import Compression
from tzfs.engine.engine import Engine, Settings

COMPRESSING_WEIGHTS = {"compression": 4}
NAMES = ("off", "lz4", "zstd", "zstd-1", "zstd-9")
CHUNK_SHIFTS = (12, 12, 14, 15)


def contents(size: int, number: int) -> bytes:
    """`size` bytes that compress to next to nothing, to a half, hardly, or not at all."""
    noise = random.Random(number).randbytes((0, 0, 0, size // 2, size - size // 9, size)[number % 6])
    return noise + bytes([1 + number % 255]) * (size - len(noise))


class Compressing:
    """What `World` needs beside; `settings` are those that every engine it opens has."""

    engine: Engine
    settings: Settings

    def do_compression(self, a: int, b: int, c: int, d: int) -> None:
        compression, shift = Compression.named(NAMES[a % len(NAMES)]), CHUNK_SHIFTS[b % len(CHUNK_SHIFTS)]
        self.settings = replace(self.settings, compression=compression, chunk_shift=shift)
        self.engine.configure(replace(self.engine.settings, compression=compression, chunk_shift=shift))
