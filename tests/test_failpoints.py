"""The failpoints themselves: armed, they do what they are told, once; unarmed, nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tzfs import failpoints
from tzfs.errors import InternalError, UsageError

POINT = failpoints.declare("test.point", "used by the tests of failpoints")
OTHER = failpoints.declare("test.other", "likewise")
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm_all()


def test_unarmed_points_do_nothing() -> None:
    failpoints.hit(POINT)
    failpoints.hit("not even declared")


def test_an_error_is_raised_once_and_names_its_point() -> None:
    failpoints.arm(POINT, "error:ENOSPC")
    with pytest.raises(OSError, match=r"test\.point") as caught:
        failpoints.hit(POINT)
    assert caught.value.errno == errno.ENOSPC
    failpoints.hit(POINT)


def test_only_the_hit_that_was_asked_for_fires() -> None:
    failpoints.arm(POINT, "error:EIO", after=2)
    failpoints.hit(POINT)
    failpoints.hit(OTHER)
    failpoints.hit(POINT)
    with pytest.raises(OSError, match="failpoint"):
        failpoints.hit(POINT)


def test_a_delay_fires_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("tzfs.failpoints.time.sleep", slept.append)
    failpoints.arm(POINT, "delay:0.05")
    failpoints.hit(POINT)
    failpoints.hit(POINT)
    assert slept == [0.05, 0.05]


def test_disarming_takes_everything_back() -> None:
    failpoints.arm(POINT, "error:EIO")
    failpoints.disarm_all()
    failpoints.hit(POINT)


def test_hits_are_counted_in_the_order_they_come() -> None:
    with failpoints.counting() as counts:
        for name in (OTHER, POINT, OTHER):
            failpoints.hit(name)
    failpoints.hit(POINT)
    assert list(counts.items()) == [(OTHER, 2), (POINT, 1)]


@pytest.mark.parametrize(
    "action", ["", "explode", "crash:now", "error", "error:ENOSUCH", "error:errorcode", "delay", "delay:long"]
)
def test_an_action_that_does_not_exist_is_refused(action: str) -> None:
    with pytest.raises(UsageError, match="not a failpoint action"):
        failpoints.arm(POINT, action)


def test_a_point_that_nobody_declared_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no failpoint is named no\.such"):
        failpoints.arm("no.such", "crash")
    with failpoints.counting(), pytest.raises(InternalError, match="not declared"):
        failpoints.hit("no.such")


def test_a_point_is_declared_once() -> None:
    with pytest.raises(InternalError, match="declared twice"):
        failpoints.declare(POINT, "again")


def _run(points: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from tzfs import failpoints as f; f.declare('a', ''); f.declare('b', '')\n"
        "for i in range(5):\n"
        "    print(i, flush=True)\n"
        "    try: f.hit('a')\n"
        "    except OSError as e: print(e.errno, flush=True)\n"
        "    f.hit('b')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, failpoints.ENVIRONMENT: points},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_environment_arms_points_and_a_crash_ends_the_process_at_once() -> None:
    done = _run("a=error:EIO;b=crash@3")
    assert done.returncode == failpoints.CRASH_STATUS
    assert done.stdout.split() == ["0", str(errno.EIO), "1", "2"]


@pytest.mark.parametrize("points", ["a", "=crash", "a=crash@x", "a=nonsense", "a=crash@0"])
def test_a_malformed_environment_is_an_error_not_ignored(points: str) -> None:
    done = _run(points)
    assert done.returncode == 1
    assert "UsageError" in done.stderr


def test_an_empty_environment_arms_nothing() -> None:
    assert _run(";").stdout.split() == ["0", "1", "2", "3", "4"]
