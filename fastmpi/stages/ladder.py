"""Compares methods that are chains of stages, training each common beginning once.

A recipe's `compare` names the methods and the stages each is made of, for example

    variants:
      grpo: {stage: rl, num_policy_generations: 0, num_generations: 12}
      long_sft: {stage: sft, match_seconds_of: TriMPI}
    methods:
      In-context (base): []
      CoT SFT: [sft]
      CoT SFT, compute-matched: [long_sft]
      CoT SFT + GRPO: [sft, grpo]
      TriMPI: [cpt, sft, rl]

`cpt`, `sft` and `rl` are the recipe's own stages; a variant is one of them with some settings
changed. `match_seconds_of` gives a variant as many steps as fit into the CPU-seconds that all
stages of that method took, at the seconds per step that the unchanged stage was measured to need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.recipe import STAGES, Recipe, StagePlan
from fastmpi.settings import Settings, did_you_mean
from fastmpi.stages.chain import DataFiles, StageRecord, StageStart, resolve_model, run_stage
from fastmpi.stages.workers import Workers

if TYPE_CHECKING:
    from fastmpi.evaluation.result import EvalResult

Chain = tuple[str, ...]
MATCH = "match_seconds_of"
TIMING = "prefill times"


@dataclass(kw_only=True)
class Comparison(Settings):
    """The `compare` part of a recipe."""

    methods: dict[str, Any]
    """Name of each method, in the order of the table -> its stages or variants, first to last."""

    variants: dict[str, Any] = field(default_factory=dict)
    """Name -> {stage: cpt, sft or rl, and the settings that differ, or match_seconds_of}."""

    notes: dict[str, Any] = field(default_factory=dict)
    """Method -> a few words for the table."""

    workers: int = 2
    """Processes that train and evaluate at the same time, with one thread each."""

    num_scenes: int = 6
    """Scenes of the test set that the report shows."""

    title: str = "Methods compared"
    """Heading of the report."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("there are no methods")
        if self.workers < 1 or self.num_scenes < 0:
            raise ValueError("workers must be at least 1 and num_scenes at least 0")
        for name, variant in self.variants.items():
            self._check_variant(name, variant)
        known = [*STAGES, *self.variants]
        for method, chain in self.methods.items():
            if not isinstance(chain, list):
                raise ValueError(f"{method}: expected a list of stages, found {chain!r}")
            for stage in chain:
                if stage not in known:
                    raise ValueError(f"{method}: no stage {stage!r}{did_you_mean(stage, known)}")
        for method in self.notes:
            if method not in self.methods:
                near = did_you_mean(method, self.methods)
                raise ValueError(f"notes: no method {method!r}{near}")

    def _check_variant(self, name: str, variant: Any) -> None:
        if name in STAGES:
            raise ValueError(f"variants: {name!r} is the recipe's own stage, choose another name")
        if not isinstance(variant, dict) or variant.get("stage") not in STAGES:
            raise ValueError(f"variants: {name} needs `stage`, one of {', '.join(STAGES)}")
        target = variant.get(MATCH)
        if target is not None and target not in self.methods:
            near = did_you_mean(target, self.methods)
            raise ValueError(f"variants: {name}: no method {target!r}{near}")

    def chains(self) -> dict[str, Chain]:
        """Method -> its chain of stages."""
        return {method: tuple(chain) for method, chain in self.methods.items()}

    def kind(self, stage: str) -> str:
        """The kind ("cpt", "sft", "rl") of a stage or variant."""
        return str(self.variants[stage]["stage"]) if stage in self.variants else stage


def comparison_of(recipe: Recipe) -> Comparison:
    """The recipe's `compare`, checked down to the settings of every variant."""
    if recipe.compare is None:
        raise ValueError("the recipe has no `compare`")
    try:
        comparison = Comparison.from_dict(recipe.compare)
        for chain in prefixes(comparison.chains().values()):
            plan_of(recipe, comparison, chain[-1])
        for chain in prefixes(comparison.chains().values()):
            _needs(comparison, chain)
    except ValueError as error:
        raise ValueError(f"compare: {error}") from None
    return comparison


def prefixes(chains: Iterable[Chain]) -> list[Chain]:
    """The trie of the chains: every distinct non-empty beginning, parents before children."""
    found: dict[Chain, None] = {}
    for chain in chains:
        for length in range(1, len(chain) + 1):
            found[chain[:length]] = None
    return list(found)


def label(chain: Chain) -> str:
    """Name of a chain in folders and messages."""
    return "+".join(chain) or "base"


def plan_of(recipe: Recipe, comparison: Comparison, stage: str) -> StagePlan:
    """The settings of a stage or variant; how long a matched one runs is not known yet."""
    variant = comparison.variants.get(stage, {})
    changes = {k: v for k, v in variant.items() if k not in ("stage", MATCH)}
    return recipe.stage(comparison.kind(stage), changes)


