"""`fastmpi compare`: runs a ladder of methods, shows it, and writes what came out.

output_dir/config.yaml     the resolved recipe       stages/<chain>/   models, metrics, records
           summary.json    the numbers of the table  eval/<chain>/     every answer
           report.html     what `fastmpi report output_dir` makes of these files
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fastmpi.environment import versions
from fastmpi.files import write_whole
from fastmpi.recipe import Recipe
from fastmpi.report import Report, build_report, read_run, write_page
from fastmpi.report.display import JobDisplay, RunningJob
from fastmpi.report.runs import Run
from fastmpi.report.summary import run_summary
from fastmpi.stages.chain import check_inputs, prepare_data, save_recipe
from fastmpi.stages.ladder import Ladder
from fastmpi.stages.methods import comparison_of, plans_of, prefixes
from fastmpi.tracking import read_metrics

SHOWN = ("loss", "reward", "perf/tokens_per_s")


def compare(
    recipe: Recipe,
    console: Console,
    *,
    overwrite: bool = False,
    trust_recipe_code: bool = False,
    trust_remote_code: bool = False,
) -> Report:
    """Trains and evaluates all methods of `recipe.compare`; finished stages are not run again.
    Returns what stands on the page."""
    comparison = comparison_of(recipe)  # every setting is checked before anything is written
    began = time.perf_counter()
    data = prepare_data(recipe, overwrite=overwrite, trust_remote_code=trust_remote_code)
    check_inputs(recipe, plans_of(recipe, comparison), data, trust_recipe_code)
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
        ladder.run(lambda at, running: display.update(_running(at, running), at.results))
    seconds["total"] = time.perf_counter() - began
    run = read_run(output)
    _write_summary(output / "summary.json", recipe, run, seconds)
    content = build_report([run], num_questions=comparison.num_questions)
    write_page(content, output / "report.html")
    return content


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


def _write_summary(path: Path, recipe: Recipe, run: Run, seconds: Mapping[str, float]) -> None:
    found = run_summary(run)
    summary = {
        **found,
        "seed": recipe.seed,
        "versions": versions(),
        "seconds": {**found["seconds"], **seconds},
    }
    write_whole(path, json.dumps(summary, indent=1) + "\n")
