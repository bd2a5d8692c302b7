"""The evaluation of a recipe: what is refused before training, what is kept and what asked anew."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastmpi.evaluation.folder import EvaluationFolder
from fastmpi.evaluation.result import EvalInputs
from fastmpi.recipe import Recipe
from fastmpi.stages import chain
from fastmpi.stages.evaluating import evaluate_files, evaluate_recipe
from fastmpi.stages.record import DataFiles

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from evaluation_folders import make_data  # noqa: E402


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data", num_test=4)


def recipe_of(tmp_path, data, **evaluation):
    names = ("train", "train_cot", "test", "override", "override_policies")
    return Recipe.from_dict(
        {
            "data": {name: str(data / f"{name}.jsonl") for name in names},
            "policies": str(data / "policies.jsonl"),
            "output_dir": str(tmp_path / "run"),
            "sft": {},
            "eval": {"max_completion_length": 2, "num_timed_prompts": 0, **evaluation},
        }
    )


def files(data, **changes):
    names = ("policies", "train", "train_cot", "test", "override", "override_policies")
    return DataFiles(*(changes.get(n, str(data / f"{n}.jsonl")) for n in names))


def test_a_missing_file_is_told_before_training(tmp_path, data, monkeypatch):
    monkeypatch.setattr(chain, "run_stage", lambda *_, **__: pytest.fail("it was trained"))
    recipe = recipe_of(tmp_path, data, suites=["override"])
    del recipe.data["override"]
    with pytest.raises(
        ValueError, match=r"needs --override-dataset \(in a recipe, data.override\)"
    ):
        chain.run(recipe)


def test_recipes_keep_answers_and_ask_anew_what_is_other(tmp_path, data, tiny_folder):
    model = str(tiny_folder("qwen2_5_vl"))
    recipe = recipe_of(tmp_path, data, suites=["task", "override"])
    folder = EvaluationFolder(tmp_path / "run" / "eval")
    suites = evaluate_recipe(recipe, model, files(data), folder.path, label="SFT")
    assert list(suites) == ["task", "override"] == list(folder.summary())
    assert folder.label == "SFT" and folder.items("task")[0]["images"][0].startswith("images/")
    asked = folder.run["seconds"]
    evaluate_recipe(recipe, model, files(data), folder.path)
    assert folder.run["seconds"] == asked  # nothing was asked again
    longer = recipe_of(tmp_path, data, max_completion_length=3)
    assert list(evaluate_recipe(longer, model, files(data), folder.path)) == ["task", "in-context"]
    assert folder.run["settings"]["max_completion_length"] == 3
    assert folder.arms() == ["task", "in-context"]


def test_without_test_rows_there_is_nothing(tmp_path, data):
    recipe = recipe_of(tmp_path, data)
    assert evaluate_recipe(recipe, "nowhere", files(data, test=None), tmp_path / "eval") == {}


def test_without_an_output_nothing_is_left(data, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = {"model": str(tiny_folder("qwen2_5_vl")), "test_dataset": str(data / "test.jsonl")}
    before = sorted(tmp_path.iterdir())
    small = EvalInputs.from_dict({**inputs, "max_completion_length": 2, "num_rows": 2})
    suites = evaluate_files(small)
    assert suites["task"].figures["accuracy"].n == 2
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="no model folder 'nowhere'"):
        evaluate_files(EvalInputs.from_dict({**inputs, "model": "nowhere"}))
