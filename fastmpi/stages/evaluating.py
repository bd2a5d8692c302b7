"""The evaluation of a recipe, or of the files that `fastmpi eval` is given."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastmpi.data.rows import read_rows
from fastmpi.evaluation.result import EVALUATED, EvalInputs
from fastmpi.recipe import Recipe
from fastmpi.stages.record import DataFiles, resolve_model

if TYPE_CHECKING:
    from fastmpi.evaluation.evaluation import OnBatch
    from fastmpi.evaluation.folder import SuiteSummary

Overwrite = Literal["never", "if other", "always"]


def check_evaluation(recipe: Recipe, data: DataFiles) -> None:
    """What an evaluation would stumble over, hours after the training began."""
    if data.test is None:
        return
    inputs = _inputs(recipe, recipe.model, data)
    inputs.check()
    read_rows(data.test, columns=EVALUATED)


def evaluate_recipe(
    recipe: Recipe,
    model: str,
    data: DataFiles,
    folder: Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    **changes: Any,
) -> dict[str, SuiteSummary]:
    """The recipe's suites for one model, written to `folder`; nothing without test rows.

    Answers that are there already are kept, unless the model, the data or a setting is another.
    changes: settings in place of the recipe's.
    """
    if data.test is None:
        return {}
    return evaluate_files(
        _inputs(recipe, model, data, output_dir=str(folder), **changes),
        overwrite="always" if overwrite else "if other",
        trust_remote_code=trust_remote_code,
    )


def evaluate_files(
    inputs: EvalInputs,
    *,
    overwrite: Overwrite = "never",
    trust_remote_code: bool = False,
    on_batch: OnBatch | None = None,
) -> dict[str, SuiteSummary]:
    """The suites of `inputs`, by name; see `evaluation/suites.py`.

    `ValueError` names the flag of a file that a suite needs, before the model is loaded.
    """
    inputs.check()
    path = resolve_model(inputs.model)

    from fastmpi.evaluation.evaluate import load_model
    from fastmpi.evaluation.evaluation import Evaluation
    from fastmpi.evaluation.suites import run_suites
    from fastmpi.rollout.native import NativeEngine

    model = load_model(path, inputs, trust_remote_code=trust_remote_code)
    with _folder(inputs) as folder:
        evaluation = Evaluation(
            model,
            NativeEngine(model),
            inputs,
            folder,
            path=path,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            on_batch=on_batch,
        )
        return run_suites(evaluation)


def _inputs(recipe: Recipe, model: str, data: DataFiles, **changes: Any) -> EvalInputs:
    files = {
        "test_dataset": data.test,
        "policies": data.policies,
        "override_dataset": data.override,
        "override_policies": data.override_policies,
    }
    settings = recipe.eval_config.to_dict()
    return EvalInputs.from_dict({**settings, "model": model, **files, **changes})


@contextmanager
def _folder(inputs: EvalInputs) -> Iterator[Path]:
    """Where the evaluation is written; one that only prints leaves nothing."""
    if inputs.output_dir is not None:
        yield Path(inputs.output_dir)
        return
    with tempfile.TemporaryDirectory(prefix="fastmpi-eval-") as folder:
        yield Path(folder)
