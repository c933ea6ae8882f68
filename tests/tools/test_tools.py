"""Real programs do their work on a directory, whatever it stands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import build, git, npm, pip, rsync, sqlite, tar

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.modes("disk", "tzfs", "writeback-xattr"),  # as it is mounted, and with all that a mount may do more
]


def test_git_clones_works_and_checks_in_full(root: Path) -> None:
    git.scenario(root)


def test_npm_installs_an_application_from_the_loopback(root: Path) -> None:
    npm.scenario(root)


def test_pip_installs_into_a_virtual_environment(root: Path) -> None:
    pip.scenario(root)


def test_make_builds_a_c_project_and_rebuilds_what_changed(root: Path) -> None:
    build.scenario(root)


def test_sqlite_keeps_every_transaction_of_concurrent_writers(root: Path) -> None:
    sqlite.scenario(root)


def test_tar_round_trip_of_a_source_tree(root: Path, tmp_path: Path) -> None:
    tar.scenario(root, tmp_path)


def test_rsync_round_trip_of_a_source_tree_has_no_difference(root: Path, tmp_path: Path) -> None:
    rsync.scenario(root, tmp_path)
