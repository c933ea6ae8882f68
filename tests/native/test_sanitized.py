"""The C under the address and undefined-behaviour sanitizers, and compiled with every warning an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.native import sanitize


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("sanitize") / "driver"
    sanitize.build(program)
    return program


def test_no_function_reads_or_writes_beyond_its_buffers(driver: Path) -> None:
    done = sanitize.run(driver)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_read_beyond_a_buffer_would_have_been_noticed(driver: Path) -> None:
    done = sanitize.run(driver, "overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_the_driver_calls_every_function_that_is_declared() -> None:
    text = "".join(path.read_text() for path in sanitize.DRIVERS)
    declared = {
        name for path in sanitize.SOURCES.glob("*.cdef") for name in re.findall(r"\b(tzfs_\w+)\(", path.read_text())
    }
    assert len(declared) >= 16
    assert {name for name in declared if f"{name}(" not in text} == set()
