"""The fixtures that more than one folder of tests uses: `place` and `root`, and how tests say what they need.

A test that asks for `place` (or `root`, a fresh directory in it) runs once in every mode of `tests.places`.  With
`@pytest.mark.needs(...)` it names what it cannot do without; runs that do not offer it are deselected, and pytest says
how many were: `root` or `ordinary` (who runs the suite), `others` (a place that more than one user may enter), `xattr`,
`mount` (not the local disk), `images` (read-only images of the place: of the disk only root can make them).
`@pytest.mark.modes(...)` names the modes worth its time.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.places import MODES, Mode, Place, remove_tree, stand

_numbers = itertools.count(1)
NEEDS: Final = frozenset({"root", "ordinary", "others", "xattr", "mount", "images"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--places",
        default=",".join(m.name for m in MODES),
        help="run the suites that work on a directory only in these modes: %(default)s",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background with these ignored, `nohup` with the first; children would inherit it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    config.addinivalue_line("markers", f"needs(*what): only where this is to be had: {', '.join(sorted(NEEDS))}")
    config.addinivalue_line("markers", "modes(*names): only in these modes of tests.places")


def pytest_report_header(config: pytest.Config) -> str:
    return f"places: {config.getoption('--places')}; as uid {os.geteuid()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        wanted = str(metafunc.config.getoption("--places")).split(",")
        unknown = set(wanted) - {m.name for m in MODES}
        if unknown:
            raise pytest.UsageError(f"--places: there is no mode {', '.join(sorted(unknown))}")
        modes = [m for m in MODES if m.name in wanted]
        metafunc.parametrize("place", modes, ids=[m.name for m in modes], indirect=True, scope="session")


def _offered(mode: Mode | None, need: str) -> bool:
    if need == "root":
        return os.geteuid() == 0
    if need == "ordinary":
        return os.geteuid() != 0
    assert mode is not None, f"needs({need!r}) is about a place, and the test asks for none"
    return {
        "others": mode.others_may_enter,
        "xattr": mode.keeps_xattrs,
        "mount": mode.tzfs,
        "images": mode.tzfs or os.geteuid() == 0,
    }[need]


def _wanted(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    mode = callspec.params.get("place") if callspec is not None else None
    needs = [need for mark in item.iter_markers("needs") for need in mark.args]
    assert set(needs) <= NEEDS, f"{item.nodeid}: no such need: {set(needs) - NEEDS}"
    modes = [name for mark in item.iter_markers("modes") for name in mark.args]
    assert set(modes) <= {m.name for m in MODES}, f"{item.nodeid}: no such mode among {modes}"
    return all(_offered(mode, need) for need in needs) and (not modes or mode is None or mode.name in modes)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if _wanted(item)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where the test runs; it stands for all tests of one mode."""
    with stand(request.param) as standing:
        yield standing


@pytest.fixture
def root(place: Place) -> Iterator[Path]:
    """A fresh, empty directory, 0755, of whoever runs the suite; removed at the end, and the mount must be alive."""
    umask = os.umask(0o022)
    directory = place.directory / f"t{next(_numbers)}"
    directory.mkdir()
    try:
        yield directory
    finally:
        os.umask(umask)
        place.assert_alive()
    remove_tree(directory)
