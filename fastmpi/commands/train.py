"""`fastmpi cpt`, `sft` and `rl`: one stage of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastmpi.commands.command import (
    TRUST_RECIPE,
    TRUST_REMOTE,
    Command,
    common,
    merged,
    quiet,
    require,
    tell,
)
from fastmpi.flags import add_flags, flags_of, parse
from fastmpi.recipe import STAGES, stage_plan
from fastmpi.settings import Settings


@dataclass(kw_only=True)
class StageInputs(Settings):
    """What a stage takes beside its Config."""

    model: str = "tiny"
    """Folder or hub name of the model; "tiny" is the one inside this package."""

    train_dataset: str
    """JSONL file of the training rows."""

    policies: str | None = None
    """JSONL file of the policies."""

    resume_from_checkpoint: str | None = None
    """"auto" for the newest checkpoint in output_dir, or the path of one."""


@dataclass(kw_only=True)
class RewardInputs(StageInputs):
    """What the RL stage takes beside its Config."""

    reward_funcs: list[str]
    """Reward functions: exact_answer, think_format, or the dotted path of your own."""


def stage(kind: str) -> Callable[[Command, Sequence[str]], int]:
    """The body of the command that trains the stage `kind`."""
    return lambda command, words: _stage(kind, command, words)


def _stage(kind: str, command: Command, words: Sequence[str]) -> int:
    inputs: type[StageInputs] = RewardInputs if kind == "rl" else StageInputs
    own_flags = flags_of(inputs)
    if kind == "rl":
        own_flags["reward_funcs"] = replace(
            own_flags["reward_funcs"], required=False, default=["exact_answer", "think_format"]
        )
    config_flags = flags_of(STAGES[kind], leave_out=["trust_remote_code"])
    parser = command.parser()
    known = common(parser, TRUST_REMOTE, TRUST_RECIPE)
    add_flags(parser, own_flags, "inputs")
    add_flags(parser, config_flags, f"{STAGES[kind].__name__}")
    known = {**known, **own_flags, **config_flags}
    _, values, _ = parse(parser, words, known)
    settings, own = merged(values, known, kind)
    require(settings, own_flags, kind)
    return _train(kind, settings, own)


def _train(kind: str, settings: dict[str, Any], own: Mapping[str, Any]) -> int:
    outside = {name: settings.pop(name, None) for name in ("policies", "resume_from_checkpoint")}
    model = settings.pop("model", "tiny")
    plan = stage_plan(kind, settings)
    trusted = own.get("trust_remote_code", False)
    plan = replace(plan, config=replace(plan.config, trust_remote_code=trusted))

    from fastmpi.stages.chain import build_trainer
    from fastmpi.stages.record import DataFiles, resolve_model

    quiet()
    data = DataFiles(outside["policies"], None, None, None)
    trust = own.get("trust_recipe_code", False)
    trainer = build_trainer(plan, resolve_model(model), data, trust_recipe_code=trust)
    result = trainer.train(resume_from_checkpoint=outside["resume_from_checkpoint"])
    tell(f"{kind}: {result.global_step} steps, the model is in {result.output_dir}")
    return 0
