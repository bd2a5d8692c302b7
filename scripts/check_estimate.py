"""Runs a recipe and says how near the estimate of its time came, stage by stage.

    python scripts/check_estimate.py recipes/demo.yaml --folder runs/estimate --rl.max-steps 30

The run is first, so that the mean length of its responses can be stated to the estimate, as a user
who knows a task would. Then every stage is measured as `fastmpi estimate --measure` does it: one
step to warm up and three. Both are given in seconds of wall time and of CPU time of the process,
since others may share the machine; one thread makes the two alike. Settings of the recipe follow
the flags.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from fastmpi.flags import plain_value
from fastmpi.recipe import Recipe, StagePlan, find_recipe
from fastmpi.stages.chain import prepare_data, run_stage
from fastmpi.stages.estimating import estimate_stage
from fastmpi.stages.measuring import StepTime, measure_stage, step_time
from fastmpi.stages.record import DataFiles, StageRecord, StageStart, resolve_model
from fastmpi.tracking import read_metrics

Lines = Sequence[Mapping[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--folder", required=True, help="of the run; continued if it is there")
    args, words = parser.parse_known_args()
    recipe = find_recipe(args.recipe, {"output_dir": args.folder}, _settings(words))
    data = prepare_data(recipe)
    print(f"{args.recipe} {' '.join(words)}; {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    print("stage  steps  tokens   wall said     run  ratio    CPU said     run  ratio")
    start = StageStart(resolve_model(recipe.model), recipe.model)
    for plan in recipe.stages():
        record = run_stage(plan, start, data, Path(recipe.output_dir) / plan.kind)
        start = StageStart(record.model, record.identity)
        _compare(recipe, plan, data, record)


def _settings(words: Sequence[str]) -> dict[str, object]:
    """`--rl.max-steps 30` as {"rl.max_steps": 30}."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return {name.lstrip("-").replace("-", "_"): plain_value(text) for name, text in pairs}


def _compare(recipe: Recipe, plan: StagePlan, data: DataFiles, record: StageRecord) -> None:
    folder = Path(recipe.output_dir) / plan.kind
    lengths = [n for line in read_metrics(folder) if (n := line.get("completions/mean_length"))]
    tokens = round(statistics.fmean(lengths)) if lengths else None
    with tempfile.TemporaryDirectory() as made:
        measured = Path(made) / plan.kind
        model = resolve_model(recipe.model)
        wall = measure_stage(plan, model, data, measured, response_tokens=tokens)
        per_window = plan.config.steps_per_window * getattr(plan.config, "num_iterations", 1)
        cpu = step_time(_in_cpu_seconds(read_metrics(measured)), per_window)
    found = estimate_stage(plan, model, data, response_tokens=tokens)
    times = [time.of_stage(found).run(record.steps)[0] for time in (wall, _as(wall, cpu))]
    pairs = zip(times, (record.seconds, record.cpu_seconds), strict=True)
    columns = [f"{said:9.2f} {got:7.2f} {said / got:6.3f}" for said, got in pairs]
    print(f"{plan.kind:5} {record.steps:6} {tokens or '':>7}  {'   '.join(columns)}", flush=True)


def _as(wall: StepTime, cpu: StepTime) -> StepTime:
    """`cpu` with the cost model of `wall`: where one thread works alone the two clocks agree."""
    kept = {name: getattr(wall, name) for name in ("warm_up", "cost", "update", "encoded")}
    return replace(cpu, **kept)


def _in_cpu_seconds(lines: Lines) -> Lines:
    """The same steps, their times in CPU seconds; those of sampling and scoring stay as they
    are."""
    totals = [0.0, *(line["cpu_seconds"] for line in lines)]
    times = [end - begin for begin, end in pairwise(totals)]
    return [{**line, "step_time": seconds} for line, seconds in zip(lines, times, strict=True)]


if __name__ == "__main__":
    main()
