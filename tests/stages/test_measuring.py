"""Seconds of a step: the arithmetic, and that what is measured is what was asked for."""

from __future__ import annotations

import math

import pytest

from fastmpi.recipe import Recipe
from fastmpi.stages.estimating import recipe_data
from fastmpi.stages.measuring import StepTime, measure_stage, step_time
from fastmpi.tracking import read_metrics


def lines(steps, rollouts=()):
    rollouts = [*rollouts, *[None] * (len(steps) - len(rollouts))]
    return [
        {"step_time": seconds, **({} if gen is None else {"perf/gen_s": gen, "perf/logp_s": 0.5})}
        for seconds, gen in zip(steps, rollouts, strict=True)
    ]


def test_the_first_step_warms_up():
    found = step_time(lines([9, 1, 2, 3]), 1)
    assert (found.step, found.rollout, found.warm_up) == (2, 0, 7)
    assert found.spread == pytest.approx(4.303 / math.sqrt(3))
    assert found.run(10) == (27, 7, pytest.approx(27 + 10 * found.spread))


def test_a_rollout_of_every_step():
    found = step_time(lines([5, 3, 3, 3], [4, 1.5, 1.5, 1.5]), 1)
    assert (found.step, found.rollout, found.spread) == (3, 2, 0)
    assert found.warm_up == 2


def test_a_window_lasts_several_steps():
    # 4 steps a window; the second window begins with the fifth step
    found = step_time(lines([21, 1, 1, 1, 13], [19.5, None, None, None, 11.5]), 4)
    assert (found.step, found.rollout, found.spread) == (4, 3, 0)
    assert found.warm_up == 8


def test_no_run_is_shorter_than_its_warm_up():
    assert StepTime(1, 5, 0, 2).run(10) == (12, 2, 62)


def test_three_real_steps_with_responses_of_one_length(tiny_folder, tmp_path):
    data = {"clevr_policy": {"world": "tiny", "depth": 2, "num_policies": 2, "num_train": 6}}
    data["clevr_policy"] |= {"num_cot": 6, "num_test": 2}
    recipe = Recipe.from_dict(
        {
            "data": data,
            "output_dir": str(tmp_path / "run"),
            "rl": {
                "per_device_train_batch_size": 8,
                "num_generations": 2,
                "num_iterations": 2,
                "dynamic_sampling": True,
                "mask_truncated_completions": True,
            },
        }
    )
    files = recipe_data(recipe, tmp_path / "made")
    model, folder = str(tiny_folder("qwen2_5_vl")), tmp_path / "measured"
    found = measure_stage(recipe.stage("rl"), model, files, folder, response_tokens=9)
    steps = read_metrics(folder)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    sampled = [line for line in steps if "perf/gen_s" in line]
    assert [line["step"] for line in sampled] == [1, 3]
    assert {line["completions/max_length"] for line in sampled} == {9}
    assert {line["completions/min_length"] for line in sampled} == {9}
    assert 0 < found.rollout < found.step
    assert not (tmp_path / "run").exists()
