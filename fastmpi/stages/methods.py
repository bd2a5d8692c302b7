"""The methods that a recipe's `compare` names, as chains of stages that share their beginnings.

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

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastmpi.recipe import STAGES, Recipe, StagePlan
from fastmpi.settings import Settings, did_you_mean

Chain = tuple[str, ...]
MATCH = "match_seconds_of"
_FOLDER = re.compile(r"(?!\.)[^/\\+\0]{1,100}")


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

    num_questions: int = 6
    """Wrong answers of a gallery of the report, and as many right ones."""

    title: str = "Methods compared"
    """Heading of the report."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("there are no methods")
        if self.workers < 1 or self.num_questions < 0:
            raise ValueError("workers must be at least 1 and num_questions at least 0")
        for method in self.methods:
            if not isinstance(method, str) or not method:
                raise ValueError(f"methods: {method!r} is no name")
        for name, variant in self.variants.items():
            self._check_variant(name, variant)
        for method, chain in self.methods.items():
            self._check_method(method, chain)
        for method in self.notes:
            if method not in self.methods:
                near = did_you_mean(method, self.methods)
                raise ValueError(f"notes: no method {method!r}{near}")

    def _check_method(self, name: str, chain: Any) -> None:
        if not isinstance(chain, list):
            raise ValueError(f"{name}: expected a list of stages, found {chain!r}")
        known = [*STAGES, *self.variants]
        for stage in chain:
            if stage not in known:
                raise ValueError(f"{name}: no stage {stage!r}{did_you_mean(stage, known)}")

    def _check_variant(self, name: Any, variant: Any) -> None:
        if not isinstance(name, str) or not _FOLDER.fullmatch(name):
            raise ValueError(
                f"variants: {name!r} cannot be a folder's name: take 1 to 100 characters without / "
                "and +, and no dot before them"
            )
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
        for name in comparison.variants:
            _check_settings(recipe, comparison, name)
        plans_of(recipe, comparison)
        for chain in prefixes(comparison.chains().values()):
            needs_of(comparison, chain)
    except ValueError as error:
        raise ValueError(f"compare: {error}") from None
    return comparison


def _check_settings(recipe: Recipe, comparison: Comparison, variant: str) -> None:
    """Of a variant that no method may have."""
    try:
        plan_of(recipe, comparison, variant)
    except ValueError as error:
        raise ValueError(f"variants: {variant}: {error}") from None


def plans_of(recipe: Recipe, comparison: Comparison) -> list[StagePlan]:
    """Of all stages and variants that a method has."""
    stages = dict.fromkeys(chain[-1] for chain in prefixes(comparison.chains().values()))
    return [plan_of(recipe, comparison, stage) for stage in stages]


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


def matched_steps(target_seconds: float, lines: Sequence[Mapping[str, float]]) -> int:
    """Optimiser steps that take at least `target_seconds` of the processor at the pace of a
    finished stage, whose `metrics.jsonl` is `lines`. What its first log took longer than the
    others is counted once: the first steps of a process are slow."""
    first, last = lines[0], lines[-1]
    steps = last["step"] - first["step"]
    if not steps:
        return max(1, math.ceil(target_seconds * last["step"] / last["cpu_seconds"]))
    pace = (last["cpu_seconds"] - first["cpu_seconds"]) / steps
    slow_start = max(0.0, first["cpu_seconds"] - first["step"] * pace)
    return max(1, math.ceil((target_seconds - slow_start) / pace))


def needs_of(comparison: Comparison, chain: Chain) -> list[Chain]:
    """The chains that must be trained before the last stage of `chain` can start."""
    needs = [chain[:-1]] if len(chain) > 1 else []
    target = comparison.variants.get(chain[-1], {}).get(MATCH)
    if target is None:
        return needs
    known = prefixes(comparison.chains().values())
    paced_by = unchanged(comparison, chain)
    target_chains = prefixes([comparison.chains()[target]])
    if chain in target_chains:
        raise ValueError(f"variants: {chain[-1]} is to match {target!r}, of which it is a part")
    if paced_by not in known:
        pace = label(paced_by)
        raise ValueError(f"variants: {chain[-1]} goes at the pace of {pace}, which is not trained")
    return [*needs, *target_chains, paced_by]


def unchanged(comparison: Comparison, chain: Chain) -> Chain:
    """The chain that ends in the recipe's own stage instead of the matched variant of it."""
    return (*chain[:-1], comparison.kind(chain[-1]))
