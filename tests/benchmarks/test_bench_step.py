"""The bench of whole steps: all arms learn the same from the same responses, and then take steps
of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from fastmpi.benchmarks.bench_step import case_of, cases, cpt_case_of
from fastmpi.benchmarks.harness import Unavailable, first_relative_error, run_case
from fastmpi.benchmarks.step_cpt import CPTShape, make_cpt_inputs
from fastmpi.benchmarks.step_inputs import StepShape, make_inputs
from fastmpi.benchmarks.update_rollouts import SMALL_TEXT, SMALL_VISION

CPU = torch.device("cpu")
CLOSE = 1e-4  # advantages of a group add up to nothing, and so do most of the gradients
SIZES = {
    "text": {**SMALL_TEXT, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    "vision": {
        **SMALL_VISION,
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
    "dtype": torch.float32,
}
TINY = StepShape("tiny", **SIZES, policy=20, image=9, question=6, response=5, free=2, aware=2)
TINY_CPT = CPTShape(
    "tiny", **SIZES, policy=40, image=9, question=6, reasoning=5, samples=4, steps=3
)


def started(case, arm):
    try:
        return case.arms[arm]()
    except Unavailable as reason:
        pytest.skip(str(reason))


@cache
def tiny():
    case = case_of(TINY, CPU)
    return case, case.exact()


@cache
def tiny_cpt():
    case = cpt_case_of(TINY_CPT, CPU)
    return case, case.exact()


@pytest.mark.parametrize("arm", ["fastmpi", "trl, no policy"])
def test_arms_learn_the_same_from_the_same_responses(arm):
    case, exact = tiny()
    run = started(case, arm)
    learned = run()
    assert first_relative_error(learned, exact) < CLOSE
    assert float(learned["loss"]) == pytest.approx(float(exact["loss"]), abs=1e-6)
    for _ in range(2):  # samples its own
        assert run() == {}
        assert list(run.parts) == ["rollout", "scoring", "update"]
        assert all(part["ms"] > 0 for part in run.parts.values())


def test_trl_with_the_policy_in_sight_learns_something_else():
    case, exact = tiny()
    run = started(case, "trl")
    assert first_relative_error(run(), exact) > 0.1
    assert run() == {}


def test_without_aware_responses_there_is_one_arm_of_trl():
    case = case_of(replace(TINY, policy=0, free=4, aware=0), CPU)
    assert list(case.arms) == ["fastmpi", "trl"]
    assert first_relative_error(started(case, "trl")(), case.exact()) < CLOSE
    assert first_relative_error(started(case, "fastmpi")(), case.exact()) < CLOSE


@pytest.mark.parametrize("arm", ["fastmpi", "packed", "trl"])
def test_arms_of_cpt_make_the_exact_gradient(arm):
    case, exact = tiny_cpt()
    run = started(case, arm)
    learned = run()
    assert first_relative_error(learned, exact) < 1e-5
    assert float(learned["loss"]) == pytest.approx(float(exact["loss"]), rel=1e-5)
    assert run() == run() == {}


def test_a_result_is_json_with_parts():
    found = run_case(case_of(TINY, CPU), device=CPU, runs=2)
    ours = found["arms"]["fastmpi"]
    assert set(ours["parts"]) == {"rollout", "scoring", "update"}
    assert set(ours["parts"]["update"]["ms"]) == {"p20", "median", "p80"}
    whole = sum(part["ms"]["median"] for part in ours["parts"].values())
    assert whole == pytest.approx(ours["ms"]["median"], rel=0.3)
    json.dumps(found, allow_nan=False)


def test_cases_are_listed_without_models():
    names = [case.name for case in cases(CPU, small=True)]
    assert [name.split()[1] for name in names] == ["grpo", "policyrollout", "cpt"]
    assert all(case.exact is not None for case in cases(CPU, small=True))
    assert [case.exact is None for case in cases(torch.device("cuda"), small=False)] == [True] * 3


def test_no_picture_comes_twice_and_all_rows_are_equally_long():
    inputs = make_inputs(TINY, CPU)
    pictures = {np.asarray(row["images"][0]).tobytes() for row in inputs.rows}
    assert len(pictures) == len(inputs.rows)
    lengths = {len(sample.ids) for sample in make_cpt_inputs(TINY_CPT, CPU).samples(1)}
    assert len(lengths) == 1
