"""The bench of whole updates: all arms make the same gradient, and its counts are the model's."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from fastmpi.benchmarks.bench_update import case_of, cases, counted
from fastmpi.benchmarks.harness import Unavailable, first_relative_error, run_case
from fastmpi.benchmarks.update_inputs import UpdateInputs, UpdateShape, make_inputs
from fastmpi.benchmarks.update_rollouts import SMALL_TEXT, SMALL_VISION

CPU = torch.device("cpu")
# ragged responses to two prompts, which no budget below 74 tokens would hold at once
TINY = UpdateShape(
    name="tiny",
    text={**SMALL_TEXT, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    vision={
        **SMALL_VISION,
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
    dtype=torch.float32,
    num_prompts=2,
    image_tokens=16,
    question_tokens=9,
    response_tokens=(3, 7),
    responses=4,
    budget=128,
)


@cache
def tiny_case():
    return case_of(TINY, CPU)


@cache
def tiny_inputs() -> UpdateInputs:
    return make_inputs(TINY, CPU)


@cache
def exact():
    return tiny_case().exact()


@pytest.mark.parametrize("name", ["fastmpi", "packed", "trl", "prefix_grouper"])
def test_arms_make_the_exact_gradient(name):
    try:
        run = tiny_case().arms[name]()
    except Unavailable as reason:
        pytest.skip(str(reason))
    for _ in range(2):  # a run adds to no gradient of the run before it
        outputs = run()
        assert first_relative_error(outputs, exact()) < 2e-6
        assert float(outputs["loss"]) == pytest.approx(float(exact()["loss"]), rel=1e-5)


def test_checkpointing_changes_no_gradient():
    shape = UpdateShape(**{**vars(TINY), "checkpointing": True})
    assert first_relative_error(case_of(shape, CPU).arms["fastmpi"]()(), exact()) < 2e-6


def test_a_result_is_json():
    case = case_of(TINY, CPU)
    found = run_case(case, device=CPU, runs=2)
    assert {"fastmpi", "packed"} <= set(found["arms"]) | set(found["missing"])
    assert found["counts"]["flops_ratio"] > 1
    assert found["arms"]["fastmpi"]["error"] < 2e-6
    json.dumps(found, allow_nan=False)


def test_counts_follow_the_rollouts():
    counts = counted(tiny_inputs())
    assert counts["flops_ratio"] == counts["packed_flops"] / counts["flops"]
    shape = UpdateShape(**{**vars(TINY), "responses": 8})
    assert counted(make_inputs(shape, CPU))["flops_ratio"] > counts["flops_ratio"]


def test_cases_are_listed_without_models():
    assert [case.name for case in cases(CPU, small=True)] == [
        "small prompt=102 prompts=2 R=32..64 8+8",
        "small prompt=246 prompts=2 R=32..64 8+8",
        "small prompt=598 prompts=1 R=32..64 8+8",
    ]
    assert [case.exact is None for case in cases(torch.device("cuda"), small=False)] == [
        True,
        False,
    ]


def test_rollouts_are_of_the_asked_sizes():
    inputs = tiny_inputs()
    assert len(inputs.rollouts.samples) == len(inputs.rollouts.advantages) == 8
    lengths = [len(inputs.rollouts.response(s)) for s in range(8)]
    assert all(3 <= length <= 7 for length in lengths)
    assert inputs.rollouts.num_scored_tokens == sum(lengths)
    prompts = {prompt.images[0].key for prompt in inputs.rollouts.prompts}
    assert len(prompts) == 2
    assert all(len(prompt.ids) == 16 + 2 + 9 for prompt in inputs.rollouts.prompts)


def test_gradients_are_views_of_one_tensor():
    inputs = tiny_inputs()
    trained = [p for p in inputs.model.parameters() if p.requires_grad]
    inputs.gradient.fill_(2.0)
    assert all(bool((p.grad == 2.0).all()) for p in trained)
    assert sum(p.numel() for p in trained) == len(inputs.gradient)
    assert not any(p.requires_grad for p in inputs.model.base.model.visual.parameters())
