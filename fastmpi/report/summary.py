"""The numbers of a comparison as `summary.json`, which other programs read."""

from __future__ import annotations

from typing import Any

from fastmpi.report.runs import Evaluation, Run


def run_summary(run: Run) -> dict[str, Any]:
    """{"rows", "methods", "notes", "seconds"}: rows in the recipe's order, shares from 0 to 1.

    A row has `method`, `n`, `accuracy` without the policy in the prompt, `accuracy_with_policy`,
    `prompt_tokens` and `prefill_ms` of the prompt that the method is used with (the policy is in
    it where nothing was trained), `cpu_seconds` of training, and `suites`: every figure as
    {"value", "low", "high", "n"}. `seconds` are those of each stage by the wall clock.
    """
    notes = {
        suite: dict(summary.notes)
        for evaluation in run.evaluations
        for suite, summary in evaluation.suites.items()
        if summary.notes
    }
    return {
        "title": run.title,
        "methods": [evaluation.label for evaluation in run.evaluations],
        "rows": [_row(evaluation) for evaluation in run.evaluations],
        "notes": notes,
        "seconds": {"+".join(t.chain): t.seconds for t in run.trainings},
    }


def _row(evaluation: Evaluation) -> dict[str, Any]:
    used = "with" if evaluation.untrained else "without"
    task = evaluation.figures("task")["accuracy"]
    costs = evaluation.figures("efficiency")
    return {
        "method": evaluation.label,
        "accuracy": task.value,
        "accuracy_with_policy": evaluation.figures("in-context")["accuracy"].value,
        "n": task.n,
        "prompt_tokens": costs[f"prompt_tokens_{used}"].value,
        "prefill_ms": costs[f"prefill_ms_{used}"].value,
        "cpu_seconds": evaluation.cpu_seconds,
        "suites": {
            suite: {name: figure.to_dict() for name, figure in summary.figures.items()}
            for suite, summary in evaluation.suites.items()
        },
    }