def matched_steps(target_seconds: float, record: StageRecord) -> int:
    """Optimiser steps that take `target_seconds` at the pace of a finished stage."""
    return max(1, round(target_seconds * record.steps / record.cpu_seconds))


@dataclass(frozen=True)
class Job:
    """Something to do once the jobs in `needs` are done: `make` gives a function and arguments."""

    needs: frozenset[str]
    make: Callable[[], tuple[Callable[..., Any], Mapping[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """All that a comparison produced. `evaluations`: chain -> (with the policy, without)."""

    records: Mapping[Chain, StageRecord]
    evaluations: Mapping[Chain, tuple[EvalResult, EvalResult]]
    prefill_ms: Mapping[Chain, tuple[float, float]]


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

    def run(self, show: Callable[[Ladder, Sequence[str]], None]) -> Outcome:
        """Runs all jobs; `show(ladder, running)` is called several times a second."""
        waiting = sorted(self.jobs, key=self._urgency, reverse=True)
        with Workers(min(self.comparison.workers, len(self.jobs))) as workers:
            while waiting or workers.running:
                self._start_ready(workers, waiting)
                show(self, workers.running)
                self.results.update(workers.collect(timeout_s=0.25))
        show(self, [])
        return self._outcome()

    def folder(self, chain: Chain) -> Path:
        return self.output / "stages" / label(chain)

    def plan(self, chain: Chain) -> StagePlan:
        """The stage's plan, its steps matched if the variant says so; its needs must be done."""
        plan = plan_of(self.recipe, self.comparison, chain[-1])
        config = replace(plan.config, disable_tqdm=True)
        target = self.comparison.variants.get(chain[-1], {}).get(MATCH)
        if target is not None:
            seconds = self.cpu_seconds(self.comparison.chains()[target])
            pace = self.results[_train(_unchanged(self.comparison, chain))]
            spent = self.cpu_seconds(chain[:-1])
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
            needs = frozenset(map(_train, _needs(self.comparison, chain)))
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
        arguments = {"recipe": self.recipe, "model": self._start(chain).model, "data": self.data}
        return evaluate_model, {**arguments, "folder": self.output / "eval" / label(chain)}

    def _timing(self) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        models = {c: self._start(c).model for c in dict.fromkeys(self.comparison.chains().values())}
        return time_prefills, {"recipe": self.recipe, "models": models, "data": self.data}

    def _outcome(self) -> Outcome:
        chains = self.comparison.chains().values()
        records = {chain: self.results[_train(chain)] for chain in prefixes(chains)}
        evaluations = {chain: self.results[_evaluate(chain)] for chain in chains}
        return Outcome(records, evaluations, self.results[TIMING])


def evaluate_model(
    recipe: Recipe, model: str, data: DataFiles, folder: Path
) -> tuple[EvalResult, EvalResult]:
    """Evaluates with and without the policy, and leaves the times to `time_prefills`."""
    from fastmpi.stages.chain import evaluate_both

    untimed = replace(recipe, eval={**recipe.eval, "num_timed_prompts": 0})
    with_policy, without = evaluate_both(untimed, model, data, folder)
    if with_policy is None or without is None:
        raise ValueError("a comparison needs test rows and policies")
    return with_policy, without


def time_prefills(
    recipe: Recipe, models: Mapping[Chain, str], data: DataFiles
) -> dict[Chain, tuple[float, float]]:
    """Median milliseconds to read a prompt with the policy and without it, for each model.

    Runs when nothing else does, and takes the models in turn for each prompt, so that whatever
    disturbs the machine disturbs them alike.
    """
    from fastmpi.evaluation.prefill import interleaved_prefill_ms

    assert data.test is not None and data.policies is not None
    return interleaved_prefill_ms(models, data.test, data.policies, recipe.eval_config)


def _needs(comparison: Comparison, chain: Chain) -> list[Chain]:
    """The chains that must be trained before the last stage of `chain` can start."""
    needs = [chain[:-1]] if len(chain) > 1 else []
    target = comparison.variants.get(chain[-1], {}).get(MATCH)
    if target is None:
        return needs
    known = prefixes(comparison.chains().values())
    unchanged = _unchanged(comparison, chain)
    target_chains = prefixes([comparison.chains()[target]])
    if chain in target_chains:
        raise ValueError(f"variants: {chain[-1]} is to match {target!r}, of which it is a part")
    if unchanged not in known:
        pace = label(unchanged)
        raise ValueError(f"variants: {chain[-1]} goes at the pace of {pace}, which is not trained")
    return [*needs, *target_chains, unchanged]


def _unchanged(comparison: Comparison, chain: Chain) -> Chain:
    """The chain that ends in the recipe's own stage instead of the matched variant of it."""
    return (*chain[:-1], comparison.kind(chain[-1]))


def _train(chain: Chain) -> str:
    return f"train {label(chain)}"


def _evaluate(chain: Chain) -> str:
    return f"evaluate {label(chain)}"
