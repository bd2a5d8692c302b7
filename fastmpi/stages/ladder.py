"""Compares methods that are chains of stages, training each common beginning once.

Every stage and every evaluation is a job that starts when the jobs it needs are done; jobs that do
not need one another run in worker processes side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastmpi.data.rows import read_rows
from fastmpi.policies.policy import PolicySet
from fastmpi.recipe import Recipe, StagePlan
from fastmpi.stages.chain import run_stage
from fastmpi.stages.evaluating import evaluate_recipe
from fastmpi.stages.methods import (
    MATCH,
    Chain,
    comparison_of,
    label,
    matched_steps,
    needs_of,
    plan_of,
    prefixes,
    unchanged,
)
from fastmpi.stages.record import DataFiles, StageStart, resolve_model
from fastmpi.stages.workers import Workers
from fastmpi.tracking import read_metrics

TIMING = "prefill times"
TABLE_SUITES = ("task", "in-context", "efficiency")


@dataclass(frozen=True)
class Job:
    """Something to do once the jobs in `needs` are done: `make` gives a function and arguments."""

    needs: frozenset[str]
    make: Callable[[], tuple[Callable[..., Any], Mapping[str, Any]]]


class Ladder:
    """The jobs of one comparison, and what they have brought so far."""

    def __init__(
        self,
        recipe: Recipe,
        data: DataFiles,
        *,
        overwrite: bool = False,
        trust_recipe_code: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.recipe, self.data = recipe, data
        self.comparison = comparison_of(recipe)
        self.output = Path(recipe.output_dir)
        self.options = {
            "overwrite": overwrite,
            "trust_recipe_code": trust_recipe_code,
            "trust_remote_code": trust_remote_code,
        }
        self.results: dict[str, Any] = {}
        self.jobs = self._jobs()

    def run(self, show: Callable[[Ladder, Sequence[str]], None]) -> None:
        """Runs all jobs, which leave their results in folders; `show(ladder, running)` is called
        several times a second."""
        waiting = sorted(self.jobs, key=self._urgency, reverse=True)
        with Workers(min(self.comparison.workers, len(self.jobs))) as workers:
            while waiting or workers.running:
                self._start_ready(workers, waiting)
                show(self, workers.running)
                self.results.update(workers.collect(timeout_s=0.25))
        show(self, [])

    def folder(self, chain: Chain) -> Path:
        return self.output / "stages" / label(chain)

    def eval_folder(self, chain: Chain) -> Path:
        return self.output / "eval" / label(chain)

    def plan(self, chain: Chain) -> StagePlan:
        """The stage's plan, its steps matched if the variant says so; its needs must be done."""
        plan = plan_of(self.recipe, self.comparison, chain[-1])
        config = replace(plan.config, disable_tqdm=True)
        target = self.comparison.variants.get(chain[-1], {}).get(MATCH)
        if target is not None:
            seconds = self.cpu_seconds(self.comparison.chains()[target])
            spent = self.cpu_seconds(chain[:-1])
            pace = read_metrics(self.results[_train(unchanged(self.comparison, chain))].model)
            config = replace(config, max_steps=matched_steps(seconds - spent, pace))
        return replace(plan, config=config)

    def cpu_seconds(self, chain: Chain) -> float:
        """Of training, all stages of the chain together."""
        return sum(self.results[_train(c)].cpu_seconds for c in prefixes([chain]))

    def _start_ready(self, workers: Workers, waiting: list[str]) -> None:
        for name in [n for n in waiting if self.jobs[n].needs <= self.results.keys()]:
            if not workers.has_room:
                return
            waiting.remove(name)
            workers.submit(name, *self.jobs[name].make())

    def _urgency(self, name: str) -> int:
        """How many jobs wait for this one, directly or not: the longest chains go first."""
        return sum(name in self._all_needs(other) for other in self.jobs)

    def _all_needs(self, name: str) -> set[str]:
        needs = set(self.jobs[name].needs)
        return needs.union(*(self._all_needs(need) for need in needs))

    def _jobs(self) -> dict[str, Job]:
        chains = self.comparison.chains().values()
        jobs = {}
        for chain in prefixes(chains):
            needs = frozenset(map(_train, needs_of(self.comparison, chain)))
            jobs[_train(chain)] = Job(needs, partial(self._training, chain))
        for chain in dict.fromkeys(chains):
            needs = frozenset([_train(chain)] if chain else [])
            jobs[_evaluate(chain)] = Job(needs, partial(self._evaluation, chain))
        jobs[TIMING] = Job(frozenset(jobs), self._timing)
        return jobs

    def _start(self, chain: Chain) -> StageStart:
        """What is there after the chain's stages."""
        if not chain:
            return StageStart(resolve_model(self.recipe.model), self.recipe.model)
        record = self.results[_train(chain)]
        return StageStart(record.model, record.identity)

    def _training(self, chain: Chain) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        arguments = {"plan": self.plan(chain), "start": self._start(chain[:-1])}
        arguments |= {"data": self.data, "folder": self.folder(chain)}
        return run_stage, {**arguments, **self.options}

    def _evaluation(self, chain: Chain) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        return evaluate_model, {
            "recipe": self.recipe,
            "model": self._start(chain).model,
            "data": self.data,
            "folder": self.eval_folder(chain),
            # What no stage has taught must stand in the prompt, or the block changes nothing known.
            "override_context": None if chain else "whole",
            "overwrite": self.options["overwrite"],
            "trust_remote_code": self.options["trust_remote_code"],
        }

    def _timing(self) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        chains = dict.fromkeys(self.comparison.chains().values())
        return time_prefills, {
            "recipe": self.recipe,
            "models": {chain: self._start(chain).model for chain in chains},
            "folders": {chain: self.eval_folder(chain) for chain in chains},
            "data": self.data,
            "trust_remote_code": self.options["trust_remote_code"],
        }


