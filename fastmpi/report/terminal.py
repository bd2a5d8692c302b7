"""The comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fastmpi.report.content import MethodRow


def results_table(rows: Sequence[MethodRow], title: str = "") -> Table:
    """A rich table; the best accuracy of each column is bold."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Method", no_wrap=True)
    for name in ("Accuracy without\nthe policy", "Accuracy with\nthe policy", "Prompt\ntokens",
                 "Prefill\nms", "Training\nCPU-seconds"):  # fmt: skip
        table.add_column(name, justify="right")
    best = max(row.accuracy for row in rows)
    best_with = max(row.accuracy_with_policy for row in rows)
    for row in rows:
        table.add_row(
            Text(row.method),
            _accuracy(row.accuracy, row.interval, row.accuracy == best),
            _accuracy(row.accuracy_with_policy, None, row.accuracy_with_policy == best_with),
            f"{row.prompt_tokens:.0f}",
            f"{row.prefill_ms:.1f}",
            f"{row.cpu_seconds:.0f}",
        )
    return table


def _accuracy(value: float, interval: tuple[float, float] | None, best: bool) -> Text:
    text = Text(f"{value:.3f}", style="bold" if best else "")
    if interval is not None:
        text.append(f" \u00b1{(interval[1] - interval[0]) / 2:.3f}", style="dim")
    return text
