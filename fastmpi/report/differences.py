"""What runs gain or lose against one another, on the questions that both answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastmpi.evaluation.items import score
from fastmpi.evaluation.metrics import Figure, difference, paired
from fastmpi.report.content import Axis, Cell, Row, Span, Table
from fastmpi.report.figures import signed
from fastmpi.report.questions import why_not
from fastmpi.report.runs import Evaluation
from fastmpi.report.suites import ASKED, SUITES

REACHES = (0.05, 0.1, 0.2, 0.5, 1.0)  # of the line that differences are drawn on


def differences(evaluations: Sequence[Evaluation], baseline: Evaluation) -> list[Table]:
    """One table for each suite that asks about the policies; none without a second run."""
    others = [e for e in evaluations if e is not baseline]
    tables = []
    for suite in ASKED:
        asked = [e for e in others if e.items(suite)] if baseline.items(suite) else []
        gains = {e.label: gain(e, baseline, suite) for e in asked}
        if gains:
            reasons = {e.label: why_not(e, baseline, suite) for e in asked}
            tables.append(_table(suite, others, gains, reasons))
    return tables


def gain(ours: Evaluation, theirs: Evaluation, suite: str) -> Figure | None:
    """How far `ours` is ahead, from -1 to 1; None where they cannot be paired (`why_not`).

    Of a question its accuracy, or the overall score of its tool call.
    """
    if why_not(ours, theirs, suite):
        return None
    return difference(*paired(ours.items(suite), theirs.items(suite), score))


def verdict(figure: Figure) -> str:
    """What the interval of a difference says: ahead, behind, or neither."""
    if figure.low > 0:
        return "ahead"
    return "behind" if figure.high < 0 else "not told apart"


def _table(
    suite: str,
    others: Sequence[Evaluation],
    gains: Mapping[str, Figure | None],
    reasons: Mapping[str, str],
) -> Table:
    columns = [("Difference", "points"), ("Verdict", ""), ("Questions", "in both")]
    rows = [_row(e.label, gains.get(e.label), reasons.get(e.label, "not asked")) for e in others]
    axis = _axis([figure for figure in gains.values() if figure is not None])
    return Table("Run", columns, rows, title=SUITES[suite][0], axis=axis)


def _axis(found: Sequence[Figure]) -> Axis | None:
    """As long as the furthest interval needs; none where nothing is drawn."""
    if not found:
        return None
    furthest = max(max(abs(f.low), abs(f.high)) for f in found)
    reach = next(reach for reach in REACHES if reach >= min(furthest, 1.0))
    return Axis(-reach, reach, "Points", 0.0)


def _row(label: str, figure: Figure | None, reason: str) -> Row:
    if figure is None:
        return Row(label, [Cell("\u2013"), Cell(reason), Cell("0")])
    low, high = map(signed, figure.interval)
    cells = [Cell(signed(figure.value), f"{low} to {high}"), Cell(verdict(figure))]
    return Row(label, [*cells, Cell(str(figure.n))], span=Span(figure.value, *figure.interval))
