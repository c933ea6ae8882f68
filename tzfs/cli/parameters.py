"""What commands' parameters have in common: the store, `property=value`, and how names go on when a shell asks.

Completion looks at the store and changes nothing: none is made, and nothing interrupted is finished.  Where it cannot
look it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import click
from click.shell_completion import CompletionItem

from tzfs.catalog import Catalog
from tzfs.errors import InvalidArgument, TzfsError
from tzfs.management import Store, open_store
from tzfs.properties import NATIVE, SHORT, is_user
from tzfs.runtime import default_store

Items = list[CompletionItem[str]]
COLUMN_NAMES = ("name", "space", *SHORT)  # what a listing has besides properties


def store_of(ctx: click.Context) -> Store:
    """The store that the command line names, open until the command ends."""
    return ctx.with_resource(open_store(_path(ctx)))


def _path(ctx: click.Context) -> str | None:
    path = ctx.find_root().params.get("store")
    return path if isinstance(path, str) else None


def _looking(ctx: click.Context, find: Callable[[Store], Iterable[str]]) -> list[str]:
    """What is found in the store, for completion."""
    try:
        with Store(Catalog.open(_path(ctx) or default_store(), create=False, readonly=True)) as store:
            return list(find(store))
    except (TzfsError, OSError):
        return []


def _starting(with_: str, names: Iterable[str], *, before: str = "") -> Items:
    return [CompletionItem(before + name) for name in names if name.startswith(with_)]


def complete_filesystem(ctx: click.Context, incomplete: str) -> Items:
    """Filesystems; after an `@` the snapshots of the one before it."""
    name, at, _ = incomplete.partition("@")
    if at:
        return _starting(
            incomplete, _looking(ctx, lambda store: [str(s.name) for s in store.snapshots(name, settle=False)])
        )
    return _starting(incomplete, _looking(ctx, lambda store: [str(info.name) for info in store.filesystems()]))


def complete_target(ctx: click.Context, incomplete: str) -> Items:
    """Filesystems, and the scopes above them."""

    def scopes(store: Store) -> list[str]:
        spaces = {info.name.namespace for info in store.filesystems()} - {""}
        return ["/", *(f"{space}/" for space in sorted(spaces))]

    return [*complete_filesystem(ctx, incomplete), *_starting(incomplete, _looking(ctx, scopes))]


def complete_mount(ctx: click.Context, incomplete: str) -> Items:
    """What of the store is mounted, and directories."""

    def mounted(store: Store) -> list[str]:
        return sorted({s.what for s in store.status(ask=False) if s.mountpoint != "-"})

    return [*_starting(incomplete, _looking(ctx, mounted)), CompletionItem(incomplete, type="dir")]


def complete_property(ctx: click.Context, incomplete: str, *, settable: bool = False) -> Items:
    """Properties by name: native ones, and those of the user's that are set anywhere."""

    def set_by_users(store: Store) -> list[str]:
        layers = (values for info in store.filesystems() for _, values in info.layers)
        return sorted({name for values in layers for name in values if is_user(name)})

    native = [p.name for p in NATIVE.values() if p.settable or not settable]
    return _starting(incomplete, [*native, *_looking(ctx, set_by_users)])


def complete_properties(ctx: click.Context, incomplete: str, *, more: Sequence[str] = ()) -> Items:
    """The last of several properties with commas between."""
    before, comma, last = incomplete.rpartition(",")
    found = [*_starting(last, more), *complete_property(ctx, last)]
    return [CompletionItem(before + comma + item.value) for item in found]


def complete_assignment(ctx: click.Context, incomplete: str, *, settable: bool = True) -> Items:
    """`PROPERTY=`, and after it the values that there are to choose from."""
    name, equals, value = incomplete.partition("=")
    if not equals:
        return [CompletionItem(f"{i.value}=") for i in complete_property(ctx, name, settable=settable)]
    native = NATIVE.get(name)
    return _starting(value, native.choices if native is not None else (), before=f"{name}=")


class Completed(click.ParamType[str]):
    """A text that completes in its own way."""

    def __init__(self, name: str, complete: Callable[[click.Context, str], Items]) -> None:
        self.name = name
        self._complete = complete

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        return self._complete(ctx, incomplete)


FILESYSTEM = Completed("filesystem", complete_filesystem)
SNAPSHOT = Completed("snapshot", complete_filesystem)
TARGET = Completed("target", complete_target)
MOUNT = Completed("mount", complete_mount)
PROPERTY = Completed("property", lambda ctx, text: complete_property(ctx, text, settable=True))
PROPERTIES = Completed("properties", lambda ctx, text: complete_properties(ctx, text, more=("all", *SHORT)))
COLUMN = Completed("column", lambda ctx, text: complete_properties(ctx, text, more=COLUMN_NAMES))
ASSIGNMENT = Completed("assignment", complete_assignment)
CONDITION = Completed("condition", lambda ctx, text: complete_assignment(ctx, text, settable=False))
CHANGE = Completed("change", lambda ctx, text: [*complete_assignment(ctx, text), *complete_target(ctx, text)])
DIRECTORY = Completed("directory", lambda ctx, text: [CompletionItem(text, type="dir")])  # click's own looks at it
COMMAND = Completed("command", lambda ctx, text: [CompletionItem(text, type="file")])


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """`property=value` each; `InvalidArgument` for anything else, and for a property that is given twice."""
    out: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"{text!r} is not PROPERTY=VALUE")
        if name in out:
            raise InvalidArgument(f"property {name} is given twice")
        out[name] = value
    return out
