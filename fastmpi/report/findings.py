"""What a page says at its top: a few large numbers, and plain sentences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.evaluation.metrics import Figure
from fastmpi.report.content import Tile
from fastmpi.report.differences import gain, verdict
from fastmpi.report.figures import COSTS, number, percent, signed
from fastmpi.report.runs import Evaluation
from fastmpi.report.suites import headline, headline_figure

_SAVED = {"prompt_tokens": "fewer prompt tokens", "prefill_ms": "less time to read the prompt"}
_ALSO = {
    "override": "With other rules in the prompt, under the old name,",
    "referral": "In quoting the rules truly",
}


def tiles(baseline: Evaluation, subject: Evaluation) -> list[Tile]:
    """Up to four: the subject's result, what the baseline has with the policy, what is saved."""
    found = [
        _result(subject, "task", "without the policy"),
        _result(baseline, "in-context", "with the policy"),
        *(_saving(subject, cost, words) for cost, words in _SAVED.items()),
    ]
    return [tile for tile in found if tile is not None]


def findings(
    evaluations: Sequence[Evaluation], baseline: Evaluation, subject: Evaluation
) -> list[str]:
    """Sentences on the subject: its prompt, equal compute, the other runs, the other suites."""
    if baseline is subject:
        return []
    said = [_prompt(baseline, subject)]
    gains = [(e, gain(subject, e, "task")) for e in evaluations if e is not subject]
    trained = [(e, ahead) for e, ahead in gains if ahead is not None and not e.untrained]
    controls = [(e, ahead) for e, ahead in trained if e.matches == subject.label]
    said += [_control(subject, e, ahead) for e, ahead in controls]
    said.append(_against(subject, [pair for pair in trained if pair not in controls]))
    said += [_suite(suite, words, baseline, subject) for suite, words in _ALSO.items()]
    return [sentence for sentence in said if sentence]


def _result(evaluation: Evaluation, suite: str, words: str) -> Tile | None:
    figure = headline_figure(evaluation, suite)
    if figure is None:
        return None
    measure = "overall score" if headline(suite, [evaluation]) == "overall" else "right"
    low, high = (f"{100 * v:.1f}" for v in figure.interval)
    return Tile(percent(figure.value), f"{measure} {words}", f"{evaluation.label}: {low} to {high}")


def _saving(evaluation: Evaluation, cost: str, words: str) -> Tile | None:
    figures = evaluation.figures("efficiency")
    if (saved := figures.get(f"{cost}_saved")) is None or not saved.n or saved.value <= 0:
        return None
    long, short = (number(figures[f"{cost}_{end}"].value) for end in ("with", "without"))
    return Tile(f"{100 * saved.value:.0f} %", words, f"{long} \u2192 {short}{COSTS[cost][1]}")


def _prompt(baseline: Evaluation, subject: Evaluation) -> str:
    """Both at the work they are for: the baseline with the policy, the subject without it."""
    with_, without = (_value(baseline, suite) for suite in ("in-context", "task"))
    ours = _value(subject, "task")
    if not (with_ and without and ours):
        return ""
    said = (
        f"{baseline.label} reaches {with_} with the policy in its prompt and {without} without "
        f"it; {subject.label} reaches {ours} without it"
    )
    figures = subject.figures("efficiency")
    long, short = (figures.get(f"prompt_tokens_{end}") for end in ("with", "without"))
    if long and short:
        said += f", on {number(short.value)} prompt tokens instead of {number(long.value)}"
    return said + "."


def _value(evaluation: Evaluation, suite: str) -> str:
    figure = headline_figure(evaluation, suite)
    return percent(figure.value) if figure else ""


def _control(subject: Evaluation, control: Evaluation, ahead: Figure) -> str:
    said = {"ahead": f"{subject.label} is ahead", "behind": f"{subject.label} is behind"}
    return (
        f"The control {control.label} trained for {number(control.cpu_seconds or 0)} CPU-seconds, "
        f"{subject.label} for {number(subject.cpu_seconds or 0)}. At equal compute "
        f"{said.get(verdict(ahead), 'the two cannot be told apart')}: {_points(ahead)}."
    )


def _against(subject: Evaluation, gains: Sequence[tuple[Evaluation, Figure]]) -> str:
    """Who is behind the subject and who is not, in one sentence."""
    clauses = []
    for said, words in (
        ("ahead", "is ahead of"), ("not told apart", "cannot be told apart from"),
        ("behind", "is behind"),
    ):  # fmt: skip
        own = [f"{e.label} ({_points(ahead)})" for e, ahead in gains if verdict(ahead) == said]
        if own:
            clauses.append(f"{words} {', '.join(own)}")
    return f"{subject.label} {'; it '.join(clauses)}." if clauses else ""


def _points(figure: Figure) -> str:
    low, high = map(signed, figure.interval)
    return f"{signed(figure.value)} points, {low} to {high}"


def _suite(suite: str, words: str, baseline: Evaluation, subject: Evaluation) -> str:
    ours, theirs = _value(subject, suite), _value(baseline, suite)
    if not (ours and theirs):
        return ""
    return f"{words} {subject.label} reaches {ours}, {baseline.label} {theirs}."
