"""Runs the stages of a recipe, each on the model that the one before it left.

A finished stage is recognised by its `stage.json` (see `record.py`) and not run again. A folder
made from something else is an error, never silently reused.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.assets import tiny_base_path
from fastmpi.data.rows import read_rows
from fastmpi.evaluation.result import EvalInputs
from fastmpi.policies.generate import generate
from fastmpi.policies.policy import PolicySet
from fastmpi.recipe import FILES, Recipe, StagePlan, load_recipe
from fastmpi.stages.record import (
    RECORD,
    DataFiles,
    StageRecord,
    StageStart,
    difference,
    made_from_of,
)

if TYPE_CHECKING:
    from fastmpi.evaluation.result import EvalResult
    from fastmpi.rewards import RewardFunction

EVALUATED = ("prompt", "answer", "policy_id")  # columns that an evaluation needs
TRAINERS = {
    "cpt": ("fastmpi.stages.cpt", "CPTTrainer"),
    "sft": ("fastmpi.stages.sft", "SFTTrainer"),
    "rl": ("fastmpi.stages.rl", "PolicyRolloutTrainer"),
}


@dataclass(frozen=True)
class RunResult:
    """What `fastmpi.run` returns: the last model's folder and its evaluations."""

    model: str
    stages: Mapping[str, StageRecord]
    with_policy: EvalResult | None
    without_policy: EvalResult | None


def resolve_model(name: str) -> str:
    """ "tiny" is the model inside this package; anything else is a folder or hub name."""
    if name != "tiny":
        return name
    path = tiny_base_path()
    if not (path / "config.json").exists():
        raise ValueError(f"the embedded model is missing from {path}")
    return str(path)


def prepare_data(recipe: Recipe, *, overwrite: bool = False) -> DataFiles:
    """The recipe's files, generated into `output_dir/data` where the recipe says so."""
    config = recipe.generated_data()
    if config is None:
        return DataFiles(recipe.policies, *(recipe.data.get(name) for name in FILES))
    folder = Path(config.output_dir)
    with _only_main() as is_main:
        if is_main and (overwrite or not (folder / "meta.json").exists()):
            _clear(folder, "meta.json")
            generate(config)
    wanted = json.loads(json.dumps(config.to_dict()))
    found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["settings"]
    for key, value in found.items():
        if value != wanted[key]:
            raise ValueError(f"{folder} was made with {key} {value}, not {wanted[key]}; {_WAY_OUT}")
    return DataFiles(str(folder / "policies.jsonl"), *(str(folder / f"{n}.jsonl") for n in FILES))


_WAY_OUT = "choose another output_dir, or start anew with --overwrite"


def _clear(folder: Path, mark: str) -> None:
    """Removes what we made, which `mark` is a file of; `ValueError` for what somebody else did."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / mark).exists()):
        raise ValueError(
            f"{folder} is there already and was not made by a recipe; choose another output_dir"
        )
    shutil.rmtree(folder)


def run_stage(
    plan: StagePlan,
    start: StageStart,
    data: DataFiles,
    folder: Path,
    *,
    overwrite: bool = False,
    trust_recipe_code: bool = False,
    trust_remote_code: bool = False,
) -> StageRecord:
    """Trains one stage into `folder`, or finds that it is there already."""
    made_from = made_from_of(plan, start, data)
    record = StageRecord.of(made_from)
    found = None if overwrite else StageRecord.read(folder)
    if found is not None and found.identity != record.identity:
        raise ValueError(f"{folder} {difference(found.made_from, made_from)}; {_WAY_OUT}")
    if found is not None and found.done:
        return found
    resumed = found is not None and any(folder.glob("checkpoint-*"))
    with _only_main() as is_main:
        if is_main and not resumed:
            _clear(folder, RECORD)
    config = replace(plan.config, output_dir=str(folder), trust_remote_code=trust_remote_code)
    plan = replace(plan, config=config)
    trainer = build_trainer(plan, start.model, data, trust_recipe_code=trust_recipe_code)
    with _only_main() as is_main:
        if is_main:
            record.write(folder)  # after the rows have been checked
    result = trainer.train(resume_from_checkpoint="auto" if resumed else None)
    record = replace(
        record,
        done=True,
        model=str(result.output_dir),
        steps=result.global_step,
        cpu_seconds=result.metrics["cpu_seconds"],
        seconds=result.metrics["train_seconds"],
    )
    with _only_main() as is_main:
        if is_main:
            record.write(folder)
    return record


@contextmanager
def _only_main() -> Iterator[bool]:
    """True in the first process of a distributed run, which writes files; the others wait."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())  # as the trainers do
    state.wait_for_everyone()
    yield state.is_main_process
    state.wait_for_everyone()


