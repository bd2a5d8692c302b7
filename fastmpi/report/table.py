"""The comparison as an HTML table: numbers, their intervals, and a dot with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.report.content import MethodRow
from fastmpi.report.markup import element, escape

HEADINGS = (
    ("Method", ""),
    ("Accuracy without the policy", "95 % interval"),
    ("", "0 to 1; dotted: a fixed answer"),
    ("Accuracy with the policy", "95 % interval"),
    ("Prompt tokens", "mean"),
    ("Prefill", "ms, median"),
    ("Training", "CPU-seconds, whole row"),
)
BAR_W, BAR_H = 160, 18


def comparison_table(rows: Sequence[MethodRow], fixed_answer: float | None = None) -> str:
    """The table; the best accuracy of each column is bold. ``fixed_answer``: see `Report`."""
    best = max(row.accuracy for row in rows)
    best_with = max(row.accuracy_with_policy for row in rows)
    body = [_row(row, row.accuracy == best, row.accuracy_with_policy == best_with, fixed_answer)
            for row in rows]  # fmt: skip
    head = element("thead", element("tr", *(_heading(name, unit) for name, unit in HEADINGS)))
    table = element("table", head, element("tbody", *body), class_="comparison")
    return element("div", table, class_="scroll")


def _heading(name: str, unit: str) -> str:
    small = element("small", escape(unit)) if unit else ""
    return element("th", escape(name), small, scope="col")


def _row(row: MethodRow, best: bool, best_with: bool, fixed_answer: float | None) -> str:
    note = element("small", escape(row.note)) if row.note else ""
    cells = [
        element("th", escape(row.method), note, scope="row"),
        _accuracy(row.accuracy, row.interval, best),
        element("td", _dot(row, best, fixed_answer), class_="bar"),
        _accuracy(row.accuracy_with_policy, row.interval_with_policy, best_with),
        _number(f"{row.prompt_tokens:.0f}"),
        _number(f"{row.prefill_ms:.1f}"),
        _number(f"{row.cpu_seconds:.0f}" if row.cpu_seconds else "none"),
    ]
    return element("tr", *cells, class_="best" if best else None)


def _accuracy(value: float, interval: tuple[float, float] | None, best: bool) -> str:
    number = element("b" if best else "span", f"{100 * value:.1f} %")
    low_high = "" if interval is None else "{:.0f} to {:.0f}".format(*(100 * v for v in interval))
    return element("td", number, element("small", low_high), class_="number")


def _number(text: str) -> str:
    return element("td", escape(text), class_="number")


def _dot(row: MethodRow, best: bool, fixed_answer: float | None) -> str:
    """The accuracy as a dot on a line from 0 to 1, its interval as a thick stroke."""

    def at(value: float) -> str:
        return f"{6 + value * (BAR_W - 12):.1f}"

    middle = BAR_H / 2
    parts = [element("title", f"{100 * row.accuracy:.1f} %")]
    parts.append(element("line", x1=6, x2=BAR_W - 6, y1=middle, y2=middle, class_="axis"))
    if fixed_answer is not None:
        parts.append(element("line", x1=at(fixed_answer), x2=at(fixed_answer), y1=1, y2=BAR_H - 1,
                             class_="chance"))  # fmt: skip
    if row.interval is not None:
        low, high = row.interval
        parts.append(element("line", x1=at(low), x2=at(high), y1=middle, y2=middle, class_="span"))
    parts.append(element("circle", cx=at(row.accuracy), cy=middle, r=5, class_="dot"))
    return element("svg", *parts, viewBox=f"0 0 {BAR_W} {BAR_H}", role="img",
                   class_="dots best" if best else "dots")  # fmt: skip
