"""policy: which snapshots of a filesystem are kept."""

from __future__ import annotations

import click

from tzfs import policies
from tzfs.cli.output import document, table
from tzfs.cli.parameters import FILESYSTEM, TARGET, store_of
from tzfs.inheritance import Value, resolve
from tzfs.management import Store
from tzfs.names import Scope, parse_filesystem, parse_property_target

PROPERTIES = ("retention", "retention_names", "snapshot_interval")


@click.group()
def policy_command() -> None:
    """Which snapshots are kept: a grid of intervals, in zrepl's syntax.

    \b
    1h(keep=all) | 24x1h | 14x1d
      |              |       '-- then one of each of 14 days
      |              '---------- then one of each of 24 hours
      '------------------------- all of the last hour

    An interval is [COUNTx]DURATION[(keep=all|NUMBER)], durations in s, m, h, d or w.  The first begins at the newest
    snapshot, each further one before it; of each bucket the oldest are kept, so that they grow into the next interval.
    The newest is always kept.

    It is about automatic snapshots (auto-*) alone, unless --names says otherwise: all others are kept, and so is what
    is held, bookmarked or the origin of a clone, whatever its name.  A policy is three properties, inherited like
    others: retention, retention_names, snapshot_interval.

    \b
    tzfs policy set --every 10m ws "1h(keep=all) | 24x1h | 14x1d"
    tzfs policy show ws

    What is not kept is destroyed every hour while the filesystem is open for writing (prune_interval), or by tzfs
    prune.
    """


@policy_command.command("set")
@click.option("--names", "names", metavar="PATTERN,...", help="The snapshots it is about.  [default: auto-*]")
@click.option("--every", "every", metavar="TIME", help="Take one as often, where something has changed: 10m; 0: never.")
@click.argument("target", metavar="FILESYSTEM|NAMESPACE/|/", type=TARGET)
@click.argument("grid", metavar="POLICY")
@click.pass_context
def set_policy(ctx: click.Context, names: str | None, every: str | None, target: str, grid: str) -> None:
    """Set the policy of a filesystem, of NAMESPACE/, or of / for the whole store.  `none` keeps everything.

    \b
    tzfs policy set --every 10m ws "1h(keep=all) | 24x1h | 14x1d"
    tzfs policy set --names 'auto-*,step-*' agents/ "6x10m | 24x1h"
    tzfs policy set --names 'auto-*,run-*,undo-*,rollback-*' ws "1d(keep=all) | 30x1d"
    """
    changes: dict[str, str | None] = {"retention": grid}
    if names is not None:
        changes["retention_names"] = names
    if every is not None:
        changes["snapshot_interval"] = every
    store_of(ctx).set_properties([target], changes)


@policy_command.command("get")
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("-p", "parsable", is_flag=True, help="Exact numbers.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name, property, value and source.")
@click.argument("names", metavar="FILESYSTEM|NAMESPACE/|/...", nargs=-1, required=True, type=TARGET)
@click.pass_context
def get_policy(ctx: click.Context, scripted: bool, parsable: bool, as_json: bool, names: tuple[str, ...]) -> None:
    """Print the policy, and where it is set: as `tzfs get` of its three properties.

    \b
    tzfs policy get ws
    """
    store = store_of(ctx)
    found = [(name, value) for name in names for value in _policy_of(store, name)]
    if as_json:
        document({n: {v.name: {"value": v.exact, "source": v.source} for m, v in found if m == n} for n in names})
        return
    rows = [[name, v.name, v.parsable if parsable else v.human, v.source] for name, v in found]
    table(("name", "property", "value", "source"), rows, scripted=scripted)


def _policy_of(store: Store, name: str) -> list[Value]:
    where = parse_property_target(name)
    if isinstance(where, Scope):
        found = resolve(store.catalog.scope_layers(where), {})
        return [found[key] for key in PROPERTIES]
    info = store.get(where)
    return [info.property(key) for key in PROPERTIES]


@policy_command.command("show")
@click.option("-H", "scripted", is_flag=True, help="No headers, one tab between columns.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array: name and kept_by, null where nothing keeps it.")
@click.argument("name", metavar="FILESYSTEM", type=FILESYSTEM)
@click.pass_context
def show_policy(ctx: click.Context, scripted: bool, as_json: bool, name: str) -> None:
    """Show what keeps each snapshot now; - where nothing does, and pruning would destroy it.

    \b
    tzfs policy show ws
    """
    filesystem = parse_filesystem(name)
    found = policies.kept(store_of(ctx), filesystem)
    if as_json:
        document([{"name": f"{filesystem}@{v.name}", "kept_by": v.kept_by} for v in found])
        return
    table(("name", "kept by"), [[f"{filesystem}@{v.name}", v.kept_by or "-"] for v in found], scripted=scripted)


@policy_command.command("inherit")
@click.argument("targets", metavar="FILESYSTEM|NAMESPACE/|/...", nargs=-1, required=True, type=TARGET)
@click.pass_context
def inherit_policy(ctx: click.Context, targets: tuple[str, ...]) -> None:
    """Take a policy away, so that the namespace's or the store's holds, or none.

    \b
    tzfs policy inherit ws
    """
    store_of(ctx).set_properties(targets, dict.fromkeys(PROPERTIES))
