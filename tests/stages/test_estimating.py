"""Estimates of whole stages, from a recipe's own rows, against the stages themselves."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmpi.data.rows import read_rows
from fastmpi.models.skeleton import skeleton
from fastmpi.recipe import Recipe
from fastmpi.stages.chain import build_trainer
from fastmpi.stages.estimating import estimate_stage, recipe_data
from fastmpi.stages.measuring import _FixedLength

sys.path.insert(0, str(Path(__file__).parents[1]))
from allocations import Allocations  # noqa: E402

STEPS = {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "max_steps": 2}
RECIPE = {
    "data": {
        "clevr_policy": {
            "world": "tiny",
            "depth": 2,
            "num_policies": 2,
            "num_train": 12,
            "num_cot": 12,
            "num_test": 4,
        }
    },
    "cpt": {**STEPS, "per_device_train_batch_size": 6, "max_tokens_per_microbatch": 300},
    "sft": {**STEPS, "per_device_train_batch_size": 6, "gradient_checkpointing": False},
    "rl": {
        **STEPS,
        "per_device_train_batch_size": 24,
        "num_generations": 6,
        "max_completion_length": 40,
        "num_iterations": 2,
        "beta": 0.1,
        "gradient_checkpointing": False,
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return Recipe.from_dict({**RECIPE, "output_dir": str(tmp_path_factory.mktemp("run"))})


@pytest.fixture(scope="module")
def data(recipe, tmp_path_factory):
    return recipe_data(recipe, tmp_path_factory.mktemp("estimate"))


@pytest.mark.parametrize("kind", ["cpt", "sft", "rl"])
def test_memory_and_tokens_are_those_of_the_stage(kind, recipe, data, tiny_folder, tmp_path):
    if kind == "sft":
        pytest.importorskip("peft")
    plan, model = recipe.stage(kind), str(tiny_folder("qwen2_5_vl"))
    said = estimate_stage(plan, model, data)
    plan = replace(plan, config=replace(plan.config, output_dir=str(tmp_path / kind)))
    trainer = build_trainer(plan, model, data)
    if kind == "rl":
        trainer.engine = _FixedLength(trainer, 40)
    seen = []
    step = trainer.optimizer_step
    trainer.optimizer_step = lambda given: seen.append(step(given)) or seen[-1]
    with Allocations() as count:
        count.hold(trainer.model)
        trainer.train()
    assert said.peak == pytest.approx(count.peak, rel=0.15)
    assert said.steps == said.scanned == 2
    assert said.checkpointing == (kind == "cpt")
    for name, value in (("perf/tokens", said.tokens), ("perf/merged_tokens", said.merged_tokens)):
        # what random responses share by chance differs
        near = 0.02 if kind == "rl" else 0
        assert value == pytest.approx(np.mean([found[name] for found in seen]), rel=near)


def test_checkpointing_both_ways(recipe, data, tiny_folder):
    plan, model = recipe.stage("cpt"), str(tiny_folder("qwen2_5_vl"))
    on = estimate_stage(plan, model, data)
    off = estimate_stage(recipe.stage("cpt", {"gradient_checkpointing": False}), model, data)
    assert (on.update, on.other) == (off.other, off.update)
    assert on.update.activations < off.update.activations
    assert on.flops > off.flops


def test_a_rollout_is_counted_once_a_window(recipe, data, tiny_folder):
    model = str(tiny_folder("qwen2_5_vl"))
    short, long = (
        estimate_stage(recipe.stage("rl"), model, data, response_tokens=n) for n in (10, 50)
    )
    assert short.rollout.responses == 24 and short.rollout.tokens == 240
    assert short.rollout.merged_prompt_tokens < short.rollout.prompt_tokens
    assert short.tokens + 24 * 40 == long.tokens
    assert short.flops < long.flops
    memory = long.rollout.memory
    assert memory.shared < memory.unshared
    assert long.update.reference == long.update.weights  # beta is above 0


def test_a_stated_rollout_memory_stays_during_updates(recipe, data, tiny_folder):
    model = str(tiny_folder("qwen2_5_vl"))
    free, stated = (
        estimate_stage(recipe.stage("rl", {"rollout_memory_gib": gib}), model, data)
        for gib in (None, 0.5)
    )
    held = stated.rollout.memory.shared
    assert 2**29 - 2**14 < held <= 2**29 == stated.kept and free.kept == 0
    assert stated.peak >= stated.update.peak + 2**29
    plan = recipe.stage("rl", {"rollout_memory_gib": 0.5})
    graphs = estimate_stage(plan, model, data, device="cuda")  # which keep a step's logits
    assert graphs.kept == 2**29 + graphs.rollout.memory.decoding > 2**29


def test_pictures_are_encoded_once_while_they_fit(recipe, data, tiny_folder, monkeypatch):
    model = str(tiny_folder("qwen2_5_vl"))
    plan = recipe.stage("cpt", {"max_steps": 8})  # of 12 rows in two steps: four epochs
    distinct = estimate_stage(recipe.stage("cpt"), model, data).encoded * 2
    assert estimate_stage(plan, model, data).encoded == distinct / 8
    monkeypatch.setattr("fastmpi.stages.estimating.MAX_FEATURE_BYTES", 1000)
    assert estimate_stage(plan, model, data).encoded == distinct / 2
    trained = recipe.stage("cpt", {"freeze_vision": False})
    found = estimate_stage(trained, model, data)
    assert found.encoded == 0 and sum(work.patches for step in found.work for work in step)


def test_pictures_of_a_window_count_once_for_all_its_steps(recipe, data, tiny_folder, monkeypatch):
    """Four responses a group, three windows of two groups in an epoch, two of them in this run."""
    model, batch = str(tiny_folder("qwen2_5_vl")), {"per_device_train_batch_size": 8}
    settings = {**batch, "num_generations": 2, "num_train_epochs": 1.0}
    encoded = {}
    for iterations, max_steps in ((1, -1), (2, -1), (2, 1)):
        again = {**settings, "num_iterations": iterations, "max_steps": max_steps}
        found = estimate_stage(recipe.stage("rl", again), model, data)
        encoded[iterations, max_steps] = found.encoded * found.steps
    epoch = encoded[1, -1]
    windows = epoch / encoded[2, 1]
    assert encoded[2, -1] == epoch and windows == round(windows) > 1
    monkeypatch.setattr("fastmpi.stages.estimating.MAX_FEATURE_BYTES", 1)
    found = estimate_stage(recipe.stage("rl", {**settings, "num_iterations": 2}), model, data)
    assert found.steps == 2 and found.encoded * 2 == encoded[2, 1]


def test_on_a_gpu_are_the_pictures_of_one_micro_batch(recipe, data, tiny_folder):
    plan, model = recipe.stage("cpt"), str(tiny_folder("qwen2_5_vl"))
    host, gpu = (estimate_stage(plan, model, data, device=d).features for d in ("cpu", "cuda"))
    assert 0 < gpu < host


def test_work_is_that_of_the_steps(recipe, data, tiny_folder):
    found = estimate_stage(recipe.stage("cpt"), str(tiny_folder("qwen2_5_vl")), data)
    assert len(found.work) == 2
    rows = [sum(work.rows for work in step) for step in found.work]
    assert np.mean(rows) == found.merged_tokens


def test_auto_needs_a_budget_where_the_gpu_is_elsewhere(recipe, data, tiny_folder):
    plan, model = recipe.stage("cpt", {"gradient_checkpointing": "auto"}), tiny_folder("qwen2_5_vl")
    assert not estimate_stage(plan, str(model), data, device="cpu").checkpointing
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="memory_budget_gib must say"):
            estimate_stage(plan, str(model), data, device="cuda")


def test_rollouts_beside_the_update_add_up(recipe, data, tiny_folder):
    model = str(tiny_folder("qwen2_5_vl"))
    settings = {"async_generate": True, "num_iterations": 1, "beta": 0.0}
    found = estimate_stage(recipe.stage("rl", settings), model, data)
    apart = estimate_stage(recipe.stage("rl", {**settings, "async_generate": False}), model, data)
    assert apart.copy is None and found.copy == found.update.gradients
    together = found.update.peak + found.features + found.copy + found.rollout.memory.peak
    assert found.peak == together > apart.peak
    assert any("in turn" in note for note in found.notes)


def test_other_families_have_no_counted_flops(recipe, data, tiny_folder):
    found = estimate_stage(recipe.stage("cpt"), str(tiny_folder("llava")), data)
    assert found.flops is None and found.peak > 0


def test_what_is_not_counted_is_said(recipe, data, tiny_folder):
    model = str(tiny_folder("qwen2_5_vl"))
    plan = recipe.stage("rl", {"dynamic_sampling": True, "freeze_vision": False})
    notes = estimate_stage(plan, model, data, device="cuda").notes
    assert [note.split()[0] for note in notes] == ["the", "dynamic", "the"]
    assert not estimate_stage(recipe.stage("cpt"), model, data, device="cpu").notes
    sharded = recipe.stage("cpt", {"fsdp": True})
    assert estimate_stage(sharded, model, data).notes[0].startswith("fsdp: these are the numbers")


def test_data_are_made_outside_of_the_run(recipe, data):
    assert not (Path(recipe.output_dir) / "data").exists()
    assert len(read_rows(data.rows("train"))) == 24


def test_a_skeleton_has_no_weights(tiny_folder, tmp_path):
    model = skeleton(tiny_folder("qwen3_vl"))
    assert all(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(ValueError, match="no model folder"):
        skeleton(tmp_path / "none")
    with pytest.raises(ValueError, match="'none'; a model on the hub is named owner/name"):
        skeleton("none")  # the hub is not asked, which takes minutes without network
