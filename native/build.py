"""Builds `tzfs.native._native`: every C file in `src/`, and of each `.cdef` what Python may call.

`setup.py` names `ffibuilder`; `pip install -e .` builds it in place.
"""

from __future__ import annotations

import os
from pathlib import Path

import cffi

SOURCES = Path(__file__).resolve().parent / "src"
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wno-unused-parameter"]

ffibuilder = cffi.FFI()
modules = sorted(path.stem for path in SOURCES.glob("*.cdef"))
for module in modules:
    ffibuilder.cdef((SOURCES / f"{module}.cdef").read_text())
ffibuilder.set_source(
    "tzfs.native._native",
    "".join(f'#include "{module}.h"\n' for module in modules),
    sources=[os.path.relpath(path) for path in sorted(SOURCES.glob("*.c"))],
    include_dirs=[str(SOURCES)],
    depends=[os.path.relpath(path) for path in sorted(SOURCES.glob("*.h"))],
    extra_compile_args=["-O2", "-std=gnu11", "-Werror", *WARNINGS],
    libraries=["dl", "lz4", "zstd"],
)
