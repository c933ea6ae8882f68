"""What commands' parameters have in common: opening the store, names that complete, `property=value`."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from tzfs.errors import InvalidArgument, TzfsError
from tzfs.management import Store, open_store


def store_of(ctx: click.Context) -> Store:
    """The store that the command line names, open until the command ends."""
    path = ctx.find_root().obj
    return ctx.with_resource(open_store(path if isinstance(path, str) else None))


class FilesystemType(click.ParamType[str]):
    """The name of a filesystem, completed from the store."""

    name = "filesystem"
    snapshots = False

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            store = store_of(ctx)
            names = [str(info.name) for info in store.filesystems()]
            if self.snapshots:
                names = [str(s.name) for name in names for s in store.snapshots(name)]
        except TzfsError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class SnapshotType(FilesystemType):
    """The name of a snapshot, completed from the store."""

    name = "snapshot"
    snapshots = True


FILESYSTEM = FilesystemType()
SNAPSHOT = SnapshotType()


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """`property=value` each; `InvalidArgument` for anything else."""
    out = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"{text!r} is not PROPERTY=VALUE")
        out[name] = value
    return out
