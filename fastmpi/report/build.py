"""Runs on disk become a page: `report([folder, ...], "report.html")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastmpi.report.content import Report
from fastmpi.report.curves import curve_groups
from fastmpi.report.differences import differences
from fastmpi.report.facts import fact_tables
from fastmpi.report.findings import findings, tiles
from fastmpi.report.gallery import galleries
from fastmpi.report.page import write_page
from fastmpi.report.policy_views import policy_part
from fastmpi.report.runs import Evaluation, Run, read_runs
from fastmpi.report.suites import glance, parts
from fastmpi.settings import did_you_mean

NUM_QUESTIONS = 6


def report(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    baseline: str | None = None,
    num_questions: int = NUM_QUESTIONS,
) -> Report:
    """Reads the runs and writes the page; returns what stands on it."""
    content = build_report(read_runs(folders), baseline=baseline, num_questions=num_questions)
    write_page(content, output)
    return content


def build_report(
    runs: Sequence[Run], *, baseline: str | None = None, num_questions: int = NUM_QUESTIONS
) -> Report:
    """All evaluations are compared with the baseline, the first one unless another is named. The
    page is about the one that has a control, else about the last. `num_questions`: cards in each
    gallery."""
    if num_questions < 0:
        raise ValueError(f"num_questions must not be negative, got {num_questions}")
    evaluations = [e for run in runs for e in run.evaluations]
    against = _named(baseline, evaluations)
    subject = _subject(evaluations, against)
    return Report(
        title=runs[0].title if len(runs) == 1 else f"{len(evaluations)} runs compared",
        lead=_lead(evaluations),
        tiles=tiles(against, subject),
        findings=findings(evaluations, against, subject),
        glance=glance(evaluations),
        suites=parts(evaluations),
        differences=differences(evaluations, against),
        baseline=against.label,
        curves=curve_groups(runs),
        policies=policy_part(evaluations, subject),
        galleries=galleries(evaluations, subject, num_questions),
        facts=fact_tables(evaluations),
    )


def _named(label: str | None, evaluations: Sequence[Evaluation]) -> Evaluation:
    known = {e.label: e for e in evaluations}
    if label is None:
        return evaluations[0]
    if label not in known:
        raise ValueError(f"baseline: no run is called {label!r}{did_you_mean(label, known)}")
    return known[label]


def _subject(evaluations: Sequence[Evaluation], against: Evaluation) -> Evaluation:
    others = [e for e in evaluations if e is not against] or [against]
    controlled = {e.matches for e in evaluations}
    return next((e for e in reversed(others) if e.label in controlled), others[-1])


def _lead(evaluations: Sequence[Evaluation]) -> str:
    models = {str(e.run.get("model")) for e in evaluations}
    counts = {len(e.items("task")) for e in evaluations if e.items("task")}
    asked = f"asked {' or '.join(map(str, sorted(counts)))} questions" if counts else "evaluated"
    if len(evaluations) == 1:
        return f"{models.pop()}, {asked} about pictures and the policies it was to learn."
    return (
        f"{len(evaluations)} models or methods, each {asked} about pictures that no training saw, "
        "without and with the policy in the prompt. Every number has its 95 % interval."
    )
