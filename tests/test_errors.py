"""What every error becomes on the three faces: an errno on the mount, an exit code, a JSON-RPC code.

The table is the contract, written out by hand: programs match on these numbers.  A class that is not in it fails.
"""

from __future__ import annotations

import errno
import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import tzfs
from tzfs import errors, jsonrpc
from tzfs.cli import run
from tzfs.errors import TzfsError, errno_of, exit_code_of, rpc_code_of

CODES = {
    #                      errno              exit  JSON-RPC
    "TzfsError":          (errno.EIO,            1, 13),
    "UsageError":         (errno.EINVAL,         2, -32602),
    "InvalidArgument":    (errno.EINVAL,         2, -32602),
    "NameTooLong":        (errno.ENAMETOOLONG,   2, -32602),
    "NotFound":           (errno.ENOENT,         1, 1),
    "NoAttribute":        (errno.ENODATA,        1, 1),
    "Stale":              (errno.ESTALE,         1, 1),
    "Exists":             (errno.EEXIST,         1, 2),
    "Conflicting":             (errno.EEXIST,         1, 2),
    "NotADirectory":      (errno.ENOTDIR,        1, 9),
    "IsADirectory":       (errno.EISDIR,         1, 9),
    "NotEmpty":           (errno.ENOTEMPTY,      1, 9),
    "PermissionDenied":   (errno.EACCES,        77, 6),
    "NotPermitted":       (errno.EPERM,         77, 6),
    "ReadOnly":           (errno.EROFS,          1, 5),
    "Busy":               (errno.EBUSY,         75, 3),
    "WrongState":         (errno.EBUSY,         75, 4),
    "NotSupported":       (errno.ENOTSUP,        1, 8),
    "Diverged":           (errno.EIO,            1, 13),
    "LimitReached":       (errno.ENOSPC,         1, 7),
    "TooManyLinks":       (errno.EMLINK,         1, 7),
    "FileTooBig":         (errno.EFBIG,          1, 7),
    "AttributeTooBig":    (errno.E2BIG,          1, 7),
    "OutOfRange":         (errno.ERANGE,         1, 7),
    "SymlinkLoop":        (errno.ELOOP,          1, 7),
    "QuotaExceeded":      (errno.EDQUOT,         1, 7),
    "StoreError":         (errno.EIO,           74, 11),
    "NoSpace":            (errno.ENOSPC,         1, 10),
    "ForeignStore":       (errno.EIO,           78, 11),
    "TablesLost":         (errno.EIO,           78, 11),
    "Displaced":          (errno.EIO,           78, 11),
    "MountFailed":        (errno.EIO,           74, 11),
    "Fenced":             (errno.EIO,           74, 11),
    "CorruptionError":    (errno.EIO,           65, 12),
    "BadStream":          (errno.EIO,           65, 12),
    "InternalError":      (errno.EIO,           70, -32603),
}  # fmt: skip


def _below(cls: type[TzfsError]) -> Iterator[type[TzfsError]]:
    """The class and all below it, private ones too."""
    yield cls
    for below in cls.__subclasses__():
        yield from _below(below)


def _all() -> list[type[TzfsError]]:
    """Every class of error of every module; of tests, which define some of their own, none."""
    for module in pkgutil.walk_packages(tzfs.__path__, "tzfs."):
        if not module.name.endswith((".__main__", ".build")):  # they run something when they are imported
            importlib.import_module(module.name)
    return sorted({c for c in _below(TzfsError) if c.__module__.startswith("tzfs.")}, key=lambda cls: cls.__qualname__)


def test_every_class_of_error_is_in_the_table_and_nothing_else() -> None:
    here = {cls.__name__ for cls in _all() if cls.__module__ == errors.__name__}
    assert here == set(CODES)


@pytest.mark.parametrize("cls", _all(), ids=lambda cls: cls.__name__)
def test_an_error_becomes_these_numbers(cls: type[TzfsError]) -> None:
    named = next(base for base in cls.__mro__ if base.__name__ in CODES)  # one defined elsewhere is as its parent
    error = cls.__new__(cls)  # whatever its constructor asks for
    assert (errno_of(error), exit_code_of(error), rpc_code_of(error)) == CODES[named.__name__]


@pytest.mark.parametrize("cls", [cls for cls in _all() if cls.__module__ == errors.__name__], ids=lambda c: c.__name__)
def test_an_error_survives_the_control_socket(cls: type[TzfsError]) -> None:
    """The client raises what the daemon raised: the same class, message, hint and numbers."""
    error = cls("the message", hint="try this")
    sent = json.loads(json.dumps(jsonrpc.failure(error, 7)))
    assert sent["id"] == 7
    assert sent["error"]["code"] == rpc_code_of(error)
    assert sent["error"]["data"]["errno"] == errno_of(error)
    raised = jsonrpc.revive(sent["error"])
    assert type(raised) is cls
    assert (str(raised), raised.hint) == ("the message", "try this")


@pytest.mark.parametrize("cls", [cls for cls in _all() if cls.__module__ == errors.__name__], ids=lambda c: c.__name__)
def test_a_command_that_fails_says_why_and_exits_so(
    cls: type[TzfsError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise cls("the reason", hint="the way out")

    monkeypatch.setattr(click.Group, "invoke", fails)
    assert run(["--store", str(tmp_path), "list"]) == exit_code_of(cls("x"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "the reason" in err
    assert "the way out" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "codes"),
    [
        (OSError(errno.ENOTCONN, "not connected"), (errno.ENOTCONN, 74, -32603)),
        (OSError("without a number"), (errno.EIO, 74, -32603)),
        (ValueError("a bug"), (errno.EIO, 70, -32603)),
    ],
    ids=repr,
)
def test_what_is_not_ours_has_numbers_too(error: BaseException, codes: tuple[int, int, int]) -> None:
    assert (errno_of(error), exit_code_of(error), rpc_code_of(error)) == codes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_space_and_says_what_to_do(number: int) -> None:
    error = errors.from_os_error(OSError(number, "x"), "the thing")
    assert type(error) is errors.NoSpace
    assert str(error).startswith("the thing: ")
    assert error.hint


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, None])
def test_another_failure_of_the_disk_is_a_store_error(number: int | None) -> None:
    raised = OSError(number, "x") if number else OSError("x")
    assert type(errors.from_os_error(raised, "the thing")) is errors.StoreError
