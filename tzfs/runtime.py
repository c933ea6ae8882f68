"""Where a user's sockets, logs, workspaces in passing and default store are: the XDG directories, checked.

Runtime files (sockets, mountpoints of `tzfs run`) lie in `$XDG_RUNTIME_DIR/tzfs`, else in `/run/user/<uid>/tzfs`, else
in `/tmp/tzfs-<uid>`; logs in `$XDG_STATE_HOME/tzfs` (`~/.local/state/tzfs`); the default store is `$XDG_DATA_HOME/tzfs`
(`~/.local/share/tzfs`).

The runtime directory is mode 0700 and ours, and lies where nobody but us and root can put another in its place: one
that somebody else made there first, or a link to one, is refused, never mended.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tzfs.errors import NotFound, NotPermitted, from_os_error
from tzfs.native import fnv1a64

SOCKET_ADDRESS_BYTES_MAX: Final = 107  # sun_path has 108 with its NUL
_LOG_NAME_BYTES_MAX: Final = 200  # of NAME_MAX, 255: the rest is for the tag, the suffix and the number of an old log


def runtime_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's runtime directory of tzfs, made if need be.  `NotPermitted` where it is not safe."""
    base = environment.get("XDG_RUNTIME_DIR", "")
    return _runtime_directory(
        *([Path(base)] if base.startswith("/") else []),
        Path(f"/run/user/{os.getuid()}"),
        fallback=Path("/tmp"),
    )


def _runtime_directory(*bases: Path, fallback: Path) -> Path:
    """`tzfs` in the first of `bases` that is ours, else `tzfs-<uid>` in `fallback`."""
    uid = os.getuid()
    path = next((base / "tzfs" for base in bases if _is_ours(base)), fallback / f"tzfs-{uid}")
    try:
        parent = os.stat(path.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise from_os_error(error, f"runtime directory {path}") from error
    hint = "remove it, or set XDG_RUNTIME_DIR to a directory that only you can change"
    if stat.S_ISLNK(found.st_mode):
        raise NotPermitted(f"runtime directory {path} is a symbolic link", hint=hint)
    if not stat.S_ISDIR(found.st_mode):
        raise NotPermitted(f"runtime directory {path} is not a directory", hint=hint)
    if found.st_uid != uid:
        raise NotPermitted(f"runtime directory {path} belongs to user {found.st_uid}", hint=hint)
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise NotPermitted(f"runtime directory {path} has mode {mode:04o} and not 0700", hint=f"chmod 0700 {path}")
    if not _keeps_what_is_in_it(parent):
        raise NotPermitted(f"runtime directory {path}: others may put another in its place", hint=hint)
    return path


def _is_ours(path: Path) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _keeps_what_is_in_it(directory: os.stat_result) -> bool:
    """Whether nobody but us and root can remove or rename what is ours in the directory."""
    if directory.st_uid not in (0, os.getuid()):
        return False
    return not directory.st_mode & 0o022 or bool(directory.st_mode & stat.S_ISVTX)


def _xdg(variable: str, fallback: str, environment: Mapping[str, str]) -> Path:
    base = environment.get(variable, "")
    if base.startswith("/"):
        return Path(base) / "tzfs"
    try:
        home = Path.home()
    except RuntimeError:
        raise NotFound("the user has no home directory", hint=f"set HOME or {variable}") from None
    return home / fallback / "tzfs"


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


def place_of(guid: str, folder: Path) -> str:
    """What tells a filesystem from all others of this machine, those of a copied store included: 16 digits.

    The guid is the same in a copy of its store, which has folders of its own.  Where the folder is not there, nothing
    is mounted that has the answer.
    """
    try:
        found = os.stat(folder)
    except OSError:
        where = "nowhere"
    else:
        where = f"{found.st_dev} {found.st_ino}"
    return f"{fnv1a64(f'{guid} {where}'.encode()):016x}"


def log_path(name: str, place: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The log of the mount of `name` (FS or FS@SNAP): for people by its name, told apart from its like by `place`."""
    readable = os.fsencode(name.replace("/", ","))[:_LOG_NAME_BYTES_MAX].decode("utf-8", "ignore")
    return state_directory(environment) / f"{readable}-{place[:8]}.log"


def socket_path(place: str, tag: str = "rw") -> Path:
    """Where the mount of the filesystem at `place` listens; with another `tag` one of its snapshots, or read-only."""
    return runtime_directory() / f"{place}.{tag}.sock"


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """An address to bind or connect to for the socket at `path`, good within the body.

    A socket's address may have 107 bytes; a longer path is reached through an open descriptor of its directory.
    """
    if len(os.fsencode(path)) <= SOCKET_ADDRESS_BYTES_MAX:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
