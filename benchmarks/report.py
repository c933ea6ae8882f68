"""Medians, ratios, tables and JSON of a run."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

from benchmarks.workloads import Row

BASES: Final = ("emptyfs", "disk")  # what ratios are taken to


class Figure(TypedDict):
    """One cell, as it stands in the JSON."""

    placement: str
    row: str
    unit: str
    higher_is_better: bool
    target: str
    values: list[float]
    median: float
    ratio_to_emptyfs: float | None  # quotient of the medians, for times and for rates
    ratio_to_disk: float | None
    requests: dict[str, int] | None  # of the last round, where counted


@dataclass(slots=True)
class Results:
    """All values of a run, by placement, row and target."""

    rows: Sequence[Row]
    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    requests: dict[tuple[str, str, str], dict[str, int]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # what was not measured, and why

    def add(self, placement: str, row: str, target: str, value: float) -> None:
        self.values.setdefault((placement, row, target), []).append(value)

    def median(self, placement: str, row: str, target: str) -> float | None:
        values = self.values.get((placement, row, target))
        return statistics.median(values) if values else None

    def ratio(self, placement: str, row: Row, target: str, base: str) -> float | None:
        """The quotient of two medians of one placement; None where there is none, or where it would say nothing."""
        if target == base or (base == "emptyfs" and row.durable):
            return None
        ours, theirs = self.median(placement, row.name, target), self.median(placement, row.name, base)
        return ours / theirs if ours is not None and theirs else None

    def figures(self, placements: Iterable[str], targets: Sequence[str]) -> list[Figure]:
        out: list[Figure] = []
        for placement in placements:
            for row in self.rows:
                for target in targets:
                    median = self.median(placement, row.name, target)
                    if median is None:
                        continue
                    out.append(
                        Figure(
                            placement=placement,
                            row=row.name,
                            unit=row.unit,
                            higher_is_better=row.is_rate,
                            target=target,
                            values=self.values[placement, row.name, target],
                            median=median,
                            ratio_to_emptyfs=self.ratio(placement, row, target, "emptyfs"),
                            ratio_to_disk=self.ratio(placement, row, target, "disk"),
                            requests=self.requests.get((placement, row.name, target)),
                        )
                    )
        return out


def machine() -> dict[str, str | int]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in (heads, *lines)) for column in range(len(heads))]
    out = []
    for line in (heads, ["-" * width for width in widths], *lines):
        cells = [
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def render(results: Results, placements: Sequence[str], targets: Sequence[str]) -> str:
    """The tables: per placement the medians, then the ratios to each base."""
    parts = []
    for placement in placements:
        rows = [row for row in results.rows if any(results.median(placement, row.name, t) is not None for t in targets)]
        lines = []
        for row in rows:
            direction = "rate, higher is better" if row.is_rate else "time, lower is better"
            cells = [number(results.median(placement, row.name, target)) for target in targets]
            lines.append([row.name, f"{row.unit} ({direction})", *cells])
        parts.append(f"{placement}: medians\n\n" + table(["", "unit", *targets], lines))
        for base in BASES:
            if base not in targets:
                continue
            others = [target for target in targets if target != base]
            lines = []
            for row in rows:
                kind = "of rates, higher is better" if row.is_rate else "of times, lower is better"
                ratios = [results.ratio(placement, row, target, base) for target in others]
                lines.append([row.name, kind, *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios)])
            parts.append(f"{placement}: ratios to {base}\n\n" + table(["", "ratio", *others], lines))
    if results.skipped:
        parts.append("not measured:\n" + "\n".join(f"  {what}: {why}" for what, why in results.skipped.items()))
    return "\n\n".join(parts)
