"""What an installation puts where: three folders of the checkout, one package, nothing beside it.

The checkout is copied first, so that building leaves no trace in it.  The environment is a fresh one that sees the
libraries of the present one; nothing is downloaded.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import tzfs
from tzfs.format.superblock import CREATED_BY

PROJECT: Final = Path(__file__).resolve().parent.parent
COPIED: Final = ("tzfs", "mount", "native", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
BUILT: Final = ("*.so", "*.o", "_native.*", "__pycache__", "*.egg-info", "build")


@dataclass(frozen=True, slots=True)
class Installed:
    """`added` is what the installation put into the environment's site-packages, by name."""

    environment: Path
    source: Path
    site: Path
    added: frozenset[str]

    def run(self, program: str) -> str:
        """What a program prints that knows the environment and nothing of the checkout it may be started from."""
        command = [str(self.environment / "bin" / "python"), "-I", "-W", "error", "-c", program]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()


def _copy(target: Path) -> Path:
    target.mkdir()
    for name in COPIED:
        path = PROJECT / name
        if path.is_dir():
            shutil.copytree(path, target / name, symlinks=True, ignore=shutil.ignore_patterns(*BUILT))
        elif path.exists():  # what is missing is for the build to complain about
            shutil.copy2(path, target / name)
    return target


def _archive(source: Path, base: Path) -> Path:
    """The source archive of a checkout."""
    program = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(base)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = base.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module", params=["plain", "editable", "archive"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp(f"install-{request.param}")
    source, environment = _copy(base / "checkout"), base / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "outer.pth").write_text("".join(f"{path}\n" for path in sorted(seen)))
    what = _archive(source, base) if request.param == "archive" else source
    before = {path.name for path in site.iterdir()}
    command = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--ignore-installed"]
    command += ["-e", str(source)] if request.param == "editable" else [str(what)]
    done = subprocess.run(command, cwd=base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    added = {path.name for path in site.iterdir()} - before - {"__pycache__"}
    return Installed(environment, source, site, frozenset(added))


def _editable(installed: Installed) -> bool:
    return not (installed.site / "tzfs").exists()


def test_nothing_but_tzfs_is_put_into_site_packages(installed: Installed) -> None:
    info = {name for name in installed.added if name.startswith("tzfs-") and name.endswith(".dist-info")}
    assert len(info) == 1
    if _editable(installed):
        rest = installed.added - info
        assert {Path(name).suffix for name in rest} <= {".pth", ".py"}
        assert rest
        assert all(name.startswith("__editable__") for name in rest)
    else:
        assert installed.added == info | {"tzfs"}


@pytest.mark.parametrize("module", ["tzfs", "tzfs.native", "tzfs.native._native", "tzfs.mount", "tzfs.format.records"])
def test_the_three_folders_are_one_package(installed: Installed, module: str) -> None:
    where = installed.run(f"import importlib; print(importlib.import_module({module!r}).__file__)")
    assert Path(where).is_relative_to(installed.source if _editable(installed) else installed.site / "tzfs")


@pytest.mark.parametrize("module", ["mount", "native", "tests", "benchmarks", "engine"])
def test_no_folder_of_the_checkout_is_a_package_of_its_own(installed: Installed, module: str) -> None:
    found = installed.run(f"import importlib.util; print(importlib.util.find_spec({module!r}))")
    assert "checkout" not in found
    assert str(installed.site) not in found


def test_the_compiled_part_answers(installed: Installed) -> None:
    assert installed.run("import tzfs.native; print(hex(tzfs.native.fnv1a64(b'a')))") == "0xaf63dc4c8601ec8c"


def test_the_format_document_and_the_type_marker_are_installed(installed: Installed) -> None:
    program = "from importlib.resources import files; print(files('tzfs').joinpath({!r}).is_file())"
    assert installed.run(program.format("format/FORMAT.md")) == "True"
    assert installed.run(program.format("py.typed")) == "True"


def test_the_command_is_installed(installed: Installed) -> None:
    assert (installed.environment / "bin" / "tzfs").is_file()


def test_the_version_is_the_same_wherever_it_is_told() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["version"] == tzfs.__version__ == CREATED_BY


def test_every_folder_with_modules_is_listed_in_setup() -> None:
    (listed,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((PROJECT / "setup.py").read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES"
    )
    folders = {path.parent.relative_to(PROJECT) for top in ("tzfs", "mount", "native") for path in _modules(top)}
    assert {Path(folder) for folder in listed.values()} >= folders
    assert all((PROJECT / folder).is_dir() for folder in listed.values())


def _modules(top: str) -> list[Path]:
    """The Python files below a folder of the checkout; the links from `tzfs/` to its sisters are not followed."""
    links = [path.resolve() for path in (PROJECT / "tzfs").iterdir() if path.is_symlink()]
    found = (PROJECT / top).rglob("*.py")
    return [path for path in found if top != "tzfs" or not any(path.resolve().is_relative_to(link) for link in links)]
