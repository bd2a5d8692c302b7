"""What the figures of an evaluation are called on a page, their units, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastmpi.evaluation.metrics import Figure
from fastmpi.report.content import Cell

HIGHER, LOWER, NEITHER = 1, -1, 0
# The figure that stands for a suite that asks questions: of tool calls, or of right answers.
HEADLINES = ("overall", "accuracy")
# Columns come in this order, others after them.
ORDER = ("overall", "tool", "argument", "accuracy", "internalisation", "kept_old", "parsed")
MINUS = "\u2212"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %".replace("-", MINUS)


def signed(value: float) -> str:
    """Points of a share of -1 to 1, with a sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def number(value: float) -> str:
    """Three digits that matter: 0, 0.123, 1.23, 12.3, 123, 12 345."""
    if value == 0 or abs(value) >= 100:
        text = f"{value:,.0f}".replace(",", "\u202f")
    else:
        text = f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"
    return text.replace("-", MINUS)


def binary(value: float) -> str:
    """Bytes in the largest unit that leaves a digit before the point."""
    units = ("B", "KiB", "MiB", "GiB")
    power = 0
    while abs(value) >= 1024 and power < len(units) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.{1 if power else 0}f} {units[power]}"


@dataclass(frozen=True)
class Kind:
    """How one figure is shown. `better`: 1 where more is better, -1 where less is, 0 neither."""

    heading: str
    unit: str
    better: int
    form: Callable[[float], str]

    @property
    def is_share(self) -> bool:
        return self.form is percent


def _share(heading: str, unit: str = "", better: int = HIGHER) -> Kind:
    return Kind(heading, unit, better, percent)


KINDS: Mapping[str, Kind] = {
    "accuracy": _share("Accuracy", "all of it right"),
    "parsed": _share("Answer found", "in the response"),
    "tool": _share("Tool", "right name"),
    "argument": _share("Arguments", "mean score"),
    "overall": _share("Overall", "mean of tool and arguments"),
    "kept_old": _share("Old answer kept", "less is better", LOWER),
    "internalisation": Kind("Internalisation", "without / with", NEITHER, number),
    "referral": _share("Quoted truly", "share of citations"),
    "judge_0_to_10": Kind("Judge", "0 to 10", HIGHER, number),
    "unknown_citations": _share("Unknown rules cited", "less is better", LOWER),
    "branching_error": Kind("Branching error", "less is better", LOWER, number),
}
# Costs of a prompt, each with the endings _with, _without (the policy) and _saved.
COSTS: Mapping[str, tuple[str, str, Callable[[float], str]]] = {
    "prompt_tokens": ("Prompt tokens", "", number),
    "prefill_ms": ("Time to read it", " ms", number),
    "kv_bytes": ("Cache of keys and values", "", binary),
}


def kind_of(suite: str, name: str) -> Kind:
    """The kind of a figure; one that is not known here is shown as the number it is."""
    if name in KINDS:
        return KINDS[name]
    heading = name.replace("_", " ").capitalize()
    return _share(heading) if suite == "forgetting" else Kind(heading, "", NEITHER, number)


def figure_cell(kind: Kind, figure: Figure | None, best: bool = False) -> Cell:
    """A figure and its interval; an interval without width is left out."""
    if figure is None or figure.n == 0:
        return Cell("\u2013")
    low, high = (kind.form(value) for value in figure.interval)
    detail = "" if low == high else f"{low.removesuffix(' %')} to {high.removesuffix(' %')}"
    return Cell(kind.form(figure.value), detail, best)


def cost_cell(figures: Mapping[str, Figure], cost: str) -> Cell:
    """As "51.2 to 15.1" and, below it, the share saved with its interval."""
    _, unit, form = COSTS[cost]
    found = [figures.get(f"{cost}_{end}") for end in ("with", "without", "saved")]
    if any(figure is None or figure.n == 0 for figure in found):
        return Cell("\u2013")
    long, short, saved = (figure for figure in found if figure is not None)
    low, high = (percent(value) for value in saved.interval)
    detail = f"{percent(saved.value)} less"
    if low != high:
        detail += f" ({low.removesuffix(' %')} to {high.removesuffix(' %')})"
    return Cell(f"{form(long.value)} \u2192 {form(short.value)}{unit}", detail)
