"""pip: a wheel made here is installed into a virtual environment, imported, its script run, and removed again."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

from tests.tools.programs import run

MODULES = 150


def make_wheel(folder: Path, name: str, *, requires: str | None = None) -> None:
    """A pure wheel of `MODULES` modules with a console script `NAME-tool`."""
    files = {f"{name}/module_{n}.py": f"VALUE = {n}\n" + "# filler\n" * (n * 11) for n in range(MODULES)}
    files[f"{name}/__init__.py"] = "".join(f"from {name} import module_{n}\n" for n in range(MODULES))
    files[f"{name}/__init__.py"] += (
        f"def main() -> None:\n    print(sum(m.VALUE for m in [{', '.join(f'module_{n}' for n in range(MODULES))}]))\n"
    )
    info = f"{name}-1.0.dist-info"
    requirement = f"Requires-Dist: {requires}\n" if requires else ""
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requirement}"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: scenario\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name}-tool = {name}:main\n"
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def scenario(directory: Path) -> None:
    """A venv, two wheels of which one needs the other, import, script, check, uninstall; everything in `directory`."""
    wheels = directory / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "scenario_base")
    make_wheel(wheels, "scenario_app", requires="scenario_base")
    base_python = getattr(sys, "_base_executable", sys.executable)
    run(base_python, "-m", "venv", "venv", cwd=directory)
    python = directory / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    run(*pip, "install", "--no-index", "--find-links", wheels, "scenario_app", cwd=directory)
    expected = f"{sum(range(MODULES))}\n"
    assert run(directory / "venv" / "bin" / "scenario_app-tool", cwd=directory) == expected
    assert run(python, "-c", "import scenario_base; scenario_base.main()", cwd=directory) == expected
    run(*pip, "check", cwd=directory)
    packages = sorted((directory / "venv" / "lib").glob("*/site-packages/scenario_*"))
    assert len(packages) == 4, "two packages, and what is said about each"
    run(python, "-m", "compileall", "-q", "-f", *packages, cwd=directory)
    run(*pip, "install", "--no-index", "--find-links", wheels, "--force-reinstall", "scenario_base", cwd=directory)
    run(*pip, "uninstall", "-y", "scenario_app", cwd=directory)
    assert not list((directory / "venv" / "lib").glob("*/site-packages/scenario_app*"))
    assert list((directory / "venv" / "lib").glob("*/site-packages/scenario_base*"))
