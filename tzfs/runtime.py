"""Where a user's sockets, logs, workspaces in passing and default store are: the XDG directories, checked.

Runtime files (sockets, mountpoints of `tzfs run`) lie in `$XDG_RUNTIME_DIR/tzfs`, else in `/run/user/<uid>/tzfs`, else
in `/tmp/tzfs-<uid>`; logs in `$XDG_STATE_HOME/tzfs` (`~/.local/state/tzfs`); the default store is `$XDG_DATA_HOME/tzfs`
(`~/.local/share/tzfs`).  The runtime directory is mode 0700 and ours: one that somebody else made there first is
refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from tzfs.errors import NotPermitted, from_os_error


def runtime_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's runtime directory of tzfs, made if need be."""
    uid = os.getuid()
    base = environment.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and _is_ours(Path(base)):
        path = Path(base) / "tzfs"
    elif _is_ours(Path(f"/run/user/{uid}")):
        path = Path(f"/run/user/{uid}/tzfs")
    else:
        path = Path(f"/tmp/tzfs-{uid}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"runtime directory {path}") from error
    if not _is_ours(path) or os.lstat(path).st_mode & 0o077:
        raise NotPermitted(
            f"runtime directory {path} is not a directory of user {uid} with mode 0700",
            hint="remove it, or set XDG_RUNTIME_DIR to a directory of yours",
        )
    return path


def _is_ours(path: Path) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _xdg(variable: str, fallback: str, environment: Mapping[str, str]) -> Path:
    base = environment.get(variable, "")
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "tzfs"


def state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where mounts log, made if need be."""
    path = _xdg("XDG_STATE_HOME", ".local/state", environment)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"log directory {path}") from error
    return path


def default_store(environment: Mapping[str, str] = os.environ) -> Path:
    """The store of who names none: `TZFS_STORE`, else the data directory's."""
    named = environment.get("TZFS_STORE", "")
    return Path(named) if named else _xdg("XDG_DATA_HOME", ".local/share", environment)


def socket_path(guid: str, tag: str = "rw") -> Path:
    """Where the mount of the filesystem (or, with another `tag`, of one of its snapshots) listens.

    A guid keeps it under the 108 bytes that a socket's address may have.
    """
    return runtime_directory() / f"{guid}.{tag}.sock"
