"""Where runtime files, logs and the default store are, and what others may have put there first."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from tzfs import runtime
from tzfs.errors import NotFound, NotPermitted, StoreError

PLACE = "0123456789abcdef"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory such as XDG_RUNTIME_DIR names."""
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    return path


def under(base: Path) -> Path:
    return runtime.runtime_directory({"XDG_RUNTIME_DIR": str(base)})


def test_the_runtime_directory_is_made_in_xdg_runtime_dir_for_its_owner_alone(base: Path) -> None:
    before = os.umask(0)
    try:
        path = under(base)
    finally:
        os.umask(before)
    assert path == base / "tzfs"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_the_runtime_directory_is_found_again(base: Path) -> None:
    (under(base) / "file").touch()
    assert (under(base) / "file").exists()


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_a_runtime_dir_that_is_no_absolute_path_is_ignored(value: str) -> None:
    assert runtime.runtime_directory({"XDG_RUNTIME_DIR": value}) == runtime.runtime_directory({})


def test_a_runtime_dir_that_is_not_there_is_ignored(tmp_path: Path) -> None:
    assert under(tmp_path / "absent") == runtime.runtime_directory({})


@pytest.mark.needs("root")
def test_a_runtime_dir_of_another_user_is_ignored(base: Path) -> None:
    os.chown(base, 12345, 12345)
    assert under(base) == runtime.runtime_directory({})
    assert not (base / "tzfs").exists()


def test_without_a_runtime_dir_of_ours_it_is_in_the_fallback_under_our_number(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    path = runtime._runtime_directory(tmp_path / "absent", fallback=tmp_path)
    assert path == tmp_path / f"tzfs-{os.getuid()}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def in_fallback(tmp_path: Path) -> tuple[Path, Path]:
    tmp_path.chmod(0o1777)
    return tmp_path, tmp_path / f"tzfs-{os.getuid()}"


def test_a_directory_that_others_may_enter_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    fallback, path = in_fallback(tmp_path)
    path.mkdir()
    path.chmod(0o755)
    with pytest.raises(NotPermitted, match="has mode 0755"):
        runtime._runtime_directory(fallback=fallback)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_a_symbolic_link_is_refused_even_to_a_directory_of_ours(tmp_path: Path) -> None:
    fallback, path = in_fallback(tmp_path)
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    path.symlink_to(target)
    with pytest.raises(NotPermitted, match="symbolic link"):
        runtime._runtime_directory(fallback=fallback)


def test_a_dangling_symbolic_link_is_refused_and_not_followed(tmp_path: Path) -> None:
    fallback, path = in_fallback(tmp_path)
    path.symlink_to(tmp_path / "absent")
    with pytest.raises(NotPermitted, match="symbolic link"):
        runtime._runtime_directory(fallback=fallback)
    assert not (tmp_path / "absent").exists()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    fallback, path = in_fallback(tmp_path)
    path.touch()
    with pytest.raises(NotPermitted, match="not a directory"):
        runtime._runtime_directory(fallback=fallback)


@pytest.mark.needs("root")
def test_a_directory_that_another_user_made_first_is_refused(tmp_path: Path) -> None:
    fallback, path = in_fallback(tmp_path)
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(NotPermitted, match="belongs to user 12345"):
        runtime._runtime_directory(fallback=fallback)


def test_a_place_where_others_may_put_another_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)  # not sticky: anybody may rename what is in it
    with pytest.raises(NotPermitted, match="others may put another in its place"):
        runtime._runtime_directory(fallback=tmp_path)


def test_a_fallback_that_is_not_there_is_an_error_that_names_the_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"runtime directory .*absent.*: No such file"):
        runtime._runtime_directory(fallback=tmp_path / "absent")


# -- logs and the default store ----------------------------------------------------------------------------------------


def test_logs_are_in_the_state_directory_which_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = runtime.state_directory({"XDG_STATE_HOME": str(tmp_path / "a" / "state")})
    assert path == tmp_path / "a" / "state" / "tzfs"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_state_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="log directory"):
        runtime.state_directory({"XDG_STATE_HOME": str(tmp_path / "file")})


def test_the_log_of_a_mount_is_known_by_its_name_and_told_apart_by_its_place(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    path = runtime.log_path("team/ws@before", PLACE, environment)
    assert path == tmp_path / "tzfs" / "team,ws@before-01234567.log"
    assert path != runtime.log_path("team/ws", PLACE, environment)


def test_the_log_of_the_longest_name_can_be_made_and_rotated(tmp_path: Path) -> None:
    path = runtime.log_path("é" * 255 + "@" + "s" * 255, PLACE, {"XDG_STATE_HOME": str(tmp_path)})
    path.touch()
    path.with_name(path.name + ".1").touch()


def test_the_default_store_is_the_named_one_else_the_data_directorys(tmp_path: Path) -> None:
    assert runtime.default_store({"TZFS_STORE": "here", "XDG_DATA_HOME": "/data"}) == Path("here")
    assert runtime.default_store({"XDG_DATA_HOME": "/data"}) == Path("/data/tzfs")
    assert runtime.default_store({"XDG_DATA_HOME": "relative"}) == Path.home() / ".local/share/tzfs"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(NotFound) as caught:
        runtime.default_store({})
    assert caught.value.hint == "set HOME or XDG_DATA_HOME"


# -- what is whose -----------------------------------------------------------------------------------------------------


def test_a_filesystem_is_told_from_others_and_from_its_copies_wherever_it_is_moved(tmp_path: Path) -> None:
    guid, another = "0123456789abcdef" * 2, "1123456789abcdef" * 2
    folder, copy = tmp_path / "folder", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    place = runtime.place_of(guid, folder)
    assert re.fullmatch("[0-9a-f]{16}", place)
    others = [runtime.place_of(another, folder), runtime.place_of(guid, copy), runtime.place_of(guid, tmp_path / "no")]
    assert len({place, *others}) == 4
    assert runtime.place_of(guid, folder.rename(tmp_path / "moved")) == place


# -- sockets -----------------------------------------------------------------------------------------------------------


def test_the_sockets_of_a_filesystem_and_of_its_snapshots_differ(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    assert runtime.socket_path(PLACE) == base / "tzfs" / f"{PLACE}.rw.sock"
    assert runtime.socket_path(PLACE, "4194303") != runtime.socket_path(PLACE)


@pytest.mark.parametrize("length", [107, 108, 250])
def test_a_socket_is_reached_whatever_the_length_of_its_path(tmp_path: Path, length: int) -> None:
    folder = tmp_path
    while len(bytes(folder)) + 60 < length:
        folder = folder / ("d" * 50)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("s" * (length - len(bytes(folder)) - 1))
    assert len(bytes(path)) == length
    open_before = os.listdir("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        with runtime.socket_address(path) as address:
            assert len(address) <= runtime.SOCKET_ADDRESS_BYTES_MAX
            listener.bind(address)
        assert stat.S_ISSOCK(path.stat().st_mode)
        listener.listen()
        with runtime.socket_address(path) as address:
            client.connect(address)
    assert os.listdir("/proc/self/fd") == open_before
