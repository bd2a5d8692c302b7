"""Runs the stages of a recipe, each on the model that the one before it left.

A finished stage is recognised by its `stage.json` (see `record.py`) and not run again. A folder
made from something else is an error, never silently reused.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.config import TrainingConfig
from fastmpi.data.rows import read_rows
from fastmpi.files import ASIDE, make_folder, write_whole
from fastmpi.models.refuse import supported_config
from fastmpi.policies.generate import generate
from fastmpi.policies.policy import PolicySet
from fastmpi.recipe import FILES, OVERRIDE, Recipe, StagePlan, load_recipe
from fastmpi.stages.evaluating import check_evaluation, evaluate_recipe
from fastmpi.stages.launching import join_processes
from fastmpi.stages.record import (
    RECORD,
    DataFiles,
    StageRecord,
    StageStart,
    difference,
    made_from_of,
    resolve_model,
)

if TYPE_CHECKING:
    from fastmpi.evaluation.folder import SuiteSummary
    from fastmpi.models.forest_model import ForestModel
    from fastmpi.rewards import RewardFunction

TRAINERS = {
    "cpt": ("fastmpi.stages.cpt", "CPTTrainer"),
    "sft": ("fastmpi.stages.sft", "SFTTrainer"),
    "rl": ("fastmpi.stages.rl", "PolicyRolloutTrainer"),
}


@dataclass(frozen=True)
class RunResult:
    """What `fastmpi.run` returns: the last model's folder and, by suite, how good it is."""

    model: str
    stages: Mapping[str, StageRecord]
    suites: Mapping[str, SuiteSummary]


def prepare_data(
    recipe: Recipe, *, overwrite: bool = False, trust_remote_code: bool = False
) -> DataFiles:
    """The recipe's files, generated into `output_dir/data` where the recipe says so: minutes, so a
    model that cannot train is told before."""
    config = recipe.generated_data()
    if config is None:
        return DataFiles(recipe.policies, *(recipe.data.get(n) for n in (*FILES, *OVERRIDE)))
    folder = Path(config.output_dir)
    with _only_main() as is_main:
        if is_main and (overwrite or not (folder / "meta.json").exists()):
            model = resolve_model(recipe.model)
            supported_config(model, trust_remote_code=trust_remote_code)
            _clear(folder, "meta.json")
            generate(config)
    wanted = json.loads(json.dumps(config.to_dict()))
    found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["settings"]
    for key, value in found.items():
        if value != wanted[key]:
            raise ValueError(f"{folder} was made with {key} {value}, not {wanted[key]}; {_WAY_OUT}")
    made = [folder / f"{name}.jsonl" for name in ("policies", *FILES, *OVERRIDE)]
    return DataFiles(*(str(path) if path.exists() else None for path in made))


_WAY_OUT = "choose another output_dir, or start anew with --overwrite"


def _clear(folder: Path, mark: str) -> None:
    """Removes what we made, which `mark` is a file of; `ValueError` for what somebody else did.
    The mark goes last: whoever is killed here may try again."""
    if not folder.exists():
        return
    _check_ours(folder, mark)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == mark):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def _check_ours(folder: Path, mark: str) -> None:
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    # A run that was killed before its first mark was whole leaves nothing else.
    if names is None or (names and mark not in names and names != {mark + ASIDE}):
        raise ValueError(
            f"{folder} is there already and was not made by a recipe; choose another output_dir"
        )


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
    record, found = _records(plan, start, data, folder, overwrite)
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


def _records(
    plan: StagePlan, start: StageStart, data: DataFiles, folder: Path, overwrite: bool
) -> tuple[StageRecord, StageRecord | None]:
    """The stage's record before it has run, and the one that is there; `ValueError` where the
    folder is of something else."""
    record = StageRecord.of(made_from_of(plan, start, data))
    found = None if overwrite else StageRecord.read(folder)
    if found is not None and found.identity != record.identity:
        raise ValueError(f"{folder} {difference(found.made_from, record.made_from)}; {_WAY_OUT}")
    if found is None:
        _check_ours(folder, RECORD)
    return record, found


@contextmanager
def _only_main() -> Iterator[bool]:
    """True in the first process of a distributed run, which writes files; the others wait."""
    state = join_processes(TrainingConfig.ddp_timeout)
    state.wait_for_everyone()
    yield state.is_main_process
    state.wait_for_everyone()


def build_trainer(
    plan: StagePlan, model: str | ForestModel, data: DataFiles, *, trust_recipe_code: bool = False
) -> Any:
    """The stage's trainer, with rows and policies read from their files."""
    rows = data.rows(plan.train_dataset)
    module, name = TRAINERS[plan.kind]
    trainer = getattr(importlib.import_module(module), name)
    arguments: dict[str, Any] = {
        "model": model,
        "args": plan.config,
        "train_dataset": read_rows(rows),
    }
    if data.policies is not None:
        arguments["policies"] = PolicySet.from_jsonl(data.policies)
    if plan.reward_funcs:
        arguments["reward_funcs"] = reward_functions(plan.reward_funcs, trust_recipe_code)
    try:
        return trainer(**arguments)
    except ValueError as error:  # a trainer knows its rows, and not where they are from
        if not str(error).startswith("row "):
            raise
        raise ValueError(f"{rows}: {error}") from error


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
    the last one by the recipe's suites.

    Finished stages are not run again, and an unfinished one continues from its newest checkpoint;
    `overwrite` starts anew. The resolved recipe is saved as `config.yaml` in the output.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    state = join_processes(_patience(recipe))
    data = prepare_data(recipe, overwrite=overwrite, trust_remote_code=trust_remote_code)
    start = StageStart(resolve_model(recipe.model), recipe.model)
    check_inputs(recipe, recipe.stages(), data, trust_recipe_code)
    _check_folders(recipe, start, data, overwrite)
    output = save_recipe(recipe)
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
    if not state.is_main_process:  # nor waits: an evaluation may take longer than any patience
        return RunResult(start.model, records, {})
    suites = evaluate_recipe(
        recipe,
        start.model,
        data,
        output / "eval",
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    return RunResult(start.model, records, suites)


def _patience(recipe: Recipe) -> int:
    """Seconds that processes wait for one another: they are joined once for all stages."""
    return max([TrainingConfig.ddp_timeout, *(p.config.ddp_timeout for p in recipe.stages())])


def check_inputs(
    recipe: Recipe, plans: Iterable[StagePlan], data: DataFiles, trust_recipe_code: bool
) -> None:
    """What a later stage would stumble over, hours after the first one began."""
    for plan in plans:
        reward_functions(plan.reward_funcs, trust_recipe_code)
        read_rows(data.rows(plan.train_dataset))
    check_evaluation(recipe, data)


def _check_folders(recipe: Recipe, start: StageStart, data: DataFiles, overwrite: bool) -> None:
    """What is there of a stage, of the later ones too, must be of this recipe: `config.yaml` says
    so."""
    for plan in recipe.stages():
        folder = Path(recipe.output_dir) / plan.kind
        record, _ = _records(plan, start, data, folder, overwrite)
        start = StageStart(str(folder), record.identity)


def save_recipe(recipe: Recipe) -> Path:
    """Writes the resolved recipe as `config.yaml` into its output folder, and returns that."""
    output = Path(recipe.output_dir)
    with _only_main() as is_main:
        if is_main:
            make_folder(output)
            write_whole(output / "config.yaml", recipe.to_yaml())
    return output
