"""The figures of an evaluation as one aligned table on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from fastmpi.evaluation.folder import SuiteSummary


def print_suites(suites: Mapping[str, SuiteSummary]) -> None:
    """Suite, metric, value, 95 % interval and number of items; then what must be said beside."""
    from rich.console import Console
    from rich.table import Table

    table = Table("suite", "metric", box=None, pad_edge=False)
    for column in ("value", "95 % interval", "n"):
        table.add_column(column, justify="right")
    for name, suite in suites.items():
        for metric, figure in suite.figures.items():
            interval = f"{_written(figure.low)} to {_written(figure.high)}"
            table.add_row(name, metric, _written(figure.value), interval, str(figure.n))
            name = ""
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for name, suite in suites.items():
        for what, note in suite.notes.items():
            print(f"{name}: {what}: {note}")


def _written(value: float) -> str:
    """Shares to three digits, larger numbers to one or none."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.{1 if abs(value) < 1000 else 0}f}"
