"""The benches of the head: all arms make the same, and the judge is right."""

from __future__ import annotations

import importlib

import pytest
import torch

from fastmpi.benchmarks import bench_policy_head, head_shapes, peers
from fastmpi.benchmarks.harness import Unavailable, judge
from fastmpi.benchmarks.head_inputs import (
    HeadShape,
    clipped_loss,
    clipped_slope,
    exact_outputs,
    make_inputs,
)
from fastmpi.ops.token_logprob import token_logprob

CPU = torch.device("cpu")
SHAPE = HeadShape(32, 300, 16, True, torch.float32, length=8)


def test_exact_outputs_are_those_of_autograd(monkeypatch):
    monkeypatch.setattr("fastmpi.benchmarks.head_inputs.ROWS_AT_ONCE", 5)
    inputs = make_inputs(SHAPE, CPU)
    hidden, head = (x.detach().double().requires_grad_() for x in (inputs.hidden, inputs.head))
    logprob, _ = token_logprob(hidden, head, inputs.rows, inputs.targets)
    clipped_loss(logprob, inputs).backward()
    slope = clipped_slope(inputs)
    found = exact_outputs(inputs.hidden, inputs.head, inputs.targets, slope, trained=True)
    torch.testing.assert_close(found["logprob"], logprob.detach())
    torch.testing.assert_close(found["dhidden"], hidden.grad)
    torch.testing.assert_close(found["dhead"], head.grad)


def test_inputs_are_worth_measuring():
    """Targets from unlikely to almost certain, some ratios clipped on each side."""
    inputs = make_inputs(HeadShape(512, 2048, 128, False, torch.float32), CPU)
    logprob, _ = token_logprob(inputs.hidden, inputs.head, inputs.rows, inputs.targets)
    assert logprob.max() > -0.1 and logprob.min() < -8
    ratio = torch.exp(logprob - inputs.old_logprob)
    assert (ratio < 0.8).any() and (ratio > 1.2).any() and ((ratio - 1).abs() < 0.2).sum() > 256


@pytest.mark.parametrize("bench", ["policy_head", "token_logprob"])
def test_every_arm_that_runs_agrees_with_the_exact_outputs(bench):
    cases = importlib.import_module(f"fastmpi.benchmarks.bench_{bench}").cases(CPU, True)
    for case in (case for case in cases if "fp32" in case.name):
        exact = case.exact()
        for name in case.arms.keys() - {"compile", "matmul"}:
            try:
                outputs = case.arms[name]()()
            except Unavailable:
                continue
            assert outputs.keys() == exact.keys(), (case.name, name)
            errors = judge(case, outputs, exact)["errors"]
            assert max(errors.values()) < 5e-6, (case.name, name, errors)


def test_names_begin_with_the_state_of_the_head():
    names = [case.name for case in bench_policy_head.cases(CPU, False)]
    assert "frozen T=16384 V=151936 H=2048 bf16" in names
    assert "trained T=4096 V=152064 H=3584 bf16" in names
    assert {name.split()[0] for name in names} == {"frozen", "trained"}


def test_full_shapes_are_the_models():
    shapes = head_shapes.head_shapes(small=False)
    assert {(s.num_tokens, s.trained) for s in shapes} == {
        (tokens, trained) for tokens in (4096, 16384) for trained in (False, True)
    }
    assert shapes[0].counts(2)["flops"] == 4 * 4096 * 151_936 * 2048
    assert {s.dtype for s in shapes} == {torch.bfloat16}


def test_absent_peers_say_so():
    with pytest.raises(Unavailable, match="^not installed$"):
        peers.load("no_such_package.kernels")
    with pytest.raises(Unavailable, match="cannot be imported: No module named 'json.nothing'"):
        peers.load("json.nothing")
    with pytest.raises(Unavailable, match="needs a CUDA device"):
        peers.load_cuda("json", CPU)
