"""What merging prefixes saves in the update of each stage, on the data of a recipe.

    python -m fastmpi.benchmarks.bench_sharing recipes/demo.yaml --steps 8 --json sharing.json

Both arms take the same steps of the same run: the gradient of one optimiser step (forward and
backward of all micro-batches, nothing sampled) with `share_prefix` on and off, in turn, so that
whatever disturbs the machine disturbs both. Reported: tokens before and after merging, median
seconds, and the ratio of the paired times with the range of its middle half. The gradients of the
two arms are compared too: a saving that changed them would be none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmpi.recipe import Recipe, StagePlan, load_recipe
from fastmpi.stages.chain import build_trainer, prepare_data, resolve_model
from fastmpi.stages.record import DataFiles


@dataclass(frozen=True)
class Measurement:
    """One stage. ratio: seconds without sharing over seconds with it, median and quartiles.

    gradient_difference: norm of the difference over the norm, the largest of all steps.
    """

    stage: str
    steps: int
    tokens: float
    merged_tokens: float
    shared_s: float
    unshared_s: float
    ratio: tuple[float, float, float]
    gradient_difference: float


def main() -> None:
    """Measures every stage of the recipe, prints a table, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps of each stage")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = replace(load_recipe(args.recipe), output_dir=folder)
        data = prepare_data(recipe)
        found = [measure(plan, recipe, data, args.steps) for plan in recipe.stages()]
    print("stage  tokens -> merged     seconds a step, without -> with   ratio [quartiles]")
    for m in found:
        low, mid, high = m.ratio
        print(
            f"{m.stage:5}  {m.tokens:7.0f} -> {m.merged_tokens:6.0f}    "
            f"{m.unshared_s:8.3f} -> {m.shared_s:.3f}                "
            f"{mid:.2f} [{low:.2f}, {high:.2f}]   gradients differ by {m.gradient_difference:.1e}"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(m) for m in found], indent=1) + "\n")


def measure(plan: StagePlan, recipe: Recipe, data: DataFiles, steps: int) -> Measurement:
    """Takes `steps` optimiser steps of one stage, and times the gradient of each both ways."""
    pairs, differences, counts = [], [], []
    for shared, unshared in _steps(plan, recipe, data, steps):
        pairs.append((shared["seconds"], unshared["seconds"]))
        counts.append((shared["perf/tokens"], shared["perf/merged_tokens"]))
        difference = (shared["gradient"] - unshared["gradient"]).norm()
        differences.append(float(difference / unshared["gradient"].norm()))
    ratios = [b / a for a, b in pairs]
    low, mid, high = statistics.quantiles(ratios, n=4) if steps > 1 else ratios * 3
    return Measurement(
        stage=plan.kind,
        steps=steps,
        tokens=statistics.mean(tokens for tokens, _ in counts),
        merged_tokens=statistics.mean(merged for _, merged in counts),
        shared_s=statistics.median(a for a, _ in pairs),
        unshared_s=statistics.median(b for _, b in pairs),
        ratio=(low, mid, high),
        gradient_difference=max(differences),
    )


def _steps(
    plan: StagePlan, recipe: Recipe, data: DataFiles, steps: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        config = replace(plan.config, output_dir=folder, max_steps=steps + 1, disable_tqdm=True)
        trainer = build_trainer(replace(plan, config=config), resolve_model(recipe.model), data)
        trainer.begin()
        for number in range(steps + 1):
            step = trainer.next_step()
            # Frozen features are cached: neither arm shall pay for the other's pictures.
            trainer.features.of([image for sample in step.samples for image in sample.images])
            order = [True, False] if number % 2 else [False, True]
            found = {share: _gradient(trainer, step, share) for share in order}
            trainer.optimizer_step(step)
            trainer.state.global_step += 1
            if number:  # the first step warms up
                yield found[True], found[False]


def _gradient(trainer: Any, step: Any, share: bool) -> dict[str, Any]:
    """The whole step's gradient, flat, and what it took."""
    trainer.args = replace(trainer.args, share_prefix=share)
    step = replace(step, batches=trainer.microbatches(step.samples))
    began = time.perf_counter()
    counts = trainer.accumulate_gradients(step)
    seconds = time.perf_counter() - began
    gradient = torch.cat([p.grad.flatten() for p in trainer.parameters.values()])
    trainer.optimizer.zero_grad(set_to_none=True)
    return {**counts, "seconds": seconds, "gradient": gradient}


if __name__ == "__main__":
    main()
