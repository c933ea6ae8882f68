"""Runs the suites as an ordinary user, for root: `python3 -m tests.user COMMAND ARGUMENT...`.

Root sets the machine up as an ordinary one is, and says each change: `/dev/fuse` readable and writable by all and
`user_allow_other` in `/etc/fuse.conf`, both put back at the end; a system user `tzfs-test`, its folder
`/var/lib/tzfs-test`, and in that an environment made by the user itself with the system's Python, both kept for the
next time.  The project is copied there and installed as anybody would install it; the command runs beside a copy of
`tests/` alone, so that nothing can be imported from the checkout by accident.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.machine import EXTRAS, PROJECT, fingerprint, prepare_system, say

NAME: Final = "tzfs-test"
FOLDER: Final = Path("/var/lib/tzfs-test")
SYSTEM_PYTHON: Final = Path("/usr/bin/python3")
DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")
ALLOW: Final = "user_allow_other"
DISTRIBUTED: Final = ("tzfs", "native", "mount", "setup.py", "pyproject.toml", "README.md", "LICENSE")
TESTED: Final = ("tests", "pyproject.toml")
KEPT: Final = ("LANG", "LC_ALL", "CI")


@contextmanager
def ordinary_machine() -> Iterator[None]:
    """The machine as udev and an administrator would have it, for the body."""
    mode = stat.S_IMODE(DEVICE.stat().st_mode)
    conf = FUSE_CONF.read_text() if FUSE_CONF.exists() else None
    allowed = conf is not None and ALLOW in (line.strip() for line in conf.splitlines())
    if mode != 0o666:
        say(f"chmod 0666 {DEVICE} (it was {mode:04o})")
        DEVICE.chmod(0o666)
    if not allowed:
        say(f"adding {ALLOW} to {FUSE_CONF}")
        FUSE_CONF.write_text(f"{conf or ''}\n{ALLOW}\n")
    try:
        yield
    finally:
        if mode != 0o666:
            say(f"chmod {mode:04o} {DEVICE}")
            DEVICE.chmod(mode)
        if not allowed:
            say(f"putting {FUSE_CONF} back")
            if conf is None:
                FUSE_CONF.unlink()
            else:
                FUSE_CONF.write_text(conf)


class OrdinaryUser:
    """The user, once there: `run` runs a command as it."""

    def __init__(self) -> None:
        try:
            pwd.getpwnam(NAME)
        except KeyError:
            say(f"useradd --system {NAME}, with its folder {FOLDER}")
            subprocess.run(
                ["useradd", "--system", "--user-group", "--home-dir", FOLDER, "--shell", "/bin/sh", NAME], check=True
            )
        entry = pwd.getpwnam(NAME)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        FOLDER.mkdir(mode=0o755, exist_ok=True)
        os.chown(FOLDER, self.uid, self.gid)

    def run(self, *command: str | Path, cwd: Path = FOLDER) -> int:
        """The exit code of the command, run with no privilege, no group but its own, and a plain environment."""
        environment = {
            **{k: v for k, v in os.environ.items() if k in KEPT or k.startswith("PIP_")},
            "HOME": str(FOLDER),
            "USER": NAME,
            "LOGNAME": NAME,
            "PATH": f"{FOLDER / 'venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        }
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=environment,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            umask=0o022,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode

    def must(self, *command: str | Path, cwd: Path = FOLDER) -> None:
        """Runs it, and ends the program if it fails."""
        code = self.run(*command, cwd=cwd)
        if code:
            sys.exit(f"as {NAME}: {' '.join(map(str, command))}: exit {code}")

    def install(self) -> None:
        """Brings the user's environment and copies up to date with the checkout."""
        venv, stamp = FOLDER / "venv", FOLDER / "made-from"
        state = f"{fingerprint('pyproject.toml', 'setup.py')} {fingerprint('tzfs', 'native', 'mount')}"
        known = stamp.read_text() if stamp.exists() else ""
        if known != state:
            stamp.unlink(missing_ok=True)
            if known.split()[:1] != state.split()[:1]:
                say(f"making an environment for {NAME} with {SYSTEM_PYTHON}, and installing tzfs{EXTRAS} in it")
                shutil.rmtree(venv, ignore_errors=True)
                self.must(SYSTEM_PYTHON, "-m", "venv", venv)
                options = []
            else:
                say(f"installing tzfs again in the environment of {NAME}")
                options = ["--no-deps", "--force-reinstall"]
            source = self._copy("source", DISTRIBUTED)
            pip: list[str | Path] = [
                venv / "bin" / "python",
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
            ]
            self.must(*pip, *options, f"{source}{EXTRAS}")
            stamp.write_text(state)
        self._copy("run", TESTED)

    def _copy(self, folder: str, names: Sequence[str]) -> Path:
        """These parts of the checkout in a fresh folder of the user's."""
        target = FOLDER / folder
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in names:
            source = PROJECT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "_native.c", ".hypothesis")
                shutil.copytree(source, target / name, symlinks=True, ignore=ignored)
            elif source.exists():
                shutil.copy(source, target / name)
        for path in (target, *target.rglob("*")):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        return target


def run_as_ordinary_user(*command: str) -> int:
    """The exit code of the command in the user's environment, beside a copy of `tests/`."""
    prepare_system()
    user = OrdinaryUser()
    user.install()
    with ordinary_machine():
        say(f"as {NAME}: {' '.join(command)}")
        return user.run(*command, cwd=FOLDER / "run")


if __name__ == "__main__":
    if os.geteuid():
        sys.exit("only root can become somebody else; an ordinary user runs the tests as they are")
    sys.exit(run_as_ordinary_user(*sys.argv[1:]))
