"""Summaries of `fastmpi compare` by kind and seed: their numbers, and how pages write them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Kind -> heading, recipe, and what is asked.
DEMOS = {
    "t": ("ClevrPolicy-T", "recipes/demo.yaml", "rules in text"),
    "m": ("ClevrPolicy-M", "recipes/demo_m.yaml", "some conditions show a picture"),
    "gta": ("GTAPolicy, cut down", "recipes/demo_gta.yaml", "tool calls"),
    "clevr": ("ClevrPolicy-T on CLEVR's own pictures", "recipes/demo_clevr.yaml", "rules in text"),
}
# A column of a table: heading, suite, figure, and what its values are multiplied by.
Column = tuple[str, str, str, float]
Demo = Mapping[str, Any]


def demos_of(folder: Path, kind: str) -> list[Demo]:
    """The summaries of one kind, by seed."""
    return [{**read(p), "kind": kind} for p in sorted(folder.glob(f"demo-{kind}-seed*.json"))]


def values(demos: Sequence[Demo], method: str, column: Column) -> list[float]:
    """By seed, without the seeds that do not have it."""
    _, suite, name, factor = column
    found = [figure(row, suite, name) for row in rows(demos, method)]
    return [factor * value for value in found if value is not None]


def figure(row: Mapping[str, Any], suite: str, name: str) -> float | None:
    """One figure of a row; "" is a suite's own: the overall score of calls, else the accuracy."""
    figures = row.get("suites", {}).get(suite, {})
    names = [name] if name else ["overall", "accuracy"]
    for found in (figures[name] for name in names if name in figures):
        return float(found["value"]) if found["n"] else None
    plain = {("task", ""): "accuracy", ("in-context", ""): "accuracy_with_policy"}
    return row.get(plain.get((suite, name), ""))


def rows(demos: Sequence[Demo], method: str) -> list[dict[str, Any]]:
    """One method's row of each seed."""
    return [next(row for row in demo["rows"] if row["method"] == method) for demo in demos]


def line(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """The mean and, where seeds differ, the lowest and highest."""
    if not values:
        return "\u2013"
    digits = 2 if 0 < max(map(abs, values)) < 2 else 1 if max(values) else 0
    mean, low, high = (
        f"{v:.{digits}f}" for v in (statistics.mean(values), min(values), max(values))
    )
    return mean if low == high else f"{mean} [{low}, {high}]"


def mean(values: Sequence[float] | None) -> str:
    return f"{statistics.mean(values):.1f}" if values else "\u2013"


def signed(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):+.1f} [{min(values):+.1f}, {max(values):+.1f}]"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
