"""The same verb gives the same answer, whether or not the filesystem is mounted: output, words and exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from tests.cli.command_line import CommandLine
from tests.mount.workspace import Workspace

# What may differ, and what is never the same twice.
_CHANGES = re.compile(
    r"/\S+/mnt\b|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\b\d{10}\b|\b[0-9a-f]{32}\b|\b\d+(\.\d+)?G\b|\b\d{11,}\b"
)

SCRIPTS: dict[str, Sequence[Sequence[str]]] = {
    "snapshot": (
        ["snapshot", "ws@a"],
        ["snapshot", "-o", "agent:step=1", "ws@b"],
        ["snapshot", "ws@a"],
        ["snapshot", "-o", "recordsize=4K", "ws@c"],
        ["snapshot", "-o", "agent:step=" + "x" * 8192, "ws@c"],
        ["snapshot", "ws@" + "x" * 256],
        ["list", "-H", "-o", "name,agent:step,refer", "-t", "all"],
        ["get", "-H", "all", "ws@b"],
        ["get", "-H", "snapshot_count,used,referenced", "ws"],
    ),
    "holds": (
        ["snapshot", "ws@a"],
        ["snapshot", "ws@b"],
        ["hold", "keep", "ws@a", "ws@b"],
        ["hold", "keep", "ws@b"],
        ["hold", "other", "ws@a", "ws@none"],
        ["hold", "", "ws@a"],
        ["hold", "x" * 256, "ws@a"],
        ["holds", "-H", "-p", "ws@a", "ws@b"],
        ["holds", "--json", "ws@b"],
        ["holds", "ws@none"],
        ["release", "keep", "ws@b"],
        ["release", "keep", "ws@a", "ws@b"],
        ["holds", "-H", "-p", "ws@a", "ws@b"],
        ["hold", "-r", "all", "ws@b"],
        ["hold", "-r", "all", "/@a"],
        ["hold", "-r", "all", "team/@a"],
        ["holds", "-rHp", "/@a"],
        ["release", "-r", "all", "/@a"],
        ["release", "-r", "all", "/@none"],
    ),
    "labels and names of snapshots": (
        ["snapshot", "-o", "agent:step=1", "ws@a"],
        ["set", "agent:step=2", "agent:more=yes", "ws@a"],
        ["get", "-H", "agent:step,agent:more", "ws@a"],
        ["inherit", "agent:step", "ws@a"],
        ["list", "-H", "-o", "name,agent:step,agent:more", "-t", "snapshot"],
        ["set", "recordsize=4K", "ws@a"],
        ["set", "agent:step=" + "x" * 4000, "ws@a"],
        ["set", "agent:x=1", "ws@none"],
        ["inherit", "recordsize", "ws@a"],
        ["rename", "ws@a", "ws@b"],
        ["rename", "ws@b", "@c"],
        ["rename", "ws@a", "@d"],
        ["rename", "ws@c", "ws@c"],
        ["rename", "ws@c", "other@c"],
        ["rename", "ws@c", "@-d"],
        ["rename", "-r", "ws@c", "@d"],
        ["rename", "-r", "/@d", "@e"],
        ["rename", "-r", "ws", "other"],
        ["list", "-H", "-o", "name,agent:more", "-t", "snapshot"],
    ),
    "log": (
        ["snapshot", "ws@a"],
        ["snapshot", "ws@a"],
        ["hold", "keep it", "ws@a"],
        ["set", "agent:x=1", "agent:y=a b", "ws"],
        ["inherit", "agent:x", "ws"],
        ["release", "keep it", "ws@a"],
        ["rename", "ws@a", "@b"],
        ["destroy", "ws@b"],
        ["set", "log_max=1", "ws"],
        ["log", "-H", "ws"],
        ["log", "-H", "-n", "2", "ws"],
        ["log", "--json", "ws"],
        ["log", "-n", "-1", "ws"],
        ["events", "ws"],
        ["log", "ws@b"],
        ["log", "none"],
    ),
    "bookmarks": (
        ["snapshot", "ws@a"],
        ["bookmark", "ws@a", "#a"],
        ["bookmark", "ws@a", "ws#b"],
        ["bookmark", "ws@a", "ws#b"],
        ["bookmark", "ws@none", "#c"],
        ["bookmark", "ws@a", "other#c"],
        ["bookmark", "ws@a", "c"],
        ["bookmark", "ws@a", "#"],
        ["list", "-H", "-o", "name,type,refer", "-t", "all"],
        ["list", "-H", "-o", "name", "-t", "bookmark", "ws"],
        ["list", "-H", "-o", "name", "ws#a"],
        ["list", "ws#none"],
        ["get", "-H", "all", "ws#a"],
        ["destroy", "-nv", "ws#a"],
        ["destroy", "ws#a"],
        ["destroy", "-v", "ws#a"],
        ["list", "-H", "-o", "name", "-t", "bookmark"],
        ["check", "ws"],
    ),
    "recursively": (
        ["create", "ws/one"],
        ["create", "ws/two"],
        ["create", "other"],
        ["archive", "ws/two"],
        ["snapshot", "-r", "ws@x"],
        ["snapshot", "-r", "ws@x"],
        ["snapshot", "-r", "ws/@y"],
        ["snapshot", "-r", "none@y"],
        ["snapshot", "-r", "/@z"],
        ["snapshot", "-r", "ws"],
        ["list", "-H", "-o", "name", "-t", "snapshot"],
        ["destroy", "-r", "ws/one"],
        ["destroy", "-r", "ws/two"],
        ["destroy", "-r", "other"],
    ),
    "destroy": (
        ["snapshot", "ws@a"],
        ["snapshot", "ws@b"],
        ["snapshot", "ws@c"],
        ["hold", "keep", "ws@c"],
        ["destroy", "-n", "-p", "ws@a%b"],
        ["destroy", "-nv", "ws@a"],
        ["destroy", "ws@%"],
        ["destroy", "ws@none"],
        ["destroy", "ws@b%a"],
        ["release", "keep", "ws@c"],
        ["destroy", "-v", "ws@a,c"],
        ["list", "-H", "-o", "name", "-t", "all"],
        ["destroy", "--json", "ws@b"],
        ["gc", "--json", "ws"],
        ["get", "-H", "used,freeing,snapshot_count", "ws"],
    ),
    "policies": (
        ["snapshot", "ws@auto-1"],
        ["snapshot", "ws@auto-2"],
        ["snapshot", "ws@auto-3"],
        ["snapshot", "ws@auto-4"],
        ["snapshot", "ws@mine"],
        ["hold", "keep", "ws@auto-2"],
        ["bookmark", "ws@auto-3", "#mark"],
        ["policy", "show", "-H", "ws"],
        ["policy", "set", "ws", "1x1h(keep=1)"],
        ["policy", "get", "-H", "ws"],
        ["policy", "show", "-H", "ws"],
        ["prune", "-nv", "ws"],
        ["prune", "--json", "ws"],
        ["list", "-H", "-t", "snapshot", "-o", "name", "ws"],
        ["prune", "-v", "ws"],
        ["prune", "none"],
        ["policy", "set", "--names", "*", "--every", "12h", "ws", "1w"],
        ["policy", "show", "ws"],
        ["policy", "show", "--json", "ws"],
        ["policy", "get", "--json", "ws"],
        ["policy", "set", "ws", "1x"],
        ["policy", "set", "--names", "a b", "ws", "1h"],
        ["policy", "set", "--every", "1y", "ws", "1h"],
        ["policy", "inherit", "ws"],
        ["policy", "get", "-H", "ws", "/"],
        ["policy", "set", "none", "1h"],
        ["policy", "show", "none"],
        ["release", "keep", "ws@auto-2"],
    ),
    "restore": (
        ["snapshot", "ws@a"],
        ["restore", "ws@a", "f"],
        ["restore", "-f", "ws@a", "f"],
        ["restore", "--json", "-f", "ws@a", "/f"],
        ["restore", "ws@a", "none"],
        ["restore", "ws@a", "f/none"],
        ["restore", "ws@none", "f"],
        ["restore", "--to", "none", "ws@a", "f"],
        ["restore", "--to", "f", "ws@a", "f"],
        ["restore", "ws@a", "."],
        ["restore", "-f", "ws@a", "f", "f"],
        ["check", "--payload", "--json", "ws"],
    ),
    "apply": (
        ["snapshot", "ws@a"],
        ["apply", "ws"],
        ["clone", "ws@a", "c"],
        ["apply", "-n", "c"],
        ["apply", "--json", "c"],
        ["apply", "--ours", "--theirs", "c"],
        ["apply", "--onto", "none", "c"],
        ["snapshot", "c@a"],
        ["clone", "c@a", "cc"],
        ["apply", "--onto", "ws", "cc"],
        ["apply", "none"],
        ["archive", "c"],
        ["apply", "c"],
        ["apply", "cc"],
        ["destroy", "cc"],
        ["destroy", "-r", "c"],
    ),
    "rollback": (
        ["snapshot", "ws@a"],
        ["rollback", "ws@a"],
        ["rollback", "-n", "ws@none"],
        ["rollback", "ws@none"],
        ["rollback", "--json", "--no-safety-snapshot", "ws@a"],
        ["snapshot", "ws@b"],
        ["snapshot", "ws@c"],
        ["hold", "keep", "ws@b"],
        ["rollback", "-r", "ws@a"],
        ["rollback", "-n", "-r", "ws@a"],
        ["release", "keep", "ws@b"],
        ["rollback", "-n", "-r", "ws@a"],
        ["rollback", "-r", "ws@a"],
        ["rollback", "--json", "-r", "ws@a"],
        ["list", "-H", "-o", "name,refer", "-t", "all"],
    ),
    "diff and versions": (
        ["diff", "ws@a"],
        ["snapshot", "ws@a"],
        ["diff", "ws@a"],
        ["snapshot", "ws@b"],
        ["diff", "ws@a", "@b"],
        ["diff", "ws@b", "ws@a"],
        ["diff", "--json", "ws@a", "ws", "/f"],
        ["diff", "--patch", "ws@a"],
        ["diff", "ws@a", "/none"],
        ["diff", "ws@a", "other"],
        ["diff", "ws"],
        ["versions", "-H", "ws", "/f"],
        ["versions", "ws", "/none"],
    ),
    "sync and gc": (
        ["sync", "ws"],
        ["gc", "ws"],
        ["gc", "--json", "ws"],
        ["check", "ws"],
        ["check", "--json", "--payload", "ws"],
        ["check", "none"],
    ),
    "properties": (
        ["set", "txg_interval=250ms", "agent:x=1", "ws"],
        ["get", "-H", "txg_interval,agent:x,recordsize", "ws"],
        ["set", "txg_interval=1us", "ws"],
        ["set", "txg_interval=3s", "/"],
        ["inherit", "txg_interval", "ws"],
        ["get", "-H", "-p", "txg_interval", "ws"],
        ["inherit", "txg_interval", "/"],
        ["set", "snapdir=visible", "ws"],
        ["get", "--json", "snapdir", "ws"],
    ),
    "quotas": (
        ["set", "quota=1K", "ws"],
        ["set", "quota=1M", "refquota=1M", "ws"],
        ["set", "quota=16M", "refquota=8M", "inode_quota=5", "snapshot_limit=1", "ws"],
        ["get", "-H", "quota,refquota,inode_quota,snapshot_limit", "ws"],
        ["get", "-H", "-p", "quota,refquota,available", "ws"],
        ["snapshot", "ws@a"],
        ["snapshot", "ws@b"],
        ["list", "-o", "space"],
        ["get", "-H", "-p", "written,written@a,usedsnap,usedds,lused,lrefer,ratio", "ws"],
        ["inherit", "quota", "ws"],
        ["set", "quota=1G", "team/"],
    ),
    "rename": (
        ["snapshot", "ws@before"],
        ["rename", "ws", "team/new"],
        ["list", "-H", "-o", "name,used,refer", "-t", "all"],
        ["snapshot", "team/new@after"],
        ["sync", "team/new"],
        ["gc", "team/new"],
        ["list", "-H", "-o", "name", "-t", "snapshot", "team/new"],
        ["snapshot", "ws@x"],
        ["rename", "team/new", "ws"],
    ),
    "listing": (
        ["list", "-H", "-o", "name,used,refer,recordsize,state"],
        ["list", "--json", "-o", "name,used,referenced,guid,creation", "ws"],
        ["list", "-H", "--state", "active", "-o", "name"],
        ["list", "-H", "--where", "recordsize=128K", "-o", "name"],
    ),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_mounted_or_not_the_answers_are_the_same(
    workspace: Workspace, script: Sequence[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, workspace.environment[variable])
    tzfs = CommandLine(workspace.store_path)

    def answers() -> list[str]:
        told = [tzfs(*command) for command in script]
        return [
            _CHANGES.sub("~", f"{' '.join(c)[:60]}: {a.code}\n{a.out}{a.err}")
            for c, a in zip(script, told, strict=True)
        ]

    with workspace.mounted() as mnt:
        (mnt / "f").write_bytes(b"x" * 300_000)
    free = answers()
    with workspace.store() as store:
        store.catalog.destroy("ws")  # with whatever is held in it
    tzfs.ok("create", "ws")
    with workspace.mounted() as mnt:
        (mnt / "f").write_bytes(b"x" * 300_000)
        tzfs.ok("sync", "ws")
        assert answers() == free


@pytest.mark.parametrize("options", [(), ("ro",)], ids=["writable", "read-only"])
def test_a_change_reaches_a_live_mount_under_whatever_name(workspace: Workspace, options: tuple[str, ...]) -> None:
    with workspace.mounted(*options) as mnt:
        for name in ("ws", "renamed"):
            if name != "ws":
                workspace.tzfs("rename", "ws", name)
            assert ".zfs" not in [path.name for path in mnt.iterdir()]
            workspace.tzfs("set", "snapdir=visible", name)
            assert ".zfs" in [path.name for path in mnt.iterdir()]
            workspace.tzfs("inherit", "snapdir", name)
            assert ".zfs" not in [path.name for path in mnt.iterdir()]
        workspace.tzfs("set", "snapdir=visible", "/")
        assert ".zfs" in [path.name for path in mnt.iterdir()]


def test_a_read_only_mount_refuses_in_words_and_takes_properties(workspace: Workspace) -> None:
    with workspace.mounted("ro"):
        for command, verb in ((["snapshot", "ws@s"], "snapshot"), (["gc", "ws"], "collect garbage in")):
            done = workspace.run(*command)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == (
                f"tzfs: cannot {verb} ws: it is mounted read-only at {workspace.mnt}\n"
                "hint: unmount it first: tzfs umount ws\n"
            )
        assert workspace.tzfs("sync", "ws") == ""
        assert workspace.tzfs("set", "agent:x=1", "ws") == ""
        assert json.loads(workspace.tzfs("list", "--json", "-o", "agent:x,mounted")) == [
            {"agent:x": "1", "mounted": "yes"}
        ]
