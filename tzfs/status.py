"""Who has which filesystem of a store mounted or open, and how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tzfs.catalog import Catalog, FilesystemInfo
from tzfs.control import connect
from tzfs.errors import NotFound, StoreError, TzfsError
from tzfs.store.lease import live_views


@dataclass(frozen=True, slots=True)
class MountStatus:
    """What is mounted, or open, where: `what` is a filesystem or snapshot; `failed` why it answers nothing any more, or
    why nobody can say who has it (then `pid` is 0); `warnings` what else somebody should know: background tasks that
    failed, quotas that fill up; `freeing` the bytes of destroyed snapshots that are still to be freed.
    """

    what: str
    mountpoint: str
    pid: int
    kind: str
    failed: str | None = None
    warnings: tuple[str, ...] = ()
    freeing: int = 0


def statuses(catalog: Catalog, *, ask: bool = True) -> list[MountStatus]:
    """Every mount and every other process that has a filesystem of the store open; see `Store.status`."""
    out: list[MountStatus] = []
    for info in catalog.list(on_damage=lambda error: out.append(_unknown("?", error))):
        reasons: list[TzfsError] = []
        try:
            holder = catalog.holder(info)
            if holder is not None:
                out.append(_holder_status(catalog, info, holder, ask=ask))
        except TzfsError as error:  # of this one it cannot be said who has it
            reasons.append(error)
        try:
            for view in live_views(info.folder):
                mountpoint = str(view.get("mountpoint") or "-")
                out.append(
                    MountStatus(f"{info.name}@{view.get('name')}", mountpoint, int(view.get("pid") or 0), "snapshot")
                )
        except TzfsError as error:
            reasons.append(error)
        if reasons:
            out.append(_unknown(str(info.name), reasons[0]))
    return out


def _unknown(what: str, error: TzfsError) -> MountStatus:
    return MountStatus(what, "-", 0, "-", failed=str(error))


def _holder_status(
    catalog: Catalog, info: FilesystemInfo, holder: Mapping[str, str | int | float | None], *, ask: bool
) -> MountStatus:
    status = MountStatus(
        str(info.name),
        str(holder.get("mountpoint") or "-"),
        int(holder.get("pid") or 0),
        str(holder.get("kind") or "-"),
    )
    where = holder.get("socket")
    if ask and isinstance(where, str):
        try:
            with connect(Path(where), timeout_s=5.0) as mount:
                answer = mount.call("info")
            told = answer if isinstance(answer, dict) else {}
            failed, warnings, freeing = told.get("failed"), told.get("warnings"), told.get("freeing")
            status = replace(
                status,
                failed=failed if isinstance(failed, str) else None,
                warnings=tuple(map(str, warnings)) if isinstance(warnings, list) else (),
                freeing=freeing if isinstance(freeing, int) else 0,
            )
        except (NotFound, StoreError) as error:  # it is just beginning, ending, or stuck
            if catalog.holder(info) is not None:
                status = replace(status, failed=f"does not answer: {error}")
    return status
