"""Seconds of a step: the arithmetic, and that what is measured is what was asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fastmpi.models.cost import CostModel, Work
from fastmpi.recipe import Recipe
from fastmpi.stages.clock import Timed
from fastmpi.stages.estimating import recipe_data
from fastmpi.stages.measuring import StepTime, measure_stage, step_time, with_cost
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


COST = CostModel(overhead=0.1, row=1e-3, pair=0, score=0, patch=1e-2)


def test_the_stage_may_be_larger_than_the_measured_steps():
    time = StepTime(2, 0.5, 0, 1, cost=COST, update=1.3, encoded=30)
    step = (Work(400, 1, 1), Work(600, 1, 1))  # 1.2 seconds
    small, large = (SimpleNamespace(work=(step,), encoded=n, rollout=None) for n in (30, 60))
    assert time.of_stage(small) == replace(time, step=pytest.approx(1.9))
    assert time.of_stage(large) == replace(time, step=pytest.approx(2.2))
    assert replace(time, cost=None).of_stage(small).step == 2
    # random responses are larger than a model's: those that were measured count
    sampled = SimpleNamespace(work=(step,), encoded=60, rollout="one")
    assert time.of_stage(sampled).step == pytest.approx(2.3)


def test_pictures_of_the_first_step_are_no_warm_up():
    timed = [Timed(0, Work(10, 10, 10), 9.0, 50)]
    timed += [Timed(step, Work(10, 10, 10), 1.0, 50 + 10 * step) for step in (1, 2, 3)]
    clock = SimpleNamespace(timed=timed, cost_model=lambda some: COST if len(some) == 3 else None)
    found = with_cost(StepTime(2, 0.5, 0, 1), clock)
    assert found.warm_up == pytest.approx(1 - 40e-2)
    assert (found.update, found.encoded) == (pytest.approx(0.11), 10)


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
    assert found.cost is not None and 0 < found.update < found.step
    assert not (tmp_path / "run").exists()
