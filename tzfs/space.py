"""What a filesystem's properties say of space: the sums of its accounts, by the names that ZFS gives them.

Everything is exact for the tables that the accounts were read from.  Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tzfs.engine.accounting import Accounts
from tzfs.engine.quotas import Usage, crossed
from tzfs.errors import QuotaExceeded
from tzfs.properties import NATIVE, WRITTEN_SINCE, Kind
from tzfs.units import human_size


def ratio(logical: int, charged: int) -> str:
    """How many times larger it would be without compression, in two decimals, cut as ZFS cuts them."""
    hundredths = max(100, logical * 100 // charged) if charged else 100
    return f"{hundredths // 100}.{hundredths % 100:02}"


def filesystem_facts(accounts: Accounts, also: Iterable[str] = ()) -> dict[str, str]:
    """The computed properties of a filesystem that its accounts know, and those of `also` that are `written@...`."""
    charged, logical = accounts.charged, accounts.logical
    facts = {
        "used": str(charged.used),
        "referenced": str(accounts.referenced()),
        "usedbysnapshots": str(charged.by_snapshots),
        "usedbydataset": str(charged.referenced),
        "freeing": str(charged.freeing),
        "written": str(charged.written),
        "logicalused": str(logical.used),
        "logicalreferenced": str(accounts.referenced(logical=True)),
        "compressratio": ratio(logical.used, charged.used),
        "refcompressratio": ratio(accounts.referenced(logical=True), accounts.referenced()),
    }
    return facts | _written(accounts, also, None)


def available(disk: int, accounts: Accounts, exact: Callable[[str], str]) -> int:
    """What can still be written: of `disk` bytes, what the filesystem's quotas leave; `exact` has its properties."""
    for name, used in (("quota", accounts.charged.used), ("refquota", accounts.charged.referenced)):
        most = int(exact(name))
        if most:
            disk = min(disk, max(0, most - used))
    return disk


def check_quota(what: object, name: str, exact: str, used: int) -> None:
    """Whether the quota `name` may become `exact`: not less than the `used` bytes that it counts, as in ZFS."""
    if exact != "0" and int(exact) < used:
        raise QuotaExceeded(
            f"cannot set {name} of {what} to {human_size(int(exact))}: {human_size(used)} are used",
            hint=f"at least {used}, or none",
        )


def warnings(usages: Sequence[Usage], percents: Sequence[int]) -> dict[str, tuple[int, str]]:
    """For each quota that has reached one of `percents`: the highest that it has, and a line that says so."""
    found = {}
    for name, (percent, usage) in crossed(usages, percents).items():
        show = human_size if NATIVE[name].kind is Kind.SIZE else str
        found[name] = percent, f"{name} has reached {percent}%: {show(usage.used)} of {show(usage.limit)}"
    return found


def snapshot_facts(accounts: Accounts, name: str, also: Iterable[str] = ()) -> dict[str, str]:
    """The same of one snapshot."""
    charged = accounts.of(name)
    referenced, logical = accounts.referenced(name), accounts.referenced(name, logical=True)
    facts = {
        "used": str(charged.used),
        "referenced": str(referenced),
        "written": str(charged.written),
        "logicalreferenced": str(logical),
        "compressratio": ratio(logical, referenced),
        "refcompressratio": ratio(logical, referenced),
    }
    return facts | _written(accounts, also, name)


def _written(accounts: Accounts, also: Iterable[str], at: str | None) -> dict[str, str]:
    found = {}
    for name in also:
        if name.startswith(WRITTEN_SINCE):
            written = accounts.written_since(name.removeprefix(WRITTEN_SINCE), at)
            if written is not None:
                found[name] = str(written)
    return found