def evaluate_model(
    recipe: Recipe,
    model: str,
    data: DataFiles,
    folder: Path,
    *,
    override_context: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """The recipe's suites for one model, but for the times, which are left to `time_prefills`.

    override_context: in place of the recipe's; None: the recipe's.
    """
    changes = {} if override_context is None else {"override_context": override_context}
    evaluate_recipe(
        recipe,
        model,
        data,
        folder,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        label=folder.name,
        suites=compared_suites(recipe),
        num_timed_prompts=0,
        **changes,
    )


def compared_suites(recipe: Recipe) -> list[str]:
    """The recipe's suites, and those that the table of a comparison is made of."""
    return list(dict.fromkeys([*(recipe.eval_config.suites or ()), *TABLE_SUITES]))


def time_prefills(
    recipe: Recipe,
    models: Mapping[Chain, str],
    folders: Mapping[Chain, Path],
    data: DataFiles,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Adds the milliseconds to read a prompt, with the policy and without it, to the summaries in
    `folders`.

    Runs when nothing else does, and takes the models in turn for each prompt, so that whatever
    disturbs the machine disturbs them alike.
    """
    from fastmpi.evaluation.efficiency import add_prefill
    from fastmpi.evaluation.evaluate import load_model
    from fastmpi.evaluation.folder import EvaluationFolder
    from fastmpi.evaluation.prefill import interleaved_prefill_ms

    assert data.test is not None and data.policies is not None
    config = recipe.eval_config
    loaded = {
        chain: load_model(path, config, trust_remote_code=trust_remote_code)
        for chain, path in models.items()
    }
    rows = read_rows(data.test)[: max(1, config.num_timed_prompts)]
    times = interleaved_prefill_ms(loaded, rows, PolicySet.from_jsonl(data.policies))
    for chain, folder in folders.items():
        add_prefill(EvaluationFolder(folder), times[chain])


def _train(chain: Chain) -> str:
    return f"train {label(chain)}"


def _evaluate(chain: Chain) -> str:
    return f"evaluate {label(chain)}"
