"""`fastmpi compare`: runs a ladder of methods, shows it, and writes what came out.

output_dir/config.yaml     the resolved recipe       stages/<chain>/   models, metrics, records
           summary.json    the numbers of the table  eval/<chain>/     every answer
           report.html     the table, the curves, the policies, sample scenes
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmpi.environment import versions
from fastmpi.recipe import Recipe
from fastmpi.report import MethodRow, Report, write_page
from fastmpi.report.display import JobDisplay, RunningJob
from fastmpi.stages.chain import prepare_data, save_recipe
from fastmpi.stages.comparison_page import (
    findings,
    fixed_answer,
    method_rows,
    policy_pictures,
    scene_samples,
    stage_curves,
    stage_seconds,
)
from fastmpi.stages.ladder import Ladder
from fastmpi.stages.methods import Comparison, comparison_of, prefixes
from fastmpi.tracking import read_metrics

SHOWN = ("loss", "reward", "perf/tokens_per_s")


def compare(
    recipe: Recipe,
    console: Console,
    *,
    overwrite: bool = False,
    trust_recipe_code: bool = False,
    trust_remote_code: bool = False,
) -> tuple[list[MethodRow], list[str]]:
    """Trains and evaluates all methods of `recipe.compare`; finished stages are not run again.
    Returns the table and what follows from it in words."""
    comparison = comparison_of(recipe)  # every setting is checked before anything is written
    began = time.perf_counter()
    data = prepare_data(recipe, overwrite=overwrite)
    output = save_recipe(recipe)
    seconds = {"data": time.perf_counter() - began}
    ladder = Ladder(
        recipe,
        data,
        overwrite=overwrite,
        trust_recipe_code=trust_recipe_code,
        trust_remote_code=trust_remote_code,
    )
    with JobDisplay(console, len(ladder.jobs)) as display:
        outcome = ladder.run(lambda at, running: display.update(_running(at, running), at.results))
    seconds |= stage_seconds(outcome)
    seconds["total"] = time.perf_counter() - began
    rows = method_rows(comparison, outcome)
    said = findings(comparison, outcome, rows)
    _write_summary(output / "summary.json", recipe, rows, seconds)
    write_page(
        Report(
            title=comparison.title,
            summary=_intro(recipe, rows),
            rows=rows,
            findings=said,
            fixed_answer=fixed_answer(outcome),
            stages=stage_curves(comparison, outcome),
            policies=policy_pictures(data),
            samples=scene_samples(comparison, outcome, data, comparison.num_scenes),
            facts=_facts(recipe, comparison, rows),
            seconds=seconds,
        ),
        output / "report.html",
    )
    return rows, said


def _running(ladder: Ladder, names: Sequence[str]) -> list[RunningJob]:
    """How far each running job is, read from the metrics that a trainer writes."""
    chains = {f"train {'+'.join(c)}": c for c in prefixes(ladder.comparison.chains().values())}
    jobs = []
    for name in names:
        if name not in chains:
            jobs.append(RunningJob(name))
            continue
        lines = read_metrics(ladder.folder(chains[name]))
        last = lines[-1] if lines else {}
        total = ladder.plan(chains[name]).config.max_steps
        shown = {key.split("/")[-1]: last[key] for key in SHOWN if key in last}
        jobs.append(RunningJob(name, int(last.get("step", 0)), max(total, 0), shown))
    return jobs


def _write_summary(
    path: Path, recipe: Recipe, rows: Sequence[MethodRow], seconds: Mapping[str, float]
) -> None:
    """Accuracies from 0 to 1, rows in the recipe's order."""
    kept = ("method", "accuracy", "accuracy_with_policy", "n", "prompt_tokens", "prefill_ms",
            "cpu_seconds")  # fmt: skip
    summary: dict[str, Any] = {
        "rows": [{name: getattr(row, name) for name in kept} for row in rows],
        "methods": [row.method for row in rows],
        "seed": recipe.seed,
        "versions": versions(),
        "seconds": dict(seconds),
    }
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _intro(recipe: Recipe, rows: Sequence[MethodRow]) -> str:
    model = "the embedded tiny Qwen2.5-VL" if recipe.model == "tiny" else recipe.model
    return (
        f"{len(rows)} ways to make {model} follow its policies, each asked the same {rows[0].n} "
        "questions about pictures that no training saw, without and with the policy in the prompt."
    )


def _facts(recipe: Recipe, comparison: Comparison, rows: Sequence[MethodRow]) -> dict[str, str]:
    facts = {
        "Model": recipe.model,
        "Seed": str(recipe.seed),
        "Test questions": str(rows[0].n),
        "Worker processes, one thread each": str(comparison.workers),
        "A fixed answer": "always the most frequent answer of the question's policy",
        "Prompt tokens and prefill": "with the policy in untrained rows, without it in the others",
        "CPU-seconds": "optimiser steps and rollouts of all stages of the row",
        "Intervals": "95 %, Wilson",
    }
    return facts | versions()
