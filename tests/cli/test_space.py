"""Where the space went: the figures of list and get, the same whether mounted or not, and at once."""

from __future__ import annotations

from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace
from tests.noise import noise
from tzfs.management import open_store

FIGURES = "used,available,referenced,usedbysnapshots,usedbydataset,written,logicalused,logicalreferenced"


def figures(tzfs: CommandLine, name: str, properties: str) -> list[int]:
    return [int(line) for line in tzfs.ok("get", "-H", "-p", "-o", "value", properties, name).splitlines()]


def test_where_the_space_of_a_filesystem_went(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    with open_store(tzfs.store) as store, store.open("ws") as fs:
        fs.write_bytes("kept", noise(100_000, "k"))
        fs.write_bytes("gone", noise(50_000, "g"))
        fs.snapshot("a")
        fs.unlink("gone")
        fs.write_bytes("new", noise(10_000, "n"))
        fs.snapshot("b")
        fs.write_bytes("newer", noise(20_000, "n"))
    used, referenced, snapshots, dataset, written = figures(tzfs, "ws", "used,refer,usedsnap,usedds,written")
    assert used == snapshots + dataset
    assert dataset == referenced
    assert 13 * 4096 <= snapshots < 13 * 4096 + 2000  # the pages of `gone`, and rows
    assert 5 * 4096 <= written < 5 * 4096 + 2000
    [since_a] = figures(tzfs, "ws", "written@a")
    assert since_a == figures(tzfs, "ws", "written@a,written@b")[0] > written
    assert figures(tzfs, "ws", "written@b") == [written]
    of_a = figures(tzfs, "ws@a", "used,refer,written")
    assert of_a[0] <= snapshots
    assert of_a[1] == of_a[2]  # nothing is older
    assert figures(tzfs, "ws@b", "written@a") == figures(tzfs, "ws@b", "written")
    assert tzfs.ok("get", "-H", "-o", "value", "written@none,compressratio", "ws") == "-\n1.00x\n"
    assert tzfs.ok("get", "-H", "-p", "-o", "value", "written@b,ratio", "ws@a") == "-\n1.00\n"


def test_what_compression_saves_is_told_mounted_and_not(workspace: Workspace) -> None:
    """Written, snapshotted, overwritten, rolled back, cloned and flattened, received: by what lies on the disk."""
    text, logical = (b"the same again and again\n" * 16_000)[: 3 << 17], "used,logicalused,refer,lrefer"
    workspace.tzfs("set", "compression=zstd", "ws")

    def asked(name: str) -> list[int]:
        return [int(line) for line in workspace.tzfs("get", "-Hp", "-o", "value", logical, name).split()]

    def ratios(name: str) -> list[float]:
        said = workspace.tzfs("get", "-Hp", "-o", "value", "compressratio,refcompressratio", name)
        return [float(line) for line in said.split()]

    with workspace.mounted() as mnt:
        (mnt / "noise").write_bytes(noise(1 << 17))
        before = asked("ws")
        assert before[0] == before[1]
        assert ratios("ws") == [1.0, 1.0]
        (mnt / "text").write_bytes(text)
        workspace.tzfs("snapshot", "ws@a")
        used, logical_used, refer, logical_refer = asked("ws")
        assert 0 <= logical_used - before[1] - len(text) < 2000  # rows
        assert used - before[0] < len(text) // 10
        assert (used, logical_used) == (refer, logical_refer)
        assert ratios("ws") == [logical_used * 100 // used / 100] * 2
        (mnt / "text").write_bytes(noise(1 << 17, "other"))
        now = asked("ws")
        assert len(text) <= now[1] - now[3] < len(text) + 2000
        assert ratios("ws")[0] > ratios("ws")[1] == 1.0
        assert ratios("ws@a") == [logical_refer * 100 // refer / 100] * 2
        workspace.tzfs("rollback", "ws@a")
        assert (mnt / "text").read_bytes() == text
        here = asked("ws"), ratios("ws"), ratios("ws@a")
    assert (asked("ws"), ratios("ws"), ratios("ws@a")) == here
    workspace.tzfs("clone", "ws@a", "clone")
    workspace.tzfs("set", "compression=lz4", "clone")
    assert asked("clone")[0] == asked("clone")[1]  # what is inherited is charged to its origin
    workspace.tzfs("flatten", "clone")
    assert asked("clone")[3] == logical_refer
    assert ratios("clone")[1] > 1.5


def test_list_o_space_is_zfs_shortcut(tzfs: CommandLine) -> None:
    tzfs.ok("create", "ws")
    tzfs.ok("snapshot", "ws@a")
    head, *lines = [line.split() for line in tzfs.ok("list", "-t", "all", "-o", "space").splitlines()]
    assert head == ["NAME", "AVAIL", "USED", "USEDSNAP", "USEDDS"]
    assert [line[0] for line in lines] == ["ws", "ws@a"]
    assert lines[1][1:] == ["-", "0B", "-", "-"]
    assert tzfs.ok("list", "-H", "-p", "-o", "name,written@a", "ws") == "ws\t0\n"
    assert tzfs.ok("list", "-H", "-o", "lused,lrefer,ratio,refratio", "ws").count("1.00x") == 2


def test_a_mount_answers_for_what_it_has_not_committed(workspace: Workspace) -> None:
    workspace.tzfs("set", "txg_interval=60s", "ws")
    asked = ("get", "-H", "-p", "-o", "property,value", f"{FIGURES},written@a", "ws")
    snapshot = ("get", "-H", "-p", "-o", "property,value", "used,referenced,written", "ws@a")
    with workspace.mounted() as mnt:
        (mnt / "f").write_bytes(noise(30_000, "f"))
        workspace.tzfs("snapshot", "ws@a")
        (mnt / "g").write_bytes(noise(300_000, "g"))
        (mnt / "f").unlink()
        listed = workspace.tzfs("list", "-H", "-p", "-o", "used,referenced", "ws")
        answers = [workspace.tzfs(*asked).splitlines(), workspace.tzfs(*snapshot).splitlines()]
        told = dict(line.split("\t") for line in answers[0])
        assert 300_000 < int(told["written"]) == int(told["written@a"]) < 310_000
        assert listed.split() == [told["used"], told["referenced"]]
    later = [workspace.tzfs(*asked).splitlines(), workspace.tzfs(*snapshot).splitlines()]
    assert [line for line in later[0] if "available" not in line] == [
        line for line in answers[0] if "available" not in line
    ]
    assert later[1] == answers[1]