def build_trainer(
    plan: StagePlan, model: str, data: DataFiles, *, trust_recipe_code: bool = False
) -> Any:
    """The stage's trainer, with rows and policies read from their files."""
    module, name = TRAINERS[plan.kind]
    trainer = getattr(importlib.import_module(module), name)
    arguments: dict[str, Any] = {
        "model": model,
        "args": plan.config,
        "train_dataset": read_rows(data.rows(plan.train_dataset)),
    }
    if data.policies is not None:
        arguments["policies"] = PolicySet.from_jsonl(data.policies)
    if plan.reward_funcs:
        arguments["reward_funcs"] = reward_functions(plan.reward_funcs, trust_recipe_code)
    return trainer(**arguments)


def reward_functions(names: Sequence[str], trust_recipe_code: bool) -> list[RewardFunction]:
    """Reward functions by name; those outside this package only if their code is trusted."""
    from fastmpi import rewards

    functions = []
    for name in names:
        if name in rewards.BUILT_IN:
            functions.append(getattr(rewards, name))
        elif not trust_recipe_code:
            raise ValueError(
                f"reward function {name!r} runs code of its own: allow it with --trust-recipe-code"
            )
        else:
            functions.append(rewards.load_reward(name))
    return functions


def run(
    recipe: str | Path | Recipe,
    *,
    trust_recipe_code: bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> RunResult:
    """Runs the stages of a recipe one after the other, each on the model before it, and evaluates
    the last one with and without the policy in its prompt.

    Finished stages are not run again, and an unfinished one continues from its newest checkpoint;
    `overwrite` starts anew. The resolved recipe is saved as `config.yaml` in the output.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    data = prepare_data(recipe, overwrite=overwrite)
    _check_inputs(recipe, data, trust_recipe_code)
    output = Path(recipe.output_dir)
    start = StageStart(resolve_model(recipe.model), recipe.model)
    records = {}
    for plan in recipe.stages():
        records[plan.kind] = run_stage(
            plan,
            start,
            data,
            output / plan.kind,
            overwrite=overwrite,
            trust_recipe_code=trust_recipe_code,
            trust_remote_code=trust_remote_code,
        )
        start = StageStart(records[plan.kind].model, records[plan.kind].identity)
    save_recipe(recipe)
    with _only_main() as is_main:
        if not is_main:
            return RunResult(start.model, records, None, None)
        with_policy, without = evaluate_both(
            recipe, start.model, data, output / "eval", trust_remote_code=trust_remote_code
        )
    return RunResult(start.model, records, with_policy, without)


def _check_inputs(recipe: Recipe, data: DataFiles, trust_recipe_code: bool) -> None:
    """What a later stage would stumble over, hours after the first one began."""
    for plan in recipe.stages():
        reward_functions(plan.reward_funcs, trust_recipe_code)
        read_rows(data.rows(plan.train_dataset))
    if data.test is not None:
        read_rows(data.test, columns=EVALUATED)


def save_recipe(recipe: Recipe) -> Path:
    """Writes the resolved recipe as `config.yaml` into its output folder, and returns that."""
    output = Path(recipe.output_dir)
    with _only_main() as is_main:
        if is_main:
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return output


def evaluate_both(
    recipe: Recipe,
    model: str,
    data: DataFiles,
    folder: Path,
    *,
    trust_remote_code: bool = False,
) -> tuple[EvalResult | None, EvalResult | None]:
    """Evaluations with and without the policy, written to `folder`; None without test rows or,
    for the first, without policies."""
    if data.test is None:
        return None, None
    inputs = EvalInputs.from_dict(
        {
            **recipe.eval_config.to_dict(),
            "model": model,
            "test_dataset": data.test,
            "policies": data.policies,
            "output_dir": str(folder),
        }
    )
    *with_policy, without = evaluate_files(inputs, trust_remote_code=trust_remote_code)
    return (with_policy[0] if with_policy else None), without


def evaluate_files(inputs: EvalInputs, *, trust_remote_code: bool = False) -> list[EvalResult]:
    """Evaluations with the policy, if `policies` names a file, and then without it."""
    from fastmpi.evaluation.evaluate import evaluate
    from fastmpi.models.forest_model import ForestModel

    rows = read_rows(inputs.test_dataset, columns=EVALUATED)
    policies = PolicySet.from_jsonl(inputs.policies) if inputs.policies else None
    model = ForestModel.from_pretrained(
        resolve_model(inputs.model), trust_remote_code=trust_remote_code
    )
    arms = [True, False] if policies is not None else [False]
    results = [evaluate(model, rows, policies, with_policy=arm, config=inputs) for arm in arms]
    if inputs.output_dir is not None:
        _write_evaluations(results, Path(inputs.output_dir))
    return results


def _write_evaluations(results: Sequence[EvalResult], folder: Path) -> None:
    for result in results:
        result.write_items(folder / f"{_arm(result.with_policy)}.jsonl")
    summaries = {_arm(result.with_policy): result.summary() for result in results}
    (folder / "summary.json").write_text(json.dumps(summaries, indent=1), encoding="utf-8")


def _arm(with_policy: bool) -> str:
    return "with_policy" if with_policy else "without_policy"
